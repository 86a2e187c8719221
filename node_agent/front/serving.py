"""One request and its answer, between a connection and the application."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from functools import lru_cache
from http import HTTPStatus
from time import time
from typing import Protocol

from node_agent.front.dates import http_date
from node_agent.front.framing import Body, Head, Malformed, body_too_large
from orchestrator.wire.catalogue import Problem

_LINE_END = "\r\n"
_NO_MORE_LINES = _LINE_END
"""As the last of the lines of a head: they end twice."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TOGETHER_BYTES_MAX = 16 * 1024
"""What is longer is not copied behind the head of its answer: a client who does not read holds no copy of its own."""
_REASONS = {status.value: status.phrase for status in HTTPStatus}


@lru_cache(maxsize=len(_REASONS))
def _opening(status: int, unix_s: int) -> str:
    """Return how the head of an answer begins. All of a status and a second begin alike."""
    return f"HTTP/1.1 {status} {_REASONS.get(status, '')}\r\ndate: {http_date(unix_s)}\r\n"


class Wire(Protocol):
    """The connection, as far as one request sees it."""

    reading: bool
    """Whether what the client sends is taken from the system."""
    blocked: asyncio.Future[None] | None
    """Set while the client does not take what was written."""

    def took(self) -> None:
        """The application took some of the body."""

    async def writable(self) -> None:
        """Return when the client has taken enough of what was written, or is gone."""

    def untaken_bytes(self) -> int:
        """Return what was written and not taken yet."""


class Serving:
    """One request and its answer: the `Client` of the application."""

    __slots__ = (
        "_answer_left",
        "_body",
        "_chunked",
        "_connection",
        "_expects",
        "_silent",
        "_size_max",
        "_start",
        "_told_end",
        "_transport",
        "_waiter",
        "close",
        "complete",
        "fault",
        "gone",
        "head",
        "held",
        "left",
        "read_to_the_end",
        "task",
    )

    def __init__(
        self, connection: Wire, transport: asyncio.Transport, head: Head, whole: bytes | None
    ) -> None:
        """`whole` is the body, where all of it is here."""
        self._connection = connection
        self._transport = transport
        self.head = head
        self._body = Body(head.length) if whole is None else None
        """Reads what is still to come of the body; None once all of it is here."""
        self.fault: Problem | None = None
        """What is wrong with the body, of which nothing more is read then."""
        self.read_to_the_end = whole is not None and head.fault is None
        """Whether what follows in the connection is the next request."""
        self._size_max = sys.maxsize
        """What the application takes of a body, once it has said so."""
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
        if body is None or self.fault is not None or not buffer:
            return
        try:
            part, at = body.take(bytes(buffer))
        except Malformed as malformed:
            self.fault = malformed.problem
            buffer.clear()
        else:
            del buffer[:at]
            self.held += part
            if body.ended:
                self._body = None
                self.read_to_the_end = True
            else:
                self._judge()
        if self._waiter is not None:
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
            if self.gone or self.fault is not None:
                return None
            if self.held or (self._body is None and not self._told_end):
                return self._taken(), not self._told_end
            if self._expects and self._body is not None and self._start is None and not self._transport.is_closing():
                self._expects = False
                self._transport.write(_CONTINUE)
            await self._something()

    def bound(self, size_max: int) -> None:
        """See `Client`."""
        self._size_max = size_max
        self._judge()

    def _judge(self) -> None:
        """Find fault with a body that says that it will be too large."""
        if self._body is not None and self._body.size > self._size_max and self.fault is None:
            self.fault = body_too_large(self._size_max)

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
        chunked = length is None and chunks_allowed
        if chunked:
            lines.append("transfer-encoding: chunked")
        close = close or self.close or not (self.read_to_the_end and (chunked or length is not None))
        if close:
            lines.append("connection: close")
        elif not chunks_allowed:
            lines.append("connection: keep-alive")
        lines.append(_NO_MORE_LINES)
        self._start = (_opening(status, int(time())) + _LINE_END.join(lines)).encode("latin-1")
        # Only now: what fails before is followed by another answer.
        self._answer_left, self._chunked, self.close = length, chunked, close

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
            if len(data) > _TOGETHER_BYTES_MAX:
                self._transport.write(self._start)
            else:
                data = self._start + data
            self._start = None
        if data:
            self._transport.write(data)
        return self._connection.blocked is None

    async def writable(self) -> None:
        """Returns when the client has taken enough of what was written, or is gone."""
        await self._connection.writable()

    def untaken_bytes(self) -> int:
        """Return what was written and not taken yet."""
        return self._connection.untaken_bytes()
