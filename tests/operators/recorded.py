"""Decision records as an edge writes them: made by the code that decides, over a folder or a bundle."""

from __future__ import annotations

from pathlib import Path

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.law.explain import ground_of
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.evidence.citation import Citation, facts_part
from orchestrator.evidence.duties import Means, discharge
from orchestrator.evidence.inputs import manifest_of
from orchestrator.evidence.records import KIND, DecisionRecord, discharged_part, owed, sources_part
from orchestrator.files.document import read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.requests import RequestDocument, request_of
from orchestrator.placement.asked import Asked
from orchestrator.placement.decide import gather, label, place_permitted
from orchestrator.placement.explain import placement_to_json
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.policy.ids import KeyId, ModelId, make_attempt_id, make_decision_id, make_request_id
from orchestrator.policy.permit import PERMIT_VERSION
from tests.operators.desk import NOW_MS

CHANCE = 1 << 63
"""More than a JSON number holds."""


def record_of(law: Path | Bundle, request: Path, now_ms: int = NOW_MS) -> DecisionRecord:
    """Decide about a request file as an edge does, and return what it records."""
    bundle = law if isinstance(law, Bundle) else read_lawbook(law, now_ms).bundle
    asked = read_as(read_document(request), RequestDocument, request_of)
    edge = bundle.fleet.edge(asked.edge)
    tenant = next(one for one in bundle.tenants if one.id == asked.tenant)
    assert edge is not None
    sources = label(tenant, asked.declared, edge)
    facts = gather(tenant, sources, (), asked.processed_in)
    shape = PlacementRequest(ModelId("demo"), asked.capabilities, asked.prompt_tokens, asked.output_tokens, 1000)
    views = {
        pool.id: PoolView(pool.id, True, 40_000 * number, PoolLoad(1, pool.slots, number, 0, 8, 10 * number), number)
        for number, pool in enumerate(bundle.fleet.pools)
    }
    ground = ground_of(bundle, edge, now_ms)
    papers = frozenset(pathway.id for pathway in facts.pathways) & ground.revoked_pathways
    told = Asked(shape, views, CHANCE, ground.revoked_pools, papers, ground.skew_ms)
    placement = place_permitted(ground, facts, shape, views, now_ms, CHANCE)
    decision, attempt = make_decision_id(now_ms, b"0123456789"), make_attempt_id(now_ms, b"0123456789")
    chosen = placement.chosen
    duties = () if chosen is None else chosen.verdict.obligations
    inputs = manifest_of(attempt, (("user", "words"),), facts.label, b"k" * 32, KeyId("commit"))
    return DecisionRecord(
        id=decision,
        request=make_request_id(now_ms, b"0123456789"),
        client_request=None,
        attempt=None if chosen is None else attempt,
        side=edge.side,
        program="edge",
        edge=edge.id,
        tenant=tenant.id,
        key_id=tenant.keys[0].id,
        model=shape.model,
        pool=None if chosen is None else chosen.pool.id,
        outcome="residency_blocked" if chosen is None else "sent",
        labels=sources_part(sources),
        facts=facts_part(facts),
        citation=Citation(bundle.number, bundle.digest, now_ms, PERMIT_VERSION, bundle.revocations.number, bundle.side),
        placement=placement_to_json(placement),
        asked=told.to_json(),
        inputs=inputs.written,
        commitment=None,
        payload_bytes=5,
        regulated=facts.label.regulated(),
        retention=owed(duties).retention,
        discharged=discharged_part(discharge(duties, Means(facts, decision, inputs)) or ()),
        decided_ms=now_ms,
        continues=None,
        first_token=0,
        kind=KIND,
    )
