"""Packs: one jurisdiction's dated rules on one topic, as data.

A rule has a condition in a closed grammar: a list of tests that must all hold. There is no negation, no expression
language and no loop, so a condition cannot raise and always ends. Alternatives are written as several rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.policy.ids import PackId, RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Movement


class Effect(Enum):
    """What a rule does when its condition holds."""

    GRANT = "grant"
    FORBID = "forbid"
    REQUIRE = "require"
    """Forbid, unless every pathway that the rule names is held for this movement."""
    OBLIGE = "oblige"


class Mode(Enum):
    """Whether a pack is applied, or only evaluated and recorded."""

    ENFORCE = "enforce"
    SHADOW = "shadow"


class Confidence(Enum):
    """How sure the source of a rule is."""

    HIGH = "high"
    MEDIUM = "medium"
    LOW = "low"
    UNCONFIRMED = "unconfirmed"


class ObligationKind(Enum):
    """Duties that come with a permission. Each has a discharger; a duty without one is a refusal."""

    RETAIN = "retain"


@dataclass(frozen=True, slots=True)
class Obligation:
    """A duty and its argument, such as `retain` for `P6M` (an ISO 8601 duration)."""

    kind: ObligationKind
    argument: str


class Subject(Enum):
    """What a test looks at."""

    PERSONAL = "personal"
    GRADE = "grade"
    DOMESTIC = "domestic"
    ORIGIN = "origin"
    TARGET = "target"
    """Every jurisdiction of the receiving place: soil, access, operator, owners."""
    SOURCE = "source"
    """Every jurisdiction of the sending place."""
    ACTION = "action"


class Operator(Enum):
    """How a test compares."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"
    WITHIN = "within"
    """The set, which must not be empty, is part of the given one."""
    TOUCHES = "touches"
    """The set shares a member with the given one."""
    AVOIDS = "avoids"
    """The set, which must not be empty, shares no member with the given one."""
    IN = "in"


@dataclass(frozen=True, slots=True)
class Test:
    """One comparison. `rank` serves the ordered subjects, `members` the sets."""

    __test__ = False  # not a test of pytest

    subject: Subject
    operator: Operator
    rank: int = 0
    members: frozenset[str] = frozenset()

    def holds(self, label: Effective, movement: Movement) -> bool:
        """Whether the comparison is true here. An operator that does not fit its subject is false."""
        ranks = {Subject.PERSONAL: label.personal, Subject.GRADE: label.grade, Subject.DOMESTIC: label.domestic}
        if self.subject in ranks:
            if self.operator is Operator.AT_MOST:
                return ranks[self.subject] <= self.rank
            return self.operator is Operator.AT_LEAST and ranks[self.subject] >= self.rank
        if self.subject is Subject.ACTION:
            return self.operator is Operator.IN and movement.action.value in self.members
        return self._holds_set(_members(self.subject, label, movement))

    def _holds_set(self, found: frozenset[Jurisdiction]) -> bool:
        if self.operator is Operator.WITHIN:
            return bool(found) and found <= self.members
        if self.operator is Operator.TOUCHES:
            return bool(found & self.members)
        return self.operator is Operator.AVOIDS and bool(found) and not found & self.members


def _members(subject: Subject, label: Effective, movement: Movement) -> frozenset[Jurisdiction]:
    if subject is Subject.ORIGIN:
        return label.origin
    if subject is Subject.TARGET:
        return movement.target.reach()
    return movement.source.reach()


@dataclass(frozen=True, slots=True)
class Source:
    """Where a rule comes from."""

    instrument: str
    article: str
    dated: str
    """ISO date of the instrument."""


@dataclass(frozen=True, slots=True)
class Rule:
    """One sentence of law, in force while its pack is."""

    id: RuleId
    effect: Effect
    when: tuple[Test, ...]
    """All must hold. An empty list never holds: empty means no."""
    sentence: str
    """For people: what the rule says."""
    needs: str
    """For people: what would be needed, where the rule stands in the way; may be empty."""
    source: Source
    confidence: Confidence
    pathways: tuple[PathwayKind, ...] = ()
    """For `require`: every one must be held."""
    obligations: tuple[Obligation, ...] = ()
    """For `oblige`."""

    def holds(self, label: Effective, movement: Movement) -> bool:
        """Whether the condition holds of this payload and movement."""
        return bool(self.when) and all(test.holds(label, movement) for test in self.when)


@dataclass(frozen=True, slots=True)
class Pack:
    """One jurisdiction's (or one group's) rules on one topic."""

    id: PackId
    version: int
    topic: str
    jurisdictions: frozenset[Jurisdiction]
    effective_from_ms: int
    effective_until_ms: int | None
    mode: Mode
    rules: tuple[Rule, ...]

    def in_force(self, now_ms: int) -> bool:
        """Whether `now_ms` lies within the dates of the pack."""
        until_ms = self.effective_until_ms
        return self.effective_from_ms <= now_ms and (until_ms is None or now_ms < until_ms)
