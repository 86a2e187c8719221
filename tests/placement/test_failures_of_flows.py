"""A place that fails is told from a flow whose work fails everywhere, and a bad trial of one flow from a bad place."""

from __future__ import annotations

from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.fared import KEPT, LEAST, Fared, add_failure, fails_alone, fails_much, kept
from orchestrator.placement.outliers import HOLD_MIN_US, LOOK_EVERY_US, SLOW_MIN, Outliers, Sent, Turn
from orchestrator.policy.ids import FlowId, ModelId, PoolId

MODEL = ModelId("m")
PLACES = tuple(PoolId(f"r{number}") for number in range(3))
HERE = PLACES[0]
BAD, GOOD, THIRD = FlowId("bad"), FlowId("good"), FlowId("third")
SECOND = 1_000_000


class Site:
    """Three places, and time that passes with each attempt."""

    def __init__(self, watch_first: bool = True) -> None:
        self.outliers = Outliers(watch_first)
        self.now_us = 0

    def send(self, place: PoolId, flow: FlowId) -> Sent:
        self.now_us += LOOK_EVERY_US
        sent = Sent(place, MODEL, flow, self.now_us, self.now_us, 100_000, None, False)
        self.outliers.sent(sent, self.now_us)
        return sent

    def well(self, place: PoolId, flow: FlowId, took_us: int = 100_000) -> bool:
        """Have an attempt go well. Returns whether it was the trial that brings its place back."""
        sent = self.send(place, flow)
        self.now_us += took_us
        self.outliers.first_token(sent, self.now_us)
        return self.outliers.complete(sent, self.now_us, None)

    def fail(self, place: PoolId, flow: FlowId, *, reached: bool = True) -> None:
        sent = self.send(place, flow)
        self.now_us += 1_000
        (self.outliers.failed if reached else self.outliers.unreached)(sent, self.now_us)

    def out(self, flow: FlowId | None = None) -> set[PoolId]:
        return {one for one in PLACES if self.outliers.ejected(one, MODEL, self.now_us, flow)}

    def eject(self) -> None:
        """Have the first place fail for everybody."""
        while not self.out():
            for place in PLACES[1:]:
                self.well(place, GOOD)
                self.well(place, THIRD)
            for flow in (GOOD, THIRD):
                if not self.out():
                    self.fail(HERE, flow)
        assert self.out(GOOD) == {HERE}
        self.now_us += HOLD_MIN_US


@pytest.mark.parametrize("floods", [1, 3, 20])
def test_a_flow_whose_work_fails_everywhere_ejects_no_place(floods: int) -> None:
    site = Site()
    for _ in range(20):
        for place in PLACES:
            site.well(place, GOOD)
            for _ in range(floods):
                site.fail(place, BAD)
            assert site.out() == set()


def test_a_flow_whose_work_fails_and_reaches_one_place_alone_does_not_eject_it() -> None:
    site = Site()
    for _ in range(20):
        for place in PLACES:
            site.well(place, GOOD)
        for _ in range(3):
            site.fail(HERE, BAD)
        assert site.out() == set()


def test_a_place_that_fails_for_all_is_ejected_though_a_flow_fails_everywhere() -> None:
    site = Site()
    for _ in range(LEAST):
        for place in PLACES[1:]:
            site.well(place, GOOD)
            site.well(place, THIRD)
            site.fail(place, BAD)
        for flow in (GOOD, BAD, THIRD):
            site.fail(HERE, flow)
    assert site.out() == {HERE}


def test_a_place_where_work_of_the_only_flow_fails_is_ejected_when_it_goes_well_elsewhere() -> None:
    site = Site()
    for _ in range(LEAST):
        for place in PLACES[1:]:
            site.well(place, GOOD)
        site.fail(HERE, GOOD)
    assert site.out() == {HERE}


def test_a_place_that_cannot_be_reached_is_ejected_whosever_attempts_it_were() -> None:
    site = Site()
    for _ in range(LEAST):
        for place in PLACES[1:]:
            site.well(place, GOOD)
        site.fail(HERE, BAD, reached=False)
    assert site.out() == {HERE}


def test_a_trial_that_fails_keeps_its_own_flow_out_and_no_other() -> None:
    site = Site()
    site.eject()
    for count in range(1, 4):
        site.now_us += HOLD_MIN_US << count
        assert site.out(BAD) == set()
        site.fail(HERE, BAD)
        assert site.out(BAD) == {HERE}
        assert site.out(GOOD) == set()
    assert site.well(HERE, GOOD)
    assert site.out() == set()


def test_a_trial_that_hangs_keeps_no_other_flow_out() -> None:
    site = Site()
    site.eject()
    site.send(HERE, BAD)
    assert site.out(BAD) == {HERE}
    assert site.out(GOOD) == set()
    assert site.well(HERE, GOOD)
    assert site.out(BAD) == set()


def test_a_second_flows_bad_trial_holds_off_all_for_twice_as_long() -> None:
    site = Site()
    site.eject()
    site.outliers.changes()
    for flow in (BAD, GOOD):
        site.fail(HERE, flow)
    assert [(one.turn, one.hold_us) for one in site.outliers.changes()] == [(Turn.OUT, 2 * HOLD_MIN_US)]
    assert site.out(THIRD) == {HERE}
    site.now_us += 2 * HOLD_MIN_US
    assert site.out(THIRD) == set()


@pytest.mark.parametrize("hangs_up", [False, True])
def test_work_of_one_flow_that_hangs_does_not_eject_a_place_that_serves_others(hangs_up: bool) -> None:
    site = Site()
    for _ in range(4):
        for place in PLACES:
            site.well(place, GOOD)
            site.well(place, BAD)
    hanging = [site.send(HERE, BAD) for _ in range(2 * SLOW_MIN)]
    site.now_us += 20 * SECOND
    for _ in range(8):
        for place in PLACES:
            site.well(place, GOOD)
            site.well(place, BAD)
        if hangs_up:
            site.outliers.abandoned(hanging.pop(), site.now_us)
        assert site.out() == set()


def test_a_place_that_is_silent_to_all_is_ejected() -> None:
    site = Site()
    for flow in (GOOD, BAD, GOOD, BAD):
        for place in PLACES:
            site.well(place, flow)
    for _ in range(SLOW_MIN // 2):
        site.send(HERE, BAD)
        site.send(HERE, GOOD)
    site.now_us += 20 * SECOND
    for _ in range(4):
        for place in PLACES[1:]:
            site.well(place, GOOD)
    assert site.out() == {HERE}


FLOWS = st.sampled_from([BAD, GOOD, THIRD])
ENDS = st.lists(st.tuples(FLOWS, st.booleans()), max_size=60)


def fared_of(ends: list[tuple[FlowId, bool]], failing: FlowId | None = None) -> deque[Fared]:
    """What is kept of attempts that failed or did not, with `failing` only those of that flow."""
    fared = kept()
    for at_us, (flow, failed) in enumerate(ends):
        if failed and failing in (None, flow):
            add_failure(fared, at_us, flow)
        else:
            fared.append(Fared(at_us, flow, False))
    return fared


@given(ENDS, ENDS, ENDS)
def test_where_one_flow_alone_ever_fails_and_does_so_everywhere_no_place_fails_alone(
    here: list[tuple[FlowId, bool]], there: list[tuple[FlowId, bool]], more: list[tuple[FlowId, bool]]
) -> None:
    bad = [(BAD, True)] * 2
    place, *siblings = (fared_of([*ends, *bad, *bad], BAD) for ends in (here, there, more))
    assert not (fails_much(place) and fails_alone(place, siblings, 10**9))


@given(ENDS)
def test_a_flow_that_fails_leaves_others_half_of_what_is_kept(ends: list[tuple[FlowId, bool]]) -> None:
    fared = fared_of([(GOOD, False)] * KEPT + [(BAD, True)] * 3 * KEPT)
    assert sum(one.flow == GOOD for one in fared) == KEPT // 2
    of_one = fared_of([(GOOD, failed) for _, failed in ends])
    assert [one.failed for one in of_one] == [failed for _, failed in ends][-KEPT:], "of one flow the last are kept"
