"""Money: an integer of pico-units with an ISO 4217 code. Currencies never meet here."""

from __future__ import annotations

import re
from decimal import Decimal
from fractions import Fraction
from typing import NewType

import msgspec

Currency = NewType("Currency", str)
"""An ISO 4217 code in capitals."""

PICO_PER_UNIT = 10**12
TOKENS_PER_PRICE = 1_000_000
"""Token prices are quoted per million tokens."""
# One spelling per amount: no sign, exponent, underscore, space or foreign digit.
_DECIMAL = re.compile(r"[0-9]{1,18}(?:\.[0-9]{1,18})?\Z")


class Money(msgspec.Struct, frozen=True):
    """An amount; 1 USD is 10^12 pico-units."""

    amount_pico: int
    currency: Currency

    def plus(self, other: Money) -> Money:
        """Return the sum. Raises ValueError when the currencies differ."""
        if other.currency != self.currency:
            raise ValueError(f"{self.currency} and {other.currency} meet only through a dated FX table")
        return Money(self.amount_pico + other.amount_pico, self.currency)

    def text(self) -> str:
        """Return the amount as people read it, such as ``0.000123 USD``."""
        amount = Decimal(self.amount_pico) / PICO_PER_UNIT
        return f"{amount.normalize():f} {self.currency}"


def parse_units(text: str, divisor: int) -> int:
    """Return a decimal amount of units, divided by `divisor`, in whole pico-units.

    `parse_units("0.25", 1_000_000)` is a price per million tokens as pico-units per token: 250,000.
    Raises ValueError when the text is no decimal of zero or more, or does not come out in whole pico-units.
    """
    if _DECIMAL.match(text) is None:
        raise ValueError("expected a quoted decimal of zero or more, such as \"0.25\"")
    # Fractions do not round, whatever the context of decimals says.
    pico = Fraction(text) * PICO_PER_UNIT / divisor
    if pico.denominator != 1:
        raise ValueError("finer than a pico-unit; round it to fewer decimals")
    return int(pico)
