"""Reading a program's evidence from its spool on the same machine, while the program goes on writing. Read only."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orchestrator.spool.segments import list_segments, scan_file


def records(directory: Path, kind: str) -> Iterator[dict[str, Any]]:
    """Yield every whole record of one kind, oldest first. A record that is being written is left out."""
    if not directory.is_dir():
        return
    for segment in list_segments(directory):
        for frame in scan_file(segment).frames:
            if frame.kind == kind:
                yield json.loads(frame.data)


def find(directory: Path, kind: str, field: str, value: str) -> dict[str, Any] | None:
    """Return the newest record whose `field` is `value`, or None."""
    found = None
    for record in records(directory, kind):
        if record.get(field) == value:
            found = record
    return found
