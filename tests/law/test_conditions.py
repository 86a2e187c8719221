"""What each comparison of a condition means, at its edges."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.facts import Declared, Facts, situation_of
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import LABEL_SETS, RANKED, RISING, Effect, Operator, Situation, Subject, Test
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.vocabulary import UNKNOWN
from tests.law import chances
from tests.law.worlds import ALWAYS, CN, DE, FR, NOW_MS, SG, US, at, entity, facts, infer, place, plain, rule
from tests.values import replace

HERE = infer(place("edge", DE), place("pool", CN))
LABEL = Effective(Personal.PERSONAL, Grade.GENERAL, Domestic.YES, at(DE, FR), Clean.TOKENISED)
TOLD = replace(
    facts(LABEL),
    critical_infrastructure=Declared.YES,
    counters=(Counter(CounterKind.CN_PERSONS, 5, NOW_MS, NOW_MS + 1),),
)
SITUATION = situation_of(TOLD, HERE, NOW_MS)
SETS = (Operator.WITHIN, Operator.TOUCHES, Operator.AVOIDS, Operator.BEYOND)
RANKS = (Operator.AT_MOST, Operator.AT_LEAST)
COUNTS = (Operator.BELOW, Operator.AT_LEAST)


@pytest.mark.parametrize(
    ("subject", "rank", "at_most", "at_least"),
    [
        (Subject.PERSONAL, Personal.NONE, False, True),
        (Subject.PERSONAL, Personal.PERSONAL, True, True),
        (Subject.PERSONAL, Personal.SENSITIVE, True, False),
        (Subject.GRADE, Grade.PUBLIC, False, True),
        (Subject.GRADE, Grade.GENERAL, True, True),
        (Subject.GRADE, Grade.IMPORTANT, True, False),
        (Subject.DOMESTIC, Domestic.NO, False, True),
        (Subject.DOMESTIC, Domestic.YES, True, True),
        (Subject.DOMESTIC, Domestic.UNKNOWN, True, False),
        (Subject.CLEAN, Clean.PSEUDONYMISED, False, True),
        (Subject.CLEAN, Clean.TOKENISED, True, True),
        (Subject.CLEAN, Clean.RAW, True, False),
        (Subject.CRITICAL_INFRASTRUCTURE, Declared.NO, False, True),
        (Subject.CRITICAL_INFRASTRUCTURE, Declared.YES, True, True),
        (Subject.CRITICAL_INFRASTRUCTURE, Declared.UNKNOWN, True, False),
    ],
)
def test_ranks_include_the_one_that_is_named(subject: Subject, rank: int, at_most: bool, at_least: bool) -> None:
    held = [Test(subject, operator, rank).holds(SITUATION) for operator in RANKS]
    assert held == [at_most, at_least]


@pytest.mark.parametrize(
    ("members", "within", "touches", "avoids", "beyond"),
    [
        (at(DE, FR), True, True, False, False),
        (at(DE, FR, SG), True, True, False, False),
        (at(DE), False, True, False, True),
        (at(DE, SG), False, True, False, True),
        (at(SG, US), False, False, True, True),
        (frozenset(), False, False, True, True),
    ],
)
def test_sets_are_compared_whole(
    members: frozenset[Jurisdiction], within: bool, touches: bool, avoids: bool, beyond: bool
) -> None:
    held = [Test(Subject.ORIGIN, operator, members=frozenset(members)).holds(SITUATION) for operator in SETS]
    assert held == [within, touches, avoids, beyond]


@pytest.mark.parametrize("subject", sorted(LABEL_SETS, key=lambda one: one.value))
@pytest.mark.parametrize("members", [frozenset(), at(DE), frozenset({DE, UNKNOWN})])
def test_an_empty_set_lies_within_and_avoids_everything(subject: Subject, members: frozenset[str]) -> None:
    nothing = Situation({}, {subject: frozenset()}, {})
    held = [Test(subject, operator, members=members).holds(nothing) for operator in SETS]
    assert held == [True, False, True, False]


@pytest.mark.parametrize("subject", sorted(LABEL_SETS, key=lambda one: one.value))
@pytest.mark.parametrize("found", [frozenset({UNKNOWN}), frozenset({DE, UNKNOWN})])
@pytest.mark.parametrize("members", [frozenset(), at(DE), at(SG), frozenset({DE, UNKNOWN})])
def test_an_unknown_member_touches_and_goes_beyond_everything(
    subject: Subject, found: frozenset[str], members: frozenset[str]
) -> None:
    held = [Test(subject, operator, members=members).holds(Situation({}, {subject: found}, {})) for operator in SETS]
    assert held == [False, True, False, True]


@pytest.mark.parametrize(
    ("rank", "below", "at_least"), [(4, False, True), (5, False, True), (6, True, False), (0, False, True)]
)
def test_a_counter_reaches_the_threshold_that_it_equals(rank: int, below: bool, at_least: bool) -> None:
    counter = CounterKind.CN_PERSONS
    held = [Test(Subject.COUNTER, operator, rank, counter=counter).holds(SITUATION) for operator in COUNTS]
    assert held == [below, at_least]


@pytest.mark.parametrize("rank", [0, 1, 10**12])
def test_an_unknown_counter_is_above_every_threshold(rank: int) -> None:
    unknown = CounterKind.US_HEALTH
    held = [Test(Subject.COUNTER, operator, rank, counter=unknown).holds(SITUATION) for operator in COUNTS]
    assert held == [False, True]
    assert not any(Test(Subject.COUNTER, operator, rank).holds(SITUATION) for operator in Operator)


def test_a_place_is_read_as_its_whole_reach_and_as_its_soil() -> None:
    seen = Place(HERE.target.id, at(CN), at(SG), (entity("staff", US),), entity("operator", DE))
    for moved, reach, soil in (
        (infer(HERE.source, seen), Subject.TARGET, Subject.TARGET_SOIL),
        (infer(seen, HERE.source), Subject.SOURCE, Subject.SOURCE_SOIL),
    ):
        situation = situation_of(TOLD, moved, NOW_MS)
        assert situation.sets[reach] == at(CN, SG, US, DE)
        assert situation.sets[soil] == at(CN, SG)


def test_every_subject_is_read_from_the_facts_and_the_movement() -> None:
    assert SITUATION.ranks.keys() == RANKED
    assert SITUATION.ranks.keys() | SITUATION.sets.keys() | {Subject.COUNTER} == set(Subject)
    assert SITUATION.counters == {CounterKind.CN_PERSONS: 5}


@pytest.mark.parametrize("action", Action)
def test_an_action_is_one_of_a_list(action: Action) -> None:
    movement = Movement(action, Leg.TO_SINK, HERE.source, HERE.target)
    some = Test(Subject.ACTION, Operator.IN, members=frozenset({"infer", "return"}))
    assert some.holds(situation_of(TOLD, movement, NOW_MS)) is (action in (Action.INFER, Action.RETURN))


@pytest.mark.parametrize("leg", Leg)
def test_a_leg_is_one_of_a_list(leg: Leg) -> None:
    movement = Movement(Action.EXPORT, leg, HERE.source, HERE.target)
    some = Test(Subject.LEG, Operator.IN, members=frozenset({"sink", "artefact-edge"}))
    assert some.holds(situation_of(TOLD, movement, NOW_MS)) is (leg in (Leg.TO_SINK, Leg.ARTEFACT_TO_EDGE))


@pytest.mark.parametrize("operator", Operator)
def test_an_operator_that_does_not_fit_its_subject_never_holds(operator: Operator) -> None:
    everything = frozenset({"infer", "edge-pool", DE, FR, CN, "0", "1", "2", UNKNOWN})
    for subject in Subject:
        if subject is Subject.COUNTER:
            fits = operator in COUNTS
        elif subject in RANKED:
            fits = operator in RANKS
        else:
            fits = operator in SETS or operator is Operator.IN
        for counter in (None, *CounterKind):
            every = Test(subject, operator, 2, everything, counter)
            assert fits or not every.holds(SITUATION), subject


@settings(max_examples=200, deadline=None)
@given(chances.any_tests, chances.facts, chances.raises, chances.movements)
def test_a_rising_test_that_holds_holds_of_everything_higher(
    test: Test, told: Facts, more: chances.Raise, movement: Movement
) -> None:
    low = test.holds(situation_of(told, movement, NOW_MS))
    high = test.holds(situation_of(more.of(told), movement, NOW_MS))
    if test.operator in RISING:
        assert high or not low
    elif test.operator is not Operator.IN:
        assert low or not high


def test_a_rule_without_a_test_never_holds() -> None:
    assert not rule("A-1", Effect.FORBID, ()).holds(SITUATION)
    assert rule("A-1", Effect.FORBID).holds(SITUATION)


NO_CHINA = Test(Subject.ORIGIN, Operator.AVOIDS, members=at(CN))
NOT_CORE = Test(Subject.GRADE, Operator.AT_MOST, Grade.IMPORTANT)
CORE = Test(Subject.GRADE, Operator.AT_MOST, -1)


@pytest.mark.parametrize(
    ("unless", "holds"),
    [((), True), ((NO_CHINA,), False), ((NO_CHINA, NOT_CORE), False), ((NO_CHINA, CORE), True), ((CORE,), True)],
)
def test_a_rule_is_lifted_only_where_every_exemption_holds(unless: tuple[Test, ...], holds: bool) -> None:
    assert rule("A-1", Effect.FORBID, unless=unless).holds(SITUATION) is holds
    assert not rule("A-1", Effect.FORBID, (CORE,), unless=unless).holds(SITUATION)


def test_an_unknown_set_lifts_nothing() -> None:
    unknown = replace(plain(SG), collected=frozenset({SG, UNKNOWN}))
    lifted = rule("A-1", Effect.FORBID, unless=(Test(Subject.COLLECTED, Operator.AVOIDS, members=at(CN)),))
    assert lifted.holds(situation_of(facts(unknown), HERE, NOW_MS))
    assert not lifted.holds(situation_of(facts(plain(SG)), HERE, NOW_MS))


@settings(max_examples=100, deadline=None)
@given(st.lists(chances.any_tests, min_size=1, max_size=3), chances.facts, chances.movements)
def test_all_tests_of_a_rule_must_hold(tests: list[Test], told: Facts, movement: Movement) -> None:
    situation = situation_of(told, movement, NOW_MS)
    assert rule("A-1", Effect.FORBID, tuple(tests)).holds(situation) is all(test.holds(situation) for test in tests)
    assert rule("A-1", Effect.FORBID, (*ALWAYS, *tests)).holds(situation) is all(t.holds(situation) for t in tests)
