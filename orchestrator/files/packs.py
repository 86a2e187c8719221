"""Packs: one jurisdiction's dated rules on one topic, from what people write to what `permit` reads.

A pack is refused unless it says what it seems to say: every rule has test vectors, which run here; a grant can only
become smaller and a refusal only larger when a label rises. A grant that names no action, purpose or asset is for
inference of a payload and the way back of its answer: empty never means everything.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

from msgspec import UNSET

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    ASSET_WORDS,
    CATEGORY_WORDS,
    PURPOSE_WORDS,
    read_country,
    read_day_ms,
    read_jurisdictions,
    read_labels,
    read_name,
    read_text,
    read_word,
    read_words,
    refuse_repeats,
)
from orchestrator.files.pack_shapes import (
    ActionComparison,
    AnyOfDocument,
    CounterComparison,
    Expect,
    LegComparison,
    ListDocument,
    ObligationDocument,
    PackDocument,
    RankComparison,
    RuleDocument,
    SetComparison,
    TestDocument,
    VectorDocument,
)
from orchestrator.files.polarity import check_polarity
from orchestrator.files.typed import FieldPath
from orchestrator.policy.counters import Counter
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Declared, Facts, situation_of
from orchestrator.policy.ids import EntityId, PackId, PlaceId, RuleId
from orchestrator.policy.jurisdictions import ASSIGNED, GROUPS, Jurisdiction
from orchestrator.policy.labels import (
    CLEAN_WORDS,
    DOMESTIC_WORDS,
    GRADE_WORDS,
    PERSONAL_WORDS,
    LabelSources,
    at_inference,
)
from orchestrator.policy.packs import (
    HOME,
    MOVEMENT_SETS,
    Effect,
    Obligation,
    ObligationKind,
    Operator,
    Pack,
    Rule,
    Source,
    Subject,
    Test,
    at_home,
)
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Purpose

HOUSE_PREFIX: Final = "TG-"
"""Rule ids of Tidegate itself. A pack for Togo needs another prefix."""

Lists = Mapping[str, frozenset[Jurisdiction]]

_RULE_ID = re.compile(r"(?=.{1,64}\Z)[A-Z][A-Z0-9]*(?:-[A-Za-z0-9.]+)+\Z")
_LIST_NAME = re.compile(r"(?=.{4,40}\Z)[A-Z][A-Z0-9]*(?:-[A-Z0-9]+)*\Z")
_DURATION = re.compile(r"P(?=[0-9])(?:[1-9][0-9]{0,3}Y)?(?:[1-9][0-9]{0,3}M)?(?:[1-9][0-9]{0,3}D)?\Z")
_ANSWER_TEXT = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?\Z")
_DECLARED_WORDS = {value.word: value for value in Declared}
WORDS: Final[dict[Subject, dict[str, int]]] = {
    Subject.PERSONAL: {word: int(value) for word, value in PERSONAL_WORDS.items()},
    Subject.GRADE: {word: int(value) for word, value in GRADE_WORDS.items()},
    Subject.DOMESTIC: {word: int(value) for word, value in DOMESTIC_WORDS.items()},
    Subject.CLEAN: {word: int(value) for word, value in CLEAN_WORDS.items()},
    Subject.CRITICAL_INFRASTRUCTURE: {word: int(value) for word, value in _DECLARED_WORDS.items()},
}
_SET_WORDS = {
    Subject.CATEGORIES: CATEGORY_WORDS,
    Subject.PURPOSE: PURPOSE_WORDS,
    Subject.ASSET: ASSET_WORDS,
}
_LEGS = {
    Action.INFER: Leg.EDGE_TO_POOL,
    Action.RETURN: Leg.POOL_TO_EDGE,
    Action.REUSE: Leg.TO_SINK,
    Action.STORE: Leg.TO_SINK,
    Action.EXPORT: Leg.TO_SINK,
}
# What a grant is for when it does not say.
_GRANT_DEFAULTS = (
    Test(Subject.ACTION, Operator.IN, members=frozenset({Action.INFER.value, Action.RETURN.value})),
    Test(
        Subject.PURPOSE, Operator.WITHIN, members=frozenset({Purpose.INFERENCE.value, Purpose.EMBEDDING.value})
    ),
    Test(Subject.ASSET, Operator.WITHIN, members=frozenset({Asset.PAYLOAD.value})),
)
_VECTOR_MS = 1 << 41
"""A moment at which the counters of a vector hold; the condition of a rule knows no time."""


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
    lists = _lists(document.lists)
    jurisdictions = _codes(document.jurisdictions, lists, ("jurisdictions",))
    first = min(_codes(document.jurisdictions[:1], lists, ("jurisdictions",)))
    rules = tuple(_rule(rule, lists, first, ("rules", index)) for index, rule in enumerate(document.rules))
    refuse_repeats((rule.id for rule in rules), ("rules",), "id")
    return Pack(
        id=PackId(read_name(document.id, ("id",))),
        version=document.revision,
        topic=read_name(document.topic, ("topic",)),
        jurisdictions=jurisdictions,
        effective_from_ms=effective_from_ms,
        effective_until_ms=effective_until_ms,
        mode=document.mode,
        rules=rules,
    )


def _lists(documents: Sequence[ListDocument]) -> Lists:
    found: dict[str, frozenset[Jurisdiction]] = {}
    for index, document in enumerate(documents):
        path: FieldPath = ("lists", index)
        name = document.name
        if _LIST_NAME.match(name) is None or name in ASSIGNED or name in GROUPS or name == HOME:
            expected = "expected a name in capitals of at least 4 characters, such as EU-ADEQUATE"
            raise DomainError((*path, "name"), expected)
        if name in found:
            raise DomainError((*path, "name"), "expected it once")
        read_day_ms(document.dated, (*path, "dated"))
        found[name] = read_jurisdictions(document.members, (*path, "members"))
    return found


def _codes(names: Sequence[str], lists: Lists, path: FieldPath) -> frozenset[Jurisdiction]:
    """Return the jurisdictions behind codes, group names and the pack's own lists."""
    if not names:
        raise DomainError(path, "expected at least one jurisdiction")
    refuse_repeats(names, path)
    found: frozenset[Jurisdiction] = frozenset()
    for index, name in enumerate(names):
        if name in lists:
            found |= lists[name]
            continue
        try:
            found |= read_jurisdictions((name,), path)
        except DomainError as refusal:
            known = f", or a list of this pack ({', '.join(sorted(lists))})" if lists else ""
            raise DomainError((*path, index), f"{refusal.expected}{known}") from None
    return found


def _rule(document: RuleDocument, lists: Lists, first: Jurisdiction, path: FieldPath) -> Rule:
    if _RULE_ID.match(document.id) is None:
        raise DomainError((*path, "id"), "expected an id such as EU-46 or CN-CBDF-03, at most 64 characters")
    if document.id.startswith(HOUSE_PREFIX):
        raise DomainError((*path, "id"), f"expected another prefix: {HOUSE_PREFIX} is of the house")
    if not document.when:
        raise DomainError((*path, "when"), "expected at least one test: a rule without one never holds")
    when = tuple(_test(test, lists, (*path, "when", index)) for index, test in enumerate(document.when))
    for index, test in enumerate(when):
        check_polarity(test, document.effect, WORDS, (*path, "when", index, test.subject.value))
    refuse_repeats(when, (*path, "when"))
    unless = _unless(document, lists, (*path, "unless"))
    if document.effect is Effect.GRANT:
        named = {test.subject for test in when}
        when += tuple(test for test in _GRANT_DEFAULTS if test.subject not in named)
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
        pathways=tuple(
            _any_of(needed, (*path, "requires", index)) for index, needed in enumerate(document.requires)
        ),
        obligations=tuple(
            _obligation(duty, document.effect, (*path, "obligations", index))
            for index, duty in enumerate(document.obligations)
        ),
        unless=unless,
        exemption=tuple(
            _obligation(duty, Effect.GRANT, (*path, "exemption_obligations", index))
            for index, duty in enumerate(document.exemption_obligations)
        ),
    )
    _run_vectors(rule, document.vectors, lists, first, (*path, "vectors"))
    return rule


def _unless(document: RuleDocument, lists: Lists, path: FieldPath) -> tuple[Test, ...]:
    if document.unless and document.effect is Effect.GRANT:
        raise DomainError(path, "expected no such field in a grant: what it does not cover it does not grant")
    unless = tuple(_test(test, lists, (*path, index)) for index, test in enumerate(document.unless))
    for index, test in enumerate(unless):
        here: FieldPath = (*path, index, test.subject.value)
        if test.subject in MOVEMENT_SETS or test.subject is Subject.PROCESSED_IN:
            raise DomainError(here, "expected a test of a label or a counter: a movement is told apart in `when`")
        # What lifts a rule must be lost when a label rises, as a grant is.
        check_polarity(test, Effect.GRANT, WORDS, here)
    refuse_repeats(unless, path)
    return unless


def _check_fields(document: RuleDocument, path: FieldPath) -> None:
    """Pathways belong to `require`, obligations to duties, grants and exemptions: elsewhere nobody would read them."""
    effect = document.effect
    if document.requires and effect is not Effect.REQUIRE:
        raise DomainError((*path, "requires"), "expected no such field in a rule whose effect is not require")
    if not document.requires and effect is Effect.REQUIRE:
        raise DomainError((*path, "requires"), "expected at least one, in a rule whose effect is require")
    if document.obligations and effect not in (Effect.OBLIGE, Effect.GRANT):
        expected = "expected no such field in a rule whose effect is neither oblige nor grant"
        raise DomainError((*path, "obligations"), expected)
    if document.exemption_obligations and not document.unless:
        raise DomainError((*path, "exemption_obligations"), "expected `unless` beside it: nothing lifts this rule")
    refuse_repeats(document.exemption_obligations, (*path, "exemption_obligations"))
    if not document.obligations and effect is Effect.OBLIGE:
        raise DomainError((*path, "obligations"), "expected at least one, in a rule whose effect is oblige")
    refuse_repeats(document.requires, (*path, "requires"))
    refuse_repeats(document.obligations, (*path, "obligations"))


def _any_of(document: PathwayKind | AnyOfDocument, path: FieldPath) -> frozenset[PathwayKind]:
    if isinstance(document, PathwayKind):
        return frozenset({document})
    if not document.any_of:
        raise DomainError((*path, "any_of"), "expected at least one: none can be held of an empty list")
    refuse_repeats(document.any_of, (*path, "any_of"))
    return frozenset(document.any_of)


def _obligation(document: ObligationDocument, effect: Effect, path: FieldPath) -> Obligation:
    given = [kind for kind in ObligationKind if getattr(document, kind.value) is not UNSET]
    if len(given) != 1:
        raise DomainError(path, "expected exactly one of " + ", ".join(kind.value for kind in ObligationKind))
    kind = given[0]
    argument = str(getattr(document, kind.value))
    path = (*path, kind.value)
    if kind is ObligationKind.RETAIN and _DURATION.match(argument) is None:
        raise DomainError(path, "expected years, months and days of ISO 8601, such as P6M or P1Y6M")
    if kind is ObligationKind.PROVE_NO_DOMESTIC_INPUT:
        read_country(argument, path)
    if kind is ObligationKind.NOTIFY:
        read_name(argument, path)
        if effect is not Effect.OBLIGE:
            # A duty that can refuse must be closed upwards; grants and exemptions are closed downwards.
            raise DomainError(path, "expected this duty in a rule whose effect is oblige")
    if kind in (ObligationKind.DISCLOSE, ObligationKind.LABEL) and _ANSWER_TEXT.match(argument) is None:
        raise DomainError(path, "expected lower-case letters, digits and hyphens, at most 64: it becomes a header")
    return Obligation(kind, argument)


def _test(document: TestDocument, lists: Lists, path: FieldPath) -> Test:
    given = [subject for subject in Subject if getattr(document, subject.value) is not UNSET]
    if len(given) != 1:
        raise DomainError(path, "expected exactly one of " + ", ".join(subject.value for subject in Subject))
    subject = given[0]
    comparison = getattr(document, subject.value)
    path = (*path, subject.value)
    if isinstance(comparison, ActionComparison | LegComparison):
        chosen: Sequence[Action | Leg]
        chosen = comparison.actions if isinstance(comparison, ActionComparison) else comparison.legs
        if not chosen:
            raise DomainError((*path, "in"), f"expected at least one {subject.value}")
        refuse_repeats(chosen, (*path, "in"))
        return Test(subject, Operator.IN, members=frozenset(one.value for one in chosen))
    return _comparison(subject, comparison, lists, path)


def _comparison(
    subject: Subject, comparison: RankComparison | SetComparison | CounterComparison, lists: Lists, path: FieldPath
) -> Test:
    fields = [name for name in comparison.__struct_fields__ if name != "name"]
    given = [name for name in fields if getattr(comparison, name) is not UNSET]
    if len(given) != 1:
        raise DomainError(path, "expected exactly one of " + ", ".join(fields))
    operator, value = Operator(given[0]), getattr(comparison, given[0])
    path = (*path, operator.value)
    if isinstance(comparison, CounterComparison):
        return Test(subject, operator, rank=value, counter=comparison.name)
    if isinstance(comparison, RankComparison):
        return Test(subject, operator, rank=read_word(value, WORDS[subject], path))
    if subject in _SET_WORDS:
        if not value:
            raise DomainError(path, "expected at least one")
        allowed = [word for word in _SET_WORDS[subject] if word != UNKNOWN]
        return Test(subject, operator, members=read_words(value, allowed, path))
    home = frozenset({HOME}) & frozenset(value)
    named = tuple(name for name in value if name != HOME)
    refuse_repeats(value, path)
    codes = _codes(named, lists, path) if named or not home else frozenset()
    return Test(subject, operator, members=codes | home)


def _run_vectors(
    rule: Rule, vectors: tuple[VectorDocument, ...], lists: Lists, first: Jurisdiction, path: FieldPath
) -> None:
    for expect in Expect:
        if not any(vector.expect is expect for vector in vectors):
            raise DomainError(path, f"expected at least one vector of rule {rule.id} with expect: {expect.value}")
    for index, vector in enumerate(vectors):
        here: FieldPath = (*path, index)
        facts, movement = _vector(vector, lists, here)
        asked = first if vector.asked is UNSET else read_country(vector.asked, (*here, "asked"))
        holds = at_home((rule,), asked)[0].holds(situation_of(facts, movement, _VECTOR_MS))
        if holds is not (vector.expect is Expect.HOLDS):
            wrong = "hold" if vector.expect is Expect.HOLDS else "not hold"
            raise DomainError(
                (*here, "expect"), f"expected rule {rule.id} to {wrong} for vector {index} (counted from 0)"
            )


def _vector(vector: VectorDocument, lists: Lists, path: FieldPath) -> tuple[Facts, Movement]:
    declared = at_inference(read_labels(vector.label, (*path, "label")))
    source = _place("from", _codes(vector.source, lists, (*path, "from")), frozenset())
    access = _codes(vector.target_access, lists, (*path, "target_access")) if vector.target_access else frozenset()
    target = _place("target", _codes(vector.target, lists, (*path, "target")), access)
    leg = _LEGS[vector.action] if vector.leg is UNSET else vector.leg
    critical = vector.critical_infrastructure
    processed = vector.processed_in
    facts = Facts(
        tenant=source.operator,
        label=LabelSources(declared=declared).effective(),
        processed_in=_codes(processed, lists, (*path, "processed_in")) if processed else frozenset(),
        critical_infrastructure=Declared.UNKNOWN if critical is UNSET else Declared(int(critical)),
        counters=tuple(Counter(kind, count, _VECTOR_MS, _VECTOR_MS + 1) for kind, count in vector.counters.items()),
    )
    return facts, Movement(vector.action, leg, source, target)


def _place(name: str, soil: frozenset[Jurisdiction], access: frozenset[Jurisdiction]) -> Place:
    """A place that stands exactly there and is read from exactly there, and from `access`."""
    operator = Entity(EntityId(name), min(soil))
    accessors = tuple(Entity(EntityId(f"{name}-{code.lower()}"), code) for code in sorted(access))
    return Place(PlaceId(name), infers=soil, stores=frozenset(), accessors=accessors, operator=operator)
