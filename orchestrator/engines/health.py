"""Whether an engine is there: a probe of its model list."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import msgspec

from orchestrator.engines.generation import Failed
from orchestrator.engines.openai import OpenAIEngine

MODELS_MAX = 1_000
"""The most models that a list may name."""


@dataclass(frozen=True, slots=True)
class EngineHealth:
    """What one probe saw."""

    up: bool
    """The engine answered in time with a list that can be read."""
    models: tuple[str, ...]
    """The names that the engine serves, as it told them; empty when it is not up."""
    detail: str
    """Why it is not up, in our words; empty when it is up."""


class _Model(msgspec.Struct, frozen=True):
    id: Annotated[str, msgspec.Meta(min_length=1, max_length=256)]


class _ModelList(msgspec.Struct, frozen=True):
    data: Annotated[list[_Model], msgspec.Meta(max_length=MODELS_MAX)]


_MODEL_LIST = msgspec.json.Decoder(_ModelList)


async def probe(engine: OpenAIEngine, *, deadline_ms: int) -> EngineHealth:
    """Asks the engine for its models and waits for at most `deadline_ms`. Raises nothing for an engine that is down."""
    body = await engine.fetch("/v1/models", deadline_ms=deadline_ms)
    if isinstance(body, Failed):
        return EngineHealth(up=False, models=(), detail=body.detail)
    try:
        listed = _MODEL_LIST.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return EngineHealth(up=False, models=(), detail="the engine's model list cannot be read")
    return EngineHealth(up=True, models=tuple(model.id for model in listed.data), detail="")
