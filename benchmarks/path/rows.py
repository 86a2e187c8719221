"""Rows that wrk cannot fill: long prompts, a thousand streams, slow readers, a border with distance and loss."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.figures import percentile
from benchmarks.path.ask import WrongAnswer, body_of
from benchmarks.path.lossy import Plan
from benchmarks.path.staged import general
from benchmarks.path.streams import SLOW_READ_BYTES, SlowReaders, Stream, figures, streamed
from benchmarks.path.systems import ENGINE, OFF_PATH, SCALE, System, cpu_us, engine_pid, resident_bytes
from benchmarks.stand import Stand, StandError
from orchestrator.cli.processes import ProcessFailure

Say = Callable[[str], None]

LONG_TOKENS = 100_000
LONG_BYTES = 400_000
LONG_ANSWER_TOKENS = 10
LONG_ASKS = 10
STREAMS = 1_000
STREAM_TOKENS = 100
STREAM_PACE_MS = 100
STREAM_RAMP_S = 4.0
"""They begin over this long, and each runs for ten seconds: for six of them all run at once."""
SLOW = 100
SLOW_TOKENS = 8_000
SLOW_SETTLE_S = 6.0
SAMPLE_S = 0.25
LIMIT_S = 60.0
RECOVERY_S = 30
BORDER_STREAMS = 32
BORDER_PACE_MS = 20
BORDER_LONG = 3
KBIT_PER_S = 50_000
BORDERS = tuple(Plan(200.0, loss_ppm, KBIT_PER_S) for loss_ppm in (0, 1_000, 10_000))


@dataclass(frozen=True, slots=True)
class Row:
    """One measurement of one system: figures, or why there are none."""

    what: str
    system: str
    figures: Mapping[str, float]
    missing: str = ""

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        return {"what": self.what, "system": self.system, "figures": dict(self.figures), "not_measured": self.missing}


async def long_prompts(systems: Sequence[System], engine: int) -> list[Row]:
    """Ask each system, one request at a time, with a prompt of 100,000 tokens, in turns."""
    prompt = ("tide " * (LONG_BYTES // 5))[:LONG_BYTES]
    what = f"prompt of {LONG_TOKENS:,} tokens, {LONG_BYTES // 1000} kB, one at a time"
    first: dict[str, list[float]] = {one.name: [] for one in systems}
    spent: dict[str, float] = {one.name: 0.0 for one in systems}
    lost: dict[str, str] = {}
    for _ in range(LONG_ASKS):
        for system in systems:
            if system.name in lost:
                continue
            ask = system.ask(body_of(system.model, stream=True, tokens=LONG_ANSWER_TOKENS, prompt=prompt))
            before = _path_cpu_us(system, engine)
            try:
                (answer,) = await streamed([ask], LONG_ANSWER_TOKENS, LIMIT_S)
            except (WrongAnswer, OSError) as error:
                lost[system.name] = str(error)
                continue
            spent[system.name] += _path_cpu_us(system, engine) - before
            first[system.name].append((answer.first_ns - answer.begun_ns) / 1e6)
    return [
        Row(what, name, {}, lost[name])
        if name in lost
        else Row(
            what,
            name,
            {
                "first_p50_ms": percentile(times, 50),
                "first_max_ms": max(times),
                "cpu_ms_per_request": spent[name] / 1000 / len(times),
            },
        )
        for name, times in first.items()
    ]


async def many_streams(systems: Sequence[System]) -> list[Row]:
    """Open a thousand streams at each system, each of a token every 100 ms, read at speed."""
    what = f"{STREAMS:,} streams at once, {1000 // STREAM_PACE_MS} tokens/s each, begun over {STREAM_RAMP_S:.0f} s"
    rows = []
    for system in systems:
        await recovered(system)
        body = body_of(system.model, stream=True, tokens=STREAM_TOKENS, pace_ms=STREAM_PACE_MS)
        before = memory_bytes(system)
        try:
            work = streamed([system.ask(body)] * STREAMS, STREAM_TOKENS, LIMIT_S, STREAM_RAMP_S)
            streams, peak = await _with_peak(system, work)
        except (WrongAnswer, OSError) as error:
            rows.append(Row(what, system.name, {}, str(error)))
            continue
        found = figures(streams)
        found["tokens_per_s"] = STREAMS * STREAM_TOKENS * 1000 / found["took_ms"]
        rows.append(Row(what, system.name, {**found, **_memory(before, peak)}))
    return rows


async def slow_readers(systems: Sequence[System]) -> list[Row]:
    """Hold streams whose readers read nothing, or a token a second, and see what each costs in memory."""
    rows = []
    for title, bytes_per_s in (("read nothing", 0), ("read a token a second", SLOW_READ_BYTES)):
        what = f"{SLOW} streams of {SLOW_TOKENS:,} tokens whose readers {title}"
        for system in systems:
            await recovered(system)
            body = body_of(system.model, stream=True, tokens=SLOW_TOKENS)
            before = memory_bytes(system)
            async with SlowReaders([system.ask(body)] * SLOW, bytes_per_s) as readers:
                await asyncio.sleep(SLOW_SETTLE_S)
                after, begun = memory_bytes(system), readers.begun()
            if begun < SLOW:
                rows.append(Row(what, system.name, {}, f"only {begun} of {SLOW} answers began"))
                continue
            grown = {name: max(0, after[name] - size) / 1024 / SLOW for name, size in before.items()}
            rows.append(Row(what, system.name, {f"{name}_kib_per_stream": kib for name, kib in grown.items()}))
    return rows


async def over_a_border(folder: Path, say: Say) -> list[Row]:
    """Put 200 ms, a bounded rate and loss between edge and intake, and ask across it."""
    plan = folder / "border.json"
    BORDERS[0].write(plan)
    through = ("-m", "benchmarks.path.lossy", "--plan", str(plan))
    stand = Stand(folder / "border", None, replace(SCALE, border=through))
    what = "a border of 200 ms"
    try:
        await stand.start()
        return [row for border in BORDERS for row in await _across(stand, border, plan, say)]
    except (StandError, ProcessFailure, OSError) as failure:
        return [Row(what, "tidegate", {}, f"no border of packets here (Linux, root): {failure}")]
    finally:
        await stand.stop()


async def _across(stand: Stand, border: Plan, plan: Path, say: Say) -> list[Row]:
    border.write(plan)
    os.kill(stand.process("border").pid, signal.SIGHUP)
    await asyncio.sleep(0.5)
    name = f"{border.rtt_ms:.0f} ms, {border.loss_ppm / 10_000:g} % loss, {border.kbit_per_s // 1000} Mbit/s"
    say(f"  border: {name}")
    system = general(stand)
    body = body_of(system.model, stream=True, tokens=100, pace_ms=BORDER_PACE_MS)
    what = f"{BORDER_STREAMS} streams of {1000 // BORDER_PACE_MS} tokens/s over {name}"
    rows = []
    try:
        found = await streamed([system.ask(body)] * BORDER_STREAMS, 100, LIMIT_S)
        rows.append(Row(what, system.name, figures(found)))
    except (WrongAnswer, OSError) as error:
        rows.append(Row(what, system.name, {}, str(error)))
    prompt = ("tide " * (LONG_BYTES // 5))[:LONG_BYTES]
    long = system.ask(body_of(system.model, stream=True, tokens=LONG_ANSWER_TOKENS, prompt=prompt))
    what = f"prompt of {LONG_BYTES // 1000} kB over {name}"
    try:
        times = [
            (one.first_ns - one.begun_ns) / 1e6
            for _ in range(BORDER_LONG)
            for one in await streamed([long], LONG_ANSWER_TOKENS, LIMIT_S)
        ]
        rows.append(Row(what, system.name, {"first_p50_ms": percentile(times, 50), "first_max_ms": max(times)}))
    except (WrongAnswer, OSError) as error:
        rows.append(Row(what, system.name, {}, str(error)))
    return rows


async def recovered(system: System) -> None:
    """Wait until a system answers again: what one row did to it is not the next one's."""
    ask = system.ask(body_of(system.model, stream=True, tokens=LONG_ANSWER_TOKENS))
    for _ in range(RECOVERY_S):
        await asyncio.sleep(1.0)
        try:
            await streamed([ask], LONG_ANSWER_TOKENS, LIMIT_S)
        except (WrongAnswer, OSError):
            continue
        return


async def every_row(
    parts: Sequence[str], stand: Stand, systems: Sequence[System], say: Say
) -> list[Row]:
    """Return the rows that need no border, of the systems that can carry them."""
    rows: list[Row] = []
    if "long" in parts:
        say("long prompts")
        rows += await long_prompts(systems, engine_pid(stand))
    if "slow" in parts:
        say("slow readers")
        rows += await slow_readers([one for one in systems if one.processes])
    if "streams" in parts:
        say(f"{STREAMS:,} streams")
        rows += await many_streams(systems)
    return rows


def memory_bytes(system: System) -> dict[str, int]:
    """Return the resident memory of each process on the path."""
    return {name: resident_bytes(pid) for name, pid in system.processes.items() if name not in OFF_PATH}


async def _with_peak(
    system: System, work: Coroutine[None, None, list[Stream]]
) -> tuple[list[Stream], dict[str, int]]:
    """Run some work, and return the most that each process held meanwhile."""
    peak = memory_bytes(system)

    async def watch() -> None:
        while True:
            await asyncio.sleep(SAMPLE_S)
            for name, size in memory_bytes(system).items():
                peak[name] = max(peak[name], size)

    watching = asyncio.create_task(watch())
    try:
        return await work, peak
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


def _memory(before: Mapping[str, int], peak: Mapping[str, int]) -> dict[str, float]:
    held = {f"{name}_peak_mb": size / 1e6 for name, size in peak.items()}
    return held | {f"{name}_grown_mb": (size - before[name]) / 1e6 for name, size in peak.items()}


def _path_cpu_us(system: System, engine: int) -> float:
    pids = system.processes or {ENGINE: engine}
    return sum(cpu_us(pid) for name, pid in pids.items() if system.processes == {} or name not in OFF_PATH)
