"""One replica of several that is far slower gets no new work until a trial says that it is well."""

from __future__ import annotations

from heapq import heappop, heappush
from random import Random

import pytest

from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.outliers import HOLD_MIN_US
from orchestrator.placement.sight import End
from orchestrator.policy.ids import FlowId, ModelId, PoolId, ReplicaId
from scheduler.intake.choice import Asked
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.instructions import Assign, Instruction, Refuse
from scheduler.intake.replica import Replica, ReplicaCondition

MODEL = ModelId("m")
SLOTS = 4
SECOND_US = 1_000_000
NAMES = [ReplicaId(f"r-{number}") for number in range(4)]
SLOW = NAMES[2]


class Pool:
    """Four replicas in virtual time, one of which is so many times slower until it heals."""

    def __init__(self, seed: int, slow: float, healed_us: int) -> None:
        self.random, self.slow, self.healed_us = Random(seed), slow, healed_us
        self.queue = Dispatcher(PoolId("pool"), 64)
        self.now_us, self.last = 0, 0
        self.given = dict.fromkeys(NAMES, 0)
        self.events: list[tuple[int, int, str, int]] = []
        self.tokens: dict[int, int] = {}
        for name in NAMES:
            self.queue.joined(Replica(name, "1", MODEL, SLOTS, 0, beats=False))

    def run(self, until_us: int, per_s: float) -> dict[ReplicaId, int]:
        """Return how much work each replica was given meanwhile."""
        before = dict(self.given)
        coming_us = self.now_us
        while coming_us < until_us:
            coming_us += int(self.random.expovariate(per_s) * SECOND_US)
            while self.events and self.events[0][0] <= coming_us:
                self.now_us, _, kind, work = heappop(self.events)
                if kind == "first":
                    self.queue.first_token(work, self.now_us)
                else:
                    counts = PoolCounts(50, 0, self.tokens[work])
                    self.take(self.queue.ended(work, self.now_us, End.COMPLETE, counts))
            self.now_us, self.last = coming_us, self.last + 1
            self.tokens[self.last] = self.random.randint(20, 60)
            self.take(self.queue.submit(self.last, Asked(MODEL, 50, 40), 600_000, self.now_us))
        return {name: self.given[name] - before[name] for name in NAMES}

    def take(self, told: list[Instruction]) -> None:
        for one in told:
            assert not isinstance(one, Refuse)
            if isinstance(one, Assign):
                self.given[one.replica] += 1
                slow = self.slow if one.replica == SLOW and self.now_us < self.healed_us else 1.0
                first_us = self.now_us + int(60_000 * slow)
                heappush(self.events, (first_us, one.work, "first", one.work))
                heappush(self.events, (first_us + int(self.tokens[one.work] * 20_000 * slow), one.work, "z", one.work))


@pytest.mark.parametrize("seed", range(3))
def test_a_replica_twenty_times_slower_gets_no_more_than_trials_until_it_heals(seed: int) -> None:
    pool = Pool(seed, 20.0, 200 * SECOND_US)
    assert pool.run(60 * SECOND_US, 8)[SLOW] <= 3 * SLOTS
    assert pool.run(190 * SECOND_US, 8)[SLOW] <= 6
    pool.run(500 * SECOND_US, 8)
    healed = pool.run(560 * SECOND_US, 8)
    assert healed[SLOW] > sum(healed.values()) / 8


def test_where_only_an_outlier_is_up_work_goes_to_it() -> None:
    pool = Pool(1, 20.0, 10_000 * SECOND_US)
    pool.run(60 * SECOND_US, 8)
    pool.queue.tick(pool.now_us)
    told = {replica.id: condition for replica, condition in pool.queue.replicas(pool.now_us)}
    assert told.pop(SLOW) is ReplicaCondition.OUTLIER
    assert set(told.values()) == {ReplicaCondition.UP}
    assert pool.queue.outliers() == {SLOW}
    state = pool.queue.state()
    assert (state.replicas, state.slots) == (3, 3 * SLOTS), "edges are told of what is in play"
    for name in NAMES:
        if name != SLOW:
            pool.queue.left(name, "1")
    free = next(replica.free for replica, _ in pool.queue.replicas(pool.now_us))
    given = [one for work in range(free) for one in pool.queue.submit(10**6 + work, Asked(MODEL), 1_000, pool.now_us)]
    assert [one.replica for one in given if isinstance(one, Assign)] == [SLOW] * free
    assert pool.queue.outliers() == frozenset()
    state = pool.queue.state()
    assert (state.replicas, state.slots) == (1, SLOTS), "and edges are told that it is in play"


BAD, GOOD, THIRD = FlowId("bad"), FlowId("good"), FlowId("third")
FIRST, SECOND = NAMES[:2]


class Two:
    """Two replicas of one slot each. The first fails whatever it is given, the second answers."""

    def __init__(self) -> None:
        self.queue = Dispatcher(PoolId("pool"), 64)
        self.now_us, self.last = 0, 0
        for name in (FIRST, SECOND):
            self.queue.joined(Replica(name, "1", MODEL, 1, 0, beats=False))

    def submit(self, flow: FlowId) -> list[tuple[int, ReplicaId]]:
        """Return what is given out because of it."""
        self.now_us, self.last = self.now_us + SECOND_US // 10, self.last + 1
        told = self.queue.submit(self.last, Asked(MODEL, 50, 40, flow=flow), 600_000, self.now_us)
        return [(one.work, one.replica) for one in told if isinstance(one, Assign)]

    def end(self, work: int, replica: ReplicaId) -> None:
        self.now_us += SECOND_US // 10
        if replica == FIRST:
            self.queue.ended(work, self.now_us, End.FAILED)
        else:
            self.queue.first_token(work, self.now_us)
            self.queue.ended(work, self.now_us, End.COMPLETE, PoolCounts(50, 0, 40))

    def eject_the_first(self) -> None:
        for turn in range(40):
            if self.queue.outliers() == {FIRST}:
                return
            flow = (GOOD, THIRD)[turn % 2]
            for given in [*self.submit(flow), *self.submit(flow)]:
                self.end(*given)
            self.queue.tick(self.now_us)
        raise AssertionError("it is not ejected")


def test_work_that_may_not_try_a_replica_holds_up_nobody_who_may() -> None:
    pool = Two()
    pool.eject_the_first()
    ((held, where),) = pool.submit(GOOD)
    assert where == SECOND
    pool.queue.first_token(held, pool.now_us)
    pool.now_us += HOLD_MIN_US
    ((trial, where),) = pool.submit(BAD)
    assert where == FIRST, "it is tried by whoever comes"
    pool.end(trial, where)
    assert pool.submit(BAD) == [], "and who failed there waits for the other one"
    assert [replica for _, replica in pool.submit(THIRD)] == [FIRST], "which is no reason for others to wait"
