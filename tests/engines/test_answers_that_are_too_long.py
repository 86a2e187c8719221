"""An answer is held against the tokens that its engine was asked for."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest

from orchestrator.engines.chunks import TEXTS_BEYOND, USAGE_BEYOND, AnswerReader, UsageExpectation
from orchestrator.engines.generation import (
    Delta,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Message,
    ModelId,
    Resume,
    Role,
    Said,
    Sampling,
)
from orchestrator.engines.openai import Answer, OpenAIEngine
from orchestrator.policy.ids import digest_of
from tests.engines.heard import Heard
from tests.engines.test_hostile_engines import (
    DONE,
    GENERATION,
    STREAM_HEAD,
    WITHOUT_MOST,
    Server,
    engine_at,
    joined,
    serving,
    sse,
    text,
)

MOST = 5


def usage(completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": completion}}


def read(
    events: list[bytes], way: str, most: int | None = MOST, usage: UsageExpectation = UsageExpectation.REQUIRED
) -> list[object]:
    """Read events as one, one by one, framed one by one, or byte by byte."""
    reader, told = AnswerReader(20_000, usage, most), list[EngineEvent]()
    parts = {"at once": [b"".join(events)], "bytes": [bytes([one]) for one in b"".join(events)]}.get(way, events)
    if way == "framed":
        for at in range(0, len(parts), 3):
            told += reader.feed_parts(parts[at : at + 3])
    else:
        for part in parts:
            told += reader.feed_parts([part])
    return [*joined(told + reader.feed(b""))]


WAYS = pytest.mark.parametrize("way", ["at once", "one by one", "framed", "bytes"])
END = [sse(text(None, "stop")), DONE]


@WAYS
@pytest.mark.parametrize("count", [3_000, MOST + TEXTS_BEYOND + 1])
@pytest.mark.parametrize("most", [MOST, 20])
def test_texts_beyond_what_was_asked_for_fail_the_answer(way: str, count: int, most: int) -> None:
    events = [sse(text("a"))] * (count + most) + [sse(usage(most)), *END]
    *before, last = read(events, way, most)
    assert before == [Delta("a" * (most + TEXTS_BEYOND), (), most + TEXTS_BEYOND)]
    assert isinstance(last, Failed)
    assert last.code == "engine_protocol"


@WAYS
def test_an_answer_as_long_as_was_asked_for_is_whole(way: str) -> None:
    for count in (MOST, MOST + TEXTS_BEYOND):
        events = [sse(text("a"))] * count + [sse(text("")), sse(usage(MOST)), *END]
        assert read(events, way)[0] == Delta("a" * count, (), count)
        assert isinstance(read(events, way)[-1], Finished)


@WAYS
def test_an_answer_without_a_most_may_be_of_any_length(way: str) -> None:
    assert isinstance(read([sse(text("a"))] * 300 + [sse(usage(300)), *END], way, None)[-1], Finished)


@WAYS
def test_thoughts_are_tokens_too(way: str) -> None:
    thought = sse({"choices": [{"index": 0, "delta": {"reasoning_content": "hm"}, "finish_reason": None}]})
    assert isinstance(read([thought, sse(text("a"))] * 2 + [sse(usage(4)), *END], way)[-1], Finished)
    last = read([thought] * 3_000 + [sse(usage(4)), *END], way)[-1]
    assert isinstance(last, Failed)
    assert last.code == "engine_protocol"


@WAYS
def test_a_usage_beyond_what_was_asked_for_fails_the_answer(way: str) -> None:
    drafted = read([sse(text("a")), sse(usage(MOST + USAGE_BEYOND)), *END], way)[-1]
    assert isinstance(drafted, Finished)
    last = read([sse(text("a")), sse(usage(MOST + USAGE_BEYOND + 1)), *END], way)[-1]
    assert isinstance(last, Failed)
    assert last.code == "engine_protocol"


async def test_the_connection_of_an_answer_without_end_is_cut() -> None:
    async def go_on(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(sse(text("a")))
            await writer.drain()

    most = GENERATION.sampling.max_tokens
    assert most is not None
    async with serving(go_on) as server, engine_at(server.port) as engine, asyncio.timeout(5):
        answer = Heard(engine)
        await answer.over.wait()
        *_, last = answer.events
        assert isinstance(last, Failed)
        assert last.code == "engine_protocol"
        assert sum(event.tokens for event in answer.events if isinstance(event, Delta)) == most + TEXTS_BEYOND
        await server.gone.wait()


async def test_an_answer_without_a_most_is_held_against_the_context() -> None:
    """An engine that never stops is ended by what it sent, and not only by the time."""

    class InContext(Heard):
        def __init__(self, engine: OpenAIEngine, context_tokens: int, generation: Generation) -> None:
            self.events, self.begun, self.over, self._holds = [], asyncio.Event(), asyncio.Event(), False
            Answer.__init__(self, engine, generation, None, context_tokens)

    async def go_on(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(sse(text("a")))
            await writer.drain()

    for generation, most in ((WITHOUT_MOST, 40), (GENERATION, GENERATION.sampling.max_tokens)):
        async with serving(go_on) as server, engine_at(server.port) as engine, asyncio.timeout(5):
            answer = InContext(engine, 40, generation)
            await answer.over.wait()
            *_, last = answer.events
            assert isinstance(last, Failed)
            assert last.code == "engine_protocol"
            assert most is not None
            assert sum(event.tokens for event in answer.events if isinstance(event, Delta)) == most + TEXTS_BEYOND
            await server.gone.wait()


@WAYS
def test_without_a_usage_no_more_tokens_are_told_than_were_asked_for(way: str) -> None:
    events = [sse(text("a"))] * (MOST + TEXTS_BEYOND) + END
    assert read(events, way, usage=UsageExpectation.OPTIONAL)[-1] == Finished(FinishReason.STOP, 0, MOST)
    assert read(events, way, None, UsageExpectation.OPTIONAL)[-1] == Finished(
        FinishReason.STOP, 0, MOST + TEXTS_BEYOND
    )


async def test_what_was_said_already_counts_against_what_is_asked_for() -> None:
    said = Said(Resume.TEXT, digest_of(b"model"), 3, "abc")
    generation = Generation(ModelId("m"), (Message(Role.USER, "u"),), Sampling(max_tokens=MOST), said)
    body = sse(*[text("a")] * 2_000, text(None, "stop"), usage(2)) + DONE
    async with serving(STREAM_HEAD + body) as server, engine_at(server.port) as engine, asyncio.timeout(5):
        async with contextlib.aclosing(engine.generate(generation)) as events:
            *before, last = [event async for event in events]
    assert isinstance(last, Failed)
    assert sum(event.tokens for event in before if isinstance(event, Delta)) == MOST - 3 + TEXTS_BEYOND
