"""When a process that died is started again. Pure: times are parameters."""

from __future__ import annotations

FIRST_PAUSE_S = 0.1
PAUSE_S_MAX = 10.0
SETTLED_S = 60.0
"""A process that lived for so long is taken for sound: whatever ended it is counted anew."""


class Restarts:
    """The pauses before one process is started again: at once almost, and then twice as long each time, to a bound."""

    def __init__(self) -> None:
        self._next_s = FIRST_PAUSE_S

    def pause_s(self, lived_s: float) -> float:
        """Return how long to wait, now that the process ended after it had lived for `lived_s`."""
        if lived_s >= SETTLED_S:
            self._next_s = FIRST_PAUSE_S
        pause_s, self._next_s = self._next_s, min(PAUSE_S_MAX, self._next_s * 2)
        return pause_s
