"""The supervisor knows how its processes fare, stops them in reverse order, and takes them along when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from orchestrator.cli import processes
from orchestrator.cli.processes import (
    ProcessEnded,
    ProcessExit,
    ProcessNotReady,
    ProcessSpec,
    Supervisor,
    SupervisorError,
    file_filled,
    port_accepts,
)
from tests.processes.marks import ROOT, STUBBORN, Marked, holds_within

Spec = Callable[..., ProcessSpec]


@pytest.fixture
async def exits() -> list[ProcessExit]:
    return []


@pytest.fixture
async def supervisor(tmp_path: Path, exits: list[ProcessExit], marked: Marked) -> AsyncIterator[Supervisor]:
    async with Supervisor(tmp_path, on_exit=exits.append) as running:
        yield running


@pytest.fixture
def shell(marked: Marked) -> Spec:
    """Makes the specification of a marked shell script."""

    def make(name: str, script: str, **more: object) -> ProcessSpec:
        return ProcessSpec(name=name, argv=("sh", "-c", script), env=marked.environment, **more)  # type: ignore[arg-type]

    return make


async def ready_file(path: Path) -> bool:
    return await asyncio.to_thread(holds_within, 10, lambda: path.exists() and path.stat().st_size > 0)


async def test_a_process_is_ready_when_its_probe_says_so(supervisor: Supervisor, shell: Spec, tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    await supervisor.start(shell("slow", f"sleep 0.3; echo yes > {ready}; sleep 60", ready=file_filled(ready)))
    assert not ready.exists()
    await supervisor.wait_ready("slow", 10_000)
    assert ready.exists()
    assert supervisor.alive("slow")


async def test_a_listening_process_is_ready_when_its_port_accepts(supervisor: Supervisor, marked: Marked) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listen = f"import socket, time; s = socket.create_server(('127.0.0.1', {port})); time.sleep(60)"
    await supervisor.start(ProcessSpec("listener", (sys.executable, "-c", listen), marked.environment))
    await supervisor.wait_ready("listener", 10_000, port_accepts("127.0.0.1", port))


async def test_a_process_that_ends_before_it_is_ready_is_reported_with_its_last_lines(
    supervisor: Supervisor, shell: Spec, tmp_path: Path
) -> None:
    await supervisor.start(shell("broken", "echo first; echo no such table >&2; exit 5"))
    with pytest.raises(ProcessEnded) as caught:
        await supervisor.wait_ready("broken", 10_000, file_filled(tmp_path / "never"))
    assert caught.value.status == 5
    assert caught.value.last_lines == ("first", "no such table")
    assert str(tmp_path / "logs" / "broken.log") in str(caught.value)
    assert "no such table" in str(caught.value)


async def test_a_command_that_does_not_exist_is_reported_as_ended(supervisor: Supervisor, marked: Marked) -> None:
    await supervisor.start(ProcessSpec("typo", ("no-such-command",), marked.environment))
    with pytest.raises(ProcessEnded, match="no-such-command"):
        await supervisor.wait_ready("typo", 10_000, file_filled(Path("/nonexistent")))


async def test_a_process_that_is_not_ready_in_time_is_reported_and_still_runs(
    supervisor: Supervisor, shell: Spec, tmp_path: Path
) -> None:
    await supervisor.start(shell("slow", "echo still loading; exec sleep 60"))
    await asyncio.sleep(0.3)
    with pytest.raises(ProcessNotReady, match="still loading") as caught:
        await supervisor.wait_ready("slow", 200, file_filled(tmp_path / "never"))
    assert caught.value.deadline_ms == 200
    assert supervisor.alive("slow")


async def test_a_stop_gives_time_to_end_and_tells_the_status(
    supervisor: Supervisor, shell: Spec, exits: list[ProcessExit], tmp_path: Path, marked: Marked
) -> None:
    ready = tmp_path / "ready"
    script = f"trap 'echo ending; exit 9' TERM; echo yes > {ready}; while :; do sleep 0.05; done"
    await supervisor.start(shell("polite", script))
    assert await ready_file(ready)
    assert await supervisor.stop("polite") == 9
    assert not supervisor.alive("polite")
    assert supervisor.log_path("polite").read_text() == "ending\n"
    assert exits == []
    assert not marked.processes()


async def test_all_are_stopped_in_reverse_order(supervisor: Supervisor, shell: Spec, tmp_path: Path) -> None:
    order = tmp_path / "order"
    for name in ("first", "second", "third"):
        ready = tmp_path / name
        script = (
            f"trap 'sleep 0.2; echo {name} >> {order}; exit 0' TERM; echo y > {ready}; while :; do sleep 0.02; done"
        )
        await supervisor.start(shell(name, script))
        assert await ready_file(ready)
    await supervisor.stop_all(10_000)
    assert order.read_text().split() == ["third", "second", "first"]


async def test_what_does_not_stop_in_time_is_killed_with_all_below(
    supervisor: Supervisor, shell: Spec, tmp_path: Path, marked: Marked
) -> None:
    for name in ("one", "two"):
        pidfile = tmp_path / name
        await supervisor.start(
            shell(name, "trap '' TERM; " + STUBBORN.format(pidfile=pidfile) + "while :; do sleep 1; done")
        )
        assert await ready_file(pidfile)
    started = asyncio.get_running_loop().time()
    await supervisor.stop_all(500)
    assert asyncio.get_running_loop().time() - started < 5
    assert not marked.processes()


async def test_a_kill_is_seen_as_an_unexpected_exit_and_the_name_can_be_started_again(
    supervisor: Supervisor, shell: Spec, exits: list[ProcessExit], tmp_path: Path, marked: Marked
) -> None:
    pidfile = tmp_path / "pid"
    spec = shell("victim", "echo alive; " + STUBBORN.format(pidfile=pidfile) + "sleep 60")
    await supervisor.start(spec)
    assert await ready_file(pidfile)
    program = supervisor.pid("victim")
    assert program in {process.pid for process in marked.processes()}
    supervisor.kill("victim")
    assert await asyncio.to_thread(marked.gone_within, 5)
    await asyncio.sleep(0.05)
    assert [(ended.name, ended.status, ended.last_lines) for ended in exits] == [("victim", 137, ("alive",))]
    assert supervisor.pid("victim") is None

    pidfile.unlink()
    await supervisor.start(spec)
    assert await ready_file(pidfile)
    assert supervisor.alive("victim")
    assert supervisor.pid("victim") != program


async def test_names_are_checked(supervisor: Supervisor, shell: Spec) -> None:
    await supervisor.start(shell("taken", "exec sleep 60"))
    for spec in (shell("taken", "exit 0"), shell("../escape", "exit 0"), shell("", "exit 0"), ProcessSpec("empty", ())):
        with pytest.raises(SupervisorError):
            await supervisor.start(spec)
    for ask in (supervisor.alive, supervisor.kill, supervisor.pid):
        with pytest.raises(SupervisorError):
            ask("unknown")


async def test_a_child_gets_the_allowed_variables_and_its_own_and_nothing_else(
    supervisor: Supervisor, marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-4711")
    monkeypatch.setenv("LANG", "C.UTF-8")
    await supervisor.start(ProcessSpec("env", ("env",), {**marked.environment, "SITE": "guizhou"}))
    with pytest.raises(ProcessEnded):
        await supervisor.wait_ready("env", 10_000, file_filled(Path("/nonexistent")))
    text = supervisor.log_path("env").read_text()
    names = {line.partition("=")[0] for line in text.splitlines()}
    assert names - {"PWD", "_", "SHLVL", "LC_CTYPE"} <= {*processes.INHERITED_VARIABLES, *marked.environment, "SITE"}
    assert "SITE=guizhou" in text
    assert "LANG=C.UTF-8" in text
    assert "canary-4711" not in text


async def test_a_log_is_cut_when_it_outgrows_its_bound(
    tmp_path: Path, shell: Spec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "LOG_CHECK_PERIOD_S", 0.05)
    line = "x" * 99
    async with Supervisor(tmp_path, log_bytes=20_000) as supervisor:
        await supervisor.start(shell("chatty", f"while :; do echo {line}; sleep 0.001; done"))
        log = supervisor.log_path("chatty")
        older = log.with_name("chatty.log.1")
        assert await ready_file(older)
        await asyncio.sleep(0.3)
        assert log.stat().st_size < 200_000
        assert older.stat().st_size < 200_000
        assert set(log.read_text().split("\n")[1:-1]) <= {line}


async def test_a_ready_line_is_found_once_it_is_whole_and_only_since_the_start(
    supervisor: Supervisor, shell: Spec, tmp_path: Path
) -> None:
    half, go = tmp_path / "half", tmp_path / "go"
    script = f"printf 'ready 127.0.0.1:4'; echo y > {half}; while [ ! -e {go} ]; do sleep 0.02; done; echo 711"
    await supervisor.start(shell("port", script))
    assert await ready_file(half)
    assert supervisor.said("port", "ready ") is None
    go.touch()
    with pytest.raises(ProcessEnded):
        await supervisor.wait_ready("port", 10_000, file_filled(tmp_path / "never"))
    assert supervisor.said("port", "ready ") == "ready 127.0.0.1:4711"
    await supervisor.start(shell("port", "exec sleep 60"))
    assert supervisor.said("port", "ready ") is None


async def test_a_hung_warden_does_not_save_its_process(
    supervisor: Supervisor, shell: Spec, tmp_path: Path, marked: Marked, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "WARDEN_MARGIN_S", 0.2)
    pidfile = tmp_path / "pid"
    await supervisor.start(shell("stuck", STUBBORN.format(pidfile=pidfile) + "sleep 60", grace_ms=100))
    assert await ready_file(pidfile)
    program = supervisor.pid("stuck")
    assert program is not None
    warden = psutil.Process(program).parent()
    assert warden is not None
    warden.send_signal(signal.SIGSTOP)
    assert await supervisor.stop("stuck") == 137
    assert not marked.processes()


HOLDER = """
import asyncio, sys, uvloop
from pathlib import Path
from orchestrator.cli.processes import ProcessSpec, Supervisor

async def main():
    supervisor = Supervisor(Path(sys.argv[1]))
    for number, script in enumerate(sys.argv[4:]):
        await supervisor.start(ProcessSpec(f"p{number}", ("sh", "-c", script), {"TIDEGATE_TEST_MARK": sys.argv[2]}))
    await asyncio.sleep(60)

(uvloop if sys.argv[3] == "uvloop" else asyncio).run(main())
"""


@pytest.mark.parametrize(
    ("end", "loop"), [(signal.SIGKILL, "uvloop"), (signal.SIGKILL, "asyncio"), (signal.SIGTERM, "uvloop")]
)
def test_nothing_outlives_a_supervisor_however_it_dies(
    marked: Marked, tmp_path: Path, end: signal.Signals, loop: str
) -> None:
    pidfiles = [tmp_path / "a", tmp_path / "b"]
    scripts = ["trap '' TERM; " + STUBBORN.format(pidfile=pidfile) + "sleep 60" for pidfile in pidfiles]
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path), marked.value, loop, *scripts],
        cwd=ROOT,
        env={**os.environ, **marked.environment},
        stderr=subprocess.DEVNULL,
    )
    assert holds_within(15, lambda: all(pidfile.exists() for pidfile in pidfiles))
    assert len(marked.processes()) >= 7
    holder.send_signal(end)
    holder.wait(5)
    assert marked.gone_within(5)
