"""What edges hear of a pool over real sockets: how full it is, what they may start, and how their answers fared."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path

import pytest
import pytest_asyncio

from node_agent.uplink.sending import Sendable, Tally
from node_agent.uplink.session_link import SessionLink
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.fleet import PrefixCache
from orchestrator.placement.sight import TOKENS_MAX
from orchestrator.wire.convert_replica import WorkAssign, WorkFinished, WorkStarted, WorkTokens
from orchestrator.wire.frames import Done, Load, StreamFrame
from scheduler.intake import engine_replica
from tests.intake.engine_stand import SharedEngine, replica_of
from tests.intake.site_stand import EDGE, MODEL, POOL, SCHEDULER, ScriptedReplica, Stand, now_ms, standing
from tests.sending import sent
from tests.values import replace

SOON_S = 5.0
WAIT_US = 60_000
LONG = "A long preface that many prompts of this tenant share. " * 400


@pytest_asyncio.fixture
async def stand(tmp_path: Path) -> AsyncIterator[Stand]:
    async with standing(tmp_path, waiting_max=4) as made:
        yield made


@pytest_asyncio.fixture
async def replica(stand: Stand) -> AsyncIterator[ScriptedReplica]:
    made = ScriptedReplica(stand.replica_port)
    await made.start()
    await stand.live(1)
    yield made
    await made.close()


@asynccontextmanager
async def another_link(stand: Stand) -> AsyncIterator[SessionLink]:
    """One more session with the same intake."""
    link = SessionLink(EDGE, SCHEDULER, f"127.0.0.1:{stand.running.ports[0]}", now_ms)
    running = asyncio.create_task(link.run())
    try:
        async with asyncio.timeout(SOON_S):
            while not link.state().accepts_work:  # noqa: ASYNC110 - the link is asked
                await asyncio.sleep(0.01)
        yield link
    finally:
        await link.close()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def heard(link: SessionLink, like: Callable[[Load], bool]) -> Load:
    """Wait until the edge has heard of such a load."""
    async with asyncio.timeout(SOON_S):
        while True:
            found = link.load(POOL)
            if found is not None and like(found):
                return found
            await asyncio.sleep(0.01)


def ask(stand: Stand, link: SessionLink | None = None, sendable: Sendable | None = None) -> asyncio.Task[StreamFrame]:
    """Send an attempt; the task gives the last frame."""

    async def read() -> StreamFrame:
        async with aclosing(sent((link or stand.link).send, sendable or stand.sendable(), Tally())) as frames:
            return [frame async for frame in frames][-1]

    return asyncio.create_task(read())


async def work_of(replica: ScriptedReplica) -> int:
    async with asyncio.timeout(SOON_S):
        while not isinstance(frame := await replica.got.get(), WorkAssign):
            pass
    return frame.work


async def until(what: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON_S):
        while not what():  # noqa: ASYNC110 - the site is asked
            await asyncio.sleep(0.01)


async def done(asked: asyncio.Task[StreamFrame]) -> Done:
    async with asyncio.timeout(SOON_S):
        frame = await asked
    assert isinstance(frame, Done)
    return frame


# How full


async def test_a_report_carries_what_the_beats_say(stand: Stand, replica: ScriptedReplica) -> None:
    replica.load = (321, 4_096, 1_000)
    asked = ask(stand)
    work = await work_of(replica)
    load = await heard(stand.link, lambda load: load.kv_used_tokens is not None)
    assert (load.kv_tokens, load.kv_used_tokens) == (4_096, 1_000)
    assert load.queued_tokens is not None
    assert load.queued_tokens >= 321
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 0)))
    await done(asked)


async def test_a_figure_beyond_all_measure_ends_no_session(stand: Stand, replica: ScriptedReplica) -> None:
    replica.load = ((1 << 64) - 1,) * 3
    other = ScriptedReplica(stand.replica_port, name="cn-guizhou-1")
    other.load = replica.load
    await other.start()
    try:
        await stand.live(2)
        asked = ask(stand)
        await heard(stand.link, lambda load: load.kv_tokens == 2 * TOKENS_MAX)
        assert stand.link.state().epoch == 1
        asked.cancel()
    finally:
        await other.close()


async def test_what_one_replica_does_not_say_is_unknown_on_the_wire(stand: Stand, replica: ScriptedReplica) -> None:
    replica.load = (0, 4_096, 1_000)
    other = ScriptedReplica(stand.replica_port, name="cn-guizhou-1")
    other.load = (0, None, None)
    await other.start()
    try:
        await stand.live(2)
        asked = ask(stand)
        load = await heard(stand.link, lambda load: load.running == 1 and load.queued_tokens is not None)
        assert (load.kv_tokens, load.kv_used_tokens) == (None, None)
        asked.cancel()
    finally:
        await other.close()


async def test_a_prompt_that_was_not_taken_in_is_counted_until_its_first_token(
    stand: Stand, replica: ScriptedReplica
) -> None:
    asked = ask(stand)
    work = await work_of(replica)
    await replica.say(WorkStarted(work, 700))
    await heard(stand.link, lambda load: load.queued_tokens == 700)
    await replica.say(WorkTokens(work, "Yes", (1,), 1))
    await heard(stand.link, lambda load: load.queued_tokens == 0 and load.running == 1)
    await replica.say(WorkFinished(work, "stop", PoolCounts(700, 0, 1)))
    await done(asked)


# How it fared


async def test_an_answer_says_how_long_it_waited_and_what_ran_beside_it(stand: Stand, replica: ScriptedReplica) -> None:
    asked = [ask(stand), ask(stand)]
    works = [await work_of(replica), await work_of(replica)]
    waiting = ask(stand)
    await until(lambda: stand.site.dispatchers[POOL].state().waiting == 1)
    for work in works:
        await replica.say(WorkStarted(work, 5), WorkTokens(work, "a", (1,), 1))
    await asyncio.sleep(WAIT_US / 1_000_000)
    await replica.say(WorkFinished(works[0], "stop", PoolCounts(5, 0, 1)))
    third = await work_of(replica)
    await replica.say(WorkStarted(third, 5), WorkTokens(third, "b", (1,), 1))
    await replica.say(WorkFinished(third, "stop", PoolCounts(5, 0, 1)))
    late = await done(waiting)
    assert late.queued_us is not None
    assert late.queued_us >= WAIT_US
    assert late.beside == 1
    await replica.say(WorkFinished(works[1], "stop", PoolCounts(5, 0, 1)))
    ends = [await done(one) for one in asked]
    assert sorted(end.beside or 0 for end in ends) == [0, 1]
    assert all(end.queued_us is not None and end.queued_us < late.queued_us + WAIT_US for end in ends)


# What they may start


async def test_openings_are_the_room_and_shrink_with_what_runs(stand: Stand, replica: ScriptedReplica) -> None:
    assert (await heard(stand.link, lambda load: load.replicas == 1)).openings == 6, "two slots and four places"
    asked = ask(stand)
    work = await work_of(replica)
    await heard(stand.link, lambda load: load.openings == 5)
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 0)))
    await done(asked)
    await heard(stand.link, lambda load: load.openings == 6)


async def test_openings_of_all_sessions_fit_and_follow_demand(stand: Stand, replica: ScriptedReplica) -> None:
    async with another_link(stand) as other:
        assert sum(load.openings or 0 for load in loads_now(stand)) == 6
        asked = [ask(stand), ask(stand)]
        works = [await work_of(replica), await work_of(replica)]
        await heard(stand.link, lambda load: load.running == 2 and load.openings == 3)
        mine, theirs = sorted((load.openings or 0 for load in loads_now(stand)), reverse=True)
        assert (mine, theirs) == (3, 1), "who asks more has more, and the other its one"
        theirs_asked = ask(stand, other)
        await until(lambda: stand.site.dispatchers[POOL].state().waiting == 1)
        assert sum(load.openings or 0 for load in loads_now(stand)) == 3
        for work in (*works, await answered(replica, works[0])):
            await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 0)))
        await asyncio.gather(*(done(one) for one in (*asked, theirs_asked)))
    # A session that is gone has none, and the other has them all.
    await until(lambda: [load.openings for load in loads_now(stand)] == [6])


async def answered(replica: ScriptedReplica, work: int) -> int:
    """End `work`, and return the one that takes its slot."""
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, 0)))
    return await work_of(replica)


def loads_now(stand: Stand) -> list[Load]:
    """What each live session would be told at this moment."""
    stand.site.report(POOL)
    return [load for port in stand.intake.ports if port.edge is not None for load in stand.site.loads(port)]


async def test_without_a_replica_or_while_draining_nothing_may_be_started(
    stand: Stand, replica: ScriptedReplica
) -> None:
    stand.site.draining = True
    assert [load.openings for load in loads_now(stand)] == [0]
    stand.site.draining = False
    await replica.close()
    await heard(stand.link, lambda load: load.replicas == 0 and load.openings == 0)


async def test_a_session_that_wakes_up_hears_at_once_what_it_may_have(stand: Stand, replica: ScriptedReplica) -> None:
    async with another_link(stand) as other:
        asked = ask(stand)
        work = await work_of(replica)
        await heard(stand.link, lambda load: load.running == 1)
        before = await heard(other, lambda load: True)
        theirs = ask(stand, other)
        their_work = await work_of(replica)
        after = await heard(other, lambda load: load.number > before.number)
        assert after.openings is not None
        for one in (work, their_work):
            await replica.say(WorkFinished(one, "stop", PoolCounts(5, 0, 0)))
        await done(asked)
        await done(theirs)


# Engines alone, as a scheduler without Ray has them


def saying(text: str) -> Generation:
    return Generation(MODEL, (Message(Role.USER, text),), Sampling(max_tokens=8))


def share_prefixes(stand: Stand) -> None:
    """The newest bundle declares that the pool's engines share prefixes."""
    bundle = stand.shelf.current
    assert bundle is not None
    pools = tuple(
        replace(pool, prefix_cache=PrefixCache.SHARED) if pool.id == POOL else pool for pool in bundle.fleet.pools
    )
    stand.shelf.current = replace(bundle, fleet=replace(bundle.fleet, pools=pools))


@pytest_asyncio.fixture
async def engines(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[tuple[SharedEngine, SharedEngine]]:
    """Two engines as the replicas e-1 and e-2, of four slots each."""
    monkeypatch.setattr(engine_replica, "PROBE_EVERY_S", 0.05)
    async with AsyncExitStack() as stack:
        found = [await stack.enter_async_context(SharedEngine().serving()) for _ in range(2)]
        for number, engine in enumerate(found, 1):
            await stack.enter_async_context(replica_of(stand, engine, f"e-{number}", 4))
        await stand.live(2)
        yield found[0], found[1]


async def test_loads_with_openings_reach_an_edge_from_engines_alone(
    stand: Stand, engines: tuple[SharedEngine, SharedEngine]
) -> None:
    load = await heard(stand.link, lambda load: load.replicas == 2)
    assert (load.slots, load.openings) == (8, 12)
    assert (load.queued_tokens, load.kv_tokens, load.kv_used_tokens) == (0, 16_000, 4_000)
    end = await done(ask(stand))
    assert end.counts.generated == 2
    assert (end.queued_us is not None, end.beside) == (True, 0)


async def test_what_others_run_in_an_engine_is_not_granted(
    stand: Stand, engines: tuple[SharedEngine, SharedEngine]
) -> None:
    first, second = engines
    first.others = 3
    await until(lambda: stand.site.dispatchers[POOL].state().free == 5)
    assert [load.openings for load in loads_now(stand)] == [9]
    for engine in engines:
        engine.go.clear()
    asked = [ask(stand) for _ in range(5)]
    await until(lambda: first.running + second.running == 5)
    assert (first.running, second.running) == (1, 4)
    for engine in engines:
        engine.go.set()
    for one in asked:
        await done(one)


async def test_a_prompt_goes_to_the_engine_that_holds_its_prefix(
    stand: Stand, engines: tuple[SharedEngine, SharedEngine]
) -> None:
    share_prefixes(stand)
    first, second = engines
    assert (await done(ask(stand, sendable=stand.sendable(generation=saying(LONG))))).counts.cached == 0
    for engine in engines:
        engine.go.clear()
    busy = ask(stand, sendable=stand.sendable(generation=saying("Hello")))
    await until(lambda: first.running + second.running == 1)
    # By load alone the idle one would be next.
    again = ask(stand, sendable=stand.sendable(generation=saying(LONG + "And now?")))
    await until(lambda: first.running + second.running == 2)
    for engine in engines:
        engine.go.set()
    assert (await done(again)).counts.cached > 0
    await done(busy)
    assert sorted(len(engine.texts) for engine in engines) == [0, 3]


async def test_an_engine_without_a_page_has_its_declared_slots(stand: Stand, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_replica, "PROBE_EVERY_S", 0.05)
    async with SharedEngine(told=False).serving() as engine, replica_of(stand, engine, "e-1", 4):
        load = await heard(stand.link, lambda load: load.replicas == 1)
        assert (load.slots, load.openings, load.kv_tokens) == (4, 8, None)
        engine.others = 3
        assert isinstance(await done(ask(stand)), Done)
        assert stand.site.dispatchers[POOL].state().free == 4


async def test_an_engine_that_stops_telling_is_unknown_again(
    stand: Stand, engines: tuple[SharedEngine, SharedEngine]
) -> None:
    first, _ = engines
    first.others = 4
    await until(lambda: stand.site.dispatchers[POOL].state().free == 4)
    first.told = False
    await until(lambda: stand.site.dispatchers[POOL].state().free == 8)
    assert stand.site.dispatchers[POOL].state().kv_tokens is None
    first.told = True
    await until(lambda: stand.site.dispatchers[POOL].state().free == 4)
    first.up = False
    await heard(stand.link, lambda load: load.replicas == 1)
