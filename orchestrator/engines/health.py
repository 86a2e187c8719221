"""Whether an engine is there: a probe of its model list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from orchestrator.engines.generation import Failed
from orchestrator.engines.openai import OpenAIEngine

MODELS_MAX = 1_000
"""The most models that a list may name."""
MISSED_MAX = 2
"""Probes in a row that an engine may not answer before it is down."""
LATE_MS = 250
"""A probe that ends so much after its deadline was kept waiting by ourselves."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What one probe saw."""

    up: bool
    """The engine answered in time with a list that can be read."""
    models: tuple[str, ...]
    """The names that the engine serves, as it told them; empty when it is not up."""
    detail: str
    """Why it is not up, in our words; empty when it is up."""
    reachable: bool = True
    """False when nobody listens there."""


class Pulse:
    """Whether an engine is taken to be up. Pure.

    One that nobody listens for is down at once. One that only misses a probe may be busy, and so may we: it is down
    when it misses two in a row while nothing of an answer comes either, and a probe that our own loop was late for
    says nothing.
    """

    def __init__(self) -> None:
        self.up = False
        self.missed = 0
        """Probes in a row that were not answered. Whoever hears some of an answer sets it to 0."""

    def probed(self, health: EngineHealth, took_ms: int, deadline_ms: int) -> None:
        """A probe ended, after so long."""
        if health.up:
            self.up, self.missed = True, 0
        elif not health.reachable:
            self.gone()
        elif took_ms <= deadline_ms + LATE_MS:
            self.missed += 1
            self.up = self.up and self.missed < MISSED_MAX

    def gone(self) -> None:
        """Nobody listens there."""
        self.up, self.missed = False, 0


class _Model(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _ModelList(msgspec.Struct, frozen=True):
    data: Annotated[list[_Model], msgspec.Meta(max_length=MODELS_MAX)]


_MODEL_LIST = msgspec.json.Decoder(_ModelList)


async def probe(engine: OpenAIEngine, *, deadline_ms: int) -> EngineHealth:
    """Asks the engine for its models and waits for at most `deadline_ms`. Raises nothing for an engine that is down."""
    body = await engine.fetch("/v1/models", deadline_ms=deadline_ms)
    if isinstance(body, Failed):
        return EngineHealth(False, (), body.detail, reachable=body.code != "engine_unreachable")
    try:
        listed = _MODEL_LIST.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return EngineHealth(up=False, models=(), detail="the engine's model list cannot be read")
    return EngineHealth(up=True, models=tuple(model.id for model in listed.data), detail="")
