"""The decisions of the example, by edge and label: which pools, and which rules stand in the way of the others."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from orchestrator.placement.decide import gather
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EntityId, RuleId
from orchestrator.policy.labels import Domestic, Grade, Labels, LabelSources, Personal, at_inference
from orchestrator.policy.packs import Obligation, ObligationKind
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import permit_route
from orchestrator.policy.vocabulary import UNKNOWN
from tests.law.worlds import CN, DE, NOW_MS, SG, at, paper, shipped
from tests.values import replace

POOLS = ("cn-guizhou", "cn-shanghai", "eu-frankfurt")
ATTESTED = Labels()
GENERAL = Labels(Personal.NONE, Grade.GENERAL)
PERSONAL = Labels(personal=Personal.PERSONAL)
SENSITIVE = Labels(personal=Personal.SENSITIVE)
OVERSEAS = frozenset({"EU-46", "EU-RA", "EU-46-SUP", "SG-PDPA-26"})
"""The rules of the overseas side that are named here; others may refuse beside them."""


def told(tenant: str, edge: str, declared: Labels, *pathways: Pathway) -> Facts:
    """The facts as the gate makes them, of a tenant with these papers who gave every notice."""
    world = shipped()
    found = replace(world.tenants[tenant], pathways=pathways, notices=every_notice())
    soil = world.edges[edge].soil()
    return gather(found, LabelSources(at_inference(declared), found.attested, found.floor, soil=soil))


def every_notice() -> tuple[tuple[str, str], ...]:
    duties = {
        duty for one in shipped().law.packs for law_rule in one.pack.rules for duty in law_rule.obligations
    }
    return tuple(sorted((duty.argument, "1") for duty in duties if duty.kind is ObligationKind.NOTIFY))


def answers(edge: str, facts: Facts) -> dict[str, set[str]]:
    """By pool, the rules that refuse; none means allowed."""
    world = shipped()
    found: dict[str, set[str]] = {}
    for pool in POOLS:
        verdict = permit_route(world.law, facts, world.edges[edge], world.pools[pool], NOW_MS)
        found[pool] = set() if verdict.allowed else named(verdict.rules) or {"another"}
    return found


def named(rules: Iterable[RuleId]) -> set[str]:
    """The rules of the house, of China, and those of the overseas side that are named here."""
    return {rule for rule in rules if rule.startswith(("TG-", "CN-")) or rule in OVERSEAS}


def china(*rules: str) -> dict[str, set[str]]:
    return {"cn-guizhou": set(rules), "cn-shanghai": set(rules)}


FOUR = [
    # An everyday request from Singapore may go anywhere; Frankfurt is not reachable from there.
    ("acme-sg", "edge-singapore", ATTESTED, {**china(), "eu-frankfurt": set()}),
    # An everyday request from Germany may go anywhere.
    ("rhein-gmbh", "edge-frankfurt", ATTESTED, {**china(), "eu-frankfurt": set()}),
    # Personal data from Germany stays in Frankfurt.
    ("rhein-gmbh", "edge-frankfurt", PERSONAL, {**china("EU-46", "EU-RA"), "eu-frankfurt": set()}),
    # Personal data from Singapore has no pool at home: refused everywhere. The way back from Frankfurt would itself be
    # a transfer out of the EEA.
    ("acme-sg", "edge-singapore", PERSONAL, {**china("SG-PDPA-26"), "eu-frankfurt": {"EU-46", "SG-PDPA-26"}}),
]
MORE = [
    (
        "rhein-gmbh",
        "edge-frankfurt",
        SENSITIVE,
        {**china("EU-46", "EU-RA", "EU-46-SUP"), "eu-frankfurt": set()},
    ),
    # The law of the subject travels with it to another edge.
    (
        "rhein-gmbh",
        "edge-singapore",
        PERSONAL,
        {**china("EU-46", "EU-RA", "SG-PDPA-26"), "eu-frankfurt": {"EU-46", "SG-PDPA-26"}},
    ),
    ("rhein-gmbh", "edge-singapore", ATTESTED, {**china(), "eu-frankfurt": set()}),
    (
        "acme-sg",
        "edge-singapore",
        Labels(personal=Personal.UNKNOWN),
        {**china("TG-UNKNOWN-LABEL"), "eu-frankfurt": {"TG-UNKNOWN-LABEL"}},
    ),
    # End users in China are not served by a service that is offered overseas only; subjects from China may be.
    (
        "acme-sg",
        "edge-singapore",
        Labels(located=at(CN)),
        {**china("CN-GENAI-2", "CN-GENAI-LEAK"), "eu-frankfurt": {"CN-GENAI-2", "CN-GENAI-LEAK"}},
    ),
    (
        "acme-sg",
        "edge-singapore",
        Labels(located=frozenset({SG, UNKNOWN})),
        {**china("CN-GENAI-2", "CN-GENAI-LEAK"), "eu-frankfurt": set()},
    ),
    ("acme-sg", "edge-singapore", Labels(origin=at(CN)), {**china(), "eu-frankfurt": set()}),
    (
        "acme-sg",
        "edge-singapore",
        Labels(grade=Grade.CORE),
        {
            **china("CN-CBDF-07B", "CN-DSL-CORE", "TG-NO-GRANT"),
            "eu-frankfurt": {"TG-NO-GRANT"},
        },
    ),
    (
        "acme-sg",
        "edge-singapore",
        Labels(origin=at(DE), personal=Personal.PERSONAL),
        {**china("EU-46", "EU-RA", "SG-PDPA-26"), "eu-frankfurt": {"EU-46", "SG-PDPA-26"}},
    ),
]


@pytest.mark.parametrize(("tenant", "edge", "declared", "expected"), [*FOUR, *MORE])
def test_the_decisions_of_the_example(tenant: str, edge: str, declared: Labels, expected: dict[str, set[str]]) -> None:
    assert answers(edge, told(tenant, edge, declared)) == expected


def test_an_allowed_route_names_a_grant_of_every_law_and_its_duties() -> None:
    world = shipped()
    facts = told("acme-sg", "edge-singapore", GENERAL)
    verdict = permit_route(world.law, facts, world.edges["edge-singapore"], world.pools["cn-guizhou"], NOW_MS)
    china_grants = {rule for rule in verdict.rules if rule.startswith("CN-")}
    assert china_grants == {"CN-CBDF-03", "CN-CBDF-04", "CN-CBDF-05D", "CN-CBDF-07B-BASIS", "CN-HOME"}
    assert {answer.jurisdiction for answer in verdict.answers} == {CN, SG}
    assert all(answer.grants for answer in verdict.answers)
    assert Obligation(ObligationKind.RETAIN, "P6M") in verdict.obligations


CONTRACT = paper(
    PathwayKind.SG_CONTRACT,
    EntityId("acme-singapore"),
    EntityId("tidegate-domestic"),
    at(CN),
    Personal.PERSONAL,
    NOW_MS - 1,
    NOW_MS + 1,
)


def test_a_contract_with_the_domestic_operator_opens_china_for_personal_data_of_singapore() -> None:
    opened = answers("edge-singapore", told("acme-sg", "edge-singapore", PERSONAL, CONTRACT))
    assert (opened["cn-guizhou"], opened["cn-shanghai"]) == (set(), set())
    assert "SG-PDPA-26" in opened["eu-frankfurt"]


def test_the_contract_of_singapore_opens_nothing_for_germans() -> None:
    both = Labels(personal=Personal.PERSONAL, origin=at(DE))
    opened = answers("edge-singapore", told("acme-sg", "edge-singapore", both, CONTRACT))
    assert opened["cn-guizhou"] == {"EU-46", "EU-RA"}


def test_personal_data_with_domestic_data_leaves_china_only_with_counts_and_papers_of_china() -> None:
    mixed = Labels(personal=Personal.PERSONAL, domestic=Domestic.YES)
    opened = answers("edge-singapore", told("acme-sg", "edge-singapore", mixed, CONTRACT))
    unknown_counts = {"CN-CBDF-07B-PERSONS", "CN-CBDF-07B-SENSITIVE", "CN-CBDF-08", "CN-CBDF-08-SENSITIVE"}
    assert opened["cn-guizhou"] == unknown_counts


def test_clauses_and_assessment_open_china_for_personal_data_of_germany_and_not_for_sensitive() -> None:
    clauses = replace(
        CONTRACT, kind=PathwayKind.EU_SCC, exporter=EntityId("rhein-gmbh"), personal_max=Personal.SENSITIVE
    )
    assessment = replace(clauses, kind=PathwayKind.EU_TIA)
    one = answers("edge-frankfurt", told("rhein-gmbh", "edge-frankfurt", PERSONAL, clauses))
    assert one["cn-guizhou"] == {"EU-46", "EU-RA"}
    both = answers("edge-frankfurt", told("rhein-gmbh", "edge-frankfurt", PERSONAL, clauses, assessment))
    assert both["cn-guizhou"] == set()
    sensitive = answers("edge-frankfurt", told("rhein-gmbh", "edge-frankfurt", SENSITIVE, clauses, assessment))
    assert sensitive["cn-guizhou"] == {"EU-46-SUP"}


def test_no_place_of_the_example_stands_within_another_law_by_accident() -> None:
    reach = {name: set(place.reach()) for name, place in (shipped().edges | shipped().pools).items()}
    assert reach == {
        "edge-singapore": {SG},
        "edge-frankfurt": {DE},
        "cn-guizhou": {CN},
        "cn-shanghai": {CN},
        "eu-frankfurt": {DE},
    }
