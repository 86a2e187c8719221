"""How long an answer may take: to its first token, between two tokens, and in all. Pure; time is a parameter.

The edge keeps these for every attempt; what is left of the whole travels with the attempt, and whoever works for it
further on stops when that is over. Only waiting for the pool counts against the first two: a tenant that is slow to
read brings neither about.
"""

from __future__ import annotations

import msgspec

FIRST = "timeout_first_token"
BETWEEN = "timeout_between_tokens"
TOTAL = "timeout_total"


class Waits(msgspec.Struct, frozen=True):
    """The longest waits for a pool."""

    first_token_ms: int = 120_000
    """The queue and the prompt included."""
    between_tokens_ms: int = 30_000

    def after(self, passed_ms: int) -> Waits:
        """Return what is left for another attempt of a request that has waited so long for its first token."""
        least_ms = min(self.first_token_ms, self.between_tokens_ms)
        return Waits(max(least_ms, self.first_token_ms - passed_ms), self.between_tokens_ms)


AS_SET = Waits()
"""Where nobody says otherwise."""


class Deadlines:
    """Those of one attempt, which leaves now."""

    __slots__ = ("_between_us", "_first_until_us", "_total_us", "_until_us", "_waits", "begun")

    def __init__(self, waits: Waits, total_ms: int, now_us: int) -> None:
        self._waits = waits
        self._total_us = now_us + total_ms * 1000
        self._between_us = waits.between_tokens_ms * 1000
        self._first_until_us = now_us + waits.first_token_ms * 1000
        self._until_us = self._first_until_us
        self.begun = False
        """Whether a token came. Set directly: it is set with every frame."""

    def left_us(self, now_us: int) -> int:
        """Return how long the wait for the next frame, which begins now, may take. Nothing is left at 0."""
        until_us = self._until_us = now_us + self._between_us if self.begun else self._first_until_us
        left_us = (until_us if until_us < self._total_us else self._total_us) - now_us
        return left_us if left_us > 0 else 0

    def over(self) -> tuple[str, str]:
        """Return the code and the sentence of the bound that ends the wait that began last."""
        if self._total_us <= self._until_us:
            return TOTAL, "The answer was not complete in the time that the request had."
        if self.begun:
            return BETWEEN, f"No token came for {self._waits.between_tokens_ms} ms after the last one."
        return FIRST, f"No token came within {self._waits.first_token_ms} ms."
