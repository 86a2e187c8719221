"""The gate: label, permit, place, evidence, send. There is no other way for a payload to leave the edge.

The order is the promise: a decision record is in the spool before the first byte leaves, and when the payload is
regulated it is on disk. No evidence, no send. A pool that refuses without having started is free, and the request is
placed again at most twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from node_agent.border.decide import Decision, Ground, decide, problem_of
from node_agent.uplink.routes import Routes
from node_agent.uplink.session_link import Sendable, Tally
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.engines.generation import Generation
from orchestrator.evidence.canonical import canonical_bytes, commit
from orchestrator.evidence.citation import Citation, attestation_bytes
from orchestrator.evidence.records import DecisionRecord, discharge, retain_until_ms, retention_of
from orchestrator.ledger.money import Money
from orchestrator.ledger.rating import rate
from orchestrator.ledger.usage import Counted, Outcome, PoolCounts, UsageRecord
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.explain import placement_to_json
from orchestrator.placement.fleet import Edge, Pool
from orchestrator.placement.requests import PlacementRequest
from orchestrator.policy.ids import (
    AttemptId,
    DecisionId,
    KeyId,
    PoolId,
    RequestId,
    make_attempt_id,
    make_decision_id,
    make_usage_id,
)
from orchestrator.policy.labels import Labels
from orchestrator.policy.permit import PERMIT_VERSION
from orchestrator.policy.tenants import Tenant
from orchestrator.spool.records import RecordId, RecordKind, SpoolError
from orchestrator.spool.store import Spool
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.names import DENIALS, PLACEMENTS, TOKENS, Event
from orchestrator.wire.catalogue import Problem, ProblemError, Retry
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, StreamFrame, Tokens

PLACEMENTS_MAX = 3
"""The first placement and at most two more."""
REFRESHED = frozenset({"policy_newer", "policy_stale"})
"""Refusals that a newer bundle may answer."""
REFRESH_POLLS = 25
REFRESH_POLL_S = 0.02
CHARS_PER_TOKEN = 4
"""Until it is learned per model and script: an estimate that never refuses."""

log = logger("node_agent.border")


@dataclass(frozen=True, slots=True)
class Asked:
    """One checked request of a known tenant."""

    request: RequestId
    client_request: str | None
    tenant: Tenant
    key_id: KeyId
    generation: Generation
    capabilities: frozenset[Capability]
    declared: Labels
    body: bytes
    """The bytes that the commitment covers. They go nowhere else."""
    budget_ms: int


@dataclass(frozen=True, slots=True)
class Commitment:
    """The key of payload commitments, made per edge from a mounted secret."""

    key_id: KeyId
    key: bytes

    def __repr__(self) -> str:
        return f"Commitment({self.key_id})"


@dataclass(slots=True)
class Answer:
    """An answer that has begun: where it runs, and what is still to come."""

    decision: DecisionId
    pool: Pool
    frames: AsyncGenerator[Tokens | Done | Broken, None]
    """Tokens, then one terminal frame. Closing it cancels the attempt."""
    price: Money | None = None
    """Set when the answer is complete."""


@dataclass(frozen=True, slots=True)
class Hands:
    """What the gate acts with. Time and randomness come through here."""

    bundle: Callable[[], Bundle | None]
    routes: Routes
    spool: Spool
    metrics: Metrics
    signing_key: SigningKey
    commitment: Commitment
    now_ms: Callable[[], int]
    entropy: Callable[[int], bytes]


@dataclass(slots=True)
class _Attempt:
    """One send of one request to one pool."""

    asked: Asked
    decision_id: DecisionId
    attempt: AttemptId
    pool: Pool
    sendable: Sendable
    tally: Tally


class Gate:
    """The only door to the uplink."""

    def __init__(self, edge_name: str, hands: Hands) -> None:
        self._edge_name = edge_name
        self._hands = hands

    async def ask(self, asked: Asked) -> Answer:
        """Decide, record and send. Returns when the answer has begun.

        Raises ProblemError: refused by law, nothing feasible, no evidence, or cut before the first token.
        """
        tried: frozenset[PoolId] = frozenset()
        problem: Problem | None = None
        for _ in range(PLACEMENTS_MAX):
            attempt = await self._decide_and_record(asked, tried, problem)
            frames = self._hands.routes.send(attempt.pool, attempt.sendable, attempt.tally)
            first: StreamFrame | None = None
            try:
                first = await self._first(frames)
            finally:
                if first is None:  # the tenant hung up: the work must stop, and what was begun is settled
                    await frames.aclose()
                    await self._settle(attempt, Outcome.CANCELLED, None, None)
            if isinstance(first, Broken):
                await frames.aclose()
                await self._settle(attempt, Outcome.BROKEN, first.counts, None)
                raise ProblemError(Problem(first.code, first.detail))
            if not isinstance(first, Refused):
                answer = Answer(attempt.decision_id, attempt.pool, self._empty())
                answer.frames = self._rest(attempt, first, frames, answer)
                return answer
            await frames.aclose()
            problem = Problem(first.code, first.detail, first.param, first.rules, "", first.retry_after_ms)
            code = problem.entry.code
            log.info(Event.ATTEMPT_REFUSED, request_id=asked.request, pool=attempt.pool.id, code=code)
            if problem.entry.retry is not Retry.ELSEWHERE:
                raise ProblemError(problem)
            if code in REFRESHED and await self._refreshed(attempt.sendable.citation.manifest):
                continue  # the same pool may well be right under the newer law
            tried |= {attempt.pool.id}
        raise ProblemError(problem or Problem("no_feasible_pool"))

    async def _decide_and_record(
        self, asked: Asked, tried: frozenset[PoolId], before: Problem | None
    ) -> _Attempt:
        """Decide once, and put the record into the spool. Raises ProblemError when nothing may or can be sent."""
        hands = self._hands
        bundle = hands.bundle()
        now_ms = hands.now_ms()
        edge = None if bundle is None else next((e for e in bundle.fleet.edges if e.id == self._edge_name), None)
        if bundle is None or bundle.settings is None or edge is None:
            raise ProblemError(Problem("no_bundle"))
        shape = _shape(asked, bundle, tried)
        views = {pool.id: hands.routes.view(pool) for pool in bundle.fleet.pools}
        chance = int.from_bytes(hands.entropy(8), "big")
        decision = decide(_ground(bundle), edge, asked.tenant, asked.declared, shape, views, now_ms, chance)
        chosen = decision.placement.chosen
        decision_id = make_decision_id(now_ms, hands.entropy(10))
        attempt_id = make_attempt_id(now_ms, hands.entropy(10))
        discharged = () if chosen is None else discharge(chosen.verdict.obligations)
        problem: Problem | None = None
        if chosen is None:
            problem = problem_of(decision.placement, shape)
            if problem.code == "no_feasible_pool" and before is not None:
                problem = before  # what the last pool said is more exact than "none is left"
        elif discharged is None:
            problem = Problem("evidence_unavailable", "A duty of the law has nothing here that discharges it.")
        citation = _citation(bundle, now_ms)
        record = self._record(asked, edge, decision, decision_id, attempt_id, citation, discharged or (), problem)
        await self._spool(record, durable=decision.regulated, mandatory=problem is None)
        self._count(decision, record)
        if problem is not None or chosen is None:
            log.info(
                Event.REQUEST_REFUSED, request_id=asked.request, decision_id=decision_id, code=record.outcome
            )
            raise ProblemError(problem or Problem("internal_error"))
        signed = attestation_bytes(edge.id, attempt_id, decision_id, chosen.pool.id, decision.facts, citation)
        sendable = Sendable(
            attempt_id,
            decision_id,
            asked.request,
            chosen.pool.id,
            asked.generation,
            decision.facts,
            citation,
            key_id_of(hands.signing_key.public_key),
            hands.signing_key.sign(signed),
            asked.budget_ms,
        )
        return _Attempt(asked, decision_id, attempt_id, chosen.pool, sendable, Tally())

    def _record(
        self,
        asked: Asked,
        edge: Edge,
        decision: Decision,
        decision_id: DecisionId,
        attempt_id: AttemptId,
        citation: Citation,
        discharged: tuple[tuple[str, str], ...],
        problem: Problem | None,
    ) -> DecisionRecord:
        chosen = decision.placement.chosen
        commitment = self._hands.commitment
        sent = problem is None and chosen is not None
        return DecisionRecord(
            id=decision_id,
            request=asked.request,
            client_request=asked.client_request,
            attempt=attempt_id if sent else None,
            side=edge.side,
            program="edge",
            edge=edge.id,
            tenant=asked.tenant.id,
            key_id=asked.key_id,
            model=asked.generation.model,
            pool=chosen.pool.id if sent and chosen is not None else None,
            outcome="sent" if problem is None else problem.entry.code,
            sources=decision.sources,
            facts=decision.facts,
            citation=citation,
            placement=placement_to_json(decision.placement),
            commitment=commit(commitment.key, commitment.key_id, (asked.body,)),
            payload_bytes=len(asked.body),
            regulated=decision.regulated,
            retention=() if chosen is None else retention_of(chosen.verdict.obligations),
            discharged=discharged,
            decided_ms=citation.now_ms,
        )

    def _count(self, decision: Decision, record: DecisionRecord) -> None:
        """Count the choice, and the rules behind each pool that the law refuses."""
        metrics = self._hands.metrics
        if record.pool is not None:
            metrics.count(PLACEMENTS, pool=record.pool)
        for candidate in decision.placement.candidates:
            for rule in () if candidate.verdict.allowed else candidate.verdict.rules:
                metrics.count(DENIALS, rule=rule)

    async def _spool(self, record: DecisionRecord, *, durable: bool, mandatory: bool) -> None:
        """Put a record into the spool. Without it nothing is sent; a refusal is said even when it is not recorded."""
        try:
            await self._hands.spool.append_async(
                RecordKind("decision"),
                RecordId(record.id),
                record.to_bytes(),
                durable=durable,
                retain_until_ms=retain_until_ms(record.retention, record.decided_ms),
            )
        except SpoolError as error:
            log.error(Event.SPOOL_FAILED, record_id=record.id, exception=type(error).__name__)
            if mandatory:
                raise ProblemError(Problem("evidence_unavailable")) from error

    @staticmethod
    async def _first(frames: AsyncGenerator[StreamFrame, None]) -> StreamFrame:
        """Return the first frame that says how it goes: tokens, an end, or a refusal."""
        async for frame in frames:
            if not isinstance(frame, Accepted):
                return frame
        raise ProblemError(Problem("session_lost"))

    async def _refreshed(self, number: int) -> bool:
        """Wait for a newer manifest than `number`. Returns whether there is one."""
        for _ in range(REFRESH_POLLS):
            bundle = self._hands.bundle()
            if bundle is not None and bundle.number > number:
                return True
            await asyncio.sleep(REFRESH_POLL_S)
        return False

    async def _rest(
        self,
        attempt: _Attempt,
        first: StreamFrame,
        frames: AsyncGenerator[StreamFrame, None],
        answer: Answer,
    ) -> AsyncGenerator[Tokens | Done | Broken, None]:
        """Yield the answer, and settle it however it ends."""
        outcome, counts = Outcome.CANCELLED, None
        try:
            async with aclosing(frames):
                frame: StreamFrame | None = first
                while frame is not None:
                    if isinstance(frame, Done):
                        outcome, counts = Outcome.COMPLETE, frame.counts
                        answer.price = self._price(attempt, counts)
                        yield frame
                        return
                    if isinstance(frame, Broken):
                        outcome, counts = Outcome.BROKEN, frame.counts
                        yield frame
                        return
                    if isinstance(frame, Tokens):
                        yield frame
                    frame = await anext(frames, None)
        finally:
            await self._settle(attempt, outcome, counts, answer.price)

    async def _settle(
        self, attempt: _Attempt, outcome: Outcome, counts: PoolCounts | None, price: Money | None
    ) -> None:
        """Record what was used. The edge's own counts stand first; the pool's are marked as reported."""
        hands = self._hands
        now_ms = hands.now_ms()
        told = attempt.pool.engine is None
        record = UsageRecord(
            id=make_usage_id(now_ms, hands.entropy(10)),
            request=attempt.asked.request,
            attempt=attempt.attempt,
            decision=attempt.decision_id,
            tenant=attempt.asked.tenant.id,
            pool=attempt.pool.id,
            model=attempt.asked.generation.model,
            outcome=outcome,
            counted=Counted.IDS if told else Counted.CHUNKS,
            pool_counts=counts,
            edge_counts=attempt.tally.counts(),
            own="edge",
            price=price,
            ended_ms=now_ms,
        )
        try:
            data = canonical_bytes(record.to_json())
            kind, record_id = RecordKind("usage"), RecordId(record.id)
            await hands.spool.append_async(kind, record_id, data, durable=False, closes=True)
        except SpoolError as error:
            log.error(Event.SPOOL_FAILED, record_id=record.id, exception=type(error).__name__)
        counts_by_name = {"received": attempt.tally.received, "delivered": attempt.tally.delivered}
        for name, amount in counts_by_name.items():
            hands.metrics.count(TOKENS, amount, pool=attempt.pool.id, count=name)

    def _price(self, attempt: _Attempt, counts: PoolCounts) -> Money | None:
        """Return what the tenant pays: prompt as the pool counted it, output as it was delivered."""
        bundle = self._hands.bundle()
        price = (
            None
            if bundle is None
            else bundle.prices.price(attempt.asked.tenant.price_book, attempt.asked.generation.model)
        )
        if price is None:
            return None
        return rate(price, counts.prompt, min(counts.cached, counts.prompt), attempt.tally.delivered)

    @staticmethod
    async def _empty() -> AsyncGenerator[Tokens | Done | Broken, None]:
        return
        yield


def _shape(asked: Asked, bundle: Bundle, tried: frozenset[PoolId]) -> PlacementRequest:
    settings = bundle.settings
    expected = 0 if settings is None else settings.expected_output_tokens
    most = asked.generation.sampling.max_tokens
    chars = sum(len(message.text) for message in asked.generation.messages)
    return PlacementRequest(
        model=asked.generation.model,
        capabilities=asked.capabilities,
        prompt_tokens=1 + chars // CHARS_PER_TOKEN,
        output_tokens=expected if most is None else min(expected, most),
        upload_bytes=len(asked.body),
        tried=tried,
    )


def _ground(bundle: Bundle) -> Ground:
    if bundle.settings is None:
        raise ProblemError(Problem("no_bundle"))
    revoked = bundle.revoked
    return Ground(bundle.law, bundle.fleet, bundle.prices, bundle.settings, revoked.pools, revoked.pathways)


def _citation(bundle: Bundle, now_ms: int) -> Citation:
    return Citation(
        bundle.side, bundle.number, bundle.digest, bundle.revocations.number, now_ms, PERMIT_VERSION
    )
