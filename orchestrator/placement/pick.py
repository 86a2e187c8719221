"""Placement: permitted, then feasible, then within epsilon of the best cost, then power of two choices.

"Could not place" is a result with a count per reason, not an exception.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum

import msgspec

from orchestrator.placement.cost import Spot, Terms, cost
from orchestrator.placement.fleet import Pool
from orchestrator.placement.plan import Offer, Plan
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.ids import PoolId
from orchestrator.policy.tenants import Service
from orchestrator.policy.verdicts import Verdict

PPM = 1_000_000


class Drop(StrEnum):
    """Why a pool is no candidate. The first that applies is named; the law comes before everything else."""

    NOT_PERMITTED = "not_permitted"
    ENTITLEMENT = "not_entitled"
    MODEL = "model_not_served"
    REVISION = "revision_not_served"
    CAPABILITY = "capability_not_offered"
    CONTEXT = "context_too_short"
    NOT_REACHABLE = "not_reachable"
    DRAINED = "drained"
    TRIED = "tried"
    DOWN = "down"
    BREAKER = "breaker_open"
    CAPPED = "capped"
    FULL = "full"
    NO_OPENING = "no_opening"
    NO_PRICE = "no_price"
    BUDGET = "over_budget"


# A member costs several times as much by way of its enumeration, and these two are what most pools are dropped for.
_NOT_PERMITTED, _MODEL = Drop.NOT_PERMITTED, Drop.MODEL


class Candidate(msgspec.Struct, frozen=True):
    """One declared pool, as this request saw it: dropped for a reason, or with every term of its cost."""

    pool: Pool
    verdict: Verdict
    drop: Drop | None
    terms: Terms | None
    spot: Spot | None = None
    """What its cost was worked out from."""
    doubtful: bool = False
    """The estimated prompt does not fit its context. An estimate refuses nothing: it comes after all that fit."""


class Placement(msgspec.Struct, frozen=True):
    """The choice, and the account of every pool that was not chosen."""

    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    """Every pool of the declared fleet, sorted by id."""

    def counts(self) -> dict[str, int]:
        """Return how many pools were dropped for each reason, in the order of the words."""
        found: dict[str, int] = {}
        for candidate in self.candidates:
            if candidate.drop is not None:
                word = str(candidate.drop)
                found[word] = found[word] + 1 if word in found else 1
        return dict(sorted(found.items())) if len(found) > 1 else found

    def permitted(self) -> tuple[Candidate, ...]:
        """Return the candidates that the law allows."""
        return tuple(candidate for candidate in self.candidates if candidate.verdict.allowed)

    def runner_up(self) -> Candidate | None:
        """Return the cheapest candidate that was not chosen, or None when there is none."""
        found: Candidate | None = None
        least: tuple[bool, int, PoolId] | None = None
        for candidate in self.candidates:
            if candidate.terms is None or candidate is self.chosen:
                continue
            rank = (candidate.doubtful, candidate.terms.total_pico, candidate.pool.id)
            if least is None or rank < least:
                found, least = candidate, rank
        return found


def place(
    request: PlacementRequest,
    plan: Plan,
    verdicts: Mapping[PoolId, Verdict],
    views: Mapping[PoolId, PoolView],
    settings: PlacementSettings,
    now_ms: int,
    chance: int,
) -> Placement:
    """Choose a pool. `verdicts` must hold one for every pool of the plan; `chance` is 64 random bits for ties."""
    if request.canary:
        settings = settings.arm(True)
    worth = settings.usual if request.service is None else settings.worth(request.service)
    candidates: list[Candidate] = []
    rated: list[Candidate] = []
    for offer in plan.offers(request.model, now_ms):
        pool, served, spot = offer.pool, offer.served, offer.spot
        verdict = verdicts[pool.id]
        if not verdict.allowed:
            candidates.append(Candidate(pool, verdict, _NOT_PERMITTED, None))
            continue
        view = views.get(pool.id)
        drop = _drop(request, offer, view, settings)
        if drop is not None or served is None or spot is None or view is None:
            candidates.append(Candidate(pool, verdict, drop, None))
            continue
        doubtful = request.prompt_tokens > served.context_tokens
        one = Candidate(pool, verdict, None, cost(request, spot, view, worth), spot, doubtful)
        candidates.append(one)
        rated.append(one)
    chosen = rated[0] if len(rated) == 1 else _choose(rated, views, settings, chance)
    return Placement(chosen, tuple(candidates))


def _drop(
    request: PlacementRequest, offer: Offer, view: PoolView | None, settings: PlacementSettings
) -> Drop | None:
    """Return why a permitted pool is no candidate: as declared it never is, or it is not now."""
    pool, served = offer.pool.id, offer.served
    if not request.entitled:
        return Drop.ENTITLEMENT
    if served is None:
        return _MODEL
    if request.revision is not None and request.revision != served.revision:
        return Drop.REVISION
    if not request.capabilities <= served.capabilities:
        return Drop.CAPABILITY
    # Only what is certain refuses: an answer of that length leaves no room for any prompt.
    if request.max_tokens is not None and request.max_tokens >= served.context_tokens:
        return Drop.CONTEXT
    if not offer.reachable:
        return Drop.NOT_REACHABLE
    if pool in settings.drains:
        return Drop.DRAINED
    if pool in request.tried:
        return Drop.TRIED
    load = None if view is None else view.load
    if view is None or not view.up or (load is not None and load.replicas == 0):
        return Drop.DOWN
    if view.held_off:
        return Drop.BREAKER
    if pool in settings.caps and view.own_in_flight >= settings.caps[pool]:
        return Drop.CAPPED
    if load is not None:
        if load.full():
            return Drop.FULL
        if load.openings is not None and view.unseen >= load.openings:
            return Drop.NO_OPENING
    if offer.spot is None:
        return Drop.NO_PRICE
    if request.service is not None and _over_budget(request, request.service, view):
        return Drop.BUDGET
    return None


def _over_budget(request: PlacementRequest, service: Service, view: PoolView) -> bool:
    """Whether the tenant would be expected to pay more than it allows. Without a price in its book it pays nothing."""
    budget = service.budget_pico
    if budget is None or request.bill_pico is None:
        return False
    cached = min(view.cached_tokens, max(0, request.prompt_tokens - 1))
    return request.bill_pico - cached * request.cached_rebate_pico > budget


def _choose(
    rated: list[Candidate], views: Mapping[PoolId, PoolView], settings: PlacementSettings, chance: int
) -> Candidate | None:
    best: Candidate | None = None
    best_pico, alone = 0, True
    for one in rated:
        if one.terms is None:
            continue
        total_pico = one.terms.total_pico
        if best is None or (best.doubtful and not one.doubtful):
            best, best_pico, alone = one, total_pico, True
        elif one.doubtful is best.doubtful:
            alone = False
            if total_pico < best_pico:
                best, best_pico = one, total_pico
    if best is None or alone:
        return best
    most_pico = best_pico + best_pico * settings.epsilon_ppm // PPM
    doubtful = best.doubtful
    near = [c for c in rated if c.terms is not None and c.doubtful is doubtful and c.terms.total_pico <= most_pico]
    if len(near) == 1:
        return best
    # Bits of their own: the canary is drawn from others (`in_canary`), and the lowest of a float's 64 are nought.
    first = near[(chance >> 48) * len(near) >> 16]
    others = [c for c in near if c is not first]
    second = others[(chance >> 32 & 0xFFFF) * len(others) >> 16]
    # Of equal age the first drawn: reports of one session arrive together, and a name must not win every tie.
    return min((first, second), key=lambda c: _age_ms(views.get(c.pool.id)))


def _age_ms(view: PoolView | None) -> int:
    """Age of what is known; a pool that never reported counts as the oldest."""
    return 1 << 40 if view is None or view.load is None else view.load.age_ms
