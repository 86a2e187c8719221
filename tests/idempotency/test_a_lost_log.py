"""A real edge whose log has no room for a line."""

from __future__ import annotations

import asyncio
import re
import signal
import urllib.request
from pathlib import Path

from tests.idempotency.lone_edge import TIMEOUT_S, LoneEdge, lone_edge
from tests.idempotency.test_a_killed_edge import ask

FULL = Path("/dev/full")
"""Takes nothing, ever (Linux)."""


def lines_lost(edge: LoneEdge) -> int:
    with urllib.request.urlopen(f"http://127.0.0.1:{edge.port}/metrics", timeout=TIMEOUT_S) as page:
        found = re.search(r'_telemetry_faults_total{what="log_line"} (\d+)', page.read().decode())
    return int(found[1]) if found else 0


def test_an_edge_serves_without_room_for_its_log_and_counts_the_lines(tmp_path: Path) -> None:
    with lone_edge(tmp_path) as edge:
        edge.engine.may_answer.set()
        assert lines_lost(edge) == 0
        edge.stop(signal.SIGTERM)
        edge.start(errors=FULL)
        before = lines_lost(edge)
        _, answer = asyncio.run(ask(edge, "a key"))
        assert b"Yes" in answer
        assert lines_lost(edge) > before
