"""How many attempts may be second ones. Pure; time is a parameter.

When pools refuse, every request placed again makes the load that they refuse larger. So what is placed again, or goes
on elsewhere after a cut, is at most a fifth of what is under way (Envoy's retry budget), though always three may. What
ended at once counts for a second all the same: else refusals, which are quick, would never add up.
"""

from __future__ import annotations

from collections import deque

import msgspec

SHARE_PERCENT = 20
LEAST = 3
COUNTS_FOR_US = 1_000_000
"""How long an attempt counts at least, from when it left."""


class Spent(msgspec.Struct):
    """One attempt under way, as it counts. Whoever sends it holds it."""

    again: bool
    """Whether it came after another of the same request."""
    until_us: int
    """Until when it counts at least."""
    over: bool = False


class RetryBudget:
    """Counts the attempts of one edge: first ones, and those that came after another of the same request."""

    def __init__(self) -> None:
        self._quick: tuple[deque[int], deque[int]] = (deque(), deque())  # bounded: by what leaves within a second
        """Until when attempts count that have ended: first ones, and second ones."""
        self._counts = [0, 0]
        """Under way: first ones, and second ones."""

    def may_retry(self, now_us: int) -> bool:
        """Whether one more second attempt may leave."""
        first, again = (self._count(kind, now_us) for kind in (False, True))
        return again < max(LEAST, first * SHARE_PERCENT // 100)

    def sent(self, again: bool, now_us: int) -> Spent:
        """An attempt leaves; `again` where it is not the first of its request. Returns what its end is told by."""
        self._counts[again] += 1
        return Spent(again, now_us + COUNTS_FOR_US)

    def ended(self, spent: Spent, now_us: int) -> None:
        """An attempt is over. Told twice, it counts once."""
        if spent.over:
            return
        spent.over = True
        self._counts[spent.again] -= 1
        quick = self._quick[spent.again]
        if spent.until_us > now_us:
            quick.append(spent.until_us)
        # In the order in which they ended, so one may stay for up to a second longer than it counts.
        while quick and quick[0] <= now_us:
            quick.popleft()

    def _count(self, again: bool, now_us: int) -> int:
        quick = self._quick[again]
        while quick and quick[0] <= now_us:
            quick.popleft()
        return self._counts[again] + len(quick)
