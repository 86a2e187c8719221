"""What the pool's side writes of an attempt: its decision, and what the attempt consumed. Values only; pure."""

from __future__ import annotations

import msgspec

from orchestrator.evidence.canonical import written_part
from orchestrator.evidence.records import PERMITTED, DecisionRecord, owed
from orchestrator.ledger.usage import Counted, EdgeCounts, Outcome, PoolCounts, UsageRecord
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
        decision,
        opened.request,
        None,  # the client's own id
        opened.attempt,
        side,
        "scheduler",
        edge,
        None,  # tenant
        None,  # key
        opened.generation.model,
        opened.pool,
        PERMITTED if problem is None else problem.entry.code,
        None,  # sources of the label
        opened.facts,
        opened.citation,
        _Account(opened.decision, verdict),
        None,  # what was asked
        opened.inputs,
        None,  # commitment
        payload_bytes,
        opened.facts.label.regulated(),
        () if check.verdict is None else owed(check.verdict.obligations).retention,
        check.discharged,
        now_ms,
        opened.continues,
        opened.generation.first_token(),
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
        usage,
        opened.request,
        opened.attempt,
        opened.decision,
        None,  # tenant
        opened.pool,
        opened.generation.model,
        outcome,
        counted,
        pool_counts,
        edge_counts,
        "pool",
        None,  # price
        now_ms,
        opened.continues,
        opened.generation.first_token(),
    )
