"""Packs: one jurisdiction's dated rules on one topic, as data.

A rule has a condition in a closed grammar: a list of tests that must all hold, and a list of exemptions that, where
they all hold, lift the rule, as statutes do. There is no expression language and no loop, so a condition cannot raise
and always ends. Alternatives are written as several rules. What a test reads is a `Situation`: everything that is known
of a payload and its movement, in one frozen value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import Enum, StrEnum
from typing import Final

from orchestrator.policy.counters import CounterKind
from orchestrator.policy.ids import PackId, RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.vocabulary import UNKNOWN


class Effect(Enum):
    """What a rule does when its condition holds."""

    GRANT = "grant"
    FORBID = "forbid"
    REQUIRE = "require"
    """Forbid, unless the pathways that the rule names are held for this movement."""
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


class ObligationKind(StrEnum):
    """Duties that come with a permission. Each has a discharger; a duty without one is a refusal."""

    RETAIN = "retain"
    """Keep the records for an ISO 8601 duration, such as `P6M`."""
    PROVE_NO_DOMESTIC_INPUT = "prove_no_domestic_input"
    """Sign a manifest of every input of the request; the argument names the country."""
    DISCLOSE = "disclose"
    """Tell whoever reads the answer, in a response header."""
    LABEL = "label"
    """Mark the answer as made by a machine, in a response header."""
    NOTIFY = "notify"
    """The tenant has given its subjects the notice with this name; its version is recorded."""


@dataclass(frozen=True, slots=True)
class Obligation:
    """A duty and its argument, such as `retain` for `P6M` (an ISO 8601 duration)."""

    kind: ObligationKind
    argument: str


class Subject(Enum):
    """What a test looks at."""

    # Members are single objects: their identity hashes them in C, where Enum would call Python for each lookup.
    __hash__ = object.__hash__

    PERSONAL = "personal"
    GRADE = "grade"
    DOMESTIC = "domestic"
    CLEAN = "clean"
    CRITICAL_INFRASTRUCTURE = "critical_infrastructure"
    """Whether the tenant is an operator of critical information infrastructure."""
    CATEGORIES = "categories"
    ORIGIN = "origin"
    LOCATED = "located"
    COLLECTED = "collected"
    PURPOSE = "purpose"
    ASSET = "asset"
    PROCESSED_IN = "processed_in"
    """Jurisdictions of the places that produced the text."""
    TARGET = "target"
    """Every jurisdiction of the receiving place: soil, access, operator, owners."""
    TARGET_SOIL = "target_soil"
    """The ground of the receiving place."""
    SOURCE = "source"
    """Every jurisdiction of the sending place."""
    SOURCE_SOIL = "source_soil"
    """The ground of the sending place."""
    ACTION = "action"
    LEG = "leg"
    COUNTER = "counter"


RANKED: Final = frozenset(
    {
        Subject.PERSONAL,
        Subject.GRADE,
        Subject.DOMESTIC,
        Subject.CLEAN,
        Subject.CRITICAL_INFRASTRUCTURE,
    }
)
LABEL_SETS: Final = frozenset(
    {
        Subject.CATEGORIES,
        Subject.ORIGIN,
        Subject.LOCATED,
        Subject.COLLECTED,
        Subject.PURPOSE,
        Subject.ASSET,
        Subject.PROCESSED_IN,
    }
)
"""Sets that only grow when a label rises; `unknown` in one of them may be anything."""
MOVEMENT_SETS: Final = frozenset(
    {
        Subject.TARGET,
        Subject.TARGET_SOIL,
        Subject.SOURCE,
        Subject.SOURCE_SOIL,
        Subject.ACTION,
        Subject.LEG,
    }
)
"""What the movement says; no label changes it."""


class Operator(Enum):
    """How a test compares."""

    AT_MOST = "at_most"
    AT_LEAST = "at_least"
    BELOW = "below"
    """Of a counter: less than; an unknown counter is below nothing."""
    WITHIN = "within"
    """Every member is in the given list; not so when one is unknown."""
    BEYOND = "beyond"
    """Some member is outside of the given list, or unknown."""
    TOUCHES = "touches"
    """Some member is in the given list, or unknown."""
    AVOIDS = "avoids"
    """No member is in the given list; not so when one is unknown."""
    IN = "in"


# Looked up for every test of every rule.
_AT_MOST, _AT_LEAST, _BELOW = Operator.AT_MOST, Operator.AT_LEAST, Operator.BELOW
_WITHIN, _BEYOND, _TOUCHES, _AVOIDS = Operator.WITHIN, Operator.BEYOND, Operator.TOUCHES, Operator.AVOIDS

RISING: Final = frozenset({Operator.AT_LEAST, Operator.TOUCHES, Operator.BEYOND})
"""Operators that, once they hold, hold for every higher label. The others, once they cease to hold, stay so."""


HOME: Final = "HOME"
"""In a list of jurisdictions: the one that is asked. It lets one pack speak for many countries."""


@dataclass(frozen=True, slots=True)
class Situation:
    """Everything that a condition may read, by subject."""

    ranks: Mapping[Subject, int]
    sets: Mapping[Subject, frozenset[str]]
    counters: Mapping[CounterKind, int]
    """Only counts that hold now: one that is missing is unknown."""


@dataclass(frozen=True, slots=True)
class Test:
    """One comparison. `rank` serves the ordered subjects and counters, `members` the sets."""

    __test__ = False  # not a test of pytest

    subject: Subject
    operator: Operator
    rank: int = 0
    members: frozenset[str] = frozenset()
    counter: CounterKind | None = None

    def holds(self, situation: Situation) -> bool:
        """Whether the comparison is true here. An operator that does not fit its subject is false."""
        operator = self.operator
        if operator is _AT_MOST:
            rank = situation.ranks.get(self.subject)
            return rank is not None and rank <= self.rank
        if operator is _AT_LEAST:
            rank = situation.ranks.get(self.subject)
            return self._counted(situation) if rank is None else rank >= self.rank
        if operator is _BELOW:
            return self._counted(situation)
        found = situation.sets.get(self.subject)
        if found is None:
            return False
        if operator is _WITHIN:
            return found <= self.members and UNKNOWN not in found
        if operator is _TOUCHES:
            return not found.isdisjoint(self.members) or UNKNOWN in found
        if operator is _AVOIDS:
            return found.isdisjoint(self.members) and UNKNOWN not in found
        if operator is _BEYOND:
            return not found <= self.members or UNKNOWN in found
        return found <= self.members

    def _counted(self, situation: Situation) -> bool:
        if self.subject is not Subject.COUNTER or self.counter is None:
            return False
        count = situation.counters.get(self.counter)
        if self.operator is _AT_LEAST:
            return count is None or count >= self.rank
        return self.operator is _BELOW and count is not None and count < self.rank


def at_home(rules: tuple[Rule, ...], jurisdiction: Jurisdiction) -> tuple[Rule, ...]:
    """Return the rules as this jurisdiction reads them: with itself in the place of HOME."""
    return tuple(
        replace(
            rule,
            when=tuple(_test_at_home(test, jurisdiction) for test in rule.when),
            unless=tuple(_test_at_home(test, jurisdiction) for test in rule.unless),
        )
        for rule in rules
    )


def _test_at_home(test: Test, jurisdiction: Jurisdiction) -> Test:
    if HOME not in test.members:
        return test
    return replace(test, members=test.members - {HOME} | {jurisdiction})


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
    pathways: tuple[frozenset[PathwayKind], ...] = ()
    """For `require`: of every set, one kind must be held. An empty list, or an empty set, is never satisfied."""
    obligations: tuple[Obligation, ...] = ()
    """For `oblige`: what is owed where the rule holds. For a grant: the condition on which it is given, which is owed
    where no grant without one holds."""
    unless: tuple[Test, ...] = ()
    """For every effect but `grant`: where all of these hold, the rule does not. Tests of labels and counters only."""
    exemption: tuple[Obligation, ...] = ()
    """What is owed where `unless` lifts a rule that would have refused or obliged: the price of the exemption."""

    def applies(self, situation: Situation) -> bool:
        """Whether the rule speaks of this payload and movement, exempt or not."""
        for test in self.when:
            if not test.holds(situation):
                return False
        return bool(self.when)

    def lifted(self, situation: Situation) -> bool:
        """Whether the exemption of the rule holds."""
        return bool(self.unless) and all(test.holds(situation) for test in self.unless)

    def holds(self, situation: Situation) -> bool:
        """Whether the condition holds of this payload and movement."""
        return self.applies(situation) and not self.lifted(situation)


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

    def at(self, jurisdiction: Jurisdiction) -> Pack:
        """Return the pack as one of its jurisdictions reads it; itself when it does not speak of HOME."""
        if not any(HOME in test.members for rule in self.rules for test in (*rule.when, *rule.unless)):
            return self
        return replace(self, rules=at_home(self.rules, jurisdiction))

    def in_force(self, now_ms: int) -> bool:
        """Whether `now_ms` lies within the dates of the pack."""
        until_ms = self.effective_until_ms
        return self.effective_from_ms <= now_ms and (until_ms is None or now_ms < until_ms)
