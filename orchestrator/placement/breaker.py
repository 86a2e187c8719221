"""The breaker of one pool at one edge: attempts that fail in a row hold it off, and one trial lets it back."""

from __future__ import annotations

FAILURES_MAX = 3
HOLD_MIN_US = 1_000_000
HOLD_MAX_US = 30_000_000


class Breaker:
    """Closed, open for a while, then one trial. Streams that break together count as one failure."""

    __slots__ = ("_failed_us", "_hold_us", "_trial", "_until_us", "failures")

    def __init__(self) -> None:
        self.failures = 0
        """In a row. While there are none nothing is held off, and nothing but a failure need be told."""
        self._failed_us = -1
        self._hold_us = HOLD_MIN_US
        self._until_us = -1
        self._trial: object | None = None

    def held_off(self, now_us: int) -> bool:
        """Whether nothing new should be sent now."""
        if self.failures < FAILURES_MAX:
            return False
        return now_us < self._until_us or self._trial is not None

    def sent(self, attempt: object) -> None:
        """An attempt left; after a hold, it is the trial."""
        if self.failures >= FAILURES_MAX and self._trial is None:
            self._trial = attempt

    def succeeded(self, attempt: object) -> None:
        """An attempt brought a token, or was refused in good order."""
        if self.failures < FAILURES_MAX or attempt == self._trial:
            self.failures, self._hold_us, self._trial = 0, HOLD_MIN_US, None

    def failed(self, attempt: object, sent_us: int, now_us: int) -> None:
        """An attempt, sent at `sent_us`, was cut or could not be delivered."""
        trial = attempt == self._trial
        if trial:
            self._trial = None
            self._hold_us = min(self._hold_us * 2, HOLD_MAX_US)
        elif sent_us <= self._failed_us:
            return  # it ran beside one that has been counted
        self._failed_us = now_us
        self.failures += 1
        if self.failures >= FAILURES_MAX:
            self._until_us = now_us + self._hold_us

    def abandoned(self, attempt: object) -> None:
        """An attempt ended without telling anything of the pool."""
        if attempt == self._trial:
            self._trial = None
