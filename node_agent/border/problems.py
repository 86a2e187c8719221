"""What the tenant is told when nothing was chosen: a safe subset of the account. Pure.

The tenant sees which law refuses, by which rule, and what would be needed; never a pool, an operator, a price or how
full a pool is, which are the operator's.
"""

from __future__ import annotations

from orchestrator.placement.pick import Drop, Placement
from orchestrator.placement.requests import PlacementRequest
from orchestrator.policy.verdicts import REVOKED, Reason
from orchestrator.wire.catalogue import Problem, Told

_REVOKED = "A pool is revoked."
"""Instead of the sentence that names it."""


def problem_of(placement: Placement, request: PlacementRequest) -> Problem:
    """Return what the tenant is told when nothing was chosen."""
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
    drops = {c.drop for c in permitted}
    if drops <= {Drop.MODEL}:
        return Problem("model_not_found", f"No permitted pool serves the model '{request.model}'.", "model")
    if drops <= {Drop.MODEL, Drop.CAPABILITY}:
        offered = frozenset[object]().union(
            *(served.capabilities for c in permitted for served in c.pool.models if served.id == request.model)
        )
        missing = sorted(need.value for need in request.capabilities if need not in offered)
        return Problem("capability_not_offered", f"No permitted pool offers: {', '.join(missing)}.")
    counts = ", ".join(f"{count} {drop}" for drop, count in sorted(placement.counts().items()))
    sentence = f"Permitted pools exist, but none can take the request now ({counts})."
    return Problem("no_feasible_pool", sentence, explanation=explanation)


def _told(reasons: list[Reason]) -> tuple[Told, ...]:
    """Return the distinct reasons of all pools, without the names of pools."""
    told = [
        Told(reason.rule, reason.jurisdiction, _REVOKED if reason.rule == REVOKED else reason.sentence, reason.needs)
        for reason in reasons
    ]
    return tuple(dict.fromkeys(sorted(told, key=lambda one: (one.jurisdiction or "", one.rule, one.sentence))))
