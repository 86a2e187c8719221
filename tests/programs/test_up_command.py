"""`tidegate up` as people run it: the five samples, and that nothing is left however it ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

UP = [sys.executable, "-c", "from orchestrator.cli.main import main; main()", "up"]
PORTS = ["--port-singapore", "0", "--port-frankfurt", "0"]
GONE_S = 20.0


def processes_of(house: Path) -> list[str]:
    """Every process whose command line names the house."""
    found = []
    for process in psutil.process_iter():
        try:
            command = " ".join(process.cmdline())
        except (psutil.NoSuchProcess, psutil.ZombieProcess):
            continue
        if str(house) in command and process.pid != os.getpid():
            found.append(command[:120])
    return found


def wait_gone(house: Path) -> list[str]:
    end_at = time.monotonic() + GONE_S
    while time.monotonic() < end_at and processes_of(house):
        time.sleep(0.2)
    return processes_of(house)


def test_once_runs_the_five_samples_as_they_must_and_leaves_nothing(tmp_path: Path) -> None:
    house = tmp_path / "house"
    ended = subprocess.run(
        [*UP, "--once", "--data", str(house), "--rtt-ms", "guizhou=120,shanghai=90", *PORTS],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    said = ended.stdout
    for expected in (
        "ran in pool cn-guizhou (CN)",
        "ran in pool eu-frankfurt (DE)",
        "HTTP 503",
        "Retry-After:",
        "HTTP 451 residency_blocked",
        "EU-46",
        "ran in pool cn-shanghai (CN)",
        "all five went as they must",
    ):
        assert expected in said
    assert wait_gone(house) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_when_it_is_stopped_or_killed(tmp_path: Path, number: signal.Signals) -> None:
    house = tmp_path / "house"
    log = tmp_path / "out"
    with log.open("w") as out:
        up = subprocess.Popen([*UP, "--data", str(house), *PORTS], stdout=out, stderr=subprocess.STDOUT)
    try:
        end_at = time.monotonic() + 90
        while "waiting for both bundles" not in log.read_text():
            assert up.poll() is None, log.read_text()
            assert time.monotonic() < end_at, log.read_text()
            time.sleep(0.2)
        assert len(processes_of(house)) > 10, "the positive control: it did start"
        up.send_signal(number)
        status = up.wait(timeout=30)
    finally:
        up.kill()
        up.wait()
    assert wait_gone(house) == []
    assert status == (0 if number is signal.SIGINT else -signal.SIGKILL)
