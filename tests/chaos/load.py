"""The load: tenants that ask, each in a lane of its own, until they are told to stop."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

from tests.chaos.client import Ending, Mode, Plan, Told, ask, new_session
from tests.chaos.declared import EDGES, GENERAL, LABELS
from tests.chaos.stand import Stand
from tests.chaos.words import QUICK

AGAIN_MAX = 60
"""How often a request is asked again whose edge was not there, or was killed: some 20 s."""
AGAIN_S = 0.3
BACK_S = 0.2
"""How long a worker waits after a refusal. Less than `Retry-After` says: the sooner it asks, the sooner it sees."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Workers that ask the same kind of thing, one request after the other."""

    workers: int
    mode: Mode = Mode.STREAM
    tokens: int = 40
    tenant: str = "calm"
    kind: str = GENERAL
    edges: tuple[str, ...] = EDGES
    cancel_after: tuple[int, ...] = ()
    """Hang up after so many tokens, each in turn; empty reads to the end."""
    pause_s: float = 0.0
    quick: bool = False
    """Whether the engine answers at once."""


@dataclass(slots=True)
class Asked:
    """One request of a tenant, with every try of it."""

    lane: Lane
    tries: list[Told] = field(default_factory=list)

    @property
    def last(self) -> Told:
        """The try that counts."""
        return self.tries[-1]


class Load:
    """Runs lanes against the stand, and keeps what became of every request."""

    def __init__(self, stand: Stand, name: str) -> None:
        self.asked: list[Asked] = []
        self.dying: dict[str, list[float]] = {edge: [] for edge in EDGES}
        """When each edge was killed: a connection to one may end without a word."""
        self.leaving: dict[str, list[float]] = {edge: [] for edge in EDGES}
        """When each edge was told to stop: a connection to one may end before any answer began."""
        self._stand = stand
        self._name = name
        self._numbers = itertools.count()
        self._stop = asyncio.Event()
        self._workers: list[asyncio.Task[None]] = []
        self._session: aiohttp.ClientSession | None = None

    def start(self, lanes: tuple[Lane, ...]) -> None:
        """Begin to ask."""
        if self._session is None:
            self._session = new_session()
        for lane in lanes:
            self._workers += [asyncio.create_task(self._work(lane, one)) for one in range(lane.workers)]

    def dies(self, name: str) -> None:
        """A process is about to be killed."""
        if name in EDGES:
            self.dying[name].append(asyncio.get_running_loop().time())

    def leaves(self, name: str) -> None:
        """A process is about to be told to stop."""
        if name in EDGES:
            self.leaving[name].append(asyncio.get_running_loop().time())

    async def stop(self) -> None:
        """Stop asking, and wait for the answers that are under way."""
        self._stop.set()
        await asyncio.gather(*self._workers)
        await self.close()

    async def close(self) -> None:
        """Leave, whatever is still under way."""
        for worker in self._workers:
            worker.cancel()
        await asyncio.gather(*self._workers, return_exceptions=True)
        if self._session is not None:
            await self._session.close()

    async def until(self, holds: Callable[[], bool], limit_s: float) -> bool:
        """Wait until something holds of what was asked. Returns whether it did in time."""
        loop = asyncio.get_running_loop()
        end_at = loop.time() + limit_s
        while not holds():
            if loop.time() > end_at:
                return False
            await asyncio.sleep(0.02)
        return True

    async def one(self, lane: Lane, number: int | None = None) -> Asked:
        """Ask once, and again where the edge itself was killed."""
        index = next(self._numbers)
        asked = Asked(lane)
        self.asked.append(asked)
        edge = lane.edges[index % len(lane.edges)]
        tag = f"{QUICK if lane.quick else ''}{self._name}-{index}"
        for attempt in range(1 + AGAIN_MAX):
            # Under the same key the body must be the same; without one, each try is told from the others.
            own_tag = tag if not attempt or lane.mode is Mode.KEYED else f"{tag}.{attempt}"
            told = await self._try(lane, edge, own_tag, index)
            asked.tries.append(told)
            if not self._excused(told, edge):
                break
            await asyncio.sleep(AGAIN_S)
            if lane.mode is not Mode.KEYED:
                # The key is known where it was first seen; anything else is asked at the other edge.
                edge = next((other for other in lane.edges if other != edge), edge)
        return asked

    async def _try(self, lane: Lane, edge: str, tag: str, index: int) -> Told:
        cancel_after = lane.cancel_after[index % len(lane.cancel_after)] if lane.cancel_after else None
        if self._session is None:
            self._session = new_session()
        return await ask(self._session, self.plan(lane, edge, tag, cancel_after))

    def plan(self, lane: Lane, edge: str, tag: str, cancel_after: int | None = None) -> Plan:
        """Return one request of a lane."""
        stand = self._stand
        return Plan(
            tag,
            edge,
            stand.url(edge),
            stand.api_key(lane.tenant),
            lane.tenant,
            lane.kind,
            LABELS[lane.kind],
            lane.mode,
            lane.tokens,
            cancel_after,
        )

    def _excused(self, told: Told, edge: str) -> bool:
        """Whether the edge was not there, or died while it answered."""
        if told.ending is Ending.UNREACHED:
            return True
        if told.ending is not Ending.CLOSED:
            return False
        if any(told.begun_s - 1.0 < died_s < told.ended_s for died_s in self.dying[edge]):
            return True
        # A drain closes the listener: what was not yet taken up there ends without a word, and may be asked again.
        return not told.request and any(told.begun_s - 1.0 < left_s < told.ended_s for left_s in self.leaving[edge])

    async def _work(self, lane: Lane, number: int) -> None:
        # Not all at once: workers that began together would stay together.
        await asyncio.sleep(0.013 * number)
        while not self._stop.is_set():
            asked = await self.one(lane, number)
            if asked.last.ending is not Ending.ANSWERED and asked.last.ending is not Ending.CANCELLED:
                await asyncio.sleep(BACK_S)
            elif lane.pause_s:
                await asyncio.sleep(lane.pause_s)
