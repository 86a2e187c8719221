"""Nothing is allowed unless a rule in force grants it."""

from __future__ import annotations

import pytest
from hypothesis import given, settings

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.facts import Facts
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Effect, Mode, Operator, Pack, Subject, Test
from orchestrator.policy.permit import permit, permit_route, touched
from orchestrator.policy.places import Movement, Place
from orchestrator.policy.verdicts import NO_GRANT, NO_PACK, NO_SOIL, UNKNOWN_LABEL
from orchestrator.policy.vocabulary import UNKNOWN
from tests.law import chances
from tests.law.worlds import (
    ALWAYS,
    CN,
    DE,
    FAR,
    NOW_MS,
    SG,
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

HERE = place("here", SG)
OPEN = Law(own(open_pack(SG)), FAR)


def test_the_open_world_of_these_tests_is_open() -> None:
    verdict = permit(OPEN, facts(plain(SG)), infer(HERE, HERE), NOW_MS)
    assert verdict.allowed
    assert verdict.rules == ("OPEN-1",)


@settings(max_examples=50, deadline=None)
@given(chances.facts, chances.movements)
def test_an_empty_law_denies_everything(told: Facts, movement: Movement) -> None:
    verdict = permit(Law((), FAR), told, movement, NOW_MS)
    assert not verdict.allowed
    assert verdict.reasons


@settings(max_examples=100, deadline=None)
@given(chances.any_packs, chances.facts, chances.movements)
def test_a_touched_jurisdiction_without_a_pack_denies(
    packs: list[AdmittedPack], told: Facts, movement: Movement
) -> None:
    missing = min(touched(told, movement))
    law = Law([one for one in packs if missing not in one.pack.jurisdictions], FAR)
    assert not permit(law, told, movement, NOW_MS).allowed


def test_a_jurisdiction_without_a_pack_is_named() -> None:
    verdict = permit(OPEN, facts(plain(SG, DE)), infer(HERE, place("there", CN)), NOW_MS)
    assert refusals(verdict) == {(NO_PACK, CN), (NO_PACK, DE)}


@pytest.mark.parametrize(
    "silent",
    [
        pack("empty", [SG]),
        pack("no-condition", [SG], rule("A-1", Effect.GRANT, when=())),
        pack("only-duties", [SG], rule("A-1", Effect.OBLIGE)),
        pack("elsewhere", [SG], rule("A-1", Effect.GRANT, (Test(Subject.TARGET, Operator.WITHIN, members=at(CN)),))),
        pack("unfit", [SG], rule("A-1", Effect.GRANT, (Test(Subject.PERSONAL, Operator.WITHIN, 9, at(SG)),))),
        pack("half", [SG], rule("A-1", Effect.GRANT, (*ALWAYS, Test(Subject.GRADE, Operator.AT_LEAST, rank=4)))),
    ],
    ids=lambda one: one.id,
)
def test_a_pack_that_grants_nothing_denies(silent: Pack) -> None:
    verdict = permit(Law(own(silent), FAR), facts(plain(SG)), infer(HERE, HERE), NOW_MS)
    assert refusals(verdict) == {(NO_GRANT, SG)}


def test_a_requirement_without_pathways_is_a_refusal() -> None:
    law = Law(own(open_pack(SG), pack("p", [SG], rule("A-1", Effect.REQUIRE))), FAR)
    assert refusals(permit(law, facts(plain(SG)), infer(HERE, HERE), NOW_MS)) == {("A-1", SG)}


@pytest.mark.parametrize(
    ("label", "axes"),
    [
        (Effective(Personal.UNKNOWN, Grade.PUBLIC, Domestic.NO, at(SG)), ["personal"]),
        (Effective(Personal.NONE, Grade.UNKNOWN, Domestic.NO, at(SG)), ["grade"]),
        (Effective(Personal.NONE, Grade.PUBLIC, Domestic.NO, frozenset()), ["origin"]),
        (Effective(Personal.NONE, Grade.PUBLIC, Domestic.NO, frozenset({SG, UNKNOWN})), ["origin"]),
        (Effective(origin=at(SG)), ["grade", "personal"]),
        (Effective(), ["grade", "origin", "personal"]),
    ],
)
def test_an_unknown_label_denies_and_says_how_to_declare_it(label: Effective, axes: list[str]) -> None:
    verdict = permit(OPEN, facts(label), infer(HERE, HERE), NOW_MS)
    assert refusals(verdict) == {(UNKNOWN_LABEL, None)}
    needs = [reason.needs for reason in verdict.reasons]
    assert sorted(axis for axis in ("grade", "origin", "personal") for need in needs if f"({axis}=...)" in need) == axes


def test_a_place_without_soil_denies() -> None:
    nowhere = Place(HERE.id, frozenset(), frozenset(), (), entity("op", SG))
    for movement in (infer(HERE, nowhere), infer(nowhere, HERE)):
        assert refusals(permit(OPEN, facts(plain(SG)), movement, NOW_MS)) == {(NO_SOIL, None)}


@settings(max_examples=100, deadline=None)
@given(chances.any_packs, chances.facts, chances.movements)
def test_a_signer_who_may_not_grant_never_opens_anything(
    packs: list[AdmittedPack], told: Facts, movement: Movement
) -> None:
    powerless = [AdmittedPack(one.pack, frozenset()) for one in packs]
    assert not permit(Law(powerless, FAR), told, movement, NOW_MS).allowed


def test_a_grant_counts_only_where_its_signer_may_grant() -> None:
    foreign = AdmittedPack(open_pack(SG, CN), at(CN))
    verdict = permit(Law([foreign], FAR), facts(plain(SG)), infer(HERE, place("there", CN)), NOW_MS)
    assert refusals(verdict) == {(NO_GRANT, SG)}


def test_the_forbids_of_a_signer_who_may_not_grant_count() -> None:
    foreign = AdmittedPack(pack("foreign", [SG], rule("F-1", Effect.FORBID)), frozenset())
    verdict = permit(Law([*own(open_pack(SG)), foreign], FAR), facts(plain(SG)), infer(HERE, HERE), NOW_MS)
    assert refusals(verdict) == {("F-1", SG)}


def test_a_route_needs_the_way_back_as_well() -> None:
    there = place("there", CN)
    one_way = pack("one-way", [SG, CN], rule("W-1", Effect.GRANT, (Test(Subject.ACTION, Operator.IN, 0, at_infer()),)))
    law = Law(own(one_way), FAR)
    assert permit(law, facts(plain(SG)), infer(HERE, there), NOW_MS).allowed
    assert refusals(permit_route(law, facts(plain(SG)), HERE, there, NOW_MS)) == {(NO_GRANT, SG), (NO_GRANT, CN)}


def at_infer() -> frozenset[str]:
    return frozenset({"infer"})


def test_a_grant_in_shadow_grants_nothing() -> None:
    law = Law(own(pack("shadow", [SG], rule("A-1", Effect.GRANT), mode=Mode.SHADOW)), FAR)
    assert refusals(permit(law, facts(plain(SG)), infer(HERE, HERE), NOW_MS)) == {(NO_PACK, SG)}
