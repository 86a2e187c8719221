"""What the cells of a comparison come to: savings at equal promises, dominance, distance to the bound. Pure.

*The same promise.* Callers were promised a time to the first token and a time per token. A router meets the operator's
objective when `OBJECTIVE` of the counted requests finish within theirs. Where Tidegate itself does not, the bar is what
Tidegate reached, so that it is never compared with routers that did worse.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from math import comb
from statistics import mean, median

from benchmarks.placement.study import CONFINED, PUBLISHED, TIDEGATE, Found, Scores
from orchestrator.placement.replay.account import spread

OBJECTIVE = 0.9
AIM = 0.15
"""How much cheaper than the cheapest rival that meets the same promise."""
BOUND_AIM = 0.10


@dataclass(frozen=True, slots=True)
class Saving:
    """Tidegate against the cheapest rival that keeps as many promises, in one cell."""

    fleet: int
    seed: int
    rival: str | None
    """None when no rival does."""
    saved: float | None
    """Share of that rival's cost per million tokens; negative when Tidegate is dearer."""


@dataclass(frozen=True, slots=True)
class AtLoad:
    """All cells of one workload at one load."""

    workload: str
    load: float
    cells: int
    saved_median: float | None
    saved_low: float | None
    """Of the middle half of the cells."""
    saved_high: float | None
    cheaper: int
    """Cells in which Tidegate is cheaper."""
    dearer: int
    unmatched: int
    """Cells in which no rival keeps as many promises."""
    sign_p: float | None
    """Two-sided sign test against "as often cheaper as dearer"."""
    kept_median: float
    """Tidegate's promises kept."""
    p90_ms_median: float
    violations: int
    """Tidegate's, over all cells."""
    bound_median: float | None
    """Tidegate's cost over the lower bound, less one."""


@dataclass(frozen=True, slots=True)
class Dominance:
    """A rival that is both cheaper and faster at the 90th percentile, beyond noise: 95 % intervals, paired."""

    workload: str
    load: float
    rival: str
    cheaper_by: float
    faster_ms: float
    kept: float
    kept_tidegate: float


@dataclass(frozen=True, slots=True)
class Rival:
    """One router over all cells of one workload and load: means."""

    workload: str
    load: float
    router: str
    mode: str
    cost_per_million: float
    first_ms_p50: float
    first_ms_p90: float
    kept: float
    hit: float
    finished: float
    violations: int


def own(found: Found) -> Scores:
    """Return Tidegate's scores."""
    return next(one for one in found.scores if one.router == TIDEGATE)


def confined(found: Found) -> list[Scores]:
    """Return the rivals' scores, each confined to what the law permits."""
    return [one for one in found.scores if one.router != TIDEGATE and one.mode == CONFINED]


def saving(found: Found) -> Saving:
    """Compare one cell."""
    mine = own(found)
    bar = min(OBJECTIVE, mine.kept)
    fit = [one for one in confined(found) if one.kept >= bar]
    if not fit:
        return Saving(found.cell.fleet, found.cell.seed, None, None)
    best = min(fit, key=lambda one: one.cost_per_million)
    return Saving(found.cell.fleet, found.cell.seed, best.router, 1 - mine.cost_per_million / best.cost_per_million)


def at_loads(cells: Sequence[Found]) -> list[AtLoad]:
    """Return one row for each workload and load."""
    return [_at_load(*key, group) for key, group in _groups(cells, lambda one: (one.cell.workload, one.cell.load))]


def _at_load(workload: str, load: float, group: Sequence[Found]) -> AtLoad:
    savings = [saving(one).saved for one in group]
    known = sorted(saved for saved in savings if saved is not None)
    cheaper, dearer = sum(1 for one in known if one > 0), sum(1 for one in known if one < 0)
    bounds = [one.bound_ratio - 1 for one in group if one.bound_ratio is not None]
    return AtLoad(
        workload=workload,
        load=load,
        cells=len(group),
        saved_median=median(known) if known else None,
        saved_low=known[len(known) // 4] if known else None,
        saved_high=known[len(known) * 3 // 4] if known else None,
        cheaper=cheaper,
        dearer=dearer,
        unmatched=len(savings) - len(known),
        sign_p=sign_test(cheaper, dearer),
        kept_median=median(own(one).kept for one in group),
        p90_ms_median=median(own(one).first_ms_p90 for one in group),
        violations=sum(own(one).violations for one in group),
        bound_median=median(bounds) if bounds else None,
    )


def sign_test(cheaper: int, dearer: int) -> float | None:
    """Return the two-sided p of a fair coin showing a split at least this uneven; None for no cells."""
    count = cheaper + dearer
    if count == 0:
        return None
    tail = sum(comb(count, hits) for hits in range(min(cheaper, dearer) + 1))
    return min(1.0, 2.0 * tail / float(2**count))


def dominances(cells: Sequence[Found]) -> list[Dominance]:
    """Return every rival that is better on both cost and p90 to the first token, beyond noise."""
    found: list[Dominance] = []
    for (workload, load), group in _groups(cells, lambda one: (one.cell.workload, one.cell.load)):
        for rival in sorted({one.router for cell in group for one in confined(cell)}):
            pairs = [(own(cell), next(one for one in confined(cell) if one.router == rival)) for cell in group]
            cost = spread([mine.cost_per_million - his.cost_per_million for mine, his in pairs])
            wait = spread([mine.first_ms_p90 - his.first_ms_p90 for mine, his in pairs])
            if cost.low > 0 and wait.low > 0:
                kept = [sum(one.kept for one in side) / len(pairs) for side in zip(*pairs, strict=True)]
                found.append(Dominance(workload, load, rival, cost.mean, wait.mean, kept[1], kept[0]))
    return found


def rivals(cells: Sequence[Found]) -> list[Rival]:
    """Return every router's means, by workload, load and mode."""
    rows: list[Rival] = []
    for (workload, load), group in _groups(cells, lambda one: (one.cell.workload, one.cell.load)):
        names = dict.fromkeys((one.router, one.mode) for cell in group for one in cell.scores)
        for router, mode in names:
            scores = [one for cell in group for one in cell.scores if (one.router, one.mode) == (router, mode)]
            rows.append(
                Rival(
                    workload=workload,
                    load=load,
                    router=router,
                    mode=mode,
                    cost_per_million=mean(one.cost_per_million for one in scores),
                    first_ms_p50=mean(one.first_ms_p50 for one in scores),
                    first_ms_p90=mean(one.first_ms_p90 for one in scores),
                    kept=mean(one.kept for one in scores),
                    hit=mean(one.hit for one in scores),
                    finished=mean(one.finished for one in scores),
                    violations=sum(one.violations for one in scores),
                )
            )
    return rows


def speed(cells: Sequence[Found]) -> float:
    """Return simulated requests per second and core with Tidegate's router, over all cells."""
    counted = sum(one.cell.requests for one in cells)
    seconds = sum(one.cell.requests / own(one).requests_per_s for one in cells)
    return counted / seconds if seconds else 0.0


def published_violations(cells: Sequence[Found]) -> dict[str, tuple[int, int]]:
    """Return, by rival as published: (requests that it sent where the law forbids, requests in all)."""
    found: dict[str, tuple[int, int]] = {}
    for cell in cells:
        for one in cell.scores:
            if one.mode == PUBLISHED:
                past = found.get(one.router, (0, 0))
                found[one.router] = (past[0] + one.violations, past[1] + cell.cell.requests)
    return found


def summary_to_json(fleets: Sequence[Found], workloads: Sequence[Found]) -> dict[str, object]:
    """Return everything that the tables show."""
    return {
        "objective": OBJECTIVE,
        "fleets": [asdict(one) for one in at_loads(fleets)],
        "workloads": [asdict(one) for one in at_loads(workloads)],
        "dominances": [asdict(one) for one in (*dominances(fleets), *dominances(workloads))],
        "routers": [asdict(one) for one in rivals(workloads)],
        "routers_over_fleets": [asdict(one) for one in rivals(fleets)],
        "published_violations": published_violations(workloads),
        "simulated_requests_per_s": speed([*fleets, *workloads]),
    }


def _groups(
    cells: Iterable[Found], key: Callable[[Found], tuple[str, float]]
) -> list[tuple[tuple[str, float], list[Found]]]:
    grouped: dict[tuple[str, float], list[Found]] = {}
    for cell in cells:
        grouped.setdefault(key(cell), []).append(cell)
    return sorted(grouped.items())
