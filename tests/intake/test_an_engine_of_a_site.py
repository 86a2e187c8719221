"""An engine behind an intake: whatever happens to the work it has, its slot is free again and the edge has a word."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import aclosing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from node_agent.uplink.sending import Tally
from orchestrator.engines.chunks import TEXTS_BEYOND
from orchestrator.engines.generation import Delta, Finished, Generation, Message, Role, Sampling
from orchestrator.engines.openai import Answer, OpenAIEngine, OpenAIEngineSettings
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, ReplicaId
from orchestrator.wire.frames import Broken, Done, StreamFrame
from scheduler.intake.engine_replica import EngineReplica
from scheduler.intake.replica import Replica, Told
from tests.engines.test_hostile_engines import STREAM_HEAD, Server, engine_at, serving, sse, text
from tests.intake.engine_stand import SharedEngine, replica_of
from tests.intake.site_stand import MODEL, POOL, Stand, now_us, standing
from tests.intake.test_bad_days_of_a_site import until
from tests.sending import sent


async def last(stand: Stand) -> StreamFrame:
    return [frame async for frame in sent(stand.link.send, stand.sendable(), Tally())][-1]


async def test_a_failure_of_ours_in_the_midst_of_an_answer_breaks_it_and_frees_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context.get("exception")))

    def failing(*_: object) -> None:
        raise ZeroDivisionError

    async with (
        SharedEngine().serving() as engine,
        standing(tmp_path) as stand,
        replica_of(stand, engine, "engine", 1) as replica,
    ):
        await stand.live(1)
        with monkeypatch.context() as bad:
            bad.setattr(stand.site, "work_tokens", failing)
            end = await last(stand)
        assert isinstance(end, Broken)
        assert end.code == "engine_protocol"
        await until(lambda: engine.running == 0 and stand.site.busy() == 0)
        assert (replica.working, replica.engine.in_flight) == ({}, 0)
        assert [type(failure) for failure in failures] == [ZeroDivisionError], "and somebody hears of it"
        assert isinstance(await last(stand), Done)


async def test_work_that_cannot_be_begun_by_a_failure_of_ours_is_broken_off_and_frees_the_slot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> None:
        raise ZeroDivisionError

    async with (
        SharedEngine().serving() as engine,
        standing(tmp_path) as stand,
        replica_of(stand, engine, "engine", 1) as replica,
    ):
        await stand.live(1)
        with monkeypatch.context() as bad:
            bad.setattr(OpenAIEngine, "ask", failing)
            end = await last(stand)
        assert isinstance(end, Broken)
        assert end.code == "internal_error"
        await until(lambda: stand.site.busy() == 0)
        assert (replica.working, replica.engine.in_flight) == ({}, 0)
        assert isinstance(await last(stand), Done)


async def test_what_waits_for_a_slot_has_the_connection_of_what_had_it(tmp_path: Path) -> None:
    async with SharedEngine().serving() as engine, standing(tmp_path, waiting_max=64) as stand:
        settings = OpenAIEngineSettings(f"http://127.0.0.1:{engine.port}", "served", connections_max=1)
        replica = EngineReplica(stand.site, POOL, ReplicaId("engine"), MODEL, 1, OpenAIEngine(settings), now_us)
        probing = asyncio.create_task(replica.run())
        try:
            await stand.live(1)
            # With one connection for it, one that was given out before it is free would be refused.
            ends = await asyncio.gather(*(last(stand) for _ in range(12)))
        finally:
            probing.cancel()
            await asyncio.gather(probing, return_exceptions=True)
            await replica.close()
    assert {type(end) for end in ends} == {Done}


async def test_a_slot_that_others_had_is_looked_for_while_work_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scheduler.intake.engine_replica.PROBE_EVERY_S", 3_600.0)
    async with SharedEngine().serving() as engine, standing(tmp_path) as stand:
        engine.others = 1
        async with replica_of(stand, engine, "engine", 1):
            await stand.live(1)
            asked = asyncio.create_task(last(stand))
            await until(lambda: stand.site.dispatchers[POOL].waits)
            assert not engine.texts, "the only slot is somebody else's"
            engine.others = 0
            assert isinstance(await asked, Done), "and nobody waits an hour for the next probe"


@pytest.mark.parametrize("times", [1, 3])
async def test_work_that_is_withdrawn_is_told_of_once_and_not_before_the_caller_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, times: int
) -> None:
    told: list[tuple[int, str, PoolCounts]] = []
    async with (
        SharedEngine().serving() as engine,
        standing(tmp_path) as stand,
        replica_of(stand, engine, "engine", 1) as replica,
    ):
        await stand.live(1)
        engine.go.clear()
        asked = asyncio.create_task(last(stand))
        await until(lambda: any(working.reply for working in replica.working.values()))
        await until(_some_was_made(stand))
        (work,) = replica.working
        finished = stand.site.work_finished

        def noting(work: int, reason: str, counts: PoolCounts) -> None:
            told.append((work, reason, counts))
            finished(work, reason, counts)

        monkeypatch.setattr(stand.site, "work_finished", noting)
        for _ in range(times):
            replica.withdraw(work)
        assert told == []
        assert isinstance(await asked, Done)
        await until(lambda: engine.running == 0)
    assert told == [(work, "cancelled", PoolCounts(generated=1))]


def _some_was_made(stand: Stand) -> Callable[[], bool]:
    return lambda: any(running.generated for running in stand.site._running.values())


@contextmanager
def no_collector() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def answers() -> int:
    """How many answers of engines there are, reachable or not."""
    return sum(1 for one in gc.get_objects() if type(one) is Answer)


@pytest.mark.parametrize("withdrawn", [False, True])
async def test_an_answer_that_has_ended_leaves_no_garbage(tmp_path: Path, withdrawn: bool) -> None:
    async with (
        SharedEngine().serving() as engine,
        standing(tmp_path) as stand,
        replica_of(stand, engine, "engine", 1) as replica,
    ):
        await stand.live(1)
        if withdrawn:
            engine.go.clear()
        with no_collector():
            asked = asyncio.create_task(last(stand))
            if withdrawn:
                await until(_some_was_made(stand))
                for work in tuple(replica.working):
                    replica.withdraw(work)
            assert isinstance(await asked, Done)
            await until(lambda: engine.running == 0)
            assert answers() == 0


async def test_an_answer_that_is_awaited_leaves_no_garbage() -> None:
    generation = Generation(ModelId("m"), (Message(Role.USER, "Hello"),), Sampling())
    async with SharedEngine().serving() as engine:
        client = OpenAIEngine(OpenAIEngineSettings(f"http://127.0.0.1:{engine.port}", "served"))
        try:
            with no_collector():
                assert [type(event) async for event in client.generate(generation)][-1] is Finished
                engine.go.clear()
                async with aclosing(client.generate(generation)) as events:
                    assert type(await anext(events)) is Delta
                assert answers() == 0
        finally:
            await client.close()


async def test_an_engine_that_never_stops_is_ended_by_the_declared_context(tmp_path: Path) -> None:
    context = 50

    async def go_on(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(sse(text("a")))
            await writer.drain()

    async with serving(go_on) as server, standing(tmp_path) as stand, engine_at(server.port) as engine:
        replica = EngineReplica(
            stand.site, POOL, ReplicaId("engine"), MODEL, 1, engine, now_us, context_tokens=lambda: context
        )
        joined = Replica(ReplicaId("engine"), "1", MODEL, 1, now_us(), beats=False, told=Told())
        stand.site.replica_joined(POOL, joined, replica)
        await stand.live(1)
        endless = Generation(MODEL, (Message(Role.USER, "Hello"),), Sampling())
        tally = Tally()
        *_, end = [frame async for frame in sent(stand.link.send, stand.sendable(generation=endless), tally)]
        assert isinstance(end, Broken)
        assert (end.code, tally.received) == ("engine_protocol", context + TEXTS_BEYOND)
        await server.gone.wait()
        await replica.close()
