"""Draws: keyed by seed and position, and within the nucleus."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.pools.engine.sampling import Drawing, may_end, next_token, uniform

PINNED = [0.011546754286331562, 0.8824668302545412, 0.5629364492557579]
SEEDS = st.integers(0, (1 << 64) - 1)


def _logits(seed: int, size: int = 50) -> npt.NDArray[np.float32]:
    return (np.random.default_rng(seed).normal(size=size) * 2).astype(np.float32)


@given(SEEDS, st.integers(0, 1 << 20))
def test_draw_is_in_the_unit_interval_and_repeats(seed: int, position: int) -> None:
    drawn = uniform(seed, position)
    assert 0 <= drawn < 1
    assert uniform(seed, position) == drawn


def test_draws_are_pinned() -> None:
    # An answer continued by another release must draw what this one would have drawn.
    assert [uniform(seed, position) for seed, position in ((0, 0), (7, 1), ((1 << 64) - 1, 4095))] == PINNED


def test_neighbouring_positions_and_seeds_draw_apart() -> None:
    drawn = {uniform(seed, position) for seed in range(40) for position in range(40)}
    assert len(drawn) == 1600
    assert abs(sum(drawn) / 1600 - 0.5) < 0.03


@given(SEEDS, st.integers(0, 5000), st.floats(0.01, 1.0), st.floats(0.05, 2.0))
def test_token_is_of_the_smallest_likely_set(seed: int, position: int, top_p: float, temperature: float) -> None:
    logits = _logits(position)
    chosen = next_token(logits, Drawing(temperature, top_p, seed), position)
    scaled = logits.astype(np.float64) / temperature
    shares = np.exp(scaled - scaled.max())
    shares /= shares.sum()
    more_likely = float(shares[shares > shares[chosen]].sum())
    assert more_likely < top_p + 1e-9


def test_draws_follow_the_shares() -> None:
    logits = np.log(np.array([0.5, 0.3, 0.2], dtype=np.float32))
    counts = np.bincount([next_token(logits, Drawing(1.0, 1.0, 3), position) for position in range(4000)], minlength=3)
    assert np.allclose(counts / 4000, [0.5, 0.3, 0.2], atol=0.03)
    half = np.bincount([next_token(logits, Drawing(1.0, 0.7, 3), position) for position in range(4000)], minlength=3)
    assert np.allclose(half / 4000, [0.625, 0.375, 0.0], atol=0.03)


@given(
    SEEDS,
    st.integers(0, 5000),
    st.just(0.0) | st.floats(0.05, 2.0),
    st.floats(0.05, 1.0),
    st.sets(st.integers(0, 49), max_size=49),
)
def test_a_barred_token_is_never_drawn_and_the_others_are_drawn_as_if_it_were_none(
    seed: int, position: int, temperature: float, top_p: float, barred: set[int]
) -> None:
    logits = _logits(position)
    before = logits.copy()
    drawing = Drawing(temperature, top_p, seed)
    chosen = next_token(logits, drawing, position, tuple(barred))
    assert chosen not in barred
    assert np.array_equal(logits, before), "the logits of the model stay as they are"
    left = [token for token in range(len(logits)) if token not in barred]
    assert chosen == left[next_token(logits[left], drawing, position)]


@given(st.none() | st.integers(0, 100), st.integers(0, 100))
def test_an_answer_may_end_from_a_token_on_or_never(ends_from: int | None, generated: int) -> None:
    assert may_end(ends_from, generated) is (ends_from is not None and generated >= ends_from)


@pytest.mark.parametrize("drawing", [Drawing(0.0, 1.0, 5), Drawing(1e-9, 1.0, 5), Drawing(1.0, 1e-9, 5)])
def test_no_temperature_or_no_nucleus_is_greedy(drawing: Drawing) -> None:
    logits = _logits(1)
    assert {next_token(logits, drawing, position) for position in range(20)} == {int(logits.argmax())}


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_no_numbers_are_an_error(bad: float) -> None:
    logits = _logits(1)
    logits[7] = bad
    with pytest.raises(FloatingPointError):
        next_token(logits, Drawing(0.0, 1.0, 0), 0)
