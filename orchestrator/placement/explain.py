"""The account of a placement, as canonical JSON holds it. The live path and `explain` share it."""

from __future__ import annotations

from orchestrator.evidence.canonical import JsonValue
from orchestrator.placement.cost import Terms
from orchestrator.placement.pick import Candidate, Placement
from orchestrator.policy.verdicts import Reason, Verdict


def placement_to_json(placement: Placement) -> dict[str, JsonValue]:
    """Return the whole account."""
    chosen = placement.chosen
    return {
        "chosen": None if chosen is None else chosen.pool.id,
        "candidates": [candidate_to_json(candidate) for candidate in placement.candidates],
        "dropped": dict[str, JsonValue](placement.counts()),
    }


def candidate_to_json(candidate: Candidate) -> dict[str, JsonValue]:
    """Return one pool: its verdict, and why it was dropped or what it would cost."""
    return {
        "pool": candidate.pool.id,
        "assurance": candidate.pool.assurance.value,
        "places": list[JsonValue](sorted(candidate.pool.place.reach())),
        "verdict": verdict_to_json(candidate.verdict),
        "drop": None if candidate.drop is None else candidate.drop.value,
        "terms": None if candidate.terms is None else terms_to_json(candidate.terms),
    }


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
        "time_pico": str(terms.time_pico),
        "late_pico": str(terms.late_pico),
        "rtt_us": terms.rtt_us,
        "rtt_measured": terms.rtt_measured,
        "queue_us": terms.queue_us,
        "prefill_us": terms.prefill_us,
        "decode_us": terms.decode_us,
    }
