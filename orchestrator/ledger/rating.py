"""Rating: what a count of tokens costs, in whole pico-units."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.ledger.money import Currency, Money
from orchestrator.policy.ids import ModelId


@dataclass(frozen=True, slots=True)
class TokenPrice:
    """Pico-units per token, by kind."""

    currency: Currency
    input_pico: int
    cached_pico: int
    output_pico: int


@dataclass(frozen=True, slots=True)
class PriceBook:
    """What tenants pay, by model."""

    id: str
    prices: dict[ModelId, TokenPrice]


def rate(price: TokenPrice, prompt: int, cached: int, output: int) -> Money:
    """Return the price of an attempt. `cached` tokens are part of `prompt`. Raises ValueError on a negative count."""
    return Money(pico_of(price, prompt, cached, output), price.currency)


def pico_of(price: TokenPrice, prompt: int, cached: int, output: int) -> int:
    """Return the same as a number of pico-units."""
    if prompt < 0 or cached < 0 or output < 0 or cached > prompt:
        raise ValueError("token counts are zero or more, and cached tokens are part of the prompt")
    return (prompt - cached) * price.input_pico + cached * price.cached_pico + output * price.output_pico
