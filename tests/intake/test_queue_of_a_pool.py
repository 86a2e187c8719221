"""The queue of one pool under any order of events: every work gets one end, and no slot is given twice."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from orchestrator.engines.generation import Resume
from orchestrator.engines.identity import Continuing
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from scheduler.intake.choice import Asked
from scheduler.intake.dispatch import DEAD_MS, SUSPECT_MS, Dispatcher
from scheduler.intake.instructions import Assign, Break, Expel, Instruction, Refuse, Rename, TimeUp, Withdraw
from scheduler.intake.replica import Replica, ReplicaCondition
from tests.intake.work import work_of

POOL = PoolId("pool")
MODELS = (ModelId("small"), ModelId("large"))
NAMES = tuple(ReplicaId(f"r-{number}") for number in range(4))
MS = 1_000
BUDGET_MS = 5_000
FLOWS = ("a", "b", "c")


class QueueMachine(RuleBasedStateMachine):
    """Drives a dispatcher and keeps, beside it, what must be true of every work."""

    def __init__(self) -> None:
        super().__init__()
        self.now_us = 0
        self.waiting_max = 0
        self.queue = Dispatcher(POOL, 0)
        self.model: dict[int, ModelId] = {}
        self.flow: dict[int, str] = {}
        self.prompt: dict[int, int] = {}
        self.until_us: dict[int, int] = {}
        self.waiting: list[int] = []
        self.stopped: set[int] = set()
        self.running: dict[int, ReplicaId] = {}
        self.ended: dict[int, str] = {}
        self.incarnations = 0
        self.alive: dict[ReplicaId, Replica] = {}

    @initialize(waiting_max=st.integers(0, 4), models=st.lists(st.sampled_from(MODELS), max_size=3), full=st.booleans())
    def begin(self, waiting_max: int, models: list[ModelId], full: bool) -> None:
        """Start with some replicas, some of them at work."""
        self.waiting_max = waiting_max
        self.queue = Dispatcher(POOL, waiting_max)
        for name, model in zip(NAMES, models, strict=False):
            self.join(name, model, 1, full)
        for model in models * 2 * full:
            self.submit(model, 300, FLOWS[0], 1)

    @rule(name=st.sampled_from(NAMES), model=st.sampled_from(MODELS), slots=st.integers(1, 3), beats=st.booleans())
    def join(self, name: ReplicaId, model: ModelId, slots: int, beats: bool) -> None:
        """A replica dials in, perhaps anew."""
        self.incarnations += 1
        before = self.alive.pop(name, None)
        lost = set() if before is None else {work for work, place in self.running.items() if place == name}
        replica = Replica(name, str(self.incarnations), model, slots, self.now_us, beats=beats)
        self.alive[name] = replica
        told = self.queue.joined(replica)
        assert {one.work for one in told if isinstance(one, Break)} == lost
        self.take(told)

    @rule(name=st.sampled_from(NAMES), model=st.sampled_from(MODELS), same=st.booleans())
    def replace(self, name: ReplicaId, model: ModelId, same: bool) -> None:
        """A fresh replica takes the name of one that lives: that one ends what it has. The same one begins anew."""
        before = self.alive.get(name)
        if before is None:
            assert self.queue.replaced(Replica(name, "0", model, 1, self.now_us)) == []
            return
        self.incarnations += not same
        fresh = Replica(name, before.incarnation if same else str(self.incarnations), model, 1, self.now_us)
        lost = set(before.work)
        told = self.queue.replaced(fresh)
        if same:
            assert {one.work for one in told if isinstance(one, Break)} == lost
        elif lost:
            assert told == [Rename(name, before.id)]
        else:
            assert told == [Rename(name, before.id), Expel(before.id, before.incarnation, lost=False)]
        assert self.queue.is_replaced(name, before.incarnation) is False, "nobody has its name yet"
        self.take(told)
        self.alive[name] = fresh
        self.take(self.queue.joined(fresh))
        assert self.queue.is_replaced(name, before.incarnation) is not same

    @rule(name=st.sampled_from(NAMES), current=st.booleans())
    def leave(self, name: ReplicaId, current: bool) -> None:
        """The connection of a replica ends: of the one that is known, or of an older one."""
        replica = self.alive.get(name)
        incarnation = replica.incarnation if replica is not None and current else "older"
        told = self.queue.left(name, incarnation)
        if replica is None or not current:
            assert told == []
        else:
            del self.alive[name]
        self.take(told)

    @rule(data=st.data())
    def leave_at_last(self, data: st.DataObject) -> None:
        """The connection of a replica ends whose name another has: it tells by the name that it dialled in with."""
        leaving = [one for one in self.alive.values() if one.leaving]
        if leaving:
            one = data.draw(st.sampled_from(sorted(leaving, key=lambda one: one.id)))
            name = ReplicaId(one.id.partition("@")[0])
            assert self.queue.name_of(name, one.incarnation) == one.id
            assert all(self.queue.holds(work, name, one.incarnation) for work in one.work)
            told = self.queue.left(name, one.incarnation)
            assert [type(each) for each in told] == [Break] * len(one.work)
            del self.alive[one.id]
            self.take(told)

    @rule(name=st.sampled_from(NAMES), healthy=st.sampled_from((True, False, None)))
    def beat(self, name: ReplicaId, healthy: bool | None) -> None:
        """A sign of life."""
        replica = self.alive.get(name)
        if replica is None:
            assert self.queue.beat(name, "1", True, self.now_us) == []
            return
        before = replica.healthy
        self.take(self.queue.beat(name, replica.incarnation, healthy, self.now_us))
        assert replica.healthy == (before if healthy is None else healthy)

    @rule(
        model=st.sampled_from(MODELS),
        budget_ms=st.sampled_from((1, 300, BUDGET_MS)),
        flow=st.sampled_from(FLOWS),
        prompt=st.sampled_from((1, 300, 5_000)),
    )
    def submit(self, model: ModelId, budget_ms: int, flow: str, prompt: int) -> None:
        """New work."""
        work = len(self.model) + 1
        self.model[work] = model
        self.flow[work] = flow
        self.prompt[work] = prompt
        self.until_us[work] = self.now_us + budget_ms * MS
        self.waiting.append(work)
        told = self.queue.submit(work, Asked(model, prompt, flow=flow), budget_ms, self.now_us)
        served = {replica.model for replica in self.alive.values() if not replica.leaving}
        refused = [one for one in told if isinstance(one, Refuse)]
        assert len(refused) <= 1
        for one in refused:
            if one.work != work:  # made room for a flow that holds less than its own
                mine = [each for each in self.waiting if self.flow[each] == self.flow[one.work]]
                assert len(mine) > sum(self.flow[each] == flow for each in self.waiting)
                assert one.work == mine[-1], "the newest of its flow"
        if not served:
            assert [one.code for one in refused] == ["no_replica"]
        elif model not in served:
            assert [one.code for one in refused] == ["model_not_served"]
        self.take(told)

    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        """A replica ends some work."""
        if self.running:
            work = data.draw(st.sampled_from(sorted(self.running)))
            place = self.alive[self.running.pop(work)]
            self.ended[work] = "ended"
            told = self.queue.ended(work, self.now_us)
            assert place.work or not place.leaving or told[0] == Expel(place.id, place.incarnation, lost=False)
            self.take(told)

    @rule(data=st.data(), tokens=st.integers(0, 1_000))
    def started(self, data: st.DataObject, tokens: int) -> None:
        """A replica counted a prompt."""
        if self.running:
            self.queue.started(data.draw(st.sampled_from(sorted(self.running))), tokens, self.now_us)

    @rule(data=st.data())
    def first_token(self, data: st.DataObject) -> None:
        """Some work brought a token, perhaps not its first."""
        if self.running:
            self.queue.first_token(data.draw(st.sampled_from(sorted(self.running))), self.now_us)

    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        """Nobody waits for some work any more."""
        if not self.model:
            return
        work = data.draw(st.sampled_from(sorted(self.model)))
        told = self.queue.cancel(work)
        if work in self.running:
            assert told == [Withdraw(work, self.running[work])]
        elif work in self.waiting:
            assert [type(one) for one in told] == [Refuse]
        else:
            assert told == []
        self.take(told)

    @rule(passed_ms=st.sampled_from((1, 200, SUSPECT_MS + 1, DEAD_MS + 1)))
    def pass_time(self, passed_ms: int) -> None:
        """Time passes, and the queue is told."""
        self.now_us += passed_ms * MS
        told = self.queue.tick(self.now_us)
        for one in told:
            if isinstance(one, Expel):
                replica = self.alive[one.replica]
                assert one.lost
                assert (replica.incarnation, replica.beats) == (one.incarnation, True)
                assert self.now_us - replica.heard_us > DEAD_MS * MS
        self.take(told)
        assert all(self.until_us[work] > self.now_us for work in self.waiting), "it waited longer than it may"
        for work in self.running:
            assert (self.until_us[work] <= self.now_us) == (work in self.stopped), "told to stop, once, in time"
        for replica in self.alive.values():
            assert not replica.beats or self.now_us - replica.heard_us <= DEAD_MS * MS, "a dead replica was kept"

    def take(self, told: list[Instruction]) -> None:
        """Follow instructions, and check each."""
        for one in told:
            if isinstance(one, Assign):
                self.assigned(one)
            elif isinstance(one, Refuse):
                self.waiting.remove(one.work)
                self.ended[one.work] = one.code
            elif isinstance(one, TimeUp):
                assert self.running[one.work] == one.replica
                assert one.work not in self.stopped
                self.stopped.add(one.work)
            elif isinstance(one, Break):
                del self.running[one.work]
                self.ended[one.work] = one.code
            elif isinstance(one, Rename):
                self.alive[one.to] = self.alive.pop(one.replica)
                self.running.update({work: one.to for work, place in self.running.items() if place == one.replica})
            elif isinstance(one, Expel):
                assert not self.alive.pop(one.replica).work or one.lost

    def assigned(self, one: Assign) -> None:
        """Only waiting work, first come first served per model and flow, to a live replica of its model."""
        replica = self.alive[one.replica]
        assert not replica.leaving
        model = self.model[one.work]
        assert replica.model == model
        flow = self.flow[one.work]
        alike = (work for work in self.waiting if self.model[work] == model and self.flow[work] == flow)
        assert one.work == next(alike), "not its turn"
        assert replica.healthy
        assert not replica.beats or self.now_us - replica.heard_us <= SUSPECT_MS * MS, "a silent replica got work"
        self.waiting.remove(one.work)
        assert one.work not in self.running
        self.running[one.work] = one.replica

    @invariant()
    def no_slot_is_given_twice(self) -> None:
        """What runs where is known, and never more than there are slots."""
        for name, replica in self.alive.items():
            here = {work for work, place in self.running.items() if place == name}
            assert set(replica.work) == here
            assert len(here) <= replica.slots
        assert all(self.queue.holder(work) == place for work, place in self.running.items())

    @invariant()
    def every_work_has_one_state(self) -> None:
        """Waiting, running or ended: exactly one of them."""
        states = (set(self.waiting), set(self.running), set(self.ended))
        assert sum(len(state) for state in states) == len(self.model)
        assert set().union(*states) == set(self.model)

    @invariant()
    def what_waits_is_bounded_and_counted(self) -> None:
        """The report says what is."""
        assert len(self.waiting) <= self.waiting_max
        state = self.queue.state()
        healthy = [replica for replica in self.alive.values() if replica.healthy and not replica.leaving]
        assert state.replicas == len(healthy)
        assert state.slots == sum(replica.slots for replica in healthy)
        assert state.running == sum(len(replica.work) for replica in healthy)
        assert state.waiting == len(self.waiting)
        assert {one.id for one, _ in self.queue.replicas(self.now_us)} == self.alive.keys()
        assert all(self.queue.restarts(name) >= 0 for name in self.alive)
        assert state.free == sum(replica.free for replica in healthy)
        waiting_tokens = sum(self.prompt[work] for work in self.waiting)
        assert state.queued_tokens == waiting_tokens + sum(replica.queued_tokens for replica in healthy)

    @invariant()
    def nothing_waits_beside_a_free_slot(self) -> None:
        """A replica that is up, with a free slot, leaves nothing of its model waiting that it was asked about."""
        up = {
            replica.model
            for replica, condition in self.queue.replicas(self.now_us)
            if condition is ReplicaCondition.UP and replica.free > 0
        }
        assert not [work for work in self.waiting if self.model[work] in up]

    def teardown(self) -> None:
        """In the end everything ends."""
        for one in list(self.alive.values()):
            if not one.leaving:
                self.leave(one.id, True)
        for work in sorted(self.running):
            del self.running[work]
            self.ended[work] = "ended"
            self.take(self.queue.ended(work, self.now_us))
        assert not self.alive
        self.now_us += (BUDGET_MS + 1) * MS
        self.take(self.queue.tick(self.now_us))
        assert set(self.ended) == set(self.model)


TestQueue = QueueMachine.TestCase
TestQueue.settings = settings(max_examples=400, stateful_step_count=40, derandomize=True, deadline=None, database=None)


def replica(name: str, slots: int, running: int = 0, model: ModelId = MODELS[0]) -> Replica:
    made = Replica(ReplicaId(name), "1", model, slots, 0)
    for number in range(running):
        made.take(work_of(1_000 + number, made))
    return made


@pytest.mark.parametrize(
    ("replicas", "chosen"),
    [
        ([replica("r-1", 2, 1), replica("r-2", 2)], "r-2"),
        ([replica("r-1", 8, 2), replica("r-2", 2, 1)], "r-1"),
        ([replica("r-2", 2), replica("r-1", 2)], "r-1"),
        ([replica("r-1", 4, model=MODELS[1]), replica("r-2", 2, 1)], "r-2"),
    ],
    ids=["the emptier", "the larger share is free", "ties by name", "of its model"],
)
def test_work_goes_to_the_replica_with_the_largest_free_share(replicas: list[Replica], chosen: str) -> None:
    queue = Dispatcher(POOL, 4)
    for one in replicas:
        queue.joined(one)
    assert queue.submit(1, Asked(MODELS[0]), 1_000, 0) == [Assign(1, ReplicaId(chosen))]


def test_an_unwell_engine_gets_no_work_until_it_says_that_it_is_well() -> None:
    queue = Dispatcher(POOL, 4)
    queue.joined(replica("r-1", 2))
    queue.beat(ReplicaId("r-1"), "1", False, 1)
    assert queue.submit(1, Asked(MODELS[0]), 1_000, 1) == []
    assert queue.beat(ReplicaId("r-1"), "1", None, 2) == [], "tokens of other work say nothing of the engine"
    assert queue.beat(ReplicaId("r-1"), "1", True, 3) == [Assign(1, ReplicaId("r-1"))]


def test_what_waits_for_one_of_few_replicas_keeps_its_place_among_those_that_wait() -> None:
    queue, needs = Dispatcher(POOL, 8), Continuing("sha256:a", Resume.TEXT)
    model, late_us = MODELS[0], 1_000 * MS
    queue.joined(Replica(ReplicaId("r-1"), "1", model, 1, 0, beats=False, continuing=needs))
    queue.joined(Replica(ReplicaId("r-2"), "1", model, 1, 0))
    assert len(queue.submit(1, Asked(model, needs=needs), 60_000, 0)) == 1
    # The second replica is silent: its slot is free, and nobody gets it.
    assert queue.submit(2, Asked(model, flow="few", needs=needs), 60_000, late_us) == []
    assert queue.submit(3, Asked(model, flow="any"), 60_000, late_us) == []
    assert queue.submit(4, Asked(model, flow="other"), 60_000, late_us) == []
    assert [one.work for one in queue.hand_over() if isinstance(one, Refuse)] == [2, 3, 4]


def test_every_refusal_has_a_sentence_that_names_the_pool() -> None:
    queue = Dispatcher(POOL, 0)
    told = queue.submit(1, Asked(MODELS[0]), 1_000, 0)
    queue.joined(replica("r-1", 1))
    told += queue.submit(2, Asked(MODELS[1]), 1_000, 0)
    queue.submit(3, Asked(MODELS[0]), 1_000, 0)
    told += queue.submit(4, Asked(MODELS[0]), 1_000, 0)
    assert [one.code for one in told if isinstance(one, Refuse)] == ["no_replica", "model_not_served", "engine_busy"]
    assert all(POOL in one.detail and one.detail.endswith(".") for one in told if isinstance(one, Refuse))
