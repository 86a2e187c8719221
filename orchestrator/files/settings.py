"""Placement settings of a side, as SREs tune them. Amounts are quoted decimals of currency units per second."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta

from orchestrator.files.fields import Count, CountOrZero, Version, Written, read_amount, read_currency, read_names
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.ids import PoolId

MS_PER_PRICE = 1_000
"""Time is priced per second, so that every price down to nine decimals is whole pico-units per millisecond."""


class SettingsDocument(Written, frozen=True):
    """What time is worth, what is late, and which pools are drained."""

    version: Version
    currency: str
    value_of_time_per_second: str
    late_price_per_second: str
    slo_ms: Count
    epsilon_ppm: Annotated[int, Meta(ge=0, le=1_000_000)]
    unknown_rtt_ms: CountOrZero
    expected_output_tokens: Count
    drains: tuple[str, ...] = ()


def settings_of(document: SettingsDocument) -> PlacementSettings:
    """Return the settings. Raises DomainError."""
    return PlacementSettings(
        currency=read_currency(document.currency, ("currency",)),
        value_of_time_pico_per_ms=read_amount(
            document.value_of_time_per_second, MS_PER_PRICE, ("value_of_time_per_second",)
        ),
        late_price_pico_per_ms=read_amount(document.late_price_per_second, MS_PER_PRICE, ("late_price_per_second",)),
        slo_ms=document.slo_ms,
        epsilon_ppm=document.epsilon_ppm,
        unknown_rtt_ms=document.unknown_rtt_ms,
        expected_output_tokens=document.expected_output_tokens,
        drains=frozenset(PoolId(name) for name in read_names(document.drains, ("drains",))),
    )
