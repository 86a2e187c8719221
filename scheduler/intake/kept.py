"""How many slots of a pool are kept, from flows that have their share, for others that were here lately. Pure.

A slot that is given away is gone for a whole answer. Without this, whoever comes back in a moment finds its slot taken
each time, however fair the queue is, and waits for the end of somebody's answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RECENT_US = 10_000_000
"""A flow that asked for something since then may ask again, for as much at once as it had."""
OF_SLOTS = 16
"""Of so many slots one is kept in any case, for a flow that has nothing yet; a smaller pool keeps none."""
MOST_OF_SLOTS = 4
"""Of so many no more than one: what is kept and not asked for is lost to those that wait."""
_HALF_US = RECENT_US // 2


@dataclass(slots=True)
class _Flow:
    asked_us: int
    span: int = 0
    """Time is cut into spans of half of `RECENT_US`; this is the last in which it held something more."""
    most: int = 0
    """What it held at most in that span."""
    most_before: int = 0
    """And in the one before."""


class Lately:
    """The flows that were here lately, and how many slots each had at once."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow] = {}  # bounded: by the flows of RECENT_US and a span
        """In the order in which they asked last."""
        self._forgot_span = 0

    def asked(self, flow: str, now_us: int) -> None:
        """A flow has asked for something."""
        found = self._flows.pop(flow, None) or _Flow(now_us)
        found.asked_us = now_us
        self._flows[flow] = found
        if now_us // _HALF_US != self._forgot_span:
            self._forget(now_us)

    def given(self, flow: str, held: int, now_us: int) -> None:
        """A flow got a slot, and now holds so many."""
        if flow not in self._flows:
            return
        found = self._flows[flow]
        span = now_us // _HALF_US
        if span != found.span:
            found.most_before = found.most if span == found.span + 1 else 0
            found.span, found.most = span, 0
        if held > found.most:
            found.most = held

    def kept(self, held: Mapping[str, int], slots: int, now_us: int) -> tuple[int, int]:
        """Return (how many of `slots` are kept, the share of a flow). `held` is what each has.

        One below its share finds as many as it had at once lately, within its share. Where there are more flows than
        slots, the share is one slot, and what is kept in any case is all that is.
        """
        self._forget(now_us)
        flows = len(self._flows)
        if flows < 2 or slots < OF_SLOTS:
            return 0, slots
        least, most, share = slots // OF_SLOTS, slots // MOST_OF_SLOTS, slots // flows
        if not share:
            return least, 1
        owed, span = 0, now_us // _HALF_US
        # Asked for each slot that is given while the pool is nearly full, and there may be many flows.
        for flow, found in self._flows.items():
            if owed >= most:
                break
            if span - found.span > 1:
                continue
            had = found.most
            if span == found.span and found.most_before > had:
                had = found.most_before
            if had > share:
                had = share
            missing = had - held.get(flow, 0)
            if missing > 0:
                owed += missing
        return min(max(least, owed), most), share

    def known(self) -> int:
        """Return how many flows are remembered."""
        return len(self._flows)

    def _forget(self, now_us: int) -> None:
        self._forgot_span = now_us // _HALF_US
        gone: list[str] = []
        for flow, found in self._flows.items():
            if now_us - found.asked_us < RECENT_US:
                break
            gone.append(flow)
        for flow in gone:
            del self._flows[flow]
