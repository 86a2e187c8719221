"""The pool's side asks the law again: what each kind of mistake, lie or change of law comes to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.bundles.revocations import Revoked
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.placement.decide import Ground, decide
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.policy.bundle import Law
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EdgeId, EntityId, ModelId, PathwayId, TenantId
from orchestrator.policy.labels import Domestic, Effective, Grade, Labels, Personal
from orchestrator.policy.packs import Obligation, ObligationKind
from orchestrator.policy.pathways import Pathway, PathwayKind, Role
from orchestrator.policy.permit import permit_route
from orchestrator.policy.places import Place
from orchestrator.policy.table import RouteTable, Tables
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import Verdict
from scheduler.intake.second_permit import SKEW_MAX_MS, second_permit
from tests.bundles.sides import MODEL, NOW_MS
from tests.intake.bench import CN, PERSONAL, SG, Bench, bench, pathway, told
from tests.intake.small_house import (
    EDGE,
    EDGE_KEY,
    EDGE_KEY_ID,
    EDGE_OPERATOR,
    MILD,
    OVERSEAS,
    POOL,
    TENANT,
    House,
    citation,
    forbid,
    grant,
    oblige,
    opened,
    require,
)
from tests.values import replace


def test_what_both_laws_allow_may_run_and_leaves_its_duties() -> None:
    check = bench(House(cn_rules=[grant("CN"), oblige("CN", "P1Y6M")])).judge()
    assert check.problem is None
    assert check.alarm is None
    assert check.verdict is not None
    assert check.verdict.rules == ("CN-GRANT", "SG-GRANT")
    assert [done.obligation for done in check.discharged] == [Obligation(ObligationKind.RETAIN, "P1Y6M")]


@pytest.mark.parametrize("skew_ms", [-SKEW_MAX_MS, SKEW_MAX_MS])
def test_a_clock_within_the_bound_is_believed(skew_ms: int) -> None:
    made = bench()
    made.now_ms += skew_ms
    assert made.judge().problem is None


def nothing_cited(made: Bench) -> None:
    made.cited = None


def nothing_held(made: Bench) -> None:
    made.newest = None


def late(made: Bench) -> None:
    made.now_ms += SKEW_MAX_MS + 1


def early(made: Bench) -> None:
    made.now_ms -= SKEW_MAX_MS + 1


def other_permit(made: Bench) -> None:
    made.cite(lambda cites: replace(cites, permit_version=cites.permit_version + 1))


def unknown_edge(made: Bench) -> None:
    made.edge = EdgeId("edge-of-nobody")


def unknown_pool(made: Bench) -> None:
    made.house.pools = False
    made.cited = made.house.bundle(OVERSEAS)


def forged_label(made: Bench) -> None:
    milder = replace(made.open.facts, label=replace(MILD, grade=Grade.PUBLIC))
    made.open = replace(made.open, facts=milder)


def forged_time(made: Bench) -> None:
    made.open = replace(made.open, citation=replace(made.open.citation, now_ms=NOW_MS + 1))


def forged_attempt(made: Bench) -> None:
    made.open = replace(made.open, attempt=made.open.attempt[:-1] + "f")  # type: ignore[arg-type]


def no_signature(made: Bench) -> None:
    made.open = replace(made.open, signature=b"")


def wrong_key(made: Bench) -> None:
    made.open = opened(made.open.facts, made.open.citation, SigningKey.generate(), EDGE_KEY_ID)


def unknown_key(made: Bench) -> None:
    made.open = opened(made.open.facts, made.open.citation, SigningKey.generate())


def refused_by_cited_law(made: Bench) -> None:
    made.open = opened(replace(made.open.facts, label=replace(MILD, grade=Grade.CORE)), made.open.citation)


def unknown_label(made: Bench) -> None:
    made.open = opened(replace(made.open.facts, label=Effective()), made.open.citation)


def newer_law(made: Bench) -> None:
    made.house.cn_rules.append(forbid("CN"))
    made.renew()


def newer_law_of_the_other_side(made: Bench) -> None:
    made.house.sg_rules.append(forbid("SG"))
    made.renew()


def newer_fleet_without_the_edge(made: Bench) -> None:
    made.house.edges = False
    made.renew()


def newer_fleet_without_the_pool(made: Bench) -> None:
    made.house.pools = False
    made.renew()


def newer_fleet_without_the_key(made: Bench) -> None:
    made.house.edge_keys = (SigningKey.generate(),)
    made.renew()


def revoked_pool(made: Bench) -> None:
    made.renew(Revoked(pools=frozenset({POOL})))


def revoked_edge(made: Bench) -> None:
    made.renew(Revoked(edges=frozenset({EDGE})))


def revoked_key(made: Bench) -> None:
    made.renew(Revoked(keys=frozenset({EDGE_KEY_ID})))


def in_one(made: Bench, revoked: Revoked) -> None:
    """What the attempt cites is the newest that there is, and has heard of the revocation."""
    made.cited = made.newest = replace(made.cited, revoked=revoked)


def pool_revoked_in_one(made: Bench) -> None:
    in_one(made, Revoked(pools=frozenset({POOL})))


def edge_revoked_in_one(made: Bench) -> None:
    in_one(made, Revoked(edges=frozenset({EDGE})))


def key_revoked_in_one(made: Bench) -> None:
    in_one(made, Revoked(keys=frozenset({EDGE_KEY_ID})))


def expired_law(made: Bench) -> None:
    made.now_ms += 8 * 24 * 3_600_000
    made.cite(lambda cites: replace(cites, now_ms=made.now_ms))
    cited = made.house.bundle(OVERSEAS)
    at_issue = type(cited.law.horizons).from_issue(made.now_ms)
    made.cited = replace(cited, law=type(cited.law)(cited.law.packs, at_issue))


@pytest.mark.parametrize(
    ("code", "alarm", "change"),
    [
        ("policy_stale", False, nothing_cited),
        ("no_bundle", False, nothing_held),
        ("policy_stale", False, late),
        ("policy_stale", False, early),
        ("policy_stale", False, other_permit),
        ("policy_mismatch", True, unknown_edge),
        ("policy_mismatch", True, unknown_pool),
        ("policy_mismatch", True, forged_label),
        ("policy_mismatch", True, forged_time),
        ("policy_mismatch", True, forged_attempt),
        ("policy_mismatch", True, no_signature),
        ("policy_mismatch", True, wrong_key),
        ("policy_mismatch", True, unknown_key),
        ("policy_mismatch", True, refused_by_cited_law),
        ("policy_mismatch", True, unknown_label),
        ("policy_newer", False, newer_law),
        ("policy_newer", False, newer_law_of_the_other_side),
        ("policy_newer", False, newer_fleet_without_the_edge),
        ("policy_newer", False, newer_fleet_without_the_pool),
        ("policy_newer", False, newer_fleet_without_the_key),
        ("policy_newer", False, revoked_pool),
        ("policy_newer", False, revoked_edge),
        ("policy_newer", False, revoked_key),
        ("policy_newer", False, pool_revoked_in_one),
        ("policy_newer", False, edge_revoked_in_one),
        ("policy_newer", False, key_revoked_in_one),
        ("policy_newer", False, expired_law),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_each_refusal_has_its_code(code: str, alarm: bool, change: Callable[[Bench], None]) -> None:
    made = bench()
    assert made.judge().problem is None
    change(made)
    check = made.judge()
    assert check.problem is not None
    assert check.problem.code == code
    assert (check.alarm is not None) == alarm
    if check.alarm is not None:
        assert made.open.attempt in check.alarm
    assert check.discharged == ()


def test_both_keys_of_a_rotation_count() -> None:
    newer = SigningKey.generate()
    made = bench(House(edge_keys=(EDGE_KEY, newer)))
    for key in (EDGE_KEY, newer):
        made.open = opened(made.open.facts, made.open.citation, key)
        assert made.judge().problem is None
    assert made.open.key_id == key_id_of(newer.public_key)


def test_a_refusal_by_newer_law_names_its_rules() -> None:
    made = bench()
    newer_law(made)
    check = made.judge()
    assert check.problem is not None
    assert check.problem.rules == ("CN-FORBID",)
    assert check.verdict is not None
    assert not check.verdict.allowed


@pytest.mark.parametrize("hear", [Bench.renew, in_one], ids=["newer than cited", "in what is cited"])
def test_a_pathway_that_was_revoked_since_opens_nothing(hear: Callable[[Bench, Revoked], None]) -> None:
    house = House(cn_rules=[grant("CN"), require("CN", "cn_scc", ["infer"])])
    made = bench(house, told(PERSONAL, pathway("scc-1")))
    assert made.judge().problem is None
    hear(made, Revoked(pathways=frozenset({PathwayId("scc-1")})))
    check = made.judge()
    assert check.problem is not None
    assert (check.problem.code, check.problem.rules) == ("policy_newer", ("CN-REQUIRE",))


def test_newest_law_is_asked_at_our_own_time() -> None:
    house = House(cn_rules=[grant("CN"), require("CN", "cn_scc", ["infer"])])
    made = bench(house, told(PERSONAL, pathway("scc-1")))
    made.now_ms += 9_999
    assert made.judge().problem is None
    made.now_ms += 1  # the pathway ends here; by the time that the edge cites it still holds
    check = made.judge()
    assert check.problem is not None
    assert check.problem.code == "policy_newer"


def test_a_verdict_of_the_cited_law_stands_for_the_newest_where_they_are_one_and_as_long_as_it_says() -> None:
    made = bench(House(cn_rules=[grant("CN"), require("CN", "cn_scc", ["infer"])]), told(PERSONAL, pathway("scc-1")))
    made.newest = made.cited
    asked: list[int] = []

    def ask(law: Law, facts: Facts, edge: Place, pool: Place, now_ms: int) -> Verdict:
        asked.append(now_ms)
        return permit_route(law, facts, edge, pool, now_ms)

    made.now_ms += 9_999
    assert made.judge(ask).problem is None
    assert asked == [NOW_MS]
    made.now_ms += 1  # the pathway ends here
    check = made.judge(ask)
    assert check.problem is not None
    assert check.problem.code == "policy_newer"
    made.now_ms = NOW_MS - 1  # what is cited lies ahead of our time
    made.judge(ask)
    assert asked == [NOW_MS, NOW_MS, NOW_MS + 10_000, NOW_MS, NOW_MS - 1]


FORGED: dict[str, dict[str, object]] = {
    "tenant": {"tenant": replace(TENANT, country=CN)},
    "role": {"role": Role.PROCESSOR},
    "no role": {"role": None},
    "critical infrastructure": {"critical_infrastructure": Declared.NO},
    "a counter": {"counters": (Counter(CounterKind.CN_PERSONS, 0, NOW_MS, NOW_MS + 1),)},
    "a notice": {"notices": (("eu-13-cn", "1"),)},
    "a pathway": {"pathways": (pathway("forged"),)},
    "processed in": {"processed_in": frozenset({SG})},
    "purpose": {"label": replace(MILD, purpose=frozenset({"inference", "billing"}))},
    "categories": {"label": replace(MILD, categories=frozenset[str]())},
    "located": {"label": replace(MILD, located=frozenset({SG}))},
}


@pytest.mark.parametrize("change", FORGED.values(), ids=FORGED.keys())
def test_no_fact_can_be_changed_on_the_way(change: dict[str, object]) -> None:
    made = bench()
    made.open = replace(made.open, facts=replace(made.open.facts, **change))  # type: ignore[arg-type]
    check = made.judge()
    assert check.problem is not None
    assert check.problem.code == "policy_mismatch"
    assert "not signed" in (check.alarm or "")


LAWS = {
    "free": House(),
    "to infer": House(cn_rules=[grant("CN"), require("CN", "cn_scc", ["infer"])]),
    "to return": House(cn_rules=[grant("CN"), require("CN", "cn_scc", ["return"])]),
    "both ways": House(
        sg_rules=[grant("SG"), require("SG", "sg_contract", ["return"])],
        cn_rules=[grant("CN"), require("CN", "cn_scc", ["infer", "return"])],
    ),
}
CITED = {name: house.bundle(OVERSEAS) for name, house in LAWS.items()}
TABLES = Tables()
THERE = pathway("there")
BACK = pathway("back", EDGE_OPERATOR, PathwayKind.SG_CONTRACT)
AGAIN = pathway("again", EDGE_OPERATOR)
NOISE = (
    pathway("elsewhere", EntityId("nobody")),
    replace(pathway("there-only-sg"), countries=frozenset({SG})),
    replace(pathway("expired", EDGE_OPERATOR), valid_until_ms=NOW_MS),
    replace(THERE, id=PathwayId("there-too"), personal_max=Personal.SENSITIVE),
)
HELD = (THERE, BACK, AGAIN, *NOISE)
# Most labels could pass, so that most examples come as far as a choice.
LABELS = st.builds(
    Labels,
    st.sampled_from([Personal.PERSONAL, Personal.NONE, Personal.SENSITIVE, None]),
    st.sampled_from([Grade.GENERAL, Grade.PUBLIC, Grade.IMPORTANT]),
    st.none() | st.sampled_from(Domestic),
    st.frozensets(st.sampled_from([SG, CN]), max_size=2),
)


@settings(max_examples=400)
@given(
    st.sampled_from(sorted(LAWS)),
    LABELS,
    LABELS,
    st.just(HELD) | st.frozensets(st.sampled_from(HELD)).map(tuple),
    st.frozensets(st.sampled_from([held.id for held in HELD]), max_size=1),
)
def test_what_the_edge_decided_the_pools_side_decides_from_what_it_is_told(
    law: str, declared: Labels, attested: Labels, held: tuple[Pathway, ...], revoked: frozenset[PathwayId]
) -> None:
    """The edge resolves a tenant into facts and sends part of them: that part must lead to the same verdict."""
    bundle = CITED[law]
    assert bundle.settings is not None
    edge = bundle.fleet.edge(EDGE)
    assert edge is not None
    tenant = Tenant(
        TenantId("acme"), TENANT, (), attested, Labels(), frozenset(), frozenset(), "standard", held, Role.CONTROLLER
    )
    table = RouteTable(bundle.law, edge.place, [pool.place for pool in bundle.fleet.pools], NOW_MS)
    plan = Plan(EDGE, bundle.fleet, bundle.prices, bundle.settings.currency)
    ground = Ground(table, bundle.fleet, plan, bundle.settings, frozenset(), revoked, DISCHARGERS.keys())
    request = PlacementRequest(ModelId(MODEL), frozenset(), 10, 10, 100)
    views = {POOL: PoolView(POOL, True, 200_000, PoolLoad(1, 4, 0, 0, 8, 10), 0)}
    decision = decide(ground, edge, tenant, declared, request, views, NOW_MS, 0)
    if decision.placement.chosen is None:
        return
    newest = replace(bundle, revoked=Revoked(pathways=revoked))
    travels = decision.travelling(edge)
    check = second_permit(opened(travels, citation(bundle)), EDGE, bundle, newest, NOW_MS)
    assert check.problem is None, check.alarm


@settings(max_examples=300)
@given(
    st.sampled_from(sorted(LAWS)),
    st.frozensets(st.sampled_from(HELD)).map(tuple),
    st.builds(
        Revoked,
        pathways=st.frozensets(st.sampled_from([held.id for held in HELD]), max_size=2),
        pools=st.sampled_from([frozenset(), frozenset(), frozenset({POOL})]),
        edges=st.sampled_from([frozenset(), frozenset(), frozenset({EDGE})]),
        keys=st.sampled_from([frozenset(), frozenset(), frozenset({EDGE_KEY_ID})]),
    ),
    st.sampled_from([-1, 0, 1, 9_999, 10_000, SKEW_MAX_MS, SKEW_MAX_MS + 1]),
)
def test_one_answer_for_both_is_what_two_would_have_been(
    law: str, held: tuple[Pathway, ...], revoked: Revoked, skew_ms: int
) -> None:
    cited = replace(CITED[law], revoked=revoked)
    attempt, now_ms = opened(told(PERSONAL, *held), citation(cited)), NOW_MS + skew_ms
    once = second_permit(attempt, EDGE, cited, cited, now_ms, TABLES.permit_route)
    assert once == second_permit(attempt, EDGE, cited, replace(cited), now_ms)


def test_each_pathway_that_the_law_asks_for_must_travel() -> None:
    bundle = CITED["both ways"]
    facts = told(PERSONAL, THERE, BACK, AGAIN)
    assert second_permit(opened(facts, citation(bundle)), EDGE, bundle, bundle, NOW_MS).problem is None
    for missing in facts.pathways:
        fewer = replace(facts, pathways=tuple(held for held in facts.pathways if held is not missing))
        check = second_permit(opened(fewer, citation(bundle)), EDGE, bundle, bundle, NOW_MS)
        assert check.alarm is not None
