"""The edge agent by itself: how much memory it holds, and how soon it serves when control is gone.

The start is timed from the moment in which the program's interpreter is loaded (`exec`) to the first 200 of `/readyz`,
with the bundle on the disk and nobody at the address of control. The floor is what the libraries cost that it cannot do
without: the same interpreter, importing three of them.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from benchmarks.figures import median, table
from benchmarks.stand import LOOPBACK, PROGRAM_ENV, ROOT, Stand, StandError
from orchestrator.cli.processes import ProcessSpec, Supervisor

READY_LIMIT_S = 15.0
POLL_S = 0.004
AT_REST_S = 3.0
"""From readiness to the look at the memory of an idle agent."""
AIM_START_S = 1.5
AIM_MEMORY_MB = 100.0
MB = 1_000_000

LAUNCHED = "launched "
IMPORTED = "imported "
_NOW = "time.monotonic_ns(), sep='', flush=True)"
_LAUNCH = f"import os, sys, time; print('{LAUNCHED}', {_NOW}; os.execv(sys.argv[1], sys.argv[1:])"
_FLOOR = f"import grpc, uvloop, msgspec, time; print('{IMPORTED}', {_NOW}"


def memory(process: psutil.Process) -> dict[str, float]:
    """Return the resident memory of a process in MB of 10^6 bytes: all of it, and without what it shares."""
    full = process.memory_full_info()
    return {"rss_mb": full.rss / MB, "uss_mb": full.uss / MB}


@dataclass(frozen=True, slots=True)
class Starts:
    """Starts of the edge and of the floor, paired, in seconds."""

    first_s: float
    """The first start, which also loads files from the disk. It counts in no median."""
    agent_s: tuple[float, ...]
    floor_s: tuple[float, ...]
    memory: dict[str, float]
    """Of the last of these edges, at rest."""

    @property
    def ratio(self) -> float:
        """The median of start / floor."""
        return median([agent / floor for agent, floor in zip(self.agent_s, self.floor_s, strict=True)])

    def to_json(self) -> dict[str, object]:
        """Return everything for machines."""
        return {
            "first_start_s": self.first_s,
            "start_s": list(self.agent_s),
            "start_median_s": median(self.agent_s),
            "floor_s": list(self.floor_s),
            "floor_median_s": median(self.floor_s),
            "ratio": self.ratio,
        }


async def start_times(stand: Stand, repeats: int) -> Starts:
    """Time starts of the edge and of the floor, in turns. The stand must be stopped. Raises StandError."""
    agents: list[float] = []
    floors: list[float] = []
    at_rest: dict[str, float] = {}
    # The first start of each also loads its files from the disk; it is shown apart.
    for number in range(repeats + 1):
        floors.append(await _floor(stand.supervisor, f"floor-{number}"))
        name = f"edge-start-{number}"
        agents.append(await _agent(stand, name))
        if number == repeats:
            await asyncio.sleep(AT_REST_S)
            at_rest = memory(stand.process(name))
        await stand.supervisor.stop(name)
    return Starts(agents[0], tuple(agents[1:]), tuple(floors[1:]), at_rest)


def rendered(starts: Starts, memories: Sequence[tuple[str, dict[str, float]]]) -> str:
    """Return memory and start times as a table. Pure."""
    rows = [(f"memory, {what}", f"{one['rss_mb']:.1f} MB", f"aim {AIM_MEMORY_MB:.0f} MB") for what, one in memories]
    start, floor = f"{median(starts.agent_s):.3f} s", f"{median(starts.floor_s):.3f} s"
    rows += [
        ("start without control, to the first 200 of /readyz", start, f"aim {AIM_START_S} s"),
        ("floor: import grpc, uvloop, msgspec", floor, ""),
        ("start / floor", f"{starts.ratio:.2f}", f"of {len(starts.agent_s)} pairs"),
    ]
    return table("the edge agent: resident memory, start (medians)", ("what", "measured", ""), rows)


async def _agent(stand: Stand, name: str) -> float:
    """Start an edge and return the seconds until it is ready."""
    launched_ns = await _launch(stand.supervisor, name, stand.edge_argv())
    end_at = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < end_at and stand.supervisor.alive(name):
        if await _ready(stand.edge_port):
            return (time.monotonic_ns() - launched_ns) / 1e9
        await asyncio.sleep(POLL_S)
    raise StandError(f"{name} was not ready within {READY_LIMIT_S:.0f} s; log: {stand.supervisor.log_path(name)}")


async def _floor(supervisor: Supervisor, name: str) -> float:
    """Run the floor and return the seconds until its last import is done."""
    launched_ns = await _launch(supervisor, name, (sys.executable, "-c", _FLOOR))
    return (await _said_ns(supervisor, name, IMPORTED) - launched_ns) / 1e9


async def _launch(supervisor: Supervisor, name: str, argv: Sequence[str]) -> int:
    """Start a process, and return the moment (monotonic, ns) in which its program was loaded."""
    launcher = (sys.executable, "-I", "-S", "-c", _LAUNCH)
    await supervisor.start(ProcessSpec(name, (*launcher, *argv), env=PROGRAM_ENV, cwd=ROOT))
    return await _said_ns(supervisor, name, LAUNCHED)


async def _said_ns(supervisor: Supervisor, name: str, word: str) -> int:
    end_at = time.monotonic() + READY_LIMIT_S
    while time.monotonic() < end_at:
        line = supervisor.said(name, word)
        if line is not None:
            return int(line.removeprefix(word))
        await asyncio.sleep(POLL_S)
    raise StandError(f"{name} did not come up within {READY_LIMIT_S:.0f} s; log: {supervisor.log_path(name)}")


async def _ready(port: int) -> bool:
    """Whether the edge answers /readyz with 200 now."""
    try:
        async with asyncio.timeout(1.0):
            reader, writer = await asyncio.open_connection(LOOPBACK, port)
            try:
                writer.write(f"GET /readyz HTTP/1.1\r\nhost: {LOOPBACK}\r\nconnection: close\r\n\r\n".encode("ascii"))
                return (await reader.readline()).startswith(b"HTTP/1.1 200")
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
