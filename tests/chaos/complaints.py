"""What programs say, or do, that no fault explains: a failed task, a traceback, an end that nobody asked for."""

from __future__ import annotations

import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.declared import EDGES, SITES
from tests.chaos.stand import Stand, program_of

PROGRAMS = ("control", *EDGES, *map(program_of, SITES))
TOLD_MAX = 6
LINE_CHARS = 200
_CRASH = re.compile(r"Traceback|Error\b|Exception|Fatal|panicked|Segmentation|never (retrieved|awaited)|^[EF]\d{4} ")
_KILLED = 128 + signal.SIGKILL

_CHATTER = re.compile(r"[IW]\d{4} ")
"""What gRPC says below an error: what a peer that was killed left behind, for one."""


class Complaints:
    """Reads what is new in the logs since the last look."""

    def __init__(self, stand: Stand) -> None:
        self._stand = stand
        self._read: dict[Path, int] = {}
        self._exits = 0
        self.new()

    def new(self) -> list[str]:
        """Return a sentence for each thing that must not be."""
        found = [
            f"{program}: {said}"
            for program in PROGRAMS
            for line in self._lines(self._stand.supervisor.log_path(program))
            if (said := complaint(line)) is not None
        ]
        exits = self._stand.exits[self._exits :]
        self._exits += len(exits)
        # SIGKILL comes from a fault; one that stops when it is told to is not among them.
        found += [f"{one.name} ended by itself: {one.status}" for one in exits if one.status != _KILLED]
        return found[:TOLD_MAX]

    def _lines(self, log: Path) -> Iterator[str]:
        if not log.exists():
            return
        with log.open("rb") as file:
            file.seek(self._read.get(log, 0))
            for line in file:
                if not line.endswith(b"\n"):
                    return  # not whole yet
                self._read[log] = self._read.get(log, 0) + len(line)
                yield line.decode("utf-8", "replace").rstrip()


def complaint(line: str) -> str | None:
    """Return what is wrong with a log line, None where nothing is. Pure."""
    if _CHATTER.match(line):
        return None
    if not line.startswith("{"):
        # Programs print their configuration as they start; whatever else is no event comes from below them.
        return line[:LINE_CHARS] if _CRASH.search(line) else None
    try:
        told = json.loads(line)
    except ValueError:
        return line[:LINE_CHARS]
    if told.get("event") == "task_failed" or (told.get("event") == "library_log" and told.get("level") != "warning"):
        parts = (told["time"][11:23], told["event"], told.get("logger"), told.get("exception"), told.get("where"))
        return " ".join(part for part in parts if part)
    return None
