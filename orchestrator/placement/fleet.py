"""The declared fleet: edges and pools as signed configuration. Liveness is known from sessions and probes only."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.ledger.rating import PriceBook, TokenPrice
from orchestrator.placement.capabilities import Capability
from orchestrator.policy.ids import EdgeId, KeyId, ModelId, PlaceId, PoolId, SchedulerId, SideId
from orchestrator.policy.places import Place, SinkKind


class Assurance(Enum):
    """Who checks a send to the pool."""

    TWO_PARTY = "two-party"
    """The edge and the pool's scheduler."""
    EDGE_ONLY = "edge-only"
    """The edge alone: there is no scheduler behind this pool."""


class PrefixCache(Enum):
    """Whether an engine shares keys and values of prompts between requests."""

    NONE = "none"
    """Those of a request are used by that request alone, as in the embedded engine."""
    SHARED = "shared"
    """Prefix caching is on: what one request brought in may serve another."""


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model as one pool serves it, with declared speed until it is measured."""

    id: ModelId
    context_tokens: int
    capabilities: frozenset[Capability]
    prefill_us_per_token: int
    """Microseconds of prefill per uncached prompt token."""
    decode_us_per_token: int
    """Microseconds per output token of a stream that runs alone."""


@dataclass(frozen=True, slots=True)
class Pool:
    """GPUs of one kind at one site behind one scheduler, or one external engine."""

    id: PoolId
    side: SideId
    region: str
    accelerator: str
    place: Place
    assurance: Assurance
    models: tuple[ServedModel, ...]
    slots: int
    """Streams that run at once when every replica is up."""
    scheduler: SchedulerId | None = None
    intake: str | None = None
    """``host:port`` that edges dial; with a scheduler only."""
    engine: str | None = None
    """Name of an engine in the configuration of the edges of `reachable_from`; without a scheduler only."""
    reachable_from: frozenset[EdgeId] = frozenset()
    """For an edge-only pool: the edges that may reach it."""
    prefix_cache: PrefixCache = PrefixCache.NONE

    def served(self, model: ModelId) -> ServedModel | None:
        """Return how this pool serves `model`, or None when it does not."""
        return next((served for served in self.models if served.id == model), None)

    def reachable(self, edge: EdgeId) -> bool:
        """Whether `edge` may reach this pool at all."""
        return self.scheduler is not None or edge in self.reachable_from


@dataclass(frozen=True, slots=True)
class EdgeKey:
    """A public key with which an edge signs what it attests."""

    id: KeyId
    public_key: bytes
    """32 bytes, Ed25519."""


@dataclass(frozen=True, slots=True)
class Edge:
    """A node agent at one region."""

    id: EdgeId
    side: SideId
    region: str
    place: Place
    keys: tuple[EdgeKey, ...]
    """More than one while a key is rotated."""


@dataclass(frozen=True, slots=True)
class Sink:
    """Where something is kept besides pools: logs, traces, results, caches, artefacts."""

    id: PlaceId
    side: SideId
    kind: SinkKind
    place: Place


@dataclass(frozen=True, slots=True)
class Fleet:
    """Every declared edge, pool and sink, of both sides. Ids are unique."""

    edges: tuple[Edge, ...] = ()
    pools: tuple[Pool, ...] = ()
    sinks: tuple[Sink, ...] = ()

    def edge(self, edge: EdgeId) -> Edge | None:
        """Return the declared edge, or None."""
        return next((found for found in self.edges if found.id == edge), None)

    def pool(self, pool: PoolId) -> Pool | None:
        """Return the declared pool, or None."""
        return next((found for found in self.pools if found.id == pool), None)

    def models(self) -> tuple[ModelId, ...]:
        """Return every model that some pool serves, sorted."""
        return tuple(sorted({served.id for pool in self.pools for served in pool.models}))


@dataclass(frozen=True, slots=True)
class PoolCost:
    """What one pool costs the operator, for one model."""

    pool: PoolId
    model: ModelId
    tokens: TokenPrice
    egress_pico_per_byte: int


@dataclass(frozen=True, slots=True)
class Prices:
    """Costs of pools (the operator's) and price books (the tenants')."""

    costs: tuple[PoolCost, ...] = ()
    books: tuple[PriceBook, ...] = ()

    def cost(self, pool: PoolId, model: ModelId) -> PoolCost | None:
        """Return the operator's cost, or None: unknown is not zero."""
        return next((cost for cost in self.costs if cost.pool == pool and cost.model == model), None)

    def price(self, book: str, model: ModelId) -> TokenPrice | None:
        """Return the tenant's price, or None."""
        return next((found.prices.get(model) for found in self.books if found.id == book), None)
