"""The mean lateness in integers is that of a normal distribution, and never falls where it must not."""

from __future__ import annotations

from math import erf, exp, pi, sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.lateness import Z_MAX, mean_late_us

TIMES = st.integers(0, 10**11)
SPREADS = st.integers(0, 2 * 10**10)
STEPS = st.integers(0, 10**9)


def by_integration(mean: float, spread: float, slo: float) -> float:
    """The integral of (t - slo) times the density of t beyond the promise, by Simpson's rule."""
    low, high, pieces = max(slo, mean - 12 * spread), mean + 12 * spread, 20_000
    if low >= high:
        return 0.0
    width = (high - low) / pieces

    def late(t: float) -> float:
        return (t - slo) * exp(-(((t - mean) / spread) ** 2) / 2) / (spread * sqrt(2 * pi))

    inner = sum((4 if number % 2 else 2) * late(low + number * width) for number in range(1, pieces))
    return (late(low) + inner + late(high)) * width / 3


def exact(mean: float, spread: float, slo: float) -> float:
    """The closed form, in floats."""
    z = (slo - mean) / spread
    beyond = (1 - erf(z / sqrt(2))) / 2
    return spread * exp(-z * z / 2) / sqrt(2 * pi) + (mean - slo) * beyond


@pytest.mark.parametrize("z", [-3.9, -2.5, -1.0, -0.3, 0.0, 0.01, 0.7, 1.5, 2.4, 3.0])
@pytest.mark.parametrize("spread_us", [3_000, 250_000, 40_000_000])
def test_the_integers_agree_with_an_integration_of_the_normal(z: float, spread_us: int) -> None:
    slo_us = 500_000_000
    mean_us = slo_us - round(z * spread_us)
    wanted = by_integration(mean_us, spread_us, slo_us)
    assert mean_late_us(mean_us, spread_us, slo_us) == pytest.approx(wanted, rel=1e-3, abs=1)


@given(TIMES, st.integers(1, 2 * 10**10), TIMES)
def test_the_error_is_a_few_hundred_thousandths_of_the_spread(mean_us: int, spread_us: int, slo_us: int) -> None:
    error_us = abs(mean_late_us(mean_us, spread_us, slo_us) - exact(mean_us, spread_us, slo_us))
    assert error_us <= 2e-5 * spread_us + 2


@given(TIMES, TIMES)
def test_without_a_spread_it_is_what_lies_beyond_the_promise(mean_us: int, slo_us: int) -> None:
    assert mean_late_us(mean_us, 0, slo_us) == max(0, mean_us - slo_us)


@given(TIMES, SPREADS, TIMES, STEPS)
def test_a_later_mean_is_never_less_late(mean_us: int, spread_us: int, slo_us: int, more_us: int) -> None:
    assert mean_late_us(mean_us + more_us, spread_us, slo_us) >= mean_late_us(mean_us, spread_us, slo_us)


@given(TIMES, SPREADS, TIMES, STEPS)
def test_a_wider_spread_is_never_less_late(mean_us: int, spread_us: int, slo_us: int, more_us: int) -> None:
    assert mean_late_us(mean_us, spread_us + more_us, slo_us) >= mean_late_us(mean_us, spread_us, slo_us)


@given(TIMES, SPREADS, TIMES)
def test_it_is_at_least_the_lateness_of_the_mean(mean_us: int, spread_us: int, slo_us: int) -> None:
    assert mean_late_us(mean_us, spread_us, slo_us) >= max(0, mean_us - slo_us)


@pytest.mark.parametrize("side", [-1, 1])
@pytest.mark.parametrize("spread_us", [1, 64, 1_000_003, 10**10])
def test_the_ends_of_the_table_join_what_lies_beyond(side: int, spread_us: int) -> None:
    slo_us = 10**12
    mean_us = slo_us + side * Z_MAX * spread_us
    around = [mean_late_us(mean_us + step, spread_us, slo_us) for step in (-2, -1, 0, 1, 2)]
    assert around == sorted(around)
    assert around[-1] - around[0] <= 4


@pytest.mark.parametrize(
    ("mean_us", "spread_us", "slo_us", "late_us"),
    [
        (0, 0, 0, 0),
        (10**30, 1, 0, 10**30),
        (10**30, 10**28, 0, 10**30),
        (0, 1, 10**30, 0),
        (10**30, 10**30, 10**30, 398_942_280_401_432_677_939_946_059_934),
    ],
)
def test_huge_numbers_neither_overflow_nor_wrap(mean_us: int, spread_us: int, slo_us: int, late_us: int) -> None:
    found = mean_late_us(mean_us, spread_us, slo_us)
    assert isinstance(found, int)
    assert found == pytest.approx(late_us, rel=1e-6)
