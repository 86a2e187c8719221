"""The tests of payloads as bits of one integer: which are true follows from a lookup per axis value and set member.

All that the law can see of a payload is which of these tests are true: two payloads with the same bits are the same to
it. `Test.holds` is the specification; tests hold this equal to it.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable

from orchestrator.policy.counters import CounterKind
from orchestrator.policy.facts import Facts
from orchestrator.policy.labels import RANK_AXES
from orchestrator.policy.packs import LABEL_SETS, RANKED, RISING, Situation, Subject, Test
from orchestrator.policy.vocabulary import UNKNOWN

_CRITICAL, _PROCESSED = Subject.CRITICAL_INFRASTRUCTURE, Subject.PROCESSED_IN


class TestBits:
    """An index over the tests of payloads. Immutable after construction."""

    __test__ = False  # not a test of pytest
    __slots__ = ("_counters", "_critical", "_processed", "_ranks", "_sets", "number", "rising")

    def __init__(self, tests: Iterable[Test]) -> None:
        self.number: dict[Test, int] = {test: index for index, test in enumerate(dict.fromkeys(tests))}
        """The place of each test's bit."""
        self.rising = 0
        """The bits of tests that only a higher label makes true."""
        for test, index in self.number.items():
            if test.operator in RISING:
                self.rising |= 1 << index
        # Only what some test reads, by the name of its field in a label; the two that stand in the facts apart.
        self._ranks = tuple(
            (subject.value, self._rank_bits(subject)) for subject in sorted(RANKED - {_CRITICAL}, key=_name)
        )
        self._sets = tuple(
            (subject.value, _SetBits(self._of(subject)))
            for subject in sorted(LABEL_SETS - {_PROCESSED}, key=_name)
            if self._of(subject)
        )
        self._critical = self._rank_bits(_CRITICAL)
        self._processed = _SetBits(self._of(_PROCESSED))
        kinds = sorted({test.counter for test in self.number if test.counter is not None}, key=lambda kind: kind.value)
        self._counters = tuple((kind, _CounterBits(kind, self._of(Subject.COUNTER))) for kind in kinds)

    def true(self, facts: Facts, now_ms: int) -> int:
        """Return the bits of the tests that hold of a payload."""
        label = facts.label
        true = self._critical[facts.critical_infrastructure] | self._processed.true(facts.processed_in)
        for name, by_value in self._ranks:
            true |= by_value[getattr(label, name)]
        for name, by_member in self._sets:
            true |= by_member.true(getattr(label, name))
        if self._counters:
            counts = facts.counts(now_ms)
            for kind, by_count in self._counters:
                true |= by_count.true(counts.get(kind))
        return true

    def _of(self, subject: Subject) -> dict[Test, int]:
        return {test: 1 << index for test, index in self.number.items() if test.subject is subject}

    def _rank_bits(self, subject: Subject) -> list[int]:
        axis = RANK_AXES.get(subject.value)
        values = range(3 if axis is None else len(axis))
        return [_holding(self._of(subject), Situation({subject: value}, {}, {})) for value in values]


class _SetBits:
    """The tests of one set: what each member makes true, or false."""

    __slots__ = ("_bits", "_empty", "_falling", "_known", "_other")

    def __init__(self, bits: dict[Test, int]) -> None:
        self._bits = bits
        subjects = {test.subject for test in bits}
        # What holds of the empty set: falling tests, unless their operator does not fit a set at all.
        self._empty = sum(_holding(bits, Situation({}, {one: frozenset()}, {})) for one in subjects)
        self._falling = sum(bit for test, bit in bits.items() if test.operator not in RISING)
        # Members that no test names are all alike.
        named = {member for test in bits for member in test.members} | {UNKNOWN}
        self._known = {member: self._member(member) for member in named}
        self._other = self._member("")

    def _member(self, member: str) -> tuple[int, int]:
        """Return the rising tests that the set of this member alone makes true, and the falling ones it makes false."""
        if not self._bits:
            return 0, 0
        subject = next(iter(self._bits)).subject
        holding = _holding(self._bits, Situation({}, {subject: frozenset({member})}, {}))
        return holding & ~self._falling, self._falling & ~holding

    def true(self, members: frozenset[str]) -> int:
        """Return the bits that hold of a set: a rising test for any one member, a falling one for all."""
        if not members:
            return self._empty
        risen, fallen = 0, 0
        for member in members:
            rises, falls = self._known.get(member, self._other)
            risen |= rises
            fallen |= falls
        return risen | self._falling & ~fallen


class _CounterBits:
    """The tests of one counter, by where a count lies between their thresholds."""

    __slots__ = ("_between", "_thresholds", "_unknown")

    def __init__(self, kind: CounterKind, bits: dict[Test, int]) -> None:
        mine = {test: bit for test, bit in bits.items() if test.counter is kind}
        self._thresholds = sorted({test.rank for test in mine})
        below = self._thresholds[0] - 1 if self._thresholds else 0
        self._between = [
            _holding(mine, Situation({}, {}, {kind: count})) for count in (below, *self._thresholds)
        ]
        self._unknown = _holding(mine, Situation({}, {}, {}))

    def true(self, count: int | None) -> int:
        """Return the bits that hold of a count, or of an unknown one."""
        return self._unknown if count is None else self._between[bisect_right(self._thresholds, count)]


def _holding(bits: dict[Test, int], situation: Situation) -> int:
    return sum(bit for test, bit in bits.items() if test.holds(situation))


def _name(subject: Subject) -> str:
    return subject.value


