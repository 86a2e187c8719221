"""A law that is too old, not yet or no longer in force grants nothing, to the millisecond."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.bundle import FOREVER_MS, FRESH_MS, NOT_AFTER_MS, REGULATED_MS, AdmittedPack, Horizons, Law
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.facts import Facts
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Effect
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.permit import permit
from orchestrator.policy.places import Movement
from orchestrator.policy.verdicts import EXPIRED, NO_PACK, REGULATED_EXPIRED
from tests.law import chances
from tests.law.worlds import (
    FAR,
    NOW_MS,
    SG,
    at,
    entity,
    facts,
    infer,
    labelled,
    open_pack,
    own,
    pack,
    paper,
    place,
    plain,
    refusals,
    rule,
)
from tests.values import replace

HERE = infer(place("here", SG), place("there", SG))
ISSUED_MS = NOW_MS
LAW = Law(own(open_pack(SG)), Horizons.from_issue(ISSUED_MS))
PERSONAL = labelled(Personal.PERSONAL, Grade.PUBLIC, Domestic.NO, at(SG))
IMPORTANT = labelled(Personal.NONE, Grade.IMPORTANT, Domestic.NO, at(SG))
REGULATED_UNTIL_MS = ISSUED_MS + REGULATED_MS
NOT_AFTER = ISSUED_MS + NOT_AFTER_MS


@pytest.mark.parametrize(
    ("label", "now_ms", "rules"),
    [
        (plain(SG), ISSUED_MS, set()),
        (plain(SG), ISSUED_MS + FRESH_MS, set()),
        (plain(SG), REGULATED_UNTIL_MS, set()),
        (plain(SG), NOT_AFTER - 1, set()),
        (plain(SG), NOT_AFTER, {EXPIRED}),
        (PERSONAL, REGULATED_UNTIL_MS - 1, set()),
        (PERSONAL, REGULATED_UNTIL_MS, {REGULATED_EXPIRED}),
        (IMPORTANT, REGULATED_UNTIL_MS - 1, set()),
        (IMPORTANT, REGULATED_UNTIL_MS, {REGULATED_EXPIRED}),
        (PERSONAL, NOT_AFTER, {EXPIRED}),
    ],
)
def test_an_old_manifest_denies_the_regulated_first_and_then_everything(
    label: Effective, now_ms: int, rules: set[str]
) -> None:
    verdict = permit(LAW, facts(label), HERE, now_ms)
    assert {rule_id for rule_id, _ in refusals(verdict)} == rules
    assert verdict.allowed is not bool(rules)


def test_a_verdict_is_good_until_the_horizon_that_ends_it() -> None:
    assert permit(LAW, facts(plain(SG)), HERE, NOW_MS).valid_until_ms == NOT_AFTER
    assert permit(LAW, facts(PERSONAL), HERE, NOW_MS).valid_until_ms == REGULATED_UNTIL_MS


def test_a_refusal_is_good_until_something_that_it_rests_on_can_change() -> None:
    later = pack("later", [SG], rule("L-1", Effect.GRANT), from_ms=NOW_MS + 1_000)
    assert permit(Law(own(later), FAR), facts(plain(SG)), HERE, NOW_MS).valid_until_ms == NOW_MS + 1_000
    assert permit(Law((), FAR), facts(plain(SG)), HERE, NOW_MS).valid_until_ms == FAR.not_after_ms
    unknown = facts(Effective())
    assert permit(LAW, unknown, HERE, NOW_MS).valid_until_ms == REGULATED_UNTIL_MS


def test_where_nothing_changes_any_more_a_verdict_is_good_for_ever() -> None:
    assert permit(LAW, facts(plain(SG)), HERE, NOT_AFTER).valid_until_ms == FOREVER_MS


@pytest.mark.parametrize("until_ms", [NOW_MS + 7, NOW_MS + 8])
def test_a_verdict_ends_with_each_paper_and_count_whether_it_is_read_or_not(until_ms: int) -> None:
    held = paper(PathwayKind.EU_SCC, entity("t", SG).id, entity("o", SG).id, at(SG), valid_until_ms=until_ms)
    count = Counter(CounterKind.US_HEALTH, 1, NOW_MS, until_ms)
    for told in (
        replace(facts(plain(SG)), pathways=(held,)),
        replace(facts(plain(SG)), pathways=(replace(held, valid_from_ms=until_ms, valid_until_ms=until_ms + 1),)),
        replace(facts(plain(SG)), counters=(count,)),
    ):
        for law in (LAW, Law((), FAR)):
            assert permit(law, told, HERE, NOW_MS).valid_until_ms == until_ms


@pytest.mark.parametrize(
    ("now_ms", "in_force"), [(NOW_MS - 1, False), (NOW_MS, True), (NOW_MS + 9, True), (NOW_MS + 10, False)]
)
def test_a_pack_holds_from_its_first_to_before_its_last_millisecond(now_ms: int, in_force: bool) -> None:
    dated = pack("dated", [SG], rule("A-1", Effect.GRANT), from_ms=NOW_MS, until_ms=NOW_MS + 10)
    verdict = permit(Law(own(dated), FAR), facts(plain(SG)), HERE, now_ms)
    assert verdict.allowed is in_force
    if in_force:
        assert verdict.valid_until_ms == NOW_MS + 10
    else:
        assert refusals(verdict) == {(NO_PACK, SG)}


def test_a_forbid_counts_while_it_is_in_force() -> None:
    dated = pack("stop", [SG], rule("S-1", Effect.FORBID), from_ms=NOW_MS, until_ms=NOW_MS + 10)
    law = Law(own(open_pack(SG), dated), FAR)
    allowed = [permit(law, facts(plain(SG)), HERE, NOW_MS + step).allowed for step in (-1, 0, 9, 10)]
    assert allowed == [True, False, False, True]


@settings(max_examples=150, deadline=None)
@given(chances.any_packs, chances.facts, chances.movements, st.integers(0, 6))
def test_a_verdict_may_be_relied_on_word_for_word_until_it_ends(
    packs: list[AdmittedPack], told: Facts, movement: Movement, step_ms: int
) -> None:
    law = Law(packs, Horizons(NOW_MS + 2, NOW_MS + 4, NOW_MS + 6))
    verdict = permit(law, told, movement, NOW_MS)
    assert verdict.valid_until_ms > NOW_MS
    if NOW_MS + step_ms < verdict.valid_until_ms:
        assert permit(law, told, movement, NOW_MS + step_ms) == verdict


def test_a_verdict_ends_where_a_pack_begins() -> None:
    later = pack("later", [SG], rule("L-1", Effect.FORBID), from_ms=NOW_MS + 1_000)
    verdict = permit(Law(own(open_pack(SG), later), FAR), facts(plain(SG)), HERE, NOW_MS)
    assert verdict.valid_until_ms <= NOW_MS + 1_000


def test_an_import_never_extends_a_horizon() -> None:
    ours, theirs = Horizons(10, 20, 30), Horizons(5, 25, 28)
    assert ours.within(theirs) == theirs.within(ours) == Horizons(5, 20, 28)
