"""What comes in pieces is read as what comes whole, and the head of an answer is what its headers say."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any, cast

import pytest

from node_agent.front import serving
from node_agent.front.connection import Connection
from node_agent.front.exchange import Exchange
from node_agent.front.framing import Head, Pair
from node_agent.front.groups import Groups
from node_agent.front.http import App, Client
from orchestrator.policy.ids import make_request_id
from orchestrator.wire.catalogue import Problem

FIRST = b"POST /a HTTP/1.1\r\nHost: e\r\nContent-Length: 5\r\n\r\nfirst"
CHUNKED = b"POST /b HTTP/1.1\r\nHost: e\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nsec\r\n3\r\nond\r\n0\r\n\r\n"
BARE = b"GET /c HTTP/1.1\r\nHost: e\r\n\r\n"
LAST = b"POST /d HTTP/1.1\r\nHost: e\r\nConnection: close\r\nContent-Length: 4\r\n\r\nlast"
IN_A_ROW = FIRST + BARE + CHUNKED + FIRST + LAST
READ = [("/a", b"first"), ("/c", b""), ("/b", b"second"), ("/a", b"first"), ("/d", b"last")]


class Wire:
    """The client's side of a connection."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.got = b""
        self.closing = False
        self.paused = False

    def set_write_buffer_limits(self, high: int) -> None:
        """Nothing here is too much."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return self.closing

    def write(self, data: bytes) -> None:
        self.got += data

    def write_eof(self) -> None:
        self.closing = True

    def close(self) -> None:
        self.closing = True
        asyncio.get_running_loop().call_soon(self.connection.connection_lost, None)

    abort = close

    def pause_reading(self) -> None:
        assert not self.paused
        self.paused = True

    def resume_reading(self) -> None:
        assert self.paused
        self.paused = False


class House:
    """Answers each request with its own body, and with `headers`."""

    head_timeout_s = idle_timeout_s = write_timeout_s = 5.0
    draining = False

    def __init__(self, *headers: Pair) -> None:
        self.app: App = self._answer
        self.groups = Groups()
        self.headers = headers
        self.read: list[tuple[str, bytes]] = []
        self.failed: list[str] = []
        self.connection = Connection(self, asyncio.get_running_loop())
        self.wire = Wire(self.connection)
        self.connection.connection_made(cast(Any, self.wire))

    def came(self, connection: Connection) -> bool:
        return True

    def left(self, connection: Connection) -> None:
        """Nothing is counted."""

    async def leave(self) -> None:
        """The client goes."""
        if not self.wire.closing:
            self.wire.close()
        await turns()

    async def _answer(self, head: Head, client: Client) -> None:
        body = client.here()
        if body is None:
            body, more = b"", True
            while more:
                found = await client.part()
                assert found is not None
                part, more = found
                body += part
        self.read.append((head.path, body))
        try:
            lines = [": ".join(pair) for pair in self.headers]
            client.begin(200, [*lines, f"content-length: {len(body)}"], len(body), False)
        except ValueError as failure:
            self.failed.append(str(failure))
            return
        client.put(body, True)


async def turns() -> None:
    for _ in range(40):
        await asyncio.sleep(0)


@pytest.mark.parametrize("wait", [True, False], ids=["each piece is looked at", "all come while the first is served"])
async def test_requests_are_the_same_wherever_they_are_cut(wait: bool) -> None:
    for first, second in itertools.combinations(range(0, len(IN_A_ROW) + 1, 3), 2):
        house = House()
        for piece in (IN_A_ROW[:first], IN_A_ROW[first:second], IN_A_ROW[second:]):
            if piece:
                house.connection.data_received(piece)
            if wait:
                await turns()
        await turns()
        assert house.read == READ, (first, second)
        assert house.wire.closing
        assert not house.wire.paused


async def test_the_head_of_an_answer_has_its_headers_in_their_order() -> None:
    house = House(("a", "b"), ("a", "c:\xe9"))
    house.connection.data_received(FIRST)
    await turns()
    status, date, *lines = house.wire.got.split(b"\r\n")
    assert (status, date[:6]) == (b"HTTP/1.1 200 OK", b"date: ")
    assert lines == [b"a: b", b"a: c:\xe9", b"content-length: 5", b"", b"first"]
    assert not house.wire.closing
    await house.leave()


async def test_each_answer_has_the_date_of_its_own_second(monkeypatch: pytest.MonkeyPatch) -> None:
    house = House()

    async def date_at(now_s: float) -> bytes:
        monkeypatch.setattr(serving, "time", lambda: now_s)
        house.wire.got = b""
        house.connection.data_received(FIRST)
        await turns()
        return house.wire.got.split(b"\r\n")[1]

    assert await date_at(784_111_777.9) == b"date: Sun, 06 Nov 1994 08:49:37 GMT"
    assert await date_at(784_111_778.0) == b"date: Sun, 06 Nov 1994 08:49:38 GMT"
    assert await date_at(784_111_777.0) == b"date: Sun, 06 Nov 1994 08:49:37 GMT"
    await house.leave()


@pytest.mark.parametrize(("theirs", "ends"), [("keep-alive", False), ("close", True)])
@pytest.mark.parametrize("ours_ends", [False, True])
async def test_what_another_process_says_of_its_connection_is_said_of_ours(
    theirs: str, ends: bool, ours_ends: bool
) -> None:
    async def pass_on(head: Head, client: Client) -> None:
        exchange = Exchange(head, client, make_request_id(1, bytes(10)), 1_000)
        exchange.close = ours_ends
        exchange.pass_on(200, [("a", "b"), ("connection", theirs), ("content-length", "5"), ("c", "d")])
        assert exchange.status == 200
        await exchange.end(b"whole")

    house = House()
    house.app = pass_on
    house.connection.data_received(FIRST)
    await turns()
    _, _, *lines = house.wire.got.split(b"\r\n")
    last = [b"connection: close"] if ends or ours_ends else []
    assert lines == [b"a: b", b"content-length: 5", b"c: d", *last, b"", b"whole"]
    assert house.wire.closing == (ends or ours_ends)
    await house.leave()


@pytest.mark.parametrize("value", ["x\r\ny: z", "\n", "x\r", "\ny", "x\n y"])
async def test_no_header_of_an_answer_brings_another(value: str) -> None:
    house = House(("a", "b"), ("x", value))
    house.connection.data_received(FIRST)
    await turns()
    assert house.failed == ["a header of the answer holds a line end"]
    assert house.wire.got == b""
    assert house.wire.closing


async def test_an_answer_whose_head_cannot_be_written_is_followed_by_a_whole_one() -> None:
    async def fails_once(head: Head, client: Client) -> None:
        exchange = Exchange(head, client, make_request_id(1, bytes(10)), 1_000)
        with pytest.raises(UnicodeEncodeError):
            exchange.start(200, [("a", "\u65e5")])
        await exchange.break_off(Problem("internal"))

    house = House()
    house.app = fails_once
    house.connection.data_received(FIRST)
    await turns()
    head, body = bytes(house.wire.got).split(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 500 ")
    assert f"content-length: {len(body)}".encode() in head
    assert b"transfer-encoding" not in head
    assert json.loads(body)["error"]["code"] == "internal_error"
    await house.leave()


OLD = FIRST.replace(b"HTTP/1.1", b"HTTP/1.0", 1)


@pytest.mark.parametrize(
    ("request_bytes", "length", "said", "closes"),
    [
        (FIRST, None, b"transfer-encoding: chunked", False),
        (OLD, None, b"connection: close", True),
        (OLD, 5, b"connection: close", True),
        (OLD.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1), 5, b"connection: keep-alive", False),
        (OLD.replace(b"\r\n", b"\r\nConnection: keep-alive\r\n", 1), None, b"connection: close", True),
        (b"POST / HTTP/1.1\r\nHost: e\r\nContent-Length: 9\r\n\r\nhalf", 5, b"connection: close", True),
    ],
)
async def test_how_the_end_of_an_answer_is_told(
    request_bytes: bytes, length: int | None, said: bytes, closes: bool
) -> None:
    async def answers(_head: Head, client: Client) -> None:
        lines = [] if length is None else [f"content-length: {length}"]
        client.begin(200, lines, length, False)
        client.put(b"whole", True)

    house = House()
    house.app = answers
    house.connection.data_received(request_bytes)
    await turns()
    head, _, body = bytes(house.wire.got).partition(b"\r\n\r\n")
    assert said in head.split(b"\r\n")
    assert body == (b"5\r\nwhole\r\n0\r\n\r\n" if said.startswith(b"transfer") else b"whole")
    assert house.wire.closing == closes
    await house.leave()


async def test_an_answer_shorter_than_it_says_is_a_failure_of_ours() -> None:
    async def cuts(_head: Head, client: Client) -> None:
        client.begin(200, ["content-length: 9"], 9, False)
        with pytest.raises(ValueError, match="not as long"):
            client.put(b"whole", True)

    house = House()
    house.app = cuts
    house.connection.data_received(FIRST)
    await turns()
    assert house.wire.closing
