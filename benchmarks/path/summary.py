"""From samples to figures: medians over the rounds, and ratios to the direct answers of the same round. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from benchmarks.figures import median
from benchmarks.path.rounds import MANY, ONE, STREAM, Load, Sample
from benchmarks.path.systems import DIRECT, OFF_PATH


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure of one system over the rounds."""

    value: float
    """The median."""
    low: float
    high: float
    direct: float | None = None
    """The median of the ratios to the direct answers of the same rounds."""
    added: float | None = None
    """The median of the differences to them."""

    def to_json(self) -> dict[str, float | None]:
        """Return it for machines."""
        return {name: getattr(self, name) for name in Figure.__slots__}


Figures = dict[str, dict[str, Figure]]
"""By system and by name."""

_VALUES: Mapping[str, tuple[Load, Callable[[Sample], float]]] = {
    "one_p50_us": (ONE, lambda one: one.run.p50_us),
    "one_p99_us": (ONE, lambda one: one.run.p99_us),
    "many_p50_us": (MANY, lambda one: one.run.p50_us),
    "many_p99_us": (MANY, lambda one: one.run.p99_us),
    "requests_per_s": (MANY, lambda one: one.run.per_s),
    "tokens_per_s": (STREAM, lambda one: one.run.per_s * STREAM.tokens),
    "cpu_us_per_request": (MANY, lambda one: path_cpu_us(one) / one.run.requests),
    "cpu_us_per_request_one": (ONE, lambda one: path_cpu_us(one) / one.run.requests),
    "cpu_us_per_1000_tokens": (STREAM, lambda one: path_cpu_us(one) * 1000 / (one.run.requests * STREAM.tokens)),
}


def path_cpu_us(one: Sample) -> float:
    """Return what the router itself spent: the engine's own for the direct answers."""
    if one.system == DIRECT:
        return one.cpu_us["engine"]
    return sum(spent for name, spent in one.cpu_us.items() if name not in OFF_PATH)


def figures(samples: Sequence[Sample]) -> Figures:
    """Return the figures of every system that was measured in full."""
    found: Figures = {}
    for system in dict.fromkeys(one.system for one in samples):
        found[system] = {}
        for name, (load, value) in _VALUES.items():
            own = _by_round(samples, system, load, value)
            bare = _by_round(samples, DIRECT, load, value)
            if own:
                found[system][name] = _figure(own, bare)
    return found


def by_process(samples: Sequence[Sample], load: Load) -> dict[str, dict[str, float]]:
    """Return by system and process the microseconds of a request under a load: the median of the rounds."""
    found: dict[str, dict[str, float]] = {}
    for system in dict.fromkeys(one.system for one in samples):
        mine = [one for one in samples if one.system == system and one.load == load.name]
        names = mine[0].cpu_us if mine else ()
        found[system] = {name: median([one.cpu_us[name] / one.run.requests for one in mine]) for name in names}
    return found


def _by_round(
    samples: Sequence[Sample], system: str, load: Load, value: Callable[[Sample], float]
) -> dict[int, float]:
    return {one.round: value(one) for one in samples if one.system == system and one.load == load.name}


def _figure(own: Mapping[int, float], bare: Mapping[int, float]) -> Figure:
    both = sorted(own.keys() & bare.keys())
    values = list(own.values())
    ratios = [own[number] / bare[number] for number in both if bare[number]]
    added = [own[number] - bare[number] for number in both]
    return Figure(
        median(values),
        min(values),
        max(values),
        median(ratios) if ratios else None,
        median(added) if added else None,
    )
