"""Chance in a replay: a seeded generator that the caller hands over, so that the same seed is the same run."""

from __future__ import annotations

from math import log
from typing import Protocol


class Chance(Protocol):
    """What a replay needs of a generator; `random.Random(seed)` is one."""

    def random(self) -> float:
        """Return the next number, uniform in [0, 1)."""


def exponential_us(chance: Chance, mean_us: float) -> int:
    """Return one draw of an exponential distribution in whole microseconds, by inversion; 0 when the mean is 0."""
    return int(-log(1.0 - chance.random()) * mean_us) if mean_us > 0 else 0
