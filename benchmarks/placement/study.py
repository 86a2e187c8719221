"""One cell of the comparison: one fleet, workload, load and seed, through every router, with the lower bound beside.

Every router of a cell meets the same requests, outages, change of price and network. What arrives in the first fifth of
a run runs but is not counted, so that empty pools flatter nobody; the bound is of the whole run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from random import Random

from benchmarks.placement.bound import bound
from benchmarks.placement.fleets import FleetCase, fleet
from benchmarks.placement.rivals import RIVALS
from benchmarks.placement.traces import TraceRow, azure_conversation, mooncake
from benchmarks.placement.workloads import AgentShape, TreeShape, attainable, requests_of, tool_use, tree_of_thought
from orchestrator.placement.decide import judge
from orchestrator.placement.replay.account import account
from orchestrator.placement.replay.outcome import Run
from orchestrator.placement.replay.router import Router
from orchestrator.placement.replay.run import run
from orchestrator.placement.replay.tidegate import Judge, Tidegate, biller
from orchestrator.placement.replay.world import Permits, SimRequest, World
from orchestrator.policy.ids import PoolId
from orchestrator.policy.verdicts import Verdict

TIDEGATE = "tidegate"
PUBLISHED = "as published"
CONFINED = "confined"
WARMUP_SHARE = 5
"""A fifth."""
LANES = 4
TREE_SPAN_US = 120_000_000


@dataclass(frozen=True, slots=True)
class Cell:
    """What one run is of."""

    fleet: int
    """Seed of the fleet."""
    workload: str
    load: float
    seed: int
    requests: int
    published: bool = False
    """Whether the rivals run as published too, besides confined to what the law permits."""
    bounded: bool = True
    compared: bool = True
    """Whether rivals run at all."""


@dataclass(frozen=True, slots=True)
class Scores:
    """How one router did in one cell."""

    router: str
    mode: str
    cost_per_million: float
    cost_pico: int
    first_ms_p50: float
    first_ms_p90: float
    first_ms_p99: float
    end_ms_p90: float
    kept: float
    """Share of the counted requests within their promise."""
    hit: float
    finished: float
    violations: int
    requests_per_s: float
    """Simulated, of wall time: how fast the simulator was with this router."""


@dataclass(frozen=True, slots=True)
class Found:
    """One cell, with every router's scores."""

    cell: Cell
    scores: tuple[Scores, ...]
    bound_ratio: float | None
    """What Tidegate's whole run cost, against the least that any run could for the same finished requests."""
    attainable: float
    """Share of promises that an idle permitted pool would keep with nothing cached."""
    duration_s: float
    pools: int
    edges: int

    def to_json(self) -> dict[str, object]:
        """Return it as JSON holds it."""
        return asdict(self)


def rows_of(workload: str, seed: int) -> Sequence[TraceRow]:
    """Return the rows of a workload. Raises KeyError."""
    return WORKLOADS[workload](seed)


WORKLOADS: Mapping[str, Callable[[int], Sequence[TraceRow]]] = {
    "azure": lambda _seed: azure_conversation(),
    "mooncake": mooncake,
    "trees": lambda seed: tree_of_thought(TreeShape(2), 400, TREE_SPAN_US, seed),
    "agents": lambda seed: tool_use(AgentShape(), 900, TREE_SPAN_US, seed),
}
KEEPS_GAPS = frozenset({"trees", "agents"})
"""Workloads whose sessions are shorter than a run: only their beginnings move with the load."""


def requests_for(case: FleetCase, cell: Cell) -> list[SimRequest]:
    """Return the traffic of a cell."""
    rows = rows_of(cell.workload, cell.seed)
    gaps = cell.workload in KEEPS_GAPS
    found = requests_of(
        case.world,
        rows,
        case.mix,
        cell.load,
        cell.seed,
        count=None if gaps else cell.requests,
        lanes=1 if gaps else LANES,
        keep_gaps=gaps,
    )
    return found[: cell.requests]


def judge_of(case: FleetCase) -> Judge:
    """Return the live law of a fleet, asked once for each kind and remembered while it may be relied on."""
    grounds = [case.court(edge).ground for edge in range(len(case.world.edges))]
    said: dict[tuple[int, int], tuple[int, Mapping[PoolId, Verdict]]] = {}

    def asked(request: SimRequest, edge: int, now_ms: int) -> Mapping[PoolId, Verdict]:
        known = said.get((edge, request.kind))
        if known is not None and now_ms < known[0]:
            return known[1]
        verdicts = judge(grounds[edge], case.facts[request.kind], now_ms)
        said[(edge, request.kind)] = (min(one.valid_until_ms for one in verdicts.values()), verdicts)
        return verdicts

    return asked


def permits_of(world: World) -> Permits:
    """Return what the law permits, by the kind of a request, as bits."""
    bits = [sum(1 << pool for pool in kind.may) for kind in world.kinds]
    return lambda request: bits[request.kind]


def study(cell: Cell) -> Found:
    """Run one cell."""
    case = fleet(cell.fleet)
    requests = requests_for(case, cell)
    duration_us = requests[-1].at_us
    world = case.lasting(duration_us)
    permits, judging = permits_of(world), judge_of(case)
    routers: list[tuple[str, str, Router]] = [
        (TIDEGATE, CONFINED, Tidegate(world, judging, case.settings, Random(cell.seed + 1).random))
    ]
    for name, made in RIVALS.items() if cell.compared else ():
        for mode in (CONFINED, PUBLISHED) if cell.published else (CONFINED,):
            routers.append((name, mode, made(world, permits, mode == CONFINED, Random(cell.seed + 1))))
    scores: list[Scores] = []
    own: Run | None = None
    for name, mode, router in routers:
        begun_s = time.process_time()
        done = run(world, requests, permits, router, Random(cell.seed + 2), bill=biller(world))
        took_s = time.process_time() - begun_s
        scores.append(_scores(name, mode, world, done, duration_us, took_s))
        own = own or done
    ratio = _bound_ratio(world, requests, permits, own) if cell.bounded and own is not None else None
    return Found(
        cell,
        tuple(scores),
        ratio,
        attainable(world, requests),
        duration_us / 1e6,
        len(world.pools),
        len(world.edges),
    )


def _scores(name: str, mode: str, world: World, done: Run, duration_us: int, took_s: float) -> Scores:
    counted = tuple(one for one in done.outcomes if one.at_us >= duration_us // WARMUP_SHARE)
    told = account(world, replace(done, outcomes=counted), {})
    figures = told.figures()
    return Scores(
        name,
        mode,
        figures["cost_per_million_tokens"],
        told.cost_pico,
        figures["first_token_ms_p50"],
        figures["first_token_ms_p90"],
        figures["first_token_ms_p99"],
        figures["end_to_end_ms_p90"],
        figures["slo_attainment"],
        figures["cache_hit_share"],
        told.finished / max(1, told.requests),
        sum(1 for one in done.outcomes if one.violated),
        len(done.outcomes) / max(1e-9, took_s),
    )


def _bound_ratio(world: World, requests: Sequence[SimRequest], permits: Permits, done: Run) -> float | None:
    finished = {one.number for one in done.outcomes if one.finished}
    slowest_us = max((one.end_us for one in done.outcomes if one.end_us is not None), default=0)
    found = bound(world, requests, permits, biller(world), patience_us=slowest_us, finished=finished)
    cost_pico = sum(one.cost_pico for one in done.outcomes if one.finished)
    return cost_pico / found.cost_pico if found.cost_pico else None
