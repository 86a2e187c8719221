"""Places are compared with siblings: one that is far slower, fails or is silent is out, and a trial brings it back."""

from __future__ import annotations

from collections.abc import Callable
from heapq import heappop, heappush
from itertools import pairwise
from random import Random
from typing import cast

import pytest

from orchestrator.placement.outliers import HOLD_MAX_US, HOLD_MIN_US, Outliers, Sent, _Place
from orchestrator.policy.ids import FlowId, ModelId, PoolId

MODEL = ModelId("m")
ASKS = FlowId("asks")
SECOND = 1_000_000
STEP_US = 200_000
Slowness = Callable[[int, int], float]
"""How many times slower than declared a place is: (place, microseconds)."""


class World:
    """Some equal places with slots, work that comes at random, and an `Outliers` that is asked before each send."""

    def __init__(
        self, places: int, seed: int, slowness: Slowness, fails: Slowness = lambda _a, _b: 0.0, watch: bool = True
    ) -> None:
        self.outliers = Outliers(watch)
        self.random = Random(seed)
        self.names = [PoolId(f"r{number}") for number in range(places)]
        self.slowness, self.fails = slowness, fails
        self.now_us = 0
        self.given = dict.fromkeys(self.names, 0)
        self.running = dict.fromkeys(self.names, 0)
        self.out: dict[PoolId, int] = {}
        """When each was ejected first."""
        self.sent_before_out: dict[PoolId, int] = {}
        self.most_out = 0
        self._events: list[tuple[int, int, str, PoolId, int]] = []
        self._number = 0
        self._sent: dict[int, Sent] = {}

    def run(self, until_us: int, per_s: float = 20.0) -> World:
        while self.now_us < until_us:
            self.now_us += int(self.random.expovariate(per_s) * SECOND)
            while self._events and self._events[0][0] <= self.now_us:
                at_us, number, kind, place, tokens = heappop(self._events)
                attempt = self._sent[number]
                if kind == "first":
                    self.outliers.first_token(attempt, at_us)
                else:
                    self.running[place] -= 1
                    if kind == "failed":
                        self.outliers.failed(attempt, at_us)
                    else:
                        self.outliers.complete(attempt, at_us, tokens * 20_000)
                self._note()
            self._send()
        return self

    def sent(self, place: PoolId, now_us: int | None = None) -> Sent:
        """Tell of an attempt that leaves for a place, now where nothing else is said."""
        at_us = self.now_us if now_us is None else now_us
        sent = Sent(place, MODEL, ASKS, at_us, at_us, 100_000, None, False)
        self.outliers.sent(sent, at_us)
        return sent

    def ejected(self) -> set[PoolId]:
        return {name for name in self.names if self.outliers.ejected(name, MODEL, self.now_us)}

    def _takes(self, number: int, begun_us: int, work_us: float) -> int:
        """How long so much work takes, at the speeds that the place has while it is done."""
        at_us = begun_us
        while work_us > 0 and at_us < begun_us + 300 * SECOND:
            slow = self.slowness(number, at_us)
            step_us = min(STEP_US, int(work_us * slow) + 1)
            work_us -= step_us / slow
            at_us += step_us
        return at_us - begun_us

    def _note(self) -> None:
        places = self.outliers._models[MODEL].places
        out_or_due = {(name, MODEL) for name, place in places.items() if place.out}
        assert out_or_due == self.outliers.out.keys(), "who asks it need ask of nothing else"
        out = self.ejected()
        self.most_out = max(self.most_out, len(out))
        for name in out - self.out.keys():
            self.out[name] = self.now_us
            self.sent_before_out[name] = self.given[name]

    def _send(self) -> None:
        out = self.ejected()
        free = [name for name in self.names if name not in out and self.running[name] < 8]
        if not free:
            return
        place = self.random.choice(free)
        self._number += 1
        number, tokens = self.names.index(place), self.random.randint(10, 60)
        size = self.random.uniform(0.7, 1.4)
        first_us = self._takes(number, self.now_us, 100_000 * size)
        end_us = first_us + self._takes(number, self.now_us + first_us, tokens * 20_000 * size)
        self.given[place] += 1
        self.running[place] += 1
        self._sent[self._number] = self.sent(place)
        if self.random.random() < self.fails(number, self.now_us):
            heappush(self._events, (self.now_us + 1_000, self._number, "failed", place, 0))
            return
        heappush(self._events, (self.now_us + first_us, self._number, "first", place, 0))
        heappush(self._events, (self.now_us + end_us, self._number, "ended", place, tokens))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("places", [2, 4, 6])
@pytest.mark.parametrize("watch", [True, False], ids=["first token too", "by the tokens after it"])
def test_one_that_is_twenty_times_slower_is_out_soon_and_back_when_it_is_well(
    seed: int, places: int, watch: bool
) -> None:
    world = World(places, seed, lambda place, at_us: 20.0 if place == 1 and at_us < 120 * SECOND else 1.0, watch=watch)
    world.run(90 * SECOND)
    assert world.out.keys() == {world.names[1]}
    assert world.sent_before_out[world.names[1]] <= 16, "two fills of its slots at most"
    assert world.names[1] in world.ejected(), "its trials go as badly"
    tried = world.given[world.names[1]] - world.sent_before_out[world.names[1]]
    assert tried <= 6, "one at a time, each after a longer while"
    world.run(400 * SECOND)
    assert world.ejected() == set()
    before = world.given[world.names[1]]
    world.run(460 * SECOND)
    assert world.given[world.names[1]] - before > 60 * 20 / places / 2, "it has its share again"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("factor", [3.0, 20.0, 100.0])
def test_when_all_become_slow_nobody_is_an_outlier(seed: int, factor: float) -> None:
    spells = (30 * SECOND, 60 * SECOND, 150 * SECOND)
    world = World(4, seed, lambda _, at_us: factor if spells[0] <= at_us < spells[1] or at_us > spells[2] else 1.0)
    world.run(250 * SECOND, per_s=10)
    assert world.out == {}


@pytest.mark.parametrize("seed", range(5))
def test_places_that_differ_as_places_do_are_all_kept(seed: int) -> None:
    speeds = [Random(seed * 100 + number).uniform(0.5, 2.0) for number in range(8)]
    world = World(8, seed, lambda place, _: speeds[place], lambda _a, _b: 0.02)
    world.run(200 * SECOND)
    assert world.out == {}


@pytest.mark.parametrize("seed", range(4))
def test_one_whose_answers_fail_half_of_the_time_is_out_though_never_three_in_a_row(seed: int) -> None:
    world = World(4, seed, lambda _a, _b: 1.0, lambda place, at_us: 0.8 if place == 2 and at_us < 60 * SECOND else 0.0)
    world.run(30 * SECOND)
    assert world.out.keys() == {world.names[2]}
    world.run(200 * SECOND)
    assert world.ejected() == set()


@pytest.mark.parametrize("seed", range(4))
def test_when_all_fail_nobody_is_an_outlier(seed: int) -> None:
    world = World(4, seed, lambda _a, _b: 1.0, lambda _a, _b: 0.7)
    assert world.run(60 * SECOND).out == {}


@pytest.mark.parametrize("seed", range(4))
def test_one_that_is_silent_is_out_before_anything_of_it_ends(seed: int) -> None:
    world = World(4, seed, lambda place, at_us: 1e6 if place == 3 and at_us > 10 * SECOND else 1.0)
    world.run(25 * SECOND)
    silent = world.names[3]
    assert world.out.keys() <= {silent}
    # Where most of its slots hold answers that had begun, it is full of them instead.
    assert silent in world.out or world.running[silent] == 8
    assert world.out.get(silent, 0) < 18 * SECOND


@pytest.mark.parametrize(("places", "bad", "most"), [(1, 1, 0), (2, 2, 1), (3, 2, 1), (6, 3, 2), (9, 4, 3)])
def test_at_most_a_third_is_out_and_never_the_last(places: int, bad: int, most: int) -> None:
    world = World(places, 1, lambda place, _: 30.0 if place < bad else 1.0)
    world.run(120 * SECOND)
    assert world.most_out <= most
    if places > 2:
        assert world.most_out == most


def rests_until_us(found: _Place) -> int:
    return max(found.hold.until_us, found.hold._blamed_until_us)


def at_rest(world: World) -> tuple[PoolId, _Place]:
    """The one that is out, without a trial under way."""
    (slow,) = world.out
    found = world.outliers._models[MODEL].places[slow]
    for trial in tuple(found.hold._trials.values()):
        world.outliers.abandoned(cast(Sent, trial), world.now_us)
    return slow, found


def test_an_ejection_grows_with_each_bad_trial_up_to_a_bound_and_has_one_trial_at_a_time() -> None:
    world = World(4, 1, lambda place, _: 50.0 if place == 0 else 1.0)
    world.run(60 * SECOND)
    slow, found = at_rest(world)
    holds = []
    for _ in range(10):
        world.now_us = max(world.now_us, rests_until_us(found))
        trial = world.sent(slow)
        assert world.outliers.ejected(slow, MODEL, world.now_us), "the next one waits for the first"
        beside = world.sent(slow)
        assert found.hold.tries(trial, ASKS)
        assert not found.hold.tries(beside, ASKS)
        world.outliers.abandoned(beside, world.now_us)
        world.outliers.failed(trial, world.now_us + 1)
        holds.append(world.outliers.changed[slow, MODEL].hold_us)
        assert world.outliers.ejected(slow, MODEL, world.now_us + holds[-1], ASKS)
        assert not world.outliers.ejected(slow, MODEL, world.now_us + holds[-1] + 1, ASKS)
    assert all(later == min(2 * one, HOLD_MAX_US) for one, later in pairwise(holds))
    assert holds[0] >= HOLD_MIN_US
    assert holds[-1] == HOLD_MAX_US
    world.outliers.forget(slow)
    assert not world.outliers.ejected(slow, MODEL, world.now_us), "what starts anew is not what was"


def test_a_trial_that_nobody_waited_for_says_nothing_and_makes_room_for_another() -> None:
    world = World(4, 1, lambda place, _: 50.0 if place == 0 else 1.0)
    world.run(60 * SECOND)
    slow, found = at_rest(world)
    at_us = max(world.now_us, rests_until_us(found))
    world.outliers.abandoned(world.sent(slow, at_us), at_us + 1)
    assert not world.outliers.ejected(slow, MODEL, at_us + 1)
