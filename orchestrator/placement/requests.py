"""What placement is told of a request, and what is known of each pool at that moment. Frozen, without payload."""

from __future__ import annotations

import msgspec

from orchestrator.placement.capabilities import Capability
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import ModelId, PoolId
from orchestrator.policy.tenants import Service


class PlacementRequest(msgspec.Struct, frozen=True):
    """The shape of one request."""

    model: ModelId
    capabilities: frozenset[Capability]
    prompt_tokens: int
    """An estimate: only the pool counts. An estimate alone never refuses."""
    output_tokens: int
    """Expected, at most what the request allows."""
    upload_bytes: int
    tried: frozenset[PoolId] = frozenset()
    """Pools that refused this request already as `not_started`."""
    max_tokens: int | None = None
    """The limit that the request sets on its answer."""
    revision: str | None = None
    """Revision of the model that the request asks for; None takes any."""
    service: Service | None = None
    """What the tenant was promised, where that differs from the settings."""
    bill_pico: int | None = None
    """What the tenant would pay with nothing cached, by its price book; None when no book prices the model."""
    cached_rebate_pico: int = 0
    """How much less it pays for each cached prompt token."""
    entitled: bool = True
    """Whether the tenant may use the model."""
    canary: bool = False
    """Whether the canary's settings decide."""


class PoolLoad(msgspec.Struct, frozen=True):
    """What a pool last reported of itself. None is unknown, and unknown is not zero."""

    replicas: int
    slots: int
    running: int
    waiting: int
    waiting_max: int
    age_ms: int
    """Since the report arrived."""
    queued_tokens: int | None = None
    """Prompt tokens that are accepted and not yet taken in."""
    kv_tokens: int | None = None
    """Tokens whose keys and values fit, over all replicas."""
    kv_used_tokens: int | None = None
    openings: int | None = None
    """Attempts that this edge may still start, counted from the report; None where nobody grants any."""

    def full(self) -> bool:
        """Whether one more would be refused: every slot runs and the queue holds no more."""
        return self.running >= self.slots and self.waiting >= self.waiting_max


class PoolView(msgspec.Struct, frozen=True):
    """What an edge knows of one pool now. None is unknown, and unknown is not zero."""

    pool: PoolId
    up: bool
    """A live session accepts work, or the engine answered its last probe."""
    rtt_us: int | None
    load: PoolLoad | None
    own_in_flight: int
    """Attempts of this edge at this pool that have not ended."""
    unseen: int = 0
    """Of these, attempts that the last report cannot have counted."""
    unseen_tokens: int = 0
    """Uncached prompt tokens of the unseen ones."""
    bytes_per_s: int | None = None
    """Measured on the way there."""
    cached_tokens: int = 0
    """Prompt tokens of this request that the pool is expected to hold already."""
    speed: Speed | None = None
    """Learned; None before anything was."""
    held_off: bool = False
    """Its breaker is open to whoever asks, or to all, or it is an outlier."""
