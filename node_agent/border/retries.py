"""How many attempts may be second ones. Pure; time is a parameter.

When pools refuse, every request placed again makes the load that they refuse larger. So what is placed again, or goes
on elsewhere after a cut, is at most a fifth of what is under way (Envoy's retry budget), though always three may. What
ended at once counts for a second all the same: else refusals, which are quick, would never add up.
"""

from __future__ import annotations

from collections import deque

from orchestrator.policy.ids import AttemptId

SHARE_PERCENT = 20
LEAST = 3
COUNTS_FOR_US = 1_000_000
"""How long an attempt counts at least, from when it left."""


class RetryBudget:
    """Counts the attempts of one edge: first ones, and those that came after another of the same request."""

    def __init__(self) -> None:
        self._under_way: dict[AttemptId, tuple[bool, int]] = {}  # bounded: by the attempts in flight
        """With whether it is a second one, and until when it counts at least."""
        self._quick: tuple[deque[int], deque[int]] = (deque(), deque())  # bounded: by what leaves within a second
        """Until when attempts count that have ended: first ones, and second ones."""
        self._counts = [0, 0]
        """Under way: first ones, and second ones."""

    def may_retry(self, now_us: int) -> bool:
        """Whether one more second attempt may leave."""
        first, again = (self._count(kind, now_us) for kind in (False, True))
        return again < max(LEAST, first * SHARE_PERCENT // 100)

    def sent(self, attempt: AttemptId, again: bool, now_us: int) -> None:
        """An attempt leaves; `again` where it is not the first of its request."""
        self._under_way[attempt] = (again, now_us + COUNTS_FOR_US)
        self._counts[again] += 1

    def ended(self, attempt: AttemptId, now_us: int) -> None:
        """An attempt is over. Told twice, it counts once."""
        found = self._under_way.pop(attempt, None)
        if found is None:
            return
        again, until_us = found
        self._counts[again] -= 1
        if until_us > now_us:
            self._quick[again].append(until_us)
        self._count(again, now_us)

    def _count(self, again: bool, now_us: int) -> int:
        quick = self._quick[again]
        # In the order in which they ended, so one may stay for up to a second longer than it counts.
        while quick and quick[0] <= now_us:
            quick.popleft()
        return self._counts[again] + len(quick)
