"""The queue of one pool and the choice of a replica, as a pure state machine: events in, instructions out.

Work is given to the replica with a free slot where it costs the least time (`choice`), never to one that is silent.
The queue is fair between flows and bounded (`fair`); what does not fit is refused with a sentence. A replica that falls
silent for long, or closes its stream, is gone, and what ran there is broken: it may have begun. How long work waited
and what ran beside it is kept here too, for the choice learns from it and edges are told.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable

from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.sight import NO_FLOW, End, Ending, Flight, Sight
from orchestrator.policy.ids import FlowId, ModelId, PoolId, ReplicaId
from orchestrator.wire.deadlines import TOTAL
from scheduler.intake.choice import Asked, Choice, Chooser
from scheduler.intake.fair import FairQueue, Waiting
from scheduler.intake.figures import Passage, PoolState
from scheduler.intake.instructions import Assign, Break, Expel, Instruction, Refuse, Rename, TimeUp, Withdraw
from scheduler.intake.kept import MOST_OF_SLOTS, Lately
from scheduler.intake.replica import Given, Replica, ReplicaCondition, Told

SUSPECT_MS = 750
"""Silence after which a replica gets no new work."""
DEAD_MS = 2_500
"""Silence after which a replica is given up."""
RETRY_MIN_MS = 1_000
RETRY_MAX_MS = 30_000
"""Whoever is turned away is told to wait as long as the first of its flow has waited, within these."""
REPLACED_MAX = 64
"""So many replicas whose name another took are remembered, for as long as they dial."""
NOTHING = PoolCounts()
WENT_WELL = End.COMPLETE


class Dispatcher:
    """Queue and replicas of one pool."""

    def __init__(self, pool: PoolId, waiting_max: int, dead_ms: int = DEAD_MS) -> None:
        self.pool = pool
        self.waiting_max = waiting_max
        self.starts: dict[ReplicaId, int] = {}
        """How often each replica came up, ever."""
        self._dead_ms = dead_ms
        self._replicas: dict[ReplicaId, Replica] = {}
        self._serving: dict[ModelId, list[Replica]] = {}
        """Those that are not leaving, by their models; no model without a replica."""
        self._replaced: deque[tuple[ReplicaId, str]] = deque(maxlen=REPLACED_MAX)
        self._waiting = FairQueue(waiting_max)
        self._given: dict[int, Given] = {}  # bounded: by the slots
        self._lost: dict[int, Flight] = {}
        """Of what a replica that is gone had, until it has ended: what is learned from."""
        self._held: defaultdict[str, int] = defaultdict(int)
        """How many of these each flow has; no flow that has none."""
        self._lately = Lately()
        self._last_given = 0
        self._sight = Sight(watch_first=True)
        self._chooser = Chooser(self._sight)

    @property
    def waits(self) -> bool:
        """Whether any work waits for a slot."""
        return bool(self._waiting.works)

    def state(self) -> PoolState:
        """Return what is reported of this pool."""
        replicas = slots = free = others_waiting = 0
        queued_tokens = self._waiting.prompt_tokens
        kv_tokens: int | None = 0
        kv_used_tokens: int | None = 0
        for replica in self._replicas.values():
            if replica.healthy and not replica.out and not replica.leaving:
                told = replica.told
                replicas += 1
                slots += replica.slots
                free += replica.free
                others_waiting += told.others_waiting
                queued_tokens += replica.queued_tokens
                # One that is silent about its memory leaves the sum unknown.
                kv_tokens = None if kv_tokens is None or told.kv_tokens is None else kv_tokens + told.kv_tokens
                used = told.kv_used_tokens
                kv_used_tokens = None if kv_used_tokens is None or used is None else kv_used_tokens + used
        return PoolState(
            replicas,
            slots,
            slots - free,
            len(self._waiting.works),
            self.waiting_max,
            free,
            # How long the prompts are that others have waiting in an engine is not known.
            None if others_waiting else queued_tokens,
            kv_tokens if replicas else None,
            kv_used_tokens if replicas else None,
        )

    def replicas(self, now_us: int) -> list[tuple[Replica, ReplicaCondition]]:
        """Return every replica that is known, with its condition."""
        found: list[tuple[Replica, ReplicaCondition]] = []
        up = _up(self._replicas.values(), now_us)
        for replica in self._replicas.values():
            if replica.leaving:
                condition = ReplicaCondition.LEAVING
            elif replica in up:
                condition = ReplicaCondition.OUTLIER if replica.out else ReplicaCondition.UP
            else:
                condition = ReplicaCondition.SUSPECT if replica.healthy else ReplicaCondition.DOWN
            found.append((replica, condition))
        return found

    def restarts(self, replica_id: ReplicaId) -> int:
        """Return how often a replica came up again. One that is leaving came up under another name."""
        return self.starts.get(replica_id, 1) - 1

    def outliers(self) -> frozenset[ReplicaId]:
        """Return the replicas that are out, as of the last tick."""
        return frozenset(replica.id for replica in self._replicas.values() if replica.out)

    def replaced(self, by: Replica) -> list[Instruction]:
        """A replica is about to join by a name that another may have: the older one ends what it has, and leaves.

        So it is when a cluster is lost for good, and a fresh one has the same replicas. One that has begun nothing else
        since, and dials again, is gone as it was.
        """
        before = self._replicas.get(by.id)
        if before is None:
            return []
        if before.incarnation == by.incarnation:
            return [*self.left(by.id, by.incarnation), Expel(by.id, by.incarnation)]
        self._replaced.append((before.id, before.incarnation))
        self._stop_serving(before)
        del self._replicas[before.id]
        before.id, before.leaving = leaving_name(before.id, before.incarnation), True
        self._replicas[before.id] = before
        return [Rename(by.id, before.id), *self._dismissed(before)]

    def is_replaced(self, replica_id: ReplicaId, incarnation: str) -> bool:
        """Whether another has the name of this replica now, so that it is not to join again."""
        now = self._replicas.get(replica_id)
        return now is not None and now.incarnation != incarnation and (replica_id, incarnation) in self._replaced

    def joined(self, replica: Replica) -> list[Instruction]:
        """A replica dialled in. Whoever had its name is gone, or was `replaced`."""
        out: list[Instruction] = []
        if replica.id in self._replicas:
            out += self.left(replica.id, self._replicas[replica.id].incarnation)
        self._replicas[replica.id] = replica
        self._serving.setdefault(replica.model, []).append(replica)
        # It started anew: what it held is gone.
        self._sight.anew(replica.place)
        self.starts[replica.id] = self.starts.get(replica.id, 0) + 1
        return out + self._assign(replica.heard_us)

    def left(self, replica_id: ReplicaId, incarnation: str) -> list[Instruction]:
        """A replica is gone. What ran there is broken; whoever carries that out says that it has `ended`."""
        replica = self._known(replica_id, incarnation)
        if replica is None:
            return []
        del self._replicas[replica.id]
        if not replica.leaving:
            self._stop_serving(replica)
        detail = "The replica that made the answer is gone."
        for given in replica.work.values():
            self._let_go(given)
            self._lost[given.work] = given.flight
        return [Break(work, "engine_failed", detail) for work in sorted(replica.work)]

    def holder(self, work: int) -> ReplicaId | None:
        """Return the replica that was given `work` and has not ended it, or None."""
        given = self._given.get(work)
        return None if given is None else given.replica.id

    def held_up(self, work: int) -> ReplicaId | None:
        """Its reader is slower than its replica, whose name is returned: its time says nothing of that any more."""
        given = self._given.get(work)
        if given is None:
            return None
        given.held_up = True
        return given.replica.id

    def holds(self, work: int, replica_id: ReplicaId, incarnation: str) -> bool:
        """Whether that replica was given `work` and has not ended it."""
        given = self._given.get(work)
        return given is not None and given.replica is self._known(replica_id, incarnation)

    def name_of(self, replica_id: ReplicaId, incarnation: str) -> ReplicaId | None:
        """Return what a replica that dialled in as `replica_id` is called here now; None where it is gone."""
        replica = self._known(replica_id, incarnation)
        return None if replica is None else replica.id

    def beat(
        self, replica_id: ReplicaId, incarnation: str, healthy: bool | None, now_us: int, told: Told | None = None
    ) -> list[Instruction]:
        """A sign of life. `healthy` is None when it does not say how the engine is, `told` when not how full it is."""
        replica = self._known(replica_id, incarnation)
        if replica is None:
            return []
        replica.heard_us = now_us
        replica.healthy = replica.healthy if healthy is None else healthy
        if told is not None:
            replica.hear(told)
        return self._assign(now_us)

    def started(self, work: int, prompt_tokens: int, now_us: int) -> None:
        """A replica has read the prompt of a work and counted it."""
        given = self._given.get(work)
        if given is not None:
            given.replica.start(given, prompt_tokens, now_us)

    def first_token(self, work: int, now_us: int) -> None:
        """The first token of a work came."""
        given = self._given.get(work)
        if given is None or given.first:
            return
        self._sight.first_token(given.flight, now_us)
        given.replica.move_on(given, now_us)

    def passage(self, work: int) -> Passage:
        """Return how a work that a replica has fared. Ask before it has `ended`."""
        given = self._given.get(work)
        if given is None:
            return Passage(None, None)
        return Passage(given.taken_us - given.submitted_us, given.replica.beside(given))

    def submit(self, work: int, asked: Asked, budget_ms: int, now_us: int) -> list[Instruction]:
        """New permitted work. It runs, waits, or is refused. `budget_ms` is how long it may take in all."""
        if asked.model not in self._serving:
            if not self._serving:
                return [Refuse(work, "no_replica", f"The pool {self.pool} has no replica that is up.")]
            return [Refuse(work, "model_not_served", f"The pool {self.pool} does not serve this model now.")]
        if asked.needs is not None and not self._fitting(asked):
            return [self._unequal(work)]
        until_us = now_us + budget_ms * 1000
        self._lately.asked(asked.flow, now_us)
        alone = not self._waiting.works
        if alone and (assign := self._at_once(work, asked, until_us, now_us)) is not None:
            return [assign]
        new = Waiting(work, asked, now_us, until_us)
        self._waiting.push(new)
        # What finds no slot while it is alone finds none a moment later.
        out: list[Instruction] = [] if alone else self._assign(now_us)
        if work not in self._given and (over := self._waiting.outgrown(new)) is not None:
            retry_ms = self._waiting.waited_us(over.asked.flow, now_us) // 1000
            self._waiting.drop(over.work)
            detail = f"The queue of pool {self.pool} is full for this tenant."
            out.append(Refuse(over.work, "engine_busy", detail, min(max(RETRY_MIN_MS, retry_ms), RETRY_MAX_MS)))
        return out

    def ended(
        self, work: int, now_us: int, end: End = End.CANCELLED, counts: PoolCounts = NOTHING
    ) -> list[Instruction]:
        """A work ended, however, with what its replica counted. Its slot is free."""
        given = self._given.get(work)
        queued_us = beside = None
        held_up = False
        left: list[Instruction] = []
        if given is None:
            flight = self._lost.pop(work, None)
        else:
            flight, replica, held_up = given.flight, given.replica, given.held_up
            # How an engine behind a URL takes in prompts is not known: what was expected stands for it.
            queued_us = given.taken_us - given.given_us if replica.beats else None
            beside = replica.drop(given, now_us)
            self._let_go(given)
            asked = given.asked
            more = counts.prompt + counts.generated - asked.prompt_tokens - asked.output_tokens
            # What was cut short was not counted to its end.
            if more > 0 or end is WENT_WELL:
                self._waiting.correct(asked, more)
            left = self._dismissed(replica) if replica.leaving else left
        if flight is not None:
            ending = Ending(end, counts.prompt, counts.cached, counts.generated, queued_us, beside, held_up)
            self._sight.ended(flight, ending, now_us)
        return left + self._assign(now_us) if self._waiting.works else left

    def cancel(self, work: int) -> list[Instruction]:
        """Nobody waits for this work any more. When it has not started, it is refused at once."""
        given = self._given.get(work)
        if given is not None:
            return [Withdraw(work, given.replica.id)]
        if self._waiting.drop(work) is None:
            return []
        return [Refuse(work, "engine_busy", "Cancelled while it waited.")]

    def hand_over(self) -> list[Instruction]:
        """Give back what waits: nothing of it was started."""
        return [
            Refuse(one.work, "draining", f"The scheduler of pool {self.pool} is stopping.")
            for one in list(self._waiting)
            if self._waiting.drop(one.work) is not None
        ]

    def tick(self, now_us: int) -> list[Instruction]:
        """Time passed: give up the silent, refuse what waited too long, and stop what runs for longer than it may."""
        out: list[Instruction] = []
        for replica in list(self._replicas.values()):
            if replica.beats and now_us - replica.heard_us > self._dead_ms * 1000:
                out += self.left(replica.id, replica.incarnation)
                out.append(Expel(replica.id, replica.incarnation))
        for late in self._waiting.late(now_us):
            self._waiting.drop(late.work)
            out.append(Refuse(late.work, TOTAL, f"No slot of pool {self.pool} was free in time."))
        # The one replica that could go on with an answer may have left: another pool may still have such a one.
        for stuck in list(self._waiting):
            if stuck.asked.needs is not None and not self._fitting(stuck.asked):
                self._waiting.drop(stuck.work)
                out.append(self._unequal(stuck.work))
        for work, given in self._given.items():
            if given.until_us <= now_us and not given.stopped:
                given.stopped = True
                out.append(TimeUp(work, given.replica.id))
        for model in self._serving:
            self._in_play(model, now_us)
        return out + self._assign(now_us)

    def _known(self, replica_id: ReplicaId, incarnation: str) -> Replica | None:
        """Return the replica that dialled in so, whatever it is called now."""
        found = self._replicas.get(replica_id)
        if found is None or found.incarnation != incarnation:
            found = self._replicas.get(leaving_name(replica_id, incarnation))
        return found

    def _stop_serving(self, replica: Replica) -> None:
        serving = self._serving[replica.model]
        serving.remove(replica)
        if not serving:
            del self._serving[replica.model]

    def _dismissed(self, replica: Replica) -> list[Instruction]:
        """A replica that is leaving goes once it has ended what it had."""
        if replica.work:
            return []
        del self._replicas[replica.id]
        return [Expel(replica.id, replica.incarnation, lost=False)]

    def _fitting(self, asked: Asked) -> bool:
        return any(replica.fits(asked) for replica in self._serving.get(asked.model, ()))

    def _unequal(self, work: int) -> Refuse:
        detail = f"The pool {self.pool} has no replica that can go on with this answer."
        return Refuse(work, "identity_mismatch", detail)

    def _at_once(self, work: int, asked: Asked, until_us: int, now_us: int) -> Assign | None:
        """Give new work to a replica without queueing it, while nothing waits. Returns None when it has to wait."""
        slots, free = self._slots()
        if not free:
            return None
        if free <= slots // MOST_OF_SLOTS:
            share = self._share(slots, free, now_us)
            if share is not None and self._held.get(asked.flow, 0) >= share:
                return None
        choice = self._best(asked, now_us)
        if choice is None:
            return None
        self._waiting.passed(asked)
        return self._give(work, asked, choice, now_us, until_us, now_us)

    def _assign(self, now_us: int) -> list[Instruction]:
        """Give waiting work to free replicas: of each model, whose turn it is."""
        out: list[Instruction] = []
        if not self._waiting.works:
            return out
        slots, free = self._slots()
        for model in self._waiting.models():
            aside: list[Waiting] = []
            while free:
                share = None if free > slots // MOST_OF_SLOTS else self._share(slots, free, now_us)
                waiting = self._waiting.head(model, self._held, share)
                if waiting is None:
                    break
                asked = waiting.asked
                choice = self._best(asked, now_us)
                if choice is None and asked.needs is None and not self._out_to_it_alone(asked, now_us):
                    break
                if choice is None:
                    # It waits for one of few replicas, and holds up nobody who could have another.
                    self._waiting.set_aside(waiting)
                    aside.append(waiting)
                    continue
                self._waiting.served(waiting)
                out.append(
                    self._give(waiting.work, asked, choice, waiting.submitted_us, waiting.until_us, now_us)
                )
                free -= 1
            for waiting in aside:
                self._waiting.put_back(waiting)
        return out

    def _slots(self) -> tuple[int, int]:
        """Return (slots, free slots) of all replicas that are well."""
        slots = free = 0
        for replica in self._replicas.values():
            if replica.healthy and not replica.leaving:
                slots += replica.slots
                free += replica.free
        return slots, free

    def _share(self, slots: int, free: int, now_us: int) -> int | None:
        """Return how many slots a flow must not have yet to get a turn at what is kept; None where any may have one.

        No more than one slot of `MOST_OF_SLOTS` is kept: while more are free, there is nothing to ask.
        """
        kept, share = self._lately.kept(self._held, slots, now_us)
        return None if free > kept else share

    def _best(self, asked: Asked, now_us: int) -> Choice | None:
        # Work rather waits for a sibling than goes to one that is far slower than all of them.
        equals = self._in_play(asked.model, now_us, asked.flow)
        if asked.needs is not None:
            # An answer that goes on takes a slow equal rather than none.
            up = _up(self._serving.get(asked.model, ()), now_us)
            equals = [one for one in equals if one.fits(asked)] or [one for one in up if one.fits(asked)]
        return self._chooser.best(asked, equals, now_us)

    def _in_play(self, model: ModelId, now_us: int, flow: FlowId | None = None) -> list[Replica]:
        """Return the replicas of `model` that are up and no outliers: to a flow or, with None, to every one."""
        if model not in self._serving:
            return []
        up = _up(self._serving[model], now_us)
        out = self._sight.out(model, now_us)
        if not out or out.issuperset(replica.place for replica in up):
            for replica in up:
                replica.out = False  # where every one is out, none is
            return up
        for replica in up:
            replica.out = replica.place in out
        if flow is not None:
            out = self._sight.out(model, now_us, flow)
        return [replica for replica in up if replica.place not in out]

    def _out_to_it_alone(self, asked: Asked, now_us: int) -> bool:
        """Whether a replica that might do a work for another flow may not do it for this one."""
        return self._sight.out(asked.model, now_us, asked.flow) > self._sight.out(asked.model, now_us, NO_FLOW)

    def _give(
        self, work: int, asked: Asked, choice: Choice, submitted_us: int, until_us: int, now_us: int
    ) -> Assign:
        terms = choice.terms
        replica, prompt_tokens, cached = self._replicas[choice.replica], asked.prompt_tokens, terms.cached_tokens
        flight = self._sight.sent(
            choice.place,
            asked.model,
            choice.declared,
            terms,
            prompt_tokens,
            now_us,
            asked.blocks,
            choice.expected_cached,
            asked.flow,
        )
        self._last_given += 1
        given = self._given[work] = Given(
            work,
            self._last_given,
            asked,
            replica,
            flight,
            submitted_us,
            until_us,
            now_us,
            now_us,
            cached,
            prompt_tokens - cached if prompt_tokens > cached else 0,
        )
        replica.take(given)
        flow = asked.flow
        self._held[flow] = held = self._held[flow] + 1
        self._lately.given(flow, held, now_us)
        return Assign(work, choice.replica, replica.continuing)

    def _let_go(self, given: Given) -> None:
        """A replica has this work no more."""
        del self._given[given.work]
        flow = given.asked.flow
        held = self._held[flow] - 1
        if held:
            self._held[flow] = held
        else:
            del self._held[flow]


def leaving_name(replica_id: ReplicaId, incarnation: str) -> ReplicaId:
    """Return what a replica is called once another has its name."""
    return ReplicaId(f"{replica_id}@{incarnation}")


def _up(replicas: Iterable[Replica], now_us: int) -> list[Replica]:
    """Return those that are well and not silent."""
    heard_us = now_us - SUSPECT_MS * 1000
    return [one for one in replicas if one.healthy and (not one.beats or one.heard_us >= heard_us)]
