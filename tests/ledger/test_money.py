"""Money is exact: whole pico-units, one currency at a time, and a price that is the sum of its parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.money import PICO_PER_UNIT, Currency, Money, parse_units
from orchestrator.ledger.rating import TokenPrice, rate

USD, EUR = Currency("USD"), Currency("EUR")
COUNTS = st.integers(0, 10**7)


@pytest.mark.parametrize(
    ("text", "divisor", "pico"),
    [("0.25", 1_000_000, 250_000), ("0", 1, 0), ("2", 1, 2 * PICO_PER_UNIT), ("0.000000000001", 1, 1)],
)
def test_a_quoted_decimal_becomes_whole_pico_units(text: str, divisor: int, pico: int) -> None:
    assert parse_units(text, divisor) == pico


@pytest.mark.parametrize("text", ["-1", "1e3", "1_0", " 1", "NaN", "", "0.0000000000001", "\u0661", "+1", "1."])
def test_what_is_not_exactly_an_amount_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="decimal"):
        parse_units(text, 1)


def test_a_price_finer_than_a_pico_unit_is_refused() -> None:
    with pytest.raises(ValueError, match="finer"):
        parse_units("0.0000001", 1_000_000)


@given(st.integers(0, 10**18 - 1), st.integers(0, 10**12 - 1))
def test_no_amount_is_rounded(units: int, pico: int) -> None:
    assert parse_units(f"{units}.{pico:012}", 1) == units * PICO_PER_UNIT + pico


@pytest.mark.parametrize("text", ["9" * 19, "1" + "0" * 5_000, "0." + "0" * 5_000 + "1"])
def test_an_endless_amount_is_refused_before_it_is_read(text: str) -> None:
    with pytest.raises(ValueError, match="decimal"):
        parse_units(text, 1)


def test_two_currencies_do_not_meet() -> None:
    with pytest.raises(ValueError, match="FX table"):
        Money(1, USD).plus(Money(1, EUR))
    assert Money(1, USD).plus(Money(2, USD)) == Money(3, USD)


def test_an_amount_is_read_as_people_write_it() -> None:
    assert Money(116_000_000, USD).text() == "0.000116 USD"
    assert Money(0, USD).text() == "0 USD"


@given(COUNTS, COUNTS, COUNTS, COUNTS, COUNTS)
def test_tokens_priced_apart_cost_what_they_cost_together(a: int, b: int, c: int, d: int, cached: int) -> None:
    price = TokenPrice(USD, 200_000, 50_000, 400_000)
    together = rate(price, a + b + cached, cached, c + d)
    apart = rate(price, a, 0, c).plus(rate(price, b, 0, d)).plus(rate(price, cached, cached, 0))
    assert together == apart


@pytest.mark.parametrize("counts", [(-1, 0, 0), (1, 2, 0), (0, 0, -1)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int]) -> None:
    with pytest.raises(ValueError, match="token counts"):
        rate(TokenPrice(USD, 1, 1, 1), *counts)
