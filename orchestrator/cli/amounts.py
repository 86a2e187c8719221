"""Amounts as people read them: money, times, bytes. Pure."""

from __future__ import annotations

from decimal import ROUND_HALF_EVEN, Decimal
from math import floor, isfinite, log10

from orchestrator.ledger.money import Currency, Money

PICO_PER_MICRO = 1_000_000
_CENT = Decimal("0.01")
BYTE_UNITS = ("B", "kB", "MB", "GB", "TB", "PB")


def micros(pico: int) -> str:
    """Return pico-units as millionths of the currency unit, to the hundredth: requests cost that little."""
    rounded = (Decimal(pico) / PICO_PER_MICRO).quantize(_CENT, ROUND_HALF_EVEN)
    return f"{rounded + 0:,}"  # adding nothing makes -0 a plain 0


def money(pico: int, currency: str) -> str:
    """Return an exact amount, such as ``0.000123 USD``."""
    return Money(pico, Currency(currency)).text()


def milliseconds(us: int) -> str:
    """Return microseconds as milliseconds, whole from a hundred on."""
    return f"{us / 1000:,.0f}" if us >= 100_000 else f"{us / 1000:.1f}"


def significant(number: float, places: int = 4) -> str:
    """Return a number to so many places that count, whole from there on, never with an exponent."""
    if number == 0 or not isfinite(number):
        return "0" if number == 0 else str(number)
    decimals = max(0, min(15, places - 1 - floor(log10(abs(number)))))
    text = f"{number:,.{decimals}f}"
    text = text.rstrip("0").rstrip(".") if "." in text else text
    return "0" if text == "-0" else text


def data(amount: float) -> str:
    """Return bytes with a decimal unit, such as ``1.234 MB``."""
    size, unit = amount, 0
    while abs(size) >= 1000 and unit < len(BYTE_UNITS) - 1:
        size /= 1000
        unit += 1
    return f"{significant(size)} {BYTE_UNITS[unit]}"


def signed(text: str) -> str:
    """Return a difference with its sign, also where it is more."""
    nothing = not any(char in "123456789" for char in text)
    return text if text.startswith("-") or nothing else f"+{text}"
