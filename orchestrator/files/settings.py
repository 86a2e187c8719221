"""Placement settings of a side, as SREs tune them. Amounts are quoted decimals of currency units."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    Count,
    CountOrZero,
    Version,
    Written,
    read_amount,
    read_currency,
    read_name,
    read_names,
)
from orchestrator.files.typed import FieldPath
from orchestrator.placement.settings import AGE_SPREAD_PPM, UNKNOWN_BYTES_PER_S, Canary, Change, PlacementSettings
from orchestrator.policy.ids import PoolId

MS_PER_PRICE = 1_000
"""Time is priced per second, so that every price down to nine decimals is whole pico-units per millisecond."""
GRAMS_PER_PRICE = 1_000
"""Carbon is priced per kilogram of CO2 equivalent."""
BYTES_PER_MBIT = 125_000
TIME_PICO_PER_MS_MAX = 10**9
"""One currency unit per second: dearer time would leave 64 bits in the sum of a decision."""
Share = Annotated[int, Meta(ge=0, le=1_000_000)]


class ChangeDocument(Written, frozen=True):
    """Settings on trial. What is left out stays as it is."""

    value_of_time_per_second: str | UnsetType = UNSET
    late_price_per_second: str | UnsetType = UNSET
    slo_first_ms: Count | UnsetType = UNSET
    slo_token_ms: Count | UnsetType = UNSET
    epsilon_ppm: Share | UnsetType = UNSET
    carbon_price_per_kg: str | UnsetType = UNSET


class CanaryDocument(Written, frozen=True):
    """A share of requests, in parts per million, that is placed by `change`."""

    share_ppm: Share
    change: ChangeDocument


class SettingsDocument(Written, frozen=True):
    """What time is worth, what is late, what carbon costs, and which pools are drained or capped.

    `slo_first_ms` and `slo_token_ms` are promised to every tenant whose contract says nothing else. `unknown_rtt_ms`
    and `unknown_mbit_per_s` are taken for a link that was not measured yet. `age_spread_ppm` says how much the estimate
    of a queue widens with the age of the report. `caps` limits the attempts of one edge at a pool.
    """

    version: Version
    currency: str
    value_of_time_per_second: str
    late_price_per_second: str
    slo_first_ms: Count
    slo_token_ms: Count
    epsilon_ppm: Share
    unknown_rtt_ms: CountOrZero
    expected_output_tokens: Count
    drains: tuple[str, ...] = ()
    caps: dict[str, CountOrZero] = msgspec.field(default_factory=dict)
    carbon_price_per_kg: str = "0"
    unknown_mbit_per_s: Annotated[int, Meta(ge=1, le=1_000_000)] = UNKNOWN_BYTES_PER_S // BYTES_PER_MBIT
    age_spread_ppm: Share = AGE_SPREAD_PPM
    canary: CanaryDocument | UnsetType = UNSET


def settings_of(document: SettingsDocument) -> PlacementSettings:
    """Return the settings. Raises DomainError."""
    return PlacementSettings(
        currency=read_currency(document.currency, ("currency",)),
        value_of_time_pico_per_ms=read_time_price(document.value_of_time_per_second, ("value_of_time_per_second",)),
        late_price_pico_per_ms=read_time_price(document.late_price_per_second, ("late_price_per_second",)),
        slo_first_ms=document.slo_first_ms,
        slo_token_us=document.slo_token_ms * 1000,
        epsilon_ppm=document.epsilon_ppm,
        unknown_rtt_ms=document.unknown_rtt_ms,
        expected_output_tokens=document.expected_output_tokens,
        drains=frozenset(PoolId(name) for name in read_names(document.drains, ("drains",))),
        caps={PoolId(read_name(name, ("caps", name))): cap for name, cap in document.caps.items()},
        carbon_pico_per_gram=read_amount(document.carbon_price_per_kg, GRAMS_PER_PRICE, ("carbon_price_per_kg",)),
        unknown_bytes_per_s=document.unknown_mbit_per_s * BYTES_PER_MBIT,
        age_spread_ppm=document.age_spread_ppm,
        canary=None if document.canary is UNSET else _canary(document.canary),
    )


def read_time_price(text: str, path: FieldPath) -> int:
    """Return a price per second as pico-units per millisecond. Raises DomainError."""
    pico = read_amount(text, MS_PER_PRICE, path)
    if pico > TIME_PICO_PER_MS_MAX:
        raise DomainError(path, "expected at most 1 per second")
    return pico


def _canary(document: CanaryDocument) -> Canary:
    path: FieldPath = ("canary", "change")
    change = document.change
    carbon, token = change.carbon_price_per_kg, change.slo_token_ms
    return Canary(
        document.share_ppm,
        Change(
            value_of_time_pico_per_ms=_time(change.value_of_time_per_second, (*path, "value_of_time_per_second")),
            late_price_pico_per_ms=_time(change.late_price_per_second, (*path, "late_price_per_second")),
            slo_first_ms=None if change.slo_first_ms is UNSET else change.slo_first_ms,
            slo_token_us=None if token is UNSET else token * 1000,
            epsilon_ppm=None if change.epsilon_ppm is UNSET else change.epsilon_ppm,
            carbon_pico_per_gram=None
            if carbon is UNSET
            else read_amount(carbon, GRAMS_PER_PRICE, (*path, "carbon_price_per_kg")),
        ),
    )


def _time(text: str | UnsetType, path: FieldPath) -> int | None:
    return None if text is UNSET else read_time_price(text, path)
