"""The gate: label, permit, place, evidence, send. There is no other way for a payload to leave the edge.

The order is the promise: a decision record is in the spool before the first byte leaves, and when the payload is
regulated it is on disk. No evidence, no send. A pool that refuses without having started is free, and the request is
placed again. An answer that is cut goes on elsewhere by the same door: the law is asked again for the prompt and what
was said, and only an equal model goes on, from the next token.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from typing import Protocol, Self

import msgspec
from msgspec.structs import replace

from node_agent.border.attempts import Attempt, Attempts, Hands
from node_agent.border.bill import tokens_most
from node_agent.border.decider import Asked
from node_agent.border.resume import (
    AWAY,
    GOES_ON_AFTER,
    MISBEHAVED,
    Continued,
    Kept,
    Retained,
    Segment,
    Stopped,
    kept_not,
    stopped_by,
)
from orchestrator.engines.chunks import TEXTS_BEYOND
from orchestrator.engines.identity import Continuing
from orchestrator.ledger.money import Money
from orchestrator.ledger.usage import Outcome, PoolCounts, Resumable
from orchestrator.placement.fleet import Pool
from orchestrator.policy.ids import DecisionId, EdgeId, PoolId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import STREAMS_CONTINUED, Event
from orchestrator.wire.catalogue import Problem, ProblemError, Retry
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, StreamFrame, Tokens

PLACEMENTS_MAX = 3
"""The first placement and at most two more, where pools refuse what they have not started."""
ATTEMPTS_MAX = 4
"""Of one request, however they end: one that breaks whatever it runs on takes no more than these with it."""
SEED_BYTES = 8
REFRESHED = frozenset({"policy_newer", "policy_stale"})
"""Refusals that a newer bundle may answer."""
FREE_AGAIN = REFRESHED | {"draining", "engine_unreachable", "no_replica"}
"""Refusals after which a second attempt counts against no budget: no load brought them about."""
NO_RECORD_THERE = frozenset({"evidence_share", "evidence_unavailable"})
"""Refusals of a whole site: its pools have one spool."""
REFRESH_POLLS = 25
REFRESH_POLL_S = 0.02
COMES_BACK = frozenset({"no_feasible_pool", "session_lost", "engine_unreachable", "no_replica", "engine_busy"})
"""What may be over in a moment: a scheduler that starts anew is found again, and so are its replicas."""
PAUSE_MS = 100
"""Before a cut answer looks for a pool again; twice as long each time."""
# To find a member of an enum by its class takes longer than to compare it.
_COMPLETE, _CANCELLED = Outcome.COMPLETE, Outcome.CANCELLED

log = logger("node_agent.border")


class Frames(Protocol):
    """Tokens, then one terminal frame. Whoever has it closes it, which cancels what has not ended."""

    def __aiter__(self) -> AsyncIterator[Tokens | Done | Broken]:
        """Return itself."""

    def __anext__(self) -> Awaitable[Tokens | Done | Broken]:
        """Return the next frame."""

    def aclose(self) -> Awaitable[None]:
        """Nobody wants more of it."""


class Answer(msgspec.Struct):
    """An answer that has begun: where it runs, and what is still to come."""

    decision: DecisionId
    pool: Pool
    """Where it began."""
    frames: Frames
    headers: tuple[tuple[str, str], ...] = ()
    """What the law wants said with the answer."""
    price: Money | None = None
    """Set when the answer is complete."""
    segments: list[Segment] = []
    """Every part of it, by the attempt that brought it."""
    stopped: Stopped | None = None
    """Set before the terminal frame of an answer that was cut: why it does not go on."""


class Gate:
    """The only door to the uplink."""

    def __init__(self, edge_name: str, hands: Hands) -> None:
        self._hands = hands
        self._attempts = Attempts(EdgeId(edge_name), hands)
        self._retained = Retained(hands.retained_bytes)

    def ask(self, asked: Asked) -> Coroutine[None, None, Answer]:
        """Decide, record and send. Returns when the answer has begun.

        Raises ProblemError: refused by law, nothing feasible, no evidence, or cut before the first token for good.
        """
        hands, kept = self._hands, Kept(self._retained, asked.resumes)
        asked = _seeded(asked, hands.entropy)
        return _Course(hands, self._attempts, asked, kept, hands.now_ns() // 1000).begin(None)


class _Course(msgspec.Struct, eq=False):
    """One request on its way, and the frames of its answer: over all of its attempts, each settled however it ends.

    No generator: one that was never asked for a frame closes without settling, and none is as cheap to ask.
    """

    _hands: Hands
    _attempts: Attempts
    _asked: Asked
    """What is asked for; once an answer was cut, with what was said of it."""
    _kept: Kept
    _began_us: int
    _answer: Answer | None = None
    """What is told of it. None before it has begun and once it is over: the two hold each other."""
    _going: Attempt | None = None
    """What has begun to answer, and is not settled."""
    _first: Tokens | Done | None = None
    """The frame that it began with, until that is asked for."""
    _tokens_most: int = sys.maxsize
    """How many tokens the answer may have: what was asked for, or what fits into the context of whoever makes it."""
    _beyond: int = 0
    """How many came beyond them. The tenant has their text for nothing."""
    _given_us: int = 0
    """When the tenant got its last tokens."""
    _sent: int = 0
    """How many attempts were made."""
    _started: bool = False
    """Whether an attempt may have begun somewhere."""
    _tried: frozenset[PoolId] = frozenset()
    """Pools that get no attempt before something changes."""
    _barred: frozenset[PoolId] = frozenset()
    """Pools that get none at all."""
    _permitted: tuple[Pool, ...] = ()
    """Where the last attempt that was cut might have gone."""
    _stopped: Stopped | None = None
    """Why an attempt that was cut before it said a word is not replaced."""
    _problem: Problem | None = None
    """What kept the last attempt from beginning."""
    _refused: int = 0
    """How many attempts in a row pools refused."""

    def __repr__(self) -> str:
        return f"_Course({self._asked.request})"

    async def begin(self, answer: Answer | None) -> Answer:
        """Send until an attempt begins to answer: from the start, or where `answer` was cut. Raises ProblemError.

        One coroutine and a long one: what comes wakes every coroutine between it and the connection.
        """
        hands, attempts, begun = self._hands, self._attempts, False
        if answer is None:
            self._kept.take(len(self._asked.body))
        left_ms, pause_ms = hands.patience_ms, PAUSE_MS
        try:
            while True:
                try:
                    # Before the first attempt nothing has passed.
                    now_us, asked, again = self._began_us, self._asked, self._sent > 0
                    if again:
                        now_us = hands.now_ns() // 1000
                        if self._refused and self._counts_again() and not attempts.retries.may_retry(now_us):
                            raise ProblemError(self._problem or Problem("no_feasible_pool"))
                        asked = self._left(now_us)
                    attempt = await attempts.open(asked, self._tried, self._problem, now_us, again)
                    self._sent += 1
                    first: Tokens | Done | Broken | Refused | None = None
                    now_us = attempt.sent_us
                    try:
                        if asked.departure is not None:
                            await attempts.depart(attempt, asked.departure)
                            now_us = hands.now_ns() // 1000
                        sending = hands.routes.send(attempt.pool, attempt.sendable, attempt.tally, now_us)
                        attempt.sending = sending
                        frame = await sending.next(now_us)
                        now_us = hands.now_ns() // 1000
                        while type(frame) is Accepted:
                            attempt.continuing = frame.continuing
                            frame = await sending.next(now_us)
                            now_us = hands.now_ns() // 1000
                        first = _heard(attempt, frame)
                    finally:
                        if first is None:  # the tenant hung up: the work must stop, and what was begun is settled
                            await attempts.end(attempt, _CANCELLED, None, None, None)
                    if type(first) is Tokens or type(first) is Done:
                        told_of = self._begun(attempt, first, now_us, answer)
                        begun = True
                        return told_of
                    await self._not_begun(attempt, first)
                except ProblemError as error:
                    left_ms, pause_ms = await self._comes_back(error.problem, left_ms, pause_ms)
        finally:
            if not begun:
                self._kept.drop()

    def _begun(self, attempt: Attempt, first: Tokens | Done, now_us: int, answer: Answer | None) -> Answer:
        """An attempt begins to answer: learn from it how far the pool is, and return what is told of the answer."""
        self._started = True
        attempt.first_us = now_us
        self._attempts.first_token(attempt.flight, now_us)
        self._going, self._first = attempt, first
        self._kept.accepted(attempt.continuing)
        self._tokens_most = tokens_most(self._asked.generation, attempt.pool)
        segment = Segment(attempt.pool, attempt.decision_id, self._kept.tokens)
        if answer is None:
            self._answer = Answer(attempt.decision_id, attempt.pool, self, attempt.headers, None, [segment])
            return self._answer
        answer.segments.append(segment)
        return answer

    async def _not_begun(self, attempt: Attempt, last: Broken | Refused) -> None:
        """An attempt ended before it said a word: another may take its place. Raises ProblemError where none does."""
        asked, code = self._asked, last.code
        if isinstance(last, Broken):
            self._started = True
            await self._attempts.end(attempt, Outcome.BROKEN, last, None, None)
            self._problem, self._refused = Problem(code, last.detail), 0
            log.info(Event.STREAM_CUT, request_id=asked.request, pool=attempt.pool.id, code=code)
            self._stopped = self._goes_on(code)
            if self._stopped is not None:
                raise ProblemError(self._problem)
            self._cut(attempt, code, spoke=False)
            if self._kept.begun:
                # As of any cut answer: where no pool is left the next decision says so, and that is waited for.
                self._problem = None
            return
        if attempt.asked.departure is not None and not self._started:
            attempt.asked.departure.not_started()
        await self._attempts.end(attempt, Outcome.REFUSED, last, None, None)
        problem = Problem(code, last.detail, last.param, last.rules, "", last.retry_after_ms)
        self._problem, self._refused, code = problem, self._refused + 1, problem.entry.code
        log.info(Event.ATTEMPT_REFUSED, request_id=asked.request, pool=attempt.pool.id, code=code)
        if problem.entry.retry is not Retry.ELSEWHERE:
            raise ProblemError(problem)
        if code not in REFRESHED or not await self._refreshed(attempt.sendable.citation.manifest):
            # Under newer law the same pool may well be right.
            self._tried |= _without_record(attempt) if code in NO_RECORD_THERE else {attempt.pool.id}
        if self._refused >= PLACEMENTS_MAX or self._sent >= ATTEMPTS_MAX:
            raise ProblemError(problem)

    def _counts_again(self) -> bool:
        """Whether one more attempt after a refusal counts against the budget of second ones."""
        return self._problem is not None and self._problem.code not in FREE_AGAIN

    def _left(self, now_us: int) -> Asked:
        """Return what is asked for, with the time that is left for it."""
        passed_ms = (now_us - self._began_us) // 1000
        if not self._kept.begun:
            return self._asked.after(passed_ms)
        # The tenant has tokens: another pool has the whole wait for its first one again.
        return replace(self._asked, budget_ms=max(0, self._asked.budget_ms - passed_ms))

    def _goes_on(self, code: str) -> Stopped | None:
        """Return why there is no other attempt after one that was cut by `code`; None where there may be one."""
        if code not in GOES_ON_AFTER:
            return Stopped("cause", "What cut it would cut it again.")
        if self._sent >= ATTEMPTS_MAX:
            return Stopped("attempts", f"It was cut {ATTEMPTS_MAX} times.")
        tenant = self._kept.resumable is Resumable.TENANT
        return kept_not(self._kept.resumable) if self._kept.begun or tenant else None

    def _cut(self, attempt: Attempt, code: str, spoke: bool) -> None:
        """An attempt was cut: the next one takes its place. `spoke` is whether it said something."""
        asked, basis = self._asked, attempt.basis
        before, said = asked.continued, self._kept.said()
        processed_in = frozenset() if before is None else before.processed_in
        duties = frozenset() if before is None else before.duties
        if spoke:
            processed_in |= attempt.pool.place.soil()
            if not duties:
                duties = frozenset(basis.duties)
            # Prompt and answer together may go nowhere that the prompt alone might not.
            permitted = {pool.id for pool in basis.permitted}
            self._barred |= {pool.id for pool in basis.fleet.pools} - permitted
        if code in MISBEHAVED:
            self._barred |= {attempt.pool.id}
        self._tried = self._barred | {attempt.pool.id} if code in AWAY else self._barred
        self._permitted = tuple(pool for pool in basis.permitted if pool.id not in self._barred)
        label = None if said is None else basis.facts.label
        continued = Continued(attempt.attempt, label, processed_in, duties)
        self._asked = replace(asked, generation=replace(asked.generation, said=said), continued=continued)

    async def _refreshed(self, number: int) -> bool:
        """Wait for a newer manifest than `number`. Returns whether there is one."""
        for _ in range(REFRESH_POLLS):
            bundle = self._hands.bundle()
            if bundle is not None and bundle.number > number:
                return True
            await asyncio.sleep(REFRESH_POLL_S)
        return False

    async def _comes_back(self, problem: Problem, left_ms: int, pause_ms: int) -> tuple[int, int]:
        """Wait for what `problem` keeps a cut answer from: no permitted pool can go on now, but one may be coming back.

        Returns how long is left to wait, and to pause next. Raises ProblemError where there is nothing to wait for.
        """
        over = self._sent >= ATTEMPTS_MAX or left_ms <= 0
        # A request that nothing has cut is not held: its client is told, and may come again.
        if over or self._asked.continued is None or problem.code not in COMES_BACK:
            raise ProblemError(problem)
        self._tried, self._problem, self._refused = self._barred, None, 0
        open_again = False
        while left_ms > 0 and not open_again:
            pause_ms = min(pause_ms, left_ms)
            await asyncio.sleep(pause_ms / 1000)
            left_ms, pause_ms = left_ms - pause_ms, pause_ms * 2
            open_again = any(self._open(pool) for pool in self._permitted)
        return left_ms, pause_ms

    def _open(self, pool: Pool) -> bool:
        """Whether there is a way to a pool, and a replica there."""
        up, _, load, _ = self._hands.routes.view(pool, self._hands.now_ns() // 1000)
        return up and (load is None or load.replicas > 0)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Tokens | Done | Broken:
        """Return the next frame. Whatever keeps it from that ends the answer."""
        answer, going = self._answer, self._going
        if answer is None or going is None:
            raise StopAsyncIteration
        told: Tokens | Done | Broken | None = None
        hands = self._hands
        try:
            frame: StreamFrame | None
            frame, self._first = self._first, None
            if frame is None:
                asked_us = hands.now_ns() // 1000
                going.held_us += asked_us - self._given_us
                frame = await going.sending.next(asked_us)
            while told is None:
                if type(frame) is Tokens:
                    if self._kept.tokens + frame.count <= self._tokens_most:
                        told = frame
                    else:
                        frame = self._within(going, frame)
                        told = frame if type(frame) is Tokens else None
                elif type(frame) is Done:
                    counts, answer.price = self._attempts.bill(going, frame.counts, self._kept.tokens)
                    # Before the tenant has its end: what is told to be whole is on the bill by then. The record keeps
                    # what the pool told.
                    await self._end(_COMPLETE, frame, answer.price)
                    told = frame if counts is frame.counts else replace(frame, counts=counts)
                elif type(frame) is Broken or frame is None:
                    cut = frame or _lost(going)
                    await self._end(Outcome.BROKEN, cut, answer.price)
                    if self._answer is not None:
                        await self._go_on(going, cut, answer)
                    if self._answer is None:  # closed meanwhile: nobody wants it to go on
                        await self._end(_CANCELLED, None, None)
                        raise StopAsyncIteration
                    if self._going is None:
                        told = cut
                    else:
                        going, frame, self._first = self._going, self._first, None
                else:
                    frame = await going.sending.next(hands.now_ns() // 1000)
        finally:
            if told is None:
                await self.aclose()
        if type(told) is not Tokens:
            # It ended, and what it used is settled.
            self._answer = None
            self._kept.drop()
            return told
        self._kept.add(told)
        segment = answer.segments[-1]
        segment.tokens += told.count
        self._given_us = hands.now_ns() // 1000
        return _placed(told, segment.first_token) if segment.first_token else told

    def _within(self, attempt: Attempt, frame: Tokens) -> Tokens | Broken:
        """Return tokens that go beyond what the answer may have, without those that do; where they are many, its end.

        Whoever makes it holds its engines to the same, and where it did not it is not believed.
        """
        room = max(0, self._tokens_most - self._kept.tokens)
        beyond = frame.count - room
        self._beyond += beyond
        if self._beyond <= TEXTS_BEYOND:
            attempt.tally.beyond += beyond
            return replace(frame, count=room)
        detail = "The pool went on beyond the tokens that it was asked for, or that its context holds."
        return Broken(frame.stream, attempt.attempt, "engine_protocol", detail, PoolCounts())

    async def _go_on(self, attempt: Attempt, last: Broken, answer: Answer) -> None:
        """Have another attempt go on with a cut answer; where none may or can, say why."""
        request, kept, code = self._asked.request, self._kept, last.code
        log.info(Event.STREAM_CUT, request_id=request, pool=attempt.pool.id, code=code)
        how = "not_resumable"
        answer.stopped = self._goes_on(code)
        if answer.stopped is None:
            self._cut(attempt, code, spoke=kept.begun)
            self._problem, self._refused = None, 0
            try:
                await self.begin(answer)
            except ProblemError as error:
                answer.stopped = self._stopped or stopped_by(error.problem)
                how = "refused" if answer.stopped.reason == "law" else "failed"
            else:
                how = "resumed_ids" if kept.resumable is Resumable.IDS else "resumed_text"
                part = answer.segments[-1]
                log.info(Event.STREAM_CONTINUED, request_id=request, pool=part.pool.id, decision_id=part.decision)
        self._hands.metrics.counter(STREAMS_CONTINUED)[how].value += 1

    async def aclose(self) -> None:
        """It is over: what has not ended is stopped, and settled as cancelled."""
        answer, self._answer = self._answer, None
        if answer is None:
            return
        try:
            if self._going is not None:
                await self._end(_CANCELLED, None, answer.price)
        finally:
            self._kept.drop()

    def _end(self, outcome: Outcome, last: Done | Broken | None, price: Money | None) -> Awaitable[None]:
        """Stop the attempt that is under way, and settle it. Once for each one."""
        going, self._going = self._going, None
        if going is None:
            return _nothing()
        return self._attempts.end(going, outcome, last, price, self._kept.resumable)


async def _nothing() -> None:
    """What is left to do of an attempt that was ended already."""


def _without_record(attempt: Attempt) -> frozenset[PoolId]:
    """Return every pool whose site has no room for records, as that of an attempt has none."""
    pool = attempt.pool
    site = () if pool.scheduler is None else attempt.basis.permitted
    return frozenset({pool.id, *(other.id for other in site if other.scheduler == pool.scheduler)})


def _seeded(asked: Asked, entropy: Callable[[int], bytes]) -> Asked:
    """Fix the seed: another replica then draws as the first one would have gone on to."""
    sampling = asked.generation.sampling
    if sampling.seed is not None or sampling.temperature == 0:
        return asked
    seed = int.from_bytes(entropy(SEED_BYTES), "big")
    return replace(asked, generation=replace(asked.generation, sampling=replace(sampling, seed=seed)))


def _heard(attempt: Attempt, frame: Tokens | Done | Broken | Refused | None) -> Tokens | Done | Broken | Refused:
    """Return the frame that says how an attempt goes: tokens, an end, or a refusal.

    Of an answer that goes on, not a token is taken before the replica has said that it is an equal.
    """
    said = attempt.asked.generation.said
    if frame is None:
        return _lost(attempt)
    if said is None or type(frame) is Broken or type(frame) is Refused:
        return frame
    if attempt.continuing == Continuing(said.identity, said.by):
        return frame
    detail = "The pool did not say that its model is the one that began the answer."
    return Broken(frame.stream, attempt.attempt, "identity_mismatch", detail, PoolCounts())


def _placed(frame: Tokens, first_token: int) -> Tokens:
    """Return tokens by their place in the whole answer."""
    return replace(frame, first=first_token + frame.first)


def _lost(attempt: Attempt) -> Broken:
    return Broken(0, attempt.attempt, "session_lost", "The way to the pool ended.", PoolCounts())
