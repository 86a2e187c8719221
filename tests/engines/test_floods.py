"""An engine that sends without saying anything takes little of our time, and for a while only."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest
import uvloop

from orchestrator.engines.chunks import WORDLESS_BYTES_MAX, AnswerReader, UsageExpectation
from orchestrator.engines.generation import Delta, Failed, Finished
from orchestrator.engines.http import Asking, Fault, HttpClient, Reply
from tests.engines.heard import Heard
from tests.engines.test_hostile_engines import DONE, STREAM_HEAD, USAGE, Server, engine_at, serving, sse, text

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
ROLE = sse({"choices": [{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}]})
WORDLESS = {
    "comments": b": x\n\n",
    "empty lines": b"\n",
    "names": b"event: a\n",
    "fields": b"id: 7\r\n\r\n",
    "roles": ROLE,
    "empty texts": sse(text("")),
    "usage": sse(USAGE),
}


def reader() -> AnswerReader:
    return AnswerReader(line_bytes_max=262_144, usage=UsageExpectation.REQUIRED)


@pytest.mark.parametrize("before", [b"", sse(text("a")) * 20, sse(text("a"), text(None, "stop"))], ids=len)
@pytest.mark.parametrize("filler", WORDLESS.values(), ids=WORDLESS)
def test_bytes_without_a_word_are_bounded(filler: bytes, before: bytes) -> None:
    answer, sent = reader(), 0
    answer.feed(before or b"\n")
    piece = filler * (16_384 // len(filler))
    while not answer.ended:
        told = answer.feed(piece)
        sent += len(piece)
        assert sent <= WORDLESS_BYTES_MAX + len(piece)
    assert [type(event) for event in told] == [Failed]
    assert isinstance(told[0], Failed)
    assert told[0].code == "engine_protocol"
    assert sent > WORDLESS_BYTES_MAX - len(piece)


def test_each_word_begins_the_count_again_however_it_was_read() -> None:
    answer, piece = reader(), ROLE * (WORDLESS_BYTES_MAX // 3 // len(ROLE))
    answer.feed(sse(text("a")) * 20)
    for _ in range(4):
        assert answer.feed(piece) == answer.feed(piece) == []
        assert answer.feed_parts([sse(text("b"))]) == [Delta("b", (), 1)]


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning"])
def test_an_engine_may_think_for_long(name: str) -> None:
    answer = reader()
    thought = sse({"choices": [{"index": 0, "delta": {"content": None, name: " hm"}, "finish_reason": None}]})
    for _ in range(3 * WORDLESS_BYTES_MAX // len(thought)):
        assert answer.feed(thought) == []
    assert isinstance(answer.feed(sse(text("a", "stop"), USAGE) + DONE)[-1], Finished)


def test_comments_that_keep_a_stream_alive_for_an_hour_are_no_flood() -> None:
    answer = reader()
    for _ in range(3_600):
        assert answer.feed(b": keep-alive\n\n") == []
    assert isinstance(answer.feed(sse(text("a", "stop"), USAGE) + DONE)[-1], Finished)


@pytest.mark.parametrize("filler", WORDLESS.values(), ids=WORDLESS)
async def test_the_connection_of_a_flood_is_cut(filler: bytes) -> None:
    piece = filler * (16_384 // len(filler))

    async def flood(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(piece)
            server.sent_bytes += len(piece)
            await writer.drain()

    async with serving(flood) as server, engine_at(server.port) as engine, asyncio.timeout(5):
        answer = Heard(engine)
        await answer.over.wait()
        assert [event.code for event in answer.events if isinstance(event, Failed)] == ["engine_protocol"]
        await server.gone.wait()
        assert server.sent_bytes < 32 * 1_048_576  # most of it lies in sockets


async def test_what_follows_an_answer_is_bounded() -> None:
    async def go_on(server: Server, writer: asyncio.StreamWriter) -> None:
        whole = sse(text("a", "stop"), USAGE) + DONE
        writer.write(CHUNKED + b"%x\r\n%b\r\n" % (len(whole), whole))
        while True:
            writer.write(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
            server.sent_bytes += 0x4000
            await writer.drain()

    async with serving(go_on) as server, engine_at(server.port) as engine, asyncio.timeout(5):
        answer = Heard(engine)
        await answer.over.wait()
        assert isinstance(answer.events[-1], Finished)
        await server.gone.wait()
        assert server.sent_bytes < 32 * 1_048_576


class _Counted(Asking):
    """Takes what comes, and counts the bytes of each turn of the loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, until: int) -> None:
        self.by_turn = [0]
        self.over = loop.create_future()
        self._loop, self._until = loop, until

    def came(self) -> None:
        """See `Asking`."""
        assert self.reply is not None
        if not self.by_turn[-1]:
            self._loop.call_soon(self.by_turn.append, 0)
        self.by_turn[-1] += len(self.reply.take())
        if sum(self.by_turn) >= self._until and not self.over.done():
            self.over.set_result(None)
            self.cut()

    def broke(self, fault: Fault) -> None:
        """See `Asking`."""
        self.over.set_exception(AssertionError(fault))


def _pour(listener: socket.socket, until: int) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(65_536)
        connection.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % until + bytes(until))
        connection.recv(1)


def test_an_engine_at_line_rate_has_one_read_in_a_turn_of_the_loop() -> None:
    until = 8 * 1_048_576

    async def run(port: int) -> list[int]:
        loop = asyncio.get_running_loop()
        client = HttpClient("127.0.0.1", port, False, 1_000, 1)
        asking = _Counted(loop, until)
        client.ask(b"GET / HTTP/1.1\r\nhost: a\r\n\r\n", asking, loop.time() + 10)
        while not isinstance(asking.reply, Reply):  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(0.01)
        time.sleep(0.2)  # noqa: ASYNC251 - so that more than one read is ready
        await asking.over
        client.close()
        return asking.by_turn

    with socket.create_server(("127.0.0.1", 0)) as listener:
        pouring = threading.Thread(target=_pour, args=(listener, until))
        pouring.start()
        by_turn = uvloop.run(run(listener.getsockname()[1]))
        pouring.join()
    assert sum(by_turn) == until
    assert max(by_turn) <= 262_144
