"""Small worlds, requests and routers for the tests of replay."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from orchestrator.placement.fleet import Fleet, Prices
from orchestrator.placement.replay.outcome import Run
from orchestrator.placement.replay.router import Choice, Send
from orchestrator.placement.replay.run import run
from orchestrator.placement.replay.world import (
    Gpu,
    Kind,
    Link,
    Outage,
    PoolReport,
    Promise,
    Reply,
    SimPool,
    SimRequest,
    World,
)
from orchestrator.policy.ids import ModelId, PoolId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction
from tests.values import replace

MS = 1_000
S = 1_000_000
MODEL = ModelId("demo")
GPU = Gpu(
    step_ns=10_000_000, stream_ns=1_000_000, prefill_ns=100_000, chunk_tokens=100, slots=4, kv_tokens=100_000,
)  # fmt: skip
BLOCK = 10
EVERYWHERE = (1 << 16) - 1


def pool(number: int = 0, **changes: Any) -> SimPool:
    """A pool of one replica, in Germany."""
    made = SimPool(PoolId(f"pool-{number}"), Jurisdiction("DE"), "region", MODEL, GPU, 1, 100, 100_000)
    return replace(made, **changes)


def world(
    *pools: SimPool,
    edges: str = "DE",
    links: Sequence[Sequence[Link]] | None = None,
    outages: Iterable[Outage] = (),
    home: tuple[int, ...] = (),
) -> World:
    """Edges on the soils named, 100 ms away from every pool, without jitter."""
    soils = edges.split()
    pools = pools or (pool(),)
    link = Link(rtt_us=100 * MS, jitter_us=0, bytes_per_s=1_000_000)
    return World(
        edges=tuple(f"edge-{number}" for number in range(len(soils))),
        edge_jurisdictions=tuple(map(Jurisdiction, soils)),
        pools=pools,
        links=tuple(tuple(row) for row in links or [[link] * len(pools)] * len(soils)),
        kinds=(Kind("chat", frozenset(range(len(pools))), Promise(S, 50 * MS)),),
        prices=Prices(),
        fleet=Fleet(),
        start_ms=1_000_000,
        outages=tuple(outages),
        block_tokens=BLOCK,
        home=home,
    )


def request(number: int, at_us: int = 0, **changes: Any) -> SimRequest:
    """A prompt of 50 tokens whose blocks nobody else has, for 11 tokens."""
    made = SimRequest(number, at_us, 0, TenantId("tenant"), MODEL, 0, 50, 11, 0, (), number, 0)
    return replace(made, **changes)


def blocks(family: int, count: int) -> tuple[int, ...]:
    """The first blocks of one text."""
    return tuple(family * 1_000 + number for number in range(count))


@dataclass
class Script:
    """A router that does what it is told, in turn round the pools if nothing is said, and notes what it hears."""

    say: Callable[[SimRequest, int, tuple[int, ...], bool, int], Choice] | None = None
    pools: int = 1
    report_us: int = 100 * MS
    loads_with_replies: bool = False
    asked: list[tuple[int, int, int, tuple[int, ...]]] = field(default_factory=list)
    """(time, request, edge, tried)."""
    left: list[tuple[int, int, Send]] = field(default_factory=list)
    firsts: list[tuple[int, int]] = field(default_factory=list)
    replies: list[Reply] = field(default_factory=list)
    reports: list[tuple[int, int, int, PoolReport]] = field(default_factory=list)
    """(time, edge, pool, report)."""
    scheduled: list[PoolReport] = field(default_factory=list)

    def choose(self, request: SimRequest, edge: int, tried: Sequence[int], hopped: bool, now_us: int) -> Choice:
        self.asked.append((now_us, request.number, edge, tuple(tried)))
        if self.say is not None:
            return self.say(request, edge, tuple(tried), hopped, now_us)
        return Send(len(self.asked) % self.pools)

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        self.left.append((now_us, request.number, choice))

    def first_token(self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int) -> None:
        self.firsts.append((now_us, request.number))

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        self.replies.append(reply)

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        self.reports.append((now_us, edge, pool, report))

    def replica(self, request: SimRequest, pool: int, report: PoolReport, now_us: int) -> int:
        self.scheduled.append(report)
        load = [running + waiting for running, waiting in zip(report.running, report.waiting, strict=True)]
        return load.index(min(load))


def to(pool: int, replica: int | None = None) -> Script:
    """A router that sends everything there."""
    return Script(lambda *_: Send(pool, replica))


def price(request: SimRequest, pool: int, cached: int, output: int, now_ms: int, up_bytes: int, down_bytes: int) -> int:
    """One pico-unit per token generated."""
    return output


def play(of: World, requests: Iterable[SimRequest], router: Script, seed: int = 1, **changes: Any) -> Run:
    """Run it; everything is permitted and every token costs 1, unless said otherwise."""
    permits = changes.pop("permits", lambda _: EVERYWHERE)
    changes.setdefault("bill", price)
    return run(of, requests, permits, router, Random(seed), **changes)
