"""Usage records: what one attempt consumed. Each side keeps its own two counts and, marked so, the other's two."""

from __future__ import annotations

from enum import Enum

import msgspec

from orchestrator.evidence.canonical import spelled
from orchestrator.policy.ids import AttemptId, DecisionId, ModelId, PoolId, RequestId, TenantId, UsageId

USAGE_VERSION = 3
KIND = "usage"
"""What a record of usage names itself."""


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
    """One attempt, as one side counts it, by the names of its bytes and in their order."""

    attempt: AttemptId
    continues: AttemptId | None
    """The attempt that was cut, where this one took its place."""
    counted: Counted | None
    """None where nothing is counted."""
    counts: Counts
    decision: DecisionId
    ended_ms: int
    first_token: int
    """Where in the whole answer its first token stands."""
    id: UsageId
    kind: str
    """`KIND`."""
    model: ModelId
    outcome: Outcome
    pool: PoolId
    price: Price | None
    """Of the whole answer, on the record of the attempt that completed it."""
    request: RequestId
    resumable: Resumable | None
    """None on the side that keeps nothing for it, and where the attempt never began."""
    tenant: TenantId | None
    """None on the side where the tenant's name does not travel."""
    v: int = USAGE_VERSION

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return spelled(self)


class Counts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What both sides counted, as far as they did: one of them made this record, the other's counts are as reported."""

    edge: ByEdge | None = None
    pool: ByPool | None = None


class ByEdge(msgspec.Struct, frozen=True):
    """The edge's counts by the names of a record, in their order."""

    delivered: int
    received: int
    reported: bool


class ByPool(msgspec.Struct, frozen=True):
    """The pool's counts by the names of a record, in their order."""

    cached: int
    generated: int
    prompt: int
    reported: bool
    sent: int


class Price(msgspec.Struct, frozen=True):
    """What a tenant pays, by the names of a record, in their order."""

    amount_pico: str
    """Pico-units may exceed 2^53 - 1, so the amount is written as a string."""
    currency: str


def by_pool(counts: PoolCounts, *, reported: bool) -> ByPool:
    """Return the pool's counts as a record holds them."""
    return ByPool(counts.cached, counts.generated, counts.prompt, reported, counts.sent)
