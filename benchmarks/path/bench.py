"""One run of the benchmark: start every system, check it, load it round by round, and say what it came to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

from benchmarks.path.aims import aims
from benchmarks.path.ask import WrongAnswer
from benchmarks.path.disk import WRITE_BYTES, fdatasync_us
from benchmarks.path.rivals import RIVALS, started
from benchmarks.path.rounds import LOADS, MANY, STREAM, right_bytes, rounds
from benchmarks.path.rows import Row, every_row, over_a_border
from benchmarks.path.staged import stage_table, staged, whole_us
from benchmarks.path.summary import by_process, figures
from benchmarks.path.systems import (
    DIRECT,
    GENERAL,
    SCALE,
    NotMeasured,
    System,
    cpu_us,
    engine_pid,
    of_stand,
    resident_bytes,
)
from benchmarks.path.tables import aims_table, cpu_table, main_table, rows_table, shown
from benchmarks.stand import INSTANT, Scale, Stand
from orchestrator.cli.processes import Supervisor

Result = dict[str, object]
PARTS = ("core", "stages", "long", "streams", "slow", "border")
ROW_SYSTEMS = (DIRECT, "vllm-router", "sglang-router", GENERAL)
"""What carries long prompts and a thousand streams. LiteLLM answers too few requests a second for it."""
CHECKS = 30
CHECK_AGAIN_S = 1.0
IDLE_S = 2.0
STOP_MS = 20_000


@dataclass(frozen=True, slots=True)
class Options:
    """What was asked for."""

    systems: tuple[str, ...]
    seconds: int
    rounds: int
    parts: tuple[str, ...]
    environments: Path
    folder: Path
    scale: Scale = SCALE


def say(line: str) -> None:
    """Print a line at once, with the time."""
    print(time.strftime("%H:%M:%S"), line, flush=True)


async def measured(options: Options) -> Result:
    """Measure everything that was asked for. Raises StandError, ProcessFailure and OSError."""
    result: Result = {
        "seconds": options.seconds,
        "rounds": options.rounds,
        "edge": dict(options.scale.edge),
        "site": dict(options.scale.site),
        "fdatasync": (synced := fdatasync_us(options.folder)),
    }
    say(f"fdatasync of {WRITE_BYTES} bytes: p50 {synced['p50_us']:,.0f} us, p99 {synced['p99_us']:,.0f} us")
    extra: list[Row] = []
    wholes: dict[str, dict[str, float]] = {}
    async with AsyncExitStack() as stack:
        stand = Stand(options.folder / "stand", None, options.scale)
        stack.push_async_callback(stand.stop)
        say("starting Tidegate (etcd, control, scheduler, edge) and the engine")
        await stand.start()
        supervisor = Supervisor(options.folder / "rivals")
        stack.push_async_callback(supervisor.stop_all, STOP_MS)
        systems, lost = await _systems(options, stand, supervisor)
        titles = _titles(options, systems)
        result |= await _core(options, stand, systems, titles, lost)
        if "stages" in options.parts:
            say("requests by stage: first whole")
            wholes = await whole_us(stand, options.folder, options.seconds)
        carrying = [one for one in systems if one.name in ROW_SYSTEMS]
        extra += await every_row(options.parts, stand, carrying, say)
    if "stages" in options.parts:
        say("the same with a clock round the stages")
        found = await staged(options.folder, wholes, options.seconds, options.scale)
        for one in found:
            shown(stage_table(one))
        result["stages"] = [one.to_json() for one in found]
    if "border" in options.parts:
        say("a border of packets between edge and intake")
        extra += await over_a_border(options.folder, options.scale, say)
    if extra:
        shown(rows_table(extra, titles))
    result["rows"] = [one.to_json() for one in extra]
    shown(aims_table(aims(result)))
    return result


async def _core(
    options: Options, stand: Stand, systems: list[System], titles: Mapping[str, str], lost: dict[str, str]
) -> Result:
    """Load every system round by round."""
    idle = await _idle(systems)
    say("idle: " + ", ".join(f"{titles[name]} {ms:.0f} ms/s" for name, ms in idle.items() if ms))
    say(f"{len(systems)} systems, {options.rounds} rounds of {len(LOADS)} loads of {options.seconds} s each")
    count, seconds = options.rounds, options.seconds
    samples, given_up = await rounds(systems, engine_pid(stand), options.folder, count, seconds, say)
    memory = {one.name: sum(resident_bytes(pid) for pid in _own(one).values()) for one in systems}
    found = figures([one for one in samples if one.load not in given_up.get(one.system, ())])
    spent = {load.name: by_process(samples, load) for load in (MANY, STREAM)}
    shown(main_table(titles, found, memory, lost, given_up))
    shown(cpu_table(MANY.title, spent[MANY.name], titles))
    shown(cpu_table(STREAM.title, spent[STREAM.name], titles))
    return {
        "titles": dict(titles),
        "upstream": {one.name: one.upstream for one in systems},
        "not_measured": dict(lost),
        "given_up": given_up,
        "idle_cpu_ms_per_s": idle,
        "memory_bytes": memory,
        "figures": {name: {key: one.to_json() for key, one in own.items()} for name, own in found.items()},
        "cpu_us_by_process": spent,
        "samples": [one.to_json() for one in samples],
    }


async def _systems(options: Options, stand: Stand, supervisor: Supervisor) -> tuple[list[System], dict[str, str]]:
    """Start what was asked for and check it. Returns what answers rightly, and why the others do not."""
    systems: list[System] = []
    lost: dict[str, str] = {}
    ready = {one.name: one for one in of_stand(stand)}
    rivals = {one.name: one for one in RIVALS}
    worker = next(one for one in stand.engines if one.name == INSTANT).url
    for name in options.systems:
        try:
            system = ready.get(name)
            if system is None:
                say(f"starting {rivals[name].title}")
                system = await started(rivals[name], supervisor, options.folder, options.environments, worker)
            await _answers(system)
            systems.append(system)
        except NotMeasured as error:
            lost[name] = str(error)
            say(f"  not measured: {error}")
    return systems, lost


async def _answers(system: System) -> None:
    """Wait until a system answers every load rightly. Raises NotMeasured."""
    problem = ""
    for _ in range(CHECKS):
        try:
            for load in LOADS:
                await right_bytes(system, load)
        except (WrongAnswer, OSError) as error:
            problem = str(error)
            await asyncio.sleep(CHECK_AGAIN_S)
        else:
            return
    raise NotMeasured(f"it does not answer rightly: {problem}")


async def _idle(systems: list[System]) -> dict[str, float]:
    """Return the milliseconds of processor time that each spends in a second in which nobody asks it."""
    before = {one.name: sum(cpu_us(pid) for pid in one.processes.values()) for one in systems}
    await asyncio.sleep(IDLE_S)
    after = {one.name: sum(cpu_us(pid) for pid in one.processes.values()) for one in systems}
    return {name: (after[name] - before[name]) / 1000 / IDLE_S for name in before}


def _own(system: System) -> Mapping[str, int]:
    """Return the processes on the data path."""
    return {name: pid for name, pid in system.processes.items() if name not in ("control", "etcd")}


def _titles(options: Options, systems: list[System]) -> dict[str, str]:
    """Return the title of every system that was asked for."""
    known = {one.name: one.title for one in RIVALS} | {one.name: one.title for one in systems}
    return {name: known.get(name, name) for name in options.systems}
