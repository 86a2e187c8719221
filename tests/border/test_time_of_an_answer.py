"""What a pool does not bring in time is ended with a word that says which bound it was, and the work is stopped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from pathlib import Path

import pytest

from node_agent.uplink.engine_link import EngineLink
from node_agent.uplink.routes import Routes
from node_agent.uplink.sending import Sendable, Sending, Tally
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.fleet import Pool
from orchestrator.policy.ids import EdgeId
from orchestrator.wire.deadlines import Deadlines, Waits
from orchestrator.wire.frames import Accepted, Broken, Done, StreamFrame, Tokens
from tests.border.edge import Edge
from tests.bundles.sides import NOW_MS
from tests.intake.engine_stand import SharedEngine
from tests.sending import sent
from tests.values import replace

Make = Callable[..., Edge]
LONG_MS = 60_000


class ScriptedLink(EngineLink):
    """A way out that says these frames, and then nothing more; or the last of them for ever."""

    def __init__(self, frames: list[Callable[[Sendable], StreamFrame]], endless: bool = False) -> None:
        super().__init__("scripted", OpenAIEngine(OpenAIEngineSettings("http://127.0.0.1:9", "served")))
        self.stopped = 0
        self._frames, self._endless = frames, endless

    async def _carry(self, sendable: Sendable, tally: Tally) -> AsyncGenerator[StreamFrame, None]:
        try:
            for frame in self._frames:
                yield frame(sendable)
            while self._endless:
                yield self._frames[-1](sendable)
            await asyncio.Event().wait()
        finally:
            self.stopped += 1


def accepted(sendable: Sendable) -> StreamFrame:
    return Accepted(1, sendable.attempt, "r")  # type: ignore[arg-type]


def token(sendable: Sendable) -> StreamFrame:
    return Tokens(1, sendable.attempt, 0, 1, "a", (1,))


def done(sendable: Sendable) -> StreamFrame:
    return Done(1, sendable.attempt, "stop", PoolCounts(1, 0, 1, 1))


async def sendable_of(edge: Edge) -> tuple[Pool, Sendable]:
    """An attempt that the gate let out, and its pool, as one of an engine beside this edge."""
    await edge.text(edge.asked("acme-sg"))
    name, sendable = edge.routes.sent[-1]
    assert edge.current is not None
    pool = edge.current.fleet.pool(name)
    assert pool is not None
    return replace(pool, engine="scripted"), sendable


def by(routes: Routes, pool: Pool) -> Callable[[Sendable, Tally, Deadlines, int], Sending]:
    return lambda sendable, tally, _, now_us: routes.send(pool, sendable, tally, now_us)


async def carried(link: EngineLink, edge: Edge, waits: Waits, budget_ms: int) -> list[StreamFrame]:
    pool, sendable = await sendable_of(edge)
    routes = Routes(EdgeId(edge.name), {"scripted": link}, lambda: NOW_MS)
    sendable = replace(sendable, waits=waits, budget_ms=budget_ms)
    async with asyncio.timeout(30), aclosing(sent(by(routes, pool), sendable, Tally())) as frames:
        return [frame async for frame in frames]


@pytest.mark.parametrize(
    ("frames", "waits", "budget_ms", "code"),
    [
        ([accepted], Waits(50, LONG_MS), LONG_MS, "timeout_first_token"),
        ([accepted, token, token], Waits(LONG_MS, 50), LONG_MS, "timeout_between_tokens"),
        ([accepted], Waits(LONG_MS, LONG_MS), 50, "timeout_total"),
        ([accepted, token], Waits(LONG_MS, LONG_MS), 50, "timeout_total"),
    ],
    ids=["first token", "between tokens", "total before a token", "total in the middle"],
)
async def test_the_bound_that_was_reached_is_named_and_the_work_stopped(
    make_edge: Make, frames: list[Callable[[Sendable], StreamFrame]], waits: Waits, budget_ms: int, code: str
) -> None:
    link = ScriptedLink(frames)
    got = await carried(link, make_edge(), waits, budget_ms)
    assert len(got) == len(frames) + 1
    last = got[-1]
    assert isinstance(last, Broken)
    assert last.code == code
    assert link.stopped == 1


async def test_an_answer_that_never_ends_is_ended_though_its_tokens_are_always_there(make_edge: Make) -> None:
    link = ScriptedLink([token], endless=True)
    got = await carried(link, make_edge(), Waits(LONG_MS, LONG_MS), 100)
    last = got[-1]
    assert isinstance(last, Broken)
    assert last.code == "timeout_total"
    assert link.stopped == 1


async def test_what_comes_in_time_is_let_through_as_it_came(make_edge: Make) -> None:
    link = ScriptedLink([accepted, token, token, done])
    # It says nothing after its last word, and nobody waits for more than that.
    edge = make_edge()
    pool, sendable = await sendable_of(edge)
    routes = Routes(EdgeId(edge.name), {"scripted": link}, lambda: NOW_MS)
    got: list[StreamFrame] = []
    async with aclosing(sent(by(routes, pool), sendable, Tally())) as frames:
        async for frame in frames:
            got.append(frame)
            if isinstance(frame, Done):
                break
    assert [type(frame) for frame in got] == [Accepted, Tokens, Tokens, Done]
    assert link.stopped == 1


async def test_an_engine_that_falls_silent_gets_its_slot_back(make_edge: Make, tmp_path: Path) -> None:
    async with SharedEngine().serving() as engine:
        engine.go.clear()
        client = OpenAIEngine(OpenAIEngineSettings(f"http://127.0.0.1:{engine.port}", "served"))
        link = EngineLink("scripted", client)
        got = await carried(link, make_edge(), Waits(LONG_MS, 200), LONG_MS)
        last = got[-1]
        assert isinstance(last, Broken)
        assert (last.code, link.in_flight) == ("timeout_between_tokens", 0)
        async with asyncio.timeout(10):
            while engine.running:  # noqa: ASYNC110 - the engine is asked
                await asyncio.sleep(0.01)
        await client.close()
