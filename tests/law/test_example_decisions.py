"""The decisions of the example, by edge and label: which pools, and which rules stand in the way of the others."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.policy.ids import EntityId, PathwayId
from orchestrator.policy.labels import Domestic, Grade, Labels, LabelSources, Personal
from orchestrator.policy.packs import Obligation, ObligationKind
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import Facts, permit_route
from tests.law.worlds import CN, DE, NOW_MS, SG, at, shipped

WORLD = shipped()
POOLS = ("cn-guizhou", "cn-shanghai", "eu-frankfurt")
ATTESTED = Labels()
GENERAL = Labels(Personal.NONE, Grade.GENERAL)
PERSONAL = Labels(personal=Personal.PERSONAL)
SENSITIVE = Labels(personal=Personal.SENSITIVE)


def told(tenant: str, edge: str, declared: Labels, *pathways: Pathway) -> Facts:
    """The facts as the gate makes them."""
    found = WORLD.tenants[tenant]
    voices = LabelSources(declared, found.attested, found.floor, soil=WORLD.edges[edge].soil())
    return Facts(found.entity, voices.effective(), pathways)


def answers(edge: str, facts: Facts) -> dict[str, set[str]]:
    """By pool, the rules that refuse; none means allowed."""
    found: dict[str, set[str]] = {}
    for pool in POOLS:
        verdict = permit_route(WORLD.law, facts, WORLD.edges[edge], WORLD.pools[pool], NOW_MS)
        found[pool] = set() if verdict.allowed else set(verdict.rules)
    return found


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
    # Subjects in China are not served by a service that is offered overseas only.
    (
        "acme-sg",
        "edge-singapore",
        Labels(origin=at(CN)),
        {**china("CN-GENAI-LEAK"), "eu-frankfurt": {"CN-GENAI-LEAK"}},
    ),
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
    facts = told("acme-sg", "edge-singapore", GENERAL)
    verdict = permit_route(WORLD.law, facts, WORLD.edges["edge-singapore"], WORLD.pools["cn-guizhou"], NOW_MS)
    assert verdict.rules == (
        "CN-CBDF-03",
        "CN-CBDF-04",
        "CN-CBDF-07B-BASIS",
        "SG-PDPA-26-BASIS",
        "SG-PDPA-GENERAL",
        "SG-PDPA-HOME",
    )
    assert verdict.obligations == (Obligation(ObligationKind.RETAIN, "P6M"),)


CONTRACT = Pathway(
    PathwayId("contract"),
    PathwayKind.SG_CONTRACT,
    EntityId("acme-singapore"),
    EntityId("tidegate-domestic"),
    at(CN),
    Personal.PERSONAL,
    NOW_MS - 1,
    NOW_MS + 1,
    "drawer",
)


def test_a_contract_with_the_domestic_operator_opens_china_for_personal_data_of_singapore() -> None:
    opened = answers("edge-singapore", told("acme-sg", "edge-singapore", PERSONAL, CONTRACT))
    assert opened == {**china(), "eu-frankfurt": {"EU-46", "SG-PDPA-26"}}


def test_the_contract_of_singapore_opens_nothing_for_germans() -> None:
    both = Labels(personal=Personal.PERSONAL, origin=at(DE))
    opened = answers("edge-singapore", told("acme-sg", "edge-singapore", both, CONTRACT))
    assert opened["cn-guizhou"] == {"EU-46", "EU-RA"}


def test_personal_data_goes_to_china_only_without_domestic_data() -> None:
    mixed = Labels(personal=Personal.PERSONAL, domestic=Domestic.YES)
    opened = answers("edge-singapore", told("acme-sg", "edge-singapore", mixed, CONTRACT))
    assert opened["cn-guizhou"] == {"TG-NO-GRANT"}


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
    reach = {name: set(place.reach()) for name, place in (WORLD.edges | WORLD.pools).items()}
    assert reach == {
        "edge-singapore": {SG},
        "edge-frankfurt": {DE},
        "cn-guizhou": {CN},
        "cn-shanghai": {CN},
        "eu-frankfurt": {DE},
    }
