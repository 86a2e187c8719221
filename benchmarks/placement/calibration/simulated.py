"""One replica in the simulator: an open load that is replayed, and a closed one as benchmarks of engines make. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from orchestrator.placement.fleet import Fleet, Prices
from orchestrator.placement.replay.replica import Attempt, Replica
from orchestrator.placement.replay.router import Choice, Send
from orchestrator.placement.replay.run import run
from orchestrator.placement.replay.world import (
    BLOCK_TOKENS,
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

MODEL = ModelId("calibrated")
ROUNDS = 12
"""Answers of each stream of a closed loop. The first half is not counted: there all begin together."""


@dataclass(frozen=True, slots=True)
class Ask:
    """One request of an open load."""

    at_us: int
    """From the start."""
    prompt_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class Answer:
    """When an answer came, in microseconds from its request."""

    first_us: int
    end_us: int


class OnlyOne:
    """The router of a world of one replica."""

    loads_with_replies = False
    report_us = 1_000_000

    def choose(self, request: SimRequest, edge: int, tried: Sequence[int], hopped: bool, now_us: int) -> Choice:
        """Send it there."""
        return Send(0, 0)

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """Learn nothing."""

    def first_token(self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int) -> None:
        """Learn nothing."""

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        """Learn nothing."""

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        """Learn nothing."""

    def replica(self, request: SimRequest, pool: int, report: PoolReport, now_us: int) -> int:
        """Return the only one."""
        return 0


def answers(gpu: Gpu, asks: Sequence[Ask], waiting_max: int) -> list[Answer]:
    """Return when each answer comes, in the order of `asks`, from one replica with nothing between.

    Raises ValueError when one is never answered.
    """
    order = sorted(range(len(asks)), key=lambda number: (asks[number].at_us, number))
    requests = [_request(number, asks[number]) for number in order]
    done = run(_world(gpu, waiting_max), requests, lambda _: 1, OnlyOne(), Random(0), bill=lambda *_: 0)
    found: dict[int, Answer] = {}
    for outcome in done.outcomes:
        if outcome.first_us is None or outcome.end_us is None:
            raise ValueError(f"request {outcome.number} was not answered: {outcome.refused}")
        found[outcome.number] = Answer(outcome.first_us, outcome.end_us)
    return [found[number] for number in range(len(asks))]


def capacity_per_s(gpu: Gpu, asks: Sequence[Ask]) -> float:
    """Return how many of such requests the replica answers in a second when all of them wait from the start."""
    at_once = [Ask(0, ask.prompt_tokens, ask.output_tokens) for ask in asks]
    last_us = max(answer.end_us for answer in answers(gpu, at_once, len(asks)))
    return len(asks) / last_us * 1_000_000


def drawn(
    chance: Random, count: int, rate_per_s: float, prompt_tokens: tuple[int, int], output_tokens: tuple[int, int]
) -> list[Ask]:
    """Draw a load: Poisson arrivals at a rate, both lengths uniform in their logarithm between two ends."""
    found: list[Ask] = []
    at_s = 0.0
    for _ in range(count):
        at_s += chance.expovariate(rate_per_s)
        lengths = [round(low * (high / low) ** chance.random()) for low, high in (prompt_tokens, output_tokens)]
        found.append(Ask(round(at_s * 1_000_000), *lengths))
    return found


@dataclass(frozen=True, slots=True)
class Closed:
    """What a closed loop comes to: so many streams, each of which asks again when it has its answer."""

    first_ms: float
    """Mean time to the first token."""
    token_ms: float
    """Mean time per token after it."""
    tokens_per_s: float
    """Answer tokens of all streams together."""


def closed(gpu: Gpu, streams: int, prompt_tokens: int, output_tokens: int) -> Closed:
    """Return what a closed loop of equal requests comes to. Raises ValueError when they do not fit."""
    replica = Replica(0, 0, gpu, BLOCK_TOKENS, waiting_max=0)
    sent = 0
    done: list[Attempt] = []

    def submit(now_us: int) -> None:
        nonlocal sent
        attempt = Attempt(_request(sent, Ask(now_us, prompt_tokens, output_tokens)), 0, 0, 0, now_us)
        sent += 1
        if not replica.submit(attempt, now_us):
            raise ValueError(f"{streams} streams of {prompt_tokens} and {output_tokens} tokens do not fit")

    for _ in range(streams):
        submit(0)
    while len(done) < streams * ROUNDS:
        now_us = replica.next_us
        _, ends = replica.advance(now_us)
        done += ends
        for _ in ends:
            submit(now_us)
    begun_us = done[len(done) // 2 - 1].ended_us
    counted = done[len(done) // 2 :]
    first_us = sum(one.first_us - one.sent_us for one in counted) / len(counted)
    later = max(1, output_tokens - 1)
    token_us = sum(one.ended_us - one.first_us for one in counted) / len(counted) / later
    rate = len(counted) * output_tokens / (counted[-1].ended_us - begun_us) * 1_000_000
    return Closed(first_us / 1000, token_us / 1000, rate)


def _request(number: int, ask: Ask) -> SimRequest:
    return SimRequest(
        number=number,
        at_us=ask.at_us,
        edge=0,
        tenant=TenantId("calibration"),
        model=MODEL,
        kind=0,
        prompt_tokens=ask.prompt_tokens,
        output_tokens=ask.output_tokens,
        expected_tokens=0,
        blocks=(),
        session=number,
        upload_bytes=0,
    )


def _world(gpu: Gpu, waiting_max: int) -> World:
    here = Jurisdiction("SG")
    pool = SimPool(PoolId("only"), here, "here", MODEL, gpu, 1, waiting_max, gpu.kv_tokens)
    return World(
        edges=("here",),
        edge_jurisdictions=(here,),
        pools=(pool,),
        links=((Link(0, 0, 1_000_000_000),),),
        kinds=(Kind("any", frozenset({0}), Promise(1_000_000, 100_000)),),
        prices=Prices(()),
        fleet=Fleet(),
        start_ms=0,
    )
