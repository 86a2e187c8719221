"""HTTP/1.1 towards one server: connections that are used again, every wait and every byte bounded.

`httptools` (llhttp) reads the replies. A connection is used again only when a reply ended where its framing says, the
server did not ask to close, and it has not rested for longer than servers keep one. Where a connection that was used
before turns out to be closed before a byte of the reply came, the request is sent once more on a new one: a generation
changes nothing at the server, and the one that was cut off is stopped by the closing itself.
"""

from __future__ import annotations

import asyncio
import ssl
from abc import ABC, abstractmethod
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
TURN_BYTES_MAX = 64 * 1024
"""With a read of more, the server is held back until the loop's next turn: libuv reads up to 32 times in one."""
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


class Asking(ABC):
    """One request, and who hears of its reply. What it hears comes from the loop, never from within `HttpClient.ask`.

    It hears nothing once its reply was left or cut, or broke.
    """

    reply: Reply | None = None
    """Where the reply comes, once there is a connection."""
    connecting: asyncio.Task[None] | None = None

    @abstractmethod
    def came(self) -> None:
        """More of the reply is here: of its head, its framing or its body, or its end."""

    @abstractmethod
    def broke(self, fault: Fault) -> None:
        """There is no reply, or no more of it."""

    def cut(self) -> None:
        """Ask no more: close the connection now, or make none."""
        if self.connecting is not None:
            self.connecting.cancel()
        if self.reply is not None:
            self.reply.cut()


class Reply(asyncio.Protocol):
    """One connection, and on it the reply to one request at a time."""

    def __init__(self, client: HttpClient) -> None:
        self._client = client
        self._loop = client.loop
        self._transport: asyncio.Transport | None = None
        self._asking: Asking | None = None
        """Who asked, until it left or cut the reply, or the reply broke."""
        self._request: bytes | None = None
        """What was asked, until a byte of the reply came: it may have to be sent once more."""
        self.status = 0
        self.headers: dict[bytes, tuple[bytes, ...]] = {}
        """Those of `READ`, every value, by name in lower case."""
        self.body: list[bytes] = []  # bounded: HELD_BYTES_MAX
        """What has come of the body and was not taken."""
        # The parser calls this for each chunk, of which an engine makes one for each token.
        self.on_body = self.body.append
        self._parser = httptools.HttpResponseParser(self)
        self._feed = self._parser.feed_data
        self.headed = self.ended = self.paused = False
        self._leaving = self._framed = self._keeps = self._used = False
        self._header_count = self._header_bytes = self._interim = self._held_bytes = 0
        self._deadline_at = 0.0
        self._timer: asyncio.Handle | None = None
        self._wakes_at = 0.0
        """When the timer ends. Kept here: what uvloop gives for a time that has come does not know it."""
        self.resting = False
        """Whether nobody asked anything since the last reply."""
        self.rested_s = 0.0
        """When its last reply ended."""

    # What callers do

    def begin(self, request: bytes, asking: Asking, deadline_at: float) -> None:
        """Send a request; what comes from here on is its reply."""
        self._asking, self._request, asking.reply = asking, request, self
        self.status, self.headers = 0, {}
        self.headed = self.ended = self._framed = self._keeps = False
        self._header_count = self._header_bytes = self._interim = self._held_bytes = 0
        if self._transport is None:
            self._fail(Fault.CLOSED)  # as soon as it was made; a connection that rests is there
            return
        if not self._used:
            # Not when it is made: of one that is not wanted by then, uvloop never tells that it is lost.
            self._client.began(self)
        self._transport.write(request)
        self.await_until(deadline_at)

    def await_until(self, deadline_at: float) -> None:
        """The reply breaks where it is neither left nor cut until then, nor this called again."""
        self._deadline_at = deadline_at
        if self._timer is None or deadline_at < self._wakes_at:
            self._arm()

    def take(self) -> bytes:
        """Return what has come of the body, which may be nothing: then what is held is framing, and stays counted."""
        return b"".join(self.take_parts())

    def take_parts(self) -> list[bytes]:
        """Return the same in the parts that the server framed, none of them empty."""
        parts = self.body.copy()
        self.body.clear()
        if parts:
            self._held_bytes = 0
            if self.paused and self._transport is not None:
                self.paused = False
                self._transport.resume_reading()
        return parts

    def leave(self) -> None:
        """Whoever asked has the whole answer: rest as soon as the framing ends, or close."""
        self._asking = None
        if self.paused:
            self.cut()
        elif self.ended:
            self._rest()
        elif self._transport is not None:
            self._leaving = True
            self.body.clear()
            self.await_until(self._loop.time() + LEAVE_S)

    def cut(self) -> None:
        """Close the connection now, without a farewell. Whoever asked hears nothing more."""
        self._asking = None
        self.close()

    def close(self) -> None:
        """Close the connection now. Whoever asks hears of it."""
        if self._transport is not None:
            self._transport.abort()

    # What the loop tells

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports are none of asyncio's classes, and do all that these do.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Read some of a reply."""
        asking = self._asking
        if asking is None and not self._leaving:
            self.cut()  # nobody asked for it
            return
        self._request = None
        self._held_bytes += len(data)
        try:
            self._feed(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade):
            self._fail(Fault.MALFORMED)
            return
        if asking is None:
            self.body.clear()
            if self._leaving and self._held_bytes > HELD_BYTES_MAX:
                self.cut()  # what follows an answer is short
        elif not self.body and self._held_bytes > (HELD_BYTES_MAX if self.headed else HEADER_BYTES_MAX):
            self._fail(Fault.MALFORMED)  # a head, a line of framing, or a trailer without end
        else:
            try:
                asking.came()
            except BaseException:
                self._failed(asking)
                raise
            # By now it may be the reply to another request, of which nothing is held.
            if self._held_bytes > HELD_BYTES_MAX and not self.paused and self._transport is not None:
                self.paused = True
                self._transport.pause_reading()
            elif len(data) > TURN_BYTES_MAX:
                self._let_others()

    def connection_lost(self, exc: Exception | None) -> None:
        """The server is gone. A body without a length ends with its connection."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._client.lost(self)
        asking = self._asking
        if asking is None or self.ended:
            return
        if self.headed and not self._framed and exc is None:
            self.ended = True
            try:
                asking.came()
            except BaseException:
                self._failed(asking)
                raise
        elif self._request is not None and self._used:
            self._asking = None
            self._client.ask_again(self._request, asking, self._deadline_at)
        else:
            self._fail(Fault.CLOSED)

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
        if self.ended:
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

    def _failed(self, asking: Asking) -> None:
        """Whoever asks failed at what came: it hears that this was all, and the loop of the failure."""
        if self._asking is asking:
            self._fail(Fault.CLOSED)

    def _let_others(self) -> None:
        """Read no more in this turn of the loop."""
        if self._asking is not None and not self.paused and self._transport is not None:
            self.paused = True
            self._transport.pause_reading()
            self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        if self.paused and self._held_bytes <= HELD_BYTES_MAX and self._transport is not None:
            self.paused = False
            self._transport.resume_reading()

    def _rest(self) -> None:
        self._leaving = False
        if self.body:
            self.body.clear()
        self.rested_s = self._loop.time()
        self._used = True
        if not self._keeps or self._transport is None or not self._client.rest(self):
            self.cut()

    def _arm(self) -> None:
        """Be woken at the deadline. One timer serves many replies: it is moved only where it would come too late."""
        if self._timer is not None:
            self._timer.cancel()
        self._wakes_at = self._deadline_at
        self._timer = self._loop.call_at(self._deadline_at, self._late)

    def _late(self) -> None:
        self._timer = None
        if self._asking is None and not self._leaving:
            return
        if self._loop.time() < self._deadline_at:
            self._arm()
        else:
            self._fail(Fault.LATE)

    def _fail(self, fault: Fault) -> None:
        asking = self._asking
        self.cut()
        if asking is not None:
            asking.broke(fault)


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

    def ask(self, request: bytes, asking: Asking, deadline_at: float) -> None:
        """Send a request. Whoever asks leaves the reply, or cuts it; at the deadline it breaks."""
        now_s = self.loop.time()
        while self._resting:
            reply = self._resting.pop()
            reply.resting = False
            if now_s - reply.rested_s <= REST_S:
                reply.begin(request, asking, deadline_at)
                return
            reply.cut()
        asking.connecting = self.loop.create_task(self._connect(request, asking, deadline_at))

    def ask_again(self, request: bytes, asking: Asking, deadline_at: float) -> None:
        """Send a request whose connection was closed before it was heard: nobody answers it."""
        if self._closed:
            asking.broke(Fault.UNREACHABLE)
        else:
            self.ask(request, asking, deadline_at)

    def close(self) -> None:
        """Close every connection, for good."""
        self._closed, self._keeps = True, False
        for reply in tuple(self._open):
            reply.close()

    def rest(self, reply: Reply) -> bool:
        """Keep a connection for later. Returns False where it is not wanted."""
        if not self._keeps or len(self._resting) >= self._resting_max:
            return False
        reply.resting = True
        self._resting.append(reply)
        return True

    def began(self, reply: Reply) -> None:
        """A connection is used for the first time."""
        self._open.add(reply)

    def lost(self, reply: Reply) -> None:
        """A connection is gone."""
        self._open.discard(reply)
        if reply.resting:
            self._resting.remove(reply)
            if self.loop.time() - reply.rested_s < CLOSES_S:
                self._keeps = False

    async def _connect(self, request: bytes, asking: Asking, deadline_at: float) -> None:
        """Send a request on a new connection."""
        connect_at = self.loop.time() + self._connect_timeout_s
        fault: Fault | None = Fault.UNREACHABLE
        try:
            async with asyncio.timeout_at(min(connect_at, deadline_at)):
                _, reply = await self.loop.create_connection(lambda: Reply(self), self._host, self._port, ssl=self._tls)
            if self._closed:
                reply.cut()
            else:
                asking.connecting = None
                reply.begin(request, asking, deadline_at)
                fault = None
        except TimeoutError:
            fault = Fault.UNREACHABLE if connect_at <= deadline_at else Fault.LATE
        except asyncio.CancelledError:
            fault = None  # it was cut
            raise
        except (OSError, ValueError):
            pass
        finally:
            # Whatever else was raised, whoever asked hears that nothing comes.
            asking.connecting = None
            if fault is not None:
                asking.broke(fault)
