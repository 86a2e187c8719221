"""The bounds of one answer: which of them ends a wait, and that a slow tenant brings none about but the whole."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.wire.deadlines import BETWEEN, FIRST, TOTAL, Deadlines, Waits

MS = 1_000
WAITS = Waits(first_token_ms=500, between_tokens_ms=100)


def test_the_first_token_has_its_own_bound_whatever_comes_before_it() -> None:
    bounds = Deadlines(WAITS, 10_000, 7 * MS)
    assert bounds.left_us(7 * MS) == 500 * MS
    assert bounds.left_us(407 * MS) == 100 * MS, "that a replica has it is no token"
    assert bounds.left_us(507 * MS) == 0
    code, sentence = bounds.over()
    assert code == FIRST
    assert "500 ms" in sentence


def test_between_tokens_only_the_wait_for_the_pool_counts() -> None:
    bounds = Deadlines(WAITS, 10_000, 0)
    bounds.left_us(0)
    bounds.begun = True
    # The tenant took four seconds for the last token.
    assert bounds.left_us(4_000 * MS) == 100 * MS
    assert bounds.over()[0] == BETWEEN


@pytest.mark.parametrize("begun", [False, True])
def test_the_whole_ends_every_wait(begun: bool) -> None:
    bounds = Deadlines(WAITS, 450, 0)
    if begun:
        bounds.begun = True
    assert bounds.left_us(400 * MS) == 50 * MS
    assert bounds.over()[0] == TOTAL
    assert bounds.left_us(451 * MS) == 0


@given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(0, 20_000))
def test_another_attempt_waits_less_for_its_first_token_and_never_not_at_all(
    first_ms: int, between_ms: int, passed_ms: int
) -> None:
    left = Waits(first_ms, between_ms).after(passed_ms)
    assert 1 <= left.first_token_ms <= first_ms
    assert left.first_token_ms >= min(first_ms, between_ms)
    assert left.between_tokens_ms == between_ms
