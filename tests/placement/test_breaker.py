"""The breaker: failures in a row hold a pool off, from one flow or from all, and a trial lets it back."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.breaker import (
    FAILURES_MAX,
    FLOWS_MAX,
    HOLD_MAX_US,
    HOLD_MIN_US,
    KEPT_US,
    Breaker,
)
from orchestrator.policy.ids import FlowId

ONE, OTHER, THIRD = FlowId("one"), FlowId("other"), FlowId("third")


class Plain:
    """The breaker as it is for one flow: it knows no flows."""

    def __init__(self) -> None:
        self.failures, self.failed_us, self.until_us = 0, -1, -1
        self.hold_us = HOLD_MIN_US
        self.trial: str | None = None

    def held_off(self, now_us: int) -> bool:
        return self.failures >= FAILURES_MAX and (now_us < self.until_us or self.trial is not None)

    def sent(self, attempt: str) -> None:
        if self.failures >= FAILURES_MAX and self.trial is None:
            self.trial = attempt

    def ended(self, how: str, attempt: str, sent_us: int, now_us: int) -> None:
        trial = attempt == self.trial
        if how == "succeeded" and (trial or self.failures < FAILURES_MAX):
            self.failures, self.hold_us, self.trial = 0, HOLD_MIN_US, None
        elif how == "abandoned" and trial:
            self.trial = None
        elif how == "failed" and (trial or sent_us > self.failed_us):
            if trial:
                self.trial, self.hold_us = None, min(2 * self.hold_us, HOLD_MAX_US)
            self.failed_us, self.failures = now_us, self.failures + 1
            if self.failures >= FAILURES_MAX:
                self.until_us = now_us + self.hold_us


def tripped(at_us: int = 0) -> tuple[Breaker, int]:
    """A breaker that has just opened, and when."""
    breaker = Breaker()
    for number in range(FAILURES_MAX):
        at_us += 10
        breaker.sent(f"failed-{number}", ONE)
        breaker.failed(f"failed-{number}", ONE, at_us, at_us + 5)
        at_us += 5
    return breaker, at_us


def test_a_new_breaker_is_closed() -> None:
    assert not Breaker().held_off(ONE, 0)


def test_failures_in_a_row_hold_it_off_and_fewer_do_not() -> None:
    breaker = Breaker()
    for number in range(FAILURES_MAX):
        assert not breaker.held_off(ONE, number)
        breaker.failed("a", ONE, number, number)
    assert breaker.held_off(ONE, FAILURES_MAX)


def test_a_success_between_begins_the_count_again() -> None:
    breaker = Breaker()
    for number in range(10):
        breaker.failed("a", ONE, 2 * number, 2 * number)
        if number % (FAILURES_MAX - 1):
            breaker.succeeded("b", ONE, 2 * number)
        assert not breaker.held_off(ONE, 2 * number)


def test_streams_that_break_together_count_once() -> None:
    breaker = Breaker()
    for number in range(50):
        breaker.failed(f"a-{number}", ONE, sent_us=number, now_us=1_000 + number)
    assert not breaker.held_off(ONE, 2_000)


def test_after_a_while_one_trial_goes_and_no_more() -> None:
    breaker, now_us = tripped()
    assert breaker.held_off(ONE, now_us + HOLD_MIN_US - 1)
    assert not breaker.held_off(ONE, now_us + HOLD_MIN_US)
    breaker.sent("trial", ONE)
    assert breaker.held_off(ONE, now_us + HOLD_MIN_US)
    assert breaker.held_off(ONE, now_us + 100 * HOLD_MAX_US), "for as long as the trial has not ended"
    breaker.sent("another", ONE)
    breaker.succeeded("another", ONE, now_us)
    assert breaker.held_off(ONE, now_us + HOLD_MIN_US), "of what left beside the trial nothing is concluded"
    breaker.succeeded("trial", ONE, now_us)
    assert not breaker.held_off(ONE, now_us + HOLD_MIN_US)


def test_a_trial_that_fails_doubles_the_hold_up_to_a_bound() -> None:
    breaker, now_us = tripped()
    hold_us = HOLD_MIN_US
    for number in range(10):
        assert breaker.held_off(ONE, now_us + hold_us - 1)
        now_us += hold_us
        assert not breaker.held_off(ONE, now_us)
        breaker.sent(f"trial-{number}", ONE)
        breaker.failed(f"trial-{number}", ONE, now_us, now_us + 7)
        now_us += 7
        hold_us = min(2 * hold_us, HOLD_MAX_US)
    assert hold_us == HOLD_MAX_US
    breaker.sent("trial", ONE)
    breaker.succeeded("trial", ONE, now_us)
    for number in range(FAILURES_MAX):
        breaker.failed("a", ONE, now_us + number + 1, now_us + number + 1)
    assert not breaker.held_off(ONE, now_us + FAILURES_MAX + HOLD_MIN_US), "once back, it begins with a short hold"


def test_a_trial_that_tells_nothing_lets_the_next_one_be_the_trial() -> None:
    breaker, now_us = tripped()
    later_us = now_us + HOLD_MIN_US
    breaker.sent("given-up", ONE)
    breaker.abandoned("given-up", ONE)
    assert not breaker.held_off(ONE, later_us)
    breaker.sent("trial", ONE)
    breaker.abandoned("somebody-else", ONE)
    assert breaker.held_off(ONE, later_us)
    breaker.succeeded("trial", ONE, now_us)
    assert not breaker.held_off(ONE, later_us)


def end(breaker: Breaker, how: str, attempt: str, flow: FlowId, sent_us: int, now_us: int) -> None:
    """Tell how an attempt ended."""
    match how:
        case "succeeded":
            breaker.succeeded(attempt, flow, now_us)
        case "abandoned":
            breaker.abandoned(attempt, flow)
        case "unreached":
            breaker.unreached(attempt, flow, sent_us, now_us)
        case _:
            breaker.failed(attempt, flow, sent_us, now_us)


@pytest.mark.parametrize("how", ["succeeded", "abandoned"])
def test_an_old_attempt_does_not_close_it(how: str) -> None:
    breaker, now_us = tripped()
    end(breaker, how, "began-before", ONE, 0, now_us)
    assert breaker.held_off(ONE, now_us)


def test_failures_of_one_flow_hold_off_nobody_else() -> None:
    breaker, now_us = tripped()
    for number in range(100):
        assert not breaker.held_off(OTHER, now_us + number)
        assert not breaker.held_off(None, now_us + number)
        breaker.failed(f"more-{number}", ONE, now_us + number, now_us + number)
    breaker.succeeded("well", OTHER, now_us + 100)
    assert breaker.held_off(ONE, now_us + 100), "what another flow fares is nothing to it"


def test_a_failure_of_a_second_flow_holds_off_all() -> None:
    breaker, now_us = tripped()
    breaker.failed("another", OTHER, now_us + 1, now_us + 2)
    for flow in (ONE, OTHER, THIRD, None):
        assert breaker.held_off(flow, now_us + 2)
    assert not breaker.held_off(THIRD, now_us + 2 + HOLD_MIN_US)


def test_failures_that_are_nobodys_hold_off_all() -> None:
    breaker = Breaker()
    for number in range(FAILURES_MAX):
        assert not breaker.held_off(OTHER, number)
        breaker.unreached(f"a-{number}", ONE, number, number)
    assert breaker.held_off(OTHER, FAILURES_MAX)


def opened_for_all() -> tuple[Breaker, int]:
    """A breaker that holds off all, at the end of the hold."""
    breaker, now_us = tripped()
    breaker.failed("another", OTHER, now_us + 1, now_us + 2)
    return breaker, now_us + 2 + HOLD_MIN_US


def test_a_bad_trial_of_one_flow_holds_off_that_one_alone_and_a_second_ones_holds_off_all_again() -> None:
    breaker, now_us = opened_for_all()
    breaker.sent("trial", OTHER)
    breaker.failed("trial", OTHER, now_us, now_us + 1)
    assert breaker.held_off(OTHER, now_us + 2 * HOLD_MIN_US)
    assert not breaker.held_off(THIRD, now_us + 1), "another may try at once"
    breaker.sent("second", THIRD)
    breaker.failed("second", THIRD, now_us + 2, now_us + 3)
    for flow in (ONE, OTHER, THIRD, FlowId("fourth")):
        assert breaker.held_off(flow, now_us + 2 + 2 * HOLD_MIN_US)
        assert not breaker.held_off(flow, now_us + 3 + 2 * HOLD_MIN_US + 1)


def test_a_trial_of_one_flow_that_says_nothing_keeps_no_other_from_trying() -> None:
    breaker, now_us = opened_for_all()
    breaker.sent("hangs", OTHER)
    assert breaker.held_off(OTHER, now_us)
    assert not breaker.held_off(THIRD, now_us)
    breaker.sent("tries", THIRD)
    assert breaker.held_off(FlowId("fourth"), now_us), "two are enough to tell"
    breaker.succeeded("tries", THIRD, now_us + 1)
    assert not breaker.held_off(FlowId("fourth"), now_us + 1)


def test_of_more_flows_than_it_remembers_the_one_that_failed_the_longest_ago_is_forgotten() -> None:
    breaker = Breaker()
    for number in range(3 * FLOWS_MAX):
        breaker.failed("a", FlowId(f"flow-{number}"), number, number)
    assert len(breaker._own) == FLOWS_MAX
    assert FlowId(f"flow-{3 * FLOWS_MAX - 1}") in breaker._own


def test_when_all_goes_well_for_a_while_nothing_is_remembered() -> None:
    breaker, now_us = tripped()
    breaker.succeeded("well", OTHER, now_us + KEPT_US - 1)
    assert breaker.troubled
    breaker.succeeded("well", OTHER, now_us + KEPT_US)
    assert not breaker.troubled


KINDS = st.sampled_from(["sent", "succeeded", "failed", "abandoned"])
NAMES = st.integers(0, 5)
STEPS = st.lists(st.tuples(KINDS, NAMES), max_size=60)
FLOWS = (ONE, OTHER, THIRD)
FLOW_KINDS = st.sampled_from(["sent", "succeeded", "failed", "abandoned", "unreached"])
FLOW_STEPS = st.lists(st.tuples(FLOW_KINDS, NAMES, st.sampled_from(FLOWS)), max_size=80)


@given(FLOW_STEPS, st.integers(0, HOLD_MAX_US))
def test_once_all_have_ended_it_is_never_held_off_for_good(
    steps: list[tuple[str, int, FlowId]], pause_us: int
) -> None:
    breaker, now_us, sent = Breaker(), 0, dict[str, tuple[FlowId, int]]()
    for step, number, flow in steps:
        name, now_us = str(number), now_us + pause_us + 1
        if step == "sent" and name not in sent:
            sent[name] = flow, now_us
            breaker.sent(name, flow)
        elif name in sent and step != "sent":
            whose, sent_us = sent.pop(name)
            end(breaker, step, name, whose, sent_us, now_us)
    for name, (whose, _) in sent.items():
        breaker.abandoned(name, whose)
    for flow in FLOWS:
        assert not breaker.held_off(flow, now_us + HOLD_MAX_US)


@given(STEPS, st.integers(0, 1_000_000))
def test_of_one_flow_alone_it_does_what_a_breaker_that_knows_no_flows_does(
    steps: list[tuple[str, int]], pause_us: int
) -> None:
    breaker, plain, now_us, sent = Breaker(), Plain(), 0, dict[str, int]()
    for step, number in steps:
        name, now_us = str(number), now_us + pause_us + 1
        if step == "sent" and name not in sent:
            sent[name] = now_us
            breaker.sent(name, ONE)
            plain.sent(name)
        elif name in sent and step != "sent":
            sent_us = sent.pop(name)
            end(breaker, step, name, ONE, sent_us, now_us)
            plain.ended(step, name, sent_us, now_us)
        for later_us in (0, 1, HOLD_MIN_US, 4 * HOLD_MIN_US, HOLD_MAX_US):
            assert breaker.held_off(ONE, now_us + later_us) == plain.held_off(now_us + later_us)


@given(FLOW_STEPS, st.integers(0, HOLD_MAX_US))
def test_a_flow_that_has_not_failed_is_held_off_by_no_other_alone(
    steps: list[tuple[str, int, FlowId]], pause_us: int
) -> None:
    breaker, now_us, sent = Breaker(), 0, dict[str, tuple[FlowId, int]]()
    for step, number, flow in steps:
        name, now_us = str(number), now_us + pause_us + 1
        if step == "sent" and name not in sent:
            sent[name] = flow, now_us
            breaker.sent(name, flow)
        elif name in sent and step != "sent":
            whose, sent_us = sent.pop(name)
            if step in ("failed", "unreached"):
                step = "failed" if whose == ONE else "succeeded"
            end(breaker, step, name, whose, sent_us, now_us)
        assert not breaker.held_off(OTHER, now_us)
        assert not breaker.held_off(THIRD, now_us)
        assert not breaker.held_off(None, now_us)


@given(st.lists(st.integers(0, 9), min_size=1, max_size=60), st.booleans())
def test_where_everything_fails_all_are_held_off_soon(turns: list[int], reached: bool) -> None:
    breaker, failed = Breaker(), set[int]()
    for count, number in enumerate(turns, 1):
        flow, now_us = FlowId(f"flow-{number}"), 2 * count
        if not breaker.held_off(flow, now_us):
            breaker.sent(str(count), flow)
            end(breaker, "failed" if reached else "unreached", str(count), flow, now_us, now_us + 1)
            failed.add(number)
        if count >= FAILURES_MAX + len(failed) and (len(failed) > 1 or not reached):
            assert breaker.held_off(FlowId("new"), now_us + 1)


@given(st.integers(2, 9), st.integers(0, 2**32))
def test_of_a_dead_pool_no_more_than_two_trials_fail_in_a_hold(flows: int, seed: int) -> None:
    breaker, random, failed_us = Breaker(), Random(seed), list[int]()
    for now_us in range(0, 10 * HOLD_MAX_US, HOLD_MIN_US // 4):
        flow = FlowId(f"flow-{random.randrange(flows)}")
        if not breaker.held_off(flow, now_us):
            breaker.sent(now_us, flow)
            breaker.failed(now_us, flow, now_us, now_us)
            failed_us.append(now_us)
    late = [one for one in failed_us if one >= 4 * HOLD_MAX_US]
    assert len(late) <= 2 * 6 + 2


@pytest.mark.parametrize("bad", [1, 3])
def test_tenants_whose_every_request_fails_keep_few_of_the_others_from_a_pool(bad: int) -> None:
    breaker, random, now_us, asked, refused, sent_bad = Breaker(), Random(1), 0, 0, 0, 0
    for number in range(10_000):
        now_us += int(random.expovariate(10 + 5 * bad) * 1_000_000)
        turn = random.randrange(10 + 5 * bad)
        fails, flow = turn >= 10, FlowId(f"good-{turn % 3}" if turn < 10 else f"bad-{turn % bad}")
        off = breaker.held_off(flow, now_us)
        if not fails:
            asked, refused = asked + 1, refused + off
        if off:
            continue
        sent_bad += fails
        breaker.sent(str(number), flow)
        # Of the others' work one in a hundred fails too.
        how = "failed" if fails or random.random() < 0.01 else "succeeded"
        end(breaker, how, str(number), flow, now_us, now_us)
    assert refused <= asked // 100
    assert sent_bad <= bad * (now_us // HOLD_MAX_US + 8), "and little of what fails reaches it"
