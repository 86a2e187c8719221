"""What the pool's side writes of an attempt: its decision, and what the attempt consumed. Values only; pure."""

from __future__ import annotations

from orchestrator.evidence.canonical import Writable
from orchestrator.evidence.records import PERMITTED, DecisionRecord, owed
from orchestrator.ledger.usage import Counted, EdgeCounts, Outcome, PoolCounts, UsageRecord
from orchestrator.placement.explain import verdict_part
from orchestrator.policy.ids import DecisionId, EdgeId, SideId, UsageId
from orchestrator.wire.catalogue import Problem
from orchestrator.wire.frames import Open
from scheduler.intake.second_permit import Check


def decision_record(
    decision: DecisionId,
    side: SideId,
    edge: EdgeId,
    opened: Open,
    check: Check,
    problem: Problem | None,
    payload_bytes: int,
    now_ms: int,
) -> DecisionRecord:
    """Return this side's decision on an attempt. `payload_bytes` is the size of all its texts in UTF-8."""
    verdict: Writable = {} if check.verdict is None else verdict_part(check.verdict)
    return DecisionRecord(
        id=decision,
        request=opened.request,
        client_request=None,
        attempt=opened.attempt,
        side=side,
        program="scheduler",
        edge=edge,
        tenant=None,
        key_id=None,
        model=opened.generation.model,
        pool=opened.pool,
        outcome=PERMITTED if problem is None else problem.entry.code,
        sources=None,
        facts=opened.facts,
        citation=opened.citation,
        placement={"answers": opened.decision, "newest": verdict},
        asked=None,
        inputs=opened.inputs,
        commitment=None,
        payload_bytes=payload_bytes,
        regulated=opened.facts.label.regulated(),
        retention=() if check.verdict is None else owed(check.verdict.obligations).retention,
        discharged=check.discharged,
        decided_ms=now_ms,
        continues=opened.continues,
        first_token=opened.generation.first_token(),
    )


def usage_record(
    usage: UsageId,
    opened: Open,
    outcome: Outcome,
    counted: Counted,
    pool_counts: PoolCounts,
    edge_counts: EdgeCounts | None,
    now_ms: int,
) -> UsageRecord:
    """Return what an attempt consumed, by the pool's own count and, where it told, the edge's."""
    return UsageRecord(
        id=usage,
        request=opened.request,
        attempt=opened.attempt,
        decision=opened.decision,
        tenant=None,
        pool=opened.pool,
        model=opened.generation.model,
        outcome=outcome,
        counted=counted,
        pool_counts=pool_counts,
        edge_counts=edge_counts,
        own="pool",
        price=None,
        ended_ms=now_ms,
        continues=opened.continues,
        first_token=opened.generation.first_token(),
    )
