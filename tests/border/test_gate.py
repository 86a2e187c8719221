"""The gate: nothing leaves without a permit and a record, and what is refused is placed again within the law."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from node_agent.uplink.sending import Sendable, Tally
from orchestrator.engines.generation import Resume
from orchestrator.engines.identity import Continuing
from orchestrator.evidence.attestation import sealed
from orchestrator.evidence.canonical import canonical_bytes
from orchestrator.evidence.citation import attestation_bytes
from orchestrator.placement.fleet import Pool
from orchestrator.policy.ids import AttemptId, Digest, EdgeId, ReplicaId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels, Personal
from orchestrator.spool.records import FullReason, Offered, Outcome, RecordKind, SpoolFull
from orchestrator.telemetry.names import POOL
from orchestrator.wire.catalogue import ProblemError
from orchestrator.wire.frames import Accepted, Done, StreamFrame, Tokens
from tests.border.edge import ALL, GERMAN, SECRET_WORDS, Edge, answers, breaks, refuses
from tests.values import replace


async def test_the_record_is_in_the_spool_before_the_first_byte_leaves(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    seen: list[int] = []
    edge.routes.on_send = lambda sendable: seen.append(
        sum(1 for record in edge.records("decision") if record["attempt"] == sendable.attempt)
    )
    assert await edge.text(edge.asked("acme-sg")) == ("cn-guizhou", "G")
    assert seen == [1]


async def test_a_regulated_record_is_on_the_disk_before_the_first_byte_leaves(
    make_edge: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge("edge-frankfurt")
    order: list[str] = []
    append = edge.spool.append_async

    async def watched(kind: RecordKind, *rest: Any, durable: bool, **more: Any) -> Any:
        done = await append(kind, *rest, durable=durable, **more)
        order.append(f"{kind} durable={durable}")
        return done

    monkeypatch.setattr(edge.spool, "append_async", watched)
    edge.routes.on_send = lambda _: order.append("sent")
    assert await edge.text(edge.asked("rhein-gmbh", GERMAN)) == ("eu-frankfurt", "F")
    assert order[:2] == ["decision durable=True", "sent"]


async def test_without_evidence_nothing_is_sent(
    make_edge: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()

    async def full(kind: RecordKind, *_: Any, **__: Any) -> None:
        raise SpoolFull(kind, FullReason.CAPACITY)

    monkeypatch.setattr(edge.spool, "append_async", full)
    with pytest.raises(ProblemError) as refused:
        await edge.gate.ask(edge.asked("acme-sg"))
    assert refused.value.problem.code == "evidence_unavailable"
    assert edge.routes.sent == []
    assert 'tidegate_spool_refusals_total{reason="capacity"} 1.0' in edge.metrics.render().decode()


async def test_tokens_are_counted_by_pool_and_by_what_became_of_them(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    edge.metrics.admit(POOL, ["cn-guizhou"])
    pool, _ = await edge.text(edge.asked("acme-sg"))
    assert pool == "cn-guizhou"
    counts = edge.records("usage")[-1]["counts"]["edge"]
    told = edge.metrics.render().decode()
    for count in ("received", "delivered"):
        assert counts[count] > 0
        assert f'tidegate_tokens_total{{count="{count}",pool="{pool}"}} {counts[count]}.0' in told


async def test_pools_that_were_left_out_are_counted_by_reason(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    edge.routes.down = frozenset({"cn-guizhou"})
    for _ in range(2):
        await edge.text(edge.asked("acme-sg"))
    record = edge.records("decision")[-1]
    assert record["placement"]["dropped"] == {"down": 1, "not_reachable": 1}
    told = edge.metrics.render().decode()
    for reason in record["placement"]["dropped"]:
        assert f'tidegate_not_placed_pools_total{{reason="{reason}"}} 2.0' in told


async def test_the_law_refuses_and_says_what_would_be_needed(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    with pytest.raises(ProblemError) as refused:
        await edge.gate.ask(edge.asked("acme-sg", GERMAN))
    problem = refused.value.problem
    assert (problem.entry.http, problem.code) == (451, "residency_blocked")
    assert "EU-46" in problem.rules
    assert "eu_scc" in problem.needs
    assert edge.routes.sent == []
    (record,) = edge.records("decision")
    assert record["outcome"] == "residency_blocked"
    assert record["attempt"] is None


async def test_every_record_is_written_in_canonical_bytes(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(cn_guizhou=refuses("engine_busy"))
    await edge.text(replace(edge.asked("acme-sg"), client_request="größer 😂 \u20ac"))
    with pytest.raises(ProblemError):
        await edge.gate.ask(edge.asked("acme-sg", GERMAN))
    written = [entry.data for entry in edge.spool.read_from()]
    assert len(written) == 5
    for data in written:
        assert canonical_bytes(json.loads(data)) == data


async def test_the_soil_cannot_be_declared_away(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge("edge-frankfurt")
    claims = Labels(personal=Personal.PERSONAL, origin=frozenset({Jurisdiction("FR")}))
    assert (await edge.text(edge.asked("rhein-gmbh", claims)))[0] == "eu-frankfurt"
    origins = edge.records("decision")[0]["facts"]["label"]["origin"]
    assert origins == ["DE", "FR"]


async def test_a_refusal_that_did_not_start_is_placed_again_within_the_law(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(cn_guizhou=refuses("engine_busy"))
    assert await edge.text(edge.asked("acme-sg")) == ("cn-shanghai", "S")
    assert [pool for pool, _ in edge.routes.sent] == ["cn-guizhou", "cn-shanghai"]
    assert len({record["attempt"] for record in edge.records("decision")}) == 2
    refused_one, answered = edge.records("usage")
    assert (refused_one["outcome"], refused_one["counts"]["edge"]["received"]) == ("refused", 0)
    assert answered["outcome"] == "complete"

    lonely = make_edge("edge-frankfurt", eu_frankfurt=refuses("engine_unreachable"))
    with pytest.raises(ProblemError) as refused:
        await lonely.gate.ask(lonely.asked("rhein-gmbh", GERMAN))
    assert refused.value.problem.entry.http == 503
    assert [pool for pool, _ in lonely.routes.sent] == ["eu-frankfurt"], "the set never widens"


async def test_placing_again_is_bounded(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(cn_guizhou=refuses("engine_busy"), cn_shanghai=refuses("draining"))
    with pytest.raises(ProblemError) as refused:
        await edge.gate.ask(edge.asked("acme-sg"))
    assert refused.value.problem.entry.http == 503
    assert len(edge.routes.sent) == 2


async def test_a_refusal_that_no_retry_helps_is_told_at_once(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(cn_guizhou=refuses("context_length_exceeded"))
    with pytest.raises(ProblemError) as refused:
        await edge.gate.ask(edge.asked("acme-sg"))
    assert refused.value.problem.entry.http == 400
    assert len(edge.routes.sent) == 1
    assert [usage["outcome"] for usage in edge.records("usage")] == ["refused"]


async def test_newer_law_is_waited_for_and_asked(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    first = edge.current
    assert first is not None

    def newer(sendable: Sendable) -> list[StreamFrame]:
        if sendable.citation.manifest == first.number:
            edge.current = edge.example.bundle()
            return refuses("policy_newer")(sendable)
        return answers("G")(sendable)

    edge.routes.plans["cn-guizhou"] = newer
    assert await edge.text(edge.asked("acme-sg")) == ("cn-guizhou", "G")
    assert [sendable.citation.manifest for _, sendable in edge.routes.sent] == [1, 2]


async def test_a_cut_before_the_first_token_is_an_error_and_settled(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(cn_guizhou=breaks("timeout_total"))
    with pytest.raises(ProblemError) as cut:
        await edge.gate.ask(edge.asked("acme-sg"))
    assert cut.value.problem.entry.http == 504
    (usage,) = edge.records("usage")
    assert usage["outcome"] == "broken"


async def test_a_failure_of_ours_at_the_first_token_keeps_no_room_for_the_answer(
    make_edge: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()

    def fails(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(edge.gate._attempts, "first_token", fails)
    with pytest.raises(RuntimeError):
        await edge.gate.ask(edge.asked("acme-sg"))
    assert edge.gate._retained.used_bytes == 0


async def test_an_answer_that_is_closed_early_is_settled_as_cancelled(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    await anext(answer.frames)
    await answer.frames.aclose()
    (usage,) = edge.records("usage")
    assert usage["outcome"] == "cancelled"
    assert edge.routes.closed == 1


async def test_an_answer_of_which_nobody_asked_a_frame_is_stopped_and_settled(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    await answer.frames.aclose()
    await answer.frames.aclose()
    (usage,) = edge.records("usage")
    assert usage["outcome"] == "cancelled"
    assert edge.routes.closed == 1
    assert [frame async for frame in answer.frames] == []


async def test_an_answer_that_is_closed_while_its_next_frame_is_awaited_does_not_go_on(
    make_edge: Callable[..., Edge],
) -> None:
    edge, sendings = make_edge("edge-singapore"), list[Waiting]()

    def send(_pool: Pool, sendable: Sendable, _tally: Tally, _now_us: int) -> Waiting:
        sendings.append(Waiting(sendable.attempt))
        return sendings[-1]

    edge.routes.send = send  # type: ignore[method-assign, assignment]
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    assert isinstance(await anext(answer.frames), Tokens)
    more = asyncio.ensure_future(anext(answer.frames, None))
    await asyncio.sleep(0)
    await answer.frames.aclose()
    assert await more is None
    assert [sending.closed for sending in sendings] == [True]


class Waiting:
    """An attempt that can go on elsewhere, says one token, and then nothing until it is closed."""

    def __init__(self, attempt: AttemptId) -> None:
        self._frames: list[StreamFrame] = [
            Accepted(1, attempt, ReplicaId("r"), Continuing(Digest("sha256:" + "a" * 64), Resume.IDS)),
            Tokens(1, attempt, 0, 1, "a", (1,)),
        ]
        self._over = asyncio.Event()

    @property
    def closed(self) -> bool:
        return self._over.is_set()

    async def next(self, _now_us: int) -> StreamFrame | None:
        if not self._frames:
            await self._over.wait()
            return None
        return self._frames.pop(0)

    async def close(self) -> None:
        self._over.set()


async def test_what_a_whole_answer_used_is_on_record_before_its_end_is_told(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    while not isinstance(await anext(answer.frames), Done):
        assert edge.records("usage") == []
    # An edge that is killed from here on has told of an end, and accounted for it.
    (usage,) = edge.records("usage")
    assert (usage["outcome"], usage["counts"]["edge"]["delivered"]) == ("complete", 1)
    await answer.frames.aclose()
    assert len(edge.records("usage")) == 1


async def _pending(edge: Edge) -> None:
    """Return when a record waits for the end of the turn."""
    for _ in range(1_000):
        if edge.spool._group._pending:
            break
        await asyncio.sleep(0)


async def test_hanging_up_while_the_end_is_put_on_record_leaves_one_record(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    answer = await edge.gate.ask(edge.asked("acme-sg"))
    await anext(answer.frames)
    reading = asyncio.create_task(anext(answer.frames))
    await _pending(edge)
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await answer.frames.aclose()
    await asyncio.sleep(0.05)
    (usage,) = edge.records("usage")
    assert usage["outcome"] == "complete"


async def test_hanging_up_while_a_decision_is_put_on_record_closes_it_unsent(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    for turns in range(6):
        asking = asyncio.create_task(edge.gate.ask(edge.asked("acme-sg")))
        for _ in range(1 + turns):
            await asyncio.sleep(0)
        asking.cancel()
        (told,) = await asyncio.gather(asking, return_exceptions=True)
        if not isinstance(told, BaseException):
            await told.frames.aclose()
    # Regulated data waits for the disk.
    asking = asyncio.create_task(edge.gate.ask(edge.asked_overseas()))
    await _pending(edge)
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.1)
    sent = [one["attempt"] for one in edge.records("decision") if one["outcome"] == "sent"]
    usages = edge.records("usage")
    assert len(sent) > 1
    assert sorted(sent) == sorted(one["attempt"] for one in usages)
    assert {one["outcome"] for one in usages} == {"cancelled"}
    assert edge.spool._group._given_up == {}


async def test_a_decision_that_was_given_up_and_never_written_needs_no_end(
    make_edge: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = make_edge()
    put = edge.spool._group._put

    def full(offered: Sequence[Offered], begin: int) -> list[Outcome]:
        return [SpoolFull(one.kind, FullReason.CAPACITY) for one in offered[begin:]]

    monkeypatch.setattr(edge.spool._group, "_put", full)
    asking = asyncio.create_task(edge.gate.ask(edge.asked("acme-sg")))
    await _pending(edge)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await asyncio.sleep(0.05)
    monkeypatch.setattr(edge.spool._group, "_put", put)
    assert (edge.records("decision"), edge.records("usage"), edge.spool._group._given_up) == ([], [], {})


async def test_drained_pools_and_pools_out_of_the_fleet_get_nothing(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    edge.current = edge.example.bundle(drains=("cn-guizhou",))
    assert (await edge.text(edge.asked("acme-sg")))[0] == "cn-shanghai"
    frankfurt = make_edge("edge-frankfurt")
    frankfurt.current = frankfurt.example.bundle(without_pool="eu-frankfurt")
    with pytest.raises(ProblemError) as refused:
        await frankfurt.gate.ask(frankfurt.asked("rhein-gmbh", GERMAN))
    assert refused.value.problem.entry.http == 451


async def test_without_a_bundle_everything_is_refused(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    asked = edge.asked("acme-sg")
    edge.current = None
    with pytest.raises(ProblemError) as refused:
        await edge.gate.ask(asked)
    assert refused.value.problem.code == "no_bundle"
    assert edge.routes.sent == []


async def test_what_the_law_was_told_is_signed_and_the_record_holds_no_payload(
    make_edge: Callable[..., Edge],
) -> None:
    edge = make_edge()
    await edge.text(edge.asked_overseas())
    ((pool, sent),) = edge.routes.sent
    assert sent.inputs is not None

    def attested(edge_name: str, inputs: Digest | None) -> bytes:
        return attestation_bytes(
            EdgeId(edge_name), sent.attempt, sent.decision, pool, sent.facts, sent.citation, inputs
        )

    signed = attested(edge.name, sent.inputs.digest)
    assert sealed(edge.key.public_key, signed, sent.signature)
    assert not sealed(edge.key.public_key, attested(edge.name, None), sent.signature)
    forged = attested("edge-frankfurt", sent.inputs.digest)
    assert not sealed(edge.key.public_key, forged, sent.signature)
    everything = b"".join(entry.data for entry in edge.spool.read_from())
    assert SECRET_WORDS.encode() not in everything
    (record,) = edge.records("decision")
    assert record["commitment"].startswith("hmac-sha256:commit:")
    assert {candidate["pool"] for candidate in record["placement"]["candidates"]} == set(ALL)


async def test_usage_keeps_its_own_counts_and_marks_the_others(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    await edge.text(edge.asked("acme-sg"))
    (usage,) = edge.records("usage")
    assert usage["counts"]["edge"]["reported"] is False
    assert usage["counts"]["pool"] == {"prompt": 10, "cached": 0, "generated": 1, "sent": 1, "reported": True}
    assert usage["price"]["currency"] == "USD"
