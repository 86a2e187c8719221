"""The mean of max(0, t - slo) where t is estimated: a normal distribution's loss function, in integers.

For a normal t with mean m and deviation s it is ``s * L((slo - m) / s)`` with ``L(z) = pdf(z) - z * (1 - cdf(z))``, the
unit normal loss (Silver, Pyke, Peterson: Inventory Management, appendix B). L stands in a table of 64 steps per unit,
read with linear interpolation that rounds once, so that the result never falls where the mean or the spread grows.
"""

from __future__ import annotations

import math

STEPS = 64
"""Steps of the table per unit of z."""
Z_MAX = 4
"""Beyond it L is 0 on one side (less than 8 millionths) and -z on the other."""
SCALE_BITS = 24
"""Of the table. Its rounding stays far below pdf(Z_MAX), by which the loss grows with the spread at the ends."""


def _unit_loss(z: float) -> float:
    density = math.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    return density - z * (1 - (1 + math.erf(z / math.sqrt(2))) / 2)


UNIT_LOSS: tuple[int, ...] = (
    # The first and the last join what lies beyond the table.
    Z_MAX << SCALE_BITS,
    *(round(_unit_loss(step / STEPS) * (1 << SCALE_BITS)) for step in range(1 - Z_MAX * STEPS, Z_MAX * STEPS)),
    0,
)


def mean_late_us(mean_us: int, spread_us: int, slo_us: int) -> int:
    """Return the mean lateness. `spread_us` is one standard deviation, of at least 0; 0 knows t exactly."""
    short_us = slo_us - mean_us
    if spread_us <= 0 or short_us <= -Z_MAX * spread_us:
        return -short_us if short_us < 0 else 0
    if short_us >= Z_MAX * spread_us:
        return 0
    index, part = divmod((short_us + Z_MAX * spread_us) * STEPS, spread_us)
    low, high = UNIT_LOSS[index], UNIT_LOSS[index + 1]
    return spread_us * low + (high - low) * part >> SCALE_BITS
