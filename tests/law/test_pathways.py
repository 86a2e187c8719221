"""A pathway opens only what it names: whom, from whom, where, how personal, and for how long."""

from __future__ import annotations

import pytest

from orchestrator.policy.bundle import Law
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EntityId, PathwayId
from orchestrator.policy.labels import Domestic, Grade, Personal
from orchestrator.policy.packs import Effect, Operator, Subject, Test
from orchestrator.policy.pathways import ALL_CATEGORIES, Pathway, PathwayKind, Role
from orchestrator.policy.permit import permit
from orchestrator.policy.places import Place
from orchestrator.policy.vocabulary import UNKNOWN
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
    labelled,
    open_pack,
    own,
    pack,
    paper,
    place,
    refusals,
    rule,
)
from tests.values import replace

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
SCC = paper(
    PathwayKind.EU_SCC, TENANT.id, EntityId("operator-a"), at(CN), Personal.PERSONAL, NOW_MS - 10, NOW_MS + 10
)
TIA = replace(SCC, id=PathwayId("tia"), kind=PathwayKind.EU_TIA, valid_until_ms=NOW_MS + 20)


def told(*pathways: Pathway, personal: Personal = Personal.PERSONAL, **more: frozenset[str]) -> Facts:
    label = labelled(personal, Grade.GENERAL, Domestic.NO, at(DE), **more)
    return Facts(TENANT, label, pathways, role=Role.CONTROLLER)


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
        (SCC, replace(TIA, exporter_role=Role.PROCESSOR)),
        (SCC, replace(TIA, importer_role=Role.CONTROLLER)),
        (SCC, replace(TIA, purposes=frozenset())),
        (SCC, replace(TIA, purposes=frozenset({"finetune"}))),
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
    assert permit(LAW, told(SCC, renewed, TIA), infer(EDGE, POOL_A), NOW_MS).valid_until_ms == NOW_MS + 10
    assert permit(LAW, told(renewed, TIA), infer(EDGE, POOL_A), NOW_MS).valid_until_ms == NOW_MS + 20


def test_a_pathway_covers_no_payload_above_its_most_personal() -> None:
    assert not permit(LAW, told(SCC, TIA, personal=Personal.SENSITIVE), infer(EDGE, POOL_A), NOW_MS).allowed
    wide = [replace(one, personal_max=Personal.UNKNOWN) for one in (SCC, TIA)]
    assert not permit(LAW, told(*wide, personal=Personal.UNKNOWN), infer(EDGE, POOL_A), NOW_MS).allowed


@pytest.mark.parametrize(
    "target",
    [
        replace(POOL_A, stores=at(US)),
        replace(POOL_A, accessors=(Entity(EntityId("operator-a"), US),)),
        replace(POOL_A, operator=Entity(EntityId("operator-a"), CN, (Owner(EntityId("parent"), US, 50),))),
        replace(POOL_A, infers=at(CN, US)),
    ],
)
def test_a_pathway_names_every_country_of_the_place(target: Place) -> None:
    assert not permit(LAW, told(SCC, TIA), infer(EDGE, target), NOW_MS).allowed
    wider = [replace(one, countries=at(CN, US)) for one in (SCC, TIA)]
    assert permit(LAW, told(*wider), infer(EDGE, target), NOW_MS).allowed


STAFFED = replace(POOL_A, accessors=(entity("operator-a", CN), entity("staff", CN)))


@pytest.mark.parametrize(
    ("onward", "open_"), [((), False), (("staff",), True), (("operator-b",), False), (("operator-b", "staff"), True)]
)
def test_a_pathway_names_everybody_who_receives(onward: tuple[str, ...], open_: bool) -> None:
    named = [replace(one, onward=frozenset(map(EntityId, onward))) for one in (SCC, TIA)]
    assert permit(LAW, told(*named), infer(EDGE, STAFFED), NOW_MS).allowed is open_
    assert permit(LAW, told(*named), infer(EDGE, POOL_A), NOW_MS).allowed


def test_onward_opens_no_pool_of_the_one_who_is_named_there() -> None:
    named = [replace(one, onward=frozenset({POOL_B.operator.id})) for one in (SCC, TIA)]
    assert not permit(LAW, told(*named), infer(EDGE, POOL_B), NOW_MS).allowed


@pytest.mark.parametrize(
    ("covered", "held", "open_"),
    [
        (ALL_CATEGORIES, frozenset({"contact", "health"}), True),
        (ALL_CATEGORIES, frozenset({UNKNOWN}), True),
        (frozenset({"contact"}), frozenset({"contact"}), True),
        (frozenset({"contact"}), frozenset(), True),
        (frozenset({"contact"}), frozenset({"contact", "health"}), False),
        (frozenset({"contact"}), frozenset({"contact", UNKNOWN}), False),
        (frozenset({"contact"}), frozenset({UNKNOWN}), False),
        (frozenset(), frozenset({"contact"}), False),
    ],
)
def test_a_pathway_covers_the_categories_that_it_names(
    covered: frozenset[str], held: frozenset[str], open_: bool
) -> None:
    papers = [replace(one, categories=covered) for one in (SCC, TIA)]
    assert permit(LAW, told(*papers, categories=held), infer(EDGE, POOL_A), NOW_MS).allowed is open_


@pytest.mark.parametrize(
    ("purpose", "open_"),
    [
        (frozenset({"inference"}), True),
        (frozenset({"embedding"}), False),
        (frozenset({"inference", "finetune"}), False),
        (frozenset({UNKNOWN}), False),
    ],
)
def test_a_pathway_covers_the_purposes_that_it_names(purpose: frozenset[str], open_: bool) -> None:
    assert permit(LAW, told(SCC, TIA, purpose=purpose), infer(EDGE, POOL_A), NOW_MS).allowed is open_


def test_without_a_role_no_pathway_opens_anything() -> None:
    nobody = replace(told(SCC, TIA), role=None)
    assert not permit(LAW, nobody, infer(EDGE, POOL_A), NOW_MS).allowed
    processor = replace(nobody, role=Role.PROCESSOR)
    assert not permit(LAW, processor, infer(EDGE, POOL_A), NOW_MS).allowed
    papers = tuple(replace(one, exporter_role=Role.PROCESSOR) for one in (SCC, TIA))
    assert permit(LAW, replace(processor, pathways=papers), infer(EDGE, POOL_A), NOW_MS).allowed


SCC_KIND, TIA_KIND, BCR_KIND = PathwayKind.EU_SCC, PathwayKind.EU_TIA, PathwayKind.EU_BCR
BCR = replace(SCC, kind=BCR_KIND)


@pytest.mark.parametrize(
    ("needed", "held", "open_"),
    [
        ((frozenset({SCC_KIND, BCR_KIND}), frozenset({TIA_KIND})), (SCC, TIA), True),
        ((frozenset({SCC_KIND, BCR_KIND}), frozenset({TIA_KIND})), (BCR, TIA), True),
        ((frozenset({SCC_KIND, BCR_KIND}), frozenset({TIA_KIND})), (SCC, BCR), False),
        ((frozenset({SCC_KIND, BCR_KIND}), frozenset({TIA_KIND})), (TIA,), False),
        ((frozenset({SCC_KIND, BCR_KIND}), frozenset({SCC_KIND, TIA_KIND})), (SCC,), True),
        ((frozenset({SCC_KIND}), frozenset()), (SCC, TIA, BCR), False),
        ((), (SCC, TIA, BCR), False),
    ],
)
def test_of_every_list_one_must_be_held(
    needed: tuple[frozenset[PathwayKind], ...], held: tuple[Pathway, ...], open_: bool
) -> None:
    law = Law(own(open_pack(DE, CN), pack("eu", [DE], rule("EU-46", Effect.REQUIRE, pathways=needed))), FAR)
    assert permit(law, told(*held), infer(EDGE, POOL_A), NOW_MS).allowed is open_


def test_papers_of_two_operators_do_not_add_up() -> None:
    other = replace(TIA, importer=EntityId("operator-b"))
    for target in (POOL_A, POOL_B):
        assert not permit(LAW, told(SCC, other), infer(EDGE, target), NOW_MS).allowed


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
