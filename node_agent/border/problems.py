"""What the tenant is told when nothing was chosen: a safe subset of the account. Pure.

The tenant sees which law refuses, by which rule, and what would be needed; never a pool, an operator, a price or how
full a pool is, which are the operator's.
"""

from __future__ import annotations

from collections import Counter

from orchestrator.placement.pick import Candidate, Drop, Placement
from orchestrator.placement.requests import PlacementRequest
from orchestrator.policy.ids import PoolId
from orchestrator.policy.verdicts import REVOKED, Reason
from orchestrator.wire.catalogue import Problem, Told

_REVOKED = "A pool is revoked."
"""Instead of the sentence that names it."""
_LASTING = (Drop.ENTITLEMENT, Drop.MODEL, Drop.REVISION, Drop.CAPABILITY, Drop.CONTEXT, Drop.BUDGET)
"""Reasons that the same request meets again however often it is tried, in the order in which they are found."""
_SAID = {Drop.BREAKER: Drop.DOWN, Drop.CAPPED: Drop.FULL, Drop.NO_OPENING: Drop.FULL}
"""What is told instead. How an operator shares its room, and which of its pools fail, is not the tenant's to know."""

_ALONE = "held off for this tenant"
"""Instead of what a pool is to nobody else."""
_ALONE_NEEDS = (
    "A request other than those of this tenant that failed there in a row; each such pool is tried again within 30 s."
)


def problem_of(
    placement: Placement, request: PlacementRequest, alone: frozenset[PoolId] = frozenset()
) -> Problem:
    """Return what the tenant is told when nothing was chosen.

    `alone` are the pools that are held off for this tenant, and would take another's request.
    """
    permitted = placement.permitted()
    reasons = [reason for c in placement.candidates for reason in c.verdict.reasons]
    explanation = _told(reasons)
    if not permitted:
        rules = tuple(sorted({reason.rule for reason in reasons}))
        sentences = " ".join(dict.fromkeys(one.sentence for one in explanation))
        needs = " ".join(dict.fromkeys(one.needs for one in explanation if one.needs))
        if not placement.candidates:
            sentences = "The declared fleet has no pool."
        sentence = f"No pool may receive this payload. {sentences}"
        return Problem("residency_blocked", sentence, None, rules, needs, explanation=explanation)
    # A pool that this edge cannot reach at all is no better for waiting, and no reason to ask for something else.
    drops = {c.drop for c in permitted if c.drop is not None and c.drop is not Drop.NOT_REACHABLE}
    if drops and drops <= set(_LASTING):
        return _lasting(max(drops, key=_LASTING.index), permitted, request)
    told = Counter(_said(c.drop, c.pool.id in alone) for c in placement.candidates if c.drop is not None)
    counts = ", ".join(f"{count} {drop}" for drop, count in sorted(told.items()))
    sentence = f"Permitted pools exist, but none can take the request now ({counts})."
    return Problem("no_feasible_pool", sentence, needs=_ALONE_NEEDS if _ALONE in told else "", explanation=explanation)


def _said(drop: Drop, alone: bool) -> str:
    """Return what is told of a pool that is left out."""
    return _ALONE if alone and drop is Drop.BREAKER else _SAID.get(drop, drop).value


def _lasting(last: Drop, permitted: tuple[Candidate, ...], request: PlacementRequest) -> Problem:
    """Return what is told where no retry can help. `last` is the reason of the pools that came furthest."""
    model = request.model
    nobody = "No permitted pool" if all(c.drop in _LASTING for c in permitted) else "No permitted pool in reach"
    match last:
        case Drop.ENTITLEMENT:
            # As where the request comes in: one answer for a model that is not here and for one that is another's.
            return Problem("model_not_found", param="model")
        case Drop.MODEL:
            return Problem("model_not_found", f"{nobody} serves the model '{model}'.", "model")
        case Drop.REVISION:
            sentence = f"{nobody} serves the revision '{request.revision}' of the model '{model}'."
            return Problem("model_not_found", f"{sentence} The contract insists on it.", "model")
        case Drop.CAPABILITY:
            return Problem("capability_not_offered", f"{nobody} offers{_missing(permitted, request)}.")
        case Drop.CONTEXT:
            sentence = f"{nobody} has room for an answer of {request.max_tokens} tokens and a prompt."
            return Problem("context_length_exceeded", sentence, "max_tokens", needs="A lower max_tokens.")
    sentence = "The request is expected to cost more than the contract allows for one."
    needs = "A shorter prompt, a lower max_tokens, or another budget in the contract."
    return Problem("budget_exceeded", sentence, needs=needs)


def _missing(permitted: tuple[Candidate, ...], request: PlacementRequest) -> str:
    """Return what nobody offers of what is needed or, where each is offered somewhere, that none offers all."""
    served = [c.pool.served(request.model) for c in permitted if c.drop is Drop.CAPABILITY]
    offered = frozenset[object]().union(*(one.capabilities for one in served if one is not None))
    needed = sorted(need.value for need in request.capabilities)
    missing = sorted(need.value for need in request.capabilities if need not in offered)
    return f": {', '.join(missing)}" if missing else f" all of: {', '.join(needed)}"


def _told(reasons: list[Reason]) -> tuple[Told, ...]:
    """Return the distinct reasons of all pools, without the names of pools."""
    told = [
        Told(reason.rule, reason.jurisdiction, _REVOKED if reason.rule == REVOKED else reason.sentence, reason.needs)
        for reason in reasons
    ]
    return tuple(dict.fromkeys(sorted(told, key=lambda one: (one.jurisdiction or "", one.rule, one.sentence))))
