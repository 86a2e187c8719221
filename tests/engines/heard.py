"""An answer of an engine as an intake has it: told as it comes, and not waited for."""

from __future__ import annotations

import asyncio

from orchestrator.engines.generation import EngineEvent
from orchestrator.engines.openai import Answer, OpenAIEngine
from tests.engines.test_hostile_engines import GENERATION


class Heard(Answer):
    """Keeps what it is told. One that `holds` lets what comes after that wait."""

    def __init__(self, engine: OpenAIEngine, total_ms: int | None = None, holds: bool = False) -> None:
        self.events: list[EngineEvent] = []
        self.begun = asyncio.Event()
        """Set with the first event."""
        self.over = asyncio.Event()
        """Set with the last."""
        self._holds = holds
        super().__init__(engine, GENERATION, total_ms)

    def told(self, events: list[EngineEvent]) -> None:
        self.events += events
        self.begun.set()
        if self.ended:
            self.over.set()
        elif self._holds:
            self.hold()
