"""Real processes, each test's own marked in their environment, so that not even an orphan goes unseen."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]
MARK = "TIDEGATE_TEST_MARK"

STUBBORN = (
    'setsid sh -c \'trap "" TERM INT HUP; echo $$ > "$0"; while :; do sleep 1; done\' {pidfile} & '
    "while [ ! -s {pidfile} ]; do sleep 0.02; done; "
)
"""Shell that starts a process with a session of its own which ignores every polite signal."""


class Marked:
    """The processes that carry this test's mark, wherever in the tree they are."""

    def __init__(self) -> None:
        self.value = uuid.uuid4().hex
        self.environment = {MARK: self.value}

    def processes(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self.value and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def gone_within(self, limit_s: float) -> bool:
        return holds_within(limit_s, lambda: not self.processes())


def holds_within(limit_s: float, condition: Callable[[], object]) -> bool:
    """Whether the condition becomes true in time."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True
