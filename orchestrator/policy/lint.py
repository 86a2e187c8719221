"""What is odd about a law without being wrong: rules that never matter, countries without law, papers that run out.

Findings are for people. Nothing here decides whether a payload moves.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from enum import Enum

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.packs import Confidence, Effect, Mode, ObligationKind, Operator, Pack, Rule, Test
from orchestrator.policy.tenants import Tenant

DAY_MS = 86_400_000
EXPIRY_SHOWN_DAYS = 90
"""Pathways that end within this time are shown."""


class Finding(Enum):
    """What kind of oddity it is."""

    CONTRADICTED = "contradicted"
    """A grant that a forbid always takes away again."""
    REDUNDANT = "redundant"
    """A rule that says what another one of the same pack says."""
    NEVER_TRUE = "never_true"
    """A rule whose tests exclude each other."""
    UNCONFIRMED = "unconfirmed"
    """A rule whose source is not confirmed."""
    NOT_IN_FORCE = "not_in_force"
    """A pack that does not speak at that time."""
    SHADOW = "shadow"
    """A pack that is evaluated and not applied."""
    NO_LAW = "no_law"
    """A country for which no pack in force speaks: everything there is denied."""
    NO_GRANT = "no_grant"
    """A country in which no rule can grant: everything there is denied."""
    FOREIGN_GRANT = "foreign_grant"
    """A pack that was signed by a side whose root may not grant under that law: its grants do not count."""
    EXPIRING = "expiring"
    """A pathway that ends within 90 days."""
    EXPIRED = "expired"
    """A pathway that has ended."""
    NO_DISCHARGER = "no_discharger"
    """A duty that nothing discharges: what comes with it is denied."""
    NOTICE_MISSING = "notice_missing"
    """A notice that rules ask for and a tenant has not given."""


@dataclass(frozen=True, slots=True)
class Remark:
    """One finding."""

    kind: Finding
    subject: str
    """A rule, a pack, a country or a pathway, by its id."""
    sentence: str


def lint(
    law: Law,
    countries: Mapping[Jurisdiction, str],
    tenants: Iterable[Tenant],
    dischargers: Collection[ObligationKind],
    now_ms: int,
) -> tuple[Remark, ...]:
    """Return every finding. `countries` names those that the fleet and the tenants touch, and who touches them."""
    found: list[Remark] = []
    for admitted in law.packs:
        found += _pack(admitted, dischargers, now_ms)
    found += _countries(law, countries, now_ms)
    notices = {
        duty.argument
        for admitted in law.packs
        for rule in admitted.pack.rules
        for duty in rule.obligations
        if duty.kind is ObligationKind.NOTIFY
    }
    for tenant in tenants:
        found += _tenant(tenant, notices, now_ms)
    return tuple(found)


def implies(one: Test, other: Test) -> bool:
    """Whether `other` holds wherever `one` does. Errs on the side of no."""
    if one == other:
        return True
    if one.subject is not other.subject or one.operator is not other.operator or one.counter is not other.counter:
        return False
    if one.operator in (Operator.AT_MOST, Operator.BELOW):
        return one.rank <= other.rank
    if one.operator is Operator.AT_LEAST:
        return one.rank >= other.rank
    if one.operator in (Operator.WITHIN, Operator.TOUCHES, Operator.IN):
        return one.members <= other.members
    return one.operator in (Operator.AVOIDS, Operator.BEYOND) and one.members >= other.members


def covers(wide: Rule, narrow: Rule) -> bool:
    """Whether `wide` holds wherever `narrow` does. Errs on the side of no."""
    if not all(any(implies(test, needed) for test in narrow.when) for needed in wide.when):
        return False
    return not wide.unless or set(wide.unless) == set(narrow.unless)


def never_true(rule: Rule) -> bool:
    """Whether two tests of a rule exclude each other. Errs on the side of no."""
    tests = rule.when
    return any(_exclude(one, other) for index, one in enumerate(tests) for other in tests[index + 1 :])


def _exclude(one: Test, other: Test) -> bool:
    if one.subject is not other.subject or one.counter is not other.counter:
        return False
    pair = {one.operator: one, other.operator: other}
    if Operator.AT_LEAST in pair and (Operator.AT_MOST in pair or Operator.BELOW in pair):
        most = pair.get(Operator.AT_MOST)
        ceiling = pair[Operator.BELOW].rank - 1 if most is None else most.rank
        return pair[Operator.AT_LEAST].rank > ceiling
    if Operator.TOUCHES in pair and Operator.AVOIDS in pair:
        return pair[Operator.TOUCHES].members <= pair[Operator.AVOIDS].members
    if Operator.TOUCHES in pair and Operator.WITHIN in pair:
        return not pair[Operator.TOUCHES].members & pair[Operator.WITHIN].members
    if Operator.WITHIN in pair and Operator.BEYOND in pair:
        return pair[Operator.WITHIN].members <= pair[Operator.BEYOND].members
    return one.operator is Operator.IN and other.operator is Operator.IN and not one.members & other.members


def _pack(admitted: AdmittedPack, dischargers: Collection[ObligationKind], now_ms: int) -> Iterable[Remark]:
    pack = admitted.pack
    if not pack.in_force(now_ms):
        when = "not yet" if now_ms < pack.effective_from_ms else "no longer"
        yield Remark(Finding.NOT_IN_FORCE, pack.id, f"Pack {pack.id} is {when} in force.")
    if pack.mode is Mode.SHADOW:
        yield Remark(Finding.SHADOW, pack.id, f"Pack {pack.id} is evaluated and recorded, not applied.")
    foreign = pack.jurisdictions - admitted.grants_for
    if foreign and any(rule.effect is Effect.GRANT for rule in pack.rules):
        names = ", ".join(sorted(foreign))
        yield Remark(Finding.FOREIGN_GRANT, pack.id, f"Grants of pack {pack.id} do not count for {names}.")
    yield from _rules(pack)
    for rule in pack.rules:
        if rule.confidence is Confidence.UNCONFIRMED:
            where = f"{rule.source.instrument}, {rule.source.article}"
            sentence = f"Rule {rule.id} stands on a source that is not confirmed: {where}."
            yield Remark(Finding.UNCONFIRMED, rule.id, sentence)
        for duty in rule.obligations:
            if duty.kind not in dischargers:
                yield Remark(Finding.NO_DISCHARGER, rule.id, f"Nothing discharges the duty {duty.kind.value}.")


def _rules(pack: Pack) -> Iterable[Remark]:
    for index, rule in enumerate(pack.rules):
        if never_true(rule):
            yield Remark(Finding.NEVER_TRUE, rule.id, f"Rule {rule.id} never holds: its tests exclude each other.")
            continue
        for number, other in enumerate(pack.rules):
            if number == index or never_true(other):
                continue
            if rule.effect is Effect.GRANT and other.effect is Effect.FORBID and covers(other, rule):
                sentence = f"Rule {rule.id} never matters: {other.id} forbids whatever it grants."
                yield Remark(Finding.CONTRADICTED, rule.id, sentence)
            # One that merely holds in more cases has its own reason to be named in a verdict; of two equal ones, the
            # later is the one to drop.
            if number < index and covers(other, rule) and covers(rule, other) and _same_effect(rule, other):
                sentence = f"Rule {rule.id} never matters: {other.id} holds in the same cases."
                yield Remark(Finding.REDUNDANT, rule.id, sentence)


def _same_effect(one: Rule, other: Rule) -> bool:
    return (
        one.effect is other.effect
        and set(one.obligations) == set(other.obligations)
        and set(one.pathways) == set(other.pathways)
    )


def _countries(law: Law, countries: Mapping[Jurisdiction, str], now_ms: int) -> Iterable[Remark]:
    for country in sorted(countries):
        speaking = [
            one for one in law.packs_of(country) if one.pack.mode is Mode.ENFORCE and one.pack.in_force(now_ms)
        ]
        if not speaking:
            sentence = f"No pack in force speaks for {country}, which {countries[country]} touches."
            yield Remark(Finding.NO_LAW, country, sentence)
        elif not any(
            rule.effect is Effect.GRANT for one in speaking if country in one.grants_for for rule in one.pack.rules
        ):
            yield Remark(Finding.NO_GRANT, country, f"No rule can grant under the law of {country}.")


def _tenant(tenant: Tenant, notices: Collection[str], now_ms: int) -> Iterable[Remark]:
    for pathway in tenant.pathways:
        left_days = (pathway.valid_until_ms - now_ms) // DAY_MS
        if now_ms >= pathway.valid_until_ms:
            yield Remark(Finding.EXPIRED, pathway.id, f"Pathway {pathway.id} of {tenant.id} has ended.")
        elif left_days < EXPIRY_SHOWN_DAYS:
            sentence = f"Pathway {pathway.id} of {tenant.id} ends in {left_days} days."
            yield Remark(Finding.EXPIRING, pathway.id, sentence)
    given = {name for name, _ in tenant.notices}
    if tenant.pathways:
        for name in sorted(set(notices) - given):
            yield Remark(Finding.NOTICE_MISSING, tenant.id, f"Tenant {tenant.id} has not given the notice {name}.")
