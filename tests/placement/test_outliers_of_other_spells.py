"""What a place took in one spell is held against it only by what its siblings took in the same one."""

from __future__ import annotations

from heapq import heappop, heappush

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement.outliers import FLOOR_US, LOOK_EVERY_US, Outliers, Sent
from orchestrator.placement.sight import NO_FLOW
from orchestrator.policy.ids import ModelId, PoolId

MODEL = ModelId("m")
SECOND = 1_000_000
TOKEN_US = 20_000
A, B = PoolId("a"), PoolId("b")


class Two:
    """Two places, told what is written down for them in the order of time; nothing keeps work from one that is out."""

    def __init__(self) -> None:
        self.outliers = Outliers(watch_first=False)
        self.out_us: dict[PoolId, int] = {}
        """When each was first seen to be out."""
        self._events: list[tuple[int, int, str, str, PoolId, int]] = []
        self._number = 0
        self._sent: dict[str, Sent] = {}

    def answer(self, place: PoolId, sent_us: int, tokens: int, ratio: float) -> int:
        """Write down an answer whose tokens come `ratio` times slower than expected. Returns when it ends."""
        expected_us = (tokens - 1) * TOKEN_US
        ended_us = sent_us + 1_000 + int(ratio * (expected_us + FLOOR_US))
        self._write(sent_us, "sent", place, 0)
        self._write(sent_us + 1_000, "first", place, 0)
        self._write(ended_us, "ended", place, expected_us)
        self._number += 1
        return ended_us

    def failure(self, place: PoolId, sent_us: int) -> None:
        """Write down an attempt that is cut."""
        self._write(sent_us, "sent", place, 0)
        self._write(sent_us + 1_000, "failed", place, 0)
        self._number += 1

    def burst(self, place: PoolId, at_us: int, streams: int, ratio: float, slots: int = 4) -> int:
        """Write down that so many streams come at once and take turns in the slots. Returns when the last ends."""
        ends = [at_us] * slots
        for _ in range(streams):
            first = ends.index(min(ends))
            ends[first] = self.answer(place, ends[first], 16, ratio)
        return max(ends)

    def play(self) -> Two:
        """Tell everything that is written down."""
        while self._events:
            at_us, _, kind, attempt, place, expected_us = heappop(self._events)
            match kind:
                case "sent":
                    self._sent[attempt] = Sent(place, MODEL, NO_FLOW, at_us, at_us, 100_000, None, False)
                    self.outliers.sent(self._sent[attempt], at_us)
                case "first":
                    self.outliers.first_token(self._sent[attempt], at_us)
                case "ended":
                    self.outliers.complete(self._sent[attempt], at_us, expected_us)
                case _:
                    self.outliers.failed(self._sent[attempt], at_us)
            for one in (A, B):
                if self.outliers.ejected(one, MODEL, at_us):
                    self.out_us.setdefault(one, at_us)
        return self

    def _write(self, at_us: int, kind: str, place: PoolId, expected_us: int) -> None:
        order = ("ended", "failed", "sent", "first").index(kind)
        heappush(self._events, (at_us, self._number * 4 + order, kind, f"a{self._number}", place, expected_us))


def quiet(two: Two, place: PoolId, from_us: int, until_us: int, ratio: float) -> None:
    """Short answers, one after the other."""
    while from_us < until_us:
        from_us = two.answer(place, from_us, 4, ratio) + 50_000


@pytest.mark.parametrize("loaded", [1.2, 2.0, 6.0, 20.0])
@pytest.mark.parametrize("ebbing", [1.0, 2.5, 4.0])
@pytest.mark.parametrize("calm", [0.2, 0.3, 0.5])
def test_a_pool_that_rests_since_a_burst_is_not_held_against_what_its_sibling_does_in_quiet(
    loaded: float, ebbing: float, calm: float
) -> None:
    two = Two()
    two.burst(A, 0, 17, loaded)
    ended_us = two.burst(B, 0, 17, loaded)
    ended_us = two.burst(B, ended_us, 6, loaded / ebbing)  # the rest of its share, with the machine to itself
    quiet(two, B, ended_us, ended_us + 20 * SECOND, calm)
    two.burst(B, ended_us + 21 * SECOND, 50, 0.8)
    assert two.play().out_us == {}


@pytest.mark.parametrize("loaded", [2.0, 6.0])
def test_one_more_slow_answer_does_not_bring_back_what_a_spell_of_all_taught(loaded: float) -> None:
    two = Two()
    two.burst(A, 0, 17, loaded)
    ended_us = two.burst(B, 0, 23, loaded)
    quiet(two, B, ended_us, ended_us + 20 * SECOND, 0.3)
    two.answer(A, ended_us + 15 * SECOND, 16, loaded)
    assert two.play().out_us == {}


def test_one_that_is_slow_while_its_sibling_is_not_is_out_also_when_they_take_turns() -> None:
    two = Two()
    now_us = 0
    for _ in range(6):
        now_us = two.answer(A, now_us, 16, 8.0)
        now_us = two.answer(B, now_us, 16, 0.9)
    assert two.play().out_us.keys() == {A}


def test_one_that_stays_slow_when_a_spell_of_all_is_over_is_out() -> None:
    two = Two()
    two.burst(A, 0, 17, 6.0)
    ended_us = two.burst(B, 0, 17, 6.0)
    two.burst(A, ended_us, 12, 6.0)
    quiet(two, B, ended_us, ended_us + 20 * SECOND, 0.5)
    out_us = two.play().out_us
    assert out_us.keys() == {A}
    assert out_us[A] < ended_us + 10 * SECOND


def test_what_failed_while_all_failed_is_not_held_against_one_that_rests() -> None:
    two = Two()
    for number in range(12):
        two.failure(A, number * 100_000)
        two.failure(B, number * 100_000 + 50_000)
    quiet(two, B, 2 * SECOND, 30 * SECOND, 0.5)
    two.failure(B, 31 * SECOND)  # every failure is a look at once
    assert two.play().out_us == {}


def test_one_that_fails_alone_is_out_though_its_sibling_rests() -> None:
    two = Two()
    quiet(two, B, 0, 5 * SECOND, 0.5)
    quiet(two, A, 0, 5 * SECOND, 0.5)
    for number in range(16):
        two.failure(A, 10 * SECOND + number * 100_000)
    assert two.play().out_us.keys() == {A}


ANSWERS = st.lists(
    st.tuples(
        st.sampled_from([A, B]), st.integers(0, 20 * SECOND), st.integers(2, 40), st.sampled_from([1.5, 3.0, 5.0])
    ),
    min_size=10,
    max_size=40,
)
REST = st.lists(st.tuples(st.integers(0, SECOND), st.integers(2, 40)), min_size=10, max_size=30)
"""Of one place, one after the other: (pause, tokens)."""


@given(ANSWERS, REST, st.sampled_from([0.5, 0.7, 0.9, 1.0]))
@settings(max_examples=200)
def test_what_one_does_while_its_sibling_rests_decides_nothing_of_the_sibling(
    before: list[tuple[PoolId, int, int, float]], after: list[tuple[int, int]], ebb: float
) -> None:
    two = Two()
    rests_us = max(two.answer(*one) for one in before)
    # A last look at what was.
    looked_us = now_us = two.answer(B, rests_us + 2 * LOOK_EVERY_US, 2, 1.5)
    for number, (pause_us, tokens) in enumerate(after):
        now_us = two.answer(B, now_us + pause_us, tokens, max(0.2, 1.5 * ebb**number))
    assert two.play().out_us.get(A, 0) <= looked_us
