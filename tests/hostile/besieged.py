"""One stand for all hostile tests: an edge, a site, a good engine and evil ones, a good tenant and an evil one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

import psutil

from benchmarks.ports import LOOPBACK, KeptPorts
from benchmarks.stand import INSTANT, PATHS, ROOT, Engine, Scale, Stand
from orchestrator.cli.processes import ProcessSpec, port_accepts
from tests.hostile import engine
from tests.hostile.client import Answer, Door, body, request

PROGRAMS = ("edge", "scheduler")
ENGINES = 6
SLOTS = 256
CONTEXT_TOKENS = 131_072
GOOD, EVIL = "good-sg", "evil-sg"
GOOD_TOKENS = 20
GOOD_TEXT = "".join(f" tok{number:02}" for number in range(GOOD_TOKENS))
GOOD_PERIOD_S = 0.04
GOOD_S = 10.0
"""What a request of the good tenant may take at most: a machine under tests is uneven."""
HEALED_S = 15.0
CLOSED_S = 10.0
GROWTH_BYTES = 160 << 20
"""What a program may hold beyond its start at any moment."""
DESCRIPTORS_SPARE = 8
"""Of files of the evidence that come and go."""
BOUNDS_OF_TIME = {"first_token_timeout_ms": 2_000, "between_tokens_timeout_ms": 1_500, "timeout_ms": 3_000}
"""Of the evil tenant, so that its engines' silence ends within a test."""


@dataclass(slots=True)
class Good:
    """What became of the good tenant's requests."""

    asked: int = 0
    wrong: list[str] = field(default_factory=list)


class Besieged:
    """The stand, and what is looked at before and after each siege."""

    def __init__(self, folder: Path) -> None:
        self._kept = KeptPorts(ENGINES)
        ports = self._kept.numbers
        argv = (sys.executable, "-m", "tests.hostile.engine", *map(str, ports))
        spec = ProcessSpec("engine-evil", argv, cwd=ROOT, ready=port_accepts(LOOPBACK, ports[-1]))
        self.evil = tuple(
            Engine(f"evil-{index}", port, engine.MODEL, SLOTS, CONTEXT_TOKENS, spec) for index, port in enumerate(ports)
        )
        scale = Scale(
            slots=SLOTS,
            context_tokens=CONTEXT_TOKENS,
            edge={"body_timeout_ms": 1_500},
            engines=self.evil,
            tenants={GOOD: {}, EVIL: {"keep_results": True, "service": BOUNDS_OF_TIME}},
        )
        self.stand = Stand(folder, None, scale)
        self._programs: dict[str, psutil.Process] = {}
        self._start_bytes: dict[str, int] = {}

    async def start(self) -> None:
        """Start it, and take the measure of each program once it has worked."""
        await self.stand.start()
        self.door = Door(self.stand.edge_port)
        self.good, self.key = self.stand.api_key_of(GOOD), self.stand.api_key_of(EVIL)
        self._programs = {name: self.stand.process(name) for name in PROGRAMS}
        for _ in range(20):
            await self.heal()
        self._start_bytes = {name: one.memory_info().rss for name, one in self._programs.items()}

    def model(self, index: int, path: str) -> str:
        """Return the model that reaches an evil engine on a path."""
        return self.evil[index % ENGINES].model(path)

    async def heal(self) -> None:
        """Return when every evil engine is asked on every path again, and answers what it should."""
        await asyncio.gather(*(self.answers_well(one.model(path)) for one in self.evil for path in PATHS))

    async def answers_well(self, model: str) -> None:
        """Return when a model of an evil engine gives a right answer: within HEALED_S."""
        end_at = asyncio.get_running_loop().time() + HEALED_S
        while True:
            answer = await self.door.ask(request(self.key, body(model)))
            if answer.whole:
                assert answer.text == engine.TEXT, answer.text[:200]
                return
            # What it was refused for in the attack may last a moment, and no longer.
            assert answer.status in (502, 503), answer
            assert asyncio.get_running_loop().time() < end_at, answer
            await asyncio.sleep(0.1)

    @contextlib.asynccontextmanager
    async def siege(self) -> AsyncIterator[Good]:
        """Attack inside of this, while the good tenant goes on; at its end all must be as it was before."""
        before = {name: self._descriptors(name) for name in PROGRAMS}
        good, over = Good(), asyncio.Event()
        waiting = [
            asyncio.create_task(self._good(good, over)),
            asyncio.create_task(self._good(good, over, fresh=True)),
            asyncio.create_task(self._bounded(over)),
        ]
        try:
            yield good
            # However short the attack was, somebody was served beside it.
            await until(lambda: good.asked >= 10, GOOD_S * 3, "the good tenant was not served")
        finally:
            over.set()
            await asyncio.gather(*waiting)
        assert good.wrong == []
        await self.heal()
        for name in PROGRAMS:
            assert self._programs[name].is_running(), f"{name} has ended"
            assert self.stand.process(name).pid == self._programs[name].pid
            await until(partial(self._let_go, name, before[name]), CLOSED_S, f"{name} keeps descriptors")

    async def _good(self, good: Good, over: asyncio.Event, *, fresh: bool = False) -> None:
        """Ask as a tenant of good faith, on one connection or each time on a new one, until it is over."""
        wholes, models = cycle((False, False, True)), cycle(f"{INSTANT}-{path}" for path in PATHS)
        while not over.is_set():
            with contextlib.suppress(ConnectionError):
                async with self.door.connection() as (reader, writer):
                    while not over.is_set():
                        stream = not next(wholes)
                        asked = body(next(models), stream=stream, max_tokens=GOOD_TOKENS)
                        await self._one_good(good, reader, writer, request(self.good, asked))
                        await asyncio.sleep(GOOD_PERIOD_S)
                        if fresh:
                            break

    async def _one_good(
        self, good: Good, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, asked: bytes
    ) -> None:
        good.asked += 1
        try:
            async with asyncio.timeout(GOOD_S):
                writer.write(asked)
                answer = await self.door.take(reader)
        except TimeoutError:
            good.wrong.append(f"no answer within {GOOD_S} s")
            raise ConnectionAbortedError from None
        right = answer.whole and answer.text == GOOD_TEXT and answer.tokens == GOOD_TOKENS
        if not right:
            good.wrong.append(f"{answer.status} {answer.body[:200]!r}")
            raise ConnectionAbortedError

    async def _bounded(self, over: asyncio.Event) -> None:
        while not over.is_set():
            for name, one in self._programs.items():
                grown = one.memory_info().rss - self._start_bytes[name]
                assert grown < GROWTH_BYTES, f"{name} has grown by {grown >> 20} MiB"
            await asyncio.sleep(0.1)

    def _let_go(self, name: str, before: int) -> bool:
        """Whether a program holds no more descriptors than before."""
        return self._descriptors(name) <= before + DESCRIPTORS_SPARE

    def _descriptors(self, name: str) -> int:
        """Return how many a program holds, without the connections to engines that it keeps for further use."""
        engines = {one.port for one in self.stand.engines}
        process = self._programs[name]
        kept = sum(1 for one in process.net_connections("tcp") if one.raddr and one.raddr.port in engines)
        return process.num_fds() - kept

    def figures(self) -> dict[str, Any]:
        """Return what each program holds now, for people."""
        return {name: (one.memory_info().rss >> 20, self._descriptors(name)) for name, one in self._programs.items()}


async def until(holds: Callable[[], bool], most_s: float, otherwise: str) -> None:
    """Return when something holds. Fails after `most_s`."""
    end_at = asyncio.get_running_loop().time() + most_s
    while not holds():
        assert asyncio.get_running_loop().time() < end_at, otherwise
        await asyncio.sleep(0.05)


async def for_a_while(seconds: float, at_once: int, one: Callable[[], Awaitable[Answer]]) -> list[Answer]:
    """Do one thing again and again, so many at once, for so long, and return what was answered."""
    end_at = asyncio.get_running_loop().time() + seconds
    answers: list[Answer] = []

    async def again() -> None:
        while asyncio.get_running_loop().time() < end_at:
            answers.append(await one())

    await asyncio.gather(*(again() for _ in range(at_once)))
    return answers
