"""The decision of an edge about one attempt, and the account of it. Acts on nothing: time and chance are parameters.

Label, permit, place and the duties that come with it are decided here; the gate records and sends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import msgspec
from msgspec.structs import replace

from node_agent.border.problems import problem_of
from node_agent.border.resume import Continued
from orchestrator.bundles.assemble import Bundle
from orchestrator.engines.generation import Generation
from orchestrator.evidence.canonical import commit
from orchestrator.evidence.citation import Citation, facts_part
from orchestrator.evidence.duties import DISCHARGERS, Done, Means, discharge
from orchestrator.evidence.inputs import InputManifest, manifest_of
from orchestrator.evidence.records import (
    KIND,
    OWED_NOTHING,
    SENT,
    DecisionRecord,
    Owed,
    discharged_part,
    owed,
    sources_part,
)
from orchestrator.placement.asked import AskedWritten, asked_to_json
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.decide import NOTHING_CARRIED, Decision, Ground, decide
from orchestrator.placement.explain import placement_to_json
from orchestrator.placement.fleet import Edge
from orchestrator.placement.pick import Candidate
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings, in_canary
from orchestrator.placement.shape import shape_of
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import (
    RANDOM_BYTES,
    AttemptId,
    DecisionId,
    EdgeId,
    KeyId,
    PoolId,
    RequestId,
    make_attempt_id,
    make_decision_id,
)
from orchestrator.policy.labels import Labels
from orchestrator.policy.permit import PERMIT_VERSION
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Tenant
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.deadlines import AS_SET, Waits

CHANCE_BYTES = 8
"""What ties are broken by."""
DRAWN_HEX = 16
"""Digits at the end of a request's id that are random."""
_DISCHARGED = DISCHARGERS.keys()
"""The duties that this program can do, now."""


class Departure(Protocol):
    """Told of every send of one request: for a request that must be sent once at most, however often it is asked."""

    async def before_send(self, *, may_keep: bool) -> None:
        """It is about to be sent; the law lets what comes back be kept here, or does not. Raises ProblemError."""

    def not_started(self) -> None:
        """It was sent, and refused without having been begun."""


class Asked(msgspec.Struct, frozen=True):
    """One checked request of a known tenant."""

    request: RequestId
    client_request: str | None
    tenant: Tenant
    key_id: KeyId
    generation: Generation
    capabilities: frozenset[Capability]
    declared: Labels
    body: bytes
    """The bytes that the commitment covers. They go nowhere else."""
    budget_ms: int
    """What it may take in all, from when the gate is asked."""
    waits: Waits = AS_SET
    departure: Departure | None = None
    """Told before each send; None for a request without an `Idempotency-Key`."""
    resumes: bool = True
    """Whether a cut attempt may be replaced by another: the tenant may want none of it."""
    continued: Continued | None = None
    """Set by the gate, where an attempt takes the place of one that was cut."""

    def __repr__(self) -> str:
        return f"Asked({self.request})"

    def after(self, passed_ms: int) -> Asked:
        """Return the same with the time that is left when so much of it has passed without a token."""
        if passed_ms <= 0:
            return self
        return replace(self, budget_ms=max(0, self.budget_ms - passed_ms), waits=self.waits.after(passed_ms))


class Commitment(msgspec.Struct, frozen=True):
    """The key of payload commitments, made per edge from a mounted secret."""

    key_id: KeyId
    key: bytes

    def __repr__(self) -> str:
        return f"Commitment({self.key_id})"


class Decided(msgspec.Struct, frozen=True):
    """One decision, before it is recorded."""

    edge: Edge
    shape: PlacementRequest
    blocks: tuple[int, ...]
    """Salted hashes of the prompt's growing prefixes."""
    decision: Decision
    id: DecisionId
    attempt: AttemptId
    chosen: Candidate | None
    """Where it goes; None where a problem keeps it from that."""
    travelling: Facts
    """What the law was told, as far as that goes with it."""
    citation: Citation
    asked: AskedWritten
    inputs: InputManifest | None
    discharged: tuple[Done, ...]
    owes: Owed
    problem: Problem | None

    def __repr__(self) -> str:
        return f"Decided({self.id})"


class Expected(msgspec.Struct, frozen=True):
    """What the edge expects of a request before it is placed."""

    prompt_tokens: int
    output_tokens: int
    blocks: tuple[int, ...] = ()
    """Salted hashes of the prompt's growing prefixes."""

    def __repr__(self) -> str:
        return f"Expected({self.prompt_tokens}, {self.output_tokens})"


class Held(msgspec.Struct, frozen=True):
    """A bundle, as one edge decides by it."""

    bundle: Bundle
    edge: Edge
    ground: Ground


class Decider:
    """Decides for one edge. Remembers the compiled law and the arranged offers of the newest bundle."""

    def __init__(self, edge: EdgeId) -> None:
        self._edge = edge
        self._held: Held | None = None

    def decide(
        self,
        asked: Asked,
        held: Held,
        expected: Expected,
        views: Mapping[PoolId, PoolView],
        tried: frozenset[PoolId],
        before: Problem | None,
        commitment: Commitment,
        now_ms: int,
        entropy: Callable[[int], bytes],
    ) -> Decided:
        """Label, permit, place, and do the duties that come with it."""
        bundle, edge, ground = held.bundle, held.edge, held.ground
        drawn = entropy(CHANCE_BYTES + 2 * RANDOM_BYTES)
        chance = int.from_bytes(drawn[:CHANCE_BYTES], "big")
        shape = _shape(asked, bundle, ground.settings, expected, tried)
        carried = NOTHING_CARRIED if asked.continued is None else asked.continued.carried()
        decision = decide(ground, edge, asked.tenant, asked.declared, shape, views, now_ms, chance, carried)
        chosen = decision.placement.chosen
        decision_id = make_decision_id(now_ms, drawn[CHANCE_BYTES:-RANDOM_BYTES])
        attempt_id = make_attempt_id(now_ms, drawn[-RANDOM_BYTES:])
        inputs: InputManifest | None = None
        discharged: tuple[Done, ...] | None = ()
        owes = OWED_NOTHING
        if chosen is not None:
            owes = owed(chosen.verdict.obligations)
            if owes.inputs:
                texts, label = asked.generation.texts(), decision.facts.label
                inputs = manifest_of(attempt_id, texts, label, commitment.key, commitment.key_id)
            discharged = discharge(chosen.verdict.obligations, Means(decision.facts, decision_id, inputs))
        # Of revocations only those that could matter: a decision rests on no other.
        pathways = ground.revoked_pathways
        if pathways:
            pathways = frozenset(pathway.id for pathway in decision.facts.pathways if pathway.id in pathways)
        problem: Problem | None = None
        if chosen is None:
            problem = problem_of(decision.placement, shape)
            if problem.code == "no_feasible_pool" and before is not None:
                problem = before  # what the last pool said is more exact than "none is left"
        elif discharged is None:
            problem = Problem("evidence_unavailable", "A duty of the law has nothing here that discharges it.")
        elif asked.continued is not None and not _said_in_time(asked, asked.continued, discharged):
            problem = Problem("evidence_unavailable", "A duty of the law cannot be done in an answer that has begun.")
        return Decided(
            edge,
            shape,
            expected.blocks,
            decision,
            decision_id,
            attempt_id,
            chosen if problem is None else None,
            decision.travelling(edge) if decision.facts.pathways else decision.facts,
            Citation(bundle.number, bundle.digest, now_ms, PERMIT_VERSION, bundle.revocations.number, bundle.side),
            asked_to_json(shape, views, chance, ground.revoked_pools, pathways, ground.skew_ms),
            inputs,
            discharged or (),
            owes,
            problem,
        )

    def held(self, bundle: Bundle, now_ms: int, skew_ms: int) -> Held:
        """Return what a decision stands on. The law is compiled once for each bundle, and when a date is reached.

        Raises ProblemError without a usable bundle.
        """
        held = self._held
        if held is not None and held.bundle is bundle and held.ground.skew_ms == skew_ms:
            ground = held.ground
            in_force = ground.table.made_ms <= now_ms < ground.table.valid_until_ms
            if in_force and ground.dischargers == _DISCHARGED:
                return held
        edge, settings = bundle.fleet.edge(self._edge), bundle.settings
        if settings is None or edge is None:
            raise ProblemError(Problem("no_bundle"))
        revoked = bundle.revoked
        # Of revocations only those that could matter: a decision rests on no other.
        pools = frozenset(pool.id for pool in bundle.fleet.pools if pool.id in revoked.pools)
        ground = Ground(
            self._compiled(bundle, edge, now_ms),
            bundle.fleet,
            Plan(self._edge, bundle.fleet, bundle.prices, settings.currency),
            settings,
            pools,
            revoked.pathways,
            frozenset(_DISCHARGED),
            skew_ms,
        )
        self._held = Held(bundle, edge, ground)
        return self._held

    def _compiled(self, bundle: Bundle, edge: Edge, now_ms: int) -> RouteTable:
        places = tuple(pool.place for pool in bundle.fleet.pools)
        if self._held is not None:
            table = self._held.ground.table
            fits = table.law is bundle.law and table.pools == places and table.edge == edge.place
            if fits and table.made_ms <= now_ms < table.valid_until_ms:
                return table
        return RouteTable(bundle.law, edge.place, places, now_ms)


def record_of(asked: Asked, decided: Decided, commitment: Commitment) -> DecisionRecord:
    """Return the account of a decision, complete and without payload."""
    decision, chosen, problem = decided.decision, decided.chosen, decided.problem
    said = asked.generation.said
    payload: tuple[bytes, ...] = (asked.body,)
    if said is not None:
        # What leaves is the body, and what was said of the answer already.
        payload += (said.text.encode(),)
    # By position, in the order of the fields: to find 27 names takes longer than to do all of this.
    return DecisionRecord(
        decided.asked, None if chosen is None else decided.attempt, decided.citation, asked.client_request,
        commit(commitment.key, commitment.key_id, payload),
        None if asked.continued is None else asked.continued.attempt, decided.citation.now_ms,
        discharged_part(decided.discharged), decided.edge.id, facts_part(decision.facts),
        0 if said is None else said.tokens, decided.id, None if decided.inputs is None else decided.inputs.written,
        asked.key_id, KIND, sources_part(decision.sources), asked.generation.model,
        SENT if problem is None else problem.entry.code, decided.shape.upload_bytes,
        placement_to_json(decision.placement), None if chosen is None else chosen.pool.id, "edge", decision.regulated,
        asked.request, decided.owes.retention, decided.edge.side, asked.tenant.id,
    )  # fmt: skip


def _said_in_time(asked: Asked, continued: Continued, discharged: tuple[Done, ...]) -> bool:
    """Whether every duty that is done by a header was done before the headers left."""
    if asked.generation.said is None:
        return True
    return {done.obligation for done in discharged if done.headers} <= continued.duties


def _shape(
    asked: Asked,
    bundle: Bundle,
    settings: PlacementSettings,
    expected: Expected,
    tried: frozenset[PoolId],
) -> PlacementRequest:
    generation, said = asked.generation, asked.generation.said
    most, upload_bytes = generation.sampling.max_tokens, len(asked.body)
    if said is not None:
        most = None if most is None else max(1, most - said.tokens)
        upload_bytes += len(said.text.encode())
    return shape_of(
        asked.tenant,
        bundle.prices,
        generation.model,
        asked.capabilities,
        expected.prompt_tokens,
        expected.output_tokens,
        upload_bytes,
        max_tokens=most,
        tried=tried,
        # By the request, so that all of its attempts are placed by the same settings.
        canary=settings.canary is not None and in_canary(settings, int(asked.request[-DRAWN_HEX:], 16)),
    )
