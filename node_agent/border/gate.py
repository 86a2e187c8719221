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

from node_agent.border.decider import Asked, Commitment, Decided, Decider, Expected, record_of
from node_agent.border.keeping import may_keep
from node_agent.border.memory import Memory
from node_agent.border.retries import RetryBudget
from node_agent.border.signer import Signer
from node_agent.border.traced import ended_line, refused_line
from node_agent.uplink.routes import Routes
from node_agent.uplink.session_link import Sendable, Tally
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.evidence.citation import attestation_bytes
from orchestrator.evidence.records import DecisionRecord, retain_until_ms
from orchestrator.evidence.remembered import Remembered
from orchestrator.ledger.money import Money
from orchestrator.ledger.rating import rate
from orchestrator.ledger.usage import Counted, Outcome, PoolCounts, UsageRecord
from orchestrator.placement.decide import Decision
from orchestrator.placement.fleet import Pool
from orchestrator.policy.ids import (
    AttemptId,
    DecisionId,
    EdgeId,
    PoolId,
    make_usage_id,
)
from orchestrator.policy.labels import LabelSources, Mismatch
from orchestrator.policy.verdicts import FAULT
from orchestrator.spool.records import RecordId, RecordKind, SpoolError
from orchestrator.spool.store import Spool
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.names import DENIALS, MISMATCHES, PLACEMENTS, TOKENS, Event
from orchestrator.wire.catalogue import Problem, ProblemError, Retry
from orchestrator.wire.deadlines import TOTAL
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, StreamFrame, Tokens

PLACEMENTS_MAX = 3
"""The first placement and at most two more."""
REFRESHED = frozenset({"policy_newer", "policy_stale"})
"""Refusals that a newer bundle may answer."""
FREE_AGAIN = REFRESHED | {"draining"}
"""Refusals after which a second attempt counts against no budget: no load brought them about."""
REFRESH_POLLS = 25
REFRESH_POLL_S = 0.02
HELD_UP_SHARE = 4
"""Where the tenant took more than one part in so many of the time, how long an answer took says little of its pool."""

log = logger("node_agent.border")

_mismatches: Remembered[LabelSources, tuple[Mismatch, ...]] = Remembered(LabelSources.mismatches)


@dataclass(slots=True)
class Answer:
    """An answer that has begun: where it runs, and what is still to come."""

    decision: DecisionId
    pool: Pool
    frames: AsyncGenerator[Tokens | Done | Broken, None]
    """Tokens, then one terminal frame. Closing it cancels the attempt."""
    headers: tuple[tuple[str, str], ...] = ()
    """What the law wants said with the answer."""
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
    now_us: Callable[[], int]
    """Monotonic: what durations are measured with."""
    entropy: Callable[[int], bytes]
    skew_ms: Callable[[], int] = lambda: 0
    """Of this edge's clock, as control sees it."""
    note: Callable[[bytes], None] | None = None
    """Takes a line of a trace for replays; None where none is recorded."""


@dataclass(slots=True)
class _Attempt:
    """One send of one request to one pool."""

    asked: Asked
    decision_id: DecisionId
    attempt: AttemptId
    pool: Pool
    sendable: Sendable
    tally: Tally
    headers: tuple[tuple[str, str], ...]
    decided: Decided
    sent_us: int
    first_us: int | None = None
    held_us: int = 0
    """For how long the tenant did not take what was there for it."""

    def held_up(self, now_us: int) -> bool:
        """Whether the tenant was slow to read."""
        return self.first_us is not None and self.held_us * HELD_UP_SHARE > now_us - self.first_us


class Gate:
    """The only door to the uplink."""

    def __init__(self, edge_name: str, hands: Hands) -> None:
        self._hands = hands
        self._edge = EdgeId(edge_name)
        self._decider = Decider(self._edge)
        self._memory = Memory(self._edge, hands.commitment)
        self._signer = Signer(hands.signing_key)
        self._key_id = key_id_of(hands.signing_key.public_key)
        self._retries = RetryBudget()

    async def ask(self, asked: Asked) -> Answer:
        """Decide, record and send. Returns when the answer has begun.

        Raises ProblemError: refused by law, nothing feasible, no evidence, or cut before the first token.
        """
        tried: frozenset[PoolId] = frozenset()
        problem: Problem | None = None
        began_us = self._hands.now_us()
        for _ in range(PLACEMENTS_MAX):
            now_us = self._hands.now_us()
            if problem is not None and problem.code not in FREE_AGAIN and not self._retries.may_retry(now_us):
                break
            left = asked.after((now_us - began_us) // 1000)
            attempt = await self._decide_and_record(left, tried, problem)
            frames = self._hands.routes.send(attempt.pool, attempt.sendable, attempt.tally)
            first: StreamFrame | None = None
            try:
                await self._depart(attempt)
                first = await self._first(frames)
            finally:
                if first is None:  # the tenant hung up: the work must stop, and what was begun is settled
                    await self._close(attempt, frames, Outcome.CANCELLED, None)
            if isinstance(first, Broken):
                await self._close(attempt, frames, Outcome.BROKEN, first)
                raise ProblemError(Problem(first.code, first.detail))
            if isinstance(first, Refused):
                if asked.departure is not None:
                    asked.departure.not_started()
                self._ended(attempt, first)
            else:
                self._began(attempt)
                answer = Answer(attempt.decision_id, attempt.pool, self._empty(), attempt.headers)
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
        if asked.budget_ms <= 0:
            raise ProblemError(Problem(TOTAL))
        bundle = hands.bundle()
        if bundle is None:
            raise ProblemError(Problem("no_bundle"))
        edge = bundle.fleet.edge(self._edge)
        if bundle.settings is None or edge is None:
            raise ProblemError(Problem("no_bundle"))
        prompt = self._memory.prompt(asked, edge, bundle.fleet)
        seen = {pool.id: hands.routes.view(pool) for pool in bundle.fleet.pools}
        known = self._memory.known(asked, prompt, bundle.fleet, seen, hands.now_us())
        expected = Expected(prompt.tokens, self._memory.output_tokens(asked, bundle.settings), prompt.blocks)
        # From the views to the choice nothing waits, and the choice counts at once: decisions that are made while this
        # one is written down see it.
        decided = self._decider.decide(
            asked,
            bundle,
            expected,
            known.views,
            tried,
            before,
            hands.commitment,
            hands.now_ms(),
            hands.skew_ms(),
            hands.entropy,
        )
        chosen = decided.decision.placement.chosen
        if decided.problem is None and chosen is not None:
            before_belief = known.before_belief[chosen.pool.id]
            now_us = hands.now_us()
            self._memory.sent(decided.attempt, asked, prompt, decided.shape, chosen, before_belief, now_us)
        attempt: _Attempt | None = None
        try:
            attempt = await self._record(asked, decided)
        finally:
            if attempt is None:
                self._memory.ended(decided.attempt, None, hands.now_us())
        self._memory.left(attempt.attempt, attempt.sent_us)
        self._retries.sent(attempt.attempt, before is not None, attempt.sent_us)
        return attempt

    async def _record(self, asked: Asked, decided: Decided) -> _Attempt:
        """Put the record of a decision into the spool, and return what leaves. Raises ProblemError."""
        hands = self._hands
        decision, problem = decided.decision, decided.problem
        record = record_of(asked, decided, hands.commitment)
        await self._spool(record, durable=decision.regulated, mandatory=problem is None)
        self._count(decision, record)
        chosen = decision.placement.chosen
        if problem is not None or chosen is None:
            log.info(
                Event.REQUEST_REFUSED, request_id=asked.request, decision_id=decided.id, code=record.outcome
            )
            if hands.note is not None:
                hands.note(refused_line(asked, decided, record.outcome))
            raise ProblemError(problem or Problem("internal_error"))
        facts = decision.travelling(decided.edge)
        inputs = None if decided.inputs is None else decided.inputs.digest()
        signed = attestation_bytes(
            decided.edge.id, decided.attempt, decided.id, chosen.pool.id, facts, decided.citation, inputs
        )
        sendable = Sendable(
            decided.attempt,
            decided.id,
            asked.request,
            chosen.pool.id,
            asked.generation,
            facts,
            decided.citation,
            self._key_id,
            await self._signer.seal(signed),
            asked.budget_ms,
            decided.inputs,
            asked.waits,
        )
        headers = tuple(header for done in decided.discharged for header in done.headers)
        return _Attempt(
            asked,
            decided.id,
            decided.attempt,
            chosen.pool,
            sendable,
            Tally(),
            headers,
            decided,
            hands.now_us(),
        )

    async def _depart(self, attempt: _Attempt) -> None:
        """Tell whoever has to know before the request is sent. Nothing has left yet. Raises ProblemError."""
        asked, hands = attempt.asked, self._hands
        if asked.departure is None:
            return
        bundle = hands.bundle()
        may = asked.tenant.keep_results and bundle is not None
        if may and bundle is not None:
            facts = attempt.decided.decision.facts
            may = may_keep(bundle, attempt.decided.edge, attempt.pool, facts, hands.skew_ms(), hands.now_ms())
        await asked.departure.before_send(may_keep=may)

    def _began(self, attempt: _Attempt) -> None:
        """The first token is here: learn from it how far the pool is."""
        attempt.first_us = self._hands.now_us()
        self._memory.first_token(attempt.attempt, attempt.first_us)

    def _ended(self, attempt: _Attempt, last: StreamFrame | None) -> None:
        """An attempt is over: learn from it. What is told again counts no more."""
        now_us = self._hands.now_us()
        self._retries.ended(attempt.attempt, now_us)
        self._memory.ended(attempt.attempt, last, now_us, attempt.held_up(now_us))

    def _count(self, decision: Decision, record: DecisionRecord) -> None:
        """Count the choice, and the rules behind each pool that the law refuses."""
        metrics = self._hands.metrics
        if record.pool is not None:
            metrics.count(PLACEMENTS, pool=record.pool)
        for mismatch in _mismatches(decision.sources):
            metrics.count(MISMATCHES, axis=mismatch.axis)
            log.warning(Event.LABEL_MISMATCH, decision_id=record.id, axis=mismatch.axis, source=mismatch.source)
        for candidate in decision.placement.candidates:
            if FAULT in candidate.verdict.rules:  # a bug in the law's code: refused, and told
                log.error(Event.POLICY_DISAGREED, decision_id=record.id, pool=candidate.pool.id, rule=FAULT)
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
        hands = self._hands
        outcome = Outcome.CANCELLED
        last: Done | Broken | None = None
        try:
            async with aclosing(frames):
                frame: StreamFrame | None = first
                while frame is not None:
                    if isinstance(frame, Done):
                        outcome, last = Outcome.COMPLETE, frame
                        self._ended(attempt, frame)
                        answer.price = self._price(attempt, frame.counts)
                        yield frame
                        return
                    if isinstance(frame, Broken):
                        outcome, last = Outcome.BROKEN, frame
                        self._ended(attempt, frame)
                        yield frame
                        return
                    if isinstance(frame, Tokens):
                        given_us = hands.now_us()
                        yield frame
                        attempt.held_us += hands.now_us() - given_us
                    frame = await anext(frames, None)
        finally:
            await self._settle(attempt, outcome, last, answer.price)

    async def _close(
        self, attempt: _Attempt, frames: AsyncGenerator[StreamFrame, None], outcome: Outcome, last: Broken | None
    ) -> None:
        """Close an attempt that brought nothing, and settle it whatever closing comes to."""
        try:
            await frames.aclose()
        finally:
            await self._settle(attempt, outcome, last, None)

    async def _settle(
        self, attempt: _Attempt, outcome: Outcome, last: Done | Broken | None, price: Money | None
    ) -> None:
        """Record what was used. The edge's own counts stand first; the pool's are marked as reported."""
        hands = self._hands
        now_ms = hands.now_ms()
        self._ended(attempt, last)
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
            pool_counts=None if last is None else last.counts,
            edge_counts=attempt.tally.counts(),
            own="edge",
            price=price,
            ended_ms=now_ms,
        )
        if hands.note is not None:
            hands.note(self._line(attempt, outcome, last))
        try:
            data = record.to_bytes()
            kind, record_id = RecordKind("usage"), RecordId(record.id)
            # Under a key a result may be sent again for nothing: what it cost first must be as durable as it is.
            durable = attempt.asked.departure is not None
            await hands.spool.append_async(kind, record_id, data, durable=durable, closes=True)
        except SpoolError as error:
            log.error(Event.SPOOL_FAILED, record_id=record.id, exception=type(error).__name__)
        counts_by_name = {"received": attempt.tally.received, "delivered": attempt.tally.delivered}
        for name, amount in counts_by_name.items():
            hands.metrics.count(TOKENS, amount, pool=attempt.pool.id, count=name)

    def _line(self, attempt: _Attempt, outcome: Outcome, last: Done | Broken | None) -> bytes:
        """Return what a trace says of an attempt that has ended."""
        began_us, now_us = attempt.sent_us, self._hands.now_us()
        first_us = None if attempt.first_us is None else attempt.first_us - began_us
        said = last.code if isinstance(last, Broken) else outcome.value
        counts = None if last is None else last.counts
        return ended_line(
            attempt.asked,
            attempt.decided,
            said,
            counts or PoolCounts(generated=attempt.tally.received),
            first_us,
            now_us - began_us,
        )

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
