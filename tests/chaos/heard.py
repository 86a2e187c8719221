"""What the edges' logs say of sessions."""

from __future__ import annotations

import json
from pathlib import Path

from tests.chaos.declared import EDGES
from tests.chaos.stand import Stand


def heard(stand: Stand, event: str) -> int:
    """Return how often the edges told of an event since the stand was started."""
    return sum(count_of(stand.supervisor.log_path(edge), event) for edge in EDGES)


def count_of(log: Path, event: str) -> int:
    """Return how many lines of a log tell of an event."""
    if not log.exists():
        return 0
    mark = json.dumps({"event": event}, separators=(",", ":"))[1:-1]
    with log.open(encoding="utf-8", errors="replace") as lines:
        return sum(1 for line in lines if mark in line)
