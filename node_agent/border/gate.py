"""The gate: label, permit, place, evidence, send. There is no other way for a payload to leave the edge.

The order is the promise: a decision record is in the spool before the first byte leaves, and when the payload is
regulated it is on disk. No evidence, no send. A pool that refuses without having started is free, and the request is
placed again. An answer that is cut goes on elsewhere by the same door: the law is asked again for the prompt and what
was said, and only an equal model goes on, from the next token.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

import msgspec
from msgspec.structs import replace

from node_agent.border.attempts import Attempt, Attempts, Hands
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
REFRESH_POLLS = 25
REFRESH_POLL_S = 0.02
COMES_BACK = frozenset({"no_feasible_pool", "session_lost", "engine_unreachable", "no_replica", "engine_busy"})
"""What may be over in a moment: a scheduler that starts anew is found again, and so are its replicas."""
PAUSE_MS = 100
"""Before a cut answer looks for a pool again; twice as long each time."""

log = logger("node_agent.border")


class Answer(msgspec.Struct):
    """An answer that has begun: where it runs, and what is still to come."""

    decision: DecisionId
    pool: Pool
    """Where it began."""
    frames: AsyncGenerator[Tokens | Done | Broken, None]
    """Tokens, then one terminal frame. Closing it cancels the attempt."""
    headers: tuple[tuple[str, str], ...] = ()
    """What the law wants said with the answer."""
    price: Money | None = None
    """Set when the answer is complete."""
    segments: list[Segment] = []
    """Every part of it, by the attempt that brought it."""
    stopped: Stopped | None = None
    """Set before the terminal frame of an answer that was cut: why it does not go on."""


class _Run(msgspec.Struct):
    """One request on its way through its attempts."""

    asked: Asked
    kept: Kept
    began_us: int
    sent: int = 0
    started: bool = False
    """Whether an attempt may have begun somewhere."""
    tried: frozenset[PoolId] = frozenset()
    """Pools that get no attempt before something changes."""
    barred: frozenset[PoolId] = frozenset()
    """Pools that get none at all."""
    permitted: tuple[Pool, ...] = ()
    """Where the last attempt that was cut might have gone."""
    stopped: Stopped | None = None
    """Why an attempt that was cut before it said a word is not replaced."""

    def left(self, now_us: int) -> Asked:
        """Return what is asked for, with the time that is left for it."""
        passed_ms = (now_us - self.began_us) // 1000
        if not self.kept.begun:
            return self.asked.after(passed_ms)
        # The tenant has tokens: another pool has the whole wait for its first one again.
        return replace(self.asked, budget_ms=max(0, self.asked.budget_ms - passed_ms))

    def goes_on(self, code: str) -> Stopped | None:
        """Return why there is no other attempt after one that was cut by `code`; None where there may be one."""
        if code not in GOES_ON_AFTER:
            return Stopped("cause", "What cut it would cut it again.")
        if self.sent >= ATTEMPTS_MAX:
            return Stopped("attempts", f"It was cut {ATTEMPTS_MAX} times.")
        tenant = self.kept.resumable is Resumable.TENANT
        return kept_not(self.kept.resumable) if self.kept.begun or tenant else None

    def cut(self, attempt: Attempt, code: str, spoke: bool) -> None:
        """An attempt was cut: the next one takes its place. `spoke` is whether it said something."""
        before, basis = self.asked.continued, attempt.basis
        said = self.kept.said()
        processed_in = frozenset() if before is None else before.processed_in
        duties = frozenset() if before is None else before.duties
        if spoke:
            processed_in |= attempt.pool.place.soil()
            if not duties:
                duties = frozenset(basis.duties)
            # Prompt and answer together may go nowhere that the prompt alone might not.
            permitted = {pool.id for pool in basis.permitted}
            self.barred |= {pool.id for pool in basis.fleet.pools} - permitted
        if code in MISBEHAVED:
            self.barred |= {attempt.pool.id}
        self.tried = self.barred | {attempt.pool.id} if code in AWAY else self.barred
        self.permitted = tuple(pool for pool in basis.permitted if pool.id not in self.barred)
        label = None if said is None else basis.facts.label
        continued = Continued(attempt.attempt, label, processed_in, duties)
        self.asked = replace(
            self.asked, generation=replace(self.asked.generation, said=said), continued=continued
        )


class _Begun(msgspec.Struct, frozen=True):
    """An attempt that has begun to answer."""

    attempt: Attempt
    first: Tokens | Done
    frames: AsyncGenerator[StreamFrame, None]


class Gate:
    """The only door to the uplink."""

    def __init__(self, edge_name: str, hands: Hands) -> None:
        self._hands = hands
        self._attempts = Attempts(EdgeId(edge_name), hands)
        self._retained = Retained(hands.retained_bytes)

    async def ask(self, asked: Asked) -> Answer:
        """Decide, record and send. Returns when the answer has begun.

        Raises ProblemError: refused by law, nothing feasible, no evidence, or cut before the first token for good.
        """
        kept = Kept(self._retained, len(asked.body), asked.resumes)
        run = _Run(self._seeded(asked), kept, self._hands.now_us())
        begun: _Begun | None = None
        try:
            begun = await self._begin_when_it_can(run)
        finally:
            if begun is None:
                run.kept.drop()
        attempt = begun.attempt
        answer = Answer(attempt.decision_id, attempt.pool, _empty(), attempt.headers)
        answer.segments.append(Segment(attempt.pool, attempt.decision_id, 0))
        answer.frames = self._rest(run, begun, answer)
        return answer

    def _seeded(self, asked: Asked) -> Asked:
        """Fix the seed: another replica then draws as the first one would have gone on to."""
        sampling = asked.generation.sampling
        if sampling.seed is not None or sampling.temperature == 0:
            return asked
        seed = int.from_bytes(self._hands.entropy(SEED_BYTES), "big")
        return replace(asked, generation=replace(asked.generation, sampling=replace(sampling, seed=seed)))

    async def _begin(self, run: _Run, problem: Problem | None) -> _Begun:
        """Send until an attempt begins to answer. Raises ProblemError; `problem` is what went wrong before."""
        refused = 0
        while True:
            # Before the first attempt nothing has passed.
            now_us = self._hands.now_us() if run.sent else run.began_us
            counted = refused and problem is not None and problem.code not in FREE_AGAIN
            if counted and not self._attempts.retries.may_retry(now_us):
                raise ProblemError(problem or Problem("no_feasible_pool"))
            attempt = await self._attempts.open(run.left(now_us), run.tried, problem, now_us, again=run.sent > 0)
            frames = self._hands.routes.send(attempt.pool, attempt.sendable, attempt.tally)
            run.sent += 1
            first: StreamFrame | None = None
            try:
                await self._attempts.depart(attempt)
                first = await self._first(attempt, frames)
            finally:
                if first is None:  # the tenant hung up: the work must stop, and what was begun is settled
                    await self._close(attempt, frames, Outcome.CANCELLED, None)
            match first:
                case Tokens() | Done():
                    run.started = True
                    self._attempts.began(attempt)
                    return _Begun(attempt, first, frames)
                case Broken():
                    run.started = True
                    await self._close(attempt, frames, Outcome.BROKEN, first)
                    problem = Problem(first.code, first.detail)
                    log.info(Event.STREAM_CUT, request_id=run.asked.request, pool=attempt.pool.id, code=first.code)
                    run.stopped = run.goes_on(first.code)
                    if run.stopped is not None:
                        raise ProblemError(problem)
                    run.cut(attempt, first.code, spoke=False)
                    refused = 0
                case Refused():
                    if run.asked.departure is not None and not run.started:
                        run.asked.departure.not_started()
                    await self._close(attempt, frames, Outcome.REFUSED, first)
                    refused += 1
                    problem = Problem(first.code, first.detail, first.param, first.rules, "", first.retry_after_ms)
                    await self._refused(run, attempt, problem, refused)

    async def _refused(self, run: _Run, attempt: Attempt, problem: Problem, refused: int) -> None:
        """A pool refused what it did not start: once more, elsewhere or under newer law. Raises ProblemError."""
        code = problem.entry.code
        log.info(Event.ATTEMPT_REFUSED, request_id=run.asked.request, pool=attempt.pool.id, code=code)
        if problem.entry.retry is not Retry.ELSEWHERE:
            raise ProblemError(problem)
        if code not in REFRESHED or not await self._refreshed(attempt.sendable.citation.manifest):
            # Under newer law the same pool may well be right.
            run.tried |= {attempt.pool.id}
        if refused >= PLACEMENTS_MAX or run.sent >= ATTEMPTS_MAX:
            raise ProblemError(problem)

    async def _first(self, attempt: Attempt, frames: AsyncGenerator[StreamFrame, None]) -> StreamFrame:
        """Return the first frame that says how it goes: tokens, an end, or a refusal.

        Of an answer that goes on, not a token is taken before the replica has said that it is an equal.
        """
        said = attempt.asked.generation.said
        async for frame in frames:
            if isinstance(frame, Accepted):
                attempt.continuing = frame.continuing
                continue
            equal = said is None or attempt.continuing == Continuing(said.identity, said.by)
            if not equal and isinstance(frame, Tokens | Done):
                detail = "The pool did not say that its model is the one that began the answer."
                return Broken(frame.stream, attempt.attempt, "identity_mismatch", detail, PoolCounts())
            return frame
        return _lost(attempt)

    async def _refreshed(self, number: int) -> bool:
        """Wait for a newer manifest than `number`. Returns whether there is one."""
        for _ in range(REFRESH_POLLS):
            bundle = self._hands.bundle()
            if bundle is not None and bundle.number > number:
                return True
            await asyncio.sleep(REFRESH_POLL_S)
        return False

    async def _rest(
        self, run: _Run, begun: _Begun, answer: Answer
    ) -> AsyncGenerator[Tokens | Done | Broken, None]:
        """Yield the answer over all of its attempts, and settle each however it ends."""
        hands, kept = self._hands, run.kept
        kept.accepted(begun.attempt.continuing)
        try:
            going: _Begun | None = begun
            while going is not None:
                attempt, frames, segment = going.attempt, going.frames, answer.segments[-1]
                outcome, settled = Outcome.CANCELLED, False
                cut: Broken | None = None
                frame: StreamFrame | None = going.first
                try:
                    try:
                        while cut is None:
                            match frame:
                                case Tokens():
                                    kept.add(frame)
                                    segment.tokens += frame.count
                                    given_us = hands.now_us()
                                    yield _placed(frame, segment.first_token) if segment.first_token else frame
                                    attempt.held_us += hands.now_us() - given_us
                                case Done():
                                    answer.price = self._attempts.price(attempt, frame.counts)
                                    # Before the tenant has its end: what is told to be whole is on the bill by then.
                                    settled = True
                                    complete = Outcome.COMPLETE
                                    await self._attempts.settle(attempt, complete, frame, answer.price, kept.resumable)
                                    yield frame
                                    return
                                case Broken() | None:
                                    outcome, cut = Outcome.BROKEN, frame or _lost(attempt)
                                    break
                            frame = await anext(frames, None)
                    finally:
                        await frames.aclose()
                finally:
                    if not settled:
                        await self._attempts.settle(attempt, outcome, cut, answer.price, kept.resumable)
                going = await self._go_on(run, attempt, cut, answer)
                if going is None:
                    yield cut
        finally:
            kept.drop()

    async def _go_on(self, run: _Run, attempt: Attempt, last: Broken, answer: Answer) -> _Begun | None:
        """Return the attempt that goes on with a cut answer; None, and why, where none may or can."""
        code = last.code
        log.info(Event.STREAM_CUT, request_id=run.asked.request, pool=attempt.pool.id, code=code)
        how = "not_resumable"
        answer.stopped = run.goes_on(code)
        begun: _Begun | None = None
        if answer.stopped is None:
            run.cut(attempt, code, spoke=run.kept.begun)
            try:
                begun = await self._begin_when_it_can(run)
            except ProblemError as error:
                answer.stopped = run.stopped or stopped_by(error.problem)
                how = "refused" if answer.stopped.reason == "law" else "failed"
            else:
                how = "resumed_ids" if run.kept.resumable is Resumable.IDS else "resumed_text"
                pool, decision = begun.attempt.pool, begun.attempt.decision_id
                answer.segments.append(Segment(pool, decision, run.kept.tokens))
                log.info(Event.STREAM_CONTINUED, request_id=run.asked.request, pool=pool.id, decision_id=decision)
        self._hands.metrics.counter(STREAMS_CONTINUED)[how].value += 1
        return begun

    async def _begin_when_it_can(self, run: _Run) -> _Begun:
        """Begin. Where it was cut and no permitted pool can go on now, wait for one: it may only be coming back."""
        left_ms, pause_ms = self._hands.patience_ms, PAUSE_MS
        while True:
            try:
                return await self._begin(run, None)
            except ProblemError as error:
                over = run.sent >= ATTEMPTS_MAX or left_ms <= 0
                # A request that nothing has cut is not held: its client is told, and may come again.
                if over or run.asked.continued is None or error.problem.code not in COMES_BACK:
                    raise
            run.tried = run.barred
            open_again = False
            while left_ms > 0 and not open_again:
                pause_ms = min(pause_ms, left_ms)
                await asyncio.sleep(pause_ms / 1000)
                left_ms, pause_ms = left_ms - pause_ms, pause_ms * 2
                open_again = any(self._open(pool) for pool in run.permitted)

    def _open(self, pool: Pool) -> bool:
        """Whether there is a way to a pool, and a replica there."""
        view = self._hands.routes.view(pool)
        return view.up and (view.load is None or view.load.replicas > 0)

    async def _close(
        self,
        attempt: Attempt,
        frames: AsyncGenerator[StreamFrame, None],
        outcome: Outcome,
        last: Broken | Refused | None,
    ) -> None:
        """Close an attempt that brought nothing, and settle it whatever closing comes to."""
        try:
            await frames.aclose()
        finally:
            await self._attempts.settle(attempt, outcome, last, None, None)


def _placed(frame: Tokens, first_token: int) -> Tokens:
    """Return tokens by their place in the whole answer."""
    return replace(frame, first=first_token + frame.first)


def _lost(attempt: Attempt) -> Broken:
    return Broken(0, attempt.attempt, "session_lost", "The way to the pool ended.", PoolCounts())


async def _empty() -> AsyncGenerator[Tokens | Done | Broken, None]:
    return
    yield
