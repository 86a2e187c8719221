"""Which records a spool did not take, in the log: of each reason one line a second. Time is a parameter.

Where nothing may leave without its record, a full spool refuses every request, and asking costs a tenant nothing: a
line for each would fill the disk that is short already. A record of what was used is told by itself while a program
runs, for it is lost; there are no more of them than of what was admitted before.
"""

from __future__ import annotations

import msgspec

from orchestrator.spool.records import FullReason, SpoolError, SpoolFull
from orchestrator.telemetry.logs import Log
from orchestrator.telemetry.names import Event

QUIET_US = 1_000_000
"""How long a reason that was told is not told again."""


class UntakenLine(msgspec.Struct, frozen=True):
    """One line of the log."""

    exception: str
    reason: str | None
    """Which bound of the spool was reached; None where it failed otherwise."""
    normal: bool
    """Whether it is meant to be so: what can be spared has half of a spool."""
    count: int
    """How many records were not taken, since the line before, the last of them included."""

    def say(self, log: Log, record_id: str) -> None:
        """Write it; `record_id` is the last of these records."""
        why = {} if self.reason is None else {"reason": self.reason}
        write = log.warning if self.normal else log.error
        write(Event.SPOOL_FAILED, record_id=record_id, exception=self.exception, count=self.count, **why)


class _Reason(msgspec.Struct):
    exception: str
    full: FullReason | None
    told_us: int | None = None
    count: int = 0
    """How many were not told since."""

    def told(self) -> UntakenLine:
        full, count, self.count = self.full, self.count, 0
        return UntakenLine(self.exception, None if full is None else full.value, full is FullReason.SPARE_ROOM, count)


class Untaken:
    """Counts the records that a spool did not take."""

    def __init__(self) -> None:
        self._reasons: dict[str, _Reason] = {}  # bounded: by the reasons and the classes of errors

    def add(self, error: SpoolError) -> None:
        """One more was not taken, and is told with the next line of its reason, or by `rest`."""
        self._counted(error)

    def line(self, error: SpoolError, now_us: int) -> UntakenLine | None:
        """One more was not taken. Return what to tell of it; None where its reason was told within `QUIET_US`."""
        found = self._counted(error)
        if found.told_us is not None and now_us - found.told_us < QUIET_US:
            return None
        found.told_us = now_us
        return found.told()

    def rest(self) -> list[UntakenLine]:
        """Return what was not told yet, of each reason."""
        return [one.told() for one in self._reasons.values() if one.count]

    def _counted(self, error: SpoolError) -> _Reason:
        full, exception = error.reason if isinstance(error, SpoolFull) else None, type(error).__name__
        key = exception if full is None else full.value
        found = self._reasons.get(key)
        if found is None:
            found = self._reasons[key] = _Reason(exception, full)
        found.count += 1
        return found
