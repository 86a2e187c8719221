"""How much a program grew while it was watched. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import linear_regression, median


@dataclass(frozen=True, slots=True)
class Growth:
    """One program, from the first quarter of its samples to the last."""

    rss_before_bytes: int
    rss_after_bytes: int
    bytes_per_request: float
    """The slope of the memory over the requests that were asked by then."""
    descriptors_more: int
    threads_more: int


def growth_of(memory: Sequence[tuple[int, int]], descriptors: Sequence[int], threads: Sequence[int]) -> Growth:
    """Return how a program grew. `memory` is requests and resident bytes at each sample."""
    rss = [size for _, size in memory]
    slope = 0.0
    if len({requests for requests, _ in memory}) > 1:
        slope = linear_regression([requests for requests, _ in memory], rss).slope
    return Growth(
        round(_quarter(rss, last=False)),
        round(_quarter(rss, last=True)),
        slope,
        _more(descriptors),
        _more(threads),
    )


def _more(values: Sequence[int]) -> int:
    return round(_quarter(values, last=True) - _quarter(values, last=False))


def _quarter(values: Sequence[int], *, last: bool) -> float:
    """Return the median of the first or the last quarter; 0 without any."""
    size = max(1, len(values) // 4)
    part = values[-size:] if last else values[:size]
    return float(median(part)) if part else 0.0
