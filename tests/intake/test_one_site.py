"""One site over real sockets: the edge's own link, the second permit, the queue, and replicas that come and go."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from node_agent.uplink.sending import Sendable, Tally
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import PoolId
from orchestrator.policy.labels import Personal
from orchestrator.spool.records import Rank, RecordId, RecordKind
from orchestrator.wire.convert_replica import WorkAssign, WorkCancel, WorkFinished, WorkRefused, WorkStarted, WorkTokens
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, StreamFrame, Tokens
from scheduler.intake import sessions
from scheduler.intake.grants import Grants
from scheduler.intake.site import Site
from tests.intake.site_stand import POOL, ScriptedReplica, Stand, fresh, now_ms, standing
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


async def frames_of(stand: Stand, sendable: Sendable, tally: Tally | None = None) -> list[StreamFrame]:
    """Everything that comes back for one attempt."""
    async with asyncio.timeout(SOON_S), aclosing(sent(stand.link.send, sendable, tally or Tally())) as frames:
        return [frame async for frame in frames]


async def refusal(stand: Stand, sendable: Sendable) -> Refused:
    *before, frame = await frames_of(stand, sendable)
    assert all(isinstance(one, Accepted) for one in before)
    assert isinstance(frame, Refused)
    return frame


async def work_of(replica: ScriptedReplica) -> int:
    async with asyncio.timeout(SOON_S):
        frame = await replica.got.get()
        while not isinstance(frame, WorkAssign):
            frame = await replica.got.get()
    return frame.work


async def records(stand: Stand, kind: str, count: int) -> list[dict[str, Any]]:
    async with asyncio.timeout(SOON_S):
        while True:
            found = [json.loads(entry.data) for entry in stand.spool.read_from() if entry.kind == kind]
            if len(found) >= count:
                return found
            await asyncio.sleep(0.02)


async def answer(replica: ScriptedReplica, work: int, *words: str) -> None:
    await replica.say(WorkStarted(work, 5))
    for number, word in enumerate(words):
        await replica.say(WorkTokens(work, word, (number,), 1))
    await replica.say(WorkFinished(work, "stop", PoolCounts(5, 0, len(words))))


async def test_an_answer_streams_and_both_sides_count(stand: Stand, replica: ScriptedReplica) -> None:
    tally = Tally()
    asking = asyncio.create_task(frames_of(stand, stand.sendable(), tally))
    await answer(replica, await work_of(replica), "Good", " ", "morning")
    frames = await asking
    assert isinstance(frames[0], Accepted)
    assert "".join(frame.text for frame in frames if isinstance(frame, Tokens)) == "Good morning"
    assert isinstance(frames[-1], Done)
    assert frames[-1].counts == PoolCounts(5, 0, 3, 3)
    assert (tally.received, tally.delivered) == (3, 3)
    (usage,) = await records(stand, "usage", 1)
    assert usage["counts"] == {
        "pool": {"prompt": 5, "cached": 0, "generated": 3, "sent": 3, "reported": False},
        "edge": {"received": 3, "delivered": 3, "reported": True},
    }
    (decision,) = await records(stand, "decision", 1)
    assert (decision["program"], decision["outcome"]) == ("scheduler", "permitted")


async def test_a_tenant_who_leaves_frees_the_slot_within_a_second(stand: Stand, replica: ScriptedReplica) -> None:
    frames = sent(stand.link.send, stand.sendable(), Tally())
    first = asyncio.create_task(anext(frames))
    work = await work_of(replica)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(1.0):
        assert await replica.got.get() == WorkCancel(work)
    await replica.say(WorkFinished(work, "cancelled", PoolCounts(5, 0, 0)))
    (usage,) = await records(stand, "usage", 1)
    assert usage["outcome"] == "cancelled"
    assert stand.site.dispatchers[POOL].state().running == 0


async def test_a_replica_that_dies_breaks_its_answer_and_is_taken_in_again(
    stand: Stand, replica: ScriptedReplica
) -> None:
    asking = asyncio.create_task(frames_of(stand, stand.sendable()))
    work = await work_of(replica)
    await replica.say(WorkTokens(work, "Go", (1,), 1))
    await asyncio.sleep(0.1)
    await replica.close()
    frames = await asking
    assert isinstance(frames[-1], Broken)
    assert frames[-1].code == "engine_failed"
    again = ScriptedReplica(stand.replica_port)
    try:
        await again.start()
        await stand.live(1)
        asking = asyncio.create_task(frames_of(stand, stand.sendable()))
        await answer(again, await work_of(again), "Yes")
        assert isinstance((await asking)[-1], Done)
        assert stand.site.dispatchers[POOL].starts == {"cn-guizhou-0": 2}
    finally:
        await again.close()


async def test_a_replica_that_falls_silent_is_given_up(stand: Stand, replica: ScriptedReplica) -> None:
    asking = asyncio.create_task(frames_of(stand, stand.sendable()))
    await work_of(replica)
    replica.beats = False
    frames = await asking
    assert isinstance(frames[-1], Broken)
    assert (await refusal(stand, stand.sendable())).code == "no_replica"


async def test_a_full_queue_is_a_clear_refusal(stand: Stand, replica: ScriptedReplica) -> None:
    taken = [asyncio.create_task(frames_of(stand, stand.sendable())) for _ in range(4)]
    works = [await work_of(replica), await work_of(replica)]
    async with asyncio.timeout(SOON_S):
        while stand.site.dispatchers[POOL].state().waiting < 2:  # noqa: ASYNC110 - the site is asked
            await asyncio.sleep(0.01)
    refused = await refusal(stand, stand.sendable())
    assert refused.code == "engine_busy"
    assert "full" in refused.detail
    for work in works:
        await answer(replica, work, "a")
    for _ in range(2):
        await answer(replica, await work_of(replica), "b")
    ended = await asyncio.gather(*taken)
    assert all(isinstance(frames[-1], Done) for frames in ended)


async def test_an_engine_that_refuses_says_which_field(stand: Stand, replica: ScriptedReplica) -> None:
    asking = asyncio.create_task(refusal(stand, stand.sendable()))
    work = await work_of(replica)
    await replica.say(WorkRefused(work, "context_length_exceeded", "5,000 tokens, room for 2,048.", "messages"))
    refused = await asking
    assert (refused.code, refused.param) == ("context_length_exceeded", "messages")


async def test_a_replica_with_a_wrong_token_is_not_taken_in(stand: Stand) -> None:
    stranger = ScriptedReplica(stand.replica_port, token="wrong")
    await stranger.start()
    await asyncio.sleep(0.3)
    assert stand.site.dispatchers[POOL].state().replicas == 0
    await stranger.close()


async def test_forged_facts_are_refused_with_an_alarm(stand: Stand, replica: ScriptedReplica) -> None:
    honest = stand.sendable()
    milder = replace(honest.facts, label=replace(honest.facts.label, origin=frozenset()))
    forged = replace(honest, facts=milder)
    assert (await refusal(stand, forged)).code == "policy_mismatch"
    assert (await refusal(stand, stand.sendable(signature=b"0" * 64))).code == "policy_mismatch"
    assert "policy_mismatch" in stand.site.alarms
    assert replica.got.empty()


async def test_facts_that_the_cited_law_refuses_are_refused_with_an_alarm(
    stand: Stand, replica: ScriptedReplica
) -> None:
    honest = stand.sendable()
    personal = replace(honest.facts, label=replace(honest.facts.label, personal=Personal.SENSITIVE))
    assert (await refusal(stand, stand.sendable(facts=personal))).code == "policy_mismatch"
    assert "policy_mismatch" in stand.site.alarms
    assert replica.got.empty()


async def test_what_is_stale_is_refused_without_an_alarm(stand: Stand, replica: ScriptedReplica) -> None:
    honest = stand.sendable()
    unknown = replace(honest.citation, manifest=99)
    assert (await refusal(stand, stand.sendable(citation=unknown))).code == "policy_stale"
    skewed = replace(honest.citation, now_ms=now_ms() - 31_000)
    assert (await refusal(stand, stand.sendable(citation=skewed))).code == "policy_stale"
    older = replace(honest.citation, permit_version=0)
    assert (await refusal(stand, stand.sendable(citation=older))).code == "policy_stale"
    assert stand.site.alarms == {}
    assert replica.got.empty()


async def test_newer_law_of_the_pools_side_wins_without_an_alarm(stand: Stand, replica: ScriptedReplica) -> None:
    without = stand.example.bundle(without_pool="eu-frankfurt")
    newest = fresh(without, stand.key)
    kept = tuple(pool for pool in newest.fleet.pools if pool.id != POOL)
    stand.shelf.current = replace(newest, fleet=replace(newest.fleet, pools=kept))
    assert (await refusal(stand, stand.sendable())).code == "policy_newer"
    revoked = replace(newest, revoked=replace(newest.revoked, pools=frozenset({POOL})))
    stand.shelf.current = revoked
    assert (await refusal(stand, stand.sendable())).code == "policy_newer"
    stand.shelf.current = None
    assert (await refusal(stand, stand.sendable())).code == "no_bundle"
    assert stand.site.alarms == {}


async def test_a_pool_of_another_site_is_refused(stand: Stand, replica: ScriptedReplica) -> None:
    elsewhere = stand.sendable(pool=PoolId("cn-shanghai"))
    assert (await refusal(stand, elsewhere)).code == "no_replica"


async def test_an_attempt_that_cannot_be_read_suffers_alone(stand: Stand, replica: ScriptedReplica) -> None:
    broken = replace(stand.sendable(), key_id="")  # type: ignore[arg-type]
    assert (await refusal(stand, broken)).code == "policy_stale"
    asking = asyncio.create_task(frames_of(stand, stand.sendable()))
    await answer(replica, await work_of(replica), "fine")
    assert isinstance((await asking)[-1], Done)
    assert stand.link.state().epoch == 1, "the session goes on"


async def test_a_draining_scheduler_takes_no_new_work(stand: Stand, replica: ScriptedReplica) -> None:
    asking = asyncio.create_task(frames_of(stand, stand.sendable()))
    work = await work_of(replica)
    stand.site.draining = True
    assert (await refusal(stand, stand.sendable())).code == "draining"
    await answer(replica, work, "to", " the", " end")
    assert isinstance((await asking)[-1], Done)


async def test_the_record_of_the_site_says_what_went_in_and_what_was_done(
    stand: Stand, replica: ScriptedReplica
) -> None:
    sendable = stand.sendable(personal=True)
    asked = asyncio.create_task(frames_of(stand, sendable))
    await answer(replica, await work_of(replica), "Yes")
    await asked
    (record,) = await records(stand, "decision", 1)
    assert sendable.inputs is not None
    done = {one["obligation"]: one["did"] for one in record["discharged"]}
    assert done["prove_no_domestic_input:CN"] == f"input manifest {sendable.inputs.digest} states none of CN"
    assert done["retain:P6M"] == "retention class P6M on this record"
    assert record["inputs"] == json.loads(sendable.inputs.to_bytes())
    assert (record["program"], record["asked"], record["labels"]) == ("scheduler", None, None)


async def test_inputs_that_are_not_accounted_for_are_refused_with_an_alarm(
    stand: Stand, replica: ScriptedReplica
) -> None:
    whole = stand.sendable(personal=True)
    messages = (*whole.generation.messages, *whole.generation.messages)
    smuggled = replace(whole, generation=replace(whole.generation, messages=messages))
    refused = await refusal(stand, smuggled)
    assert refused.code == "policy_mismatch"
    assert "policy_mismatch" in stand.site.alarms
    without = await refusal(stand, stand.sendable(personal=True, inputs=None))
    assert without.code == "policy_newer"
    outcomes = [record["outcome"] for record in await records(stand, "decision", 2)]
    assert outcomes == ["policy_mismatch", "policy_newer"]
    assert replica.got.empty(), "no replica saw any of it"


@pytest.mark.parametrize(
    ("end", "word"),
    [
        (lambda site, work: site.work_finished(work, "stop", PoolCounts(5, 0, 1)), Done),
        (lambda site, work: site.work_failed(work, "engine_failed", "It failed."), Broken),
        (lambda site, work: site.work_refused(work, "engine_busy", "It is busy.", None), Refused),
    ],
    ids=["done", "broken", "refused"],
)
async def test_what_fails_here_at_the_end_of_an_attempt_costs_its_edge_no_word(
    stand: Stand,
    replica: ScriptedReplica,
    monkeypatch: pytest.MonkeyPatch,
    end: Callable[[Site, int], None],
    word: type[StreamFrame],
) -> None:
    def failing(*_: object) -> None:
        raise RuntimeError("what nobody foresaw")

    asked = asyncio.create_task(frames_of(stand, stand.sendable()))
    work = await work_of(replica)
    with monkeypatch.context() as bad:
        bad.setattr(Grants, "ended", failing)
        with pytest.raises(RuntimeError):
            end(stand.site, work)
    assert isinstance((await asked)[-1], word)


async def test_an_edge_that_goes_while_it_is_told_of_the_end_is_counted_once(
    stand: Stand, replica: ScriptedReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = asyncio.create_task(frames_of(stand, stand.sendable()))
    work = await work_of(replica)
    (port,) = stand.intake.ports
    with monkeypatch.context() as full:
        # The last word is the frame too many: the session ends, and by that the edge has settled.
        full.setattr(sessions, "OUTBOX_FRAMES_MAX", -1)
        stand.site.work_finished(work, "stop", PoolCounts(5, 0, 1))
    assert port.over
    assert (stand.site.busy(), stand.site.dispatchers[POOL].state().running) == (0, 0)
    await asked
    # A spool writes in order: after this one, all that was said of the attempt is there.
    await stand.spool.append_async(RecordKind("later"), RecordId("later"), b"{}", durable=False, rank=Rank.NEW)
    assert len(await records(stand, "usage", 1)) == 1
