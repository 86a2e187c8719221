"""HTTP framing on raw sockets: what two parsers could read in two ways is refused, closed, and never forwarded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.front.room import (
    ACME,
    CHAT,
    Reply,
    Room,
    chat_body,
    done,
    parse_reply,
    request_bytes,
    room_in,
    saying,
    until,
)

BODY = chat_body()
KEY = b"Authorization: Bearer " + ACME.text().encode() + b"\r\n"
JSON = b"Content-Type: application/json\r\n"
HOST = b"Host: edge.example\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n"
LINE = b"POST /v1/chat/completions HTTP/1.1\r\n"
USUAL = HOST + KEY + JSON
GOOD = LINE + USUAL + LENGTH + b"\r\n" + BODY
CHUNKS = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /v1/models HTTP/1.1\r\n" + HOST + KEY + b"\r\n"


def posted(*lines: bytes, body: bytes = BODY) -> bytes:
    return LINE + b"".join(lines) + b"\r\n" + body


def with_line(line: bytes) -> bytes:
    return posted(USUAL, line + b"\r\n", LENGTH)


def asking(target: bytes, method: bytes = b"POST", version: bytes = b"HTTP/1.1") -> bytes:
    return b"%b %b %b\r\n" % (method, target, version) + USUAL + LENGTH + b"\r\n" + BODY


def chunked(chunks: bytes) -> bytes:
    return posted(USUAL, CHUNKED, body=chunks)


LINES = {
    "an absolute URI": asking(b"http://edge.example/v1/chat/completions"),
    "an absolute URI of another host": asking(b"http://evil.example/v1/chat/completions"),
    "an absolute URI without http": asking(b"https://evil.example/v1/chat/completions"),
    "an absolute URI with a user": asking(b"http://u:p@edge.example/v1/chat/completions"),
    "an authority": asking(b"edge.example:80"),
    "CONNECT": b"CONNECT evil.example:443 HTTP/1.1\r\nHost: evil.example:443\r\n\r\n",
    "a star": asking(b"*", b"OPTIONS"),
    "a fragment": asking(b"/v1/chat/completions#x"),
    "a backslash": asking(b"/v1\\chat/completions"),
    "bytes beyond ASCII in the path": asking("/v1/chät".encode()),
    "NUL in the path": asking(b"/v1/chat/completions\0"),
    "a quote in the path": asking(b'/v1/chat/"completions'),
    "a space in the path": asking(b"/v1/chat /completions"),
    "two spaces": asking(b" /v1/chat/completions"),
    "tabs": LINE.replace(b" ", b"\t") + USUAL + LENGTH + b"\r\n" + BODY,
    "no version": b"POST /v1/chat/completions\r\n" + USUAL + b"\r\n",
    "HTTP/0.9": asking(b"/v1/chat/completions", version=b"HTTP/0.9"),
    "HTTP/1.2": asking(b"/v1/chat/completions", version=b"HTTP/1.2"),
    "HTTP/2.0": asking(b"/v1/chat/completions", version=b"HTTP/2.0"),
    "http/1.1": asking(b"/v1/chat/completions", version=b"http/1.1"),
    "HTTP/1.1 with a space": asking(b"/v1/chat/completions", version=b"HTTP/1.1 "),
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "a small method": asking(b"/v1/chat/completions", b"post"),
    "a long method": asking(b"/v1/chat/completions", b"P" * 33),
    "an empty line first": b"\r\n" + GOOD,
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "bare LF throughout": GOOD.replace(b"\r\n", b"\n"),
    "bare LF after the first line": GOOD.replace(b"1.1\r\n", b"1.1\n", 1),
    "bare LF at the end": LINE + USUAL + LENGTH + b"\n" + BODY,
    "bare LF between two headers": posted(b"X-A: b\n", USUAL, LENGTH),
    "bare CR in a header": posted(b"X-A: b\rX-B: c\r\n", USUAL, LENGTH),
    "NUL in a header": posted(b"X-A: b\0c\r\n", USUAL, LENGTH),
    "an escape character in a header": posted(b"X-A: \x1b[31m\r\n", USUAL, LENGTH),
}
HEADERS = {
    "a folded line": with_line(b"X-A: b\r\n c"),
    "a folded first line": posted(b" X-A: b\r\n", USUAL, LENGTH),
    "a folded coding": posted(USUAL, b"Transfer-Encoding:\r\n chunked\r\n", body=CHUNKS),
    "a header without a colon": with_line(b"nocolon"),
    "a header without a name": with_line(b": b"),
    "a space before the colon": with_line(b"X-A : b"),
    "a coding with a space before the colon": posted(USUAL, b"Transfer-Encoding : chunked\r\n", body=CHUNKS),
    "an underscore": with_line(b"X_A: b"),
    "an underscore in a length": posted(USUAL, LENGTH, b"Content_Length: 0\r\n"),
    "a name beyond ASCII": with_line("X-É: b".encode()),
    "NUL in a name": with_line(b"X\0A: b"),
    "no host": posted(KEY, JSON, LENGTH),
    "two hosts": posted(USUAL, HOST, LENGTH),
    "two other hosts": posted(USUAL, b"Host: evil.example\r\n", LENGTH),
    "an empty host": posted(b"Host:\r\n", KEY, JSON, LENGTH),
    "a host with a path": posted(b"Host: edge.example/v1\r\n", KEY, JSON, LENGTH),
    "a host with a user": posted(b"Host: u@edge.example\r\n", KEY, JSON, LENGTH),
    "two hosts in one": posted(b"Host: edge.example, evil.example\r\n", KEY, JSON, LENGTH),
    "a host with a bad port": posted(b"Host: edge.example:80x\r\n", KEY, JSON, LENGTH),
    "a length and a coding": posted(USUAL, LENGTH, CHUNKED, body=CHUNKS + SMUGGLED),
    "a coding and a length": posted(USUAL, CHUNKED, LENGTH, body=CHUNKS + SMUGGLED),
    "two equal lengths": posted(USUAL, LENGTH, LENGTH),
    "two lengths": posted(USUAL, LENGTH, b"Content-Length: 0\r\n"),
    "a length as a list": posted(USUAL, b"Content-Length: %d, %d\r\n" % (len(BODY), len(BODY))),
    **{
        f"the length {length!r}": posted(USUAL, b"Content-Length: " + length + b"\r\n")
        for length in (b"", b"+2", b"-1", b"0x2", b"2.0", b"1e3", b"9" * 19, "²".encode())
    },
    **{
        f"the coding {coding!r}": posted(USUAL, b"Transfer-Encoding: " + coding + b"\r\n", body=CHUNKS)
        for coding in (
            b"",
            b"xchunked",
            b"identity",
            b"gzip",
            b"gzip, chunked",
            b"chunked, identity",
            b"chunked, chunked",
            b'"chunked"',
            b"chunked;q=1",
            b"\x0bchunked",
        )
    },
    "two codings": posted(USUAL, CHUNKED, CHUNKED, body=CHUNKS),
    "a coding in HTTP/1.0": posted(USUAL, CHUNKED, body=CHUNKS).replace(b"HTTP/1.1", b"HTTP/1.0"),
    "another expectation": with_line(b"Expect: 200-ok"),
}
BODIES = {
    f"the chunk {line!r}": chunked(line + b"\r\n" + BODY + b"\r\n0\r\n\r\n")
    for line in (
        b"",
        b"0x%x" % len(BODY),
        b"+%x" % len(BODY),
        b"-1",
        b" %x" % len(BODY),
        b"%x " % len(BODY),
        b"%x;a=b" % len(BODY),
        b"%x;" % len(BODY) + b"a" * 20_000,
        b'%x;a="\n"' % len(BODY),
        b"1_0",
        b"zz",
        b"%x\0" % len(BODY),
        b"f" * 17,
        b"0" * 20 + b"%x" % len(BODY),
    )
} | {
    "chunks that end in LF": chunked(CHUNKS.replace(b"\r\n", b"\n")),
    "a chunk that is longer than it says": chunked(CHUNKS.replace(b"}\r\n", b"}}\r\n")),
    "trailers": chunked(CHUNKS[:-2] + b"X-A: b\r\n\r\n"),
    "trailers that frame": chunked(CHUNKS[:-2] + b"Content-Length: 9\r\n\r\n"),
}
SIZES = {
    "ten thousand headers": posted(*(b"X-%d: y\r\n" % number for number in range(10_000)), USUAL, LENGTH),
    "101 headers": posted(*(b"X-%d: y\r\n" % number for number in range(97)), USUAL, LENGTH),
    "a path of 64 KiB": asking(b"/" + b"a" * 65_536),
    "a path of 5 KiB": asking(b"/" + b"a" * 5_000),
    "a query of 5 KiB": asking(b"/v1/models?" + b"a" * 5_000),
    "a header of 64 KiB": with_line(b"X-A: " + b"a" * 65_536),
    "a line without end": b"POST /" + b"a" * 70_000,
}


async def refused(room: Room, data: bytes) -> Reply:
    """Send this and something that must not be read as a request; return the one answer."""
    reply = await room.raw(data + SMUGGLED)
    assert room.gate.asked == []
    return reply


@pytest.mark.parametrize(
    ("cases", "statuses"),
    [(LINES, {400}), (HEADERS, {400}), (BODIES, {400}), (SIZES, {431})],
    ids=["lines", "headers", "bodies", "sizes"],
)
async def test_what_could_be_read_in_two_ways_is_refused_and_the_connection_ends(
    tmp_path: Path, cases: dict[str, bytes], statuses: set[int]
) -> None:
    faults: list[str] = []
    async with room_in(tmp_path, saying(done())) as room:
        for what, data in cases.items():
            reply = await refused(room, data)
            if reply.status not in statuses or reply.header("connection") != "close" or reply.rest:
                faults.append(f"{what}: {reply.status} {reply.headers} {reply.rest!r}")
            elif reply.error()["request_id"] != reply.header("x-request-id"):
                faults.append(f"{what}: the error names another request")
        # The positive controls: the same words in the one right way.
        spaced = posted(USUAL, b"Content-Length: %d \t\r\n" % len(BODY))
        for data in (GOOD, chunked(CHUNKS), spaced):
            last = data.replace(HOST, HOST + b"Connection: close\r\n")
            assert (await room.raw(last)).status == 200
        assert len(room.gate.asked) == 3
    assert not faults, "\n".join(faults)


async def test_a_refusal_repeats_nothing_of_what_was_sent(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        for data in (asking(b"http://canary.example/"), posted(b"X-canary: \0\r\n"), b"canary\n\n"):
            reply = await refused(room, data)
            assert b"canary" not in reply.body


async def test_requests_in_a_row_are_answered_in_a_row(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        health = request_bytes("GET", "/healthz", [("Host", "e")])
        last = request_bytes("GET", "/v1/nothing", [("Host", "e"), ("Connection", "close")])
        data = health + GOOD + chunked(CHUNKS) + last
        # Whole, and cut into small pieces, the conversation is the same.
        for size in (len(data), 7):
            room.gate.asked.clear()
            reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
            for at in range(0, len(data), size):
                writer.write(data[at : at + size])
                await asyncio.sleep(0)
            got, statuses = await reader.read(), []
            while got:
                reply = parse_reply(got)
                statuses.append(reply.status)
                got = reply.rest
            assert statuses == [200, 200, 200, 404]
            writer.close()
            await writer.wait_closed()
            assert [asked.body for asked in room.gate.asked] == [BODY, BODY]


async def test_head_is_get_without_the_body_and_keeps_the_connection(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        for path in ("/healthz", "/health", "/readyz", "/metrics", "/openapi.json", "/v1/models", "/v1/models/none"):
            lines = [("Host", "e"), ("Authorization", f"Bearer {ACME.text()}")]
            whole = await room.raw(request_bytes("GET", path, [*lines, ("Connection", "close")]))
            alone = request_bytes("HEAD", path, lines)
            reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
            writer.write(alone)
            head = parse_reply(await reader.readuntil(b"\r\n\r\n"))
            # Where bytes of a body followed, they would be taken for the next answer.
            writer.write(request_bytes("HEAD", "/healthz", [("Host", "e"), ("Connection", "close")]))
            after = parse_reply(await reader.read())
            writer.close()
            await writer.wait_closed()
            assert (head.status, after.status, after.body) == (whole.status, 200, b""), path
            changing = {"x-request-id", "date", "connection"}
            if path == "/metrics" or path.endswith("none"):
                changing.add("content-length")  # counts and ids of their own
            assert [pair for pair in head.headers if pair[0] not in changing] == [
                pair for pair in whole.headers if pair[0] not in changing
            ], path
            assert int(head.header("content-length") or "0") > 0
            assert head.header("connection") is None


@pytest.mark.parametrize(
    "said", [b"Connection: keep-alive, close\r\n", b"Connection: close\r\nConnection: keep-alive\r\n"]
)
async def test_after_the_last_answer_nothing_is_read_as_a_request(tmp_path: Path, said: bytes) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        last = GOOD.replace(HOST, HOST + said)
        reply = await room.raw(last + GOOD)
        assert (reply.status, reply.rest, len(room.gate.asked)) == (200, b"", 1)


async def test_a_client_that_asks_first_is_told_to_go_on_once(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        writer.write(LINE + USUAL + LENGTH + b"Expect: 100-continue\r\nConnection: close\r\n\r\n")
        assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
        writer.write(BODY)
        assert parse_reply(await reader.read()).status == 200
        writer.close()
        await writer.wait_closed()


async def test_slow_headers_are_told_so_and_dropped(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done()), head_timeout_ms=200) as room:
        reply = await room.raw(LINE + HOST)
        assert (reply.status, reply.error()["code"], reply.header("connection")) == (408, "head_timeout", "close")


async def test_after_an_answer_a_connection_is_kept_longer_than_a_head_may_take(tmp_path: Path) -> None:
    health = request_bytes("GET", "/healthz", [("Host", "e")])
    loop = asyncio.get_running_loop()
    async with room_in(tmp_path, saying(done()), head_timeout_ms=200, idle_timeout_ms=900) as room:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        writer.write(health)
        assert parse_reply(await reader.read(4096)).status == 200
        await asyncio.sleep(0.6)
        writer.write(health)
        assert parse_reply(await reader.read(4096)).status == 200
        answered_s = loop.time()
        async with asyncio.timeout(3):
            assert await reader.read() == b"", "it is closed without a word"
        assert loop.time() - answered_s > 0.8
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("together", [True, False])
async def test_the_head_of_a_later_request_has_the_time_of_a_head(tmp_path: Path, together: bool) -> None:
    health = request_bytes("GET", "/healthz", [("Host", "e")])
    async with room_in(tmp_path, saying(done()), head_timeout_ms=200, idle_timeout_ms=60_000) as room:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        writer.write(health + LINE if together else health)
        got = await reader.read(4096)
        if not together:
            writer.write(LINE)
        async with asyncio.timeout(3):
            got += await reader.read()
        first = parse_reply(got)
        late = parse_reply(first.rest)
        assert (first.status, late.status, late.error()["code"]) == (200, 408, "head_timeout")
        writer.close()
        await writer.wait_closed()


async def test_a_body_of_ten_gigabytes_is_refused_by_its_head(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        reply = await room.raw(posted(USUAL, b"Content-Length: 10000000000\r\n", body=b"x" * 500_000))
        assert (reply.status, reply.error()["code"], reply.rest) == (413, "body_too_large", b"")
        assert room.gate.asked == []


@pytest.mark.parametrize("before", [b"", b"5\r\n12345\r\n"])
async def test_a_chunk_beyond_the_bound_is_refused_when_it_is_announced(tmp_path: Path, before: bytes) -> None:
    async with room_in(tmp_path, saying(done()), body_bytes_max=1_000, body_timeout_ms=60_000) as room:
        for pieces in ((b"3e9\r\n",), (b"", b"3e9\r\n"), (b"FFFFFFFF\r\n",)):
            head = posted(USUAL, CHUNKED, body=before)
            reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
            for at, piece in enumerate(pieces):
                writer.write(piece if at else head + piece)
                await asyncio.sleep(0.05)  # the head alone is waited for
            async with asyncio.timeout(5):
                reply = parse_reply(await reader.read())
            writer.close()
            assert (reply.status, reply.error()["code"], reply.header("connection")) == (413, "body_too_large", "close")
        assert room.gate.asked == []


async def test_an_old_client_gets_an_answer_that_it_can_read(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        whole = await room.raw(GOOD.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert (whole.status, whole.header("connection")) == (200, "close")
        body = chat_body(stream=True)
        head = [("Host", "e"), ("Authorization", f"Bearer {ACME.text()}"), ("Content-Type", "application/json")]
        streaming = request_bytes("POST", CHAT, [*head, ("Content-Length", str(len(body)))], body)
        streamed = await room.raw(streaming.replace(b"HTTP/1.1", b"HTTP/1.0"))
        assert streamed.header("transfer-encoding") is None
        assert streamed.events()[-1] == "[DONE]"


async def test_who_says_nothing_makes_room_for_who_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node_agent.front.serve.CONNECTIONS_MAX", 2)
    async with room_in(tmp_path, saying(done())) as room:
        silent = [await asyncio.open_connection("127.0.0.1", room.server.port) for _ in range(2)]
        silent[1][1].write(LINE)
        assert (await room.call(body=BODY)).status == 200
        async with asyncio.timeout(5):
            assert await silent[0][0].read() == b""
        for _, writer in silent:
            writer.close()
        await asyncio.gather(*(writer.wait_closed() for _, writer in silent), return_exceptions=True)


async def test_methods_for_proxies_end_the_connection(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        for method in (b"TRACE", b"CONNECT"):
            reply = await refused(room, asking(b"/v1/chat/completions", method))
            assert (reply.status, reply.header("connection"), reply.rest) == (405, "close", b"")


async def test_what_a_client_sends_ahead_is_held_within_a_bound(tmp_path: Path) -> None:
    holding = asyncio.Event()

    async def wait(asked: object) -> None:
        await holding.wait()

    async with room_in(tmp_path, saying(done())) as room:
        room.gate.before = wait
        _, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        writer.write(GOOD)
        await until(lambda: len(room.gate.asked) == 1)
        ahead = asyncio.create_task(_pour(writer))
        await asyncio.sleep(0.2)
        (connection,) = room.server._connections
        assert len(connection._buffer) < 512 * 1024
        ahead.cancel()
        holding.set()
        writer.close()
        await asyncio.gather(ahead, writer.wait_closed(), return_exceptions=True)


async def _pour(writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(GOOD * 100)
        await writer.drain()
