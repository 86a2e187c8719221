"""What the pool's side writes of an attempt: its decision, and what the attempt consumed. Values only; pure."""

from __future__ import annotations

import msgspec

from orchestrator.evidence.canonical import written_part
from orchestrator.evidence.citation import facts_part
from orchestrator.evidence.records import KIND as DECISION
from orchestrator.evidence.records import PERMITTED, DecisionRecord, discharged_part, owed
from orchestrator.ledger.usage import KIND as USAGE
from orchestrator.ledger.usage import (
    ByEdge,
    Counted,
    Counts,
    EdgeCounts,
    Outcome,
    PoolCounts,
    UsageRecord,
    by_pool,
)
from orchestrator.placement.explain import verdict_part
from orchestrator.policy.ids import DecisionId, EdgeId, SideId, UsageId
from orchestrator.wire.catalogue import Problem
from orchestrator.wire.frames import Open
from scheduler.intake.second_permit import Check

_NO_VERDICT = written_part({})


class _Account(msgspec.Struct, frozen=True):
    """What stands where the edge's record has the account of a placement."""

    answers: DecisionId
    """The edge's decision."""
    newest: msgspec.Raw
    """The verdict by the law that this side holds."""


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
    verdict = _NO_VERDICT if check.verdict is None else verdict_part(check.verdict)
    return DecisionRecord(
        None,  # what was asked
        opened.attempt,
        opened.citation,
        None,  # the client's own id
        None,  # commitment
        opened.continues,
        now_ms,
        discharged_part(check.discharged),
        edge,
        facts_part(opened.facts),
        opened.generation.first_token(),
        decision,
        None if opened.inputs is None else opened.inputs.written,
        None,  # key
        DECISION,
        None,  # sources of the label
        opened.generation.model,
        PERMITTED if problem is None else problem.entry.code,
        payload_bytes,
        _Account(opened.decision, verdict),
        opened.pool,
        "scheduler",
        opened.facts.label.regulated(),
        opened.request,
        () if check.verdict is None else owed(check.verdict.obligations).retention,
        side,
        None,  # tenant
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
    edge = None if edge_counts is None else ByEdge(edge_counts.delivered, edge_counts.received, reported=True)
    return UsageRecord(
        opened.attempt,
        opened.continues,
        counted,
        Counts(edge, by_pool(pool_counts, reported=False)),
        opened.decision,
        now_ms,
        opened.generation.first_token(),
        usage,
        USAGE,
        opened.generation.model,
        outcome,
        opened.pool,
        None,  # price
        opened.request,
        None,  # whether it could have gone on
        None,  # tenant
    )
