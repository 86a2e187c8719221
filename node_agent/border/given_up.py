"""Attempts that nobody wanted any more while their decision was put on record: never sent, and closed all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from node_agent.border.decider import Asked, Decided
from orchestrator.ledger.usage import KIND, ByEdge, Counts, Outcome, UsageRecord
from orchestrator.policy.ids import RANDOM_BYTES, PoolId, make_usage_id
from orchestrator.spool.records import Holder, Position, RecordId
from orchestrator.spool.store import Spool
from orchestrator.spool.unawaited import append_usage
from orchestrator.telemetry.logs import logger

_NOTHING = Counts(ByEdge(0, 0, False), None)

log = logger("node_agent.border")


class GivenUp:
    """Closes such attempts. A decision that the spool did not take after all needs no end, and gets none."""

    def __init__(self, spool: Spool, now_ms: Callable[[], int], entropy: Callable[[int], bytes]) -> None:
        self._spool = spool
        self._now_ms = now_ms
        self._entropy = entropy

    def close(self, appending: asyncio.Future[Position], asked: Asked, decided: Decided, pool: PoolId) -> None:
        """Close an attempt as soon as its decision, whose `appending` was cancelled, is written."""
        self._spool.once_written(appending, partial(self._close, asked, decided, pool))

    def _close(self, asked: Asked, decided: Decided, pool: PoolId) -> None:
        now_ms, said, continued = self._now_ms(), asked.generation.said, asked.continued
        record = UsageRecord(
            attempt=decided.attempt,
            continues=None if continued is None else continued.attempt,
            counted=None,
            counts=_NOTHING,
            decision=decided.id,
            ended_ms=now_ms,
            first_token=0 if said is None else said.tokens,
            id=make_usage_id(now_ms, self._entropy(RANDOM_BYTES)),
            kind=KIND,
            model=asked.generation.model,
            outcome=Outcome.CANCELLED,
            pool=pool,
            price=None,
            request=asked.request,
            resumable=None,
            tenant=asked.tenant.id,
        )
        append_usage(self._spool, RecordId(record.id), record.to_bytes(), Holder(asked.tenant.id), log)
