"""Prices by hour, date and link, promises to tenants, and settings on trial: taken whole, or refused with the field."""

from __future__ import annotations

import copy
from dataclasses import fields
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.files.fields import body_of
from orchestrator.files.fleet import FleetDocument, fleet_of
from orchestrator.files.prices import PricesDocument, prices_of
from orchestrator.files.settings import SettingsDocument, settings_of
from orchestrator.files.tenants import TenantsDocument, tenants_of
from orchestrator.files.typed import fit
from orchestrator.placement.fleet import Carbon, Fleet, PoolCost
from orchestrator.placement.prices import NEVER_MS
from orchestrator.placement.settings import Change, PlacementSettings, in_canary
from orchestrator.policy.ids import EdgeId, ModelId, PoolId, SideId
from orchestrator.policy.tenants import Service, Tenant
from tests.files.documents import DROP, FLEET, PRICES, SETTINGS, TENANTS, Path, broken, load, refusal

TOKENS = {"input_per_million": "1", "cached_per_million": "0.5", "output_per_million": "2"}
PRICED: dict[str, Any] = copy.deepcopy(PRICES)
PRICED["costs"][0] |= {
    "tariffs": [{"from_time": "22:30", "until_time": "06:00", **TOKENS}],
    "dated": [
        {"from_at": "2026-12-31T16:00:00Z", "until_at": "2027-01-01T00:00:01Z", **TOKENS},
        {"from_at": "2027-02-28T23:59:59Z", **TOKENS},
    ],
    "egress_links": {"edge-a": "0.02", "edge-b": "0"},
    "carbon": {"grams_per_kwh": 580, "input_joules_per_million": 36, "output_joules_per_million": 720},
}
TUNED: dict[str, Any] = {
    **SETTINGS,
    "caps": {"pool-a": 32, "pool-b": 0},
    "carbon_price_per_kg": "0.08",
    "unknown_mbit_per_s": 50,
    "age_spread_ppm": 80_000,
    "canary": {
        "share_ppm": 50_000,
        "change": {
            "value_of_time_per_second": "0.00002",
            "late_price_per_second": "1",
            "slo_first_ms": 4_000,
            "slo_token_ms": 100,
            "epsilon_ppm": 0,
            "carbon_price_per_kg": "0.1",
        },
    },
}
SERVED: dict[str, Any] = copy.deepcopy(TENANTS)
SERVED["tenants"][0] |= {
    "service": {
        "value_of_time_per_second": "0.5",
        "late_price_per_second": "0",
        "slo_first_ms": 800,
        "slo_token_ms": 30,
        "budget_per_request": "0.05",
        "timeout_ms": 60_000,
        "first_token_timeout_ms": 5_000,
        "between_tokens_timeout_ms": 2_000,
    },
    "revisions": {"m": "2026-03-01", "Org/Model-1.5B": "a1b2c3"},
}
REVISED: dict[str, Any] = copy.deepcopy(FLEET)
REVISED["pools"][0]["models"][0] |= {"stream_us_per_token": 0, "revision": "2026-03-01"}

COST: Path = ("costs", 0)
TARIFF: Path = (*COST, "tariffs", 0)
DATED: Path = (*COST, "dated", 0)
CHANGE: Path = ("canary", "change")
SERVICE: Path = ("tenants", 0, "service")
SERVES: Path = ("pools", 0, "models", 0)

HOURS = ("", "6:00", "24:00", "12:60", "12:00:00", " 12:00", "12:00 ", "12.00", "1200", "-1:00", "١٢:٠٠")
MOMENTS = (
    "",
    "2026-12-31",
    "2026-12-31T16:00:00",
    "2026-12-31T16:00:00+08:00",
    "2026-12-31t16:00:00z",
    "2026-12-31T24:00:00Z",
    "2026-12-31T16:60:00Z",
    "2026-12-31T16:00:60Z",
    "2026-12-31T16:00:00.5Z",
    "2026-12-31 16:00:00Z",
)
BAD_PRICES: list[tuple[Path, object, str, str]] = [
    *(((*TARIFF, "from_time"), text, "costs[0].tariffs[0].from_time", "22:30") for text in HOURS),
    ((*TARIFF, "until_time"), "25:00", "costs[0].tariffs[0].until_time", "time of the day in UTC"),
    ((*TARIFF, "until_time"), "22:30", "costs[0].tariffs[0].until_time", "another time than from_time"),
    ((*TARIFF, "until_time"), 360, "costs[0].tariffs[0].until_time", "text"),
    ((*TARIFF, "until_time"), DROP, "costs[0].tariffs[0].until_time", "missing"),
    ((*TARIFF, "input_per_million"), "-1", "costs[0].tariffs[0].input_per_million", "quoted decimal"),
    ((*TARIFF, "output_per_million"), DROP, "costs[0].tariffs[0].output_per_million", "missing"),
    ((*TARIFF, "currency"), "EUR", "costs[0].tariffs[0].currency", "one of the fields"),
    *(((*DATED, "from_at"), text, "costs[0].dated[0].from_at", "2026-12-31T16:00:00Z") for text in MOMENTS),
    ((*DATED, "from_at"), "2026-02-29T00:00:00Z", "costs[0].dated[0].from_at", "a date"),
    ((*DATED, "until_at"), "2026-12-31T16:00:00Z", "costs[0].dated[0].until_at", "after from_at"),
    ((*DATED, "until_at"), "2026-12-31T15:59:59Z", "costs[0].dated[0].until_at", "after from_at"),
    ((*DATED, "from_at"), DROP, "costs[0].dated[0].from_at", "missing"),
    ((*DATED, "cached_per_million"), "0.0000001", "costs[0].dated[0].cached_per_million", "finer than a pico-unit"),
    ((*COST, "egress_links", "edge-a"), "-0.02", "costs[0].egress_links.edge-a", "quoted decimal"),
    ((*COST, "egress_links", "edge-a"), "0.0000000001", "costs[0].egress_links.edge-a", "finer than a pico-unit"),
    ((*COST, "carbon", "grams_per_kwh"), -1, "costs[0].carbon.grams_per_kwh", ">= 0"),
    ((*COST, "carbon", "grams_per_kwh"), "580", "costs[0].carbon.grams_per_kwh", "whole number"),
    ((*COST, "carbon", "output_joules_per_million"), DROP, "costs[0].carbon.output_joules_per_million", "missing"),
    ((*COST, "carbon", "pue"), 2, "costs[0].carbon.pue", "one of the fields"),
    ((*COST, "carbon"), None, "costs[0].carbon", "mapping"),
]
BAD_SETTINGS: list[tuple[Path, object, str, str]] = [
    (("caps", "pool-a"), -1, "caps", ">= 0"),
    (("caps", "pool-a"), "8", "caps", "whole number"),
    (("carbon_price_per_kg",), "0.0000000001", "carbon_price_per_kg", "finer than a pico-unit"),
    (("carbon_price_per_kg",), "-0.1", "carbon_price_per_kg", "quoted decimal"),
    (("unknown_mbit_per_s",), 0, "unknown_mbit_per_s", ">= 1"),
    (("unknown_mbit_per_s",), 1_000_001, "unknown_mbit_per_s", "<= 1000000"),
    (("age_spread_ppm",), -1, "age_spread_ppm", ">= 0"),
    (("value_of_time_per_second",), "1.000000001", "value_of_time_per_second", "at most 1 per second"),
    (("late_price_per_second",), "2", "late_price_per_second", "at most 1 per second"),
    (("canary", "share_ppm"), 1_000_001, "canary.share_ppm", "<= 1000000"),
    (("canary", "share_ppm"), -1, "canary.share_ppm", ">= 0"),
    (("canary", "share_ppm"), DROP, "canary.share_ppm", "missing"),
    (("canary", "change"), DROP, "canary.change", "missing"),
    (("canary", "arm"), "b", "canary.arm", "one of the fields"),
    ((*CHANGE, "slo_first_ms"), 0, "canary.change.slo_first_ms", ">= 1"),
    ((*CHANGE, "slo_token_ms"), None, "canary.change.slo_token_ms", "whole number"),
    ((*CHANGE, "epsilon_ppm"), 2_000_000, "canary.change.epsilon_ppm", "<= 1000000"),
    ((*CHANGE, "value_of_time_per_second"), "3", "canary.change.value_of_time_per_second", "at most 1 per second"),
    ((*CHANGE, "late_price_per_second"), 1, "canary.change.late_price_per_second", "text"),
    ((*CHANGE, "carbon_price_per_kg"), "x", "canary.change.carbon_price_per_kg", "quoted decimal"),
    ((*CHANGE, "drains"), ["pool-b"], "canary.change.drains", "one of the fields"),
    ((*CHANGE, "currency"), "EUR", "canary.change.currency", "one of the fields"),
]
REVISION = "tenants[0].revisions.m"
BAD_TENANTS: list[tuple[Path, object, str, str]] = [
    ((*SERVICE, "budget_per_request"), "-0.05", "tenants[0].service.budget_per_request", "quoted decimal"),
    ((*SERVICE, "timeout_ms"), 0, "tenants[0].service.timeout_ms", ">= 1"),
    ((*SERVICE, "budget_per_request"), 5, "tenants[0].service.budget_per_request", "text"),
    ((*SERVICE, "slo_first_ms"), 0, "tenants[0].service.slo_first_ms", ">= 1"),
    ((*SERVICE, "slo_token_ms"), "30", "tenants[0].service.slo_token_ms", "whole number"),
    ((*SERVICE, "late_price_per_second"), "1.1", "tenants[0].service.late_price_per_second", "at most 1 per second"),
    ((*SERVICE, "value_of_time_per_second"), "", "tenants[0].service.value_of_time_per_second", "quoted decimal"),
    ((*SERVICE, "priority"), 1, "tenants[0].service.priority", "one of the fields"),
    *(
        (("tenants", 0, "revisions", "m"), text, REVISION, "a revision")
        for text in ("", "-1", "a b", "main/1", "é", "r" * 65, "r1\n")
    ),
]
BAD_FLEETS: list[tuple[Path, object, str, str]] = [
    ((*SERVES, "stream_us_per_token"), -1, "pools[0].models[0].stream_us_per_token", ">= 0"),
    ((*SERVES, "stream_us_per_token"), None, "pools[0].models[0].stream_us_per_token", "whole number"),
    ((*SERVES, "revision"), "", "pools[0].models[0].revision", "a revision"),
    ((*SERVES, "revision"), 3, "pools[0].models[0].revision", "text"),
]


def fleet(document: FleetDocument) -> Fleet:
    return fleet_of(document, SideId("domestic"))


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD_PRICES, ids=lambda part: str(part)[:60])
def test_bad_prices_are_refused_with_their_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(PRICED, path, value), PricesDocument, prices_of)
    assert error.field == field
    assert expected in error.expected


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD_SETTINGS, ids=lambda part: str(part)[:60])
def test_bad_settings_are_refused_with_their_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(TUNED, path, value), SettingsDocument, settings_of)
    assert error.field.startswith(field)
    assert expected in error.expected


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD_TENANTS, ids=lambda part: str(part)[:60])
def test_bad_promises_are_refused_with_their_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(SERVED, path, value), TenantsDocument, tenants_of)
    assert error.field == field
    assert expected in error.expected


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD_FLEETS, ids=lambda part: str(part)[:60])
def test_bad_speeds_and_revisions_are_refused_with_their_field(
    path: Path, value: object, field: str, expected: str
) -> None:
    error = refusal(broken(REVISED, path, value), FleetDocument, fleet)
    assert error.field == field
    assert expected in error.expected


@pytest.mark.parametrize("name", ["Edge A", "-edge", "edge_a", "e" * 64, "édge"])
def test_names_of_edges_pools_and_models_are_checked_where_they_are_keys(name: str) -> None:
    for document, path, value, shape, to_domain, within in (
        (PRICED, (*COST, "egress_links"), "1", PricesDocument, prices_of, "costs[0].egress_links"),
        (TUNED, ("caps",), 1, SettingsDocument, settings_of, "caps"),
    ):
        error = refusal(broken(document, path, {name: value}), shape, to_domain)  # type: ignore[arg-type]
        assert error.field.startswith(within)
        assert "a name" in error.expected
    error = refusal(broken(SERVED, ("tenants", 0, "revisions"), {name + " ": "r"}), TenantsDocument, tenants_of)
    assert error.field.startswith("tenants[0].revisions")
    assert "name of a model" in error.expected


def only_cost() -> PoolCost:
    found = load(PRICED, PricesDocument, prices_of).cost(PoolId("pool-a"), ModelId("m"))
    assert found is not None
    return found


def test_tariffs_dates_links_and_carbon_arrive_in_their_units() -> None:
    cost = only_cost()
    (tariff,) = cost.tariffs
    assert (tariff.from_minute, tariff.until_minute) == (22 * 60 + 30, 6 * 60)
    assert (tariff.tokens.currency, tariff.tokens.input_pico, tariff.tokens.cached_pico) == ("USD", 10**6, 5 * 10**5)
    first, second = cost.dated
    assert (first.from_ms, first.until_ms) == (1_798_732_800_000, 1_798_761_601_000)
    assert second.until_ms == NEVER_MS
    assert cost.links == {EdgeId("edge-a"): 20, EdgeId("edge-b"): 0}
    assert cost.egress_pico_per_byte == 80
    # 36 joules per million tokens are 36 microjoules a token.
    assert cost.carbon == Carbon(580, 36, 720)


def test_a_cost_without_them_has_none() -> None:
    cost = load(PRICES, PricesDocument, prices_of).costs[0]
    assert (cost.tariffs, cost.dated, cost.links, cost.carbon) == ((), (), {}, None)


def tuned() -> PlacementSettings:
    return load(TUNED, SettingsDocument, settings_of)


def test_settings_on_trial_arrive_in_their_units() -> None:
    settings = tuned()
    assert settings.caps == {"pool-a": 32, "pool-b": 0}
    assert settings.carbon_pico_per_gram == 80_000_000
    assert settings.unknown_bytes_per_s == 6_250_000
    assert settings.canary is not None
    assert settings.canary.share_ppm == 50_000
    assert settings.canary.change == Change(20_000, 10**9, 4_000, 100_000, 0, 100_000_000)
    plain = load(SETTINGS, SettingsDocument, settings_of)
    assert (plain.caps, plain.canary, plain.carbon_pico_per_gram) == ({}, None, 0)


def test_a_canary_changes_what_it_names_and_nothing_else() -> None:
    whole = tuned()
    assert whole.arm(False) == whole
    trial, names = whole.arm(True), [field.name for field in fields(whole) if field.init]
    changed = {name for name in names if getattr(trial, name) != getattr(whole, name)}
    assert changed == {field.name for field in fields(Change)}
    assert (whole.usual, trial.usual) == (whole.worth(None), trial.worth(None)), "what follows from them is theirs"
    assert trial.usual != whole.usual
    one = load(broken(TUNED, CHANGE, {"slo_first_ms": 5}), SettingsDocument, settings_of)
    assert one.arm(True).slo_first_ms == 5
    assert one.arm(True).value_of_time_pico_per_ms == one.value_of_time_pico_per_ms
    nothing = load(broken(TUNED, CHANGE, {}), SettingsDocument, settings_of)
    assert nothing.arm(True) == nothing
    without = load(SETTINGS, SettingsDocument, settings_of)
    assert without.arm(True) == without


@pytest.mark.parametrize("share_ppm", [0, 1_000, 50_000, 500_000, 1_000_000])
def test_a_canarys_share_of_requests_is_drawn(share_ppm: int) -> None:
    settings = load(broken(TUNED, ("canary", "share_ppm"), share_ppm), SettingsDocument, settings_of)
    random = Random(7)
    drawn = sum(in_canary(settings, random.getrandbits(64)) for _ in range(20_000))
    assert drawn / 20_000 == pytest.approx(share_ppm / 1_000_000, abs=0.01)
    floats = sum(in_canary(settings, int(random.random() * 2**64)) for _ in range(20_000))
    assert floats / 20_000 == pytest.approx(share_ppm / 1_000_000, abs=0.01), "53 bits are enough"


@given(st.integers(0, 2**64 - 1))
def test_without_a_canary_nobody_is_in_it(chance: int) -> None:
    assert not in_canary(load(SETTINGS, SettingsDocument, settings_of), chance)


def tenants() -> tuple[Tenant, ...]:
    return load(SERVED, TenantsDocument, tenants_of)


def test_promises_and_revisions_arrive_in_their_units() -> None:
    acme, other = tenants()
    assert acme.service == Service(500_000_000, 0, 800, 30_000, 50_000_000_000, 60_000, 5_000, 2_000)
    assert acme.revisions == {"m": "2026-03-01", "Org/Model-1.5B": "a1b2c3"}
    assert (other.service, other.revisions) == (None, {})


def test_what_a_promise_leaves_out_is_as_the_settings_say() -> None:
    acme, _ = load(broken(SERVED, SERVICE, {}), TenantsDocument, tenants_of)
    assert acme.service == Service()
    settings = tuned()
    assert settings.worth(acme.service) == settings.worth(None)


def test_a_declared_speed_beside_others_may_be_nothing_and_left_out_is_a_full_pool_at_half_speed() -> None:
    declared, left_out = load(REVISED, FleetDocument, fleet), load(FLEET, FleetDocument, fleet)
    served, plain = declared.pools[0].models[0], left_out.pools[0].models[0]
    assert (served.revision, plain.revision) == ("2026-03-01", None)
    assert served.speed(8).stream_ns == 0
    assert plain.speed(8).stream_ns == plain.speed(8).decode_ns // 8


def test_the_bodies_of_signed_sections_have_the_shape_of_the_files() -> None:
    assert body_of(fit(PRICED, PricesDocument)) == PRICED
    assert body_of(fit(TUNED, SettingsDocument)) == TUNED
    assert body_of(fit(SERVED, TenantsDocument)) == SERVED
    assert body_of(fit(REVISED, FleetDocument)) == REVISED
