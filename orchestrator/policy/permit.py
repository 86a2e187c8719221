"""`permit`: may this payload make that movement?

Pure, total and default deny. Forbid wins and the order of rules does not matter. The law of the subject's origin, of
where the end user is, of the sending and of the receiving place (soil, access, operator, owners), and of where a text
was processed must each be satisfied: one country's grant never satisfies another's law.

Each jurisdiction is asked by itself: some pack in force must speak for it, no rule of any may forbid, each required
pathway must be held, each notice that is owed must have been given, and at least one pack whose signer may grant there
must grant.

This is the specification: `table` computes the same for many places at once, and is held to it by tests.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from typing import ParamSpec

from orchestrator.policy.bundle import Law
from orchestrator.policy.facts import Facts, situation_of
from orchestrator.policy.ids import RuleId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import UNKNOWN_SET, Grade, Personal
from orchestrator.policy.packs import Effect, Mode, Obligation, ObligationKind, Rule, Situation
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.verdicts import (
    EXPIRED,
    FAULT,
    NO_GRANT,
    NO_PACK,
    NO_SOIL,
    REGULATED_EXPIRED,
    UNKNOWN_LABEL,
    Answer,
    Reason,
    Verdict,
)
from orchestrator.policy.vocabulary import UNKNOWN

Asked = ParamSpec("Asked")

# Looked up for every rule that applies.
_GRANT, _OBLIGE = Effect.GRANT, Effect.OBLIGE

PERMIT_VERSION = 2
"""Raised with every change of meaning; on every record and every cited decision."""


def touched(facts: Facts, movement: Movement) -> frozenset[Jurisdiction]:
    """Return every jurisdiction whose law must be satisfied.

    Of the payload: those of its subjects, of the places that produced it, and of where the end user is (GDPR art. 3(2),
    Interim Measures on generative AI art. 2). Where data was collected is for rules to read.
    """
    brought = facts.label.origin | facts.label.located | facts.processed_in
    return (brought - UNKNOWN_SET) | movement.source.reach() | movement.target.reach()


def at_fault() -> Verdict:
    """Return the refusal of what could not be worked out. It is good for no time."""
    return deny(FAULT, "The law could not be evaluated.", "The operator's attention.", 0)


def fail_closed(ask: Callable[Asked, Verdict]) -> Callable[Asked, Verdict]:
    """Make a question that never raises: whatever goes wrong in it is a refusal."""

    @wraps(ask)
    def answered(*asked: Asked.args, **named: Asked.kwargs) -> Verdict:
        try:
            return ask(*asked, **named)
        except Exception:  # noqa: BLE001  # outermost: of a decision; what cannot be worked out is no
            return at_fault()

    return answered


@fail_closed
def permit(law: Law, facts: Facts, movement: Movement, now_ms: int) -> Verdict:
    """Return whether this payload may make that movement at `now_ms`, and why.

    Never raises: whatever goes wrong in here is a refusal. The caller supplies the time; the verdict says until when it
    may be relied on.
    """
    return _verdict(law, facts, _answers(law, facts, movement, facts.processed_in, now_ms), now_ms)


@fail_closed
def permit_route(law: Law, facts: Facts, edge: Place, pool: Place, now_ms: int) -> Verdict:
    """Return whether a payload may go from `edge` to `pool` to be inferred, and the answer may come back.

    The answer carries the label of the prompt and was processed where the pool is. Both must be allowed: a text that
    may not return must not be made. This is the one call behind every way of a payload to a pool: the first send, a
    retry, a failover, a spill, a resume (the emitted text joins the label and `processed_in`).
    """
    infer = Movement(Action.INFER, Leg.EDGE_TO_POOL, edge, pool)
    back = Movement(Action.RETURN, Leg.POOL_TO_EDGE, pool, edge)
    made_in = facts.processed_in | pool.soil()
    answers = (
        *_answers(law, facts, infer, facts.processed_in, now_ms),
        *_answers(law, facts, back, made_in, now_ms),
    )
    return _verdict(law, facts, answers, now_ms)


@fail_closed
def permit_sink(law: Law, facts: Facts, action: Action, source: Place, sink: Place, now_ms: int) -> Verdict:
    """Return whether what is at `source` may be kept by, or exported to, a sink: logs, traces, results, caches.

    The one call behind each of these. `action` is `store`, `export` or, for keys and values of a prefix, `reuse`.
    """
    movement = Movement(action, Leg.TO_SINK, source, sink)
    return _verdict(law, facts, _answers(law, facts, movement, facts.processed_in, now_ms), now_ms)


def deny(rule: RuleId, sentence: str, needs: str, now_ms: int) -> Verdict:
    """Return a refusal of the house, for what is decided before the law is asked (a revocation, a fault)."""
    return _deny((Reason(rule, None, sentence, needs),), (), (), now_ms)


def _answers(
    law: Law, facts: Facts, movement: Movement, processed_in: frozenset[Jurisdiction], now_ms: int
) -> tuple[Answer, ...]:
    """Return what each jurisdiction says of one movement; or the house alone, where it refuses before any is asked."""
    house = house_reasons(law, facts, movement, now_ms)
    if house:
        return (Answer(None, movement.action, (), house, (), ()),)
    situation = situation_of(facts, movement, now_ms, processed_in)
    held = _held(facts, movement, now_ms)
    asked = sorted(touched(facts, movement) | processed_in)
    return tuple(_ask(law, one, facts, movement.action, situation, held, now_ms) for one in asked)


def _verdict(law: Law, facts: Facts, answers: tuple[Answer, ...], now_ms: int) -> Verdict:
    """Return the verdict that follows from every answer: one refusal is enough, and every grant is relied on."""
    until_ms = _until_ms(law, facts, now_ms)
    reasons: list[Reason] = []
    grants: list[RuleId] = []
    duties: list[Obligation] = []
    shadow: list[RuleId] = []
    for answer in answers:
        reasons += answer.reasons
        grants += answer.grants
        duties += answer.obligations
        shadow += answer.shadow
    if reasons or not answers:
        return _deny(reasons, _sorted_ids(shadow), answers, until_ms)
    return Verdict(
        True, _sorted_ids(grants), (), _sorted_duties(duties), until_ms, _sorted_ids(shadow), answers
    )


def _deny(
    reasons: Iterable[Reason], shadow: tuple[RuleId, ...], answers: tuple[Answer, ...], until_ms: int
) -> Verdict:
    ordered = sorted(set(reasons), key=lambda reason: (reason.jurisdiction or "", reason.rule, reason.sentence))
    rules = _sorted_ids(reason.rule for reason in reasons)
    return Verdict(False, rules, tuple(ordered), (), until_ms, shadow, tuple(a for a in answers if a.jurisdiction))


def _sorted_ids(rules: Iterable[RuleId]) -> tuple[RuleId, ...]:
    found = set(rules)
    return tuple(sorted(found)) if found else ()


def _sorted_duties(duties: Iterable[Obligation]) -> tuple[Obligation, ...]:
    found = set(duties)
    return tuple(sorted(found, key=lambda duty: (duty.kind.value, duty.argument))) if found else ()


def _until_ms(law: Law, facts: Facts, now_ms: int) -> int:
    """Return the first moment after `now_ms` at which something that a verdict rests on can change."""
    until_ms = law.next_change_ms(now_ms)
    moments = [law.horizons.regulated_until_ms] if facts.label.regulated() else []
    for pathway in facts.pathways:
        moments += (pathway.valid_from_ms, pathway.valid_until_ms)
    for counter in facts.counters:
        moments += (counter.from_ms(), counter.until_ms())
    for moment in moments:
        if now_ms < moment < until_ms:
            until_ms = moment
    return until_ms


def house_reasons(law: Law, facts: Facts, movement: Movement, now_ms: int) -> tuple[Reason, ...]:
    """Return what is refused before any pack is asked: an expired bundle, an unknown label, a place without soil."""
    found: list[Reason] = []
    label = facts.label
    if now_ms >= law.horizons.not_after_ms:
        found.append(Reason(EXPIRED, None, "The bundle is past its last horizon.", "A fresh manifest."))
    elif now_ms >= law.horizons.regulated_until_ms and label.regulated():
        sentence = "The bundle is too old for regulated payloads."
        found.append(Reason(REGULATED_EXPIRED, None, sentence, "A fresh manifest."))
    if label.personal is Personal.UNKNOWN:
        found.append(_unknown("personal", "The label 'personal' is unknown, and unknown is refused."))
    if label.grade is Grade.UNKNOWN:
        found.append(_unknown("grade", "The label 'grade' is unknown, and unknown is refused."))
    if not label.origin or UNKNOWN in label.origin:
        sentence = "The origin of the payload's subjects is unknown, and unknown is refused."
        found.append(_unknown("origin", sentence))
    if not movement.source.soil() or not movement.target.soil():
        sentence = "A place of this movement names no soil."
        found.append(Reason(NO_SOIL, None, sentence, "Jurisdictions in the fleet entry."))
    return tuple(found)


def _unknown(key: str, sentence: str) -> Reason:
    needs = f"Declare it in x-tidegate-labels ({key}=...), or have it attested in the tenant's contract."
    return Reason(UNKNOWN_LABEL, None, sentence, needs)


def _held(facts: Facts, movement: Movement, now_ms: int) -> frozenset[PathwayKind]:
    """Return the kinds of pathway that are a basis for this payload and movement at this time."""
    if not facts.pathways:
        return frozenset()
    return frozenset(
        pathway.kind
        for pathway in facts.pathways
        if pathway.covers_payload(facts.tenant.id, facts.role, facts.label, now_ms)
        and pathway.covers_place(movement.target)
    )


def _ask(
    law: Law,
    jurisdiction: Jurisdiction,
    facts: Facts,
    action: Action,
    situation: Situation,
    held: frozenset[PathwayKind],
    now_ms: int,
) -> Answer:
    """Ask one jurisdiction's law."""
    grants: list[RuleId] = []
    reasons: list[Reason] = []
    duties: list[Obligation] = []
    conditions: list[tuple[Obligation, ...]] = []
    shadow: list[RuleId] = []
    spoken = False
    for admitted in law.packs_of(jurisdiction):
        pack = admitted.pack
        if not pack.in_force(now_ms):
            continue
        enforced = pack.mode is Mode.ENFORCE
        spoken = spoken or enforced
        for rule in pack.rules:
            if not rule.applies(situation):
                continue
            effect = rule.effect
            lifted = bool(rule.unless) and rule.lifted(situation)
            if effect is _GRANT:
                if enforced and not lifted and jurisdiction in admitted.grants_for:
                    grants.append(rule.id)
                    conditions.append(rule.obligations)
            elif lifted:
                # The price of an exemption is owed where it is relied on: not where the pathways are held anyway.
                if enforced and (effect is _OBLIGE or refuses(rule, held, facts)):
                    duties.extend(rule.exemption)
            elif refuses(rule, held, facts):
                if enforced:
                    reasons.append(Reason(rule.id, jurisdiction, rule.sentence, rule.needs))
                else:
                    shadow.append(rule.id)
            elif enforced and effect is _OBLIGE:
                duties.extend(rule.obligations)
    if all(conditions):  # no grant that holds is without a condition: each condition is owed
        duties.extend(duty for condition in conditions for duty in condition)
    if not reasons and not spoken:
        sentence = f"No pack in force speaks for {jurisdiction}."
        reasons.append(Reason(NO_PACK, jurisdiction, sentence, f"A pack for {jurisdiction}."))
    elif not reasons and not grants:
        sentence = f"No rule of {jurisdiction} grants this movement."
        needs = f"A grant in a pack for {jurisdiction}, signed by the side whose law that is."
        reasons.append(Reason(NO_GRANT, jurisdiction, sentence, needs))
    return Answer(jurisdiction, action, tuple(grants), tuple(reasons), tuple(duties), tuple(shadow))


def refuses(rule: Rule, held: frozenset[PathwayKind], facts: Facts) -> bool:
    """Whether a rule whose condition holds stands in the way."""
    if rule.effect is Effect.FORBID:
        return True
    if rule.effect is Effect.REQUIRE:
        # Empty means no: a requirement that names nothing is never met.
        return not rule.pathways or not all(held & any_of for any_of in rule.pathways)
    if rule.effect is Effect.OBLIGE:
        owed = (duty.argument for duty in rule.obligations if duty.kind is ObligationKind.NOTIFY)
        return any(facts.notice(name) is None for name in owed)
    return False
