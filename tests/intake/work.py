"""Work as a queue gives it to a replica."""

from __future__ import annotations

from scheduler.intake.choice import Asked
from scheduler.intake.replica import Given, Replica


def work_of(number: int, replica: Replica, tokens: int = 1, cached_tokens: int = 0) -> Given:
    """Return a work with `tokens` to take in that `replica` is given now."""
    asked = Asked(replica.model, tokens + cached_tokens)
    return Given(number, number, asked, replica.id, 0, 1 << 60, 0, 0, cached_tokens, tokens)
