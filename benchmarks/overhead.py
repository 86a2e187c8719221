"""What the way through Tidegate adds to a streamed answer: time to first token, time per token, processor time.

Each round asks the engine directly and then by each path, in an order that rotates; so whatever else the machine does
falls on all of them alike. What is added is the median over the rounds of the difference to the direct answers of the
same round.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import msgspec

from benchmarks.client import AnswerError, Client, Target, Timed, post
from benchmarks.figures import enough_for, median, percentile, table
from benchmarks.stand import EDGE_ONLY, INSTANT, LLAMA, LOOPBACK, TWO_HOP, Engine, Stand

DIRECT = "direct"
DURABLE = "edge-only, on disk"
"""The same path with personal data: the decision record is on the disk before the first byte leaves."""
DURABLE_LABELS = "personal=personal, grade=general"
CHAT = "/v1/chat/completions"
PROMPT = "Write a long story about a lighthouse keeper and the tide."
TOKENS_MAX = {INSTANT: 100, LLAMA: 32}
WARM_UP = 3
PAUSE_S = 0.005
"""Between two blocks: what the last answer left to do does not fall on the next path."""

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Case:
    """One engine under one load."""

    engine: str
    concurrency: int
    """Clients, each with one request at a time."""
    rounds: int
    per_client: int
    """Requests of each client in each block of a round."""
    paths: tuple[str, ...]

    @property
    def title(self) -> str:
        """What is measured, in words."""
        what = "llama.cpp, SmolLM2 135M, greedy" if self.engine == LLAMA else "an engine that answers at once"
        return f"{what}: {TOKENS_MAX[self.engine]} tokens, {self.concurrency} at a time"


@dataclass(slots=True)
class PathTimes:
    """All that was measured on one path."""

    path: str
    rounds: list[list[Timed]] = field(default_factory=list)
    wall_ns: int = 0
    """While blocks of this path ran."""
    cpu_ns: dict[str, int] = field(default_factory=dict)
    """By process, while blocks of this path ran."""

    @property
    def all(self) -> list[Timed]:
        """Every answer."""
        return [timed for one in self.rounds for timed in one]


def cases(rounds: int, llama: bool) -> tuple[Case, ...]:
    """Return the cases of a run. `rounds` is for the engine without a model, one at a time; the others follow."""
    instant = (DIRECT, EDGE_ONLY, TWO_HOP, DURABLE)
    found = [Case(INSTANT, 1, rounds, 1, instant), Case(INSTANT, 8, max(2, rounds // 50), 16, instant)]
    if llama:
        found.append(Case(LLAMA, 1, max(2, rounds // 20), 1, (DIRECT, EDGE_ONLY, TWO_HOP)))
    return tuple(found)


async def measure(stand: Stand, case: Case, say: Say) -> list[PathTimes]:
    """Return the times of every path of a case. Raises AnswerError and StandError."""
    engine = next(engine for engine in stand.engines if engine.name == case.engine)
    processes = {
        "client": os.getpid(),
        "edge": stand.process("edge").pid,
        "scheduler": stand.process("scheduler").pid,
        "engine": stand.process(engine.spec.name).pid,
    }
    times = {path: PathTimes(path) for path in case.paths}
    async with AsyncExitStack() as stack:
        clients: dict[str, list[Client]] = {}
        for path in case.paths:
            target = target_of(stand, engine, path)
            clients[path] = [await stack.enter_async_context(Client(target)) for _ in range(case.concurrency)]
            await _block(clients[path], WARM_UP)
        for number in range(case.rounds):
            first = number % len(case.paths)
            for path in case.paths[first:] + case.paths[:first]:
                await asyncio.sleep(PAUSE_S)
                await _round(times[path], clients[path], case.per_client, processes)
            if (number + 1) % max(1, case.rounds // 4) == 0:
                say(f"  {case.title}: {number + 1} of {case.rounds} rounds")
    counts = {timed.tokens for one in times.values() for timed in one.all}
    if len(counts) != 1:
        raise AnswerError(f"the answers differ in length ({sorted(counts)} tokens): they cannot be compared")
    return list(times.values())


def target_of(stand: Stand, engine: Engine, path: str) -> Target:
    """Return the target of a path: the same request, but for the model's name and, at the edge, the key."""
    direct = path == DIRECT
    headers = {} if direct else {"authorization": f"Bearer {stand.api_key}"}
    if path == DURABLE:
        headers["x-tidegate-labels"] = DURABLE_LABELS
    body = {
        "model": engine.served_model if direct else engine.model(EDGE_ONLY if path == DURABLE else path),
        "messages": [{"role": "user", "content": PROMPT}],
        "stream": True,
        "stream_options": {"include_usage": True},
        "temperature": 0.0,
        "top_p": 1.0,
        "max_tokens": TOKENS_MAX[engine.name],
    }
    port = engine.port if direct else stand.edge_port
    request = post(CHAT, f"{LOOPBACK}:{port}", msgspec.json.encode(body), headers)
    return Target(LOOPBACK, port, request, keeps_connection=engine.name != LLAMA)


def summary(times: Sequence[PathTimes]) -> list[dict[str, Any]]:
    """Return the figures of every path of one case, beside the direct one. Pure."""
    direct = next(one for one in times if one.path == DIRECT)
    return [_figures(one, direct) for one in times]


def raw(times: Sequence[PathTimes]) -> dict[str, list[list[list[int]]]]:
    """Return every answer of every round of each path: first token, last token, `[DONE]` in microseconds, tokens."""
    return {
        one.path: [
            [[timed.first_ns // 1000, timed.last_ns // 1000, timed.done_ns // 1000, timed.tokens] for timed in answers]
            for answers in one.rounds
        ]
        for one in times
    }


def rendered(case: Case, figures: Sequence[Mapping[str, Any]]) -> str:
    """Return the figures of one case as a table. Pure."""
    columns = (
        *("path", "n", "first token ms, p50", "p99", "added (quartiles)", "x direct"),
        *("per token us", "added (quartiles)", "x direct", "tokens/s", "CPU ms: edge", "scheduler", "engine"),
    )
    rows = []
    for one in figures:
        first, between, cpu = one["first_token_ms"], one["per_token_us"], one["cpu_us_per_request"]
        rows.append(
            (
                *(str(one["path"]), str(one["requests"]), f"{first['p50']:.2f}"),
                f"{first['p99']:.2f}" + (" " if first["p99_holds"] else "*"),
                *(_added(first, 2), f"{first['ratio']:.2f}"),
                *(f"{between['mean']:.1f}", _added(between, 1), f"{between['ratio']:.2f}"),
                f"{one['tokens_per_s']:.0f}",
                *(f"{cpu[name] / 1000:.2f}" for name in ("edge", "scheduler", "engine")),
            )
        )
    return table(case.title, columns, rows)


NOTE = (
    "added, x direct: median over the rounds, against the direct answers of the same round.\n"
    "CPU: processor time per request while a path was asked, probes and beats included.\n"
    "* too few samples for a 99th percentile: about the slowest seen.\n"
    "The client, the engine, the edge and the scheduler share this machine, and its cores, on every path.\n"
)


def _added(figures: Mapping[str, float], digits: int) -> str:
    low, high = figures["added_p25"], figures["added_p75"]
    return f"{figures['added']:+.{digits}f} ({low:+.{digits}f} {high:+.{digits}f})"


async def _round(times: PathTimes, clients: Sequence[Client], per_client: int, processes: Mapping[str, int]) -> None:
    before = {name: _cpu_ns(pid) for name, pid in processes.items()}
    begun_ns = perf_counter_ns()
    times.rounds.append(await _block(clients, per_client))
    times.wall_ns += perf_counter_ns() - begun_ns
    for name, pid in processes.items():
        times.cpu_ns[name] = times.cpu_ns.get(name, 0) + _cpu_ns(pid) - before[name]


async def _block(clients: Sequence[Client], per_client: int) -> list[Timed]:
    async def ask(client: Client) -> list[Timed]:
        return [await client.ask() for _ in range(per_client)]

    answers = await asyncio.gather(*(ask(client) for client in clients))
    return [timed for one in answers for timed in one]


def _cpu_ns(pid: int) -> int:
    """Return the processor time of every thread of a process, to the nanosecond: blocks are shorter than a tick."""
    total = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):
            total += int((thread / "schedstat").read_text(encoding="ascii").split()[0])
    return total


def _figures(times: PathTimes, direct: PathTimes) -> dict[str, Any]:
    answers = times.all
    first = [timed.first_ns / 1e6 for timed in answers]
    between = [timed.between_ns / 1e3 for timed in answers]
    tokens = sum(timed.tokens for timed in answers)
    return {
        "path": times.path,
        "requests": len(answers),
        "tokens": tokens,
        "first_token_ms": {
            "p50": percentile(first, 50),
            "p99": percentile(first, 99),
            "p99_holds": enough_for(99, len(first)),
            **_against(times, direct, lambda timed: timed.first_ns / 1e6),
        },
        "per_token_us": {
            "mean": sum(between) / len(between),
            "p50": percentile(between, 50),
            **_against(times, direct, lambda timed: timed.between_ns / 1e3),
        },
        "whole_ms": {"p50": percentile([timed.done_ns / 1e6 for timed in answers], 50)},
        "tokens_per_s": tokens / (times.wall_ns / 1e9),
        "cpu_us_per_request": {name: spent / 1e3 / len(answers) for name, spent in times.cpu_ns.items()},
    }


def _against(times: PathTimes, direct: PathTimes, value: Callable[[Timed], float]) -> dict[str, float]:
    """Return how the medians of each round stand to those of the direct answers of the same round."""
    own = [median([value(timed) for timed in one]) for one in times.rounds]
    bare = [median([value(timed) for timed in one]) for one in direct.rounds]
    added = [mine - theirs for mine, theirs in zip(own, bare, strict=True)]
    ratios = [mine / theirs for mine, theirs in zip(own, bare, strict=True) if theirs > 0]
    return {
        "added": median(added),
        "added_p25": percentile(added, 25),
        "added_p75": percentile(added, 75),
        "ratio": median(ratios) if ratios else 0.0,
    }
