"""The site: puts sessions, the second permit, the queues and the replicas together. Acts; decides nothing itself.

One event loop owns all of it, so nothing here is locked. Each attempt lives in `Running` from `Start` until both the
work has ended and the edge has settled; then its usage record is written, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from orchestrator.bundles.assemble import Bundle
from orchestrator.engines.generation import FinishReason
from orchestrator.ledger.usage import Counted, EdgeCounts, Outcome, PoolCounts
from orchestrator.placement.sight import End
from orchestrator.policy.ids import (
    DecisionId,
    EdgeId,
    PoolId,
    ReplicaId,
    SchedulerId,
    SideId,
    make_decision_id,
)
from orchestrator.policy.table import Tables
from orchestrator.spool.records import Position, SpoolError
from orchestrator.spool.refusing import without_record
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.catalogue import CATALOGUE, Problem
from orchestrator.wire.deadlines import TOTAL
from orchestrator.wire.frames import Load, Open
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.grants import Grants
from scheduler.intake.instructions import Assign, Break, Expel, Instruction, Refuse, Rename, TimeUp, Withdraw
from scheduler.intake.keeping import Keeping
from scheduler.intake.ports import Hands, ReplicaPort, SessionPort
from scheduler.intake.records import decision_record
from scheduler.intake.replica import Replica, Told
from scheduler.intake.running import Running, SitePool
from scheduler.intake.second_permit import second_permit
from scheduler.intake.shape import Shapes

FIND_MANIFEST_MS = 500
"""How long a cited manifest that is not held yet is looked for."""
PERMITTING_MAX = 4_096
"""Attempts whose second permit is under way at once."""
CUT_BY_DRAIN = "The scheduler stopped before the answer was complete."

# A member of an enumeration costs as much as a call by way of its class, and each answer asks for these.
BY_CHUNKS, BY_ENGINE = Counted.CHUNKS, Counted.ENGINE
COMPLETE, WENT_WELL = Outcome.COMPLETE, End.COMPLETE

log = logger("scheduler.intake")


class Site:
    """Everything behind one intake. Make it in the event loop that owns it."""

    def __init__(
        self, scheduler: SchedulerId, side: SideId, dispatchers: Mapping[PoolId, Dispatcher], hands: Hands
    ) -> None:
        self.scheduler = scheduler
        self.side = side
        self.dispatchers = dict(dispatchers)
        self.alarms: dict[str, int] = {}
        """Sentences for operators, with the time of the last occurrence. At most one per kind."""
        self.draining = False
        self._hands = hands
        self._running: dict[int, Running] = {}
        self._by_stream: dict[tuple[SessionPort, int], Running] = {}
        self._ports: dict[ReplicaId, ReplicaPort] = {}
        self._sessions: set[SessionPort] = set()
        self._out: dict[PoolId, frozenset[ReplicaId]] = {}
        self._permitting: dict[int, asyncio.Task[Bundle | None] | asyncio.Future[Position]] = {}
        """What the second permits that are under way wait for, by work; one may outlast its attempt. Bounded:
        PERMITTING_MAX."""
        self._loop = asyncio.get_running_loop()
        self._keeping = Keeping(hands)
        self._pools = {pool: SitePool(dispatcher, Grants()) for pool, dispatcher in dispatchers.items()}
        self._law = Tables()
        self._shapes = Shapes(hands.salt)
        self._last_work = 0
        self._last_load = 0
        self._turn = 0

    # Sessions

    def session_opened(self, port: SessionPort) -> None:
        """An edge dialled in."""
        self._sessions.add(port)

    def session_closed(self, port: SessionPort) -> None:
        """An edge is gone; its machine has stopped and settled every stream."""
        self._sessions.discard(port)
        for pool in self._pools.values():
            pool.grants.closed(port)

    def start(self, port: SessionPort, edge: EdgeId, opened: Open, now_us: int) -> None:
        """A new attempt arrived, just now."""
        self._last_work += 1
        work, pool = self._last_work, self._pools.get(opened.pool)
        running = Running(port, opened, edge, work, now_us + opened.budget_ms * 1000, pool)
        self._running[work] = self._by_stream[port, opened.stream] = running
        if pool is not None and pool.grants.started(port, now_us):
            # A session that wakes up learns at once how much it may have.
            port.tell(opened.pool)
        if self.draining or len(self._permitting) >= PERMITTING_MAX:
            self._refuse(running, Problem("draining" if self.draining else "engine_busy"))
            return
        self._permit(running, None)

    def stop(self, port: SessionPort, stream: int) -> None:
        """Nobody waits for this stream any more."""
        running = self._by_stream.get((port, stream))
        if running is None or running.outcome is not None:
            return
        running.stopped = True
        if running.pool is not None:
            dispatcher = running.pool.dispatcher
            self._act(dispatcher, dispatcher.cancel(running.work), self._hands.now_us())

    def hold(self, port: SessionPort, stream: int, *, held: bool) -> None:
        """Whoever makes this stream is to wait with more, or to go on."""
        running = self._by_stream.get((port, stream))
        if running is None or running.outcome is not None or running.pool is None:
            return
        replica = running.pool.dispatcher.held_up(running.work)
        if replica is not None and replica in self._ports:
            self._ports[replica].hold(running.work, held=held)

    def settled(self, port: SessionPort, stream: int, counts: EdgeCounts | None, sent: int) -> None:
        """The edge said its last word on a stream, or is gone."""
        running = self._by_stream.pop((port, stream), None)
        if running is None:
            return
        running.settled, running.edge_counts, running.sent = True, counts, sent
        if running.outcome is not None:
            self._close(running, running.outcome)

    # Replicas

    def replica_joined(self, pool: PoolId, replica: Replica, port: ReplicaPort) -> None:
        """A replica dialled in."""
        dispatcher = self.dispatchers[pool]
        now_us = self._hands.now_us()
        self._act(dispatcher, dispatcher.replaced(replica), now_us)
        self._ports[replica.id] = port
        log.info(Event.REPLICA_LIVE, pool=pool, replica=replica.id)
        self._act(dispatcher, dispatcher.joined(replica), now_us)
        self.report(pool)

    def replica_left(self, pool: PoolId, replica: ReplicaId, incarnation: str) -> None:
        """The connection of a replica ended."""
        dispatcher = self.dispatchers[pool]
        now_us = self._hands.now_us()
        name = dispatcher.name_of(replica, incarnation)
        self._act(dispatcher, dispatcher.left(replica, incarnation), now_us)
        if name is not None:
            self._ports.pop(name, None)
            log.warning(Event.REPLICA_LOST, pool=pool, replica=name)
        self.report(pool)

    def replica_beat(
        self, pool: PoolId, replica: ReplicaId, incarnation: str, healthy: bool | None, told: Told | None = None
    ) -> None:
        """A replica gave a sign of life. `healthy` and `told` are None when it did not say how its engine is."""
        dispatcher = self.dispatchers[pool]
        now_us = self._hands.now_us()
        self._act(dispatcher, dispatcher.beat(replica, incarnation, healthy, now_us, told), now_us)

    def work_started(self, work: int, prompt_tokens: int) -> None:
        """The prompt was counted."""
        running = self._running.get(work)
        if running is not None and running.pool is not None:
            running.prompt = prompt_tokens
            running.pool.dispatcher.started(work, prompt_tokens, self._hands.now_us())

    def work_tokens(self, work: int, text: str, ids: tuple[int, ...], count: int) -> None:
        """Tokens were made."""
        running = self._running.get(work)
        if running is None or running.outcome is not None or running.pool is None:
            return
        first = not running.generated
        if count and first:
            running.pool.dispatcher.first_token(work, self._hands.now_us())
        running.generated += count
        if count and not ids:
            running.counted = BY_CHUNKS
        running.port.tokens(running.opened.stream, text, ids, count, first)

    def work_finished(self, work: int, reason: str, counts: PoolCounts) -> None:
        """The answer is complete, or was stopped as asked."""
        running = self._running.get(work)
        if running is None or running.outcome is not None or running.pool is None:
            return
        running.prompt, running.cached = counts.prompt, counts.cached
        if counts.generated > running.generated:
            running.generated = counts.generated
        if running.counted is BY_CHUNKS and counts.generated:
            running.counted = BY_ENGINE
        if running.late and reason == FinishReason.CANCELLED.value and not running.stopped:
            # Of the tenant's own time, which says nothing of the replica.
            self._break(running, TOTAL, CATALOGUE[TOTAL].sentence, End.CANCELLED)
            return
        passage = running.pool.dispatcher.passage(work)
        outcome, end = COMPLETE, WENT_WELL
        if running.stopped:
            outcome, end = Outcome.CANCELLED, End.CANCELLED
        running.outcome = outcome
        told = PoolCounts(running.prompt, running.cached, running.generated)
        try:
            running.port.done(running.opened.stream, reason, told, passage.queued_us, passage.beside)
        finally:
            self._end(running, outcome, end, told)

    def work_refused(self, work: int, code: str, detail: str, param: str | None) -> None:
        """The engine did no work."""
        running = self._running.get(work)
        if running is None or running.outcome is not None:
            return
        if running.generated:
            self.work_failed(work, "engine_protocol", "The engine refused what it had begun to answer.")
        else:
            self._refuse(running, Problem(code, detail, param))

    def work_failed(self, work: int, code: str, detail: str, end: End = End.FAILED) -> None:
        """The engine failed after it may have begun. `end` is what that says of it."""
        running = self._running.get(work)
        if running is not None and running.outcome is None:
            self._break(running, code, detail, end)

    # Time

    def tick(self) -> None:
        """Time passed: judge silence and waiting."""
        now_us = self._hands.now_us()
        self._turn += 1
        for pool, dispatcher in self.dispatchers.items():
            before = dispatcher.state().replicas
            self._act(dispatcher, dispatcher.tick(now_us), now_us)
            out, were_out = dispatcher.outliers(), self._out.get(pool, frozenset())
            self._out[pool] = out
            for replica in sorted(out ^ were_out):
                what = Event.REPLICA_EJECTED if replica in out else Event.REPLICA_TRIED
                log.warning(what, pool=pool, replica=replica)
            if out != were_out or dispatcher.state().replicas != before:
                self.report(pool)

    def loads(self, port: SessionPort) -> tuple[Load, ...]:
        """Return a numbered report of every pool, with the openings of one session."""
        return tuple(self.load(pool, port) for pool in self.dispatchers)

    def report(self, pool: PoolId) -> None:
        """Something of `pool` changed: tell every session."""
        self._pools[pool].grants.changed()
        for session in self._live():
            session.tell(pool)

    def busy(self) -> int:
        """Return how many attempts have not ended, or whose edges did not say what they delivered."""
        return len(self._running)

    def hand_over(self) -> None:
        """Give back what waits for a slot, so that its edge can place it elsewhere."""
        for dispatcher in self.dispatchers.values():
            self._act(dispatcher, dispatcher.hand_over(), self._hands.now_us())

    def break_off(self) -> None:
        """End what is left with a word: what was not started is refused, and what was is broken and stopped."""
        self.hand_over()
        left = [running for running in self._running.values() if running.outcome is None]
        for running in [one for one in left if not one.accepted]:
            self._refuse(running, Problem("draining"))
        for running in [one for one in left if one.accepted and one.outcome is None]:
            holder = None if running.pool is None else running.pool.dispatcher.holder(running.work)
            if holder in self._ports:
                self._ports[holder].withdraw(running.work)
            self._break(running, "draining", CUT_BY_DRAIN, End.CANCELLED)

    async def close(self) -> None:
        """End what is under way here."""
        # What they still wait for is closed after this: a manifest, or the spool.
        permitting, self._permitting = self._permitting, {}
        for waited_for in permitting.values():
            waited_for.cancel()
        await asyncio.gather(*permitting.values(), return_exceptions=True)

    # Inside

    def _permit(self, running: Running, looked_for: asyncio.Task[Bundle | None] | None) -> None:
        """The second permit, and its record. When that is kept, or cannot be, `_permitted` goes on."""
        opened, hands = running.opened, self._hands
        citation, manifests = opened.citation, hands.manifests
        try:
            if looked_for is not None:
                cited = looked_for.result()
            else:
                cited = manifests.remembered(citation.side, citation.manifest, citation.manifest_digest)
                if cited is None:
                    self._look_for(running)
                    return
            newest, now_ms = manifests.current, hands.now_ms()
            check = second_permit(opened, running.edge, cited, newest, now_ms, self._law.permit_route)
            if check.alarm is not None:
                self.alarms["policy_mismatch"] = now_ms
                log.error(Event.POLICY_DISAGREED, attempt_id=opened.attempt, edge=running.edge)
            problem = check.problem
            if problem is None and running.pool is None:
                problem = Problem("no_replica", f"This scheduler does not have the pool {opened.pool}.")
            number = make_decision_id(now_ms, hands.entropy(10))
            payload = "".join(opened.generation.payload())
            running.prompt_chars = size_bytes = len(payload)
            if not payload.isascii():
                size_bytes = len(payload.encode())
            record = decision_record(number, self.side, running.edge, opened, check, problem, size_bytes, now_ms)
            keeping = self._keeping.decision(record, running, permits=problem is None, now_ms=now_ms)
            self._permitting[running.work] = keeping
            # A callback, and no task that waits: nothing else is to be done before it is kept.
            keeping.add_done_callback(partial(self._permitted, running, number, problem, newest))
        except Exception as failure:  # noqa: BLE001  # outermost: an attempt is refused, never left
            self._failed(running, failure)

    def _look_for(self, running: Running) -> None:
        """The manifest that an attempt cites is not at hand: look for it."""
        cited = running.opened.citation
        finding = self._hands.manifests.find(cited.side, cited.manifest, cited.manifest_digest, FIND_MANIFEST_MS)
        task = self._loop.create_task(finding)
        self._permitting[running.work] = task
        task.add_done_callback(partial(self._looked_for, running))

    def _looked_for(self, running: Running, task: asyncio.Task[Bundle | None]) -> None:
        """A manifest that was not at hand was found, or was not."""
        if self._permitting.pop(running.work, None) is not None:
            self._permit(running, task)  # else this site was closed

    def _permitted(
        self,
        running: Running,
        number: DecisionId,
        problem: Problem | None,
        newest: Bundle | None,
        keeping: asyncio.Future[Position],
    ) -> None:
        """The decision on an attempt is kept, or cannot be. Put a permitted one into its queue, refuse every other."""
        if self._permitting.pop(running.work, None) is None:
            return  # this site was closed
        try:
            try:
                keeping.result()
            except SpoolError as error:
                self._keeping.not_taken(number, error)
                problem = problem or without_record(error)
            if running.outcome is not None:
                return  # refused meanwhile: this program stops
            if problem is None and running.stopped:
                problem = Problem("engine_busy", "Cancelled before it was queued.")
            pool = running.pool
            if problem is not None or pool is None:
                self._refuse(running, problem or Problem("no_replica"))
                return
            asked = self._shapes.asked_of(running.opened, newest, running.edge, running.prompt_chars)
            running.arriving = False
            pool.grants.arriving -= 1
            dispatcher = pool.dispatcher
            now_us = self._hands.now_us()
            left_us = running.until_us - now_us
            left_ms = left_us // 1000 if left_us > 0 else 0
            self._act(dispatcher, dispatcher.submit(running.work, asked, left_ms, now_us), now_us)
        except Exception as failure:  # noqa: BLE001  # outermost: an attempt is refused, never left
            self._failed(running, failure)

    def _failed(self, running: Running, failure: Exception) -> None:
        """Something went wrong here that nobody foresaw: the attempt gets an answer, whatever it was."""
        self._permitting.pop(running.work, None)
        log.crash(Event.TASK_FAILED, failure, attempt_id=running.opened.attempt)
        if running.outcome is None:
            self._refuse(running, Problem("internal_error"))

    def _expel(self, pool: PoolId, told: Expel) -> None:
        if told.lost:
            log.warning(Event.REPLICA_LOST, pool=pool, replica=told.replica, detail="silent")
        port = self._ports.pop(told.replica, None)
        if port is not None:
            port.expel()

    def _act(self, dispatcher: Dispatcher, instructions: list[Instruction], now_us: int) -> None:
        """Carry out what a queue asks for, in order."""
        for instruction in instructions:
            if type(instruction) is Expel:
                self._expel(dispatcher.pool, instruction)
                continue
            if type(instruction) is Rename:
                self._ports[instruction.to] = self._ports.pop(instruction.replica)
                continue
            running = self._running.get(instruction.work)
            if running is None:
                continue
            if type(instruction) is Assign:
                running.accepted = True
                running.port.accepted(running.opened.stream, instruction.replica, instruction.continuing)
                left_us = running.until_us - now_us
                left_ms = left_us // 1000 if left_us > 0 else 0
                self._ports[instruction.replica].assign(running.work, running.opened.generation, left_ms)
            elif isinstance(instruction, Withdraw | TimeUp):
                running.late = running.late or isinstance(instruction, TimeUp)
                replica_port = self._ports.get(instruction.replica)
                if replica_port is not None:
                    replica_port.withdraw(running.work)
            elif isinstance(instruction, Refuse):
                code, detail = instruction.code, instruction.detail
                self._refuse(running, Problem(code, detail, retry_after_ms=instruction.retry_after_ms))
            elif isinstance(instruction, Break):
                self.work_failed(running.work, instruction.code, instruction.detail, End.UNREACHED)

    # The edge is told before anything else that the end of an attempt means here: nothing of that costs it the word.

    def _refuse(self, running: Running, problem: Problem) -> None:
        running.outcome = Outcome.REFUSED
        # An engine that cannot be reached refuses in no good order, though nothing was started.
        lost = problem.entry.code == "engine_unreachable"
        try:
            running.port.refused(running.opened.stream, problem)
        finally:
            self._end(running, running.outcome, End.UNREACHED if lost else End.REFUSED, running.counts())

    def _break(self, running: Running, code: str, detail: str, end: End) -> None:
        running.outcome = Outcome.BROKEN
        counts = running.counts()
        try:
            running.port.broken(running.opened.stream, code, detail, counts)
        finally:
            self._end(running, running.outcome, end, counts)

    def _end(self, running: Running, outcome: Outcome, end: End, counts: PoolCounts) -> None:
        """The work of an attempt ended. `end` is what that says of its replica."""
        pool, port = running.pool, running.port
        if pool is not None:
            dispatcher, grants = pool.dispatcher, pool.grants
            if running.arriving:
                running.arriving = False
                grants.arriving -= 1
            grants.ended(port)
            now_us = self._hands.now_us()
            instructions = dispatcher.ended(running.work, now_us, end, counts)
            if instructions:
                self._act(dispatcher, instructions, now_us)
            # One that is gone has no openings, and nobody to hear of them.
            if port in self._sessions:
                port.tell(running.opened.pool)
        if running.settled:
            self._close(running, outcome)

    def _close(self, running: Running, outcome: Outcome) -> None:
        """The work has ended and the edge has settled: write the usage record."""
        if running.work not in self._running:
            return  # the edge went while it was told of the end
        del self._running[running.work]
        self._keeping.usage(running, outcome)

    def _live(self) -> list[SessionPort]:
        return [session for session in self._sessions if session.edge is not None]

    def load(self, pool: PoolId, port: SessionPort) -> Load:
        """Return a numbered report of one pool, with the openings of one session."""
        self._last_load += 1
        here = self._pools[pool]
        state = here.dispatcher.state()
        room = 0 if self.draining else state.room()
        openings = here.grants.openings(port, self._live, room, self._turn, self._hands.now_us())
        return state.load(self._last_load, pool, openings)
