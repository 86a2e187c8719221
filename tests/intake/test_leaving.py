"""A scheduler that stops finishes its streams or gives them back: none ends without a word."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from orchestrator.bundles.assemble import Bundle
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import Digest, SideId
from orchestrator.spool.records import Position, RecordKind
from orchestrator.wire.convert_replica import WorkCancel, WorkStarted, WorkTokens
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, Tokens
from scheduler.intake.leaving import drain
from tests.intake.site_stand import POOL, ScriptedReplica, standing
from tests.intake.test_bad_days_of_a_site import SOON_S, answer, ask, text_of, until, work_of


async def test_what_runs_is_finished_what_waits_is_given_back_and_what_is_left_is_broken(tmp_path: Path) -> None:
    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        quick, slow = ask(stand), ask(stand)
        first, second = await work_of(replica), await work_of(replica)
        waiting = ask(stand)
        await until(lambda: stand.site.dispatchers[POOL].state().waiting == 1)
        for work in (first, second):
            await replica.say(WorkStarted(work, 5), WorkTokens(work, "a", (1,), 1))
        leaving = asyncio.create_task(drain(stand.site, stand.intake, 1_500))
        await until(lambda: stand.link.state().state == "draining")
        late = await ask(stand).last()
        assert isinstance(late, Refused)
        given_back = await waiting.last()
        assert isinstance(given_back, Refused)
        assert given_back.code == "draining"
        assert not leaving.done()
        await answer(replica, first, "b")
        finished = await quick.frames()
        assert (text_of(finished), type(finished[-1])) == ("ab", Done)
        cut = await slow.frames()
        assert [type(frame) for frame in cut] == [Accepted, Tokens, Broken]
        last = cut[-1]
        assert isinstance(last, Broken)
        assert (last.code, last.counts) == ("draining", PoolCounts(5, 0, 1, 1))
        async with asyncio.timeout(SOON_S):
            assert await replica.got.get() == WorkCancel(second)
            await leaving
        assert stand.site.busy() == 0
        await stand.site.close()
        records = [json.loads(e.data) for e in stand.spool.read_from() if e.kind == RecordKind("usage")]
        assert sorted(record["outcome"] for record in records) == ["broken", "complete", "refused"]
        await replica.close()


async def test_a_permit_that_nobody_waits_for_any_more_ends_with_the_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, ended = asyncio.Event(), asyncio.Event()

    async def find(side: SideId, number: int, digest: Digest, timeout_ms: int) -> Bundle | None:
        looking.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        return None

    async with standing(tmp_path) as stand:
        monkeypatch.setattr(stand.shelf, "find", find)
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        asked = ask(stand)
        async with asyncio.timeout(SOON_S):
            await looking.wait()
        await drain(stand.site, stand.intake, 0)
        last = await asked.last()
        assert isinstance(last, Refused)
        assert (last.code, stand.site.busy()) == ("draining", 0)
        assert not ended.is_set()
        await stand.site.close()
        assert ended.is_set()
        await replica.close()


@pytest.mark.parametrize("kept", [True, False], ids=["kept at that moment", "not kept yet"])
async def test_an_attempt_whose_record_is_being_kept_as_its_site_closes_is_not_queued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept: bool
) -> None:
    begun = asyncio.Event()
    keeping: asyncio.Future[Position] = asyncio.get_running_loop().create_future()

    def append(*_: object, **__: object) -> asyncio.Future[Position]:
        begun.set()
        return keeping

    async with standing(tmp_path) as stand:
        replica = ScriptedReplica(stand.replica_port)
        await replica.start()
        await stand.live(1)
        with monkeypatch.context() as held:
            held.setattr(stand.spool, "append_async", append)
            asked = ask(stand)
            async with asyncio.timeout(SOON_S):
                await begun.wait()
            if kept:
                keeping.set_result(stand.spool.end)
            await stand.site.close()
            await asyncio.sleep(0)
        assert keeping.cancelled() is not kept
        assert not stand.site._permitting
        assert stand.site.dispatchers[POOL].state().running == 0
        assert replica.got.empty()
        asked.task.cancel()
        await asyncio.gather(asked.task, return_exceptions=True)
        await replica.close()
