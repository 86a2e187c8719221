"""Worlds, requests, reports and replies that are small enough to be worked by hand."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.placement.rivals.balancer import Balancer
from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.fleet import DatedPrice, Fleet, PoolCost, Prices
from orchestrator.placement.replay.router import Send
from orchestrator.placement.replay.world import (
    Gpu,
    Kind,
    Link,
    PoolReport,
    Promise,
    Reply,
    SimPool,
    SimRequest,
    World,
)
from orchestrator.policy.ids import ModelId, PoolId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction

MODEL = ModelId("a-model")
BLOCK_TOKENS = 100
GPU = Gpu(step_ns=1, stream_ns=1, prefill_ns=1, chunk_tokens=50, slots=4, kv_tokens=1000)
START_MS = 1_790_000_000_000
USD = Currency("USD")


def world(
    replicas: Sequence[int] = (1, 1),
    rtts_us: Sequence[Sequence[int]] | None = None,
    models: Sequence[ModelId] | None = None,
    home: tuple[int, ...] = (),
    costs: tuple[PoolCost, ...] = (),
    context_tokens: int = 100_000,
    fleet: Fleet | None = None,
) -> World:
    """A world with a pool for each of `replicas`, and an edge for each row of `rtts_us`: one edge 1 ms from all."""
    rtts_us = rtts_us or [[1000] * len(replicas)]
    models = models or [MODEL] * len(replicas)
    pools = tuple(
        SimPool(PoolId(f"p{at}"), Jurisdiction("SG"), "region", models[at], GPU, count, 100, context_tokens)
        for at, count in enumerate(replicas)
    )
    edges = tuple(f"e{at}" for at in range(len(rtts_us)))
    every = frozenset(range(len(pools)))
    return World(
        edges=edges,
        edge_jurisdictions=(Jurisdiction("SG"),) * len(edges),
        pools=pools,
        links=tuple(tuple(Link(rtt, 0, 1_000_000) for rtt in row) for row in rtts_us),
        kinds=(Kind("any", every, Promise(1_000_000, 50_000)),),
        prices=Prices(costs),
        fleet=fleet or Fleet(),
        start_ms=START_MS,
        block_tokens=BLOCK_TOKENS,
        home=home,
    )


def cost(pool: int, input_pico: int, output_pico: int, dated: tuple[DatedPrice, ...] = ()) -> PoolCost:
    """What one pool costs."""
    return PoolCost(PoolId(f"p{pool}"), MODEL, tokens(input_pico, output_pico), 0, dated=dated)


def tokens(input_pico: int, output_pico: int) -> TokenPrice:
    """A price in dollars, the same for cached tokens as for others."""
    return TokenPrice(USD, input_pico, input_pico, output_pico)


def request(
    number: int = 1,
    blocks: Sequence[int] = (),
    prompt_tokens: int | None = None,
    session: int = 0,
    expected_tokens: int = 0,
    edge: int = 0,
    model: ModelId = MODEL,
) -> SimRequest:
    """A request whose prompt fills its blocks, unless its length is given."""
    length = len(blocks) * BLOCK_TOKENS if prompt_tokens is None else prompt_tokens
    return SimRequest(
        number=number,
        at_us=0,
        edge=edge,
        tenant=TenantId("t"),
        model=model,
        kind=0,
        prompt_tokens=max(1, length),
        output_tokens=10,
        expected_tokens=expected_tokens,
        blocks=tuple(blocks),
        session=session,
        upload_bytes=0,
    )


def report(
    waiting: Sequence[int] = (0,),
    made_us: int = 0,
    kv_used: Sequence[int] | None = None,
    running: Sequence[int] | None = None,
    up: bool = True,
) -> PoolReport:
    """What a pool says of replicas with so many waiting."""
    none = (0,) * len(waiting)
    return PoolReport(
        number=made_us,
        made_us=made_us,
        running=tuple(running or none),
        waiting=tuple(waiting),
        queued_tokens=none,
        kv_used=tuple(kv_used or none),
        line=0,
        up=up,
    )


def reply(
    of: SimRequest,
    choice: Send,
    sent_us: int = 0,
    first_us: int | None = 1000,
    cached_tokens: int = 0,
    queued_us: int = 0,
    refused: bool = False,
    broken: bool = False,
) -> Reply:
    """How an attempt ended."""
    return Reply(
        request=of.number,
        pool=choice.pool,
        replica=choice.replica or 0,
        sent_us=sent_us,
        first_us=first_us,
        end_us=(first_us or sent_us) + 1000,
        prompt_tokens=of.prompt_tokens,
        cached_tokens=cached_tokens,
        output_tokens=0 if refused else of.output_tokens,
        refused=refused,
        broken=broken,
        queued_us=queued_us,
    )


def place(
    router: Balancer, of: SimRequest, edge: int = 0, now_us: int = 0, tried: Sequence[int] = (), hopped: bool = False
) -> Send:
    """Ask for a choice that must be a send, and send it."""
    choice = router.choose(of, edge, tried, hopped, now_us)
    assert isinstance(choice, Send)
    router.sent(of, edge, choice, now_us)
    return choice


def load(router: Balancer, choice: Send, count: int, first_number: int = 10_000, edge: int = 0) -> None:
    """Have `count` requests with no prompt to speak of in flight at one replica."""
    for number in range(first_number, first_number + count):
        router.sent(request(number), edge, choice, 0)
