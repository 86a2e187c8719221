"""What one law can vary in a situation: an axis for each subject that its rules read, with a value for each class.

Values of a set are made of one member for each class that no list in the law tells apart, and `unknown`. Counts are
t - 1, t and t + 1 of each threshold, and unknown. `merged` keeps one value of those that no test of a scope tells
apart.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import chain, combinations
from typing import Any, Final

from orchestrator.policy.counters import CounterKind
from orchestrator.policy.facts import Declared
from orchestrator.policy.jurisdictions import ASSIGNED, Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Grade, Personal
from orchestrator.policy.packs import LABEL_SETS, RANKED, Operator, Subject, Test
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action, Leg
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Category, Purpose
from tests.third_opinion.cases import Case, Site
from tests.third_opinion.translate import ReadRule, owed

KINDS_MAX = 6
"""Up to here, every subset of the pathways that rules ask for; above, none, each alone, each pair and all."""
RANKS: Final[Mapping[Subject, type[Enum]]] = {
    Subject.PERSONAL: Personal,
    Subject.GRADE: Grade,
    Subject.DOMESTIC: Domestic,
    Subject.CLEAN: Clean,
    Subject.CRITICAL_INFRASTRUCTURE: Declared,
}
WORDS: Final[Mapping[Subject, tuple[str, ...]]] = {
    Subject.CATEGORIES: tuple(word.value for word in Category),
    Subject.PURPOSE: tuple(word.value for word in Purpose),
    Subject.ASSET: tuple(word.value for word in Asset),
}
IN_PAIRS: Final = (Subject.ORIGIN, Subject.CATEGORIES)
ENDS: Final = {"target": (Subject.TARGET, Subject.TARGET_SOIL), "source": (Subject.SOURCE, Subject.SOURCE_SOIL)}
MOVEMENTS: Final = (
    (Action.INFER, Leg.EDGE_TO_POOL),
    (Action.RETURN, Leg.POOL_TO_EDGE),
    (Action.STORE, Leg.TO_SINK),
    (Action.REUSE, Leg.TO_SINK),
    (Action.EXPORT, Leg.TO_SINK),
    (Action.EXPORT, Leg.ARTEFACT_TO_EDGE),
    (Action.INFER, Leg.SUBJECT_TO_EDGE),
    (Action.RETURN, Leg.EDGE_TO_SUBJECT),
)
"""Every movement that DESIGN names: the last three differ from the others in their leg alone."""

Value = Any
Values = dict[str, Value]


@dataclass(frozen=True, slots=True)
class Axis:
    """One thing that varies: a field of `Case`, or the name of a counter."""

    name: str
    values: tuple[Value, ...]
    extra: tuple[Value, ...] = ()
    """Values that vary alone and never together with others: empty sets, and pairs where the product has none."""


class Scope:
    """Some rules, and which values they tell apart. A second reading of the grammar, used to merge values only."""

    def __init__(self, rules: Iterable[ReadRule]) -> None:
        self.rules = tuple(rules)
        self.tests = tuple(dict.fromkeys(test for read in self.rules for test in read.tests()))
        self.any_of = tuple(dict.fromkeys(one for read in self.rules for one in read.rule.pathways))
        self.owed = tuple(dict.fromkeys(filter(None, (owed(read.rule) for read in self.rules))))

    def of(self, *subjects: Subject) -> tuple[Test, ...]:
        """Return the tests of these subjects."""
        return tuple(test for test in self.tests if test.subject in subjects)

    def reads(self, axis: str) -> bool:
        """Whether anything in scope depends on an axis."""
        if axis == "held":
            return bool(self.any_of)
        if axis == "notices":
            return bool(self.owed)
        if axis == "movement":
            return bool(self.of(Subject.ACTION, Subject.LEG))
        if axis in ENDS:
            return bool(self.of(*ENDS[axis]))
        named = {test.subject.value for test in self.tests}
        return axis in named or any(test.counter is not None and test.counter.value == axis for test in self.tests)

    def sign(self, axis: str, value: Value) -> Hashable:
        """Return which tests in scope this value makes true; what the house refuses is kept apart."""
        if axis == "held":
            return tuple(bool(value & one) for one in self.any_of)
        if axis == "notices":
            return tuple(one <= value for one in self.owed)
        if axis == "movement":
            action, leg = value
            return (
                tuple(action.value in test.members for test in self.of(Subject.ACTION)),
                tuple(leg.value in test.members for test in self.of(Subject.LEG)),
            )
        if axis in ENDS:
            reach, soil = ENDS[axis]
            return (
                tuple(_of_set(test, value.reach) for test in self.of(reach)),
                tuple(_of_set(test, value.soil) for test in self.of(soil)),
            )
        if axis in {kind.value for kind in CounterKind}:
            mine = (test for test in self.tests if test.counter is not None and test.counter.value == axis)
            return tuple(_of_number(test, value) for test in mine)
        subject = Subject(axis)
        if subject in RANKED:
            signs = tuple(_of_number(test, int(value)) for test in self.of(subject))
        else:
            signs = tuple(_of_set(test, value) for test in self.of(subject))
        return refused_by_the_house(axis, value), signs

    def merged(self, axis: Axis, *, answered: bool = False) -> tuple[Value, ...]:
        """Return the first value of each class of an axis; with `answered`, only of what packs are asked about."""
        found: dict[Hashable, Value] = {}
        for value in axis.values:
            if not (answered and refused_by_the_house(axis.name, value)):
                found.setdefault(self.sign(axis.name, value), value)
        return tuple(found.values())


def refused_by_the_house(axis: str, value: Value) -> bool:
    """Whether this value alone is refused before any pack is asked."""
    if axis == Subject.ORIGIN.value:
        return not value or UNKNOWN in value
    return value is Personal.UNKNOWN or value is Grade.UNKNOWN


def _of_number(test: Test, value: int | None) -> bool:
    if value is None:
        return test.operator is Operator.AT_LEAST
    if test.operator is Operator.AT_LEAST:
        return value >= test.rank
    return value < test.rank + (test.operator is Operator.AT_MOST)


def _of_set(test: Test, members: frozenset[str]) -> bool:
    """Whether some member may be outside of the list, or in it: every operator asks one of the two, or its contrary."""
    if UNKNOWN in members:
        return True
    if test.operator in (Operator.TOUCHES, Operator.AVOIDS):
        return bool(members & test.members)
    return bool(members - test.members)


def axes_of(rules: Sequence[ReadRule], home: Jurisdiction) -> list[Axis]:
    """Return an axis for each subject that these rules read."""
    scope = Scope(rules)
    found: list[Axis] = []
    for subject, words in RANKS.items():
        if scope.of(subject):
            found.append(Axis(subject.value, tuple(words)))
    for subject in sorted(LABEL_SETS, key=lambda one: one.value):
        if scope.of(subject):
            found.append(_label_axis(subject, scope.of(subject), home))
    if scope.reads("movement"):
        found.append(Axis("movement", MOVEMENTS if scope.of(Subject.LEG) else MOVEMENTS[:5]))
    for name, (reach, soil) in ENDS.items():
        if scope.reads(name):
            found.append(Axis(name, tuple(_sites(scope.of(reach), scope.of(soil), home))))
    for kind in CounterKind:
        thresholds = {test.rank for test in scope.tests if test.counter is kind}
        if thresholds:
            counts = sorted({max(0, rank + step) for rank in thresholds for step in (-1, 0, 1)})
            found.append(Axis(kind.value, (*counts, None)))
    if scope.any_of:
        found.append(Axis("held", tuple(_held(frozenset(chain.from_iterable(scope.any_of))))))
    if scope.owed:
        names = frozenset(chain.from_iterable(scope.owed))
        found.append(Axis("notices", tuple(_subsets(names))))
    return found


def representatives(universe: Iterable[str], tests: Iterable[Test], first: str) -> tuple[str, ...]:
    """Return one word for each class that no list tells apart: `first` for its own, else the first in order."""
    lists = [test.members for test in tests]
    found: dict[tuple[bool, ...], str] = {}
    for word in sorted(universe, key=lambda one: (one != first, one)):
        found.setdefault(tuple(word in members for members in lists), word)
    return tuple(found.values())


def _label_axis(subject: Subject, tests: Sequence[Test], home: Jurisdiction) -> Axis:
    plain = {Subject.PURPOSE: "inference", Subject.ASSET: "payload"}.get(subject, home)
    words = (*representatives(WORDS.get(subject, ASSIGNED), tests, plain), UNKNOWN)
    alone = tuple(frozenset({word}) for word in words)
    pairs = tuple(frozenset(pair) for pair in combinations(words, 2))
    empty = frozenset[str]()
    if subject is Subject.CATEGORIES:
        return Axis(subject.value, (empty, *alone, *pairs))
    if subject in IN_PAIRS:
        return Axis(subject.value, (*alone, *pairs), (empty,))
    return Axis(subject.value, alone, (empty, *pairs))


def _sites(reach: Sequence[Test], soil: Sequence[Test], home: Jurisdiction) -> Iterator[Site]:
    """Yield sites alone and in pairs. Where the ground is read, it is each part of what reaches in."""
    words = representatives(ASSIGNED, (*reach, *soil), home)
    for members in chain(([word] for word in words), combinations(words, 2)):
        reached = frozenset(members)
        grounds = [frozenset({member}) for member in members]
        yield Site(reached, grounds[0])
        if soil and len(members) == 2:
            yield Site(reached, grounds[1])
            yield Site(reached, reached)


def _held(kinds: frozenset[PathwayKind]) -> Iterator[frozenset[PathwayKind]]:
    ordered = sorted(kinds, key=lambda kind: kind.value)
    if len(ordered) <= KINDS_MAX:
        yield from _subsets(ordered)
        return
    for size in (0, 1, 2):
        yield from map(frozenset, combinations(ordered, size))
    yield kinds


def _subsets(members: Iterable[Value]) -> Iterator[frozenset[Value]]:
    ordered = list(members)
    for size in range(len(ordered) + 1):
        yield from map(frozenset, combinations(ordered, size))


def case_of(values: Values, home: Jurisdiction) -> Case:
    """Return the case that has these values on its axes."""
    counts = tuple((kind, values[kind.value]) for kind in CounterKind if values.get(kind.value) is not None)
    fields = {name: value for name, value in values.items() if name not in _COUNTERS}
    return Case(**fields, counts=counts).touching(home)


_COUNTERS: Final = frozenset(kind.value for kind in CounterKind)
