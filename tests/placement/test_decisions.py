"""A decision asks the law first, lets the house refuse what the law allows, and can be made again from its record."""

from __future__ import annotations

import json
from collections.abc import Collection

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.canonical import written
from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.placement.asked import Asked, AskedWritten, asked_from_json
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.decide import SKEW_REGULATED_MS, Decision, FactBook, Ground, decide, judge, place_permitted
from orchestrator.placement.fleet import Edge
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, ModelId, PathwayId, PoolId, TenantId
from orchestrator.policy.labels import Domestic, Grade, Labels, Personal
from orchestrator.policy.packs import ObligationKind
from orchestrator.policy.pathways import Role
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import CLOCK_SKEW, NO_DISCHARGER, REVOKED
from tests.bundles.sides import MODEL, NOW_MS
from tests.intake.bench import PERSONAL, SG, pathway, told
from tests.intake.small_house import EDGE, OVERSEAS, POOL, TENANT, House, grant, oblige, require
from tests.values import replace

HOUSE = House(cn_rules=[grant("CN"), require("CN", "cn_scc", ["infer"]), oblige("CN", "P6M")])
BUNDLE = HOUSE.bundle(OVERSEAS)
REQUEST = PlacementRequest(ModelId(MODEL), frozenset({Capability.CHAT}), 10, 10, 100)
VIEWS = {POOL: PoolView(POOL, True, 200_000, PoolLoad(1, 4, 0, 0, 8, 10), 0)}
ATTESTED = Labels(Personal.NONE, Grade.GENERAL, Domestic.NO, frozenset({SG}))
ACME = Tenant(
    TenantId("acme"), TENANT, (), ATTESTED, Labels(), frozenset(), frozenset(), "standard", role=Role.CONTROLLER
)


def edge() -> Edge:
    found = BUNDLE.fleet.edge(EDGE)
    assert found is not None
    return found


def ground(
    revoked_pools: Collection[PoolId] = (),
    revoked_pathways: Collection[PathwayId] = (),
    dischargers: Collection[ObligationKind] = DISCHARGERS,
    skew_ms: int = 0,
) -> Ground:
    assert BUNDLE.settings is not None
    table = RouteTable(BUNDLE.law, edge().place, [pool.place for pool in BUNDLE.fleet.pools], NOW_MS)
    return Ground(
        table,
        BUNDLE.fleet,
        Plan(EDGE, BUNDLE.fleet, BUNDLE.prices, BUNDLE.settings.currency),
        BUNDLE.settings,
        frozenset(revoked_pools),
        frozenset(revoked_pathways),
        frozenset(dischargers),
        skew_ms,
    )


def decided(tenant: Tenant = ACME, declared: Labels | None = None) -> Decision:
    return decide(ground(), edge(), tenant, declared or Labels(), REQUEST, VIEWS, NOW_MS, 7)


def rules(stands_on: Ground, facts: Facts) -> tuple[str, ...]:
    """The rules that refuse the pool; none when it is allowed."""
    verdict = judge(stands_on, facts, NOW_MS)[POOL]
    return () if verdict.allowed else verdict.rules


SCC = pathway("scc-1")


def test_the_house_refuses_what_the_law_allows() -> None:
    mild, personal = told(), told(PERSONAL, SCC)
    assert rules(ground(), mild) == rules(ground(), personal) == ()
    assert rules(ground(revoked_pools=[POOL]), mild) == (REVOKED,)
    assert rules(ground(dischargers=()), mild) == (NO_DISCHARGER,)
    assert rules(ground(revoked_pathways=[SCC.id]), personal) == ("CN-REQUIRE",)
    assert rules(ground(revoked_pathways=[SCC.id]), mild) == ()


@pytest.mark.parametrize("sign", [1, -1])
def test_a_skewed_clock_refuses_what_is_regulated_alone(sign: int) -> None:
    personal = told(PERSONAL, SCC)
    assert rules(ground(skew_ms=sign * SKEW_REGULATED_MS), personal) == ()
    beyond = ground(skew_ms=sign * (SKEW_REGULATED_MS + 1))
    assert rules(beyond, personal) == (CLOCK_SKEW,)
    assert rules(beyond, told()) == ()


def test_what_the_law_refuses_is_not_excused_by_the_house() -> None:
    everything = ground(dischargers=(), skew_ms=0)
    assert rules(everything, told(PERSONAL)) == ("CN-REQUIRE",)


def test_what_the_law_said_is_asked_again_when_it_may_say_otherwise() -> None:
    stands_on, personal = ground(), told(PERSONAL, SCC)
    until_ms = SCC.valid_until_ms

    def allowed(now_ms: int, here: Ground = stands_on) -> bool:
        return judge(here, personal, now_ms)[POOL].allowed

    assert judge(stands_on, personal, NOW_MS) is judge(stands_on, personal, until_ms - 1), "made once"
    assert not allowed(until_ms)
    assert allowed(until_ms - 1), "a clock may go back"
    assert not allowed(NOW_MS - 1), "before the time of the table"
    assert not allowed(stands_on.table.valid_until_ms)
    assert allowed(NOW_MS)
    silent = House(cn_rules=[oblige("CN", "P6M")]).bundle(OVERSEAS).law
    other = replace(stands_on, table=RouteTable(silent, edge().place, stands_on.table.pools, NOW_MS))
    assert other.book is stands_on.book
    assert not allowed(NOW_MS, other), "another law that shares what is remembered"
    assert allowed(NOW_MS)


def test_what_is_told_of_equal_declarations_is_one_value() -> None:
    book, words = ground().book, {"personal": Personal.PERSONAL, "grade": Grade.GENERAL}
    one, other = Labels(**words), Labels(**words)
    told_of = book.look_up(ACME, one, edge())
    assert book.look_up(ACME, one, edge()) is told_of
    assert book.look_up(ACME, other, edge()) is told_of
    assert book.look_up(replace(ACME), one, edge()) is not told_of, "of another contract"
    assert book.look_up(ACME, Labels(), edge()).facts != told_of.facts


def test_a_declaration_that_is_gone_leaves_what_was_told_of_it_to_no_other() -> None:
    def declared(book: FactBook, rank: Personal) -> Facts:
        return book.look_up(ACME, Labels(rank), edge()).facts

    def attested(book: FactBook, rank: Personal) -> Facts:
        return book.look_up(replace(ACME, attested=replace(ATTESTED, personal=rank)), Labels(), edge()).facts

    for told_of in (declared, attested):
        book, expected = ground().book, {rank: told_of(FactBook(), rank) for rank in Personal}
        assert len(set(expected.values())) > 2
        for _ in range(100):
            # Each declaration, and each tenant, is gone before the next one is made, which often has its identity.
            for rank in Personal:
                assert told_of(book, rank) == expected[rank]


def test_of_two_edges_each_is_told_of_by_itself() -> None:
    book, here, declared = ground().book, edge(), Labels()
    there = replace(here, id=EdgeId("other"), place=BUNDLE.fleet.pools[0].place)
    assert book.look_up(ACME, declared, here).facts == FactBook().look_up(ACME, declared, here).facts
    assert book.look_up(ACME, declared, there).facts == FactBook().look_up(ACME, declared, there).facts


def test_only_papers_with_the_chosen_operator_travel() -> None:
    other = pathway("elsewhere", EntityId("nobody"))
    back = pathway("back", edge().place.operator.id)
    tenant = replace(ACME, pathways=(other, SCC, back))
    decision = decided(tenant, Labels(personal=Personal.PERSONAL))
    assert decision.regulated
    assert decision.facts.pathways == (other, SCC, back)
    assert decision.travelling(edge()).pathways == (SCC, back)
    refused = decided(replace(ACME, pathways=(other,)), Labels(personal=Personal.PERSONAL))
    assert refused.placement.chosen is None
    assert refused.travelling(edge()).pathways == ()


def test_the_facts_are_everything_that_the_contract_says() -> None:
    tenant = replace(ACME, pathways=(SCC,), notices=(("cn-notice", "1"),))
    facts = decided(tenant).facts
    assert (facts.tenant, facts.role, facts.pathways, facts.notices) == (
        tenant.entity,
        tenant.role,
        tenant.pathways,
        tenant.notices,
    )
    assert facts.critical_infrastructure is tenant.critical_infrastructure
    assert (facts.label.purpose, facts.label.asset) == ({"inference"}, {"payload"}), "by the endpoint"


names = st.text("abc-", min_size=1, max_size=6)
whole = st.integers(0, 1 << 40)
loads = st.builds(PoolLoad, whole, whole, whole, whole, whole, whole)
views = st.builds(PoolView, names, st.booleans(), st.none() | whole, st.none() | loads, whole)
askeds = st.builds(
    Asked,
    st.builds(
        PlacementRequest, names, st.frozensets(st.sampled_from(Capability)), whole, whole, whole, st.frozensets(names)
    ),
    st.lists(views, max_size=3).map(lambda found: {view.pool: view for view in found}),
    st.integers(0, (1 << 64) - 1),
    st.frozensets(names),
    st.frozensets(names),
    st.integers(-(1 << 40), 1 << 40),
)


@given(askeds)
def test_what_was_asked_is_read_again_as_it_was(asked: Asked) -> None:
    assert asked_from_json(json.loads(written(asked.to_json()))) == asked


@pytest.mark.parametrize("missing", AskedWritten.__struct_fields__)
def test_a_record_with_a_part_missing_is_not_read(missing: str) -> None:
    value = json.loads(written(Asked(REQUEST, VIEWS, 1, frozenset(), frozenset(), 0).to_json()))
    del value[missing]
    with pytest.raises(KeyError):
        asked_from_json(value)


@given(st.booleans(), st.integers(0, (1 << 64) - 1), st.sampled_from([0, SKEW_REGULATED_MS + 1]))
def test_a_decision_is_made_again_from_what_was_asked(revoked: bool, chance: int, skew_ms: int) -> None:
    facts = told(PERSONAL, SCC)
    asked = Asked(REQUEST, VIEWS, chance, frozenset(), frozenset({SCC.id} if revoked else ()), skew_ms)
    then = place_permitted(asked.ground(ground()), facts, REQUEST, VIEWS, NOW_MS, chance)
    read = asked_from_json(json.loads(written(asked.to_json())))
    again = place_permitted(read.ground(ground()), facts, read.request, read.views, NOW_MS, read.chance)
    assert again == then
    assert (then.chosen is None) is (revoked or skew_ms > 0)
