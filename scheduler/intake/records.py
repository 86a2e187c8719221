"""What the pool's side writes of an attempt: its decision, and what the attempt consumed. Values only; pure."""

from __future__ import annotations

from orchestrator.evidence.canonical import JsonValue
from orchestrator.evidence.records import PERMITTED, DecisionRecord, retention_of
from orchestrator.ledger.usage import Counted, EdgeCounts, Outcome, PoolCounts, UsageRecord
from orchestrator.placement.explain import verdict_to_json
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
    verdict: dict[str, JsonValue] = {} if check.verdict is None else verdict_to_json(check.verdict)
    outcome = PERMITTED if problem is None else problem.entry.code
    retention = () if check.verdict is None else retention_of(check.verdict.obligations)
    generation, facts = opened.generation, opened.facts
    # By position, in the order of the fields: finding 23 names would take most of the time of all this.
    return DecisionRecord(
        decision, opened.request, None, opened.attempt, side, "scheduler", edge, None, None,
        generation.model, opened.pool, outcome, None, facts, opened.citation,
        {"answers": opened.decision, "newest": verdict}, None, opened.inputs, None,
        payload_bytes, facts.label.regulated(), retention, check.discharged, now_ms,
        opened.continues, generation.first_token(),
    )  # fmt: skip


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
    generation = opened.generation
    return UsageRecord(
        usage, opened.request, opened.attempt, opened.decision, None, opened.pool, generation.model,
        outcome, counted, pool_counts, edge_counts, "pool", None, now_ms,
        opened.continues, generation.first_token(),
    )  # fmt: skip
