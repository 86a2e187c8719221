"""What is told of a pool, and of how a work fared there."""

from __future__ import annotations

import msgspec

from orchestrator.policy.ids import PoolId
from orchestrator.wire.frames import Load


class Passage(msgspec.Struct, frozen=True):
    """How a work fared here. None is unknown."""

    queued_us: int | None
    """From its submission until its prompt was taken in, as far as is known."""
    beside: int | None
    """Streams that decode beside it in its replica."""


class PoolState(msgspec.Struct, frozen=True):
    """What is reported of a pool."""

    replicas: int
    slots: int
    running: int
    waiting: int
    waiting_max: int
    free: int
    """Slots that are free."""
    queued_tokens: int | None
    """Prompt tokens accepted and not yet taken in, those in the queue included."""
    kv_tokens: int | None
    """Of all replicas together; None where one of them does not tell."""
    kv_used_tokens: int | None

    def room(self) -> int:
        """Return how many more attempts the pool would take: free slots, and free places in its queue."""
        return self.free + max(0, self.waiting_max - self.waiting) if self.replicas else 0

    def load(self, number: int, pool: PoolId, openings: int) -> Load:
        """Return the report with this number to an edge that has so many openings."""
        return Load(
            number,
            pool,
            self.replicas,
            self.slots,
            self.running,
            self.waiting,
            self.waiting_max,
            self.queued_tokens,
            self.kv_tokens,
            self.kv_used_tokens,
            openings,
        )
