"""What of the house ends by itself is started again; what nobody wants any more is not."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from orchestrator.cli.processes import ProcessSpec, Supervisor
from orchestrator.cli.revival import Revival
from tests.processes.marks import Marked


@dataclass(slots=True)
class Revived:
    """A supervisor whose processes are revived."""

    supervisor: Supervisor
    revival: Revival
    said: list[str] = field(default_factory=list)
    cleared: list[str] = field(default_factory=list)

    async def until(self, name: str, other_than: int | None) -> int:
        """Wait for a process of a name, another than this one."""
        for _ in range(500):
            pid = self.supervisor.pid(name)
            if pid is not None and pid != other_than:
                return pid
            await asyncio.sleep(0.02)
        pytest.fail(f"no process {name} other than {other_than}")


@pytest.fixture
async def revived(tmp_path: Path, marked: Marked) -> AsyncIterator[Revived]:
    said: list[str] = []
    cleared: list[str] = []
    revival = Revival(said.append, cleared.append)
    async with Supervisor(tmp_path, on_exit=revival.ended) as supervisor:
        try:
            yield Revived(supervisor, revival, said, cleared)
        finally:
            await revival.end()


@pytest.fixture
def sleeper(marked: Marked) -> ProcessSpec:
    return ProcessSpec("sleeper", ("sleep", "60"), env=marked.environment)


async def test_what_was_killed_is_started_again_and_again(revived: Revived, sleeper: ProcessSpec) -> None:
    await revived.supervisor.start(sleeper)
    revived.revival.begin(revived.supervisor, [sleeper])
    pid: int | None = None
    for _ in range(3):
        pid = await revived.until("sleeper", pid)
        os.kill(pid, signal.SIGKILL)
    await revived.until("sleeper", pid)
    assert [line.rpartition("; ")[2] for line in revived.said] == [
        f"started again in {pause} s" for pause in ("0.1", "0.2", "0.4")
    ]
    assert revived.cleared == ["sleeper"] * 3


async def test_what_ends_at_once_is_started_less_and_less_often(revived: Revived, tmp_path: Path) -> None:
    starts = tmp_path / "starts"
    spec = ProcessSpec("brief", ("sh", "-c", f"echo >> {starts}; exit 3"))
    await revived.supervisor.start(spec)
    revived.revival.begin(revived.supervisor, [spec])
    await asyncio.sleep(2.0)
    # After 0.1, 0.3, 0.7 and 1.5 seconds, and what starting takes.
    assert 2 <= len(starts.read_text().splitlines()) <= 5
    assert "status 3" in revived.said[0]


async def test_nothing_is_started_again_before_all_stood_or_after_the_end(
    revived: Revived, sleeper: ProcessSpec
) -> None:
    await revived.supervisor.start(sleeper)
    os.kill(await revived.until("sleeper", None), signal.SIGKILL)
    await asyncio.sleep(0.5)
    assert not revived.supervisor.alive("sleeper")

    await revived.supervisor.start(sleeper)
    revived.revival.begin(revived.supervisor, [sleeper])
    await revived.supervisor.stop("sleeper")
    await asyncio.sleep(0.3)
    assert not revived.supervisor.alive("sleeper"), "it was told to stop"

    await revived.supervisor.start(sleeper)
    os.kill(await revived.until("sleeper", None), signal.SIGKILL)
    while revived.supervisor.alive("sleeper"):  # noqa: ASYNC110 - the supervisor collects it
        await asyncio.sleep(0.005)
    await revived.revival.end()
    await asyncio.sleep(0.3)
    assert not revived.supervisor.alive("sleeper")
