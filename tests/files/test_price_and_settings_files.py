"""Amounts are quoted decimals that come out in whole pico-units, or are refused with their field."""

from __future__ import annotations

import pytest

from orchestrator.files.fields import body_of
from orchestrator.files.prices import PricesDocument, prices_of
from orchestrator.files.settings import SettingsDocument, settings_of
from orchestrator.files.typed import fit
from orchestrator.policy.ids import ModelId, PoolId
from tests.files.documents import DROP, PRICES, SETTINGS, Path, broken, load, refusal

COST: Path = ("costs", 0)
PRICE: Path = ("books", 0, "prices", 0)

BAD_PRICES: list[tuple[Path, object, str, str]] = [
    (("version",), 0, "version", "expected one of 1"),
    ((*COST, "pool"), "Pool A", "costs[0].pool", "a name"),
    ((*COST, "model"), "", "costs[0].model", "name of a model"),
    ((*COST, "currency"), "usd", "costs[0].currency", "ISO 4217"),
    ((*COST, "input_per_million"), 1, "costs[0].input_per_million", "text"),
    ((*COST, "output_per_million"), DROP, "costs[0].output_per_million", "missing"),
    *(
        ((*COST, "input_per_million"), text, "costs[0].input_per_million", "quoted decimal")
        for text in ("", "-1", "+1", "1e3", "1_000", " 1", "1.", ".5", "01", "NaN", "Infinity", "1,5", "١", "9" * 10)
    ),
    ((*COST, "input_per_million"), "0.0000001", "costs[0].input_per_million", "finer than a pico-unit"),
    ((*COST, "egress_per_gb"), "0.0000000001", "costs[0].egress_per_gb", "finer than a pico-unit"),
    (("costs", 1), PRICES["costs"][0], "costs[1]", "once"),
    ((*PRICE, "currency"), "EURO", "books[0].prices[0].currency", "ISO 4217"),
    ((*PRICE, "egress_per_gb"), "1", "books[0].prices[0].egress_per_gb", "one of the fields"),
    (("books", 0, "prices", 1), PRICES["books"][0]["prices"][0], "books[0].prices[1].model", "once"),
    (("books", 1), PRICES["books"][0], "books[1].id", "once"),
    (("books", 0, "id"), "Standard", "books[0].id", "a name"),
]

BAD_SETTINGS: list[tuple[Path, object, str, str]] = [
    (("version",), 2, "version", "expected one of 1"),
    (("currency",), "$", "currency", "ISO 4217"),
    (("value_of_time_per_second",), "0.0000000001", "value_of_time_per_second", "finer than a pico-unit"),
    (("late_price_per_second",), "-1", "late_price_per_second", "quoted decimal"),
    (("slo_first_ms",), 0, "slo_first_ms", ">= 1"),
    (("slo_first_ms",), "30000", "slo_first_ms", "whole number"),
    (("epsilon_ppm",), 1_000_001, "epsilon_ppm", "<= 1000000"),
    (("unknown_rtt_ms",), -1, "unknown_rtt_ms", ">= 0"),
    (("unknown_rtt_ms",), DROP, "unknown_rtt_ms", "missing"),
    (("expected_output_tokens",), 0, "expected_output_tokens", ">= 1"),
    (("drains",), ["*"], "drains[0]", "a name"),
    (("drains",), ["pool-a", "pool-a"], "drains[1]", "once"),
    (("weights",), {}, "weights", "one of the fields"),
]


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD_PRICES, ids=lambda part: str(part)[:60])
def test_bad_prices_are_refused_with_their_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(PRICES, path, value), PricesDocument, prices_of)
    assert error.field == field
    assert expected in error.expected


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD_SETTINGS, ids=lambda part: str(part)[:60])
def test_bad_settings_are_refused_with_their_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(SETTINGS, path, value), SettingsDocument, settings_of)
    assert error.field == field
    assert expected in error.expected


def test_prices_arrive_in_whole_pico_units() -> None:
    prices = load(PRICES, PricesDocument, prices_of)
    cost = prices.cost(PoolId("pool-a"), ModelId("m"))
    assert cost is not None
    assert (cost.tokens.input_pico, cost.tokens.cached_pico, cost.tokens.output_pico) == (250_000, 0, 1_000_001)
    assert cost.egress_pico_per_byte == 80
    price = prices.price("standard", ModelId("m"))
    assert price is not None
    assert (price.currency, price.output_pico) == ("EUR", 4_000_000)
    assert prices.cost(PoolId("pool-b"), ModelId("m")) is None


def test_settings_arrive_in_whole_pico_units() -> None:
    settings = load(SETTINGS, SettingsDocument, settings_of)
    assert settings.value_of_time_pico_per_ms == 10_000
    assert settings.late_price_pico_per_ms == 500_000_000
    assert settings.drains == {"pool-a"}


def test_the_bodies_of_signed_sections_have_the_shape_of_the_files() -> None:
    assert body_of(fit(PRICES, PricesDocument)) == PRICES
    assert body_of(fit(SETTINGS, SettingsDocument)) == SETTINGS
