"""The last slots of a large pool are kept from flows that have their share, while there are others."""

from __future__ import annotations

from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from scheduler.intake.choice import Asked
from scheduler.intake.dispatch import KEPT_OF_SLOTS, RECENT_US, Assign, Dispatcher
from scheduler.intake.replica import Replica

MODEL = ModelId("m")
SLOTS = 2 * KEPT_OF_SLOTS
BUDGET_MS = 60_000


class Pool:
    """A pool of one replica, in a time of its own."""

    def __init__(self, slots: int = SLOTS) -> None:
        self.queue = Dispatcher(PoolId("p"), 256)
        self.queue.joined(Replica(ReplicaId("r"), "1", MODEL, slots, 0, beats=False))
        self.now_us = 0
        self.works = 0

    def ask(self, flow: str, times: int = 1) -> int:
        """Submit so many, and return how many run at once."""
        ran = 0
        for _ in range(times):
            self.works += 1
            told = self.queue.submit(self.works, Asked(MODEL, flow=flow), BUDGET_MS, self.now_us)
            ran += sum(isinstance(one, Assign) for one in told)
        return ran


def test_one_flow_alone_gets_every_slot() -> None:
    assert Pool().ask("one", SLOTS + 5) == SLOTS


def test_the_last_slots_are_kept_for_whoever_was_here_lately_and_are_theirs_at_once() -> None:
    pool = Pool()
    assert pool.ask("calm") == 1
    pool.queue.ended(1, pool.now_us)
    assert pool.ask("many", SLOTS + 5) == SLOTS - SLOTS // KEPT_OF_SLOTS
    assert pool.ask("calm", 2) == 2


def test_what_was_kept_is_given_away_when_nobody_comes() -> None:
    pool = Pool()
    pool.ask("calm")
    pool.queue.ended(1, pool.now_us)
    pool.ask("many", SLOTS + 5)
    pool.now_us += RECENT_US
    assert sum(isinstance(one, Assign) for one in pool.queue.tick(pool.now_us)) == SLOTS // KEPT_OF_SLOTS


def test_a_flow_below_its_share_takes_the_last_slot() -> None:
    pool = Pool()
    pool.ask("many", SLOTS - 1)
    assert pool.ask("few") == 1


def test_a_small_pool_keeps_nothing() -> None:
    pool = Pool(KEPT_OF_SLOTS - 1)
    pool.ask("calm")
    assert pool.ask("many", KEPT_OF_SLOTS) == KEPT_OF_SLOTS - 2
