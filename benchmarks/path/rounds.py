"""Paired rounds: each round loads every system in turn, in an order that rotates, so what else the machine does falls
on all of them alike."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.path import wrk
from benchmarks.path.ask import TOKENS, Ask, WrongAnswer, body_of, checked
from benchmarks.path.systems import ENGINE, System, cpu_us

BYTES_OFF_MAX = 0.15
"""How far the mean size of the answers may lie from that of the checked one: a cut stream is smaller."""


@dataclass(frozen=True, slots=True)
class Load:
    """One load on one system."""

    name: str
    title: str
    connections: int
    tokens: int
    stream: bool


ONE = Load("one", "1 connection, a short answer", 1, 1, stream=False)
MANY = Load("many", "32 connections, a short answer", 32, 1, stream=False)
STREAM = Load("stream", "32 connections, 100 tokens streamed", 32, TOKENS, stream=True)
LOADS = (ONE, MANY, STREAM)


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of one load on one system."""

    system: str
    load: str
    round: int
    run: wrk.Run
    cpu_us: Mapping[str, float]
    """By process, while it ran."""

    def to_json(self) -> dict[str, object]:
        """Return it for machines."""
        head = {"system": self.system, "load": self.load, "round": self.round}
        return {**head, "run": wrk.to_json(self.run), "cpu_us": dict(self.cpu_us)}


async def right_bytes(system: System, load: Load) -> int:
    """Check that a system answers rightly. Returns the bytes of its answer. Raises WrongAnswer and OSError."""
    return await checked(system.ask(body_of(system.model, stream=load.stream, tokens=load.tokens)), load.tokens)


async def sample(
    system: System, load: Load, number: int, engine: int, folder: Path, seconds: int, answer_bytes: int
) -> Sample:
    """Load a system once, and check an answer to its last token in the midst. Raises WrkError and WrongAnswer."""
    pids = {**system.processes, ENGINE: engine}
    ask = system.ask(body_of(system.model, stream=load.stream, tokens=load.tokens))
    before = {name: cpu_us(pid) for name, pid in pids.items()}
    run, _ = await asyncio.gather(
        wrk.run(ask, folder, load.connections, seconds), _checked_amidst(ask, load, seconds)
    )
    spent = {name: cpu_us(pid) - before[name] for name, pid in pids.items()}
    mean_bytes = run.bytes / run.requests
    # How many events a stream has depends on how its tokens arrive, so its size tells nothing.
    if not load.stream and abs(mean_bytes / answer_bytes - 1) > BYTES_OFF_MAX:
        raise WrongAnswer(f"answers of {mean_bytes:.0f} bytes under load, {answer_bytes} bytes before it")
    return Sample(system.name, load.name, number, run, spent)


async def rounds(
    systems: Sequence[System], engine: int, folder: Path, count: int, seconds: int, say: Callable[[str], None]
) -> tuple[list[Sample], dict[str, dict[str, str]]]:
    """Return every sample, and by system and load why it was given up where it was."""
    samples: list[Sample] = []
    lost: dict[str, dict[str, str]] = {}
    sizes: dict[tuple[str, str], int] = {}
    for number in range(count):
        first = number % len(systems)
        for system in (*systems[first:], *systems[:first]):
            for load in LOADS:
                if load.name in lost.get(system.name, ()) or number >= system.rounds_max:
                    continue
                try:
                    key = (system.name, load.name)
                    if key not in sizes:
                        sizes[key] = await right_bytes(system, load)
                    length_s = max(seconds, system.seconds_min)
                    samples.append(await sample(system, load, number, engine, folder, length_s, sizes[key]))
                except (wrk.WrkError, WrongAnswer, OSError) as error:
                    lost.setdefault(system.name, {})[load.name] = str(error)
                    say(f"  {system.title}: {load.title}: given up: {error}")
        say(f"  round {number + 1} of {count}")
    return samples, lost


async def _checked_amidst(ask: Ask, load: Load, seconds: int) -> None:
    """Check an answer while the others are loaded. One connection is left alone: there it would be the load."""
    if load.connections > 1:
        await asyncio.sleep(seconds / 2)
        await checked(ask, load.tokens)
