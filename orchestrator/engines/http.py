"""HTTP/1.1 towards one server: connections that are used again, every wait and every byte bounded.

`httptools` (llhttp) reads the replies. A connection is used again only when a reply ended where its framing says, the
server did not ask to close, and it has not rested for longer than servers keep one. Where a connection that was used
before turns out to be closed before a byte of the reply came, the request is sent once more on a new one: a generation
changes nothing at the server, and the one that was cut off is stopped by the closing itself.
"""

from __future__ import annotations

import asyncio
import ssl
from enum import Enum
from typing import cast

import httptools

HEADERS_MAX = 128
HEADER_BYTES_MAX = 64 * 1024
READ = frozenset((b"content-type", b"content-encoding", b"content-length", b"transfer-encoding"))
"""The headers that anybody here asks for; the others are counted and dropped."""
INTERIM_MAX = 8
"""1xx replies before the real one."""
HELD_BYTES_MAX = 256 * 1024
"""Bytes of a reply, its framing among them, that wait for whoever reads; with more, the server is held back."""
REST_S = 2.0
"""How long a connection may rest before its next use. uvicorn, under vLLM and SGLang, closes after 5 s."""
LEAVE_S = 0.25
"""How long the end of the framing may take after the end of the answer."""
CLOSES_S = 0.5
"""A server that closes a connection so soon after a reply, unasked, never keeps one (llama.cpp)."""


class Fault(Enum):
    """Why there is no reply, or not all of it."""

    UNREACHABLE = "unreachable"
    """No connection could be made; nothing was sent."""
    LATE = "late"
    CLOSED = "closed"
    """The server closed the connection too early."""
    MALFORMED = "malformed"
    """What came is not HTTP, or more than is taken."""


class HttpError(Exception):
    """There is no reply, or not all of it. Holds nothing of what was sent or came."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.value)
        self.fault = fault


class Reply(asyncio.Protocol):
    """One connection, and on it the reply to one request at a time."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._loop = client.loop
        self._transport: asyncio.Transport | None = None
        self.body: list[bytes] = []  # bounded: HELD_BYTES_MAX
        """What has come of the body and was not taken."""
        # The parser calls this for each chunk, of which an engine makes one for each token.
        self.on_body = self.body.append
        self._parser = httptools.HttpResponseParser(self)
        self._waiter: asyncio.Future[None] | None = None
        self._deadline_at = 0.0
        self._timer: asyncio.Handle | None = None
        self._wakes_at = 0.0
        """When the timer ends. Kept here: what uvloop gives for a time that has come does not know it."""
        self._fault: Fault | None = None
        self._reset()
        self.heard = False
        """Whether a byte came since the last request."""
        self.resting = False
        """Whether nobody asked anything since the last reply."""
        self.rested_s = 0.0
        """When its last reply ended."""

    def _reset(self) -> None:
        self.status = 0
        self.headers: dict[bytes, tuple[bytes, ...]] = {}
        """Those of `READ`, every value, by name in lower case."""
        self._header_count = self._header_bytes = self._interim = 0
        self.body.clear()
        self._held_bytes = 0
        self.headed = self.ended = self._leaving = self._paused = self._framed = self._keeps = self.heard = False

    # What callers do

    def begin(self, request: bytes) -> None:
        """Send a request; what comes from here on is its reply. Raises HttpError."""
        self._reset()
        if self._transport is None:
            raise HttpError(Fault.CLOSED)
        self._transport.write(request)

    async def read(self, deadline_at: float) -> bytes:
        """Return what has come of the body, and empty bytes at its end. Raises HttpError."""
        # A read that finds bytes ready never waits, so the time is asked for here as well.
        if self._loop.time() >= deadline_at:
            raise HttpError(Fault.LATE)
        while not self.body and not self.ended:
            await self.wait(deadline_at)
        return self.take()

    def take(self) -> bytes:
        """Return what has come of the body, which may be nothing."""
        data = b"".join(self.body)
        self.body.clear()
        self._held_bytes = 0
        if self._paused and self._transport is not None:
            self._paused = False
            self._transport.resume_reading()
        return data

    def wait(self, deadline_at: float) -> asyncio.Future[None]:
        """Return what is done once more of the reply came, and raises HttpError at the deadline. Raises it itself too.

        One waits at a time.
        """
        if self._fault is not None:
            raise HttpError(self._fault)
        self._waiter = self._loop.create_future()
        if self._timer is not None and self._wakes_at <= deadline_at:
            self._deadline_at = deadline_at
        else:
            self._arm(deadline_at)
        return self._waiter

    def leave(self) -> None:
        """Whoever read has the whole answer: rest as soon as the framing ends, or close."""
        if self._paused:
            self.cut()
        elif self.ended:
            self._rest()
        elif self._transport is not None:
            self._leaving = True
            self.body.clear()
            self._arm(self._loop.time() + LEAVE_S)

    def cut(self) -> None:
        """Close the connection now, without a farewell."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._transport is not None:
            self._transport.abort()

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports are none of asyncio's classes, and do all that these do.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Read some of a reply."""
        self.heard = True
        leaving = self._leaving  # no more, once the reply ends in what is fed
        self._held_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(Fault.MALFORMED)
            self.cut()
            return
        if leaving:
            self.body.clear()
        elif self._held_bytes > (HELD_BYTES_MAX if self.headed else HEADER_BYTES_MAX) and not self.body:
            self._fail(Fault.MALFORMED)  # a head, a line of framing, or a trailer without end
            self.cut()
        else:
            if self._held_bytes > HELD_BYTES_MAX and not self._paused and self._transport is not None:
                self._paused = True
                self._transport.pause_reading()
            if self._waiter is not None and not self._waiter.done():
                self._waiter.set_result(None)

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone. A body without a length ends with its connection."""
        self._transport = None
        if self.headed and not self.ended and not self._framed and exc is None and self._fault is None:
            self.ended = True
            self._wake()
        else:
            self._fail(Fault.CLOSED)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._client.lost(self)

    # What the parser tells

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take one header. Raises HttpParserError beyond the bounds."""
        self._header_count += 1
        self._header_bytes += len(name) + len(value)
        if self._header_count > HEADERS_MAX or self._header_bytes > HEADER_BYTES_MAX:
            raise httptools.HttpParserError("headers")
        name = name.lower()
        if name in READ:
            self.headers[name] = (*self.headers[name], value) if name in self.headers else (value,)

    def on_headers_complete(self) -> None:
        """Take the head of a reply. Raises HttpParserError for one that nobody asked for."""
        status = self._parser.get_status_code()
        if self.ended or self.resting:
            raise httptools.HttpParserError("unasked")
        if 100 <= status < 200:
            self._interim += 1
            self.headers.clear()
            self._header_count = 0
            if status == 101 or self._interim > INTERIM_MAX:
                raise httptools.HttpParserError("interim")
            return
        self.status, self.headed = status, True
        self._framed = b"content-length" in self.headers or b"transfer-encoding" in self.headers

    def on_message_complete(self) -> None:
        """The reply ends here."""
        if not self.headed:
            return  # an interim reply
        self.ended = True
        # Only here does the parser know.
        self._keeps = self._framed and self._parser.should_keep_alive()
        if self._leaving:
            self._rest()

    # Inside

    def _rest(self) -> None:
        self._leaving = False
        if self.body:
            self.body.clear()
        self.rested_s = self._loop.time()
        if not self._keeps or self._transport is None or not self._client.rest(self):
            self.cut()

    def _arm(self, deadline_at: float) -> None:
        """Be woken at the deadline. One timer serves many waits: it is moved only when it would come too late."""
        self._deadline_at = deadline_at
        if self._timer is not None:
            if self._wakes_at <= deadline_at:
                return
            self._timer.cancel()
        self._wakes_at = deadline_at
        self._timer = self._loop.call_at(deadline_at, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._loop.time() < self._deadline_at:
            self._arm(self._deadline_at)
        elif self._leaving:
            self.cut()
        elif self._waiter is not None and not self._waiter.done():
            self._fail(Fault.LATE)

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, fault: Fault) -> None:
        if self._fault is None:
            self._fault = fault
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_exception(HttpError(self._fault))


class HttpClient:
    """Connections to one server. Make it in the event loop that it is used in, and close it there."""

    def __init__(self, host: str, port: int, tls: bool, connect_timeout_ms: int, resting_max: int) -> None:
        """`resting_max` connections are kept for later."""
        self.loop = asyncio.get_running_loop()
        self._host = host
        self._port = port
        self._tls = ssl.create_default_context() if tls else None
        self._connect_timeout_s = connect_timeout_ms / 1000
        self._resting_max = resting_max
        self._resting: list[Reply] = []  # bounded: resting_max
        self._open: set[Reply] = set()
        self._closed = False
        self._keeps = True
        """Whether the server keeps a connection after a reply, as far as is known."""

    async def ask(self, request: bytes, deadline_at: float) -> Reply:
        """Send a request and return its reply, once the head is here. Whoever gets it calls `leave` or `cut`.

        Raises HttpError.
        """
        while True:
            reply = self._rested()
            fresh = reply is None
            if reply is None:
                reply = await self._connected(deadline_at)
            try:
                reply.begin(request)
                while not reply.headed:
                    await reply.wait(deadline_at)
            except HttpError as error:
                reply.cut()
                if not fresh and error.fault is Fault.CLOSED and not reply.heard:
                    continue
                raise
            except BaseException:
                reply.cut()
                raise
            return reply

    def close(self) -> None:
        """Close every connection, for good."""
        self._closed, self._keeps = True, False
        for reply in tuple(self._open):
            reply.cut()

    def rest(self, reply: Reply) -> bool:
        """Keep a connection for later. Returns False where it is not wanted."""
        if not self._keeps or len(self._resting) >= self._resting_max:
            return False
        reply.resting = True
        self._resting.append(reply)
        return True

    def lost(self, reply: Reply) -> None:
        """A connection is gone."""
        self._open.discard(reply)
        if reply.resting:
            self._resting.remove(reply)
            if self.loop.time() - reply.rested_s < CLOSES_S:
                self._keeps = False

    def _rested(self) -> Reply | None:
        now_s = self.loop.time()
        while self._resting:
            reply = self._resting.pop()
            reply.resting = False
            if now_s - reply.rested_s <= REST_S:
                return reply
            reply.cut()
        return None

    async def _connected(self, deadline_at: float) -> Reply:
        connect_at = self.loop.time() + self._connect_timeout_s
        try:
            async with asyncio.timeout_at(min(connect_at, deadline_at)):
                _, reply = await self.loop.create_connection(lambda: Reply(self), self._host, self._port, ssl=self._tls)
        except TimeoutError:
            raise HttpError(Fault.UNREACHABLE if connect_at <= deadline_at else Fault.LATE) from None
        except (OSError, ValueError):
            raise HttpError(Fault.UNREACHABLE) from None
        self._open.add(reply)
        if self._closed:
            reply.cut()
            raise HttpError(Fault.UNREACHABLE)
        return reply
