"""Packs as Cedar policies: a reading of the law that shares no code with ours.

The law of one jurisdiction becomes one policy set. Each grant is a `permit`; each forbid, each requirement and each
notice that is owed is a `forbid ... when ... unless`; what the house refuses before any pack is asked is a `forbid` as
well. All-of over jurisdictions decomposes: a movement is allowed when every touched jurisdiction, asked by itself, and
the house allow it. So one `permit` never opens another country's law: it is not in that policy set.

Packs, rules and tests are read as data. Nothing here asks them whether they hold.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from orchestrator.policy.bundle import Law
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Grade, Personal
from orchestrator.policy.packs import (
    HOME,
    LABEL_SETS,
    RANKED,
    Effect,
    Mode,
    ObligationKind,
    Operator,
    Pack,
    Rule,
    Subject,
    Test,
)
from orchestrator.policy.places import Action
from tests.third_opinion.cases import Case, context_text

HOUSE_ATTRIBUTES: Final = ("personal", "grade", "origin", "source_soil", "target_soil", "now_ms")
"""What the house's own policies read, whatever the packs do."""
_PLACES: Final = (Subject.TARGET, Subject.TARGET_SOIL, Subject.SOURCE, Subject.SOURCE_SOIL)
_NEVER: Final = "false"


@dataclass(frozen=True, slots=True)
class ReadRule:
    """A rule as one jurisdiction reads it: with itself in the place of HOME, in the condition and in the exemptions."""

    rule: Rule
    pack: Pack
    counts: bool
    """Whether a grant of this rule counts: its signer may grant under this law."""
    when: tuple[Test, ...]
    unless: tuple[Test, ...]

    def tests(self) -> tuple[Test, ...]:
        """Every test of the rule."""
        return (*self.when, *self.unless)


@dataclass(frozen=True, slots=True)
class Translation:
    """The law of one jurisdiction in Cedar, and what its requests must tell."""

    jurisdiction: Jurisdiction
    policies: str
    schema: str
    attributes: tuple[str, ...]
    """Of the context, apart from counters."""
    counters: tuple[CounterKind, ...]
    rules: frozenset[str]
    """The ids of the packs' rules that became policies."""

    def request(self, case: Case) -> dict[str, str]:
        """Return Cedar's request about a case."""
        return request(case.movement[0], context_text(case, self.attributes, self.counters))


def request(action: Action, context: str) -> dict[str, str]:
    """Return one request to move something, with its context as JSON."""
    return {
        "principal": 'Tenant::"tenant"',
        "action": f'Action::"{action.value}"',
        "resource": 'Place::"target"',
        "context": context,
    }


def read_rules(law: Law, jurisdiction: Jurisdiction) -> tuple[ReadRule, ...]:
    """Return the enforced rules that speak for a jurisdiction, at whatever time."""
    found: list[ReadRule] = []
    for admitted in law.packs:
        pack = admitted.pack
        if jurisdiction not in pack.jurisdictions or pack.mode is not Mode.ENFORCE:
            continue
        for rule in pack.rules:
            when = tuple(_read(test, jurisdiction) for test in rule.when)
            unless = tuple(_read(test, jurisdiction) for test in rule.unless)
            found.append(ReadRule(rule, pack, jurisdiction in admitted.grants_for, when, unless))
    return tuple(found)


def _read(test: Test, jurisdiction: Jurisdiction) -> Test:
    members = frozenset(jurisdiction if member == HOME else member for member in test.members)
    return Test(test.subject, test.operator, test.rank, members, test.counter)


def translate(law: Law, jurisdiction: Jurisdiction) -> Translation:
    """Return the law of one jurisdiction as Cedar has it."""
    rules = read_rules(law, jurisdiction)
    tests = [test for read in rules for test in read.tests()]
    named = {test.subject.value for test in tests} - {Subject.ACTION.value, Subject.COUNTER.value}
    if any(read.rule.pathways for read in rules):
        named.add("pathways")
    if any(owed(read.rule) for read in rules):
        named.add("notices")
    attributes = (*HOUSE_ATTRIBUTES, *sorted(named.difference(HOUSE_ATTRIBUTES)))
    kinds = {test.counter for test in tests if test.counter is not None}
    counters = tuple(sorted(kinds, key=lambda kind: kind.value))
    written = [(read.rule.id, policy) for read in rules for policy in _policy_of(read)]
    return Translation(
        jurisdiction,
        "\n".join((*_house(law), *(policy for _, policy in written))),
        _schema(attributes, counters),
        attributes,
        counters,
        frozenset(name for name, _ in written),
    )


def owed(rule: Rule) -> frozenset[str]:
    """Return the notices without which an obliging rule refuses."""
    if rule.effect is not Effect.OBLIGE:
        return frozenset()
    return frozenset(duty.argument for duty in rule.obligations if duty.kind is ObligationKind.NOTIFY)


def _schema(attributes: Iterable[str], counters: Iterable[CounterKind]) -> str:
    types = [f"  {name}: {_type(name)}," for name in attributes]
    types += [f"  {kind.value}: Counter," for kind in counters]
    actions = ", ".join(f'"{action.value}"' for action in Action)
    return "\n".join(
        (
            "entity Tenant;",
            "entity Place;",
            "type Counter = { known: Bool, value: Long };",
            "type Situation = {",
            *types,
            "};",
            f"action {actions} appliesTo {{ principal: Tenant, resource: Place, context: Situation }};",
        )
    )


def _type(name: str) -> str:
    if name == "now_ms" or name in {subject.value for subject in RANKED}:
        return "Long"
    return "String" if name == Subject.LEG.value else "Set<String>"


def _house(law: Law) -> Iterable[str]:
    horizons = law.horizons
    regulated = f"(context.personal >= {int(Personal.PERSONAL)} || context.grade > {int(Grade.GENERAL)})"
    for name, when in (
        ("TG-EXPIRED", f"context.now_ms >= {horizons.not_after_ms}"),
        ("TG-REGULATED-EXPIRED", f"context.now_ms >= {horizons.regulated_until_ms} && {regulated}"),
        ("TG-UNKNOWN-LABEL", f"context.personal == {int(Personal.UNKNOWN)}"),
        ("TG-UNKNOWN-LABEL", f"context.grade == {int(Grade.UNKNOWN)}"),
        ("TG-UNKNOWN-LABEL", 'context.origin.isEmpty() || context.origin.contains("unknown")'),
        ("TG-NO-SOIL", "context.source_soil.isEmpty() || context.target_soil.isEmpty()"),
    ):
        yield _policy("forbid", name, [when], [])


def _policy_of(read: ReadRule) -> Iterable[str]:
    """Yield the policy of a rule; none for one that can change no answer."""
    rule = read.rule
    if not rule.when:  # empty means no
        return
    when = [*_dates(read.pack), *(condition(test) for test in read.when)]
    unless = [" && ".join(f"({condition(test)})" for test in read.unless)] if read.unless else []
    if rule.effect is Effect.GRANT:
        if read.counts:
            yield _policy("permit", rule.id, when, unless)
    elif rule.effect is Effect.FORBID:
        yield _policy("forbid", rule.id, when, unless)
    elif rule.effect is Effect.REQUIRE:
        met = [f"context.pathways.containsAny({_literal(kind.value for kind in one)})" for one in rule.pathways if one]
        if met and len(met) == len(rule.pathways):
            unless.append(" && ".join(met))
        yield _policy("forbid", rule.id, when, unless)
    elif notices := owed(rule):
        yield _policy("forbid", rule.id, when, [*unless, f"context.notices.containsAll({_literal(notices)})"])


def _policy(effect: str, name: str, when: list[str], unless: list[str]) -> str:
    lines = [f"@id({json.dumps(name)})", f"{effect} (principal, action, resource)"]
    lines.append("when { " + "\n  && ".join(f"({one})" for one in when) + " }")
    lines += [f"unless {{ {one} }}" for one in unless]
    return "\n".join(lines) + ";"


def _dates(pack: Pack) -> Iterable[str]:
    yield f"context.now_ms >= {pack.effective_from_ms}"
    if pack.effective_until_ms is not None:
        yield f"context.now_ms < {pack.effective_until_ms}"


def _literal(members: Iterable[str]) -> str:
    return "[" + ", ".join(json.dumps(member) for member in sorted(members)) + "]"


def condition(test: Test) -> str:
    """Return one comparison as Cedar has it; `false` for an operator that does not fit its subject."""
    subject, operator = test.subject, test.operator
    if subject is Subject.COUNTER:
        return _of_counter(test)
    if subject in RANKED:
        signs = {Operator.AT_MOST: "<=", Operator.AT_LEAST: ">="}
        return f"context.{subject.value} {signs[operator]} {test.rank}" if operator in signs else _NEVER
    if subject in LABEL_SETS or subject in _PLACES:
        return _of_set(f"context.{subject.value}", test)
    return _of_one(test)


def _of_counter(test: Test) -> str:
    if test.counter is None:
        return _NEVER
    name = f"context.{test.counter.value}"
    if test.operator is Operator.AT_LEAST:
        return f"!{name}.known || {name}.value >= {test.rank}"
    if test.operator is Operator.BELOW:
        return f"{name}.known && {name}.value < {test.rank}"
    return _NEVER


def _of_set(name: str, test: Test) -> str:
    # Cedar knows no type of an empty set literal: nothing but the empty set is within nothing.
    within = f"{_literal(test.members)}.containsAll({name})" if test.members else f"{name}.isEmpty()"
    touches = f"{name}.containsAny({_literal(test.members)})" if test.members else _NEVER
    unknown = f'{name}.contains("unknown")'
    return {
        Operator.WITHIN: f"!{unknown} && {within}",
        Operator.BEYOND: f"{unknown} || !({within})",
        Operator.TOUCHES: f"{unknown} || {touches}",
        Operator.AVOIDS: f"!{unknown} && !({touches})",
        Operator.IN: within,
    }.get(test.operator, _NEVER)


def _of_one(test: Test) -> str:
    """The action and the leg: there is exactly one, and it is never unknown."""
    if test.subject is Subject.ACTION:
        known = test.members & {action.value for action in Action}  # Cedar refuses to read of any other
        one = [f'action == Action::"{name}"' for name in sorted(known)]
    else:
        one = [f"context.{test.subject.value} == {json.dumps(name)}" for name in sorted(test.members)]
    among = " || ".join(one) or _NEVER
    if test.operator in (Operator.IN, Operator.WITHIN, Operator.TOUCHES):
        return among
    return f"!({among})" if test.operator in (Operator.BEYOND, Operator.AVOIDS) else _NEVER
