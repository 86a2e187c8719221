"""Placement: permitted, then feasible, then within epsilon of the best cost, then power of two choices.

"Could not place" is a result with a count per reason, not an exception.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

from orchestrator.placement.cost import Terms, cost
from orchestrator.placement.fleet import Fleet, Pool, Prices
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.ids import EdgeId, PoolId
from orchestrator.policy.verdicts import Verdict

PPM = 1_000_000


class Drop(Enum):
    """Why a pool is no candidate. The first that applies is named; the law comes before everything else."""

    NOT_PERMITTED = "not_permitted"
    MODEL = "model_not_served"
    CAPABILITY = "capability_not_offered"
    NOT_REACHABLE = "not_reachable"
    DRAINED = "drained"
    TRIED = "tried"
    DOWN = "down"
    FULL = "full"
    NO_PRICE = "no_price"


@dataclass(frozen=True, slots=True)
class Candidate:
    """One declared pool, as this request saw it: dropped for a reason, or with every term of its cost."""

    pool: Pool
    verdict: Verdict
    drop: Drop | None
    terms: Terms | None


@dataclass(frozen=True, slots=True)
class Placement:
    """The choice, and the account of every pool that was not chosen."""

    chosen: Candidate | None
    candidates: tuple[Candidate, ...]
    """Every pool of the declared fleet, sorted by id."""

    def counts(self) -> dict[str, int]:
        """Return how many pools were dropped for each reason."""
        return dict(Counter(c.drop.value for c in self.candidates if c.drop is not None))

    def permitted(self) -> tuple[Candidate, ...]:
        """Return the candidates that the law allows."""
        return tuple(candidate for candidate in self.candidates if candidate.verdict.allowed)


def place(
    request: PlacementRequest,
    edge: EdgeId,
    fleet: Fleet,
    verdicts: Mapping[PoolId, Verdict],
    views: Mapping[PoolId, PoolView],
    prices: Prices,
    settings: PlacementSettings,
    chance: int,
) -> Placement:
    """Choose a pool. `verdicts` must hold one for every pool of `fleet`; `chance` is 64 random bits for ties."""
    candidates = tuple(
        _judge(request, edge, pool, verdicts[pool.id], views.get(pool.id), prices, settings)
        for pool in sorted(fleet.pools, key=lambda pool: pool.id)
    )
    return Placement(_choose(candidates, views, settings, chance), candidates)


def _judge(
    request: PlacementRequest,
    edge: EdgeId,
    pool: Pool,
    verdict: Verdict,
    view: PoolView | None,
    prices: Prices,
    settings: PlacementSettings,
) -> Candidate:
    served = pool.served(request.model)
    price = prices.cost(pool.id, request.model)
    drop: Drop | None = None
    if not verdict.allowed:
        drop = Drop.NOT_PERMITTED
    elif served is None:
        drop = Drop.MODEL
    elif not request.capabilities <= served.capabilities:
        drop = Drop.CAPABILITY
    elif not pool.reachable(edge):
        drop = Drop.NOT_REACHABLE
    elif pool.id in settings.drains:
        drop = Drop.DRAINED
    elif pool.id in request.tried:
        drop = Drop.TRIED
    elif view is None or not view.up or (view.load is not None and view.load.replicas == 0):
        drop = Drop.DOWN
    elif view.load is not None and view.load.full():
        drop = Drop.FULL
    elif price is None or price.tokens.currency != settings.currency:
        drop = Drop.NO_PRICE
    if drop is not None or served is None or price is None or view is None:
        return Candidate(pool, verdict, drop, None)
    return Candidate(pool, verdict, None, cost(request, pool, served, price, view, settings))


def _choose(
    candidates: tuple[Candidate, ...], views: Mapping[PoolId, PoolView], settings: PlacementSettings, chance: int
) -> Candidate | None:
    scored = [(c.terms.total_pico, c) for c in candidates if c.terms is not None]
    if not scored:
        return None
    best_pico = min(total for total, _ in scored)
    near = [c for total, c in scored if total <= best_pico + best_pico * settings.epsilon_ppm // PPM]
    if len(near) == 1:
        return near[0]
    first = near[chance % len(near)]
    others = [c for c in near if c is not first]
    second = others[(chance >> 32) % len(others)]
    return min((first, second), key=lambda c: (_age_ms(views.get(c.pool.id)), c.pool.id))


def _age_ms(view: PoolView | None) -> int:
    """Age of what is known; a pool that never reported counts as the oldest."""
    return 1 << 40 if view is None or view.load is None else view.load.age_ms
