"""One HTTP/1.1 connection: requests in, one after the other, each served by the application.

It answers nothing by itself. A request that is not read goes to the application with what is wrong with it, as the
`fault` of its head, so that every refusal has the same shape, an id and a place in the metrics.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Protocol, cast

from node_agent.front.dates import http_date
from node_agent.front.framing import HEAD_END, Body, Head, Malformed, fault_so_far, read_head, unread
from node_agent.front.groups import Groups
from node_agent.front.http import App
from orchestrator.wire.catalogue import Problem

BUFFER_BYTES_MAX = 64 * 1024
"""What is held of a client that sends faster than it is read, and of one that reads more slowly than it is sent to."""
LINGER_S = 1.0
"""How long what a refused client still sends is thrown away: a connection closed on unread bytes takes the answer
with it."""
LINGER_BYTES_MAX = 1 << 20
CLOSE_S = 30.0
"""How long a last answer may take to leave."""

_END_BYTES = len(HEAD_END)
_LINE_END = "\r\n"
_NO_MORE_LINES = _LINE_END
"""As the last of the lines of a head: they end twice."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@lru_cache(maxsize=len(_REASONS))
def _opening(status: int, unix_s: int) -> str:
    """Return how the head of an answer begins. All of a status and a second begin alike."""
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\ndate: {http_date(unix_s)}\r\n"


class House(Protocol):
    """What the connections of one server share."""

    app: App
    groups: Groups
    head_timeout_s: float
    """How long a head may take, and how long a new connection may say nothing."""
    idle_timeout_s: float
    """How long a connection may stay without another request after an answer."""
    draining: bool

    def came(self, connection: Connection) -> bool:
        """Count a connection in. Returns whether there was room."""

    def left(self, connection: Connection) -> None:
        """A connection is over."""


class Connection(asyncio.Protocol):
    """Serves one client at a time with one request at a time; what comes early waits within a bound."""

    __slots__ = (
        "_buffer",
        "_house",
        "_leaving",
        "_looked_at",
        "_loop",
        "_serving",
        "_thrown_away",
        "_transport",
        "blocked",
        "deadline_s",
        "reading",
    )

    def __init__(self, house: House, loop: asyncio.AbstractEventLoop) -> None:
        self._house = house
        self._loop = loop
        self._transport: asyncio.Transport
        self._buffer = bytearray()
        self._looked_at = 0
        """Bytes of the buffer in which no end of a head was found."""
        self._serving: _Serving | None = None
        self.reading = True
        """Whether what the client sends is taken from the system."""
        self._leaving = False
        """Whether nothing is read any more as a request."""
        self._thrown_away = 0
        self.blocked: asyncio.Future[None] | None = None
        """Set while the client does not take what was written; done when it has taken enough."""
        self.deadline_s: float | None = None
        """When the wait for the client is over; None while it is the client who waits."""

    @property
    def busy(self) -> bool:
        """Whether a request is being served."""
        return self._serving is not None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # The loop's own transports share no base class with asyncio's.
        self._transport = cast(asyncio.Transport, transport)
        self._transport.set_write_buffer_limits(high=BUFFER_BYTES_MAX)
        if not self._house.came(self):
            self._transport.abort()
            return
        self.deadline_s = self._loop.time() + self._house.head_timeout_s

    def connection_lost(self, exc: Exception | None) -> None:
        self._leaving = True
        self.deadline_s = None
        self._let_write()
        if self._serving is None:
            self._house.left(self)
        else:
            self._serving.lost()

    def eof_received(self) -> bool:
        # Who says no more is taken for gone: that is how a tenant's hanging up is seen in time.
        return False

    def pause_writing(self) -> None:
        if self.blocked is None:
            self.blocked = self._loop.create_future()

    def resume_writing(self) -> None:
        self._let_write()

    def data_received(self, data: bytes) -> None:
        if self._leaving:
            self._thrown_away += len(data)
            if self._thrown_away > LINGER_BYTES_MAX:
                self._transport.abort()
            return
        buffer, serving = self._buffer, self._serving
        if serving is not None:
            buffer += data
            if not serving.read_to_the_end:
                serving.feed(buffer)
            if len(buffer) + len(serving.held) > BUFFER_BYTES_MAX:
                self._hold_back()
            return
        if not buffer:
            end = data.find(HEAD_END) + _END_BYTES
            if end >= _END_BYTES:  # nearly always: a head comes in one piece, and its body with it
                self._request_in(data, end)
                return
            # For the rest of it.
            self.deadline_s = self._loop.time() + self._house.head_timeout_s
        buffer += data
        self._next_request()

    def close_when_idle(self) -> None:
        """End the connection when no request is being served on it."""
        if self._serving is None and not self._leaving:
            self._leaving = True
            self.deadline_s = self._loop.time() + CLOSE_S
            self._transport.close()

    def abort(self) -> list[asyncio.Task[None]]:
        """End the connection at once, and cancel what is being served. Returns that."""
        self._transport.abort()
        serving = self._serving
        if serving is None:
            return []
        if serving.task is None:
            # It has not begun, and does not any more; nor does what comes after it.
            self._serving, self._leaving = None, True
            if serving.gone:
                self._house.left(self)
            return []
        serving.task.cancel()
        return [serving.task]

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline_s = None
        if self._leaving:
            self._transport.abort()
        elif self._buffer:
            self._refuse(Problem("head_timeout"))
        else:
            self.close_when_idle()

    def _next_request(self) -> None:
        buffer = self._buffer
        end = buffer.find(HEAD_END, self._looked_at - _END_BYTES if self._looked_at > _END_BYTES else 0)
        if end < 0:
            fault = fault_so_far(buffer, self._looked_at)
            self._looked_at = len(buffer)
            if fault is not None:
                self._refuse(fault)
            return
        end += _END_BYTES
        try:
            head = read_head(bytes(buffer[:end]))
        except Malformed as malformed:
            self._refuse(malformed.problem)
            return
        del buffer[:end]
        self._looked_at = 0
        length = head.length
        whole: bytes | None = None
        if length is not None and len(buffer) >= length:
            whole = bytes(buffer[:length])
            del buffer[:length]
        self._serve(head, whole)

    def _request_in(self, data: bytes, end: int) -> None:
        """Serve a request whose head ends there in what came, while nothing else is here."""
        try:
            head = read_head(data[:end])
        except Malformed as malformed:
            self._refuse(malformed.problem)
            return
        length = head.length
        whole: bytes | None = None
        if length is not None and len(data) - end >= length:
            whole = data[end : end + length]
            end += length
        if len(data) != end:
            self._buffer += data[end:]
        self._serve(head, whole)

    def _refuse(self, problem: Problem) -> None:
        """Let the application say what is wrong, and take nothing more from this client."""
        self._buffer.clear()
        self._serve(unread(problem), b"")

    def _serve(self, head: Head, whole: bytes | None) -> None:
        """`whole` is the body, where all of it is here."""
        buffer = self._buffer
        serving = self._serving = _Serving(self, self._transport, head, whole)
        self.deadline_s = None
        if whole is None:
            serving.feed(buffer)
        if buffer or len(serving.held) > BUFFER_BYTES_MAX or not self.reading:
            self._hold_back()
        self._house.groups.add(self._begin)

    def _begin(self) -> None:
        """It is the turn of the request that was read."""
        serving = self._serving
        if serving is None:
            return  # broken off meanwhile
        # Not a coroutine round the application: every wait of a request would go through it.
        serving.task = self._loop.create_task(self._house.app(serving.head, serving))
        serving.task.add_done_callback(self._served)

    def _served(self, task: asyncio.Task[None]) -> None:
        """The application is done with a request, however that came."""
        serving, self._serving = self._serving, None
        if serving is None or serving.gone:
            self._house.left(self)
        elif self._transport.is_closing():
            pass
        elif not serving.complete:
            # Without its end nobody takes the answer for whole.
            self._transport.abort()
        elif not serving.read_to_the_end:
            self._leaving = True
            self._buffer.clear()
            self.deadline_s = self._loop.time() + LINGER_S
            if not self.reading:
                self._read(True)
            self._transport.write_eof()
        elif serving.close or self._house.draining:
            self.close_when_idle()
        else:
            # What is here already of the next request is part of a head.
            house = self._house
            self.deadline_s = self._loop.time() + (house.head_timeout_s if self._buffer else house.idle_timeout_s)
            if not self.reading:
                self._hold_back()
            if self._buffer:
                self._next_request()

    def _hold_back(self) -> None:
        """Read on only while there is room for what comes."""
        held = len(self._buffer) + (0 if self._serving is None else len(self._serving.held))
        wanted = held <= BUFFER_BYTES_MAX
        if wanted != self.reading:
            self._read(wanted)

    def _read(self, wanted: bool) -> None:
        self.reading = wanted
        if wanted:
            self._transport.resume_reading()
        else:
            self._transport.pause_reading()

    def took(self) -> None:
        """The application took some of the body."""
        if not self._leaving:
            self._hold_back()

    async def writable(self) -> None:
        """Return when the client has taken enough of what was written, or is gone."""
        while self.blocked is not None:
            await asyncio.shield(self.blocked)

    def _let_write(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is not None and not blocked.done():
            blocked.set_result(None)


class _Serving:
    """One request and its answer: the `Client` of the application."""

    __slots__ = (
        "_answer_left",
        "_body",
        "_broken",
        "_chunked",
        "_connection",
        "_expects",
        "_silent",
        "_start",
        "_told_end",
        "_transport",
        "_waiter",
        "close",
        "complete",
        "gone",
        "head",
        "held",
        "left",
        "read_to_the_end",
        "task",
    )

    def __init__(
        self, connection: Connection, transport: asyncio.Transport, head: Head, whole: bytes | None
    ) -> None:
        """`whole` is the body, where all of it is here."""
        self._connection = connection
        self._transport = transport
        self.head = head
        self._body = Body(head.length) if whole is None else None
        """Reads what is still to come of the body; None once all of it is here."""
        self._broken = False
        self.read_to_the_end = whole is not None and head.fault is None
        """Whether what follows in the connection is the next request."""
        self._expects = head.expects
        self.held: bytes | bytearray = bytearray() if whole is None else whole
        """Of the body, not yet taken by the application."""
        self._told_end = False
        self.gone = False
        """Whether the client has left."""
        self._waiter: asyncio.Future[None] | None = None
        self.left: Callable[[], None] | None = None
        """Called when the client leaves."""
        self._start: bytes | None = None
        """The head of the answer until the first part of its body leaves with it."""
        self._chunked = False
        self._silent = head.method == "HEAD"
        self._answer_left: int | None = None
        self.close = not head.keep_alive
        """Whether the connection ends with this answer."""
        self.complete = False
        """Whether the whole answer was written."""
        self.task: asyncio.Task[None] | None = None

    def feed(self, buffer: bytearray) -> None:
        """Take what of the buffer is this request's body."""
        body = self._body
        if body is None or self._broken or not buffer:
            return
        try:
            part, at = body.take(bytes(buffer))
        except Malformed:
            self._broken = True
            buffer.clear()
        else:
            del buffer[:at]
            self.held += part
            if body.ended:
                self._body = None
                self.read_to_the_end = True
        if self._waiter is not None or self._broken:
            self._wake()

    def lost(self) -> None:
        """The client is gone."""
        self.gone = True
        self._wake()
        left, self.left = self.left, None
        if left is not None:
            left()

    def _wake(self) -> None:
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def here(self) -> bytes | None:
        """The whole body, where it came with the head."""
        if not self.read_to_the_end or self._told_end or self.gone or self.head.length is None:
            return None
        body, self.held = bytes(self.held), b""
        self._told_end = True
        if not self._connection.reading:
            self._connection.took()
        return body

    async def part(self) -> tuple[bytes, bool] | None:
        """The next part of the body, and whether more follows; None when the client is gone."""
        while True:
            if self.gone or self._broken:
                return None
            if self.held or (self._body is None and not self._told_end):
                return self._taken(), not self._told_end
            if self._expects and self._body is not None and self._start is None and not self._transport.is_closing():
                self._expects = False
                self._transport.write(_CONTINUE)
            await self._something()

    def _taken(self) -> bytes:
        body, self.held = bytes(self.held), bytearray()
        self._told_end = self._body is None
        if not self._connection.reading:
            self._connection.took()
        return body

    async def _something(self) -> None:
        """Return when the client said something, or left."""
        self._waiter = asyncio.get_running_loop().create_future()
        await self._waiter

    def begin(self, status: int, lines: list[str], length: int | None, close: bool) -> None:
        """The answer begins, with how its end is told."""
        # Looking for one is several times as quick as counting those that are due.
        run_on = "".join(lines)
        if "\n" in run_on or "\r" in run_on:
            raise ValueError("a header of the answer holds a line end")
        chunks_allowed = self.head.chunks_allowed
        if length is not None:
            self._answer_left = length
        elif chunks_allowed:
            self._chunked = True
            lines.append("transfer-encoding: chunked")
        else:
            close = True
        if close or not self.read_to_the_end:
            self.close = True
        if self.close:
            lines.append("connection: close")
        elif not chunks_allowed:
            lines.append("connection: keep-alive")
        lines.append(_NO_MORE_LINES)
        self._start = (_opening(status, int(time())) + _LINE_END.join(lines)).encode("latin-1")

    def put(self, data: bytes, last: bool = False) -> bool:
        """Write some of the answer. Returns False when the client is to take some first."""
        if self.gone or self.complete or self._transport.is_closing():
            return True
        left = self._answer_left
        if left is not None:
            self._answer_left = left = left - len(data)
            if left < 0 or (left and last):
                raise ValueError("the answer is not as long as it says")
        if self._silent:
            data = b""
        elif self._chunked:
            data = (b"%x\r\n%b\r\n" % (len(data), data) if data else b"") + (b"0\r\n\r\n" if last else b"")
        self.complete = last
        if self._start is not None:
            data = self._start + data
            self._start = None
        if data:
            self._transport.write(data)
        return self._connection.blocked is None

    async def writable(self) -> None:
        """Returns when the client has taken enough of what was written, or is gone."""
        await self._connection.writable()
