"""Two arms of one trial, compared: what the canary's settings did, beside what the side's own did at the same time.

Means by Welch's t (Welch, Biometrika 34, 1947) with his degrees of freedom. Ratios of sums (money per token, cached
share) by the same over their linearised values (Cochran, Sampling Techniques, 6.4 and 6.10). Percentiles by the width
of their own order-statistic interval (Price and Bonett, Statistical Methods in Medical Research 11, 2002). Shares of
failures by Newcombe's hybrid of Wilson intervals (Statistics in Medicine 17, 1998, method 10): no failure seen is not
none to come. Each interval is one of 95 % by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import ceil, floor, hypot, sqrt
from statistics import mean, variance

from orchestrator.placement.replay.account import T_95

ENOUGH = 30
"""Requests that each arm must have for a figure: with fewer, a skewed mean is nowhere near normal."""
PERCENTILE = 0.90
NORMAL_95 = 1.959964
PICO_PER_UNIT = 10**12
TOKENS_PER_PRICE = 10**6


class Verdict(Enum):
    """What a difference says of the canary."""

    BETTER = "better"
    WORSE = "worse"
    NOT_ENOUGH = "not enough data"
    """Too few requests, or the interval holds nothing at all."""


@dataclass(frozen=True, slots=True)
class Sample:
    """What became of one request. Times in microseconds, money in pico-units; None is unknown."""

    canary: bool
    failed: bool
    finished: bool
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    first_us: int | None
    end_us: int | None
    cost_pico: int | None


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure of one arm."""

    count: int
    """Requests that it is worked out from."""
    value: float | None


@dataclass(frozen=True, slots=True)
class Compared:
    """One figure of both arms. The difference is the canary's minus the base's."""

    name: str
    base: Estimate
    canary: Estimate
    difference: float | None
    low: float | None
    """Ends of the 95 % interval of the difference; None where there is none."""
    high: float | None
    verdict: Verdict


def compare(samples: Sequence[Sample]) -> tuple[Compared, ...]:
    """Return every figure of the two arms, in the order in which they are read."""
    arms = tuple([one for one in samples if one.canary is canary] for canary in (False, True))
    return tuple(
        _compared(name, (arms[0], arms[1]), pick, estimate, better) for name, pick, estimate, better in _FIGURES
    )


Pick = Callable[[Sample], "tuple[float, float] | None"]
"""From a sample to (value, weight), or None where it has none."""
Pairs = Sequence["tuple[float, float]"]
Estimator = Callable[[Pairs, Pairs], "tuple[float, float, tuple[float, float] | None]"]
"""From both arms to (base, canary, interval of the difference)."""


def _compared(
    name: str, arms: tuple[Sequence[Sample], Sequence[Sample]], pick: Pick, estimate: Estimator, better: int
) -> Compared:
    base, canary = ([pair for pair in map(pick, arm) if pair is not None] for arm in arms)
    if not base or not canary:
        alone = [Estimate(len(pairs), estimate(pairs, pairs)[0] if pairs else None) for pairs in (base, canary)]
        return Compared(name, alone[0], alone[1], None, None, None, Verdict.NOT_ENOUGH)
    first, second, interval = estimate(base, canary)
    estimates = Estimate(len(base), first), Estimate(len(canary), second)
    low, high = (None, None) if interval is None else interval
    verdict = Verdict.NOT_ENOUGH
    if low is not None and high is not None and min(len(base), len(canary)) >= ENOUGH and not low <= 0 <= high:
        verdict = Verdict.BETTER if (low > 0) == (better > 0) else Verdict.WORSE
    return Compared(name, *estimates, second - first, low, high, verdict)


def welch(base: Sequence[float], canary: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the difference of means, or None for less than two values in an arm."""
    if min(len(base), len(canary)) < 2:
        return None
    parts = [variance(values) / len(values) for values in (base, canary)]
    middle, error = mean(canary) - mean(base), sqrt(sum(parts))
    if error == 0:
        return middle, middle
    freedom = sum(parts) ** 2 / sum(
        part**2 / (len(values) - 1) for part, values in zip(parts, (base, canary), strict=True)
    )
    half = t_95(freedom) * error
    return middle - half, middle + half


def t_95(freedom: float) -> float:
    """Return the two-sided 95 % quantile of Student's t. Beyond the table by Abramowitz and Stegun, 26.7.5."""
    if freedom < len(T_95) + 1:
        return T_95[max(1, floor(freedom)) - 1]
    return NORMAL_95 + (NORMAL_95**3 + NORMAL_95) / (4 * freedom)


def _means(base: Pairs, canary: Pairs) -> tuple[float, float, tuple[float, float] | None]:
    values = [[value for value, _ in pairs] for pairs in (base, canary)]
    return mean(values[0]), mean(values[1]), welch(*values)


def _ratios(base: Pairs, canary: Pairs) -> tuple[float, float, tuple[float, float] | None]:
    """Of sums: each request counts by its weight."""
    linear = []
    ratios = []
    for pairs in (base, canary):
        weight = sum(one for _, one in pairs)
        ratio = sum(value for value, _ in pairs) / weight if weight else 0.0
        each = weight / len(pairs)
        ratios.append(ratio)
        linear.append([ratio + (value - ratio * one) / each if each else ratio for value, one in pairs])
    return ratios[0], ratios[1], welch(*linear)


def _percentiles(base: Pairs, canary: Pairs) -> tuple[float, float, tuple[float, float] | None]:
    found = [_percentile(sorted(value for value, _ in pairs)) for pairs in (base, canary)]
    (first, first_error), (second, second_error) = found
    if first_error is None or second_error is None:
        return first, second, None
    half = NORMAL_95 * hypot(first_error, second_error)
    return first, second, (second - first - half, second - first + half)


def _percentile(ordered: Sequence[float]) -> tuple[float, float | None]:
    """Return the percentile by nearest rank and its standard error; no error where too few lie beyond it."""
    count = len(ordered)
    value = ordered[max(0, ceil(PERCENTILE * count) - 1)]
    half = NORMAL_95 * sqrt(count * PERCENTILE * (1 - PERCENTILE))
    low, high = floor(count * PERCENTILE - half), ceil(count * PERCENTILE + half) + 1
    if low < 1 or high > count:
        return value, None
    return value, (ordered[high - 1] - ordered[low - 1]) / (2 * NORMAL_95)


def _shares(base: Pairs, canary: Pairs) -> tuple[float, float, tuple[float, float] | None]:
    (p1, low1, high1), (p2, low2, high2) = (_wilson(sum(v for v, _ in pairs), len(pairs)) for pairs in (base, canary))
    difference = p2 - p1
    return (
        p1,
        p2,
        (difference - hypot(p2 - low2, high1 - p1), difference + hypot(high2 - p2, p1 - low1)),
    )


def _wilson(count: float, of: int) -> tuple[float, float, float]:
    """Return a share and its Wilson score interval."""
    z, share = NORMAL_95, count / of
    middle = (share + z * z / (2 * of)) / (1 + z * z / of)
    half = z * sqrt(share * (1 - share) / of + z * z / (4 * of * of)) / (1 + z * z / of)
    return share, max(0.0, middle - half), min(1.0, middle + half)


def _first_ms(one: Sample) -> tuple[float, float] | None:
    return (one.first_us / 1000, 1.0) if one.finished and one.first_us is not None else None


def _end_ms(one: Sample) -> tuple[float, float] | None:
    return (one.end_us / 1000, 1.0) if one.finished and one.end_us is not None else None


def _cost(one: Sample) -> tuple[float, float] | None:
    if not one.finished or one.cost_pico is None:
        return None
    return one.cost_pico / PICO_PER_UNIT, (one.prompt_tokens + one.output_tokens) / TOKENS_PER_PRICE


def _cached(one: Sample) -> tuple[float, float] | None:
    return (float(one.cached_tokens), float(one.prompt_tokens)) if one.finished else None


def _failed(one: Sample) -> tuple[float, float] | None:
    return (float(one.failed), 1.0) if one.finished or one.failed else None


_FIGURES: tuple[tuple[str, Pick, Estimator, int], ...] = (
    ("first_token_ms_mean", _first_ms, _means, -1),
    ("first_token_ms_p90", _first_ms, _percentiles, -1),
    ("end_to_end_ms_mean", _end_ms, _means, -1),
    ("end_to_end_ms_p90", _end_ms, _percentiles, -1),
    ("cost_per_million_tokens", _cost, _ratios, -1),
    ("cached_share", _cached, _ratios, 1),
    ("failed_share", _failed, _shares, -1),
)
"""(name, what is taken of a request, how both arms are compared, 1 where more is better and -1 where less is)."""
