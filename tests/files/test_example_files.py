"""The files of the example load as they are, and fit together."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from orchestrator.files.document import read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.fleet import FleetDocument, fleet_of
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.prices import PricesDocument, prices_of
from orchestrator.files.settings import SettingsDocument, settings_of
from orchestrator.files.tenants import TenantsDocument, tenants_of
from orchestrator.ledger.rating import rate
from orchestrator.placement.fleet import Fleet, Prices
from orchestrator.policy.ids import PoolId, SideId

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sides"
SIDES = ("overseas", "domestic")
PACKS = sorted(path for side in SIDES for path in (EXAMPLE / side / "packs").glob("*.yaml"))


def fleet(side: str) -> Fleet:
    document = read_document(EXAMPLE / side / "fleet.yaml")
    return read_as(document, FleetDocument, lambda shape: fleet_of(shape, SideId(side)))


def both_prices() -> Prices:
    found = [read_as(read_document(EXAMPLE / side / "prices.yaml"), PricesDocument, prices_of) for side in SIDES]
    return Prices(found[0].costs + found[1].costs, found[0].books + found[1].books)


def test_every_file_of_the_example_is_covered_here() -> None:
    names = {str(path.relative_to(EXAMPLE)) for side in SIDES for path in (EXAMPLE / side).rglob("*.yaml")}
    packs = {str(path.relative_to(EXAMPLE)) for path in PACKS}
    assert {"overseas/packs/eu.yaml", "overseas/packs/sg.yaml", "domestic/packs/cn-outbound.yaml"} <= packs
    assert names - packs == {
        *(f"{side}/{name}.yaml" for side in SIDES for name in ("fleet", "prices", "settings", "side")),
        "overseas/tenants/acme-sg.yaml",
        "overseas/tenants/rhein-gmbh.yaml",
    }


@pytest.mark.parametrize("path", PACKS, ids=lambda path: path.name)
def test_packs_load_with_their_vectors(path: Path) -> None:
    pack = read_as(read_document(path), PackDocument, pack_of)
    assert pack.rules
    assert all(rule.needs for rule in pack.rules if rule.effect.value in ("forbid", "require"))


def test_an_id_names_one_pack_and_one_rule() -> None:
    packs = [read_as(read_document(path), PackDocument, pack_of) for path in PACKS]
    assert max(Counter(pack.id for pack in packs).values()) == 1
    rules = Counter(rule.id for pack in packs for rule in pack.rules)
    assert {rule for rule, count in rules.items() if count > 1} == set()


def test_every_place_of_the_fleet_has_a_pack_for_each_country_in_reach() -> None:
    packs = [read_as(read_document(path), PackDocument, pack_of) for path in PACKS]
    spoken = frozenset[str]().union(*(pack.jurisdictions for pack in packs))
    for side in SIDES:
        found = fleet(side)
        for member in (*found.edges, *found.pools, *found.sinks):
            assert member.place.reach() <= spoken


def test_every_pool_has_a_cost_and_every_model_a_price_in_one_currency() -> None:
    prices = both_prices()
    settings = [read_as(read_document(EXAMPLE / s / "settings.yaml"), SettingsDocument, settings_of) for s in SIDES]
    for side in SIDES:
        for pool in fleet(side).pools:
            for served in pool.models:
                cost = prices.cost(pool.id, served.id)
                assert cost is not None
                assert {cost.tokens.currency} == {one.currency for one in settings}
                assert prices.price("standard", served.id) is not None


def test_tenants_name_edges_models_and_price_books_that_exist() -> None:
    overseas = fleet("overseas")
    models = {*overseas.models(), *fleet("domestic").models()}
    books = {book.id for book in both_prices().books}
    for path in (EXAMPLE / "overseas" / "tenants").glob("*.yaml"):
        for tenant in read_as(read_document(path), TenantsDocument, tenants_of):
            assert tenant.edges <= {edge.id for edge in overseas.edges}
            assert tenant.models <= models
            assert tenant.price_book in books


def test_forty_milliseconds_do_not_overturn_the_price_of_guizhou() -> None:
    prices = both_prices()
    settings = read_as(read_document(EXAMPLE / "overseas" / "settings.yaml"), SettingsDocument, settings_of)
    smallest = (8, 0, 1)
    spent = {}
    for name in ("cn-guizhou", "cn-shanghai", "eu-frankfurt"):
        cost = prices.cost(PoolId(name), fleet("domestic").models()[0])
        assert cost is not None
        spent[name] = rate(cost.tokens, *smallest).amount_pico
    waiting = {
        name: rtt_ms * settings.value_of_time_pico_per_ms
        for name, rtt_ms in (("cn-guizhou", 220), ("cn-shanghai", 180), ("eu-frankfurt", 2))
    }
    total = {name: spent[name] + waiting[name] for name in spent}
    assert sorted(total, key=lambda name: total[name]) == ["cn-guizhou", "cn-shanghai", "eu-frankfurt"]
    assert total["cn-guizhou"] * settings.epsilon_ppm // 1_000_000 < total["cn-shanghai"] - total["cn-guizhou"]
