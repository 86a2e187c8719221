"""What a replica that dials in says, several things in one message: each is heard, in its order."""

from __future__ import annotations

import asyncio
from pathlib import Path

from orchestrator.ledger.usage import PoolCounts
from orchestrator.wire.convert_replica import ReplicaBeat, WorkFinished, WorkStarted, WorkTokens
from orchestrator.wire.frames import Done
from scheduler.intake.replica import ReplicaCondition
from tests.intake.site_stand import POOL, ScriptedReplica, Stand, now_us, standing
from tests.intake.test_bad_days_of_a_site import SOON_S, answer, ask, text_of, until, work_of


def condition(stand: Stand) -> list[ReplicaCondition]:
    return [found for _, found in stand.site.dispatchers[POOL].replicas(now_us())]


async def test_what_comes_with_the_greeting_is_heard(tmp_path: Path) -> None:
    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.say()
        await replica.say(replica._hello, ReplicaBeat(1, 0, 0, False))
        await until(lambda: condition(stand) == [ReplicaCondition.DOWN])
        await replica.close()


async def test_a_second_greeting_ends_the_connection(tmp_path: Path) -> None:
    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        await replica.say(ReplicaBeat(1, 0, 0, True), replica._hello)
        async with asyncio.timeout(SOON_S):
            await replica.over.wait()
        await until(lambda: condition(stand) == [])
        await replica.close()


async def test_an_answer_in_one_message_is_whole_and_in_order(tmp_path: Path) -> None:
    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        asked = ask(stand)
        work = await work_of(replica)
        await replica.say(
            WorkStarted(work, 5),
            WorkTokens(work, "a", (1,), 1),
            WorkTokens(work + 1, "of nobody here", (9,), 1),
            ReplicaBeat(2, 1, 0, True),
            WorkTokens(work, "b", (2,), 1),
            WorkFinished(work, "stop", PoolCounts(5, 0, 2)),
            WorkTokens(work, "too late", (3,), 1),
        )
        frames = await asked.frames()
        assert (text_of(frames), type(frames[-1])) == ("ab", Done)
        await replica.close()


async def test_one_that_was_silent_and_says_that_it_is_unwell_gets_no_work(tmp_path: Path) -> None:
    async with standing(tmp_path, dead_ms=30_000) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        replica.beats = False
        await until(lambda: condition(stand) == [ReplicaCondition.SUSPECT])
        asked = ask(stand)
        await until(lambda: stand.site.dispatchers[POOL].state().waiting == 1)
        await replica.say(ReplicaBeat(2, 0, 0, False))
        await until(lambda: condition(stand) == [ReplicaCondition.DOWN])
        assert replica.got.empty()
        assert stand.site.dispatchers[POOL].state().waiting == 1
        replica.beats = True
        await answer(replica, await work_of(replica), "well")
        assert text_of(await asked.frames()) == "well"
        await replica.close()


async def test_what_one_says_of_anothers_work_is_not_heard(tmp_path: Path) -> None:
    async with standing(tmp_path) as stand:
        replicas = [ScriptedReplica(stand.replica_port, name=f"cn-guizhou-{number}") for number in range(2)]
        for replica in replicas:
            await replica.start()
        await stand.live(2)
        asked = ask(stand)
        await until(lambda: any(not replica.got.empty() for replica in replicas))
        idle, busy = sorted(replicas, key=lambda replica: replica.got.qsize())
        work = await work_of(busy)
        # It has said this when its load is heard, which comes after it.
        idle.load = (77, None, None)
        idle.beats = False
        await idle.say(WorkTokens(work, "stolen", (9,), 1), ReplicaBeat(2, 0, 0, True, *idle.load))
        await until(lambda: (stand.site.dispatchers[POOL].state().queued_tokens or 0) >= 77)
        await answer(busy, work, "own")
        assert text_of(await asked.frames()) == "own"
        for replica in replicas:
            await replica.close()
