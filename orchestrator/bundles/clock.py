"""The highest time seen: a clock that never goes back, not even over a restart.

An expired bundle or pathway must not come to life again because a machine lost its clock. Should a clock once have run
far ahead, the operator corrects it and deletes the file.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from orchestrator.bundles.store import write_whole

WRITE_INTERVAL_MS = 1_000
NS_PER_MS = 1_000_000


class HighestTime:
    """Unix milliseconds of the machine, never less than was ever answered. `save` makes that outlive the program."""

    def __init__(self, path: Path, wall_ns: Callable[[], int] = time.time_ns) -> None:
        self._path = path
        self._wall_ns = wall_ns
        self._highest_ms = self._saved_ms = _read(path)

    def now_ms(self) -> int:
        """Return the time by which to decide."""
        wall_ms = self._wall_ns() // NS_PER_MS
        if wall_ms > self._highest_ms:
            self._highest_ms = wall_ms
        return self._highest_ms

    def behind_ms(self) -> int:
        """How far the machine's clock lies behind the highest time seen; 0 when it does not."""
        return max(0, self._highest_ms - self._wall_ns() // NS_PER_MS)

    def due(self) -> bool:
        """Whether the highest time has moved on by a second since it was saved."""
        return self._highest_ms >= self._saved_ms + WRITE_INTERVAL_MS

    def save(self) -> None:
        """Write the highest time to the disk, when it has moved. Blocks; raises OSError."""
        highest_ms = self._highest_ms
        if highest_ms > self._saved_ms:
            write_whole(self._path, b"%d\n" % highest_ms)
            self._saved_ms = highest_ms


def _read(path: Path) -> int:
    try:
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return 0
    return int(text) if text.isdigit() and len(text) <= 16 else 0
