"""The fleet of a replay, in one file: edges, pools with their GPUs and prices, links, classes of traffic, outages.

It declares what a bundle does not hold, because a running system measures it: how fast the GPUs are, how far the pools
lie, who sends what. The law is what `may` says of each class, unless a bundle is given: then the bundle's packs decide,
by the class's tenant and labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

from msgspec import UNSET, Meta, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    Count,
    CountOrZero,
    Moment,
    Version,
    Written,
    read_amount,
    read_country,
    read_currency,
    read_model,
    read_moment_ms,
    read_name,
    refuse_repeats,
)
from orchestrator.files.label_header import LabelHeaderError, parse_label_header
from orchestrator.files.prices import ChargeDocument, cost_of
from orchestrator.files.typed import FieldPath
from orchestrator.ledger.money import TOKENS_PER_PRICE, Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.fleet import PoolCost
from orchestrator.placement.replay.world import Gpu, Link, Promise
from orchestrator.policy.ids import EdgeId, ModelId, PoolId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels

Name = TypeVar("Name", EdgeId, PoolId)

EVERY = "all"
BYTES_PER_MBIT = 125_000
Ppm = Annotated[int, Meta(ge=0, le=1_000_000)]
Weight = Annotated[int, Meta(ge=0, le=1_000_000)]


class ReplayEdgeDocument(Written, frozen=True):
    """An edge on the soil of one jurisdiction. `share` is its part of requests whose trace names no edge."""

    id: str
    jurisdiction: str
    share: Weight = 1


class GpuDocument(Written, frozen=True):
    """How one replica computes: a step takes `step_us`, `stream_us` more for each stream in it, and `prefill_ns` for
    each prompt token that it takes in, of which it takes at most `chunk_tokens`."""

    step_us: Count
    stream_us: CountOrZero
    prefill_ns: Count
    slots: Count
    kv_tokens: Count
    chunk_tokens: Count = 512
    prefix_cache: bool = True


class ReplayPoolDocument(Written, frozen=True):
    """A pool of equal replicas, for one model."""

    id: str
    jurisdiction: str
    model: str
    replicas: Count
    gpu: GpuDocument
    cost: ChargeDocument
    context_tokens: Count = 131_072
    waiting_max: CountOrZero = 256
    region: str = "region"


class LinkDocument(Written, frozen=True):
    """The way between an edge and a pool. What no link names is unreachable from there."""

    edge: str
    pool: str
    rtt_ms: CountOrZero
    jitter_ms: CountOrZero = 0
    mbit_per_s: Count = 1_000


class ClassDocument(Written, frozen=True):
    """A class of traffic. `may` names the pools that may see it, or `[all]`; with a bundle, `tenant` and `labels` (the
    text of the header) say what its law is asked about. `share` is its part of requests whose trace names no class."""

    id: str
    share: Weight = 1
    edges: tuple[str, ...] = ()
    """Edges where it arrives; none named are all."""
    may: tuple[str, ...] = ()
    tenant: str | UnsetType = UNSET
    labels: str | UnsetType = UNSET
    slo_first_ms: Count | UnsetType = UNSET
    """Left out, as the settings say; `slo_token_ms` too."""
    slo_token_ms: Count | UnsetType = UNSET
    regulated: bool = False


class OutageDocument(Written, frozen=True):
    """A pool that is gone for a while, in seconds from the start of the run."""

    pool: str
    from_s: CountOrZero
    until_s: Count


class PriceChangeDocument(Written, frozen=True):
    """What a pool charges from some second of the run on."""

    pool: str
    at_s: CountOrZero
    input_per_million: str
    cached_per_million: str
    output_per_million: str


class ReplayFleetDocument(Written, frozen=True):
    """Everything that is given before the first request arrives."""

    version: Version
    currency: str
    start: Moment
    edges: tuple[ReplayEdgeDocument, ...]
    pools: tuple[ReplayPoolDocument, ...]
    links: tuple[LinkDocument, ...]
    classes: tuple[ClassDocument, ...]
    outages: tuple[OutageDocument, ...] = ()
    price_changes: tuple[PriceChangeDocument, ...] = ()
    block_tokens: Count = 512
    """Tokens of one prefix block of the trace."""


@dataclass(frozen=True, slots=True)
class ReplayEdge:
    """An edge, and its part of what arrives."""

    id: EdgeId
    jurisdiction: Jurisdiction
    share: int


@dataclass(frozen=True, slots=True)
class ReplayPool:
    """A pool, with its GPUs and what it charges."""

    id: PoolId
    jurisdiction: Jurisdiction
    region: str
    model: ModelId
    replicas: int
    gpu: Gpu
    cost: PoolCost
    context_tokens: int
    waiting_max: int


@dataclass(frozen=True, slots=True)
class ReplayClass:
    """A class of traffic."""

    id: str
    share: int
    edges: frozenset[EdgeId]
    may: frozenset[PoolId]
    tenant: TenantId | None
    labels: Labels | None
    slo_first_ms: int | None
    slo_token_us: int | None
    regulated: bool

    def promise(self, first_ms: int, token_us: int) -> Promise:
        """Return what it is promised; what it does not say is as given."""
        return Promise(
            (first_ms if self.slo_first_ms is None else self.slo_first_ms) * 1000,
            token_us if self.slo_token_us is None else self.slo_token_us,
        )


@dataclass(frozen=True, slots=True)
class PriceChange:
    """A new price in the middle of a run."""

    pool: PoolId
    at_us: int
    tokens: TokenPrice


@dataclass(frozen=True, slots=True)
class ReplayFleet:
    """The file, checked."""

    currency: Currency
    start_ms: int
    block_tokens: int
    edges: tuple[ReplayEdge, ...]
    pools: tuple[ReplayPool, ...]
    links: Mapping[tuple[EdgeId, PoolId], Link]
    classes: tuple[ReplayClass, ...]
    outages: tuple[tuple[PoolId, int, int], ...]
    """(pool, from, until), in microseconds of the run."""
    price_changes: tuple[PriceChange, ...]


def replay_fleet_of(document: ReplayFleetDocument) -> ReplayFleet:
    """Return the fleet. Raises DomainError."""
    for field, given in (("edges", document.edges), ("pools", document.pools), ("classes", document.classes)):
        if not given:
            raise DomainError((field,), "expected at least one")
        refuse_repeats((one.id for one in given), (field,), "id")
    currency = read_currency(document.currency, ("currency",))
    edges = tuple(_edge(edge, ("edges", index)) for index, edge in enumerate(document.edges))
    pools = tuple(_pool(pool, currency, ("pools", index)) for index, pool in enumerate(document.pools))
    names = frozenset(edge.id for edge in edges), frozenset(pool.id for pool in pools)
    links: dict[tuple[EdgeId, PoolId], Link] = {}
    for index, link in enumerate(document.links):
        path: FieldPath = ("links", index)
        ends = _known(link.edge, names[0], (*path, "edge")), _known(link.pool, names[1], (*path, "pool"))
        if ends in links:
            raise DomainError(path, "expected one link between an edge and a pool")
        links[ends] = Link(link.rtt_ms * 1000, link.jitter_ms * 1000, link.mbit_per_s * BYTES_PER_MBIT)
    return ReplayFleet(
        currency,
        read_moment_ms(document.start, ("start",)),
        document.block_tokens,
        edges,
        pools,
        links,
        tuple(_class(one, names, ("classes", index)) for index, one in enumerate(document.classes)),
        tuple(_outage(one, names[1], ("outages", index)) for index, one in enumerate(document.outages)),
        tuple(
            PriceChange(
                _known(one.pool, names[1], ("price_changes", index, "pool")),
                one.at_s * 1_000_000,
                _tokens(one, currency, ("price_changes", index)),
            )
            for index, one in enumerate(document.price_changes)
        ),
    )


def _edge(document: ReplayEdgeDocument, path: FieldPath) -> ReplayEdge:
    name = EdgeId(read_name(document.id, (*path, "id")))
    return ReplayEdge(name, read_country(document.jurisdiction, (*path, "jurisdiction")), document.share)


def _pool(document: ReplayPoolDocument, currency: Currency, path: FieldPath) -> ReplayPool:
    name = read_name(document.id, (*path, "id"))
    gpu = document.gpu
    model = read_model(document.model, (*path, "model"))
    return ReplayPool(
        PoolId(name),
        read_country(document.jurisdiction, (*path, "jurisdiction")),
        read_name(document.region, (*path, "region")),
        model,
        document.replicas,
        Gpu(
            gpu.step_us * 1000,
            gpu.stream_us * 1000,
            gpu.prefill_ns,
            gpu.chunk_tokens,
            gpu.slots,
            gpu.kv_tokens,
            gpu.prefix_cache,
        ),
        cost_of(document.cost, PoolId(name), model, currency, (*path, "cost")),
        document.context_tokens,
        document.waiting_max,
    )


def _class(
    document: ClassDocument, names: tuple[frozenset[EdgeId], frozenset[PoolId]], path: FieldPath
) -> ReplayClass:
    edges = frozenset(
        _known(name, names[0], (*path, "edges", index)) for index, name in enumerate(document.edges)
    )
    may = names[1]
    if document.may != (EVERY,):
        may = frozenset(_known(name, names[1], (*path, "may", index)) for index, name in enumerate(document.may))
    labels = None
    if document.labels is not UNSET:
        try:
            labels = parse_label_header(document.labels)
        except LabelHeaderError as refusal:
            raise DomainError((*path, "labels"), str(refusal)) from None
    tenant, first, token = document.tenant, document.slo_first_ms, document.slo_token_ms
    return ReplayClass(
        read_name(document.id, (*path, "id")),
        document.share,
        edges or names[0],
        may,
        None if tenant is UNSET else TenantId(read_name(tenant, (*path, "tenant"))),
        labels,
        None if first is UNSET else first,
        None if token is UNSET else token * 1000,
        document.regulated,
    )


def _outage(document: OutageDocument, pools: frozenset[PoolId], path: FieldPath) -> tuple[PoolId, int, int]:
    if document.until_s <= document.from_s:
        raise DomainError((*path, "until_s"), "expected a second after from_s")
    pool = _known(document.pool, pools, (*path, "pool"))
    return pool, document.from_s * 1_000_000, document.until_s * 1_000_000


def _tokens(document: PriceChangeDocument, currency: Currency, path: FieldPath) -> TokenPrice:
    return TokenPrice(
        currency,
        read_amount(document.input_per_million, TOKENS_PER_PRICE, (*path, "input_per_million")),
        read_amount(document.cached_per_million, TOKENS_PER_PRICE, (*path, "cached_per_million")),
        read_amount(document.output_per_million, TOKENS_PER_PRICE, (*path, "output_per_million")),
    )


def _known(name: str, known: frozenset[Name], path: FieldPath) -> Name:
    found = next((one for one in known if one == name), None)
    if found is None:
        raise DomainError(path, f"expected an id of this file: {', '.join(sorted(known))}")
    return found
