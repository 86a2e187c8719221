"""A warden leaves no orphan, however its parent or its command ends."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.processes.marks import ROOT, STUBBORN, Marked, holds_within

WARDEN = [sys.executable, "-m", "orchestrator.cli.warden"]


def start(marked: Marked, script: str, *options: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*WARDEN, *options, "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, **marked.environment},
    )


def finish(warden: subprocess.Popen[bytes], limit_s: float = 10) -> tuple[int, str]:
    """Waits for the end with the pipe held open; returns the exit status and what was said on standard error."""
    status = warden.wait(limit_s)
    assert warden.stderr is not None
    assert warden.stdin is not None
    said = warden.stderr.read().decode()
    warden.stderr.close()
    warden.stdin.close()
    return status, said


@pytest.mark.parametrize(("script", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -9 $$", 137), ("kill $$", 143)])
def test_the_commands_exit_status_is_passed_on(marked: Marked, script: str, status: int) -> None:
    assert finish(start(marked, script))[0] == status


def test_a_command_that_cannot_be_started_is_named(marked: Marked) -> None:
    warden = subprocess.Popen(
        [*WARDEN, "--", "no-such-command"], stdin=subprocess.PIPE, stderr=subprocess.PIPE, cwd=ROOT
    )
    status, said = finish(warden)
    assert status == 127
    assert "no-such-command" in said


def test_what_an_ended_command_left_behind_is_killed(marked: Marked, tmp_path: Path) -> None:
    warden = start(marked, STUBBORN.format(pidfile=tmp_path / "pid") + "exit 4")
    assert finish(warden)[0] == 4
    assert (tmp_path / "pid").read_text().strip()
    assert not marked.processes()


def test_a_parent_killed_with_sigkill_takes_everything_with_it(marked: Marked, tmp_path: Path) -> None:
    script = "trap '' TERM; " + STUBBORN.format(pidfile=tmp_path / "pid") + "while :; do sleep 1; done"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import subprocess, sys, time; w = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); time.sleep(60)",
            *WARDEN,
            *("--", "sh", "-c", script),
        ],
        cwd=ROOT,
        env={**os.environ, **marked.environment},
    )
    assert holds_within(10, (tmp_path / "pid").exists)
    assert len(marked.processes()) >= 4
    parent.kill()
    parent.wait(5)
    assert marked.gone_within(5)


def test_sigterm_reaches_the_command_which_ends_in_its_own_way(marked: Marked, tmp_path: Path) -> None:
    script = "trap 'exit 3' TERM; " + STUBBORN.format(pidfile=tmp_path / "pid") + "while :; do sleep 0.05; done"
    warden = start(marked, script)
    assert holds_within(10, (tmp_path / "pid").exists)
    warden.send_signal(signal.SIGTERM)
    assert finish(warden)[0] == 3
    assert not marked.processes()


def test_a_command_that_ignores_sigterm_is_killed_after_its_grace(marked: Marked, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    warden = start(marked, f"trap '' TERM; echo > {ready}; while :; do sleep 1; done", "--grace-ms", "300")
    assert holds_within(10, ready.exists)
    asked = time.monotonic()
    warden.send_signal(signal.SIGTERM)
    assert finish(warden)[0] == 137
    assert time.monotonic() - asked >= 0.3


def test_a_terminals_interrupt_of_the_parents_group_does_not_reach_the_command(marked: Marked, tmp_path: Path) -> None:
    ready, interrupted = tmp_path / "ready", tmp_path / "interrupted"
    script = f"trap 'echo > {interrupted}' INT; echo > {ready}; while :; do sleep 0.05; done"
    parent = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import signal, subprocess, sys, time\n"
            "signal.signal(signal.SIGINT, lambda *_: print('interrupt', flush=True))\n"
            "w = subprocess.Popen(sys.argv[1:], stdin=subprocess.PIPE); time.sleep(60)",
            *WARDEN,
            *("--", "sh", "-c", script),
        ],
        cwd=ROOT,
        env={**os.environ, **marked.environment},
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    assert parent.stdout is not None
    assert holds_within(10, ready.exists)
    before = {process.pid for process in marked.processes() if process.name() in ("sh", "dash", "bash")}
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout.readline() == b"interrupt\n"
    time.sleep(0.3)
    assert not interrupted.exists()
    assert before <= {process.pid for process in marked.processes()}
    parent.kill()
    parent.wait(5)
    parent.stdout.close()
    assert marked.gone_within(5)


def test_a_killed_warden_does_not_leave_its_command_running(marked: Marked, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    warden = start(marked, f"trap '' TERM; echo > {ready}; exec sleep 60")
    assert holds_within(10, ready.exists)
    assert holds_within(5, lambda: any(process.name() == "sleep" for process in marked.processes()))
    warden.kill()
    assert finish(warden)[0] == -signal.SIGKILL
    assert marked.gone_within(2)


def test_orphans_of_a_running_command_do_not_stay_as_zombies(marked: Marked, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    warden = start(marked, f"for i in 1 2 3; do sh -c 'sleep 0.1 &'; done; sleep 0.3; echo > {ready}; sleep 60")
    assert holds_within(10, ready.exists)
    assert [child.status() for child in psutil.Process(warden.pid).children()].count(psutil.STATUS_ZOMBIE) == 0
    warden.send_signal(signal.SIGTERM)
    assert finish(warden)[0] == 143
