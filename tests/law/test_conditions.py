"""What each comparison of a condition means, at its edges."""

from __future__ import annotations

import pytest

from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Operator, Subject, Test
from orchestrator.policy.places import Action, Leg, Movement
from tests.law.worlds import CN, DE, FR, SG, US, at, infer, place

HERE = infer(place("edge", DE), place("pool", CN))
LABEL = Effective(Personal.PERSONAL, Grade.GENERAL, Domestic.UNKNOWN, at(DE, FR))
SETS = (Operator.WITHIN, Operator.TOUCHES, Operator.AVOIDS)
RANKS = (Operator.AT_MOST, Operator.AT_LEAST)


@pytest.mark.parametrize(
    ("subject", "rank", "at_most", "at_least"),
    [
        (Subject.PERSONAL, Personal.NONE, False, True),
        (Subject.PERSONAL, Personal.PERSONAL, True, True),
        (Subject.PERSONAL, Personal.SENSITIVE, True, False),
        (Subject.GRADE, Grade.PUBLIC, False, True),
        (Subject.GRADE, Grade.GENERAL, True, True),
        (Subject.GRADE, Grade.IMPORTANT, True, False),
        (Subject.DOMESTIC, Domestic.YES, False, True),
        (Subject.DOMESTIC, Domestic.UNKNOWN, True, True),
    ],
)
def test_ranks_include_the_one_that_is_named(subject: Subject, rank: int, at_most: bool, at_least: bool) -> None:
    held = [Test(subject, operator, rank).holds(LABEL, HERE) for operator in RANKS]
    assert held == [at_most, at_least]


@pytest.mark.parametrize(
    ("members", "within", "touches", "avoids"),
    [
        (at(DE, FR), True, True, False),
        (at(DE, FR, SG), True, True, False),
        (at(DE), False, True, False),
        (at(DE, SG), False, True, False),
        (at(SG, US), False, False, True),
        (frozenset(), False, False, True),
    ],
)
def test_sets_are_compared_whole(members: frozenset[Jurisdiction], within: bool, touches: bool, avoids: bool) -> None:
    held = [Test(Subject.ORIGIN, operator, members=frozenset(members)).holds(LABEL, HERE) for operator in SETS]
    assert held == [within, touches, avoids]


@pytest.mark.parametrize("operator", SETS)
@pytest.mark.parametrize("members", [frozenset(), at(DE)])
def test_nothing_holds_of_an_empty_origin(operator: Operator, members: frozenset[Jurisdiction]) -> None:
    nobody = Effective(Personal.NONE, Grade.PUBLIC, Domestic.NO, frozenset())
    assert not Test(Subject.ORIGIN, operator, members=frozenset(members)).holds(nobody, HERE)


def test_source_and_target_are_the_whole_reach_of_a_place() -> None:
    for subject, soil, other in ((Subject.SOURCE, DE, CN), (Subject.TARGET, CN, DE)):
        assert Test(subject, Operator.WITHIN, members=at(soil)).holds(LABEL, HERE)
        assert not Test(subject, Operator.TOUCHES, members=at(other)).holds(LABEL, HERE)


@pytest.mark.parametrize("action", Action)
def test_an_action_is_one_of_a_list(action: Action) -> None:
    movement = Movement(action, Leg.TO_SINK, HERE.source, HERE.target)
    some = Test(Subject.ACTION, Operator.IN, members=frozenset({"infer", "return"}))
    assert some.holds(LABEL, movement) is (action in (Action.INFER, Action.RETURN))


@pytest.mark.parametrize("subject", Subject)
@pytest.mark.parametrize("operator", Operator)
def test_an_operator_that_does_not_fit_its_subject_never_holds(subject: Subject, operator: Operator) -> None:
    ranked = subject in (Subject.PERSONAL, Subject.GRADE, Subject.DOMESTIC)
    fits = operator in RANKS if ranked else operator is Operator.IN if subject is Subject.ACTION else operator in SETS
    every = Test(subject, operator, 2, frozenset({"infer", DE, FR, CN, "0", "1", "2"}))
    if not fits:
        assert not every.holds(LABEL, HERE)
