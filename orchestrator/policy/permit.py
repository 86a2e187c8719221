"""`permit`: may this payload make that movement?

Pure, total and default deny. Forbid wins and the order of rules does not matter. The law of the subject's origin, of
the sending and of the receiving place (soil, access, operator, owners), and of where a text was processed must each be
satisfied: one country's grant never satisfies another's law.

Each jurisdiction is asked by itself: some pack in force must speak for it, no rule of any may forbid, each required
pathway must be held, and at least one pack whose signer may grant there must grant.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from orchestrator.policy.bundle import Law
from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective, Grade, Personal
from orchestrator.policy.packs import Effect, Mode, Obligation, Rule
from orchestrator.policy.pathways import Pathway
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.verdicts import (
    EXPIRED,
    NO_GRANT,
    NO_PACK,
    NO_SOIL,
    REGULATED_EXPIRED,
    UNKNOWN_LABEL,
    Reason,
    Verdict,
)

PERMIT_VERSION = 1
"""Raised with every change of meaning; on every record and every cited decision."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What the law is told of a payload and its tenant. Everything is resolved: no tenant section is read later."""

    tenant: Entity
    label: Effective
    pathways: tuple[Pathway, ...] = ()
    processed_in: frozenset[Jurisdiction] = frozenset()
    """Jurisdictions of the places that produced a text, for an output."""


@dataclass(frozen=True, slots=True)
class _Answer:
    """What one jurisdiction says."""

    grants: tuple[RuleId, ...]
    reasons: tuple[Reason, ...]
    obligations: tuple[Obligation, ...]
    shadow: tuple[RuleId, ...]
    valid_until_ms: int


def touched(facts: Facts, movement: Movement) -> frozenset[Jurisdiction]:
    """Return every jurisdiction whose law must be satisfied."""
    return facts.label.origin | facts.processed_in | movement.source.reach() | movement.target.reach()


def permit(law: Law, facts: Facts, movement: Movement, now_ms: int) -> Verdict:
    """Return whether this payload may make that movement at `now_ms`, and why.

    Never raises. The caller supplies the time; the verdict says until when it may be relied on.
    """
    house = _house_reasons(law, facts, movement, now_ms)
    if house:
        return _deny(house, (), now_ms)
    answers = [_ask(law, jurisdiction, facts, movement, now_ms) for jurisdiction in sorted(touched(facts, movement))]
    reasons = tuple(reason for answer in answers for reason in answer.reasons)
    shadow = _sorted_ids(rule for answer in answers for rule in answer.shadow)
    if reasons:
        return _deny(reasons, shadow, now_ms)
    horizon = law.horizons.regulated_until_ms if facts.label.regulated() else law.horizons.not_after_ms
    duties = {duty for answer in answers for duty in answer.obligations}
    return Verdict(
        allowed=True,
        rules=_sorted_ids(rule for answer in answers for rule in answer.grants),
        reasons=(),
        obligations=tuple(sorted(duties, key=lambda duty: (duty.kind.value, duty.argument))),
        valid_until_ms=min([horizon, *(answer.valid_until_ms for answer in answers)]),
        shadow=shadow,
    )


def permit_route(law: Law, facts: Facts, edge: Place, pool: Place, now_ms: int) -> Verdict:
    """Return whether a payload may go from `edge` to `pool` to be inferred, and the answer may come back.

    The answer carries the label of the prompt and was processed where the pool is. Both must be allowed: a text that
    may not return must not be made.
    """
    infer = permit(law, facts, Movement(Action.INFER, Leg.EDGE_TO_POOL, edge, pool), now_ms)
    answer = replace(facts, processed_in=facts.processed_in | pool.soil())
    back = permit(law, answer, Movement(Action.RETURN, Leg.POOL_TO_EDGE, pool, edge), now_ms)
    return _both(infer, back)


def _both(first: Verdict, second: Verdict) -> Verdict:
    duties = {duty for verdict in (first, second) for duty in verdict.obligations}
    denials = [verdict for verdict in (first, second) if not verdict.allowed]
    allowed = not denials
    return Verdict(
        allowed=allowed,
        rules=_sorted_ids(rule for verdict in denials or (first, second) for rule in verdict.rules),
        reasons=tuple(dict.fromkeys(reason for verdict in denials for reason in verdict.reasons)),
        obligations=tuple(sorted(duties, key=lambda duty: (duty.kind.value, duty.argument))) if allowed else (),
        valid_until_ms=min(first.valid_until_ms, second.valid_until_ms),
        shadow=_sorted_ids((*first.shadow, *second.shadow)),
    )


def deny(rule: RuleId, sentence: str, needs: str, now_ms: int) -> Verdict:
    """Return a refusal of the house, for what is decided before the law is asked (a revocation, a fault)."""
    return _deny((Reason(rule, None, sentence, needs),), (), now_ms)


def _deny(reasons: tuple[Reason, ...], shadow: tuple[RuleId, ...], now_ms: int) -> Verdict:
    ordered = tuple(sorted(reasons, key=lambda reason: (reason.jurisdiction or "", reason.rule, reason.sentence)))
    return Verdict(False, _sorted_ids(reason.rule for reason in reasons), ordered, (), now_ms, shadow)


def _sorted_ids(rules: Iterable[RuleId]) -> tuple[RuleId, ...]:
    return tuple(sorted(set(rules)))


def _house_reasons(law: Law, facts: Facts, movement: Movement, now_ms: int) -> tuple[Reason, ...]:
    """What is refused before any pack is asked: an expired bundle, an unknown label, a place without soil."""
    found: list[Reason] = []
    if now_ms >= law.horizons.not_after_ms:
        found.append(Reason(EXPIRED, None, "The bundle is past its last horizon.", "A fresh manifest."))
    elif facts.label.regulated() and now_ms >= law.horizons.regulated_until_ms:
        sentence = "The bundle is too old for regulated payloads."
        found.append(Reason(REGULATED_EXPIRED, None, sentence, "A fresh manifest."))
    axes = (("personal", facts.label.personal is Personal.UNKNOWN), ("grade", facts.label.grade is Grade.UNKNOWN))
    for name, unknown in axes:
        if unknown:
            sentence = f"The label '{name}' is unknown, and unknown is refused."
            needs = f"Declare it in x-tidegate-labels ({name}=...), or have it attested in the tenant's contract."
            found.append(Reason(UNKNOWN_LABEL, None, sentence, needs))
    if not facts.label.origin:
        sentence = "The origin of the payload's subjects is unknown, and unknown is refused."
        needs = "Declare it in x-tidegate-labels (origin=...), or have it attested in the tenant's contract."
        found.append(Reason(UNKNOWN_LABEL, None, sentence, needs))
    if not movement.source.soil() or not movement.target.soil():
        sentence = "A place of this movement names no soil."
        found.append(Reason(NO_SOIL, None, sentence, "Jurisdictions in the fleet entry."))
    return tuple(found)


def _ask(law: Law, jurisdiction: Jurisdiction, facts: Facts, movement: Movement, now_ms: int) -> _Answer:
    """Ask one jurisdiction's law."""
    grants: list[RuleId] = []
    reasons: list[Reason] = []
    duties: list[Obligation] = []
    shadow: list[RuleId] = []
    until_ms = law.horizons.not_after_ms
    spoken = False
    for admitted in law.packs_of(jurisdiction):
        pack = admitted.pack
        if now_ms < pack.effective_from_ms:
            until_ms = min(until_ms, pack.effective_from_ms)  # ask again when it comes into force
        if not pack.in_force(now_ms):
            continue
        enforced = pack.mode is Mode.ENFORCE
        spoken = spoken or enforced
        if pack.effective_until_ms is not None:
            until_ms = min(until_ms, pack.effective_until_ms)
        for rule in pack.rules:
            if not rule.holds(facts.label, movement):
                continue
            refusal, rule_until_ms = _refusal(rule, jurisdiction, facts, movement, now_ms)
            until_ms = min(until_ms, rule_until_ms)
            if refusal is not None:
                if enforced:
                    reasons.append(refusal)
                else:
                    shadow.append(rule.id)
            elif enforced and rule.effect is Effect.GRANT and jurisdiction in admitted.grants_for:
                grants.append(rule.id)
            elif enforced and rule.effect is Effect.OBLIGE:
                duties.extend(rule.obligations)
    if not reasons and not spoken:
        sentence = f"No pack in force speaks for {jurisdiction}."
        reasons.append(Reason(NO_PACK, jurisdiction, sentence, f"A pack for {jurisdiction}."))
    elif not reasons and not grants:
        sentence = f"No rule of {jurisdiction} grants this movement."
        needs = f"A grant in a pack for {jurisdiction}, signed by the side whose law that is."
        reasons.append(Reason(NO_GRANT, jurisdiction, sentence, needs))
    return _Answer(tuple(grants), tuple(reasons), tuple(duties), tuple(shadow), until_ms)


def _refusal(
    rule: Rule, jurisdiction: Jurisdiction, facts: Facts, movement: Movement, now_ms: int
) -> tuple[Reason | None, int]:
    """Return the reason when the rule stands in the way, and until when the answer holds."""
    far_ms = 1 << 62
    if rule.effect is Effect.FORBID:
        return Reason(rule.id, jurisdiction, rule.sentence, rule.needs), far_ms
    if rule.effect is not Effect.REQUIRE:
        return None, far_ms
    for kind in rule.pathways:
        ends = [
            pathway.valid_until_ms
            for pathway in facts.pathways
            if pathway.kind is kind and pathway.covers(movement, facts.tenant.id, facts.label.personal, now_ms)
        ]
        if not ends:
            return Reason(rule.id, jurisdiction, rule.sentence, rule.needs), far_ms
        far_ms = min(far_ms, max(ends))
    if not rule.pathways:  # empty means no
        return Reason(rule.id, jurisdiction, rule.sentence, rule.needs), far_ms
    return None, far_ms
