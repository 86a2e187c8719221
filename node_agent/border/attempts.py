"""One attempt: decided, recorded and signed before it leaves, and accounted for when it has ended.

Nothing here sends. Whatever the gate sends was made here, so that it is permitted and in the spool by then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import msgspec
from msgspec.structs import replace

from node_agent.border.bill import billable
from node_agent.border.decider import Asked, Commitment, Decided, Decider, Departure, record_of
from node_agent.border.given_up import GivenUp
from node_agent.border.keeping import may_keep
from node_agent.border.memory import Memory, Prompt
from node_agent.border.problems import problem_of
from node_agent.border.resume import RETAINED_BYTES_MAX
from node_agent.border.retries import RetryBudget, Spent
from node_agent.border.signer import Sealing, Signer
from node_agent.border.traced import ended_line, line_of, refused_line
from node_agent.uplink.routes import Routes
from node_agent.uplink.sending import Sendable, Sending, Tally
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.evidence.citation import attestation_bytes
from orchestrator.files.traces import TraceLine
from orchestrator.ledger.money import Money
from orchestrator.ledger.rating import rate
from orchestrator.ledger.usage import (
    KIND,
    ByEdge,
    Counted,
    Counts,
    Outcome,
    PoolCounts,
    Price,
    Resumable,
    UsageRecord,
    by_pool,
)
from orchestrator.placement.fleet import Edge, Fleet, Pool
from orchestrator.placement.outliers import Change, Turn
from orchestrator.placement.pick import Drop
from orchestrator.placement.sight import Flight
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import RANDOM_BYTES, AttemptId, DecisionId, EdgeId, PoolId, make_usage_id
from orchestrator.policy.packs import Obligation
from orchestrator.policy.verdicts import FAULT
from orchestrator.spool.records import DECISION, USAGE, Holder, Position, Rank, RecordId, SpoolError, SpoolFull
from orchestrator.spool.refusing import without_record
from orchestrator.spool.store import Spool
from orchestrator.spool.untaken import Untaken
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.names import (
    DENIALS,
    MISMATCHES,
    NOT_PLACED_POOLS,
    PLACEMENTS,
    SPOOL_REFUSALS,
    TOKENS,
    Event,
)
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.deadlines import TOTAL
from orchestrator.wire.frames import Broken, Done, Refused, StreamFrame

HELD_UP_SHARE = 4
"""Where the tenant took more than one part in so many of the time, how long an answer took says little of its pool."""

# To find a member of an enum by its class takes longer than to compare it.
_COUNTED_IDS, _NEW, _CLOSES = Counted.IDS, Rank.NEW, Rank.CLOSES
_EVENTS = {Turn.OUT: Event.POOL_EJECTED, Turn.TRIED: Event.POOL_TRIED, Turn.BACK: Event.POOL_BACK}

log = logger("node_agent.border")


class Hands(msgspec.Struct, frozen=True):
    """What the gate acts with. Time and randomness come through here."""

    bundle: Callable[[], Bundle | None]
    routes: Routes
    spool: Spool
    metrics: Metrics
    signing_key: SigningKey
    commitment: Commitment
    now_ms: Callable[[], int]
    now_ns: Callable[[], int]
    """Monotonic: what durations are measured with. In nanoseconds, as the machine's clock gives it: it is read for
    every token."""
    entropy: Callable[[int], bytes]
    skew_ms: Callable[[], int] = lambda: 0
    """Of this edge's clock, as control sees it."""
    note: Callable[[bytes], None] | None = None
    """Takes a line of a trace for replays; None where none is recorded."""
    retained_bytes: int = RETAINED_BYTES_MAX
    """What prompts and answers that could go on elsewhere may take in memory."""
    patience_ms: int = 3_000
    """How long a cut answer waits for a pool to go on in, where the law allows one that cannot be reached now."""


class Basis(msgspec.Struct, frozen=True):
    """What an attempt rests on, as far as whatever follows it has to know. The whole account is in the spool.

    It lives as long as the answer does; the account takes some kilobytes, and more with every pool of the fleet.
    """

    edge: Edge
    facts: Facts
    fleet: Fleet
    """The pools that the law was asked about."""
    permitted: tuple[Pool, ...]
    """Those that it allows."""
    duties: tuple[Obligation, ...]
    """Those that are done by headers of the answer."""


class _NotSent:
    """What an attempt that has not left leaves by."""

    async def next(self, now_us: int) -> StreamFrame | None:
        """Nothing comes of it."""
        return None

    async def close(self) -> None:
        """There is nothing to stop."""


NOT_SENT = _NotSent()


class Attempt(msgspec.Struct):
    """One send of one request to one pool."""

    asked: Asked
    decision_id: DecisionId
    attempt: AttemptId
    pool: Pool
    sendable: Sendable
    tally: Tally
    prompt: Prompt
    flight: Flight
    """What is learned from it by."""
    headers: tuple[tuple[str, str], ...]
    basis: Basis
    sent_us: int
    first_token: int
    """Where in the whole answer it begins."""
    noted: TraceLine | None
    """What a trace says of it so far; None where none is recorded."""
    continuing: Continuing = NOT_CONTINUED
    """What the replica that has it is, and could continue an answer by."""
    first_us: int | None = None
    spent: Spent | None = None
    """What it costs of the second attempts that the edge may make; None before it leaves."""
    held_us: int = 0
    """For how long the tenant did not take what was there for it."""
    sending: Sending = NOT_SENT
    """What it left by."""


class AttemptCounters:
    """The series that attempts are counted in."""

    __slots__ = ("denials", "mismatches", "not_placed_pools", "placements", "spool_refusals", "tokens")

    def __init__(self, metrics: Metrics) -> None:
        self.placements = metrics.counter(PLACEMENTS)
        self.not_placed_pools = metrics.counter(NOT_PLACED_POOLS)
        self.denials = metrics.counter(DENIALS)
        self.mismatches = metrics.counter(MISMATCHES)
        self.spool_refusals = metrics.counter(SPOOL_REFUSALS)
        self.tokens = metrics.counter(TOKENS)


class Attempts:
    """Makes attempts, and accounts for them."""

    def __init__(self, edge: EdgeId, hands: Hands) -> None:
        self._hands = hands
        self._counters = AttemptCounters(hands.metrics)
        self._edge = edge
        self._decider = Decider(edge)
        self._memory = Memory(edge, hands.commitment)
        self._signer = Signer(hands.signing_key)
        self._untaken = Untaken()
        self._given_up = GivenUp(hands.spool, hands.now_ms, hands.entropy)
        self._key_id = key_id_of(hands.signing_key.public_key)
        self.retries = RetryBudget()
        """What the edge spends on second attempts."""
        self.first_token: Callable[[Flight, int], None] = self._memory.first_token
        """Learns from the first token of an attempt how far the pool is."""

    async def open(
        self, asked: Asked, tried: frozenset[PoolId], before: Problem | None, now_us: int, again: bool
    ) -> Attempt:
        """Decide once, and put the record into the spool. Raises ProblemError when nothing may or can be sent.

        `again` says that it is not the first attempt of its request.
        """
        hands, memory = self._hands, self._memory
        if asked.budget_ms <= 0:
            raise ProblemError(Problem(TOTAL))
        bundle, now_ms = hands.bundle(), hands.now_ms()
        if bundle is None:
            raise ProblemError(Problem("no_bundle"))
        held = self._decider.held(bundle, now_ms, hands.skew_ms())
        prompt = memory.prompt(asked, held.edge, bundle.fleet)
        # From the views to the choice nothing waits, and the choice counts at once: decisions that are made while this
        # one is written down see it.
        known = memory.known(asked, prompt, bundle.fleet, held.ground.settings, hands.routes.view, now_us)
        decided = self._decider.decide(
            asked, held, known.expected, known.views, tried, before, hands.commitment, now_ms, hands.entropy
        )
        chosen = decided.chosen
        flight: Flight | None = None
        if chosen is not None:
            before_belief = known.before_belief.get(chosen.pool.id, 0)
            flight = memory.sent(asked, prompt, decided.shape, chosen, before_belief, now_us)
        attempt: Attempt | None = None
        try:
            record = record_of(asked, decided, hands.commitment)
            sealing: Sealing | None = None
            if chosen is not None:
                pool, facts, citation = chosen.pool.id, decided.travelling, decided.citation
                inputs = None if decided.inputs is None else decided.inputs.digest
                sealing = self._signer.add(
                    attestation_bytes(self._edge, decided.attempt, decided.id, pool, facts, citation, inputs)
                )
            appending: asyncio.Future[Position] | None = None
            try:
                appending = hands.spool.append_async(
                    DECISION,
                    RecordId(record.id),
                    record.to_bytes(),
                    durable=record.regulated,
                    rank=Rank.SPARE if chosen is None else _NEW,
                    retain_until_ms=now_ms + decided.owes.retain_ms if decided.owes.retain_ms else 0,
                    holder=Holder(asked.tenant.id),
                )
                await appending
            except asyncio.CancelledError:
                if chosen is not None and appending is not None:
                    self._given_up.close(appending, asked, decided, chosen.pool.id)
                raise
            except SpoolError as error:
                # Without it nothing is sent; a refusal is said even when it is not recorded.
                self._not_taken(record.id, error)
                if chosen is not None:
                    raise ProblemError(without_record(error)) from error
            permitted = self._count(decided)
            if chosen is None or sealing is None or flight is None:
                raise self._refused(asked, decided, record.outcome)
            seal = sealing.made or sealing.make()
            attempt = self._made(asked, decided, chosen.pool, seal, bundle.fleet, permitted, prompt, flight)
            attempt.spent = self.retries.sent(again, attempt.sent_us)
        finally:
            if attempt is None and flight is not None:
                memory.ended(flight, asked, prompt, None, hands.now_ns() // 1000)
        if memory.changed:
            _tell(memory.changes())
        memory.left(attempt.flight, attempt.sent_us)
        return attempt

    def _made(
        self,
        asked: Asked,
        decided: Decided,
        pool: Pool,
        seal: bytes,
        fleet: Fleet,
        permitted: tuple[Pool, ...],
        prompt: Prompt,
        flight: Flight,
    ) -> Attempt:
        """Return what leaves, now that its record is kept."""
        hands, said, continued = self._hands, asked.generation.said, asked.continued
        sendable = Sendable(
            decided.attempt,
            decided.id,
            asked.request,
            pool.id,
            asked.generation,
            decided.travelling,
            decided.citation,
            self._key_id,
            seal,
            asked.budget_ms,
            decided.inputs,
            asked.waits,
            None if continued is None else continued.attempt,
        )
        headers: tuple[tuple[str, str], ...] = ()
        duties: tuple[Obligation, ...] = ()
        for done in decided.discharged:
            if done.headers:
                headers += done.headers
                duties += (done.obligation,)
        return Attempt(
            asked,
            decided.id,
            decided.attempt,
            pool,
            sendable,
            Tally(),
            prompt,
            flight,
            headers,
            Basis(decided.edge, decided.decision.facts, fleet, permitted, duties),
            hands.now_ns() // 1000,
            0 if said is None else said.tokens,
            None if hands.note is None else line_of(asked, decided),
        )

    def _refused(self, asked: Asked, decided: Decided, code: str) -> ProblemError:
        """Log that a request is refused, and return what is raised."""
        log.info(Event.REQUEST_REFUSED, request_id=asked.request, decision_id=decided.id, code=code)
        if self._hands.note is not None:
            self._hands.note(refused_line(asked, decided, code))
        problem, placement = decided.problem or Problem("internal_error"), decided.decision.placement
        held_off = [one.pool.id for one in placement.candidates if one.drop is Drop.BREAKER]
        if held_off and problem.code == "no_feasible_pool":
            alone = self._memory.alone(held_off, decided.shape.model, self._hands.now_ns() // 1000)
            problem = problem_of(placement, decided.shape, alone)
        return ProblemError(problem)

    async def depart(self, attempt: Attempt, departure: Departure) -> None:
        """Tell whoever has to know before the request is sent. Nothing has left yet. Raises ProblemError."""
        hands, basis = self._hands, attempt.basis
        bundle = hands.bundle()
        may = attempt.asked.tenant.keep_results and bundle is not None
        if may and bundle is not None:
            may = may_keep(bundle, basis.edge, attempt.pool, basis.facts, hands.skew_ms(), hands.now_ms())
        await departure.before_send(may_keep=may)

    async def end(
        self,
        attempt: Attempt,
        outcome: Outcome,
        last: Done | Broken | Refused | None,
        price: Money | None,
        resumable: Resumable | None,
    ) -> None:
        """Stop an attempt that is over, learn from it, and record what was used, also where that is nothing.

        Once for each one, whatever stopping it comes to.
        """
        try:
            await attempt.sending.close()
        finally:
            record = self._learned(attempt, outcome, last, price, resumable)
            try:
                # Nothing waits before this: whoever is cancelled from here on has left the record to be written.
                data, record_id = record.to_bytes(), RecordId(record.id)
                # Under a key a result may be sent again for nothing: what it cost first must be as durable as it is.
                durable = attempt.asked.departure is not None and outcome is not Outcome.REFUSED
                holder = Holder(attempt.asked.tenant.id)
                await self._hands.spool.append_async(
                    USAGE, record_id, data, durable=durable, rank=_CLOSES, holder=holder
                )
            except SpoolError as error:
                log.error(Event.SPOOL_FAILED, record_id=record.id, exception=type(error).__name__)
                self._count_untaken(error)

    def _learned(
        self,
        attempt: Attempt,
        outcome: Outcome,
        last: Done | Broken | Refused | None,
        price: Money | None,
        resumable: Resumable | None,
    ) -> UsageRecord:
        """Learn from an attempt that is over, and return what was used.

        The edge's own counts stand first; the pool's are marked as reported.
        """
        hands, tally = self._hands, attempt.tally
        now_ms, now_us = hands.now_ms(), hands.now_ns() // 1000
        if attempt.spent is not None:
            self.retries.ended(attempt.spent, now_us)
        # Where the tenant was slow to read, how long it took says little.
        held_up = attempt.first_us is not None and attempt.held_us * HELD_UP_SHARE > now_us - attempt.first_us
        self._memory.ended(attempt.flight, attempt.asked, attempt.prompt, _believed(attempt, last), now_us, held_up)
        if self._memory.changed:
            _tell(self._memory.changes())
        ended = last if type(last) is Done or type(last) is Broken else None
        if hands.note is not None and attempt.noted is not None and outcome is not Outcome.REFUSED:
            hands.note(self._line(attempt, attempt.noted, outcome, ended))
        pool, tokens, counted = attempt.pool.id, self._counters.tokens, tally.counts()
        tokens[pool, "received"].value += counted.received
        tokens[pool, "delivered"].value += counted.delivered
        counts = Counts(
            ByEdge(counted.delivered, counted.received, False),
            None if ended is None else by_pool(ended.counts, reported=True),
        )
        return UsageRecord(
            attempt.attempt,
            attempt.sendable.continues,
            _COUNTED_IDS if attempt.pool.engine is None else Counted.CHUNKS,
            counts,
            attempt.decision_id,
            now_ms,
            attempt.first_token,
            make_usage_id(now_ms, hands.entropy(RANDOM_BYTES)),
            KIND,
            attempt.asked.generation.model,
            outcome,
            pool,
            None if price is None else Price(str(price.amount_pico), price.currency),
            attempt.asked.request,
            resumable,
            attempt.asked.tenant.id,
        )

    def _count(self, decided: Decided) -> tuple[Pool, ...]:
        """Count the choice, the pools that were left out, and the rules behind each that the law refuses.

        Returns the pools that it allows.
        """
        counters, decision = self._counters, decided.decision
        permitted: tuple[Pool, ...] = ()
        if decided.chosen is not None:
            counters.placements[decided.chosen.pool.id].value += 1
        for mismatch in decision.mismatches:
            counters.mismatches[mismatch.axis].value += 1
            log.warning(Event.LABEL_MISMATCH, decision_id=decided.id, axis=mismatch.axis, source=mismatch.source)
        for candidate in decision.placement.candidates:
            if candidate.drop is not None:
                counters.not_placed_pools[candidate.drop].value += 1
            verdict = candidate.verdict
            if verdict.allowed:
                permitted += (candidate.pool,)
                continue
            if FAULT in verdict.rules:  # a bug in the law's code: refused, and told
                log.error(Event.POLICY_DISAGREED, decision_id=decided.id, pool=candidate.pool.id, rule=FAULT)
            for rule in verdict.rules:
                counters.denials[rule].value += 1
        return permitted

    def _not_taken(self, record_id: str, error: SpoolError) -> None:
        """A decision has no record, and nothing was sent by it."""
        self._count_untaken(error)
        told = self._untaken.line(error, self._hands.now_ns() // 1000)
        if told is not None:
            told.say(log, record_id)

    def _count_untaken(self, error: SpoolError) -> None:
        if isinstance(error, SpoolFull):
            self._counters.spool_refusals[error.reason.value].value += 1

    def _line(self, attempt: Attempt, noted: TraceLine, outcome: Outcome, last: Done | Broken | None) -> bytes:
        """Return what a trace says of an attempt that has ended."""
        began_us, now_us = attempt.sent_us, self._hands.now_ns() // 1000
        first_us = None if attempt.first_us is None else attempt.first_us - began_us
        said = last.code if isinstance(last, Broken) else outcome.value
        counts = None if last is None else last.counts
        return ended_line(
            noted,
            said,
            counts or PoolCounts(generated=attempt.tally.received),
            first_us,
            now_us - began_us,
        )

    def bill(self, attempt: Attempt, told: PoolCounts, delivered: int) -> tuple[PoolCounts, Money | None]:
        """Return what the tenant is told to have used, and what it pays for it; None where that has no price.

        The prompt as the pool `told` it, as far as that can be; the answer as it was `delivered`, in tokens.
        """
        asked, pool = attempt.asked, attempt.pool
        counts, model = billable(told, asked.generation, len(asked.body), pool, delivered), asked.generation.model
        if counts is not told:
            limits = {"prompt_tokens": told.prompt, "limit": counts.prompt}
            log.warning(Event.USAGE_DOUBTED, attempt_id=attempt.attempt, pool=pool.id, model=model, **limits)
        bundle = self._hands.bundle()
        price = None if bundle is None else bundle.prices.price(asked.tenant.price_book, model)
        if price is None:
            return counts, None
        cached = counts.cached if counts.cached < counts.prompt else counts.prompt
        return counts, rate(price, counts.prompt, cached, delivered)


def _believed(attempt: Attempt, last: Done | Broken | Refused | None) -> Done | Broken | Refused | None:
    """Return the end of an attempt to learn from: with no more of the prompt than is billed."""
    if type(last) is not Done:
        return last
    asked, counts = attempt.asked, last.counts
    believed = billable(counts, asked.generation, len(asked.body), attempt.pool, attempt.tally.received)
    return last if believed is counts else replace(last, counts=believed)


def _tell(changes: tuple[Change, ...]) -> None:
    """Log which pools became outliers, are tried or came back."""
    for change in changes:
        hold_ms = {"duration_ms": change.hold_us // 1000} if change.turn is Turn.OUT else {}
        log.warning(_EVENTS[change.turn], pool=change.place, model=change.model, **hold_ms)
