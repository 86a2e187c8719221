"""Work as a queue gives it to a replica."""

from __future__ import annotations

from orchestrator.placement.cost import Terms
from orchestrator.placement.sight import Sight
from orchestrator.placement.speed import Speed
from scheduler.intake.choice import Asked
from scheduler.intake.replica import Given, Replica

NO_TERMS = Terms(*[0] * len(Terms.__struct_fields__))


def work_of(number: int, replica: Replica, tokens: int = 1, cached_tokens: int = 0) -> Given:
    """Return a work with `tokens` to take in that `replica` is given now."""
    asked = Asked(replica.model, tokens + cached_tokens)
    flight = Sight().sent(replica.place, replica.model, Speed(1, 1, 1), NO_TERMS, asked.prompt_tokens, 0)
    return Given(number, number, asked, replica, flight, 0, 1 << 60, 0, 0, cached_tokens, tokens)
