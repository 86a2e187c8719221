"""The line between the watch and a process ends where the process closes it, and with the process."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.idempotency.lone_edge import ROOT

TIMEOUT_S = 20
CLOSES = """
import asyncio
from orchestrator.watch.leases import Told
from orchestrator.watch.line import opened, own_end

async def main():
    line = await opened(own_end(), Told)
    line.close()
    await asyncio.sleep(60)

asyncio.run(main())
"""
WATCHED = "import time; from orchestrator.watch.line import own_end; end = own_end(); time.sleep(60)"
CHILD = "import subprocess; from orchestrator.watch.line import own_end; end = own_end(); "
CHILD += "subprocess.Popen(['sleep', '60']); end.close(); import time; time.sleep(60)"


@pytest.mark.parametrize(("script", "killed"), [(CLOSES, False), (WATCHED, True), (CHILD, False)])
def test_the_watch_hears_the_end_of_a_line(script: str, killed: bool) -> None:
    own, theirs = socket.socketpair()
    with own, theirs:
        process = subprocess.Popen(
            [sys.executable, "-c", script], stdin=theirs, cwd=ROOT, start_new_session=True
        )
        try:
            theirs.close()
            own.settimeout(TIMEOUT_S)
            if killed:
                process.kill()
            assert own.recv(1) == b""
            assert killed or process.poll() is None
        finally:
            subprocess.run(["pkill", "-KILL", "-s", str(process.pid)], check=False, timeout=TIMEOUT_S)
            process.wait(TIMEOUT_S)
