"""Which records the spool did not take, in the log: of each reason one line a second. Pure; time is a parameter.

Where nothing may leave without its record, a full spool refuses every request, and asking costs a tenant nothing: a
line for each would fill the disk that is short already. A record of what was used is told by itself, for it is lost.
"""

from __future__ import annotations

import msgspec

from orchestrator.spool.records import FullReason, SpoolError, SpoolFull

QUIET_US = 1_000_000
"""How long a reason that was told is not told again."""


class UntakenLine(msgspec.Struct, frozen=True):
    """One line of the log."""

    reason: str | None
    """Which bound of the spool was reached; None where it failed otherwise."""
    normal: bool
    """Whether it is meant to be so: what can be spared has half of a spool."""
    count: int
    """How many records were not taken, since the line before, that one included."""


class _Reason(msgspec.Struct):
    told_us: int
    count: int = 0
    """How many were not told since."""


class Untaken:
    """Counts the records that an edge's spool did not take."""

    def __init__(self) -> None:
        self._reasons: dict[str, _Reason] = {}  # bounded: by the reasons and the classes of errors

    def line(self, error: SpoolError, now_us: int) -> UntakenLine | None:
        """One more was not taken. Return what to tell of it; None where its reason was told within `QUIET_US`."""
        full = error.reason if isinstance(error, SpoolFull) else None
        key = type(error).__name__ if full is None else full.value
        found = self._reasons.get(key)
        if found is None:
            found = self._reasons[key] = _Reason(now_us - QUIET_US)
        found.count += 1
        if now_us - found.told_us < QUIET_US:
            return None
        told = UntakenLine(None if full is None else full.value, full is FullReason.SPARE_ROOM, found.count)
        found.told_us, found.count = now_us, 0
        return told
