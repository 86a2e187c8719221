"""Who does not read what was written gets nothing more made, is waited for within a bound, and makes room."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node_agent.front.connection import BUFFER_BYTES_MAX, Connection
from node_agent.front.framing import Head
from node_agent.front.groups import Groups
from node_agent.front.http import Client
from node_agent.front.untaken import TAKEN_BYTES_MIN
from tests.front.room import ACME, chat_body, done, request_bytes, room_in, saying, tokens, until
from tests.front.test_hanging_up import unread

BODY = b"x" * (4 << 20)
"""More than the sockets of both ends hold."""
DOCUMENT = request_bytes("GET", "/openapi.json", [("Host", "e")])
REQUEST = request_bytes("GET", "/a", [("Host", "e")])
CHAT = request_bytes(
    "POST",
    "/v1/chat/completions",
    [
        ("Host", "e"),
        ("Authorization", f"Bearer {ACME.text()}"),
        ("Content-Type", "application/json"),
        ("Content-Length", str(len(chat_body()))),
    ],
    chat_body(),
)
LONG = saying(tokens("x" * (1 << 20)), done())


class House:
    """Answers every request with what does not fit into a socket."""

    head_timeout_s = idle_timeout_s = write_timeout_s = 60.0
    draining = False

    def __init__(self) -> None:
        self.groups = Groups()
        self.begun = 0
        self.waits = True
        """Whether the application awaits what it wrote."""
        self.over = asyncio.Event()

    async def app(self, head: Head, client: Client) -> None:
        self.begun += 1
        client.begin(200, [f"content-length: {len(BODY)}"], len(BODY), False)
        if not client.put(BODY, True) and self.waits:
            await client.writable()

    def came(self, connection: Connection) -> bool:
        return True

    def left(self, connection: Connection) -> None:
        self.over.set()


@asynccontextmanager
async def connected(house: House) -> AsyncIterator[tuple[socket.socket, Connection]]:
    loop = asyncio.get_running_loop()
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    with theirs:
        _, connection = await loop.connect_accepted_socket(lambda: Connection(house, loop), ours)
        yield theirs, connection
    await asyncio.wait_for(house.over.wait(), 2.0)


async def take(end: socket.socket, size: int) -> bytes:
    got = bytearray()
    while len(got) < size:
        part = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(end, size - len(got)), 2.0)
        assert part
        got += part
    return bytes(got)


async def turns() -> None:
    for _ in range(60):
        await asyncio.sleep(0)


@pytest.mark.parametrize("waits", [True, False])
async def test_the_next_request_begins_when_the_answer_before_was_taken(waits: bool) -> None:
    house = House()
    house.waits = waits
    async with connected(house) as (end, connection):
        await asyncio.get_running_loop().sock_sendall(end, REQUEST * 3)
        await until(lambda: house.begun == 1)
        await turns()
        assert (house.begun, connection.busy) == (1, False)
        for answers in range(1, 4):
            head = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(end, 200), 2.0)
            assert head.startswith(b"HTTP/1.1 200 ")
            rest = head.index(b"\r\n\r\n") + 4 + len(BODY) - len(head)
            assert house.begun == answers
            assert await take(end, rest) == BODY[:rest]
            await until(lambda: connection.blocked is None or house.begun > answers)  # noqa: B023
        await until(lambda: house.begun == 3 and not connection.busy)
        await asyncio.get_running_loop().sock_sendall(end, REQUEST)
        await until(lambda: house.begun == 4)


async def test_what_comes_while_an_answer_is_not_taken_is_left_to_the_system() -> None:
    house = House()
    house.waits = False
    async with connected(house) as (end, connection):
        await asyncio.get_running_loop().sock_sendall(end, REQUEST)
        await until(lambda: house.begun == 1)
        await turns()
        assert not connection.reading
        sent = 0
        with pytest.raises(BlockingIOError):
            while True:
                sent += end.send(REQUEST * 1000)
        await turns()
        assert house.begun == 1
        assert len(connection._buffer) <= 2 * BUFFER_BYTES_MAX


async def test_an_answer_that_is_never_taken_ends_the_connection() -> None:
    house = House()
    house.waits, house.write_timeout_s = False, 0.0
    async with connected(house) as (end, _):
        await asyncio.get_running_loop().sock_sendall(end, REQUEST * 2)
        await asyncio.wait_for(house.over.wait(), 2.0)
        assert house.begun == 1


@pytest.mark.parametrize(("request_bytes", "counted"), [(DOCUMENT * 40, "document"), (CHAT * 40, "answers")])
async def test_whoever_asks_for_what_and_reads_nothing_is_left_after_a_bound(
    tmp_path: Path, request_bytes: bytes, counted: str
) -> None:
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    async with room_in(tmp_path, LONG, write_timeout_ms=300) as room:
        async with unread(room, request_bytes) as end:
            await until(lambda: b'slow_reader"} 1.0' in room.metrics.render(), 5)
            await until(lambda: not room.server._connections)
            got = bytearray()
            with pytest.raises(ConnectionResetError):
                while part := await asyncio.wait_for(asyncio.get_running_loop().sock_recv(end, 1 << 20), 2.0):
                    got += part
                raise ConnectionResetError
        assert got.count(b"HTTP/1.1 200 ") < 40
        if counted == "answers":
            assert len(room.gate.asked) < 40
            assert room.front._admission.running == 0
    assert failures == []


async def test_who_does_not_read_makes_room_for_who_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node_agent.front.serve.CONNECTIONS_MAX", 2)
    async with room_in(tmp_path, LONG) as room:
        async with unread(room, DOCUMENT * 60), unread(room, CHAT * 60):
            await until(lambda: len(room.server._connections) == 2)
            await until(lambda: not any(one.busy for one in room.server._connections), 5)
            assert (await room.call("GET", "/healthz", key=None)).status == 200
            assert (await room.call("GET", "/healthz", key=None)).status == 200


@pytest.mark.parametrize(("taken", "stays"), [(0, False), (TAKEN_BYTES_MIN // 4, False), (512 << 10, True)])
async def test_who_goes_on_taking_an_answer_is_waited_for(taken: int, stays: bool) -> None:
    house = House()
    house.waits = False
    async with connected(house) as (end, connection):
        await asyncio.get_running_loop().sock_sendall(end, REQUEST)
        await until(lambda: connection.blocked is not None and not connection.busy)
        await turns()
        await take(end, taken)
        await turns()
        connection.expire()
        assert house.over.is_set() is False
        assert (connection.deadline_s is not None) is stays
        if stays:
            await turns()
            connection.expire()  # nothing since
        await asyncio.wait_for(house.over.wait(), 2.0)


async def test_a_whole_answer_is_taken_over_a_slow_line(tmp_path: Path) -> None:
    text = "\N{GRINNING FACE}" * (1 << 20)  # four bytes each: more than the sockets of both ends hold
    async with room_in(tmp_path, saying(tokens(text), done()), write_timeout_ms=300) as room:
        async with unread(room, CHAT) as end:
            got = bytearray()
            paused = 0
            while b'"usage"' not in got[-4096:]:
                if len(got) - paused > 128 << 10:
                    paused = len(got)
                    await asyncio.sleep(0.03)
                part = await asyncio.wait_for(asyncio.get_running_loop().sock_recv(end, 64 << 10), 2.0)
                assert part, f"cut after {len(got)} bytes"
                got += part
        assert got.count(text[0].encode()) == len(text)
