"""The breaker: failures in a row hold a pool off, what breaks together counts once, and one trial lets it back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.breaker import FAILURES_MAX, HOLD_MAX_US, HOLD_MIN_US, Breaker


def tripped(at_us: int = 0) -> tuple[Breaker, int]:
    """A breaker that has just opened, and when."""
    breaker = Breaker()
    for number in range(FAILURES_MAX):
        at_us += 10
        breaker.sent(f"failed-{number}")
        breaker.failed(f"failed-{number}", at_us, at_us + 5)
        at_us += 5
    return breaker, at_us


def test_a_new_breaker_is_closed() -> None:
    assert not Breaker().held_off(0)


def test_failures_in_a_row_hold_it_off_and_fewer_do_not() -> None:
    breaker = Breaker()
    for number in range(FAILURES_MAX):
        assert not breaker.held_off(number)
        breaker.failed("a", number, number)
    assert breaker.held_off(FAILURES_MAX)


def test_a_success_between_begins_the_count_again() -> None:
    breaker = Breaker()
    for number in range(10):
        breaker.failed("a", 2 * number, 2 * number)
        if number % (FAILURES_MAX - 1):
            breaker.succeeded("b")
        assert not breaker.held_off(2 * number)


def test_streams_that_break_together_count_once() -> None:
    breaker = Breaker()
    for number in range(50):
        breaker.failed(f"a-{number}", sent_us=number, now_us=1_000 + number)
    assert not breaker.held_off(2_000)


def test_after_a_while_one_trial_goes_and_no_more() -> None:
    breaker, now_us = tripped()
    assert breaker.held_off(now_us + HOLD_MIN_US - 1)
    assert not breaker.held_off(now_us + HOLD_MIN_US)
    breaker.sent("trial")
    assert breaker.held_off(now_us + HOLD_MIN_US)
    assert breaker.held_off(now_us + 100 * HOLD_MAX_US), "for as long as the trial has not ended"
    breaker.sent("another")
    breaker.succeeded("another")
    assert breaker.held_off(now_us + HOLD_MIN_US), "of what left beside the trial nothing is concluded"
    breaker.succeeded("trial")
    assert not breaker.held_off(now_us + HOLD_MIN_US)


def test_a_trial_that_fails_doubles_the_hold_up_to_a_bound() -> None:
    breaker, now_us = tripped()
    hold_us = HOLD_MIN_US
    for number in range(10):
        assert breaker.held_off(now_us + hold_us - 1)
        now_us += hold_us
        assert not breaker.held_off(now_us)
        breaker.sent(f"trial-{number}")
        breaker.failed(f"trial-{number}", now_us, now_us + 7)
        now_us += 7
        hold_us = min(2 * hold_us, HOLD_MAX_US)
    assert hold_us == HOLD_MAX_US
    breaker.sent("trial")
    breaker.succeeded("trial")
    for number in range(FAILURES_MAX):
        breaker.failed("a", now_us + number + 1, now_us + number + 1)
    assert not breaker.held_off(now_us + FAILURES_MAX + HOLD_MIN_US), "once back, it begins with a short hold"


def test_a_trial_that_tells_nothing_lets_the_next_one_be_the_trial() -> None:
    breaker, now_us = tripped()
    later_us = now_us + HOLD_MIN_US
    breaker.sent("given-up")
    breaker.abandoned("given-up")
    assert not breaker.held_off(later_us)
    breaker.sent("trial")
    breaker.abandoned("somebody-else")
    assert breaker.held_off(later_us)
    breaker.succeeded("trial")
    assert not breaker.held_off(later_us)


@pytest.mark.parametrize("end", ["succeeded", "abandoned"])
def test_an_old_attempt_does_not_close_it(end: str) -> None:
    breaker, now_us = tripped()
    getattr(breaker, end)("began-before")
    assert breaker.held_off(now_us)


KINDS = st.sampled_from(["sent", "succeeded", "failed", "abandoned"])
STEPS = st.lists(st.tuples(KINDS, st.integers(0, 5)), max_size=60)


@given(STEPS, st.integers(0, HOLD_MAX_US))
def test_once_all_have_ended_it_is_never_held_off_for_good(steps: list[tuple[str, int]], pause_us: int) -> None:
    breaker, now_us, sent = Breaker(), 0, dict[str, int]()
    for step, number in steps:
        name, now_us = str(number), now_us + pause_us + 1
        if step == "sent" and name not in sent:
            sent[name] = now_us
            breaker.sent(name)
        elif name in sent and step == "failed":
            breaker.failed(name, sent.pop(name), now_us)
        elif name in sent and step != "sent":
            del sent[name]
            getattr(breaker, step)(name)
    for name in sent:
        breaker.abandoned(name)
    assert not breaker.held_off(now_us + HOLD_MAX_US)
