"""The figures of a replay: what people call them, their units, and which way is better. For tables, pages and text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from math import log10
from statistics import mean
from typing import Any

from orchestrator.cli.amounts import BYTE_UNITS, data, signed, significant


class Unit(Enum):
    """What a figure counts."""

    MS = "ms"
    MONEY = "money"
    SHARE = "share"
    BYTES = "bytes"
    COUNT = "count"
    PER_SECOND = "per second"


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure."""

    name: str
    """Its key in JSON."""
    title: str
    unit: Unit
    better: int
    """1 where more is better, -1 where less is, 0 where neither."""

    def scale(self, currency: str, largest: float) -> tuple[str, float]:
        """Return the unit in which a row of numbers up to `largest` is shown, and what it multiplies them by."""
        match self.unit:
            case Unit.MONEY:
                return currency, 1
            case Unit.SHARE:
                return "%", 100
            case Unit.BYTES:
                power = min(len(BYTE_UNITS) - 1, max(0, int(log10(max(1.0, abs(largest))) // 3)))
                return BYTE_UNITS[power], 1000.0**-power
            case Unit.MS:
                return "ms", 1
            case Unit.PER_SECOND:
                return "/s", 1
        return "", 1

    def shown(self, number: float, currency: str) -> str:
        """Return a number of this figure with its unit."""
        unit, factor = self.scale(currency, number)
        return f"{significant(number * factor)} {unit}".rstrip()

    def verdict(self, spread: Mapping[str, float]) -> str:
        """Say `better` or `worse` where the whole interval of a difference lies on one side of nothing."""
        low, high = spread["low"], spread["high"]
        if self.better == 0 or low == high or low <= 0 <= high:
            return ""
        return "better" if (low > 0) == (self.better > 0) else "worse"


FIGURES: tuple[Figure, ...] = (
    *(Figure(f"first_token_ms_{name}", f"first token {name}", Unit.MS, -1) for name in ("p50", "p90", "p99")),
    *(Figure(f"end_to_end_ms_{name}", f"end to end {name}", Unit.MS, -1) for name in ("p50", "p90", "p99")),
    Figure("slo_attainment", "promises kept", Unit.SHARE, 1),
    Figure("requests_per_s", "finished", Unit.PER_SECOND, 1),
    Figure("tokens_per_s", "generated tokens", Unit.PER_SECOND, 1),
    Figure("refused", "refused", Unit.COUNT, -1),
    Figure("unfinished", "unfinished", Unit.COUNT, -1),
    Figure("cost", "cost", Unit.MONEY, -1),
    Figure("cost_per_million_tokens", "cost / million tokens", Unit.MONEY, -1),
    Figure("cache_hit_share", "prompt from cache", Unit.SHARE, 1),
    Figure("cross_border_bytes", "bytes over borders", Unit.BYTES, 0),
    Figure("residency_violations", "sent against the law", Unit.COUNT, -1),
)
"""In the order in which they are shown."""
_BY_NAME = {figure.name: figure for figure in FIGURES}

TALLIES: tuple[tuple[str, str, Unit], ...] = (
    ("by_pool", "requests by pool", Unit.COUNT),
    ("refusals", "refusals by reason", Unit.COUNT),
    ("refusals_by_rule", "refusals by rule of the law", Unit.COUNT),
    ("cross_border_bytes", "bytes over borders by class", Unit.BYTES),
)
"""What is counted by name: key in JSON, title, unit. Shown as means over seeds."""


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of a table, as text: its title names the unit."""

    title: str
    sides: tuple[str, ...]
    """For each side the mean, and half of its interval where it has one."""
    change: str = ""
    """B - A; empty for one side."""
    interval: str = ""
    """The 95 % interval of B - A; empty where there is none."""
    verdict: str = ""
    """`better`, `worse`, or nothing that can be told from chance."""


def rows_of(told: Mapping[str, Any]) -> list[Row]:
    """Return the figures of a replay, of one side or of two with their difference."""
    sides = [side for side in (told["a"], told.get("b")) if side is not None]
    rows = []
    for figure in figures_of(sides[0]):
        spreads = [side["figures"][figure.name] for side in sides]
        unit, factor = figure.scale(sides[0]["currency"], max(one["high"] for one in spreads))
        title = f"{figure.title}, {unit}" if unit else figure.title
        texts = tuple(_spread(one, factor) for one in spreads)
        if len(sides) == 1:
            rows.append(Row(title, texts))
            continue
        difference = told["difference"][figure.name]
        change, low, high = (signed(significant(difference[one] * factor, 3)) for one in ("mean", "low", "high"))
        interval = "" if difference["low"] == difference["high"] else f"{low} to {high}"
        rows.append(Row(title, texts, change, interval, figure.verdict(difference)))
    return rows


def _spread(spread: Mapping[str, float], factor: float) -> str:
    half = (spread["high"] - spread["low"]) / 2 * factor
    text = significant(spread["mean"] * factor)
    return text if half == 0 else f"{text} ± {significant(half, 2)}"


def figures_of(side: Mapping[str, Any]) -> list[Figure]:
    """Return every figure that a side has, the known ones in their order."""
    found = [figure for figure in FIGURES if figure.name in side["figures"]]
    others = [name for name in side["figures"] if name not in _BY_NAME]
    return found + [Figure(name, name.replace("_", " "), Unit.COUNT, 0) for name in sorted(others)]


def tally(side: Mapping[str, Any], key: str) -> dict[str, float]:
    """Return counts by name, as means over the seeds of a side."""
    seeds: Sequence[Mapping[str, Any]] = side["seeds"]
    names = sorted({name for one in seeds for name in one[key]})
    return {name: mean(float(one[key].get(name, 0)) for one in seeds) for name in names}


def counted(number: float, unit: Unit) -> str:
    """Return a count with its unit."""
    return data(number) if unit is Unit.BYTES else significant(number)
