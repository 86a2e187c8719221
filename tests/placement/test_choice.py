"""Placement: the law first, then what is possible, then the least cost, with a reason for every pool left out."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.canonical import canonical_bytes, written
from orchestrator.evidence.remembered import REMEMBERED_MAX
from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import PriceBook, TokenPrice
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.cost import Spot, Terms, cost
from orchestrator.placement.explain import (
    candidate_to_json,
    dropped_parts,
    placement_to_json,
    terms_to_json,
    written_terms,
)
from orchestrator.placement.fleet import Assurance, Fleet, Pool, PoolCost, Prices, ServedModel
from orchestrator.placement.pick import Candidate, Drop, Placement, place
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import EdgeId, EntityId, ModelId, PlaceId, PoolId, RuleId, SchedulerId, SideId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.places import Place
from orchestrator.policy.verdicts import Verdict
from tests.values import replace

CN = Jurisdiction("CN")
USD = Currency("USD")
MODEL = ModelId("demo")
EDGE = EdgeId("edge")
ALLOW = Verdict(True, (RuleId("OK-1"),), (), (), 1 << 50)
DENY = Verdict(False, (RuleId("NO-1"),), (), (), 0)
SETTINGS = PlacementSettings(USD, 10_000, 20_000, 10_000, 250_000, 20_000, 400, 128)
REQUEST = PlacementRequest(MODEL, frozenset({Capability.CHAT}), 40, 128, 400)
GUIZHOU, SHANGHAI = PoolId("cn-guizhou"), PoolId("cn-shanghai")


def pool(name: str, **changes: Any) -> Pool:
    soil = frozenset({CN})
    operator = Entity(EntityId("operator"), CN)
    made = Pool(
        id=PoolId(name),
        side=SideId("domestic"),
        region="region",
        accelerator="gpu",
        place=Place(PlaceId(name), soil, soil, (operator,), operator),
        assurance=Assurance.TWO_PARTY,
        models=(ServedModel(MODEL, 2_048, frozenset({Capability.CHAT, Capability.STREAM}), 3_500, 65_000),),
        slots=4,
        scheduler=SchedulerId(name),
        intake="127.0.0.1:1",
    )
    return replace(made, **changes)


def price(name: str, output_pico: int, currency: str = "USD") -> PoolCost:
    return PoolCost(PoolId(name), MODEL, TokenPrice(Currency(currency), 200_000, 50_000, output_pico), 80)


def view(name: str, rtt_us: int | None = 200_000, **changes: Any) -> PoolView:
    return replace(PoolView(PoolId(name), True, rtt_us, PoolLoad(1, 4, 0, 0, 64, 5), 0), **changes)


FLEET = Fleet(pools=(pool("cn-guizhou"), pool("cn-shanghai")))
PRICES = Prices((price("cn-guizhou", 400_000), price("cn-shanghai", 800_000)))
VIEWS = {GUIZHOU: view("cn-guizhou", 220_000), SHANGHAI: view("cn-shanghai", 180_000)}
BOTH = {GUIZHOU: ALLOW, SHANGHAI: ALLOW}


def choose(**changes: Any) -> Placement:
    given_: dict[str, Any] = {
        "request": REQUEST,
        "fleet": FLEET,
        "verdicts": BOTH,
        "views": VIEWS,
        "prices": PRICES,
        "settings": SETTINGS,
        "now_ms": 0,
        "chance": 0,
        **changes,
    }
    plan = Plan(EDGE, given_.pop("fleet"), given_.pop("prices"), USD)
    return place(plan=plan, **given_)


def costed(view_: PoolView, request: PlacementRequest = REQUEST, settings: PlacementSettings = SETTINGS) -> Terms:
    served = FLEET.pools[0].models[0]
    spot = Spot(PRICES.costs[0].tokens, 80, None, 4, served.speed(4))
    return cost(request, spot, view_, settings.worth(None))


def chosen(placement: Placement) -> str | None:
    return None if placement.chosen is None else placement.chosen.pool.id


def test_the_cheaper_pool_wins_though_it_is_farther() -> None:
    assert chosen(choose()) == GUIZHOU


def test_time_is_money_and_a_long_way_can_cost_more_than_tokens() -> None:
    dear = replace(SETTINGS, value_of_time_pico_per_ms=10_000_000, epsilon_ppm=0)
    assert chosen(choose(settings=dear)) == SHANGHAI


@given(
    st.dictionaries(st.sampled_from([GUIZHOU, SHANGHAI]), st.sampled_from([ALLOW, DENY]), min_size=2),
    st.integers(0, 2**64 - 1),
    st.integers(0, 10**6),
)
def test_a_pool_that_the_law_refuses_is_never_chosen(
    verdicts: dict[PoolId, Verdict], chance: int, epsilon_ppm: int
) -> None:
    placement = choose(verdicts=verdicts, chance=chance, settings=replace(SETTINGS, epsilon_ppm=epsilon_ppm))
    if placement.chosen is not None:
        assert verdicts[placement.chosen.pool.id].allowed
    assert (placement.chosen is None) == all(not verdict.allowed for verdict in verdicts.values())


@pytest.mark.parametrize(
    ("drop", "changes"),
    [
        (Drop.NOT_PERMITTED, {"verdicts": {GUIZHOU: DENY, SHANGHAI: ALLOW}}),
        (Drop.MODEL, {"fleet": Fleet(pools=(pool("cn-guizhou", models=()), pool("cn-shanghai")))}),
        (Drop.DRAINED, {"settings": replace(SETTINGS, drains=frozenset({GUIZHOU}))}),
        (Drop.TRIED, {"request": replace(REQUEST, tried=frozenset({GUIZHOU}))}),
        (Drop.DOWN, {"views": {**VIEWS, GUIZHOU: view("cn-guizhou", up=False)}}),
        (Drop.DOWN, {"views": {SHANGHAI: VIEWS[SHANGHAI]}}),
        (Drop.DOWN, {"views": {**VIEWS, GUIZHOU: view("cn-guizhou", load=PoolLoad(0, 0, 0, 0, 64, 5))}}),
        (Drop.FULL, {"views": {**VIEWS, GUIZHOU: view("cn-guizhou", load=PoolLoad(1, 4, 4, 64, 64, 5))}}),
        (Drop.NO_PRICE, {"prices": Prices((price("cn-shanghai", 800_000),))}),
        (Drop.NO_PRICE, {"prices": Prices((price("cn-guizhou", 1, "EUR"), price("cn-shanghai", 800_000)))}),
        (
            Drop.NOT_REACHABLE,
            {
                "fleet": Fleet(
                    pools=(
                        pool("cn-guizhou", scheduler=None, engine="e", reachable_from=frozenset({EdgeId("other")})),
                        pool("cn-shanghai"),
                    )
                )
            },
        ),
    ],
)
def test_each_pool_left_out_has_its_reason(drop: Drop, changes: dict[str, Any]) -> None:
    placement = choose(**changes)
    reasons = {candidate.pool.id: candidate.drop for candidate in placement.candidates}
    assert reasons == {GUIZHOU: drop, SHANGHAI: None}
    assert chosen(placement) == SHANGHAI
    assert placement.counts() == {drop.value: 1}


def test_a_capability_that_a_pool_lacks_leaves_it_out() -> None:
    placement = choose(request=replace(REQUEST, capabilities=frozenset({Capability.CHAT, Capability.TOOLS})))
    assert chosen(placement) is None
    assert placement.counts() == {Drop.CAPABILITY.value: 2}


def test_the_law_is_named_before_any_other_reason() -> None:
    placement = choose(verdicts={GUIZHOU: DENY, SHANGHAI: DENY}, views={})
    assert placement.counts() == {Drop.NOT_PERMITTED.value: 2}


def test_an_unknown_round_trip_is_not_zero() -> None:
    known = costed(VIEWS[GUIZHOU])
    unknown = costed(replace(VIEWS[GUIZHOU], rtt_us=None))
    assert unknown.rtt_us == 400_000
    assert not unknown.rtt_measured
    assert unknown.total_pico > known.total_pico


@given(st.integers(0, 40), st.integers(0, 40))
def test_more_work_ahead_never_costs_less(fewer: int, more: int) -> None:
    fewer, more = sorted((fewer, more))
    totals = [costed(replace(VIEWS[GUIZHOU], unseen=n, unseen_tokens=n * 40)) for n in (fewer, more)]
    assert totals[0].total_pico <= totals[1].total_pico
    for terms in totals:
        money = terms.tokens_pico + terms.egress_pico + terms.carbon_pico + terms.time_pico + terms.late_pico
        assert terms.total_pico == money + terms.others_pico
        assert terms.first_us == terms.rtt_us + terms.upload_us + terms.queue_us + terms.prefill_us
        assert terms.time_us == terms.first_us + terms.decode_us


@given(st.integers(0, 2**64 - 1))
def test_among_equals_the_choice_follows_chance_and_the_freshest_report(chance: int) -> None:
    same = Prices((price("cn-guizhou", 400_000), price("cn-shanghai", 400_000)))
    equal = {GUIZHOU: view("cn-guizhou"), SHANGHAI: view("cn-shanghai", load=PoolLoad(1, 4, 0, 0, 64, 900))}
    first = choose(prices=same, views=equal, chance=chance)
    assert chosen(first) == chosen(choose(prices=same, views=equal, chance=chance))
    assert chosen(first) == GUIZHOU, "of two, the one that reported last"


def test_of_two_with_one_id_the_first_is_meant_and_of_none_nothing_is_known() -> None:
    dear, cheap = (TokenPrice(USD, amount, amount, amount) for amount in (2, 1))
    prices = Prices(books=(PriceBook("b", {MODEL: dear}), PriceBook("b", {MODEL: cheap, ModelId("x"): cheap})))
    assert prices.price("b", MODEL) is dear
    assert prices.price("b", ModelId("x")) is None
    assert prices.price("none", MODEL) is None
    first, second = pool("a", slots=1), pool("a", slots=2)
    fleet = replace(Fleet(), pools=(first, second))
    assert fleet.pool(first.id) is first
    assert fleet.pool(PoolId("none")) is None
    assert fleet.edge(EDGE) is None
    assert fleet == Fleet(pools=(first, second))


def test_the_account_of_a_pool_left_out_is_its_own_however_often_it_is_told() -> None:
    down, other = {**VIEWS, GUIZHOU: view("cn-guizhou", up=False)}, replace(ALLOW, rules=(RuleId("OK-2"),))
    for changes in (
        {"views": VIEWS},
        {"views": down},
        {"views": down, "verdicts": {**BOTH, GUIZHOU: other}},
        {"views": down, "verdicts": {**BOTH, GUIZHOU: DENY}},
        {"views": {}},
        {"views": {**down, SHANGHAI: view("cn-shanghai", held_off=True)}},
        {"views": down},
    ):
        placement = choose(**changes)
        told = json.loads(written(placement_to_json(placement)))
        assert told["candidates"] == [json.loads(written(candidate_to_json(one))) for one in placement.candidates]
        assert told["dropped"] == placement.counts()


def test_the_account_of_a_pool_that_is_gone_is_given_to_no_other() -> None:
    dropped = dropped_parts()
    for number in range(2 * REMEMBERED_MAX):
        # Each is gone before the next one is made, which then often has its identity.
        refusal = replace(DENY, rules=(RuleId(f"NO-{number % 5}"),))
        one = Candidate(pool(f"pool-{number % 3}"), refusal, Drop.NOT_PERMITTED, None)
        assert bytes(dropped(one)) == written(candidate_to_json(one))


def test_the_terms_of_a_record_are_all_that_there_are() -> None:
    (one, other) = (candidate.terms for candidate in choose().candidates)
    for terms in (one, other):
        assert terms is not None
        assert written({"terms": written_terms(terms)}) == canonical_bytes({"terms": terms_to_json(terms)})
        # Each of them another number, so that none stands in another's place.
        apart = replace(terms, **{name: 3**number for number, name in enumerate(Terms.__struct_fields__)})
        assert written({"terms": written_terms(apart)}) == canonical_bytes({"terms": terms_to_json(apart)})
