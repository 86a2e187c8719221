"""The world of a replay: what is declared of edges, pools, links and requests. Frozen; times are whole microseconds.

Edges and pools are named by their index in the world, so that the inner loop hashes no strings.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.placement.fleet import Fleet, Prices
from orchestrator.policy.ids import ModelId, PoolId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction

BLOCK_TOKENS = 512
"""Tokens of one prefix block of a trace, unless the world says otherwise (Mooncake, FAST'25: 512)."""


@dataclass(frozen=True, slots=True)
class Gpu:
    """How one replica computes: continuous batching in steps, with chunked prefill.

    A step takes ``step_ns + stream_ns * decoding + prefill_ns * prompt tokens taken in``, gives one token to each
    stream that decodes, and takes in at most `chunk_tokens` of the prompt at the head of its line (Sarathi-Serve,
    OSDI'24; vLLM's chunked prefill).
    """

    step_ns: int
    stream_ns: int
    prefill_ns: int
    """Per uncached prompt token."""
    chunk_tokens: int
    slots: int
    """Streams in the batch at once, those in prefill included."""
    kv_tokens: int
    """Tokens whose keys and values fit: running streams first, then cached prefixes, least recently used out."""
    prefix_cache: bool = True

    def alone_decode_ns(self) -> int:
        """Return the time per token of a stream that runs alone."""
        return self.step_ns + self.stream_ns


@dataclass(frozen=True, slots=True)
class SimPool:
    """One pool: its replicas are alike."""

    id: PoolId
    jurisdiction: Jurisdiction
    region: str
    model: ModelId
    """The model that it serves; a pool that serves two is two pools here."""
    gpu: Gpu
    replicas: int
    waiting_max: int
    context_tokens: int


@dataclass(frozen=True, slots=True)
class Link:
    """The way between one edge and one pool. A round trip is `rtt_us` plus exponential jitter of mean `jitter_us`."""

    rtt_us: int
    jitter_us: int
    bytes_per_s: int


@dataclass(frozen=True, slots=True)
class Outage:
    """A pool that is gone for a while: what runs or waits there breaks, nothing new is taken."""

    pool: int
    from_us: int
    until_us: int


@dataclass(frozen=True, slots=True)
class Promise:
    """The latency that a request was promised: to the first token, and per token after it."""

    first_us: int
    token_us: int


@dataclass(frozen=True, slots=True)
class SimRequest:
    """One request of a trace. It holds no payload: `blocks` are hashes that somebody else made."""

    number: int
    at_us: int
    """When it reaches its edge, from the start of the run."""
    edge: int
    tenant: TenantId
    model: ModelId
    kind: int
    """Index of its traffic class in `World.kinds`."""
    prompt_tokens: int
    output_tokens: int
    """What it will generate. A router must not read it: `expected_tokens` is what it may know."""
    expected_tokens: int
    """The caller's limit on the answer, or 0."""
    blocks: tuple[int, ...]
    """Hash of each block of `World.block_tokens` of the prompt, covering all before it. The last may be partial."""
    session: int
    """Requests of one conversation or tree share it: the key of session affinity and consistent hashing."""
    upload_bytes: int


@dataclass(frozen=True, slots=True)
class Kind:
    """One class of traffic: what the law and the operator's promises make of it."""

    name: str
    may: frozenset[int]
    """Pools that may see it, by the law in force: the ground truth against which violations are counted."""
    promise: Promise
    regulated: bool = False


@dataclass(frozen=True, slots=True)
class World:
    """Everything that is given before the first request arrives."""

    edges: tuple[str, ...]
    edge_jurisdictions: tuple[Jurisdiction, ...]
    pools: tuple[SimPool, ...]
    links: tuple[tuple[Link, ...], ...]
    """By edge, then by pool."""
    kinds: tuple[Kind, ...]
    prices: Prices
    """What the pools cost the operator; dated prices change in the middle of a run."""
    fleet: Fleet
    """The same pools and edges as they are declared."""
    start_ms: int
    """Wall time at the start of the run: tariffs go by it."""
    outages: tuple[Outage, ...] = ()
    block_tokens: int = BLOCK_TOKENS
    output_bytes_per_token: int = 4
    home: tuple[int, ...] = field(default=())
    """By pool: the edge nearest to it, for routers that keep one balancer per region."""


@dataclass(frozen=True, slots=True)
class PoolReport:
    """What a pool says of itself, per replica, as an engine's metrics would: never what it cannot know."""

    number: int
    made_us: int
    running: tuple[int, ...]
    waiting: tuple[int, ...]
    """Requests that wait, by replica; those in the pool's own line are in `line`."""
    queued_tokens: tuple[int, ...]
    """Uncached prompt tokens accepted and not yet taken in, by replica."""
    kv_used: tuple[int, ...]
    """Tokens held, by replica: of running streams, not of idle prefixes."""
    line: int
    """Requests in the pool's own line, given to no replica yet."""
    up: bool


@dataclass(frozen=True, slots=True)
class Reply:
    """How one attempt went, as the edge that sent it sees it."""

    request: int
    pool: int
    replica: int
    sent_us: int
    first_us: int | None
    """When the first token reached the edge; None when none did."""
    end_us: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    refused: bool
    """Not started: free, and may be placed again."""
    broken: bool
    """Cut after it may have begun."""
    queued_us: int = 0
    """Of the time to the first token: what it waited at the pool before its prompt was begun, as the pool counts it."""
    together: int = 0
    """Streams that decoded beside it when it ended, as the pool counts them."""


Permits = Callable[[SimRequest], int]
"""The law: the pools that may see a request, as bits."""
