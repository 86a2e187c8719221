"""Two settings over one trace: runs for each seed, their accounts, and the difference, as one JSON value."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.replay.scene import Scene, scene
from orchestrator.files.replay_fleet import ReplayFleet
from orchestrator.files.traces import TraceRow
from orchestrator.placement.replay.account import Account, Spread, account, difference, over_seeds
from orchestrator.placement.replay.outcome import Outcome
from orchestrator.placement.replay.run import run
from orchestrator.placement.replay.tidegate import Tidegate, biller
from orchestrator.placement.settings import PlacementSettings

REPLAY_VERSION = 1
QUANTILES = 100
"""Points of the curves of latency."""
SLICES = 60
"""Slices of a run in the curves over time."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two that are compared."""

    name: str
    """`a` or `b`."""
    settings_file: str
    settings: PlacementSettings
    bundle: Bundle | None


@dataclass(frozen=True, slots=True)
class Told:
    """What one side's runs came to, by seed."""

    side: Side
    accounts: tuple[Account, ...]
    first_us: tuple[int, ...]
    """Times to the first token of all seeds, sorted."""
    end_us: tuple[int, ...]
    over_time: tuple[Mapping[str, float], ...]
    """By slice of the run: requests arrived, finished, and the mean time to the first token; of the first seed."""


def replay(
    fleet: ReplayFleet, rows: Sequence[TraceRow], side: Side, seeds: Sequence[int], progress: Progress
) -> Told:
    """Run the trace for each seed. Raises SceneError."""
    accounts: list[Account] = []
    firsts: list[int] = []
    ends: list[int] = []
    over_time: tuple[Mapping[str, float], ...] = ()
    for number, seed in enumerate(seeds):
        made = scene(fleet, rows, side.settings, side.bundle, seed)
        outcomes, told = _one(made, side.settings, seed, _after(progress, number * len(rows)))
        accounts.append(told)
        firsts += [one.first_us for one in outcomes if one.first_us is not None and one.finished]
        ends += [one.end_us for one in outcomes if one.end_us is not None]
        over_time = over_time or _over_time(outcomes)
        progress((number + 1) * len(rows))
    return Told(side, tuple(accounts), tuple(sorted(firsts)), tuple(sorted(ends)), over_time)


def _after(progress: Progress, past: int) -> Progress:
    return lambda arrived: progress(past + arrived)


def _one(
    made: Scene, settings: PlacementSettings, seed: int, progress: Progress
) -> tuple[tuple[Outcome, ...], Account]:
    # Placement and the network draw from chances of their own: another choice does not change the weather.
    router = Tidegate(made.world, made.judge, settings, Random(seed + 1).random)  # noqa: S311 - repeated by its seed
    done = run(
        made.world,
        made.requests,
        made.permits,
        router,
        Random(seed + 2),  # noqa: S311 - repeated by its seed
        bill=biller(made.world),
        progress=progress,
    )
    return done.outcomes, account(made.world, done, router.rules)


def told_to_json(a: Told, b: Told | None, about: Mapping[str, Any]) -> dict[str, Any]:
    """Return everything as JSON. Figures are means over seeds with 95 % intervals; differences are b minus a."""
    found: dict[str, Any] = {"v": REPLAY_VERSION, **about, "a": _side_to_json(a)}
    if b is not None:
        found["b"] = _side_to_json(b)
        found["difference"] = _spreads_to_json(difference(a.accounts, b.accounts))
    return found


def _side_to_json(told: Told) -> dict[str, Any]:
    settings, bundle = told.side.settings, told.side.bundle
    return {
        "settings": told.side.settings_file,
        "bundle": None if bundle is None else bundle.digest,
        "currency": settings.currency,
        "figures": _spreads_to_json(over_seeds(told.accounts)),
        "seeds": [account_to_json(one) for one in told.accounts],
        "curves": {
            "first_token_ms": _curve(told.first_us),
            "end_to_end_ms": _curve(told.end_us),
            "over_time": [dict[str, Any](slice_) for slice_ in told.over_time],
        },
    }


def account_to_json(one: Account) -> dict[str, Any]:
    """Return one run. Money is a string of pico-units: it may exceed what a JSON number holds exactly."""
    return {
        "requests": one.requests,
        "finished": one.finished,
        "unfinished": one.unfinished,
        "refused": one.refused,
        "residency_violations": one.violations,
        "slo_kept": one.kept,
        "attempts": one.attempts,
        "prompt_tokens": one.prompt_tokens,
        "cached_tokens": one.cached_tokens,
        "output_tokens": one.output_tokens,
        "span_us": one.span_us,
        "first_token_us": dict[str, Any](one.first_us),
        "end_to_end_us": dict[str, Any](one.end_us),
        "cost_pico": str(one.cost_pico),
        "egress_bytes": one.egress_bytes,
        "cross_border_bytes": dict[str, Any](one.moved_bytes),
        "refusals": dict[str, Any](one.refusals),
        "refusals_by_rule": dict[str, Any](one.rules),
        "by_pool": dict[str, Any](one.by_pool),
    }


def _spreads_to_json(spreads: Mapping[str, Spread]) -> dict[str, Any]:
    return {name: {"mean": one.mean, "low": one.low, "high": one.high} for name, one in spreads.items()}


def _curve(ordered_us: Sequence[int]) -> list[Any]:
    """Return the quantiles 0, 1, ... 100 % in milliseconds; none for no values."""
    if not ordered_us:
        return []
    last = len(ordered_us) - 1
    return [ordered_us[last * point // QUANTILES] / 1000 for point in range(QUANTILES + 1)]


def _over_time(outcomes: Sequence[Outcome]) -> tuple[Mapping[str, float], ...]:
    if not outcomes:
        return ()
    start_us, end_us = outcomes[0].at_us, outcomes[-1].at_us
    width_us = max(1, (end_us - start_us) // SLICES + 1)
    arrived: Counter[int] = Counter()
    finished: Counter[int] = Counter()
    waited_us: Counter[int] = Counter()
    began: Counter[int] = Counter()
    for one in outcomes:
        at = (one.at_us - start_us) // width_us
        arrived[at] += 1
        finished[at] += one.finished
        if one.first_us is not None:
            waited_us[at] += one.first_us
            began[at] += 1
    return tuple(
        {
            "at_s": at * width_us / 1e6,
            "arrived": arrived[at],
            "finished": finished[at],
            "first_token_ms": waited_us[at] / max(1, began[at]) / 1000,
        }
        for at in range(max(arrived) + 1)
    )
