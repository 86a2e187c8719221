"""The law of the subject, of both places and of where a text was made must each be satisfied."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EntityId
from orchestrator.policy.packs import Effect
from orchestrator.policy.permit import permit, touched
from orchestrator.policy.places import Movement, Place
from orchestrator.policy.verdicts import NO_GRANT, NO_PACK
from orchestrator.policy.vocabulary import UNKNOWN
from tests.law import chances
from tests.law.worlds import (
    CN,
    DE,
    FAR,
    FR,
    NOW_MS,
    SG,
    US,
    at,
    entity,
    facts,
    infer,
    open_pack,
    own,
    pack,
    place,
    plain,
    refusals,
    rule,
)
from tests.values import replace

HERE = place("here", DE)
THERE = place("there", CN)


def test_a_grant_of_china_never_satisfies_the_eea() -> None:
    silent = pack("eu", [DE], rule("EU-1", Effect.GRANT, when=()))
    verdict = permit(Law(own(open_pack(CN), silent), FAR), facts(plain(DE)), infer(HERE, THERE), NOW_MS)
    assert refusals(verdict) == {(NO_GRANT, DE)}


def test_a_grant_of_the_eea_never_satisfies_china() -> None:
    silent = pack("cn", [CN])
    verdict = permit(Law(own(open_pack(DE), silent), FAR), facts(plain(DE)), infer(HERE, THERE), NOW_MS)
    assert refusals(verdict) == {(NO_GRANT, CN)}


def test_each_refusing_jurisdiction_is_named_with_its_rule() -> None:
    law = Law(own(open_pack(SG), pack("eu", [DE], rule("EU-1", Effect.FORBID)), pack("cn", [CN])), FAR)
    verdict = permit(law, facts(plain(SG, US)), infer(HERE, THERE), NOW_MS)
    assert refusals(verdict) == {("EU-1", DE), (NO_GRANT, CN), (NO_PACK, US)}
    assert verdict.rules == tuple(sorted(("EU-1", NO_GRANT, NO_PACK)))


@settings(max_examples=100, deadline=None)
@given(chances.facts, chances.movements)
def test_leaving_out_the_pack_of_one_jurisdiction_closes(told: Facts, movement: Movement) -> None:
    open_world = Law([*own(open_pack(*touched(told, movement)))], FAR)
    known = {"personal": told.label.personal.word, "grade": told.label.grade.word}
    assert permit(open_world, told, movement, NOW_MS).allowed == ("unknown" not in known.values())
    for missing in touched(told, movement):
        partial = open_pack(*(touched(told, movement) - {missing}))
        assert not permit(Law(own(partial), FAR), told, movement, NOW_MS).allowed


OPERATOR = entity("operator", SG)
BIG = Owner(EntityId("parent"), CN, 50)
SMALL = Owner(EntityId("parent"), CN, 49)


@pytest.mark.parametrize(
    ("told", "target", "asked"),
    [
        (facts(plain(DE)), place("p", SG), {SG, DE}),
        (facts(replace(plain(SG), located=at(FR))), place("p", SG), {SG, FR}),
        (facts(replace(plain(SG), located=frozenset({FR, UNKNOWN}))), place("p", SG), {SG, FR}),
        (facts(replace(plain(SG), collected=at(FR))), place("p", SG), {SG}),
        (replace(facts(plain(SG)), processed_in=frozenset({CN})), place("p", SG), {SG, CN}),
        (facts(plain(SG)), place("p", SG, operator=entity("o", CN)), {SG, CN}),
        (facts(plain(SG)), replace(place("p", SG), stores=frozenset({US})), {SG, US}),
        (facts(plain(SG)), replace(place("p", SG), accessors=(entity("a", CN),)), {SG, CN}),
        (facts(plain(SG)), place("p", SG, operator=Entity(EntityId("o"), SG, (BIG,))), {SG, CN}),
        (facts(plain(SG)), place("p", SG, operator=Entity(EntityId("o"), SG, (SMALL,))), {SG}),
        (
            facts(plain(SG)),
            replace(place("p", SG), accessors=(Entity(EntityId("a"), US, (BIG,)),)),
            {SG, US, CN},
        ),
    ],
    ids=[
        "origin",
        "located",
        "located-in-part",
        "collected",
        "processed-in",
        "operator",
        "stores",
        "accessor",
        "owner-50",
        "owner-49",
        "accessor-owner",
    ],
)
def test_soil_access_operator_and_owners_each_bring_their_law(told: Facts, target: Place, asked: set[str]) -> None:
    movement = infer(place("edge", SG), target)
    assert touched(told, movement) == asked
    allowed = permit(Law(own(open_pack(*touched(told, movement))), FAR), told, movement, NOW_MS)
    assert allowed.allowed
    verdict = permit(Law(own(open_pack(SG)), FAR), told, movement, NOW_MS)
    assert refusals(verdict) == {(NO_PACK, one) for one in asked - {SG}}


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.movements)
def test_what_is_allowed_is_granted_by_each_law_that_is_touched(
    packs: list[AdmittedPack], told: Facts, movement: Movement
) -> None:
    verdict = permit(Law(packs, FAR), told, movement, NOW_MS)
    if verdict.allowed:
        assert {answer.jurisdiction for answer in verdict.answers} == touched(told, movement)
        for answer in verdict.answers:
            granting = {
                law_rule.id
                for one in packs
                if answer.jurisdiction in one.pack.jurisdictions & one.grants_for
                for law_rule in one.pack.rules
                if law_rule.effect is Effect.GRANT
            }
            assert answer.grants
            assert granting.issuperset(answer.grants)
