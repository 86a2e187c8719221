"""What a program that died left open: attempts that were decided on and have no usage record yet. Pure.

A program that is killed writes no usage for what it carried. When it starts again it reads its own records backwards
and closes each such attempt as `lost`, so that every decision has an end, and whoever settles knows that this side's
count is missing rather than zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from orchestrator.evidence.records import PERMITTED, SENT
from orchestrator.ledger.usage import KIND, Counts, Outcome, UsageRecord
from orchestrator.policy.ids import AttemptId, DecisionId, ModelId, PoolId, RequestId, TenantId, UsageId


class _Placement(msgspec.Struct):
    answers: DecisionId | None = None
    """On the pool's side: the decision of the edge that it answers."""


class _Decided(msgspec.Struct):
    """Of a decision record, what its usage record repeats. The rest is passed over."""

    id: DecisionId
    request: RequestId
    attempt: AttemptId | None
    tenant: TenantId | None
    model: ModelId
    pool: PoolId | None
    outcome: str
    decided_ms: int
    continues: AttemptId | None
    first_token: int
    placement: _Placement


class _Used(msgspec.Struct):
    attempt: AttemptId


_WENT_ON = {"edge": SENT, "pool": PERMITTED}
_DECIDED = msgspec.json.Decoder(_Decided)
_USED = msgspec.json.Decoder(_Used)


def left_open(
    backwards: Iterable[tuple[str, bytes]], own: str, within_ms: int, now_ms: int, make_id: Callable[[], UsageId]
) -> list[UsageRecord]:
    """Return the usage records of attempts that were left open, in the order in which they were decided.

    `backwards` are kind and bytes of this program's records, the last one first; no more of them are read than were
    written in the last `within_ms` before its end, the longest that an attempt may take. `own` is its side,
    `edge` or `pool`. Raises msgspec.DecodeError on what is no record of ours.
    """
    ended: set[AttemptId] = set()
    found: list[UsageRecord] = []
    last_ms: int | None = None
    for kind, data in backwards:
        if kind == "usage":
            ended.add(_USED.decode(data).attempt)
        if kind != "decision":
            continue
        decided = _DECIDED.decode(data)
        last_ms = decided.decided_ms if last_ms is None else last_ms
        if decided.decided_ms < last_ms - within_ms:
            break
        if decided.outcome != _WENT_ON[own] or decided.attempt is None or decided.pool is None:
            continue
        if decided.attempt not in ended:
            found.append(_lost(decided, decided.attempt, decided.pool, now_ms, make_id()))
        # A usage record comes after its decision, so this one is not met again.
        ended.discard(decided.attempt)
    return found[::-1]


def _lost(decided: _Decided, attempt: AttemptId, pool: PoolId, now_ms: int, usage: UsageId) -> UsageRecord:
    return UsageRecord(
        attempt=attempt,
        continues=decided.continues,
        counted=None,
        counts=Counts(),
        decision=decided.placement.answers or decided.id,
        ended_ms=now_ms,
        first_token=decided.first_token,
        id=usage,
        kind=KIND,
        model=decided.model,
        outcome=Outcome.LOST,
        pool=pool,
        price=None,
        request=decided.request,
        resumable=None,
        tenant=decided.tenant,
    )
