"""A pathway opens only what it names: whom, from whom, where, how personal, and for how long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from orchestrator.policy.bundle import Law
from orchestrator.policy.ids import EntityId, PathwayId
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Effect, Operator, Subject, Test
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import Facts, permit
from orchestrator.policy.places import Place
from tests.law.worlds import (
    CN,
    DE,
    FAR,
    NOW_MS,
    SG,
    US,
    at,
    entity,
    infer,
    open_pack,
    own,
    pack,
    place,
    refusals,
    rule,
)

NEEDS = rule(
    "EU-46",
    Effect.REQUIRE,
    (Test(Subject.PERSONAL, Operator.AT_LEAST, rank=Personal.PERSONAL),),
    pathways=(PathwayKind.EU_SCC, PathwayKind.EU_TIA),
)
LAW = Law(own(open_pack(DE, CN, US), pack("eu", [DE], NEEDS)), FAR)
TENANT = entity("tenant", DE)
EDGE = place("edge", DE)
POOL_A = place("pool-a", CN, operator=entity("operator-a", CN))
POOL_B = place("pool-b", CN, operator=entity("operator-b", CN))
SCC = Pathway(
    PathwayId("scc"),
    PathwayKind.EU_SCC,
    TENANT.id,
    EntityId("operator-a"),
    at(CN),
    Personal.PERSONAL,
    NOW_MS - 10,
    NOW_MS + 10,
    "drawer",
)
TIA = replace(SCC, id=PathwayId("tia"), kind=PathwayKind.EU_TIA, valid_until_ms=NOW_MS + 20)


def told(*pathways: Pathway, personal: Personal = Personal.PERSONAL) -> Facts:
    return Facts(TENANT, Effective(personal, Grade.GENERAL, Domestic.NO, at(DE)), pathways)


def test_both_papers_open_the_pool_of_the_operator_they_name_and_no_other() -> None:
    assert permit(LAW, told(SCC, TIA), infer(EDGE, POOL_A), NOW_MS).allowed
    verdict = permit(LAW, told(SCC, TIA), infer(EDGE, POOL_B), NOW_MS)
    assert refusals(verdict) == {("EU-46", DE)}
    assert verdict.reasons[0].needs == "A need."


@pytest.mark.parametrize(
    "pathways",
    [
        (),
        (SCC,),
        (TIA,),
        (SCC, SCC),
        (SCC, replace(TIA, kind=PathwayKind.CN_SCC)),
        (SCC, replace(TIA, exporter=EntityId("somebody"))),
        (SCC, replace(TIA, importer=EntityId("operator-b"))),
        (SCC, replace(TIA, countries=frozenset())),
        (SCC, replace(TIA, countries=at(US))),
        (SCC, replace(TIA, personal_max=Personal.NONE)),
        (SCC, replace(TIA, valid_from_ms=NOW_MS + 1)),
        (SCC, replace(TIA, valid_until_ms=NOW_MS)),
    ],
)
def test_what_the_papers_do_not_say_stays_closed(pathways: tuple[Pathway, ...]) -> None:
    assert refusals(permit(LAW, told(*pathways), infer(EDGE, POOL_A), NOW_MS)) == {("EU-46", DE)}


def test_a_pathway_holds_from_its_first_to_before_its_last_millisecond() -> None:
    allowed = [
        permit(LAW, told(SCC, TIA), infer(EDGE, POOL_A), now_ms).allowed
        for now_ms in (NOW_MS - 11, NOW_MS - 10, NOW_MS + 9, NOW_MS + 10)
    ]
    assert allowed == [False, True, True, False]


def test_a_verdict_ends_with_the_first_paper_it_stands_on() -> None:
    assert permit(LAW, told(SCC, TIA), infer(EDGE, POOL_A), NOW_MS).valid_until_ms == NOW_MS + 10
    renewed = replace(SCC, valid_until_ms=NOW_MS + 30)
    assert permit(LAW, told(SCC, renewed, TIA), infer(EDGE, POOL_A), NOW_MS).valid_until_ms == NOW_MS + 20


def test_a_pathway_covers_no_payload_above_its_most_personal() -> None:
    assert not permit(LAW, told(SCC, TIA, personal=Personal.SENSITIVE), infer(EDGE, POOL_A), NOW_MS).allowed
    wide = [replace(one, personal_max=Personal.UNKNOWN) for one in (SCC, TIA)]
    assert not permit(LAW, told(*wide, personal=Personal.UNKNOWN), infer(EDGE, POOL_A), NOW_MS).allowed


@pytest.mark.parametrize(
    "target",
    [
        replace(POOL_A, stores=at(US)),
        replace(POOL_A, accessors=(entity("staff", US),)),
        replace(POOL_A, infers=at(CN, US)),
    ],
)
def test_a_pathway_names_every_country_of_the_place(target: Place) -> None:
    assert not permit(LAW, told(SCC, TIA), infer(EDGE, target), NOW_MS).allowed
    wider = [replace(one, countries=at(CN, US)) for one in (SCC, TIA)]
    assert permit(LAW, told(*wider), infer(EDGE, target), NOW_MS).allowed


def test_what_needs_no_paper_needs_none() -> None:
    assert permit(LAW, told(personal=Personal.NONE), infer(EDGE, POOL_B), NOW_MS).allowed


def test_papers_do_not_replace_a_grant() -> None:
    law = Law(own(open_pack(CN), pack("eu", [DE], NEEDS)), FAR)
    assert not permit(law, told(SCC, TIA), infer(EDGE, POOL_A), NOW_MS).allowed


def test_papers_do_not_lift_a_forbid() -> None:
    law = Law(own(open_pack(DE, CN), pack("eu", [DE], NEEDS, rule("EU-X", Effect.FORBID))), FAR)
    assert refusals(permit(law, told(SCC, TIA), infer(EDGE, POOL_A), NOW_MS)) == {("EU-X", DE)}


def test_singapore_is_not_asked_where_nothing_touches_it() -> None:
    assert SG not in {reason.jurisdiction for reason in permit(LAW, told(), infer(EDGE, POOL_A), NOW_MS).reasons}
