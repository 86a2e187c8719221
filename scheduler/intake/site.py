"""The site: puts sessions, the second permit, the queues and the replicas together. Acts; decides nothing itself.

One event loop owns all of it, so nothing here is locked. Each attempt lives in `_Running` from `Start` until both the
work has ended and the edge has settled; then its usage record is written, once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from functools import partial

import msgspec

from orchestrator.engines.generation import FinishReason
from orchestrator.evidence.records import retain_until_ms
from orchestrator.ledger.usage import Counted, EdgeCounts, Outcome, PoolCounts
from orchestrator.placement.sight import End
from orchestrator.policy.ids import EdgeId, PoolId, ReplicaId, SchedulerId, SideId, make_decision_id, make_usage_id
from orchestrator.policy.table import Tables
from orchestrator.spool.records import DECISION, USAGE, Position, Rank, RecordId, SpoolError
from orchestrator.spool.store import Spool
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.catalogue import CATALOGUE, Problem
from orchestrator.wire.deadlines import TOTAL
from orchestrator.wire.frames import Load, Open
from scheduler.intake.dispatch import Assign, Break, Dispatcher, Expel, Instruction, PoolState, Refuse, TimeUp, Withdraw
from scheduler.intake.grants import Grants
from scheduler.intake.ports import Manifests, ReplicaPort, SessionPort
from scheduler.intake.records import decision_record, usage_record
from scheduler.intake.replica import Replica, Told
from scheduler.intake.second_permit import Check, second_permit
from scheduler.intake.shape import asked_of

FIND_MANIFEST_MS = 500
"""How long a cited manifest that is not held yet is looked for."""
PERMITTING_MAX = 4_096
"""Attempts whose second permit is under way at once."""
CUT_BY_DRAIN = "The scheduler stopped before the answer was complete."

log = logger("scheduler.intake")


@dataclass(slots=True)
class _Running:
    port: SessionPort
    opened: Open
    edge: EdgeId
    work: int
    until_us: int
    """When its time is over."""
    arriving: bool = True
    """Whether it is not in the queue yet."""
    accepted: bool = False
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    outcome: Outcome | None = None
    """Set when the work has ended."""
    counted: Counted = Counted.IDS
    settled: bool = False
    edge_counts: EdgeCounts | None = None
    sent: int = 0
    stopped: bool = False
    late: bool = False
    """Whether its time is over, and its replica told to stop."""

    def counts(self) -> PoolCounts:
        """What the pool counted so far. What was sent, the session knows."""
        return PoolCounts(self.prompt, self.cached, self.generated, 0)


class Hands(msgspec.Struct, frozen=True):
    """What the site acts with."""

    manifests: Manifests
    spool: Spool
    now_ms: Callable[[], int]
    now_us: Callable[[], int]
    entropy: Callable[[int], bytes]
    salt: bytes
    """Of the hashes of prefixes. A secret of this site."""


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
        self._running: dict[int, _Running] = {}
        self._by_stream: dict[tuple[SessionPort, int], _Running] = {}
        self._ports: dict[ReplicaId, ReplicaPort] = {}
        self._sessions: set[SessionPort] = set()
        self._out: dict[PoolId, frozenset[ReplicaId]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.get_running_loop()
        self._grants: dict[PoolId, Grants[SessionPort]] = {pool: Grants() for pool in dispatchers}
        self._law = Tables()
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
        for grants in self._grants.values():
            grants.closed(port)

    def start(self, port: SessionPort, edge: EdgeId, opened: Open) -> None:
        """A new attempt arrived."""
        self._last_work += 1
        now_us = self._hands.now_us()
        running = _Running(port, opened, edge, self._last_work, now_us + opened.budget_ms * 1000)
        self._running[running.work] = self._by_stream[port, opened.stream] = running
        grants = self._grants.get(opened.pool)
        if grants is not None and grants.started(port, now_us):
            # A session that wakes up learns at once how much it may have.
            self._tell(opened.pool, port)
        if self.draining or len(self._tasks) >= PERMITTING_MAX:
            self._refuse(running, Problem("draining" if self.draining else "engine_busy"))
            return
        self._spawn(self._permit(running))

    def stop(self, port: SessionPort, stream: int) -> None:
        """Nobody waits for this stream any more."""
        running = self._by_stream.get((port, stream))
        if running is None or running.outcome is not None:
            return
        running.stopped = True
        dispatcher = self.dispatchers.get(running.opened.pool)
        if dispatcher is not None:
            self._act(dispatcher, dispatcher.cancel(running.work), self._hands.now_us())

    def settled(self, port: SessionPort, stream: int, counts: EdgeCounts | None, sent: int) -> None:
        """The edge said its last word on a stream, or is gone."""
        running = self._by_stream.get((port, stream))
        if running is None:
            return
        running.settled, running.edge_counts, running.sent = True, counts, sent
        self._close(running)

    # Replicas

    def replica_joined(self, pool: PoolId, replica: Replica, port: ReplicaPort) -> None:
        """A replica dialled in."""
        dispatcher = self.dispatchers[pool]
        before = self._ports.get(replica.id)
        if before is not None and before is not port:
            before.expel()  # an older incarnation, whose connection may only seem to be alive
        self._ports[replica.id] = port
        log.info(Event.REPLICA_LIVE, pool=pool, replica=replica.id)
        self._act(dispatcher, dispatcher.joined(replica), self._hands.now_us())
        self.report(pool)

    def replica_left(self, pool: PoolId, replica: ReplicaId, incarnation: str) -> None:
        """The connection of a replica ended."""
        dispatcher = self.dispatchers[pool]
        now_us = self._hands.now_us()
        held = {r.id: r.incarnation for r, _ in dispatcher.replicas(now_us)}
        self._act(dispatcher, dispatcher.left(replica, incarnation), now_us)
        if held.get(replica) == incarnation:
            self._ports.pop(replica, None)
            log.warning(Event.REPLICA_LOST, pool=pool, replica=replica)
        self.report(pool)

    def holder(self, pool: PoolId, work: int) -> ReplicaId | None:
        """Return the replica of `pool` that has `work`, or None."""
        return self.dispatchers[pool].holder(work)

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
        if running is not None:
            running.prompt = prompt_tokens
            self.dispatchers[running.opened.pool].started(work, prompt_tokens, self._hands.now_us())

    def work_tokens(self, work: int, text: str, ids: tuple[int, ...], count: int) -> None:
        """Tokens were made."""
        running = self._running.get(work)
        if running is None or running.outcome is not None:
            return
        if count and not running.generated:
            self.dispatchers[running.opened.pool].first_token(work, self._hands.now_us())
        running.generated += count
        if count and not ids:
            running.counted = Counted.CHUNKS
        running.port.tokens(running.opened.stream, text, ids, count)

    def work_finished(self, work: int, reason: str, counts: PoolCounts) -> None:
        """The answer is complete, or was stopped as asked."""
        running = self._running.get(work)
        if running is None or running.outcome is not None:
            return
        running.prompt, running.cached = counts.prompt, counts.cached
        running.generated = max(running.generated, counts.generated)
        if running.counted is Counted.CHUNKS and counts.generated:
            running.counted = Counted.ENGINE
        if running.late and reason == FinishReason.CANCELLED.value and not running.stopped:
            # Of the tenant's own time, which says nothing of the replica.
            self._end(running, Outcome.BROKEN, End.CANCELLED)
            running.port.broken(running.opened.stream, TOTAL, CATALOGUE[TOTAL].sentence, running.counts())
            return
        passage = self.dispatchers[running.opened.pool].passage(work)
        if running.stopped:
            self._end(running, Outcome.CANCELLED, End.CANCELLED)
        else:
            self._end(running, Outcome.COMPLETE, End.COMPLETE)
        running.port.done(running.opened.stream, reason, running.counts(), passage.queued_us, passage.beside)

    def work_refused(self, work: int, code: str, detail: str, param: str | None) -> None:
        """The engine did no work."""
        running = self._running.get(work)
        if running is None or running.outcome is not None:
            return
        if running.generated:
            self.work_failed(work, "engine_protocol", "The engine refused what it had begun to answer.")
        else:
            self._refuse(running, Problem(code, detail, param))

    def work_failed(self, work: int, code: str, detail: str) -> None:
        """The engine failed after it may have begun."""
        running = self._running.get(work)
        if running is None or running.outcome is not None:
            return
        self._end(running, Outcome.BROKEN, End.FAILED)
        running.port.broken(running.opened.stream, code, detail, running.counts())

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
        self._grants[pool].changed()
        for session in self._live():
            self._tell(pool, session)

    def busy(self) -> int:
        """Return how many attempts have not ended, or whose edge does not have everything yet."""
        return len(self._running)

    def unsettled(self) -> int:
        """Return how many attempts have not ended, or their edges not said what they delivered."""
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
            holder = self.holder(running.opened.pool, running.work)
            if holder in self._ports:
                self._ports[holder].withdraw(running.work)
            self._end(running, Outcome.BROKEN, End.CANCELLED)
            running.port.broken(running.opened.stream, "draining", CUT_BY_DRAIN, running.counts())

    async def close(self) -> None:
        """End what is under way here."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # Inside

    async def _permit(self, running: _Running) -> None:
        """The second permit, its record, and the queue. Whatever fails, the attempt gets an answer."""
        try:
            await self._judge(running)
        except Exception as failure:  # noqa: BLE001  # outermost: an attempt is refused, never left
            log.crash(Event.TASK_FAILED, failure, attempt_id=running.opened.attempt)
            if running.outcome is None:
                self._refuse(running, Problem("internal_error"))

    async def _judge(self, running: _Running) -> None:
        opened = running.opened
        citation = opened.citation
        manifests = self._hands.manifests
        cited = await manifests.find(citation.side, citation.manifest, citation.manifest_digest, FIND_MANIFEST_MS)
        now_ms = self._hands.now_ms()
        check = second_permit(opened, running.edge, cited, manifests.current, now_ms, self._law.permit_route)
        if check.alarm is not None:
            self.alarms["policy_mismatch"] = now_ms
            log.error(Event.POLICY_DISAGREED, attempt_id=opened.attempt, edge=running.edge)
        problem = check.problem
        dispatcher = self.dispatchers.get(opened.pool)
        if problem is None and dispatcher is None:
            problem = Problem("no_replica", f"This scheduler does not have the pool {opened.pool}.")
        if not await self._recorded(running, check, problem, now_ms) and problem is None:
            problem = Problem("evidence_unavailable")
        if running.outcome is not None:
            return  # refused meanwhile: this program stops
        if problem is not None or dispatcher is None:
            self._refuse(running, problem or Problem("no_replica"))
        elif running.stopped:
            self._refuse(running, Problem("engine_busy", "Cancelled before it was queued."))
        else:
            asked = asked_of(opened, manifests.current, running.edge, self._hands.salt)
            self._queued(running)
            now_us = self._hands.now_us()
            left_ms = max(0, running.until_us - now_us) // 1000
            self._act(dispatcher, dispatcher.submit(running.work, asked, left_ms, now_us), now_us)

    async def _recorded(self, running: _Running, check: Check, problem: Problem | None, now_ms: int) -> bool:
        """Put this side's decision into its spool. Returns False when that failed."""
        decision = make_decision_id(now_ms, self._hands.entropy(10))
        record = decision_record(decision, self.side, running.edge, running.opened, check, problem, now_ms)
        try:
            await self._hands.spool.append_async(
                DECISION,
                RecordId(record.id),
                record.to_bytes(),
                durable=record.regulated,
                rank=Rank.NEW if problem is None else Rank.SPARE,
                retain_until_ms=retain_until_ms(record.retention, now_ms),
            )
        except SpoolError as error:
            _not_kept(record.id, error)
            return False
        return True

    def _act(self, dispatcher: Dispatcher, instructions: list[Instruction], now_us: int) -> None:
        """Carry out what a queue asks for, in order."""
        for instruction in instructions:
            if isinstance(instruction, Expel):
                port = self._ports.pop(instruction.replica, None)
                log.warning(Event.REPLICA_LOST, pool=dispatcher.pool, replica=instruction.replica, detail="silent")
                if port is not None:
                    port.expel()
                continue
            running = self._running.get(instruction.work)
            if running is None:
                continue
            if isinstance(instruction, Assign):
                running.accepted = True
                continuing = dispatcher.continuing(instruction.replica)
                running.port.accepted(running.opened.stream, instruction.replica, continuing)
                left_ms = max(0, running.until_us - now_us) // 1000
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
                self.work_failed(running.work, instruction.code, instruction.detail)

    def _refuse(self, running: _Running, problem: Problem) -> None:
        # An engine that cannot be reached refuses in no good order, though nothing was started.
        lost = problem.entry.code == "engine_unreachable"
        self._end(running, Outcome.REFUSED, End.FAILED if lost else End.REFUSED)
        running.port.refused(running.opened.stream, problem)

    def _end(self, running: _Running, outcome: Outcome, end: End) -> None:
        """The work of an attempt ended. `end` is what that says of its replica."""
        running.outcome = outcome
        pool = running.opened.pool
        dispatcher = self.dispatchers.get(pool)
        if dispatcher is not None:
            self._queued(running)
            self._grants[pool].ended(running.port)
            now_us = self._hands.now_us()
            self._act(dispatcher, dispatcher.ended(running.work, now_us, end, running.counts()), now_us)
            self._tell(pool, running.port)
        self._close(running)

    def _queued(self, running: _Running) -> None:
        """An attempt is in the queue now, or has ended: either way it arrives no more."""
        if running.arriving:
            running.arriving = False
            self._grants[running.opened.pool].queued()

    def _close(self, running: _Running) -> None:
        """Write the usage record when the work has ended and the edge has settled."""
        if running.outcome is None or not running.settled:
            return
        del self._running[running.work]
        self._by_stream.pop((running.port, running.opened.stream), None)
        self._write_usage(running, running.outcome)

    def _write_usage(self, running: _Running, outcome: Outcome) -> None:
        now_ms = self._hands.now_ms()
        counts = PoolCounts(running.prompt, running.cached, running.generated, running.sent)
        usage = make_usage_id(now_ms, self._hands.entropy(10))
        record = usage_record(usage, running.opened, outcome, running.counted, counts, running.edge_counts, now_ms)
        try:
            data = record.to_bytes()
            record_id = RecordId(record.id)
            # Nobody waits for it, and nobody who stops takes it back.
            appending = self._hands.spool.append_async(USAGE, record_id, data, durable=False, rank=Rank.CLOSES)
        except SpoolError as error:
            _not_kept(usage, error)
        else:
            appending.add_done_callback(partial(_appended, usage))

    def _live(self) -> list[SessionPort]:
        return [session for session in self._sessions if session.edge is not None]

    def _tell(self, pool: PoolId, port: SessionPort) -> None:
        """Tell one session how a pool is. One that is gone has no openings, and nobody to hear of them."""
        if port in self._sessions:
            port.tell(pool)

    def load(self, pool: PoolId, port: SessionPort) -> Load:
        """Return a numbered report of one pool, with the openings of one session."""
        self._last_load += 1
        state = self.dispatchers[pool].state()
        return Load(
            self._last_load,
            pool,
            state.replicas,
            state.slots,
            state.running,
            state.waiting,
            state.waiting_max,
            state.queued_tokens,
            state.kv_tokens,
            state.kv_used_tokens,
            self._grants[pool].openings(port, self._live, self._room(state), self._turn, self._hands.now_us()),
        )

    def _room(self, state: PoolState) -> int:
        """Return how many more attempts a pool would take: free slots, and free places in its queue."""
        if self.draining or state.replicas == 0:
            return 0
        return state.free + max(0, state.waiting_max - state.waiting)

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _appended(record_id: str, appending: asyncio.Future[Position]) -> None:
    failure = None if appending.cancelled() else appending.exception()
    if failure is not None:
        _not_kept(record_id, failure)


def _not_kept(record_id: str, failure: BaseException) -> None:
    log.error(Event.SPOOL_FAILED, record_id=record_id, exception=type(failure).__name__)
