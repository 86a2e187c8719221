"""Whoever asks for an answer says how long it may take; an engine has a bound of its own, and the lesser counts."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from tests.engines.heard import Heard
from tests.engines.test_hostile_engines import (
    GENERATION,
    STREAM_HEAD,
    Server,
    engine_at,
    failure,
    joined,
    pause,
    serving,
    sse,
    text,
)

LONG_MS = 10_000
SHORT_MS = 150


@pytest.mark.parametrize("begun", [b"", STREAM_HEAD, STREAM_HEAD + sse(text("a"))], ids=["nothing", "head", "text"])
@pytest.mark.parametrize(("asked_ms", "bound_ms"), [(SHORT_MS, LONG_MS), (LONG_MS, SHORT_MS), (None, SHORT_MS)])
async def test_an_answer_ends_at_the_lesser_of_two_bounds(begun: bytes, asked_ms: int | None, bound_ms: int) -> None:
    async def stall(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(begun)
        await pause(server, writer)

    loop = asyncio.get_running_loop()
    async with serving(stall) as server, engine_at(server.port, total_timeout_ms=bound_ms) as engine:
        at_s = loop.time()
        async with contextlib.aclosing(engine.generate(GENERATION, asked_ms)) as events:
            assert failure(joined([event async for event in events])) == "engine_failed"
        assert SHORT_MS / 1000 <= loop.time() - at_s < 1


@pytest.mark.parametrize(("asked_ms", "bound_ms"), [(SHORT_MS, LONG_MS), (LONG_MS, SHORT_MS)])
async def test_the_same_holds_where_nobody_waits_for_what_comes_next(asked_ms: int, bound_ms: int) -> None:
    async def stall(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + sse(text("a")))
        await pause(server, writer)

    async with serving(stall) as server, engine_at(server.port, total_timeout_ms=bound_ms) as engine:
        answer = Heard(engine, asked_ms)
        await asyncio.wait_for(answer.over.wait(), 1)
        assert failure(joined(answer.events)) == "engine_failed"
