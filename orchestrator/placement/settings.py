"""Placement settings of a side: what time is worth, what is late, what carbon costs, and which pools are drained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import msgspec

from orchestrator.ledger.money import Currency
from orchestrator.policy.ids import PoolId
from orchestrator.policy.tenants import Service

UNKNOWN_BYTES_PER_S = 12_500_000
"""Taken for a link whose bandwidth was not measured yet: 100 Mbit/s."""
AGE_SPREAD_PPM = 50_000
"""How much the estimate of a queue widens per unit of the report's age."""
NOTHING_OWN = Service()
"""Of a tenant that was promised nothing of its own."""


@dataclass(frozen=True, slots=True)
class Change:
    """Settings that a canary tries in place of the side's. None keeps the side's."""

    value_of_time_pico_per_ms: int | None = None
    late_price_pico_per_ms: int | None = None
    slo_first_ms: int | None = None
    slo_token_us: int | None = None
    epsilon_ppm: int | None = None
    carbon_pico_per_gram: int | None = None


@dataclass(frozen=True, slots=True)
class Canary:
    """A new setting on trial: a share of requests, drawn by chance, is placed by it."""

    share_ppm: int
    change: Change


class Worth(msgspec.Struct, frozen=True):
    """What the terms of J are priced with, for one request."""

    value_of_time_pico_per_ms: int
    late_price_pico_per_ms: int
    others_value_pico_per_ms: int
    """Of the time of those who share a replica with it: the side's own value of time."""
    slo_first_us: int
    slo_token_us: int
    carbon_pico_per_gram: int
    unknown_rtt_us: int
    unknown_bytes_per_s: int
    age_spread_ppm: int


@dataclass(frozen=True, slots=True)
class PlacementSettings:
    """Tuned by SREs, published in the bundle."""

    currency: Currency
    """The one currency of every cost that is compared."""
    value_of_time_pico_per_ms: int
    """What a millisecond of a tenant's waiting is worth."""
    late_price_pico_per_ms: int
    """What a millisecond beyond the promise costs on top."""
    slo_first_ms: int
    """Promised time to the first token."""
    slo_token_us: int
    """Promised time per token after it."""
    epsilon_ppm: int
    """Candidates within this share (parts per million) of the best cost count as equal."""
    unknown_rtt_ms: int
    """Taken for a pool whose round trip was not measured yet: unknown is not zero."""
    expected_output_tokens: int
    """Taken until the length of a tenant's answers is learned."""
    drains: frozenset[PoolId] = frozenset()
    """Pools that get no new work. Running answers end undisturbed."""
    caps: Mapping[PoolId, int] = field(default_factory=dict)
    """Attempts that one edge may have at a pool at once."""
    carbon_pico_per_gram: int = 0
    unknown_bytes_per_s: int = UNKNOWN_BYTES_PER_S
    age_spread_ppm: int = AGE_SPREAD_PPM
    canary: Canary | None = None
    usual: Worth = field(init=False, repr=False, compare=False)
    """What the terms are priced with for whoever was promised nothing of its own, as nearly everybody is."""

    def __post_init__(self) -> None:
        # Asked for by each request.
        object.__setattr__(self, "usual", self.worth(None))

    def arm(self, canary: bool) -> PlacementSettings:
        """Return the settings that decide: these, or those that the canary tries."""
        if not canary or self.canary is None:
            return self
        change = self.canary.change
        named = {name: getattr(change, name) for name in Change.__slots__}
        return replace(self, **{name: value for name, value in named.items() if value is not None})

    def worth(self, service: Service | None) -> Worth:
        """Return what the terms are priced with: the tenant's own promise where it has one."""
        own = NOTHING_OWN if service is None else service
        value, late = own.value_of_time_pico_per_ms, own.late_price_pico_per_ms
        first, token = own.slo_first_ms, own.slo_token_us
        return Worth(
            value_of_time_pico_per_ms=self.value_of_time_pico_per_ms if value is None else value,
            late_price_pico_per_ms=self.late_price_pico_per_ms if late is None else late,
            others_value_pico_per_ms=self.value_of_time_pico_per_ms,
            slo_first_us=(self.slo_first_ms if first is None else first) * 1000,
            slo_token_us=self.slo_token_us if token is None else token,
            carbon_pico_per_gram=self.carbon_pico_per_gram,
            unknown_rtt_us=self.unknown_rtt_ms * 1000,
            unknown_bytes_per_s=self.unknown_bytes_per_s,
            age_spread_ppm=self.age_spread_ppm,
        )


def in_canary(settings: PlacementSettings, chance: int) -> bool:
    """Say whether 21 of 64 random bits, which no tie is broken with, put a request into the canary's share."""
    canary = settings.canary
    return canary is not None and (chance >> 11 & 0x1FFFFF) * 1_000_000 >> 21 < canary.share_ppm
