"""Packs: one jurisdiction's dated rules on one topic, from what people write to what `permit` reads.

A pack is refused unless it says what it seems to say: every rule has test vectors, which run here; a grant can only
become smaller and a refusal only larger when a label rises; a test compares what can be compared.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

import msgspec
from msgspec import UNSET, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    Count,
    LabelsDocument,
    Text,
    Version,
    Written,
    read_day_ms,
    read_jurisdictions,
    read_labels,
    read_name,
    read_text,
    read_word,
    refuse_repeats,
)
from orchestrator.files.typed import FieldPath
from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import EntityId, PackId, PlaceId, RuleId
from orchestrator.policy.labels import DOMESTIC_WORDS, GRADE_WORDS, PERSONAL_WORDS, LabelSources
from orchestrator.policy.packs import (
    Confidence,
    Effect,
    Mode,
    Obligation,
    ObligationKind,
    Operator,
    Pack,
    Rule,
    Source,
    Subject,
    Test,
)
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action, Leg, Movement, Place

HOUSE_PREFIX: Final = "TG-"
"""Rule ids of Tidegate itself. A pack for Togo needs another prefix."""

_RULE_ID = re.compile(r"(?=.{1,64}\Z)[A-Z][A-Z0-9]*(?:-[A-Za-z0-9]+)+\Z")
_DURATION = re.compile(r"P(?=[0-9])(?:[1-9][0-9]{0,3}Y)?(?:[1-9][0-9]{0,3}M)?(?:[1-9][0-9]{0,3}D)?\Z")
_WORDS: dict[Subject, dict[str, int]] = {
    Subject.PERSONAL: {word: int(value) for word, value in PERSONAL_WORDS.items()},
    Subject.GRADE: {word: int(value) for word, value in GRADE_WORDS.items()},
    Subject.DOMESTIC: {word: int(value) for word, value in DOMESTIC_WORDS.items()},
}
_LEGS = {
    Action.INFER: Leg.EDGE_TO_POOL,
    Action.RETURN: Leg.POOL_TO_EDGE,
    Action.REUSE: Leg.EDGE_TO_POOL,
    Action.STORE: Leg.TO_SINK,
    Action.EXPORT: Leg.TO_SINK,
}


class Expect(Enum):
    """What a test vector expects of the condition of its rule."""

    HOLDS = "holds"
    NOT = "not"


class RankComparison(Written, frozen=True):
    """A comparison on an ordered axis; exactly one of the two."""

    at_most: str | UnsetType = UNSET
    at_least: str | UnsetType = UNSET


class SetComparison(Written, frozen=True):
    """A comparison of a set of jurisdictions; exactly one of the three."""

    within: tuple[str, ...] | UnsetType = UNSET
    touches: tuple[str, ...] | UnsetType = UNSET
    avoids: tuple[str, ...] | UnsetType = UNSET


class ActionComparison(Written, frozen=True):
    """The actions for which a test holds."""

    actions: tuple[Action, ...] = msgspec.field(name="in")


class TestDocument(Written, frozen=True):
    """One test: exactly one subject with its comparison."""

    __test__ = False  # not a test of pytest

    personal: RankComparison | UnsetType = UNSET
    grade: RankComparison | UnsetType = UNSET
    domestic: RankComparison | UnsetType = UNSET
    origin: SetComparison | UnsetType = UNSET
    target: SetComparison | UnsetType = UNSET
    source: SetComparison | UnsetType = UNSET
    action: ActionComparison | UnsetType = UNSET


class SourceDocument(Written, frozen=True):
    """Where a rule comes from; `dated` is the date of the instrument."""

    instrument: Text
    article: Text
    dated: str


class ObligationDocument(Written, frozen=True):
    """A duty: keep the records for an ISO 8601 duration in years, months and days."""

    retain: str


class VectorDocument(Written, frozen=True):
    """A case that shows what the condition of a rule means: a label, a movement, and whether the condition holds."""

    label: LabelsDocument
    source: tuple[str, ...] = msgspec.field(name="from")
    target: tuple[str, ...]
    action: Action
    expect: Expect


class RuleDocument(Written, frozen=True):
    """One sentence of law."""

    id: str
    effect: Effect
    when: tuple[TestDocument, ...]
    sentence: Text
    source: SourceDocument
    confidence: Confidence
    vectors: tuple[VectorDocument, ...]
    needs: Text = ""
    requires: tuple[PathwayKind, ...] = ()
    obligations: tuple[ObligationDocument, ...] = ()


class PackDocument(Written, frozen=True):
    """A pack. `version` is the version of the format, `revision` that of the pack."""

    version: Version
    id: str
    title: Text
    topic: str
    jurisdictions: tuple[str, ...]
    effective_from: str
    mode: Mode
    rules: tuple[RuleDocument, ...]
    effective_until: str | UnsetType = UNSET
    """First day on which it is no longer in force."""
    revision: Count = 1


def pack_of(document: PackDocument) -> Pack:
    """Return the pack, once every vector of every rule came out as expected. Raises DomainError."""
    read_text(document.title, ("title",))
    if not document.rules:
        raise DomainError(("rules",), "expected at least one rule")
    effective_from_ms = read_day_ms(document.effective_from, ("effective_from",))
    effective_until_ms = None
    if document.effective_until is not UNSET:
        effective_until_ms = read_day_ms(document.effective_until, ("effective_until",))
        if effective_until_ms <= effective_from_ms:
            raise DomainError(("effective_until",), "expected a date after effective_from")
    rules = tuple(_rule(rule, ("rules", index)) for index, rule in enumerate(document.rules))
    refuse_repeats((rule.id for rule in rules), ("rules",), "id")
    return Pack(
        id=PackId(read_name(document.id, ("id",))),
        version=document.revision,
        topic=read_name(document.topic, ("topic",)),
        jurisdictions=read_jurisdictions(document.jurisdictions, ("jurisdictions",)),
        effective_from_ms=effective_from_ms,
        effective_until_ms=effective_until_ms,
        mode=document.mode,
        rules=rules,
    )


def _rule(document: RuleDocument, path: FieldPath) -> Rule:
    if _RULE_ID.match(document.id) is None:
        raise DomainError((*path, "id"), "expected an id such as EU-46 or CN-CBDF-03, at most 64 characters")
    if document.id.startswith(HOUSE_PREFIX):
        raise DomainError((*path, "id"), f"expected another prefix: {HOUSE_PREFIX} is of the house")
    if not document.when:
        raise DomainError((*path, "when"), "expected at least one test: a rule without one never holds")
    when = tuple(_test(test, (*path, "when", index)) for index, test in enumerate(document.when))
    for index, test in enumerate(when):
        _check_polarity(test, document.effect, (*path, "when", index))
    _check_fields(document, path)
    read_day_ms(document.source.dated, (*path, "source", "dated"))
    rule = Rule(
        id=RuleId(document.id),
        effect=document.effect,
        when=when,
        sentence=read_text(document.sentence, (*path, "sentence")),
        needs=read_text(document.needs, (*path, "needs")) if document.needs else "",
        source=Source(
            read_text(document.source.instrument, (*path, "source", "instrument")),
            read_text(document.source.article, (*path, "source", "article")),
            document.source.dated,
        ),
        confidence=document.confidence,
        pathways=document.requires,
        obligations=tuple(
            _obligation(duty, (*path, "obligations", index)) for index, duty in enumerate(document.obligations)
        ),
    )
    _run_vectors(rule, document.vectors, (*path, "vectors"))
    return rule


def _check_fields(document: RuleDocument, path: FieldPath) -> None:
    """Pathways belong to `require` and obligations to `oblige`: elsewhere they would be read by nobody."""
    for field, given, effect in (
        ("requires", document.requires, Effect.REQUIRE),
        ("obligations", document.obligations, Effect.OBLIGE),
    ):
        if given and document.effect is not effect:
            raise DomainError((*path, field), f"expected no such field in a rule whose effect is not {effect.value}")
        if not given and document.effect is effect:
            raise DomainError((*path, field), f"expected at least one, in a rule whose effect is {effect.value}")
    refuse_repeats(document.requires, (*path, "requires"))
    refuse_repeats(document.obligations, (*path, "obligations"))


def _obligation(document: ObligationDocument, path: FieldPath) -> Obligation:
    if _DURATION.match(document.retain) is None:
        raise DomainError((*path, "retain"), "expected years, months and days of ISO 8601, such as P6M or P1Y6M")
    return Obligation(ObligationKind.RETAIN, document.retain)


def _test(document: TestDocument, path: FieldPath) -> Test:
    given = [subject for subject in Subject if getattr(document, subject.value) is not UNSET]
    if len(given) != 1:
        raise DomainError(path, "expected exactly one of " + ", ".join(subject.value for subject in Subject))
    subject = given[0]
    comparison = getattr(document, subject.value)
    path = (*path, subject.value)
    if isinstance(comparison, ActionComparison):
        if not comparison.actions:
            raise DomainError((*path, "in"), "expected at least one action")
        refuse_repeats(comparison.actions, (*path, "in"))
        return Test(subject, Operator.IN, members=frozenset(action.value for action in comparison.actions))
    operators = [
        operator
        for operator in Operator
        if operator.value in comparison.__struct_fields__ and getattr(comparison, operator.value) is not UNSET
    ]
    if len(operators) != 1:
        raise DomainError(path, "expected exactly one of " + ", ".join(comparison.__struct_fields__))
    operator = operators[0]
    value = getattr(comparison, operator.value)
    path = (*path, operator.value)
    if isinstance(comparison, RankComparison):
        return Test(subject, operator, rank=read_word(value, _WORDS[subject], path))
    return Test(subject, operator, members=read_jurisdictions(value, path))


def _check_polarity(test: Test, effect: Effect, path: FieldPath) -> None:
    """Raise unless raising the label can only take a grant away, and can only bring a refusal or a duty.

    An origin rises by gaining members, so `touches` may start to hold, and `within` and `avoids` may cease to.
    """
    rising = {Operator.AT_LEAST, Operator.TOUCHES}
    subject = test.subject
    if subject not in _WORDS and subject is not Subject.ORIGIN:
        return
    grant = effect is Effect.GRANT
    if grant is not (test.operator in rising):
        return
    if subject in _WORDS:
        fitting = "at_most" if grant else "at_least"
    else:
        fitting = "within or avoids" if grant else "touches"
    kind = "a grant" if grant else f"a rule whose effect is {effect.value}"
    raise DomainError(
        (*path, subject.value, test.operator.value), f"expected {fitting} in {kind}{_counter_example(test, grant)}"
    )


def _counter_example(test: Test, grant: bool) -> str:
    """Say which higher label is treated better than which lower one; nothing where the test always holds."""
    if test.subject is Subject.ORIGIN:
        member = "outside the list" if test.operator is Operator.WITHIN else "of the list"
        change = "begin" if grant else "cease"
        return f": it would {change} to hold when an origin {member} is added"
    words = list(_WORDS[test.subject])
    lower = test.rank if test.operator is Operator.AT_MOST else test.rank - 1
    if not 0 <= lower < len(words) - 1:
        return ""
    name = test.subject.value
    change = "hold for" if grant else "not hold for"
    return f": it would {change} {name}={words[lower + 1]}, unlike {name}={words[lower]}, which is lower"


def _run_vectors(rule: Rule, vectors: tuple[VectorDocument, ...], path: FieldPath) -> None:
    for expect in Expect:
        if not any(vector.expect is expect for vector in vectors):
            raise DomainError(path, f"expected at least one vector of rule {rule.id} with expect: {expect.value}")
    for index, vector in enumerate(vectors):
        here: FieldPath = (*path, index)
        label = LabelSources(declared=read_labels(vector.label, (*here, "label"))).effective()
        movement = Movement(
            vector.action,
            _LEGS[vector.action],
            _place("from", vector.source, (*here, "from")),
            _place("target", vector.target, (*here, "target")),
        )
        if rule.holds(label, movement) is not (vector.expect is Expect.HOLDS):
            wrong = "hold" if vector.expect is Expect.HOLDS else "not hold"
            raise DomainError(
                (*here, "expect"), f"expected rule {rule.id} to {wrong} for vector {index} (counted from 0)"
            )


def _place(name: str, jurisdictions: tuple[str, ...], path: FieldPath) -> Place:
    """A place that reaches exactly these jurisdictions."""
    soil = read_jurisdictions(jurisdictions, path)
    operator = Entity(EntityId(name), min(soil))
    return Place(PlaceId(name), infers=soil, stores=frozenset(), accessors=(), operator=operator)
