"""An engine whose last stream was good: the head of each reply is judged all the same."""

from __future__ import annotations

import asyncio

from orchestrator.engines.generation import EngineEvent, Failed
from tests.engines.test_hostile_engines import (
    GENERATION,
    STREAM_HEAD,
    WHOLE,
    WHOLE_EVENTS,
    Server,
    engine_at,
    joined,
    serving,
)

COMPRESSED = STREAM_HEAD[:-2] + b"Content-Encoding: gzip\r\n\r\n"
DOCUMENT = STREAM_HEAD.replace(b"text/event-stream", b"application/json")


async def test_a_good_stream_speaks_for_no_other_reply() -> None:
    heads = [STREAM_HEAD, COMPRESSED, DOCUMENT, STREAM_HEAD]

    async def next_of(server: Server, writer: asyncio.StreamWriter) -> None:
        # What follows could be read, whatever the head says of it.
        writer.write(heads[len(server.requests) - 1] + WHOLE)

    async with serving(next_of) as server, engine_at(server.port) as engine:
        heard: list[list[EngineEvent]] = []
        for _ in heads:
            heard.append(joined([event async for event in engine.generate(GENERATION)]))
    assert heard == [
        WHOLE_EVENTS,
        [Failed("engine_protocol", "the engine compressed its answer unasked")],
        [Failed("engine_protocol", "the engine did not stream its answer")],
        WHOLE_EVENTS,
    ]
