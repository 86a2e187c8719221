"""What placement is told of a request, and what is known of each pool at that moment. Frozen, without payload."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.placement.capabilities import Capability
from orchestrator.policy.ids import ModelId, PoolId


@dataclass(frozen=True, slots=True)
class PlacementRequest:
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


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """What a pool last reported of itself."""

    replicas: int
    slots: int
    running: int
    waiting: int
    waiting_max: int
    age_ms: int

    def full(self) -> bool:
        """Whether one more would be refused: every slot runs and the queue holds no more."""
        return self.running >= self.slots and self.waiting >= self.waiting_max


@dataclass(frozen=True, slots=True)
class PoolView:
    """What an edge knows of one pool now. None is unknown, and unknown is not zero."""

    pool: PoolId
    up: bool
    """A live session accepts work, or the engine answered its last probe."""
    rtt_us: int | None
    load: PoolLoad | None
    own_in_flight: int
    """Attempts of this edge at this pool that have not ended."""
