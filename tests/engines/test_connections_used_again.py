"""Connections to an engine: used again where that is safe, and never a reply taken for another's."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
import uvloop

from orchestrator.engines.http import HELD_BYTES_MAX, Asking, Fault, HttpClient, Reply

REQUEST = b"GET / HTTP/1.1\r\nhost: engine\r\n\r\n"


def reply(body: bytes, *headers: bytes) -> bytes:
    lines = (b"HTTP/1.1 200 OK", b"content-length: %d" % len(body), *headers, b"", b"")
    return b"\r\n".join(lines) + body


@dataclass(slots=True)
class Server:
    """Answers every request on every connection by its number, from 1."""

    answer: Callable[[int], bytes]
    close_after: bool = False
    """Whether it closes each connection after a reply without saying so."""
    port: int = 0
    requests: int = 0
    connections: int = 0
    open: set[asyncio.StreamWriter] = field(default_factory=set)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open.add(writer)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await reader.readuntil(b"\r\n\r\n")
                self.requests += 1
                writer.write(self.answer(self.requests))
                await writer.drain()
                if self.close_after:
                    break
        self.open.discard(writer)
        writer.close()


@contextlib.asynccontextmanager
async def serving(server: Server, resting_max: int = 4) -> AsyncIterator[HttpClient]:
    listener = await asyncio.start_server(server.handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    client = HttpClient("127.0.0.1", server.port, False, 1_000, resting_max)
    try:
        yield client
    finally:
        client.close()
        await asyncio.sleep(0)
        listener.close()
        await listener.wait_closed()


def soon() -> float:
    return asyncio.get_running_loop().time() + 5


class Broke(Exception):
    """There is no reply, or not all of it."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Asked(Asking):
    """A request whose reply is read piece by piece."""

    def __init__(self) -> None:
        self.fault: Fault | None = None
        self._more = asyncio.Event()

    def came(self) -> None:
        self._more.set()

    def broke(self, fault: Fault) -> None:
        self.fault = fault
        self._more.set()

    async def read(self) -> bytes:
        """Return what has come of the body, and empty bytes at its end."""
        while self.reply is None or not (self.reply.body or self.reply.ended):
            if self.fault is not None:
                raise Broke(self.fault)
            self._more.clear()
            await self._more.wait()
        return self.reply.take()

    def leave(self) -> Reply:
        assert self.reply is not None
        self.reply.leave()
        return self.reply


def ask(client: HttpClient) -> Asked:
    asked = Asked()
    client.ask(REQUEST, asked, soon())
    return asked


async def get(client: HttpClient) -> bytes:
    asked = ask(client)
    body = bytearray()
    try:
        while data := await asked.read():
            body += data
    except BaseException:
        asked.cut()
        raise
    asked.leave()
    return bytes(body)


async def test_requests_one_after_another_share_a_connection() -> None:
    server = Server(lambda number: reply(b"answer %d" % number))
    async with serving(server) as client:
        assert [await get(client) for _ in range(5)] == [b"answer %d" % number for number in range(1, 6)]
    assert (server.connections, server.requests) == (1, 5)


async def test_requests_at_once_have_connections_of_their_own() -> None:
    server = Server(lambda number: reply(b"answer %d" % number))
    async with serving(server) as client:
        answers = await asyncio.gather(*(get(client) for _ in range(8)))
        assert sorted(answers) == [b"answer %d" % number for number in range(1, 9)]
        await asyncio.sleep(0.05)
        assert len(server.open) == 4


@pytest.mark.parametrize(
    "answer",
    [
        reply(b"x", b"connection: close"),
        b"HTTP/1.0 200 OK\r\ncontent-length: 1\r\n\r\nx",
        reply(b"x") + b"more than was asked for",
        reply(b"x") + reply(b"y"),
    ],
    ids=["asked to close", "HTTP/1.0", "more bytes", "a second reply"],
)
async def test_a_connection_that_may_not_be_used_again_is_not(answer: bytes) -> None:
    server = Server(lambda _: answer)
    async with serving(server) as client:
        for _ in range(3):
            with contextlib.suppress(Broke):
                assert await get(client) == b"x"
            await asyncio.sleep(0.02)
    assert server.connections == 3


async def test_a_reply_that_nobody_asked_for_is_never_the_next_one() -> None:
    server = Server(lambda number: reply(b"answer %d" % number))
    async with serving(server) as client:
        assert await get(client) == b"answer 1"
        (writer,) = server.open
        writer.write(reply(b"unasked"))
        await asyncio.sleep(0.05)
        assert await get(client) == b"answer 2"
    assert server.connections == 2


async def test_the_head_of_a_reply_that_nobody_asked_for_is_not_the_head_of_the_next() -> None:
    server = Server(lambda number: reply(b"answer %d" % number))
    async with serving(server) as client:
        assert await get(client) == b"answer 1"
        (writer,) = server.open
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n")
        await asyncio.sleep(0.05)
        assert await get(client) == b"answer 2"


async def test_a_request_that_nobody_waits_for_while_it_connects_is_never_sent() -> None:
    server = Server(lambda number: reply(b"answer %d" % number))
    async with serving(server) as client:
        asked = ask(client)
        asked.cut()
        await asyncio.sleep(0.05)
        assert (asked.reply, asked.fault) == (None, None)
        assert server.requests == 0
        assert not server.open


async def test_a_server_that_closes_without_a_word_costs_no_request() -> None:
    server = Server(lambda number: reply(b"answer %d" % number), close_after=True)
    async with serving(server) as client:
        for number in range(1, 6):
            assert await get(client) == b"answer %d" % number


async def test_a_request_on_a_dead_connection_is_sent_once_more() -> None:
    server = Server(lambda number: reply(b"answer %d" % number))
    async with serving(server) as client:
        await get(client)
        (writer,) = server.open
        writer.transport.abort()
        # No turn of the loop in between: the client cannot know yet.
        assert await get(client) == b"answer 2"


async def test_a_request_that_was_answered_by_a_byte_is_not_sent_again() -> None:
    server = Server(lambda number: reply(b"first") if number == 1 else b"H", close_after=False)
    async with serving(server) as client:
        await get(client)
        second = asyncio.create_task(get(client))
        await asyncio.sleep(0.05)
        for writer in server.open:
            writer.transport.abort()
        with pytest.raises(Broke) as error:
            await second
    assert error.value.fault is Fault.CLOSED
    assert server.requests == 2


async def test_an_answer_that_is_cut_leaves_no_connection_behind() -> None:
    server = Server(lambda _: b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nsome")
    async with serving(server) as client:
        answer = ask(client)
        assert await answer.read() == b"some"
        answer.cut()
        await asyncio.sleep(0.05)
        assert not server.open


async def test_headers_without_end_are_refused() -> None:
    many = b"HTTP/1.1 200 OK\r\n" + b"".join(b"x-%d: y\r\n" % number for number in range(1_000)) + b"\r\n"
    server = Server(lambda _: many)
    async with serving(server) as client:
        with pytest.raises(Broke) as error:
            await get(client)
    assert error.value.fault is Fault.MALFORMED


async def test_interim_replies_are_passed_over() -> None:
    server = Server(lambda _: b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + reply(b"answer"))
    async with serving(server) as client:
        assert await get(client) == b"answer"


async def test_what_comes_after_a_reader_has_all_it_wants_costs_no_request() -> None:
    more = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1\r\nx\r\n")
        await more.wait()
        rest = bytes(HELD_BYTES_MAX + 1)
        writer.write(b"%x\r\n%s\r\n0\r\n\r\n" % (len(rest), rest))
        await reader.readuntil(b"\r\n\r\n")
        writer.write(reply(b"next"))
        await reader.read()
        writer.close()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    client = HttpClient("127.0.0.1", listener.sockets[0].getsockname()[1], False, 1_000, 4)
    try:
        answer = ask(client)
        assert await answer.read() == b"x"
        left = answer.leave()
        more.set()
        async with asyncio.timeout(5):
            while not left.resting:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert await get(client) == b"next"
    finally:
        client.close()
        await asyncio.sleep(0)
        listener.close()
        await listener.wait_closed()


async def test_a_reply_that_nobody_read_is_not_in_the_way_of_the_next() -> None:
    server = Server(lambda number: reply(bytes(HELD_BYTES_MAX + 1) if number == 1 else b"next"))
    async with serving(server) as client:
        answer = ask(client)
        await asyncio.sleep(0.1)  # all of it has come by now, and reading has stopped
        answer.leave()
        assert await get(client) == b"next"


@pytest.mark.parametrize("parts", [False, True])
async def test_a_reply_that_was_held_back_goes_on_when_it_is_read(parts: bool) -> None:
    body = bytes(range(256)) * (8 * HELD_BYTES_MAX // 256)
    async with serving(Server(lambda _: reply(body))) as client:
        answer = ask(client)
        came = b""
        async with asyncio.timeout(5):
            while answer.reply is None or not answer.reply.paused:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            while len(came) < len(body):
                taken = b"".join(answer.reply.take_parts()) if parts else answer.reply.take()
                came += taken or await answer.read()
        assert came == body
        answer.leave()


def test_a_reply_whose_first_part_comes_in_the_last_moment_is_late_and_no_error_of_ours() -> None:
    """uvloop takes a time within half a millisecond for one that has come; what it gives for it is no timer."""

    async def late() -> None:
        loop = asyncio.get_running_loop()
        asked = Asked()
        reply = Reply(HttpClient("127.0.0.1", 1, False, 1_000, 4))
        reply._asking = asked
        begun_at = loop.time()
        reply.await_until(begun_at + 0.0001)
        # In the same turn, before the deadline of the first is looked at.
        reply.await_until(begun_at + 0.01)
        with pytest.raises(Broke) as broke:
            await asked.read()
        assert broke.value.fault is Fault.LATE
        assert loop.time() >= begun_at + 0.01
        reply.cut()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(late())


@pytest.mark.parametrize(
    "begun",
    [
        b"HTTP/1.1 200 OK\r\nx: ",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 200 ",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n0\r\nx: ",
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n1;x=",
    ],
    ids=["header", "name of a header", "reason", "trailer", "extension of a chunk"],
)
async def test_no_line_without_end_is_taken_in(begun: bytes) -> None:
    server = Server(lambda _: begun + b"y" * 2_000_000)
    async with serving(server) as client:
        with pytest.raises(Broke) as error:
            await get(client)
    assert error.value.fault is Fault.MALFORMED


@pytest.mark.parametrize("make", [asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def test_nothing_is_left_of_requests_that_are_cut_while_their_connection_is_made(
    make: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """Of a transport that nobody takes, uvloop never tells that it is closed."""

    async def cut_after(turns: int, client: HttpClient) -> None:
        for _ in range(10):
            asked = ask(client)
            for _ in range(turns):
                await asyncio.sleep(0)
            asked.cut()
            await asyncio.sleep(0.001)

    async def every_moment() -> None:
        async with serving(Server(lambda _: reply(b"answer"))) as client:
            for turns in range(7):
                await cut_after(turns, client)
            await asyncio.sleep(0.05)
            assert client._open == set()

    with asyncio.Runner(loop_factory=make) as runner:
        runner.run(every_moment())


@pytest.mark.parametrize(
    "answer", [reply(b"answer"), b"HTTP/1.1 200 OK\r\n\r\nanswer"], ids=["framed", "ends with the connection"]
)
async def test_who_fails_to_read_the_end_of_a_reply_hears_that_it_broke(answer: bytes) -> None:
    class Fails(Asked):
        def came(self) -> None:
            super().came()
            if self.reply is not None and self.reply.ended:
                raise ZeroDivisionError

    raised: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: raised.append(context["exception"]))
    async with serving(Server(lambda _: answer, close_after=True)) as client:
        asked = Fails()
        client.ask(REQUEST, asked, soon())
        while asked.fault is None:
            asked._more.clear()
            await asyncio.wait_for(asked._more.wait(), 3)
        assert asked.fault is Fault.CLOSED
        assert [type(one) for one in raised] == [ZeroDivisionError]


async def test_whatever_keeps_a_connection_from_being_made_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def unforeseen(*_: object, **__: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", unforeseen)
    asked = ask(HttpClient("127.0.0.1", 1, False, 1_000, 4))
    assert asked.connecting is not None
    with pytest.raises(RuntimeError):
        await asked.connecting
    assert asked.fault is Fault.UNREACHABLE
