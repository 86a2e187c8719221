"""Replicas that lie, linger or fail, tenants that stall, sessions that end: what one site does, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import json
import os
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import grpc
import pytest
import pytest_asyncio

from node_agent.uplink.sending import Sendable, Tally
from orchestrator.bundles.assemble import Bundle
from orchestrator.engines.generation import Generation
from orchestrator.engines.identity import Identity
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import Digest, ModelId, PoolId, ReplicaId, SideId
from orchestrator.wire.channels import open_channel
from orchestrator.wire.convert_replica import (
    REPLICA_VERSION,
    ReplicaBeat,
    ReplicaFrame,
    ReplicaHello,
    WorkAssign,
    WorkCancel,
    WorkFailed,
    WorkFinished,
    WorkRefused,
    WorkStarted,
    WorkTokens,
    replica_frame_out,
)
from orchestrator.wire.frames import (
    Accepted,
    Broken,
    Done,
    Refused,
    StreamFrame,
    Tokens,
)
from protos.tidegate.v1 import replica_pb2 as pb
from protos.tidegate.v1.replica_pb2_grpc import ReplicaPortStub
from scheduler.intake.engine_replica import EngineReplica
from scheduler.intake.replica import Replica
from scheduler.intake.site import Site
from tests.intake.site_stand import MODEL, POOL, TOKEN, ScriptedReplica, Stand, now_us, standing
from tests.sending import sent
from tests.values import replace

SOON_S = 5.0


@pytest_asyncio.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with standing(tmp_path) as made:
        yield made


@pytest_asyncio.fixture
async def replica(stand: Stand) -> AsyncIterator[ScriptedReplica]:
    made = ScriptedReplica(stand.replica_port)
    await made.start()
    await stand.live(1)
    yield made
    await made.close()


@dataclass
class Asked:
    """One attempt that a tenant waits for."""

    task: asyncio.Task[list[StreamFrame]]
    tally: Tally

    async def frames(self) -> list[StreamFrame]:
        async with asyncio.timeout(SOON_S):
            return await self.task

    async def last(self) -> StreamFrame:
        return (await self.frames())[-1]


def ask(stand: Stand, sendable: Sendable | None = None) -> Asked:
    """Send an attempt and read it to its end."""
    tally = Tally()

    async def read() -> list[StreamFrame]:
        async with aclosing(sent(stand.link.send, sendable or stand.sendable(), tally)) as frames:
            return [frame async for frame in frames]

    return Asked(asyncio.create_task(read()), tally)


async def refused(stand: Stand, sendable: Sendable | None = None) -> str:
    """Send an attempt that is refused, and return the code."""
    frame = await ask(stand, sendable).last()
    assert isinstance(frame, Refused)
    return frame.code


async def work_of(replica: ScriptedReplica) -> int:
    async with asyncio.timeout(SOON_S):
        while not isinstance(frame := await replica.got.get(), WorkAssign):
            pass
    return frame.work


async def answer(replica: ScriptedReplica, work: int, *words: str) -> None:
    for number, word in enumerate(words):
        await replica.say(WorkTokens(work, word, (number,), 1))
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(words))))


async def until(what: Any) -> None:
    """Wait until `what()` is true."""
    async with asyncio.timeout(SOON_S):
        while not what():  # noqa: ASYNC110 - the site is asked
            await asyncio.sleep(0.01)


async def usage(stand: Stand) -> dict[str, Any]:
    def records() -> list[bytes]:
        return [entry.data for entry in stand.spool.read_from() if entry.kind == "usage"]

    await until(lambda: len(records()) == 1)
    found: dict[str, Any] = json.loads(records()[0])
    return found


def text_of(frames: list[StreamFrame]) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, Tokens))


# Sessions


async def test_an_old_answer_that_is_read_out_late_takes_nothing_from_a_new_session(
    stand: Stand, replica: ScriptedReplica
) -> None:
    late = sent(stand.link.send, stand.sendable(), Tally())
    first = asyncio.create_task(anext(late))
    await work_of(replica)
    for port in list(stand.intake.ports):
        port.act(port.machine.close("session_lost"))
    await until(lambda: stand.link.state().epoch > 1 and stand.link.state().accepts_work)
    new = ask(stand)
    work = await work_of(replica)
    # Both have stream number 1, each in its session.
    assert isinstance(await first, Accepted)
    broken = await anext(late)
    assert isinstance(broken, Broken)
    assert broken.code == "session_lost"
    await late.aclose()
    await answer(replica, work, "still", " mine")
    frames = await new.frames()
    assert text_of(frames) == "still mine"
    assert isinstance(frames[-1], Done)


async def test_a_draining_intake_says_so_and_lets_answers_end(stand: Stand, replica: ScriptedReplica) -> None:
    running = ask(stand)
    work = await work_of(replica)
    stand.intake.drain(5_000)
    await until(lambda: stand.link.state().state == "draining")
    assert not stand.link.state().accepts_work
    assert await refused(stand) == "engine_unreachable"
    await answer(replica, work, "the", " end")
    assert isinstance(await running.last(), Done)


async def test_after_a_restart_of_the_intake_replicas_and_edges_find_it_again(
    stand: Stand, replica: ScriptedReplica
) -> None:
    running = ask(stand)
    await work_of(replica)
    await stand.restart()
    lost = await running.last()
    assert isinstance(lost, Broken)
    assert lost.code == "draining"
    again = ScriptedReplica(stand.replica_port)
    try:
        await again.start()
        await stand.live(1)
        assert stand.link.state().epoch > 1
        new = ask(stand)
        await answer(again, await work_of(again), "again")
        assert text_of(await new.frames()) == "again"
    finally:
        await again.close()


# Tenants


async def test_a_tenant_that_stalls_within_credit_gets_every_token(stand: Stand, replica: ScriptedReplica) -> None:
    frames = sent(stand.link.send, stand.sendable(), Tally())
    first = asyncio.create_task(anext(frames))
    work = await work_of(replica)
    words = [f"{number} " for number in range(6_000)]
    for start in range(0, len(words), 100):
        await replica.say(*(WorkTokens(work, word, (1,), 1) for word in words[start : start + 100]))
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(words))))
    await until(lambda: stand.site.dispatchers[POOL].state().running == 0)
    async with asyncio.timeout(SOON_S), aclosing(frames):
        assert isinstance(await first, Accepted)
        read = [frame async for frame in frames]
    assert text_of(read) == "".join(words)
    assert isinstance(read[-1], Done)
    assert read[-1].counts.sent == len(words)


async def test_a_long_text_that_comes_at_once_reaches_a_tenant_who_reads(
    stand: Stand, replica: ScriptedReplica
) -> None:
    running, text = ask(stand), "x" * 250_000
    work = await work_of(replica)
    await replica.say(WorkTokens(work, text, (), 1), WorkTokens(work, "y", (), 1))
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 2)))
    async with asyncio.timeout(SOON_S):
        read = await running.frames()
    assert text_of(read) == f"{text}y"
    assert isinstance(read[-1], Done)


async def test_a_tenant_that_stalls_beyond_every_bound_frees_the_slot(stand: Stand, replica: ScriptedReplica) -> None:
    frames = sent(stand.link.send, stand.sendable(), Tally())
    first = asyncio.create_task(anext(frames))
    work = await work_of(replica)
    for _ in range(30):
        await replica.say(WorkTokens(work, "x" * 10_000, (1,), 1))
    async with asyncio.timeout(SOON_S):
        assert await replica.got.get() == WorkCancel(work)
    await replica.say(WorkFinished(work, "cancelled", PoolCounts(5, 0, 30)))
    async with asyncio.timeout(SOON_S), aclosing(frames):
        assert isinstance(await first, Accepted)
        read = [frame async for frame in frames]
    assert isinstance(read[-1], Broken)
    assert read[-1].code == "slow_reader"
    assert len(text_of(read)) <= 64 * 1024
    await until(lambda: stand.site.dispatchers[POOL].state().running == 0)


async def test_what_waits_longer_than_its_budget_waits_no_more(stand: Stand, replica: ScriptedReplica) -> None:
    running = [ask(stand), ask(stand)]
    works = [await work_of(replica), await work_of(replica)]
    assert await refused(stand, stand.sendable(budget_ms=400)) == "timeout_total"
    await until(lambda: stand.site.dispatchers[POOL].state().waiting == 0)
    for work in works:
        await answer(replica, work, "a")
    assert all([isinstance(await one.last(), Done) for one in running])


async def test_what_runs_longer_than_its_budget_is_stopped_and_says_what_it_took(
    stand: Stand, replica: ScriptedReplica
) -> None:
    asked = ask(stand, stand.sendable(budget_ms=400))
    work = await work_of(replica)
    await replica.say(WorkStarted(work, 5), WorkTokens(work, "a", (1,), 1))
    async with asyncio.timeout(SOON_S):
        assert await replica.got.get() == WorkCancel(work)
    assert stand.site.dispatchers[POOL].state().running == 1, "its slot is free when its replica says so"
    await replica.say(WorkFinished(work, "cancelled", PoolCounts(5, 0, 1)))
    last = await asked.last()
    assert isinstance(last, Broken)
    assert (last.code, last.counts) == ("timeout_total", PoolCounts(5, 0, 1, 1))
    assert stand.site.dispatchers[POOL].state().running == 0


# Replicas


async def test_a_replica_says_nothing_about_the_work_of_another(stand: Stand, replica: ScriptedReplica) -> None:
    other = ScriptedReplica(stand.replica_port, name="cn-guizhou-1")
    try:
        await other.start()
        await stand.live(2)
        asked = ask(stand)
        work = await work_of(replica)
        await other.say(
            WorkTokens(work, "forged", (9,), 1),
            WorkRefused(work, "engine_busy", "Not mine to refuse.", None),
            WorkFailed(work, "engine_failed", "Not mine to fail."),
            WorkFinished(work, "stop", PoolCounts(1, 0, 1)),
        )
        await asyncio.sleep(0.2)
        await answer(replica, work, "mine")
        assert text_of(await asked.frames()) == "mine"
    finally:
        await other.close()


async def test_an_older_incarnation_ends_what_it_has_and_is_shown_out(stand: Stand, replica: ScriptedReplica) -> None:
    asked = ask(stand)
    work = await work_of(replica)
    newer = ScriptedReplica(stand.replica_port)
    try:
        await newer.start()
        await until(lambda: len(stand.site.dispatchers[POOL].replicas(now_us())) == 2)
        later = ask(stand)
        await answer(newer, await work_of(newer), "new")
        assert text_of(await later.frames()) == "new"
        await answer(replica, work, "o", "ld")
        assert text_of(await asked.frames()) == "old"
        async with asyncio.timeout(SOON_S):
            await replica.over.wait()
        again = ScriptedReplica(stand.replica_port, incarnation=replica.incarnation)
        again.beats = False  # a beat that meets the end has an error of its own
        await again.start()
        async with asyncio.timeout(SOON_S):
            with pytest.raises(grpc.aio.AioRpcError, match="a newer replica has this name"):
                await again.ended()
        await again.close()
    finally:
        await newer.close()
    # Where nobody has the name any more, whoever had it is welcome.
    await until(lambda: not stand.site.dispatchers[POOL].replicas(now_us()))
    last = ScriptedReplica(stand.replica_port, incarnation=replica.incarnation)
    try:
        await last.start()
        await until(lambda: stand.site.dispatchers[POOL].state().replicas == 1)
        asked = ask(stand)
        await answer(last, await work_of(last), "back")
        assert text_of(await asked.frames()) == "back"
    finally:
        await last.close()


async def test_an_engine_that_is_unwell_gets_no_new_work_though_it_still_talks(
    stand: Stand, replica: ScriptedReplica
) -> None:
    first = ask(stand)
    work = await work_of(replica)
    replica.healthy = False
    await until(lambda: stand.site.dispatchers[POOL].state().replicas == 0)
    replica.beats = False
    await replica.say(WorkTokens(work, "still", (1,), 1))
    second = ask(stand)
    await until(lambda: stand.site.dispatchers[POOL].state().waiting == 1)
    await replica.say(WorkTokens(work, " going", (2,), 1))
    await asyncio.sleep(0.1)
    assert replica.got.empty()
    replica.healthy = replica.beats = True
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 2)))
    await answer(replica, await work_of(replica), "well")
    assert text_of(await first.frames()) == "still going"
    assert text_of(await second.frames()) == "well"


async def test_a_refusal_after_the_first_token_is_a_failure(stand: Stand, replica: ScriptedReplica) -> None:
    asked = ask(stand)
    work = await work_of(replica)
    await replica.say(WorkTokens(work, "Oh", (1,), 1), WorkRefused(work, "engine_busy", "No.", None))
    frame = await asked.last()
    assert isinstance(frame, Broken)
    assert frame.code == "engine_protocol"


async def test_chunks_are_not_called_ids(stand: Stand, replica: ScriptedReplica) -> None:
    asked = ask(stand)
    work = await work_of(replica)
    await replica.say(WorkStarted(work, 5), WorkTokens(work, "two tokens", (), 1))
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 2)))
    assert isinstance(await asked.last(), Done)
    record = await usage(stand)
    assert record["counted"] == "engine"
    assert record["counts"]["pool"]["generated"] == 2


HELLO = ReplicaHello(
    REPLICA_VERSION, ReplicaId("r-9"), POOL, "one", MODEL, 1, 2048, Identity("", "", "", "", ""), TOKEN, {}
)


@pytest.mark.parametrize(
    ("frame", "status"),
    [
        (replace(HELLO, version=REPLICA_VERSION + 1), grpc.StatusCode.PERMISSION_DENIED),
        (replace(HELLO, pool=PoolId("cn-shanghai")), grpc.StatusCode.PERMISSION_DENIED),
        (replace(HELLO, token="wrong"), grpc.StatusCode.PERMISSION_DENIED),
        (replace(HELLO, slots=0), grpc.StatusCode.INVALID_ARGUMENT),
        (ReplicaBeat(1, 0, 0, True), grpc.StatusCode.PERMISSION_DENIED),
    ],
    ids=["version", "pool", "token", "unreadable", "no greeting"],
)
async def test_a_replica_that_does_not_belong_here_is_told_so(
    stand: Stand, frame: ReplicaFrame, status: grpc.StatusCode
) -> None:
    async with open_channel(f"127.0.0.1:{stand.replica_port}") as channel:
        call = ReplicaPortStub(channel).Serve(timeout=SOON_S)
        await call.write(pb.ReplicaBatch(frames=[replica_frame_out(frame)]))
        with pytest.raises(grpc.aio.AioRpcError) as told:
            await call.read()
        assert told.value.code() is status
        assert TOKEN not in (told.value.details() or "")
    assert stand.site.dispatchers[POOL].state().replicas == 0


# Our own side


class FaultyShelf:
    """A source of manifests that fails in a way that nobody foresaw."""

    def __init__(self, current: Bundle | None, *, at_once: bool) -> None:
        self.current = current
        self.at_once = at_once

    def remembered(self, side: SideId, number: int, digest: Digest) -> Bundle | None:
        if self.at_once:
            raise RuntimeError("the words of some library")
        return None

    async def find(self, side: SideId, number: int, digest: Digest, timeout_ms: int) -> Bundle | None:
        raise RuntimeError("the words of some library")


@pytest.mark.parametrize("at_once", [True, False], ids=["at hand", "looked for"])
async def test_an_attempt_that_cannot_be_judged_is_refused(
    stand: Stand, replica: ScriptedReplica, monkeypatch: pytest.MonkeyPatch, at_once: bool
) -> None:
    shelf = FaultyShelf(stand.shelf.current, at_once=at_once)
    monkeypatch.setattr(stand.site, "_hands", replace(stand.site._hands, manifests=shelf))
    frame = await ask(stand).last()
    assert isinstance(frame, Refused)
    assert frame.code == "internal_error"
    assert "library" not in frame.detail
    assert replica.got.empty()
    assert not stand.site._permitting


async def test_without_a_record_nothing_runs(stand: Stand, replica: ScriptedReplica) -> None:
    stand.spool.close()
    assert await refused(stand) == "evidence_unavailable"
    assert replica.got.empty()


class Hasty:
    """The way to an engine whose caller thinks better of it at once."""

    def __init__(self, engine: EngineReplica) -> None:
        self.engine = engine

    def assign(self, work: int, generation: Generation, budget_ms: int) -> None:
        self.engine.assign(work, generation, budget_ms)
        self.engine.withdraw(work)

    def withdraw(self, work: int) -> None:
        self.engine.withdraw(work)

    def hold(self, work: int, *, held: bool) -> None:
        self.engine.hold(work, held=held)

    def expel(self) -> None:
        self.engine.expel()


async def test_work_that_is_withdrawn_before_its_first_step_frees_the_slot(stand: Stand) -> None:
    client = OpenAIEngine(OpenAIEngineSettings("http://127.0.0.1:9", "served", None))
    name, site = ReplicaId("engine"), stand.site
    engine = EngineReplica(site, POOL, name, ModelId(MODEL), 1, client, now_us)
    join(site, name, Hasty(engine))
    try:
        await stand.live(1)
        frame = await ask(stand).last()
        assert isinstance(frame, Done)
        assert frame.reason == "cancelled"
        assert site.dispatchers[POOL].state().running == 0
    finally:
        await engine.close()


def join(site: Site, name: ReplicaId, port: Hasty) -> None:
    site.replica_joined(POOL, Replica(name, "1", MODEL, 1, now_us(), beats=False), port)


async def test_a_usage_record_that_the_disk_does_not_take_is_told_and_the_answer_is_whole(
    stand: Stand, replica: ScriptedReplica, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    def told() -> list[str]:
        return [cast(Any, one).tidegate_fields["exception"] for one in caplog.records if one.msg == "spool_failed"]

    asked = ask(stand)
    work = await work_of(replica)
    await replica.say(WorkStarted(work, 5), WorkTokens(work, "whole", (1,), 1))
    with monkeypatch.context() as bad:
        bad.setattr(os, "write", failing)
        await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 1)))
        assert isinstance(await asked.last(), Done)
        await until(lambda: told() == ["SpoolBroken"])
