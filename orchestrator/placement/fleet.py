"""The declared fleet: edges and pools as signed configuration. Liveness is known from sessions and probes only."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum

from orchestrator.ledger.rating import PriceBook, TokenPrice
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import EdgeId, KeyId, ModelId, PlaceId, PoolId, SchedulerId, SideId
from orchestrator.policy.places import Place, SinkKind


class Assurance(StrEnum):
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
    stream_us_per_token: int | None = None
    """Microseconds more per output token for each stream beside it; None: as if a full replica took twice as long."""
    revision: str | None = None
    """Which revision of the model it serves."""

    def speed(self, slots: int) -> Speed:
        """Return the declared speed of a replica with `slots` streams."""
        decode_ns = self.decode_us_per_token * 1000
        # Streams that run together share the memory bandwidth that decoding lives on: linear, to first order.
        beside = self.stream_us_per_token
        stream_ns = decode_ns // max(1, slots) if beside is None else beside * 1000
        return Speed(self.prefill_us_per_token * 1000, decode_ns, stream_ns)


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
        for served in self.models:
            if served.id == model:
                return served
        return None

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
    served: frozenset[ModelId] = field(init=False, repr=False, compare=False, default=frozenset())
    """Every model that some pool serves."""
    shares_prefixes: bool = field(init=False, repr=False, compare=False, default=False)
    """Whether some pool serves one request from what another brought in."""
    edge: Callable[[EdgeId], Edge | None] = field(init=False, repr=False, compare=False)
    """Returns the declared edge of an id, or None."""
    pool: Callable[[PoolId], Pool | None] = field(init=False, repr=False, compare=False)
    """Returns the declared pool of an id, or None."""

    def __post_init__(self) -> None:
        served = frozenset(served.id for pool in self.pools for served in pool.models)
        object.__setattr__(self, "served", served)
        shared = any(pool.prefix_cache is PrefixCache.SHARED for pool in self.pools)
        object.__setattr__(self, "shares_prefixes", shared)
        # Looked up for each request. Should an id be there twice, the first is meant.
        object.__setattr__(self, "edge", {edge.id: edge for edge in reversed(self.edges)}.get)
        object.__setattr__(self, "pool", {pool.id: pool for pool in reversed(self.pools)}.get)

    def models(self) -> tuple[ModelId, ...]:
        """Return every model that some pool serves, sorted."""
        return tuple(sorted(self.served))


@dataclass(frozen=True, slots=True)
class Tariff:
    """Another price of tokens for some hours of every day, in UTC. It may run over midnight."""

    from_minute: int
    """Minutes since midnight, 0 to 1,439."""
    until_minute: int
    """First minute that it no longer covers."""
    tokens: TokenPrice

    def covers(self, minute: int) -> bool:
        """Whether `minute` of the day is within."""
        if self.from_minute <= self.until_minute:
            return self.from_minute <= minute < self.until_minute
        return minute >= self.from_minute or minute < self.until_minute


@dataclass(frozen=True, slots=True)
class DatedPrice:
    """A price of tokens for a while: a spot price, or a change that is announced."""

    from_ms: int
    until_ms: int
    """First millisecond at which it no longer holds."""
    tokens: TokenPrice


@dataclass(frozen=True, slots=True)
class Carbon:
    """What a token emits: energy at the pool times what its grid emits."""

    grams_per_kwh: int
    input_uj: int
    """Microjoules per uncached prompt token."""
    output_uj: int
    """Microjoules per output token."""


@dataclass(frozen=True, slots=True)
class PoolCost:
    """What one pool costs the operator, for one model."""

    pool: PoolId
    model: ModelId
    tokens: TokenPrice
    egress_pico_per_byte: int
    """On every link that `links` does not name."""
    tariffs: tuple[Tariff, ...] = ()
    dated: tuple[DatedPrice, ...] = ()
    links: Mapping[EdgeId, int] = field(default_factory=dict)
    """Pico-units per byte between an edge and this pool."""
    carbon: Carbon | None = None


@dataclass(frozen=True, slots=True)
class Prices:
    """Costs of pools (the operator's) and price books (the tenants')."""

    costs: tuple[PoolCost, ...] = ()
    books: tuple[PriceBook, ...] = ()
    _by_book: Mapping[str, Mapping[ModelId, TokenPrice]] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Looked up for each request. Should a book be there twice, the first is meant.
        object.__setattr__(self, "_by_book", {book.id: book.prices for book in reversed(self.books)})

    def cost(self, pool: PoolId, model: ModelId) -> PoolCost | None:
        """Return the operator's cost, or None: unknown is not zero."""
        return next((cost for cost in self.costs if cost.pool == pool and cost.model == model), None)

    def price(self, book: str, model: ModelId) -> TokenPrice | None:
        """Return the tenant's price, or None."""
        try:
            return self._by_book[book][model]
        except KeyError:
            return None
