"""The second permit: the pool's side asks the same law again. Pure.

Twice: with exactly what the edge cited (another verdict there means a bug or tampering: refuse, and alarm), and with
the newest law this side holds and its own time (which must also allow; else the edge is told that policy is newer).
Where the cited law is the newest and its verdict stands at both times, one answer is both.
Every refusal is `not_started`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import msgspec

from orchestrator.bundles.assemble import Bundle
from orchestrator.evidence.attestation import sealed
from orchestrator.evidence.citation import attestation_bytes
from orchestrator.evidence.duties import Done, Means, discharge
from orchestrator.evidence.inputs import agrees, states
from orchestrator.placement.fleet import Edge
from orchestrator.policy.bundle import Law
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, KeyId, PathwayId
from orchestrator.policy.permit import PERMIT_VERSION, permit_route
from orchestrator.policy.places import Place
from orchestrator.policy.verdicts import Verdict
from orchestrator.wire.catalogue import Problem
from orchestrator.wire.frames import Open

SKEW_MAX_MS = 30_000
"""How far the cited time may lie from ours."""


class Check(msgspec.Struct, frozen=True):
    """What the second permit found."""

    problem: Problem | None
    """None when the attempt may run."""
    verdict: Verdict | None
    """By the newest law, where it came to that."""
    discharged: tuple[Done, ...] = ()
    alarm: str | None = None
    """A sentence for operators, where both sides read the same law differently."""


Ask = Callable[[Law, Facts, Place, Place, int], Verdict]
"""Asks a law about a route; the default is the interpreter, a scheduler takes `policy.table.Tables`."""


def second_permit(
    opened: Open, edge_id: EdgeId, cited: Bundle | None, newest: Bundle | None, now_ms: int, ask_law: Ask = permit_route
) -> Check:
    """Judge one attempt. `cited` is the manifest that it names, or None when this side cannot come by it."""
    citation = opened.citation
    if cited is None:
        return _refuse("policy_stale", "The cited manifest is not held by the pool's side.")
    if newest is None:
        return _refuse("no_bundle", "The pool's side holds no usable bundle.")
    if citation.permit_version != PERMIT_VERSION:
        return _refuse("policy_stale", "The decision was made by another version of permit.")
    if not -SKEW_MAX_MS <= citation.now_ms - now_ms <= SKEW_MAX_MS:
        return _refuse("policy_stale", f"The cited time is more than {SKEW_MAX_MS // 1000} s from the pool's.")
    edge, pool = cited.fleet.edge(edge_id), cited.fleet.pool(opened.pool)
    if edge is None or pool is None:
        return _alarm(opened, "the cited fleet does not declare this edge and this pool")
    key = _public_key(edge, opened.key_id)
    inputs = None if opened.inputs is None else opened.inputs.digest
    signed = attestation_bytes(edge_id, opened.attempt, opened.decision, opened.pool, opened.facts, citation, inputs)
    if key is None or not sealed(key, signed, opened.signature):
        return _alarm(opened, "the facts are not signed by a key of this edge")
    verdict = ask_law(cited.law, opened.facts, edge.place, pool.place, citation.now_ms)
    if not verdict.allowed:
        return _alarm(opened, f"the cited law refuses by {', '.join(verdict.rules)}")
    if newest is not cited:
        edge, pool = newest.fleet.edge(edge_id), newest.fleet.pool(opened.pool)
        key = None if edge is None else _public_key(edge, opened.key_id)
    revoked = newest.revoked
    gone = opened.pool in revoked.pools or edge_id in revoked.edges or opened.key_id in revoked.keys
    if edge is None or pool is None or key is None or gone:
        return _refuse("policy_newer", "The newest fleet of the pool's side does not have this edge and this pool.")
    if opened.generation.said is not None and not opened.facts.processed_in:
        return _alarm(opened, "it goes on with an answer, and does not say where that was made")
    facts = _without(opened.facts, revoked.pathways) if revoked.pathways else opened.facts
    # Of the same law and the same facts a verdict stands as long as it says.
    stands = newest is cited and facts is opened.facts and citation.now_ms <= now_ms < verdict.valid_until_ms
    if not stands:
        verdict = ask_law(newest.law, facts, edge.place, pool.place, now_ms)
    return _by_newest(opened, facts, verdict)


def _by_newest(opened: Open, facts: Facts, verdict: Verdict) -> Check:
    """Judge what the newest law says: its verdict, and what that asks for."""
    if not verdict.allowed:
        sentence = "The newest law of the pool's side refuses this."
        return Check(Problem("policy_newer", sentence, None, tuple(verdict.rules)), verdict)
    if opened.inputs is not None and not agrees(opened.inputs, opened.generation.texts()):
        return _alarm(opened, "the input manifest does not account for what arrived")
    if opened.inputs is not None and not states(opened.inputs, facts.label):
        return _alarm(opened, "the input manifest says another thing than the label")
    discharged = discharge(verdict.obligations, Means(facts, opened.decision, opened.inputs))
    if discharged is None:
        return _refuse("policy_newer", "A duty of the newest law has nothing here that discharges it.")
    return Check(None, verdict, discharged)


def _without(facts: Facts, revoked: frozenset[PathwayId]) -> Facts:
    if not any(pathway.id in revoked for pathway in facts.pathways):
        return facts
    return replace(facts, pathways=tuple(p for p in facts.pathways if p.id not in revoked))


def _public_key(edge: Edge, key_id: KeyId) -> bytes | None:
    for key in edge.keys:
        if key.id == key_id:
            return key.public_key
    return None


def _refuse(code: str, sentence: str) -> Check:
    return Check(Problem(code, sentence), None)


def _alarm(opened: Open, what: str) -> Check:
    return Check(Problem("policy_mismatch"), None, (), f"attempt {opened.attempt}: {what}")
