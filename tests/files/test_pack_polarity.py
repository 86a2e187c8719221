"""No rule of a pack rewards a higher label, whatever it reads; the refusal shows two labels that prove it."""

from __future__ import annotations

import re

import pytest

from orchestrator.files.packs import WORDS
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.packs import (
    LABEL_SETS,
    MOVEMENT_SETS,
    RANKED,
    RISING,
    Effect,
    Operator,
    Situation,
    Subject,
    Test,
)
from tests.files.whole_pack import Edit, load_text, refused

VALUES = {
    Subject.PERSONAL: "personal",
    Subject.GRADE: "general",
    Subject.DOMESTIC: "yes",
    Subject.CLEAN: "raw",
    Subject.CRITICAL_INFRASTRUCTURE: "yes",
    Subject.CATEGORIES: "[health]",
    Subject.ORIGIN: "[DE]",
    Subject.LOCATED: "[DE]",
    Subject.COLLECTED: "[DE]",
    Subject.PURPOSE: "[inference]",
    Subject.ASSET: "[payload]",
    Subject.PROCESSED_IN: "[DE]",
    Subject.COUNTER: "500",
}
OPERATORS = {
    **dict.fromkeys(RANKED, (Operator.AT_MOST, Operator.AT_LEAST)),
    **dict.fromkeys(LABEL_SETS, (Operator.WITHIN, Operator.AVOIDS, Operator.TOUCHES, Operator.BEYOND)),
    Subject.COUNTER: (Operator.BELOW, Operator.AT_LEAST),
}
PLACES = {Effect.GRANT: 0, Effect.REQUIRE: 1, Effect.OBLIGE: 2, Effect.FORBID: 3}
CASES = [
    (effect, subject, operator)
    for effect in Effect
    for subject in VALUES
    for operator in OPERATORS[subject]
    if (effect is Effect.GRANT) is (operator in RISING)
]
SOILS = (Subject.TARGET, Subject.TARGET_SOIL, Subject.SOURCE, Subject.SOURCE_SOIL)
UNLIKE = re.compile(r"it would (not )?hold for \w+=(\w+), unlike (?:\w+=)?(\w+), which is lower\Z")
ADDED = re.compile(r"it would (begin|cease) to hold when an? (\w+) (outside )?of the list is added\Z")


def spelled(subject: Subject, operator: Operator) -> str:
    name = "name: us_health_persons_12m, " if subject is Subject.COUNTER else ""
    return f"- {subject.value}: {{{name}{operator.value}: {VALUES[subject]}}}"


def test_every_subject_is_a_label_a_counter_or_of_the_movement() -> None:
    assert {*VALUES, *MOVEMENT_SETS} == set(Subject)


@pytest.mark.parametrize(("effect", "subject", "operator"), CASES, ids=lambda part: part.value)
def test_raising_a_label_must_not_help_whatever_it_is(effect: Effect, subject: Subject, operator: Operator) -> None:
    rule = f"id: XX-{effect.value.upper()}"
    text, line = Edit("when:\n", f"when:\n      {spelled(subject, operator)}\n", rule).apply()
    error = refused(text)
    number = PLACES[effect]
    assert error.field == f"rules[{number}].when[0].{subject.value}.{operator.value}"
    assert error.line == line + 1
    shown = "a grant" if effect is Effect.GRANT else f"a rule whose effect is {effect.value}"
    fit, example = error.expected.split(f" in {shown}: ")
    grant = effect is Effect.GRANT
    fitting = {one.value for one in OPERATORS[subject] if (one in RISING) is not grant}
    assert set(fit.removeprefix("expected ").split(" or ")) == fitting
    assert_is_a_counter_example(example, subject, operator, grant=grant)


def assert_is_a_counter_example(example: str, subject: Subject, operator: Operator, *, grant: bool) -> None:
    """The two labels that a refusal names are told apart by the test in the wrong direction."""
    if subject in LABEL_SETS:
        found = ADDED.match(example)
        assert found is not None
        listed = VALUES[subject].strip("[]")
        test = Test(subject, operator, members=frozenset({listed}))
        # A member of the list for a test about it; the other one, where it is about what else there is.
        before = frozenset({listed}) if found[3] else frozenset({"other"})
        added = before | ({"other"} if found[3] else {listed})
        held = [test.holds(Situation({}, {subject: members}, {})) for members in (before, added)]
        assert (found[1], found[2]) == ("begin" if grant else "cease", subject.value)
        assert held == ([False, True] if grant else [True, False])
        return
    found = UNLIKE.match(example)
    assert found is not None
    assert (found[1] is None) is grant
    if subject is Subject.COUNTER:
        kind = CounterKind.US_HEALTH
        test = Test(subject, operator, int(VALUES[subject]), counter=kind)
        low, high = (Situation({}, {}, {kind: int(found[group])}) for group in (3, 2))
    else:
        values = WORDS[subject]
        test = Test(subject, operator, values[VALUES[subject]])
        assert values[found[3]] < values[found[2]]
        low, high = (Situation({subject: values[found[group]]}, {}, {}) for group in (3, 2))
    assert [test.holds(low), test.holds(high)] == ([False, True] if grant else [True, False])


# Each holds of every movement of the vectors, so that what they expect stays true.
MOVING = [
    *((subject, f"{operator}: [EEA, CN, CH, JP]") for subject in SOILS for operator in ("within", "touches")),
    *((subject, f"{operator}: [AQ]") for subject in SOILS for operator in ("avoids", "beyond")),
    (Subject.ACTION, "in: [infer, return, store]"),
    (Subject.LEG, "in: [edge-pool, sink, pool-edge]"),
]


@pytest.mark.parametrize("effect", Effect, ids=lambda effect: effect.value)
@pytest.mark.parametrize(("subject", "comparison"), MOVING, ids=lambda part: getattr(part, "value", part))
def test_what_the_movement_says_is_no_label_and_any_operator_fits_it(
    effect: Effect, subject: Subject, comparison: str
) -> None:
    rule = f"id: XX-{effect.value.upper()}"
    text, _ = Edit("when:\n", f"when:\n      - {subject.value}: {{{comparison}}}\n", rule).apply()
    test = load_text(text).rules[PLACES[effect]].when[0]
    assert (test.subject, test.operator.value) == (subject, comparison.partition(":")[0])
