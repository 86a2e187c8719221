"""Polarity: a rule may not reward a higher label. Checked when a pack loads, with a counter-example.

A grant is closed downwards: raising a label can only take it away. A refusal, a requirement and a duty are closed
upwards: raising a label can only bring them. An ordered axis rises by its values, a set by gaining members, a counter
by counting. What the movement says is not a label, and any operator fits it.
"""

from __future__ import annotations

from collections.abc import Mapping

from orchestrator.files.domain_error import DomainError
from orchestrator.files.typed import FieldPath
from orchestrator.policy.packs import LABEL_SETS, MOVEMENT_SETS, RISING, Effect, Operator, Subject, Test

_FITTING = {
    "rank": {True: "at_most", False: "at_least"},
    "set": {True: "within or avoids", False: "touches or beyond"},
    "counter": {True: "below", False: "at_least"},
}


def check_polarity(
    test: Test, effect: Effect, words: Mapping[Subject, Mapping[str, int]], path: FieldPath
) -> None:
    """Raise DomainError unless the test fits the effect of its rule. `words` names the values of each axis."""
    if test.subject in MOVEMENT_SETS:
        return
    grant = effect is Effect.GRANT
    if grant is not (test.operator in RISING):
        return
    kind = "set" if test.subject in LABEL_SETS else "counter" if test.subject is Subject.COUNTER else "rank"
    rule = "a grant" if grant else f"a rule whose effect is {effect.value}"
    example = _counter_example(test, grant, words)
    raise DomainError((*path, test.operator.value), f"expected {_FITTING[kind][grant]} in {rule}{example}")


def _counter_example(test: Test, grant: bool, words: Mapping[Subject, Mapping[str, int]]) -> str:
    """Say which higher label is treated better than which lower one; nothing where the test always holds."""
    name = test.subject.value
    if test.subject in LABEL_SETS:
        outside = test.operator in (Operator.WITHIN, Operator.BEYOND)
        member = "outside of the list" if outside else "of the list"
        change = "begin" if grant else "cease"
        article = "an" if name[0] in "aeiou" else "a"
        return f": it would {change} to hold when {article} {name} {member} is added"
    change = "hold for" if grant else "not hold for"
    if test.subject is Subject.COUNTER and test.counter is not None:
        above, under = test.rank, test.rank - 1
        return f": it would {change} {test.counter.value}={above}, unlike {under}, which is lower"
    values = list(words[test.subject])
    lower = test.rank if test.operator is Operator.AT_MOST else test.rank - 1
    if not 0 <= lower < len(values) - 1:
        return ""
    return f": it would {change} {name}={values[lower + 1]}, unlike {name}={values[lower]}, which is lower"
