"""A refusal beats every grant, and no order of rules or packs changes an answer."""

from __future__ import annotations

from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.facts import Facts, situation_of
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.packs import Effect, Mode, ObligationKind, Pack, Rule
from orchestrator.policy.permit import permit, touched
from orchestrator.policy.places import Movement
from tests.law import chances
from tests.law.worlds import ALWAYS, FAR, NOW_MS, SG, essence, facts, infer, open_pack, own, pack, place, plain, rule
from tests.values import replace


def expected(packs: list[AdmittedPack], told: Facts, movement: Movement, now_ms: int) -> bool:
    """What the law means, said once more in the words of the design: deny, unless every jurisdiction is satisfied."""
    return (
        told.label.personal.word != "unknown"
        and told.label.grade.word != "unknown"
        and all(_satisfied(packs, one, told, movement, now_ms) for one in touched(told, movement))
    )


def _satisfied(
    packs: list[AdmittedPack], jurisdiction: Jurisdiction, told: Facts, movement: Movement, now_ms: int
) -> bool:
    granted = False
    for one in packs:
        if jurisdiction not in one.pack.jurisdictions or one.pack.mode is Mode.SHADOW or not one.pack.in_force(now_ms):
            continue
        for law_rule in one.pack.rules:
            situation = situation_of(told, movement, now_ms)
            if not law_rule.when or not all(test.holds(situation) for test in law_rule.when):
                continue
            if law_rule.unless and all(test.holds(situation) for test in law_rule.unless):
                continue
            if law_rule.effect is Effect.FORBID:
                return False
            if law_rule.effect is Effect.REQUIRE and not _held(law_rule, told, movement, now_ms):
                return False
            if law_rule.effect is Effect.OBLIGE and not _told(law_rule, told):
                return False
            granted = granted or (law_rule.effect is Effect.GRANT and jurisdiction in one.grants_for)
    return granted


def _held(law_rule: Rule, told: Facts, movement: Movement, now_ms: int) -> bool:
    held = {
        pathway.kind
        for pathway in told.pathways
        if pathway.covers_payload(told.tenant.id, told.role, told.label, now_ms)
        and pathway.covers_place(movement.target)
    }
    return bool(law_rule.pathways) and all(any_of & held for any_of in law_rule.pathways)


def _told(law_rule: Rule, told: Facts) -> bool:
    owed = {duty.argument for duty in law_rule.obligations if duty.kind is ObligationKind.NOTIFY}
    return owed <= {name for name, _ in told.notices}


@settings(max_examples=200, deadline=None)
@given(chances.any_packs, chances.facts, chances.movements)
def test_permit_is_what_the_law_means(packs: list[AdmittedPack], told: Facts, movement: Movement) -> None:
    verdict = permit(Law(packs, FAR), told, movement, NOW_MS)
    assert verdict.allowed == expected(packs, told, movement, NOW_MS)
    assert verdict.allowed is not bool(verdict.reasons)


@settings(max_examples=150, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.movements)
def test_permit_is_what_the_law_means_for_packs_that_load(
    packs: list[AdmittedPack], told: Facts, movement: Movement
) -> None:
    assert permit(Law(packs, FAR), told, movement, NOW_MS).allowed == expected(packs, told, movement, NOW_MS)


@settings(max_examples=150, deadline=None)
@given(chances.any_packs, chances.facts, chances.movements, st.randoms(use_true_random=False))
def test_the_order_of_rules_and_packs_does_not_matter(
    packs: list[AdmittedPack], told: Facts, movement: Movement, chance: Random
) -> None:
    shuffled = [replace(one, pack=_shuffled(one.pack, chance)) for one in packs]
    chance.shuffle(shuffled)
    first = permit(Law(packs, FAR), told, movement, NOW_MS)
    second = permit(Law(shuffled, FAR), told, movement, NOW_MS)
    assert essence(first) == essence(second)


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.movements, st.randoms(use_true_random=False))
def test_the_order_of_what_a_tenant_holds_does_not_matter(
    packs: list[AdmittedPack], told: Facts, movement: Movement, chance: Random
) -> None:
    lists: dict[str, list[object]] = {
        "pathways": list(told.pathways),
        "counters": list(told.counters),
        "notices": list(told.notices),
    }
    for members in lists.values():
        chance.shuffle(members)
    shuffled = replace(told, **{name: tuple(members) for name, members in lists.items()})
    law = Law(packs, FAR)
    assert permit(law, told, movement, NOW_MS) == permit(law, shuffled, movement, NOW_MS)


@settings(max_examples=100, deadline=None)
@given(chances.any_packs, chances.facts, chances.movements)
def test_reasons_are_listed_in_one_order(packs: list[AdmittedPack], told: Facts, movement: Movement) -> None:
    first = permit(Law(packs, FAR), told, movement, NOW_MS)
    second = permit(Law(packs[::-1], FAR), told, movement, NOW_MS)
    assert first.reasons == second.reasons
    assert [one.jurisdiction for one in first.answers] == sorted(one.jurisdiction for one in first.answers)


def _shuffled(one: Pack, chance: Random) -> Pack:
    rules = list(one.rules)
    chance.shuffle(rules)
    return replace(one, rules=tuple(rules))


@settings(max_examples=150, deadline=None)
@given(chances.loaded_packs, chances.packs_of(chances.hindrances), chances.facts, chances.movements)
def test_adding_a_refusal_never_enlarges(
    packs: list[AdmittedPack], hindrance: Pack, told: Facts, movement: Movement
) -> None:
    before = permit(Law(packs, FAR), told, movement, NOW_MS)
    after = permit(Law([*packs, AdmittedPack(hindrance, hindrance.jurisdictions)], FAR), told, movement, NOW_MS)
    assert before.allowed or not after.allowed


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.movements)
def test_a_forbid_that_holds_beats_every_grant(packs: list[AdmittedPack], told: Facts, movement: Movement) -> None:
    stop = pack("stop", touched(told, movement), rule("STOP-1", Effect.FORBID, ALWAYS))
    assert not permit(Law([*packs, *own(stop)], FAR), told, movement, NOW_MS).allowed


def test_a_forbid_and_a_grant_in_one_pack_refuse_in_both_orders() -> None:
    here = place("here", SG)
    grant, forbid = rule("A-1", Effect.GRANT), rule("A-2", Effect.FORBID)
    for rules in ((grant, forbid), (forbid, grant)):
        verdict = permit(Law(own(pack("p", [SG], *rules)), FAR), facts(plain(SG)), infer(here, here), NOW_MS)
        assert (verdict.allowed, verdict.rules) == (False, ("A-2",))
    assert permit(Law(own(open_pack(SG)), FAR), facts(plain(SG)), infer(here, here), NOW_MS).allowed
