"""Writes what arrived, without a payload, as a trace that `tidegate replay` reads. Off unless a file is configured."""

from __future__ import annotations

import os
from pathlib import Path

from orchestrator.files.traces import trace_head
from orchestrator.placement.prefix import BLOCK_CHARS
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event

log = logger("node_agent.uplink")


class Recorder:
    """One file that grows to a bound, then becomes `<name>.1` in place of the one before: two files at most."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self._path = path
        self._bytes_max = bytes_max
        self._size_bytes = 0
        self._failed = False

    def write(self, line: bytes) -> None:
        """Append one line. A disk that does not take it stops the recording, never a request."""
        if self._failed:
            return
        try:
            if self._size_bytes == 0:
                self._size_bytes = self._path.stat().st_size if self._path.exists() else 0
            if self._size_bytes + len(line) > self._bytes_max:
                self._path.replace(self._path.with_name(self._path.name + ".1"))
                self._size_bytes = 0
            with open(self._path, "ab", opener=_private) as file:
                if self._size_bytes == 0:
                    head = trace_head(BLOCK_CHARS)
                    file.write(head)
                    self._size_bytes += len(head)
                file.write(line)
            self._size_bytes += len(line)
        except OSError as error:
            self._failed = True
            log.error(Event.SPOOL_FAILED, record_id="trace", exception=type(error).__name__)


def _private(path: str, flags: int) -> int:
    """It names tenants: a file that is new is its owner's alone."""
    return os.open(path, flags, 0o600)
