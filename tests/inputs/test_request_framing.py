"""Requests as bytes: whatever is read here, another strict parser reads in the same way. Everything else is refused."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.http_parser import HttpRequestParser
from hypothesis import given, settings
from hypothesis import strategies as st

from node_agent.front.framing import (
    HEAD_BYTES_MAX,
    HEAD_END,
    HEADERS_MAX,
    Body,
    Head,
    Malformed,
    fault_so_far,
    read_head,
)
from orchestrator.wire.catalogue import Problem

Request = tuple[str, bytes, list[tuple[bytes, bytes]], bytes]

LINES = [
    b"POST /v1/chat/completions HTTP/1.1",
    b"GET /v1/models?a=b HTTP/1.1",
    b"GET /x HTTP/1.0",
    b"OPTIONS * HTTP/1.1",
    b"GET http://evil/x HTTP/1.1",
    b"CONNECT a:1 HTTP/1.1",
]
HEADERS = [
    b"Host: a",
    b"Host: b",
    b"host:\ta ",
    b"Content-Length: 3",
    b"Content-Length: 03",
    b"content-length: 3, 3",
    b"Content-Length: +3",
    b"Transfer-Encoding: chunked",
    b"transfer-encoding: CHUNKED",
    b"Transfer-Encoding: gzip, chunked",
    b"Transfer-Encoding : chunked",
    b"Connection: close",
    b"Connection: keep-alive",
    b"X-A: b",
    b"X_A: b",
    b" folded",
    b"X-E:",
]
BODIES = [
    b"",
    b"abc",
    b"3\r\nabc\r\n0\r\n\r\n",
    b"1\r\na\r\n2\r\nbc\r\n0\r\n\r\n",
    b"3;x=y\r\nabc\r\n0\r\n\r\n",
    b"3\nabc\n0\n\n",
    b"0003\r\nabc\r\n0\r\nX: y\r\n\r\n",
    b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n",
]
ODD = [b"\0", b"\n", b"\r", b"\r\n", b" ", b"\t", b":", b"\x7f", b"\xff", b"_", b";", b"0x", b"+"]


@st.composite
def conversations(draw: st.DrawFn) -> bytes:
    """A request that is nearly right, with some bytes put in, taken out or changed."""
    lines = [draw(st.sampled_from(LINES)), b"Host: a", *draw(st.lists(st.sampled_from(HEADERS), max_size=4))]
    data = b"\r\n".join(lines) + HEAD_END + draw(st.sampled_from(BODIES))
    for _ in range(draw(st.integers(0, 2))):
        at = draw(st.integers(0, len(data)))
        data = data[:at] + draw(st.sampled_from([b"", *ODD])) + data[at + draw(st.integers(0, 2)) :]
    return data


def read_here(data: bytes) -> list[Request]:
    """The requests that stand complete in these bytes, up to the first that is refused."""
    found: list[Request] = []
    while (end := data.find(HEAD_END)) >= 0:
        try:
            head = read_head(data[: end + len(HEAD_END)])
            body = Body(head.length)
            content, at = body.take(data, end + len(HEAD_END)) if not body.ended else (b"", end + len(HEAD_END))
        except Malformed:
            break
        if not body.ended:
            break
        target = head.path + ("?" + head.query if head.query else "")
        headers = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in head.headers]
        found.append((head.method, target.encode("latin-1"), headers, content))
        if not head.keep_alive:
            break
        data = data[at:]
    return found


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def read_by_another(data: bytes, loop: asyncio.AbstractEventLoop) -> list[Request]:
    """What aiohttp makes of the same bytes, up to the first fault."""
    parser = HttpRequestParser(BaseProtocol(loop), loop, limit=2**16)
    try:
        messages, _, _ = parser.feed_data(data)
    except HttpProcessingError:
        messages = []
    found: list[Request] = []
    for message, payload in messages:
        content = b"".join(getattr(payload, "_buffer", []))
        headers = [(name.lower(), value.strip()) for name, value in message.raw_headers]
        found.append((message.method, message.path.encode(), headers, content))
    return found


@settings(max_examples=300)
@given(data=conversations())
def test_what_is_read_here_is_read_in_the_same_way_elsewhere(data: bytes, loop: asyncio.AbstractEventLoop) -> None:
    here = read_here(data)
    # A fault later in the bytes makes the other parser forget what came before it, so it is given what was read.
    used = bytes_used(data, len(here))
    # It may refuse more (it knows a list of methods); what it must not do is read something else.
    assert read_by_another(used, loop) in (here, [])


def bytes_used(data: bytes, requests: int) -> bytes:
    at = 0
    for _ in range(requests):
        end = data.find(HEAD_END, at) + len(HEAD_END)
        body = Body(read_head(data[at:end]).length)
        at = body.take(data, end)[1] if not body.ended else end
    return data[:at]


def test_the_differential_test_sees_requests(loop: asyncio.AbstractEventLoop) -> None:
    """Positive control: the usual forms are read, and a smuggled request would be seen."""
    whole = b"POST /x HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabcGET /y HTTP/1.1\r\nHost: a\r\n\r\n"
    assert [(method, target) for method, target, *_ in read_here(whole)] == [("POST", b"/x"), ("GET", b"/y")]
    assert read_by_another(whole, loop) == read_here(whole)


@settings(max_examples=200)
@given(data=st.one_of(st.binary(max_size=200), conversations()), cuts=st.lists(st.integers(0, 200), max_size=6))
def test_any_bytes_are_read_or_refused_and_never_crash(data: bytes, cuts: list[int]) -> None:
    fault_so_far(data, 0)
    with contextlib.suppress(Malformed):
        read_head(data)
    whole = _body(data, [])
    assert _body(data, cuts) == whole


def _body(data: bytes, cuts: list[int]) -> tuple[bytes, bool] | None:
    """Read chunks in pieces. Returns the body and whether it ended, or None when it was refused."""
    body, got, held = Body(None), b"", b""
    edges = sorted({0, len(data), *(cut for cut in cuts if cut < len(data))})
    try:
        for start, end in itertools.pairwise(edges):
            held += data[start:end]
            part, at = body.take(held)
            got, held = got + part, held[at:]
            assert body.ended or len(held) <= 10, "what is kept for later is a line that has just begun"
    except Malformed:
        return None
    return got, body.ended


@given(st.lists(st.binary(min_size=1, max_size=20), max_size=5), st.binary(max_size=10))
def test_chunks_become_the_body_and_what_follows_is_left(parts: list[bytes], rest: bytes) -> None:
    data = b"".join(b"%X\r\n%b\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"
    body = Body(None)
    assert body.take(data + rest) == (b"".join(parts), len(data))
    assert body.ended


def test_a_fault_is_seen_before_the_head_is_complete() -> None:
    assert fault_so_far(b"GET / HTTP/1.1\r\nHost: a", 0) is None
    assert fault_so_far(b"GET / HTTP/1.1\r", 0) is None
    for begun in (b"GET / HTTP/1.1\n", b"\x16\x03\x01", b"GET / HTTP/1.1\rX", b"GET /\0", b"\n"):
        for seen in (0, len(begun) - 1):
            assert fault_so_far(begun, seen) is not None, begun
    assert fault_so_far(b"G" * (HEAD_BYTES_MAX + 1), HEAD_BYTES_MAX) is not None


@pytest.mark.parametrize("before", [0, 1, 63, 64, 500])
@pytest.mark.parametrize("after", [0, 1, 63, 64, 500])
def test_an_underscore_in_a_name_of_any_length_is_told(before: int, after: int) -> None:
    name = "x" * before + "_" + "y" * after
    with pytest.raises(Malformed) as refused:
        read_head(f"GET / HTTP/1.1\r\nHost: a\r\n{name}: b\r\n\r\n".encode())
    assert (refused.value.problem.code, refused.value.problem.param) == ("invalid_header", name[:64])


def test_too_many_headers_are_refused_before_one_is_looked_at() -> None:
    lines = "Host: a\r\n" * (HEADERS_MAX + 1)  # two would be refused as such
    with pytest.raises(Malformed) as refused:
        read_head(f"GET / HTTP/1.1\r\n{lines}\r\n".encode())
    assert refused.value.problem.code == "head_too_large"


def test_looking_at_a_head_that_trickles_costs_each_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at = 0

    class Counting:
        def search(self, data: bytes, start: int) -> Any:
            nonlocal looked_at
            looked_at += len(data) - start
            return None

    monkeypatch.setattr("node_agent.front.framing._NEVER_IN_A_HEAD", Counting())
    begun = bytearray()
    for _ in range(10_000):
        seen = len(begun)
        begun += b"a"
        fault_so_far(begun, seen)
    assert len(begun) <= looked_at <= 2 * len(begun)


@given(st.lists(st.tuples(st.sampled_from(["A", "a", "B", "x-b", "X-B", "accept"]), st.sampled_from(["", "1", "2 "]))))
def test_the_name_of_a_header_stands_once_with_its_value_or_is_repeated(headers: list[tuple[str, str]]) -> None:
    lines = ["GET / HTTP/1.1", "Host: a", *(f"{name}: {value}" for name, value in headers)]
    head = read_head("\r\n".join(lines).encode() + HEAD_END)
    told = [("host", "a"), *((name.lower(), value.strip()) for name, value in headers)]
    names = [name for name, _ in told]
    assert head.headers == told
    assert head.once == {name: value for name, value in told if names.count(name) == 1}
    assert head.repeated == {name for name in names if names.count(name) > 1}


FRAMING = [
    *("Host: b", "Host: a b", "host:\ta ", "Content-Length: 3", "content-length: 3, 3", "Content-Length: " + "9" * 19),
    *("Content-Length: \xb2", "Content-Length:", "Transfer-Encoding: chunked", "Transfer-Encoding: gzip"),
    *("Connection: close", "Connection: Keep-Alive", "connection: keep-alive , x", "Connection: keep-alive, Close"),
    *("Connection: upgrade", "connection:", "Expect: 100-continue", "expect: 200", "X-A:\t b \t", "x-a: \xff"),
]


@settings(max_examples=300)
@given(st.sampled_from("01"), st.lists(st.sampled_from(FRAMING), max_size=4))
def test_an_expectation_changes_nothing_else(minor: str, headers: list[str]) -> None:
    """A head with one is read header by header, in their order; most others are read by the names that they hold."""
    plain = f"POST /x HTTP/1.{minor}\r\n" + "".join(f"{line}\r\n" for line in ["Host: a", *headers])
    head, fault = read_or_refused(plain + "\r\n")
    told, told_fault = read_or_refused(plain + "expect: 100-continue\r\n\r\n")
    assert fault == told_fault
    if head is None or told is None:
        assert head is told
        return
    assert (head.length, head.keep_alive, head.chunks_allowed) == (told.length, told.keep_alive, told.chunks_allowed)
    assert told.headers == [*head.headers, ("expect", "100-continue")]
    assert head.once.keys() | head.repeated == {name for name, _ in head.headers}
    assert told.expects == (minor == "1")


def read_or_refused(text: str) -> tuple[Head | None, Problem | None]:
    try:
        return read_head(text.encode("latin-1")), None
    except Malformed as refused:
        return None, refused.problem
