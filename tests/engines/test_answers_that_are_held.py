"""An answer whose consumer is slow: what came before it broke is told, and that it broke, whatever came last."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest
import uvloop

from orchestrator.engines.chunks import AnswerReader
from orchestrator.engines.generation import Delta, EngineEvent, Failed, Finished, FinishReason
from tests.engines.heard import Heard
from tests.engines.test_hostile_engines import (
    DONE,
    GENERATION,
    STREAM_HEAD,
    USAGE,
    WHOLE,
    WHOLE_EVENTS,
    Server,
    engine_at,
    joined,
    serving,
    sse,
    text,
)

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
BROKE = Failed("engine_failed", "the connection to the engine broke in the middle of its answer")
NOT_HTTP = Failed("engine_protocol", "the engine's answer is not valid HTTP")
ENDED = Finished(FinishReason.STOP, 5, 2)


def framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


async def heard(late: list[bytes], pause_s: float = 0.2) -> list[EngineEvent]:
    """What a consumer hears that takes the first text, and then its time, in which the engine says the rest."""

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + framed(sse(text("a"))))
        for piece in late:
            await asyncio.sleep(0.03)
            writer.write(piece)
            await writer.drain()

    seen: list[EngineEvent] = []
    async with serving(script) as server, engine_at(server.port) as engine, asyncio.timeout(5):
        async with contextlib.aclosing(engine.generate(GENERATION)) as events:
            async for event in events:
                seen.append(event)
                if len(seen) == 1:
                    await asyncio.sleep(pause_s)
        assert engine.in_flight == 0
    return joined(seen)


@pytest.mark.parametrize(
    ("late", "told"),
    [
        ([framed(sse(text("b")))], [Delta("ab", (), 2), BROKE]),
        ([framed(b": still there\n\n")], [Delta("a", (), 1), BROKE]),
        ([], [Delta("a", (), 1), BROKE]),
        ([framed(sse(text("b"))), b"xyz\r\n"], [Delta("ab", (), 2), NOT_HTTP]),
        ([b"xyz\r\n"], [Delta("a", (), 1), NOT_HTTP]),
        ([framed(sse(text("b", "stop"), USAGE) + DONE), b"0\r\n\r\n"], [Delta("ab", (), 2), ENDED]),
        ([framed(sse(text("b", "stop"), USAGE) + DONE)], [Delta("ab", (), 2), ENDED]),
        (
            [framed(sse(text("b"))), b"0\r\n\r\n"],
            [Delta("ab", (), 2), Failed("engine_failed", "the engine ended its stream before the answer was complete")],
        ),
    ],
    ids=["text", "comment", "nothing", "text, no HTTP", "no HTTP", "the end", "the end, unframed", "no end"],
)
async def test_what_came_while_a_consumer_took_its_time_is_told(late: list[bytes], told: list[EngineEvent]) -> None:
    assert await heard(late) == told


@pytest.mark.parametrize("reply", [CHUNKED + framed(WHOLE) + b"0\r\n\r\n", CHUNKED + framed(WHOLE), STREAM_HEAD])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_failure_of_ours_breaks_the_answer_that_it_is_about(
    monkeypatch: pytest.MonkeyPatch, loop: Callable[[], asyncio.AbstractEventLoop], reply: bytes
) -> None:
    failures: list[object] = []

    def failing(*_: object) -> list[EngineEvent]:
        raise ZeroDivisionError

    async def whole() -> list[EngineEvent]:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context.get("exception")))
        async with serving(reply) as server, engine_at(server.port) as engine, asyncio.timeout(5):
            events = [event async for event in engine.generate(GENERATION)]
            assert engine.in_flight == 0
            return events

    monkeypatch.setattr(AnswerReader, "feed", failing)
    with asyncio.Runner(loop_factory=loop) as runner:
        assert runner.run(whole()) == [BROKE]
    assert [type(failure) for failure in failures] == [ZeroDivisionError]


@pytest.mark.parametrize("late", [[framed(sse(text("b", "stop"), USAGE) + DONE), b"0\r\n\r\n"], []])
async def test_a_consumer_that_leaves_meanwhile_leaves_nothing(late: list[bytes]) -> None:
    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + framed(sse(text("a"))))
        for piece in late:
            await asyncio.sleep(0.03)
            writer.write(piece)
        await asyncio.sleep(30)

    async with serving(script) as server, engine_at(server.port) as engine:
        async with contextlib.aclosing(engine.generate(GENERATION)) as events:
            assert await anext(events) == Delta("a", (), 1)
            await asyncio.sleep(0.15)
        assert engine.in_flight == 0
        await asyncio.wait_for(server.gone.wait(), 1)


async def test_one_that_goes_on_after_its_end_takes_nothing_of_the_next_on_its_connection() -> None:
    asked_again, all_came = asyncio.Event(), asyncio.Event()

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(CHUNKED + framed(WHOLE) + b"0\r\n\r\n")
        await asked_again.wait()
        writer.write(CHUNKED + framed(sse(text("a"))))
        await asyncio.sleep(0.05)
        writer.write(framed(sse(text("b", "stop"), USAGE) + DONE) + b"0\r\n\r\n")
        await asyncio.sleep(0.05)
        all_came.set()
        await asyncio.sleep(30)

    async with serving(script) as server, engine_at(server.port) as engine, asyncio.timeout(5):
        first = Heard(engine)
        await first.over.wait()
        second = Heard(engine, holds=True)
        asked_again.set()
        await all_came.wait()
        assert (second.events, second.reply) == ([Delta("a", (), 1)], first.reply)
        first.go_on()
        second.go_on()
    assert joined(first.events) == WHOLE_EVENTS
    assert joined(second.events) == [Delta("ab", (), 2), ENDED]
