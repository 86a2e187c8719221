"""Placement settings of a side: what time is worth, what is late, and which pools are drained."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.ledger.money import Currency
from orchestrator.policy.ids import PoolId


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """Tuned by SREs, published in the bundle."""

    currency: Currency
    """The one currency of every cost that is compared."""
    value_of_time_pico_per_ms: int
    """What a millisecond of a tenant's waiting is worth."""
    late_price_pico_per_ms: int
    """What a millisecond beyond `slo_ms` costs on top."""
    slo_ms: int
    """End to end, for the expected answer."""
    epsilon_ppm: int
    """Candidates within this share (parts per million) of the best cost count as equal."""
    unknown_rtt_ms: int
    """Taken for a pool whose round trip was not measured yet: unknown is not zero."""
    expected_output_tokens: int
    """Taken where a request names no maximum."""
    drains: frozenset[PoolId] = frozenset()
    """Pools that get no new work. Running answers end undisturbed."""
