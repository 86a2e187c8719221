"""Real sockets that are cut under a real link and a real intake: the answer goes on, and both sides count alike."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio

from node_agent.uplink.sending import Sendable, Tally
from node_agent.uplink.session_link import SessionLink
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import SessionId
from orchestrator.wire.channels import open_channel
from orchestrator.wire.convert_replica import WorkAssign, WorkCancel, WorkFinished, WorkTokens
from orchestrator.wire.convert_session import edge_batch_out
from orchestrator.wire.frames import SESSION_VERSION, Accepted, Broken, Cancel, Done, Hello, StreamFrame, Tokens
from protos.tidegate.v1.session_pb2_grpc import IntakeStub
from tests.intake.cutting_proxy import CuttingProxy
from tests.intake.site_stand import EDGE, POOL, SCHEDULER, ScriptedReplica, Stand, now_ms, standing
from tests.sending import sent

SOON_S = 20.0
WORDS = tuple(f"{'é' * (number % 3)}word-{number} " for number in range(12))


@dataclass
class Border:
    """A site, and an edge's link to it through a proxy that cuts."""

    stand: Stand
    replica: ScriptedReplica
    proxy: CuttingProxy
    link: SessionLink


@asynccontextmanager
async def bordered(folder: Path) -> AsyncIterator[Border]:
    async with standing(folder) as stand:
        replica = ScriptedReplica(stand.replica_port, slots=8)
        await replica.start()
        await stand.live(1)
        proxy = CuttingProxy(stand.running.ports[0])
        await proxy.start()
        link = SessionLink(EDGE, SCHEDULER, f"127.0.0.1:{proxy.port}", now_ms)
        running = asyncio.create_task(link.run())
        try:
            await until(lambda: link.state().accepts_work)
            yield Border(stand, replica, proxy, link)
        finally:
            await link.close()
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            await proxy.close()
            await replica.close()


@pytest_asyncio.fixture
async def border(tmp_path: Path) -> AsyncIterator[Border]:
    async with bordered(tmp_path) as made:
        yield made


async def until(what: Any) -> None:
    """Wait until `what()` is true."""
    async with asyncio.timeout(SOON_S):
        while not what():  # noqa: ASYNC110 - the other side is asked
            await asyncio.sleep(0.005)


@dataclass
class Asked:
    """One attempt that a tenant waits for."""

    sendable: Sendable
    tally: Tally
    task: asyncio.Task[list[StreamFrame]]

    async def frames(self) -> list[StreamFrame]:
        async with asyncio.timeout(SOON_S):
            return await self.task


def ask(border: Border) -> Asked:
    tally, sendable = Tally(), border.stand.sendable(budget_ms=int(SOON_S * 1000))

    async def read() -> list[StreamFrame]:
        async with aclosing(sent(border.link.send, sendable, tally)) as frames:
            return [frame async for frame in frames]

    return Asked(sendable, tally, asyncio.create_task(read()))


async def work_of(border: Border) -> int:
    async with asyncio.timeout(SOON_S):
        while not isinstance(frame := await border.replica.got.get(), WorkAssign):
            pass
    return frame.work


def check(frames: list[StreamFrame]) -> None:
    """The answer is the one that nothing disturbed: no gap, no repeat, one end."""
    tokens = [frame for frame in frames if isinstance(frame, Tokens)]
    assert "".join(frame.text for frame in tokens) == "".join(WORDS)
    assert [one for frame in tokens for one in frame.ids] == list(range(len(WORDS)))
    assert sum(isinstance(frame, Accepted) for frame in frames) == 1
    assert isinstance(frames[-1], Done)
    assert frames[-1].reason == "stop"
    assert frames[-1].counts.sent == len(WORDS)


async def usage(border: Border, asked: Asked) -> dict[str, Any]:
    """Return the intake's usage record of an attempt, when it is written."""

    def found() -> list[dict[str, Any]]:
        records = [json.loads(entry.data) for entry in border.stand.spool.read_from() if entry.kind == "usage"]
        return [record for record in records if record["attempt"] == asked.sendable.attempt]

    await until(found)
    (record,) = found()
    return record


async def answered_with_a_cut(border: Border, place: int, arrived: bool) -> None:
    """Ask, cut when `place` tokens were made (and have `arrived`, or are on their way), and check what comes of it."""
    asked = ask(border)
    work = await work_of(border)
    for number, word in enumerate(WORDS):
        if number == place:
            await cut(border, asked, place, arrived)
        await border.replica.say(WorkTokens(work, word, (number,), 1))
    if place == len(WORDS):
        await cut(border, asked, place, arrived)
    await border.replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(WORDS))))
    check(await asked.frames())
    counts = (await usage(border, asked))["counts"]
    assert counts["pool"]["sent"] == len(WORDS)
    assert (counts["edge"]["received"], counts["edge"]["delivered"]) == (len(WORDS), len(WORDS))
    assert (asked.tally.received, asked.tally.delivered) == (len(WORDS), len(WORDS))


async def cut(border: Border, asked: Asked, place: int, arrived: bool) -> None:
    if arrived:
        await until(lambda: asked.tally.received == place)
    border.proxy.cut()


async def test_a_connection_that_is_cut_at_any_token_costs_nothing(border: Border) -> None:
    session = border.link.state().session
    for place in range(len(WORDS) + 1):
        for arrived in (True, False):
            await answered_with_a_cut(border, place, arrived)
            await until(lambda: border.link.state().accepts_work)
    assert border.link.state().session == session, "it is one session all along"
    assert border.link.state().epoch == border.proxy.connections >= 2 * len(WORDS)
    assert border.stand.site.busy() == 0


async def test_many_answers_go_on_over_several_cuts_in_a_row(border: Border) -> None:
    asked = [ask(border) for _ in range(6)]
    works = [await work_of(border) for _ in asked]
    for number, word in enumerate(WORDS):
        for work in works:
            await border.replica.say(WorkTokens(work, word, (number,), 1))
        if number % 3 == 0:
            border.proxy.cut()
            await asyncio.sleep(0.01)
            border.proxy.cut()  # perhaps in the middle of coming back
    for work in works:
        await border.replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(WORDS))))
    for one in asked:
        check(await one.frames())
        assert (await usage(border, one))["counts"]["edge"]["delivered"] == len(WORDS)


async def test_a_connection_that_falls_silent_is_replaced(border: Border) -> None:
    asked = ask(border)
    work = await work_of(border)
    await border.replica.say(WorkTokens(work, WORDS[0], (0,), 1))
    await until(lambda: asked.tally.received == 1)
    border.proxy.silence()
    for number, word in enumerate(WORDS[1:], 1):
        await border.replica.say(WorkTokens(work, word, (number,), 1))
    await border.replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(WORDS))))
    check(await asked.frames())
    assert border.proxy.connections == 2


async def test_where_nobody_listens_nothing_is_tried_again(border: Border) -> None:
    asked = ask(border)
    work = await work_of(border)
    await border.replica.say(WorkTokens(work, WORDS[0], (0,), 1))
    await until(lambda: asked.tally.received == 1)
    epoch = border.link.state().epoch
    await border.proxy.turn_away()
    frames = await asked.frames()
    assert isinstance(frames[-1], Broken)
    assert frames[-1].code == "session_lost"
    assert border.link.state().epoch <= epoch + 2, "one try was turned away; the next belongs to a new session"
    # The intake keeps the answer for a while, and then stops the work.
    async with asyncio.timeout(SOON_S):
        while not isinstance(await border.replica.got.get(), WorkCancel):
            pass
    await border.replica.say(WorkFinished(work, "cancelled", PoolCounts(5, 0, 1)))
    assert "edge" not in (await usage(border, asked))["counts"], "nobody said what arrived"
    assert border.stand.site.dispatchers[POOL].state().running == 0


async def test_a_draining_intake_lets_a_cut_answer_come_to_its_end(border: Border) -> None:
    asked = ask(border)
    work = await work_of(border)
    border.stand.intake.drain(10_000)
    border.proxy.cut()
    await until(lambda: border.link.state().state == "draining")
    for number, word in enumerate(WORDS):
        await border.replica.say(WorkTokens(work, word, (number,), 1))
    await border.replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(WORDS))))
    check(await asked.frames())
    await until(lambda: border.stand.site.busy() == 0)


async def test_a_drain_waits_until_the_edge_has_everything(border: Border) -> None:
    tally = Tally()
    frames = sent(border.link.send, border.stand.sendable(budget_ms=int(SOON_S * 1000)), tally)
    first = asyncio.create_task(anext(frames))
    work = await work_of(border)
    await border.replica.say(WorkTokens(work, WORDS[0], (0,), 1), WorkFinished(work, "stop", PoolCounts(5, 0, 1)))
    await until(lambda: border.stand.site.dispatchers[POOL].state().running == 0)
    assert border.stand.site.busy() == 1
    assert isinstance(await first, Accepted)
    assert [type(frame) async for frame in frames] == [Tokens, Done]
    await until(lambda: border.stand.site.busy() == 0)


@pytest.mark.parametrize("continues", [True, False], ids=["goes on", "begins"])
async def test_a_repeated_greeting_can_do_nothing(border: Border, continues: bool) -> None:
    before = border.link.state()
    asked = ask(border)
    work = await work_of(border)
    async with open_channel(f"127.0.0.1:{border.stand.running.ports[0]}") as channel:
        call = IntakeStub(channel).Session(timeout=SOON_S)
        versions = (SESSION_VERSION, SESSION_VERSION)
        hello = Hello(*versions, EDGE, SessionId(before.session), before.epoch, now_ms(), 8, continues)
        await call.write(edge_batch_out(before.epoch, [hello, Cancel(1, asked.sendable.attempt)]))
        assert await call.read() is grpc.aio.EOF
        call.cancel()
    assert border.stand.intake.attachments.refused == 1
    for number, word in enumerate(WORDS):
        await border.replica.say(WorkTokens(work, word, (number,), 1))
    await border.replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(WORDS))))
    check(await asked.frames())
    assert (border.link.state().session, border.link.state().epoch) == (before.session, before.epoch)


async def test_an_idle_session_outlives_its_connection(border: Border) -> None:
    before = border.link.state()
    border.proxy.cut()
    await until(lambda: border.link.state().epoch > before.epoch and border.link.state().accepts_work)
    assert border.link.state().session == before.session
