"""Usage records: what one attempt consumed. Each side keeps its own two counts and, marked so, the other's two."""

from __future__ import annotations

from enum import Enum

import msgspec

from orchestrator.evidence.canonical import spelled
from orchestrator.ledger.money import Money
from orchestrator.policy.ids import AttemptId, DecisionId, ModelId, PoolId, RequestId, TenantId, UsageId

USAGE_VERSION = 3


class Counted(Enum):
    """How a token count came about."""

    IDS = "ids"
    """Token ids were counted."""
    CHUNKS = "chunks"
    """Text chunks were counted; an engine may put more than one token in a chunk."""
    ENGINE = "engine"
    """The engine reported it at the end of a complete answer."""


class Outcome(Enum):
    """How an attempt ended."""

    COMPLETE = "complete"
    CANCELLED = "cancelled"
    BROKEN = "broken"
    REFUSED = "refused"
    LOST = "lost"
    """The program that kept this record was killed under it. What it had counted is not known, which is not zero."""


class Resumable(Enum):
    """Whether an answer could have gone on elsewhere, had it been cut; and if not, why."""

    IDS = "ids"
    TEXT = "text"
    ENGINE = "engine"
    """Nothing is known of what the model is, or its engine continues no answers."""
    BUDGET = "budget"
    """The edge kept as much as it may."""
    TENANT = "tenant"
    """The tenant wants none of it."""


class PoolCounts(msgspec.Struct, frozen=True):
    """Counted where tokens are made. Prompt and cached are the pool's word too."""

    prompt: int = 0
    cached: int = 0
    generated: int = 0
    sent: int = 0


class EdgeCounts(msgspec.Struct, frozen=True):
    """Counted where tokens arrive and are handed to the tenant."""

    received: int = 0
    delivered: int = 0


class UsageRecord(msgspec.Struct, frozen=True):
    """One attempt, as one side counts it. The side's own counts are `own`; the other's are `reported`."""

    id: UsageId
    request: RequestId
    attempt: AttemptId
    decision: DecisionId
    tenant: TenantId | None
    """None on the side where the tenant's name does not travel."""
    pool: PoolId
    model: ModelId
    outcome: Outcome
    counted: Counted | None
    """None where nothing is counted."""
    pool_counts: PoolCounts | None
    edge_counts: EdgeCounts | None
    own: str
    """`pool` or `edge`: which of the two counts this side made itself. The other one is as reported."""
    price: Money | None
    """Of the whole answer, on the record of the attempt that completed it."""
    ended_ms: int
    continues: AttemptId | None = None
    """The attempt that was cut, where this one took its place."""
    first_token: int = 0
    """Where in the whole answer its first token stands."""
    resumable: Resumable | None = None
    """None on the side that keeps nothing for it, and where the attempt never began."""

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        pool, edge, price = self.pool_counts, self.edge_counts, self.price
        counts = _Counts(
            None if edge is None else _Edge(edge.delivered, edge.received, self.own != "edge"),
            None if pool is None else _Pool(pool.cached, pool.generated, pool.prompt, self.own != "pool", pool.sent),
        )
        return spelled(
            _Written(
                self.attempt,
                self.continues,
                self.counted,
                counts,
                self.decision,
                self.ended_ms,
                self.first_token,
                self.id,
                "usage",
                self.model,
                self.outcome,
                self.pool,
                None if price is None else _Price(str(price.amount_pico), price.currency),
                self.request,
                self.resumable,
                self.tenant,
                USAGE_VERSION,
            )
        )


class _Pool(msgspec.Struct, frozen=True):
    cached: int
    generated: int
    prompt: int
    reported: bool
    sent: int


class _Edge(msgspec.Struct, frozen=True):
    delivered: int
    received: int
    reported: bool


class _Counts(msgspec.Struct, frozen=True, omit_defaults=True):
    """Only what was counted is named."""

    edge: _Edge | None = None
    pool: _Pool | None = None


class _Price(msgspec.Struct, frozen=True):
    amount_pico: str
    """Pico-units may exceed 2^53 - 1, so the amount is written as a string."""
    currency: str


class _Written(msgspec.Struct, frozen=True):
    """A usage record by the names of its bytes, in their order."""

    attempt: AttemptId
    continues: AttemptId | None
    counted: Counted | None
    counts: _Counts
    decision: DecisionId
    ended_ms: int
    first_token: int
    id: UsageId
    kind: str
    model: ModelId
    outcome: Outcome
    pool: PoolId
    price: _Price | None
    request: RequestId
    resumable: Resumable | None
    tenant: TenantId | None
    v: int
