"""Whether attempts fail at a place far more than at its siblings, and not only those of one flow. Pure.

What was asked may be why an attempt failed. So the failures of the flow that failed most count for nothing where others
tell enough of the place; where they do not, it is that flow's own work at the siblings that the place is compared with.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from statistics import median

import msgspec

from orchestrator.policy.ids import FlowId

KEPT = 16
"""Attempts that are kept of one place."""
LEAST = 8
"""So many say something of a place; half as many of a sibling, or of the others there."""
FAILED_SHARE = 0.5
SIBLINGS_FAILED_SHARE = 0.1


class Fared(msgspec.Struct, frozen=True):
    """How an attempt ended."""

    at_us: int
    flow: FlowId | None
    """Whose it was; None where it failed and nothing that was asked can have brought that about."""
    failed: bool


def kept() -> deque[Fared]:
    """Return what takes the last attempts of one place."""
    return deque(maxlen=KEPT)


def add_failure(fared: deque[Fared], at_us: int, flow: FlowId | None) -> None:
    """Keep a failure. However often a flow fails, half of what is kept is left to others."""
    if flow is not None and len(fared) == KEPT:
        own = [one for one in fared if one.flow == flow]
        if len(own) >= KEPT // 2:
            fared.remove(own[0])
    fared.append(Fared(at_us, flow, True))


def fails_much(fared: Sequence[Fared]) -> bool:
    """Whether enough attempts at a place failed for a closer look."""
    return len(fared) >= LEAST and _share(fared) >= FAILED_SHARE


def fails_alone(fared: Sequence[Fared], siblings: Iterable[Sequence[Fared]], until_us: int) -> bool:
    """Whether a place that `fails_much` does so where its siblings, as they fared until then, do not."""
    judged, lone = _judged(fared)
    if _share(judged) < FAILED_SHARE:
        return False
    shares: list[float] = []
    for sibling in siblings:
        told = [one for one in sibling if one.at_us <= until_us]
        told = list(_judged(told)[0]) if lone is None else [one for one in told if one.flow in (None, lone)]
        if len(told) >= LEAST // 2:
            shares.append(_share(told))
    return bool(shares) and median(shares) <= SIBLINGS_FAILED_SHARE


def _share(fared: Sequence[Fared]) -> float:
    return sum(one.failed for one in fared) / len(fared)


def _judged(fared: Sequence[Fared]) -> tuple[Sequence[Fared], FlowId | None]:
    """Return what a place is judged by: all but the flow that failed most, where others tell enough.

    Where they do not, it is all of it, and that flow is returned too.
    """
    failed = Counter(one.flow for one in fared if one.failed and one.flow is not None)
    if not failed:
        return fared, None
    worst = failed.most_common(1)[0][0]
    others = [one for one in fared if one.flow != worst]
    if sum(one.flow is not None for one in others) < LEAST // 2:
        return fared, worst
    return others, None
