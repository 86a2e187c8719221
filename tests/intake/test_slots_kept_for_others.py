"""Slots are kept from flows that have their share for others that were here lately, as many as these had at once."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from scheduler.intake.choice import Asked
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.instructions import Assign
from scheduler.intake.kept import MOST_OF_SLOTS, OF_SLOTS, RECENT_US, Lately
from scheduler.intake.replica import Replica

MODEL = ModelId("m")
SLOTS = 2 * OF_SLOTS
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

    def end(self, *works: int) -> int:
        """These works end. Returns how many others begin."""
        return sum(isinstance(one, Assign) for work in works for one in self.queue.ended(work, self.now_us))


def test_one_flow_alone_gets_every_slot() -> None:
    assert Pool().ask("one", SLOTS + 5) == SLOTS


def test_the_last_slots_are_kept_for_whoever_was_here_lately_and_are_theirs_at_once() -> None:
    pool = Pool()
    assert pool.ask("calm") == 1
    pool.end(1)
    assert pool.ask("many", SLOTS + 5) == SLOTS - SLOTS // OF_SLOTS
    assert pool.ask("calm", 2) == 2


def test_who_had_several_at_once_finds_as_many_again() -> None:
    pool = Pool()
    assert pool.ask("calm", 6) == 6
    pool.end(1, 2, 3, 4)
    assert pool.ask("many", SLOTS) == SLOTS - 6
    assert pool.ask("calm", 4) == 4
    # And again: what one flow gives back is not given to the other at once.
    assert pool.end(5, 6, 39) == 0
    assert pool.ask("calm", 3) == 3


def test_no_more_is_kept_than_a_quarter_of_the_pool() -> None:
    pool = Pool()
    pool.ask("calm", SLOTS // 2)
    pool.end(*range(1, SLOTS // 2 + 1))
    assert pool.ask("many", SLOTS) == SLOTS - SLOTS // MOST_OF_SLOTS


def test_what_was_kept_is_given_away_when_nobody_comes() -> None:
    pool = Pool()
    pool.ask("calm", SLOTS // MOST_OF_SLOTS)
    pool.end(*range(1, SLOTS // MOST_OF_SLOTS + 1))
    pool.ask("many", SLOTS + 5)
    pool.now_us += RECENT_US
    assert sum(isinstance(one, Assign) for one in pool.queue.tick(pool.now_us)) == SLOTS // MOST_OF_SLOTS


def test_what_is_given_away_goes_to_who_waited_for_it_and_not_to_who_asks_then() -> None:
    pool = Pool()
    pool.ask("calm", SLOTS // MOST_OF_SLOTS)
    pool.end(*range(1, SLOTS // MOST_OF_SLOTS + 1))
    pool.ask("many", SLOTS + 5)
    first = pool.works - SLOTS // MOST_OF_SLOTS - 5 + 1
    pool.now_us += RECENT_US
    told = pool.queue.submit(pool.works + 1, Asked(MODEL, flow="many"), BUDGET_MS, pool.now_us)
    given_now = [one.work for one in told if isinstance(one, Assign)]
    assert given_now == list(range(first, first + SLOTS // MOST_OF_SLOTS))


def test_a_flow_below_its_share_takes_the_last_slot() -> None:
    pool = Pool()
    pool.ask("many", SLOTS - 1)
    assert pool.ask("few") == 1


def test_with_more_flows_than_slots_what_is_kept_goes_to_those_that_have_none() -> None:
    pool = Pool()
    assert sum(pool.ask(f"flow {number}") for number in range(SLOTS + 8)) == SLOTS
    assert [pool.end(work) for work in range(1, 9)] == [1] * 8


def test_a_small_pool_keeps_none() -> None:
    pool = Pool(OF_SLOTS - 1)
    pool.ask("calm")
    pool.end(1)
    assert pool.ask("many", OF_SLOTS) == OF_SLOTS - 1


def plainly_kept(had: list[tuple[str, int, int]], held: Counter[str], now_us: int) -> tuple[int, int]:
    """What is kept, and a share, by all that was ever given: which flow, how many it had then, and when."""
    flows = {flow for flow, _, at_us in had if now_us - at_us < RECENT_US}
    if len(flows) < 2:
        return 0, SLOTS
    share, span_us = SLOTS // len(flows), RECENT_US // 2
    if share == 0:
        return SLOTS // OF_SLOTS, 1
    owed = 0
    for flow in flows:
        lately = [slots for name, slots, at_us in had if name == flow and now_us // span_us - at_us // span_us < 2]
        owed += max(0, min(share, max(lately, default=0)) - held[flow])
    return min(max(SLOTS // OF_SLOTS, owed), SLOTS // MOST_OF_SLOTS), share


@given(st.lists(st.tuples(st.sampled_from("abcde"), st.integers(0, 9), st.integers(0, 4_000_000)), max_size=60))
def test_what_is_kept_is_owed_to_somebody_and_bounded(events: list[tuple[str, int, int]]) -> None:
    lately, now_us, held = Lately(), 0, Counter[str]()
    had: list[tuple[str, int, int]] = []
    for flow, slots, passed_us in events:
        now_us += passed_us
        lately.asked(flow, now_us)
        held[flow] = slots
        lately.given(flow, slots, now_us)
        had.append((flow, slots, now_us))
        kept, share = lately.kept(held, SLOTS, now_us)
        assert (kept, share) == plainly_kept(had, held, now_us)
        assert 0 <= kept <= SLOTS // MOST_OF_SLOTS
        assert share >= SLOTS // 5
        if kept > SLOTS // OF_SLOTS:
            assert any(held[other] < share for other in held)
    assert lately.kept(held, SLOTS, now_us + RECENT_US) == (0, SLOTS)


def test_more_flows_than_slots_have_a_share_of_one_slot_each() -> None:
    lately, held = Lately(), Counter[str]()
    had = [(f"flow {number}", 1, number) for number in range(SLOTS + 8)]
    for flow, slots, at_us in had:
        lately.asked(flow, at_us)
        lately.given(flow, slots, at_us)
    assert lately.kept(held, SLOTS, len(had)) == plainly_kept(had, held, len(had)) == (SLOTS // OF_SLOTS, 1)


def test_a_pool_that_is_never_full_remembers_no_more_flows_than_one_that_is() -> None:
    lately = Lately()
    for second in range(200):
        lately.asked(f"flow {second}", second * 1_000_000)
        assert lately.known() <= 1 + (RECENT_US + RECENT_US // 2) // 1_000_000
