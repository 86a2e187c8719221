"""The account of a placement, as canonical JSON holds it. The live path and `explain` share it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from orchestrator.evidence.canonical import JsonValue, written_part
from orchestrator.evidence.remembered import REMEMBERED_MAX, remembered
from orchestrator.placement.cost import Terms
from orchestrator.placement.fleet import Assurance, Edge, Pool
from orchestrator.placement.pick import Candidate, Drop, Placement
from orchestrator.policy.ids import PoolId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.places import Action, Leg
from orchestrator.policy.verdicts import Answer, Reason, Verdict


class Account(msgspec.Struct, frozen=True):
    """The account of a placement by the names of a record, in their order."""

    candidates: list[CandidateWritten | msgspec.Raw]
    chosen: PoolId | None
    dropped: dict[str, int]
    """How many pools were dropped for each reason."""
    runner_up: RunnerUp | None


class CandidateWritten(msgspec.Struct, frozen=True):
    """The account of one pool by the names of a record, in their order."""

    assurance: Assurance
    doubtful: bool
    drop: Drop | None
    places: tuple[Jurisdiction, ...]
    pool: PoolId
    terms: TermsWritten | None
    verdict: msgspec.Raw


class RunnerUp(msgspec.Struct, frozen=True):
    """The cheapest pool that was not chosen, and how much dearer it is; less than nothing within epsilon."""

    gap_pico: str
    pool: PoolId


def placement_to_json(placement: Placement) -> Account:
    """Return the whole account: of each pool its verdict, and why it was dropped or what it would cost."""
    chosen = placement.chosen
    candidates: list[CandidateWritten | msgspec.Raw] = []
    rated = 0
    for candidate in placement.candidates:
        if candidate.terms is None:
            candidates.append(dropped_part(candidate))
        else:
            candidates.append(candidate_to_json(candidate))
            rated += 1
    return Account(
        candidates,
        None if chosen is None else chosen.pool.id,
        placement.counts(),
        runner_up(placement) if rated > 1 else None,
    )


def candidate_to_json(candidate: Candidate) -> CandidateWritten:
    """Return the account of one pool."""
    pool, terms = candidate.pool, candidate.terms
    return CandidateWritten(
        pool.assurance,
        candidate.doubtful,
        candidate.drop,
        pool.place.reached,
        pool.id,
        None if terms is None else written_terms(terms),
        verdict_part(candidate.verdict),
    )


def dropped_parts() -> Callable[[Candidate], msgspec.Raw]:
    """Return what gives the accounts of pools without terms, as records hold them, each made once.

    Most pools of a large fleet are dropped by each request, for the reason of the request before. By the identities of
    pool and verdict.
    """
    held: dict[tuple[int, int, Drop | None, bool], tuple[Candidate, msgspec.Raw]] = {}  # bounded: REMEMBERED_MAX

    def part_of(candidate: Candidate) -> msgspec.Raw:
        key = (id(candidate.pool), id(candidate.verdict), candidate.drop, candidate.doubtful)
        try:
            return held[key][1]
        except KeyError:
            part = written_part(candidate_to_json(candidate))
        if len(held) >= REMEMBERED_MAX:
            held.clear()
        # The candidate is held too, with its pool and verdict, so that their identities are not given to others.
        held[key] = (candidate, part)
        return part

    return part_of


dropped_part = dropped_parts()
"""The account of a pool that has no terms."""


def runner_up(placement: Placement) -> RunnerUp | None:
    """Return the cheapest pool that was not chosen; None where there is none."""
    chosen, second = placement.chosen, placement.runner_up()
    if chosen is None or second is None or chosen.terms is None or second.terms is None:
        return None
    return RunnerUp(str(second.terms.total_pico - chosen.terms.total_pico), second.pool.id)


def runner_up_to_json(placement: Placement) -> dict[str, JsonValue] | None:
    """Return the same as canonical JSON holds it."""
    found = runner_up(placement)
    return None if found is None else {"pool": found.pool, "gap_pico": found.gap_pico}


def verdict_to_json(verdict: Verdict) -> dict[str, JsonValue]:
    """Return a verdict with its rules and reasons."""
    return {
        "allowed": verdict.allowed,
        "rules": list[JsonValue](verdict.rules),
        "reasons": [reason_to_json(reason) for reason in verdict.reasons],
        "obligations": [{"kind": duty.kind.value, "argument": duty.argument} for duty in verdict.obligations],
        "valid_until_ms": verdict.valid_until_ms,
        "shadow": list[JsonValue](verdict.shadow),
    }


verdict_part: Callable[[Verdict], msgspec.Raw] = remembered(lambda verdict: written_part(verdict_to_json(verdict)))
"""A verdict, as records hold it."""


def answers_to_json(verdict: Verdict, pool: Pool, edge: Edge) -> list[JsonValue]:
    """Return what each jurisdiction said of each of the two movements of a route."""
    ends = {Action.INFER: (edge.id, pool.id), Action.RETURN: (pool.id, edge.id)}
    legs = {Action.INFER: Leg.EDGE_TO_POOL, Action.RETURN: Leg.POOL_TO_EDGE}
    found: list[JsonValue] = []
    for action, (source, target) in ends.items():
        answers = [answer for answer in verdict.answers if answer.action is action]
        movement: dict[str, JsonValue] = {
            "action": action.value,
            "leg": legs[action].value,
            "from": source,
            "to": target,
            # Nobody was asked where the house refused first.
            "allowed": bool(answers) and not any(answer.reasons for answer in answers),
            "jurisdictions": [answer_to_json(answer) for answer in answers],
        }
        found.append(movement)
    return found


def answer_to_json(answer: Answer) -> dict[str, JsonValue]:
    """Return what one jurisdiction said."""
    return {
        "jurisdiction": answer.jurisdiction,
        "allowed": not answer.reasons,
        "grants": list[JsonValue](answer.grants),
        "reasons": [reason_to_json(reason) for reason in answer.reasons],
        "obligations": [{"kind": duty.kind.value, "argument": duty.argument} for duty in answer.obligations],
        "shadow": list[JsonValue](answer.shadow),
    }


def needs_of(verdict: Verdict) -> list[JsonValue]:
    """Return what would be needed, each once."""
    return list[JsonValue](dict.fromkeys(reason.needs for reason in verdict.reasons if reason.needs))


def reason_to_json(reason: Reason) -> dict[str, JsonValue]:
    """Return one reason."""
    return {
        "rule": reason.rule,
        "jurisdiction": reason.jurisdiction,
        "sentence": reason.sentence,
        "needs": reason.needs,
    }


def terms_to_json(terms: Terms) -> dict[str, JsonValue]:
    """Return every term of J. Money is a string: it may exceed what a JSON number holds exactly."""
    return {
        "total_pico": str(terms.total_pico),
        "tokens_pico": str(terms.tokens_pico),
        "egress_pico": str(terms.egress_pico),
        "carbon_pico": str(terms.carbon_pico),
        "time_pico": str(terms.time_pico),
        "late_pico": str(terms.late_pico),
        "others_pico": str(terms.others_pico),
        "rtt_us": terms.rtt_us,
        "rtt_measured": terms.rtt_measured,
        "upload_us": terms.upload_us,
        "queue_us": terms.queue_us,
        "prefill_us": terms.prefill_us,
        "decode_us": terms.decode_us,
        "first_us": terms.first_us,
        "time_us": terms.time_us,
        "spread_us": terms.spread_us,
        "late_first_us": terms.late_first_us,
        "late_decode_us": terms.late_decode_us,
        "cached_tokens": terms.cached_tokens,
        "others_us": terms.others_us,
        "told_us": terms.told_us,
        "beside": terms.beside,
    }


class TermsWritten(msgspec.Struct, frozen=True):
    """Every term of J by the names of a record, in their order: made and spelled sooner than a mapping."""

    beside: int
    cached_tokens: int
    carbon_pico: str
    decode_us: int
    egress_pico: str
    first_us: int
    late_decode_us: int
    late_first_us: int
    late_pico: str
    others_pico: str
    others_us: int
    prefill_us: int
    queue_us: int
    rtt_measured: bool
    rtt_us: int
    spread_us: int
    time_pico: str
    time_us: int
    tokens_pico: str
    told_us: int
    total_pico: str
    upload_us: int


def written_terms(terms: Terms) -> TermsWritten:
    """Return what `terms_to_json` does, for a record."""
    return TermsWritten(
        terms.beside,
        terms.cached_tokens,
        str(terms.carbon_pico),
        terms.decode_us,
        str(terms.egress_pico),
        terms.first_us,
        terms.late_decode_us,
        terms.late_first_us,
        str(terms.late_pico),
        str(terms.others_pico),
        terms.others_us,
        terms.prefill_us,
        terms.queue_us,
        terms.rtt_measured,
        terms.rtt_us,
        terms.spread_us,
        str(terms.time_pico),
        terms.time_us,
        str(terms.tokens_pico),
        terms.told_us,
        str(terms.total_pico),
        terms.upload_us,
    )
