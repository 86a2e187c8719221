"""`make soak`: mixed load for minutes, and whether anything grows, leaks, or fails over without a reason.

    python -m tests.chaos.soak --minutes 20 [--json FILE]

No fault is made. Streams and whole answers, with and without a key, tenants who hang up and tenants who read slowly.
Every 5 s each program's memory, descriptors and threads are read. The last part runs beside processes that eat every
core: nothing may be taken for dead then. Exit 1 when something grew, was lost, or failed over.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from orchestrator.cli.processes import ProcessSpec
from orchestrator.cli.status import fetch_status
from tests.chaos.client import Mode
from tests.chaos.counters import idle_within
from tests.chaos.declared import EDGES, SITES
from tests.chaos.evidence import Auditor
from tests.chaos.load import Lane, Load
from tests.chaos.report import Result, percentile, summed, table
from tests.chaos.scenario import MIXED, SETTLE_S
from tests.chaos.slow import read_slowly
from tests.chaos.stand import Stand, program_of
from tests.chaos.trend import Growth, growth_of

SAMPLE_S = 5.0
WARM_SHARE = 0.25
"""The first part of the time, in which caches fill; it is measured and not judged."""
STARVED_SHARE = 0.25
PROGRAMS = ("control", *EDGES, *map(program_of, SITES))
LANES = (*MIXED, Lane(4, Mode.STREAM, tokens=200, cancel_after=(0, 1, 3, 8), tenant="noisy"))
SLOW_AT_ONCE = 10
SLOW_LANE = Lane(0, Mode.STREAM, tokens=400, tenant="noisy")
SLOW_S = 20.0
KIB_PER_REQUEST_MAX = 2.0
"""A spool keeps the id and place of each record in memory until it is shipped, and shipping is not built yet: that is
two records or three a request. What grows by more than this a request is a leak."""
DESCRIPTORS_MORE_MAX = 16
THREADS_MORE_MAX = 4
SUSPICIOUS = ("session_lost", "session_detached", "replica_lost", "replica_suspect", "pool_lost", "task_failed")
"""Log events of programs that took another for dead, or that failed."""
MOMENTS_TOLD = 6
_BUSY = "while True: pass"


@dataclass(frozen=True, slots=True)
class Sample:
    """One program at one moment."""

    program: str
    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int
    requests: int
    """Requests that the load had begun by then."""


@dataclass(slots=True)
class Soaked:
    """What a soak found."""

    phases: list[Result] = field(default_factory=list)
    growth: dict[str, Growth] = field(default_factory=dict)
    suspicions: dict[str, list[str]] = field(default_factory=dict)
    """When suspicious log events were told, by program and name, with the part of the soak."""
    streams_left: int = 0
    """Streams that sessions still hold when nothing is asked any more."""
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether nothing was found."""
        return not self.failures and all(phase.passed for phase in self.phases)

    def to_json(self) -> dict[str, Any]:
        """Return everything for machines."""
        return {"passed": self.passed, **asdict(self)}


class Soak:
    """One soak on one stand."""

    def __init__(self, stand: Stand, seconds: float) -> None:
        self._stand = stand
        self._seconds = seconds
        self._samples: list[Sample] = []
        self._asked_before = 0
        self._load: Load | None = None
        self._slow = 0
        self._begun: list[tuple[str, str]] = []
        """The parts of the soak, with the moment in which each began, as log lines write it."""

    async def run(self) -> Soaked:
        """Warm up, soak, starve, stop; and say what was found."""
        stand, soaked = self._stand, Soaked()
        auditor = Auditor(stand)
        warm_s, starved_s = self._seconds * WARM_SHARE, self._seconds * STARVED_SHARE
        sampler = asyncio.create_task(self._sample())
        try:
            soaked.phases.append(await self._phase("warm-up", warm_s, auditor))
            judged_from = len(self._samples)
            soaked.phases.append(await self._phase("mixed", self._seconds - warm_s - starved_s, auditor))
            judged = self._samples[judged_from:]
            busy = await self._starve()
            soaked.phases.append(await self._phase("starved", starved_s, auditor))
            for name in busy:
                await stand.supervisor.stop(name)
        finally:
            sampler.cancel()
            await asyncio.gather(sampler, return_exceptions=True)
        self._begins("end")
        if await idle_within(stand, 2.0) is None:
            soaked.failures.append("an engine still runs something after the load has ended")
        soaked.streams_left = await self._streams_left()
        soaked.suspicions = _suspicious(stand, self._begun)
        self._judge(judged, soaked)
        return soaked

    async def _phase(self, name: str, seconds: float, auditor: Auditor) -> Result:
        self._begins(name)
        load = self._load = Load(self._stand, name)
        load.start(LANES)
        try:
            await self._slow_readers(load, seconds)
            await load.stop()
        finally:
            await load.close()
        await asyncio.sleep(SETTLE_S)
        self._asked_before += len(load.asked)
        self._load = None
        # In a thread: the links go through this process, and must not stand still while it reads.
        findings = await asyncio.to_thread(auditor.look, load.asked)
        result = summed(name, load.asked, [], 0, findings, [], {})
        firsts = [told.first_ms for one in load.asked for told in one.tries if told.first_ms is not None]
        if firsts:
            result.figures["first token ms p99"] = round(percentile(firsts, 0.99))
        return result

    def _begins(self, name: str) -> None:
        self._begun.append((name, datetime.now(UTC).isoformat(timespec="milliseconds")))

    async def _slow_readers(self, load: Load, seconds: float) -> None:
        """Keep some slow readers there for as long as the phase lasts."""
        loop = asyncio.get_running_loop()
        end_at = loop.time() + seconds
        readers: set[asyncio.Task[None]] = set()
        try:
            while loop.time() < end_at:
                while len(readers) < SLOW_AT_ONCE:
                    self._slow += 1
                    reading = read_slowly(self._stand, load, SLOW_LANE, self._slow, SLOW_S)
                    readers.add(asyncio.create_task(reading))
                _, readers = await asyncio.wait(
                    readers, timeout=max(0.0, min(1.0, end_at - loop.time())), return_when=asyncio.FIRST_COMPLETED
                )
        finally:
            await asyncio.gather(*readers)

    async def _starve(self) -> list[str]:
        """Start two processes for each core that do nothing but work."""
        names = [f"busy-{number}" for number in range(2 * (psutil.cpu_count() or 1))]
        for name in names:
            await self._stand.supervisor.start(ProcessSpec(name, (sys.executable, "-c", _BUSY)))
        return names

    async def _sample(self) -> None:
        loop = asyncio.get_running_loop()
        begun_s = loop.time()
        processes = self._stand.processes(PROGRAMS)
        while True:
            asked = self._asked_before + (0 if self._load is None else len(self._load.asked))
            for name, process in processes.items():
                at_s = loop.time() - begun_s
                rss = process.memory_info().rss
                self._samples.append(Sample(name, at_s, rss, process.num_fds(), process.num_threads(), asked))
            await asyncio.sleep(SAMPLE_S)

    async def _streams_left(self) -> int:
        await asyncio.sleep(2 * SAMPLE_S)
        status = await fetch_status([self._stand.control_target()])
        members = () if status[0].reply is None else status[0].reply.members
        return sum(session.streams for member in members for session in member.report.sessions)

    def _judge(self, samples: Sequence[Sample], soaked: Soaked) -> None:
        for program in PROGRAMS:
            own = [sample for sample in samples if sample.program == program]
            growth = growth_of(
                [(sample.requests, sample.rss_bytes) for sample in own],
                [sample.descriptors for sample in own],
                [sample.threads for sample in own],
            )
            soaked.growth[program] = growth
            if growth.bytes_per_request > KIB_PER_REQUEST_MAX * 1024:
                soaked.failures.append(f"{program} grew by {growth.bytes_per_request:.0f} bytes a request")
            if growth.descriptors_more > DESCRIPTORS_MORE_MAX:
                soaked.failures.append(f"{program} held {growth.descriptors_more} more descriptors at the end")
            if growth.threads_more > THREADS_MORE_MAX:
                soaked.failures.append(f"{program} had {growth.threads_more} more threads at the end")
        if soaked.streams_left:
            soaked.failures.append(f"sessions hold {soaked.streams_left} streams when nothing is asked")
        for what, moments in soaked.suspicions.items():
            soaked.failures.append(f"{what}, without a fault: {', '.join(moments[:MOMENTS_TOLD])}")
        for phase in soaked.phases:
            for code, count in phase.cut.items():
                soaked.failures.append(f"{phase.name}: {count} answers were cut without a fault ({code})")


def _suspicious(stand: Stand, begun: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    """Return when programs told that they took another for dead, or that they failed. `begun` is when each part was."""
    found: dict[str, list[str]] = {}
    for program in PROGRAMS:
        for line in stand.supervisor.log_path(program).read_text("utf-8", "replace").splitlines():
            told = json.loads(line) if line.startswith("{") else {}
            if told.get("event") in SUSPICIOUS:
                part = [name for name, at in begun if at <= told["time"]][-1:]
                moments = found.setdefault(f"{program} {told['event']}", [])
                why = f": {told['exception']} in {told['where']}" if "where" in told else ""
                moments.append(f"{told['time'][11:23]} ({''.join(part) or 'start'}){why}")
    return found


def rendered(soaked: Soaked) -> str:
    """Return what was found as text. Pure."""
    lines = [table(soaked.phases), ""]
    lines.append(f"{'program':<20} {'MB before':>10} {'MB after':>10} {'bytes/request':>14} {'fds':>10} {'threads':>8}")
    for program, growth in soaked.growth.items():
        before, after = growth.rss_before_bytes / 1e6, growth.rss_after_bytes / 1e6
        lines.append(
            f"{program:<20} {before:>10.1f} {after:>10.1f} {growth.bytes_per_request:>14.0f}"
            f" {growth.descriptors_more:>+10d} {growth.threads_more:>+8d}"
        )
    lines += [f"soak: FAILED {failure}" for failure in soaked.failures]
    return "\n".join(lines)


async def soak(minutes: float, folder: Path) -> Soaked:
    """Bring up a stand and soak it."""
    stand = Stand(folder)
    try:
        await stand.start()
        return await Soak(stand, minutes * 60).run()
    finally:
        await stand.stop()


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.soak", description="Mixed load for minutes.")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--json", type=Path, help="write what was found to this file as well")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tidegate-soak-") as folder:
        soaked = asyncio.run(soak(told.minutes, Path(folder)))
    print(rendered(soaked))
    if told.json is not None:
        told.json.write_text(json.dumps(soaked.to_json(), indent=2), encoding="utf-8")
    print(f"soak: {told.minutes:g} minutes, {'passed' if soaked.passed else 'FAILED'}")
    return 0 if soaked.passed else 1


if __name__ == "__main__":
    sys.exit(main())
