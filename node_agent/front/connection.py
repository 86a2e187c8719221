"""One HTTP/1.1 connection: requests in, one after the other, each served by the application.

It answers nothing by itself. A request that is not read goes to the application with what is wrong with it, as the
`fault` of its head, so that every refusal has the same shape, an id and a place in the metrics.
"""

from __future__ import annotations

import asyncio
from typing import Protocol, cast

from node_agent.front.framing import HEAD_END, Head, Malformed, fault_so_far, read_head, unread
from node_agent.front.groups import Groups
from node_agent.front.http import App
from node_agent.front.serving import Serving
from node_agent.front.untaken import TAKEN_BYTES_MIN, untaken_bytes
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


class House(Protocol):
    """What the connections of one server share."""

    app: App
    groups: Groups
    head_timeout_s: float
    """How long a head may take, and how long a new connection may say nothing."""
    idle_timeout_s: float
    """How long a connection may stay without another request after an answer."""
    write_timeout_s: float
    """How long a client may not take what was written for it."""
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
        "_idle",
        "_leaving",
        "_looked_at",
        "_loop",
        "_serving",
        "_task",
        "_thrown_away",
        "_transport",
        "_untaken_before",
        "blocked",
        "blocked_s",
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
        self._serving: Serving | None = None
        self._task: asyncio.Task[None]
        """What serves, since the first request."""
        self._idle: asyncio.Future[None] | None = None
        """What the task waits for between two requests."""
        self.reading = True
        """Whether what the client sends is taken from the system."""
        self._leaving = False
        """Whether nothing is read any more as a request."""
        self._thrown_away = 0
        self.blocked: asyncio.Future[None] | None = None
        """Set while the client does not take what was written; done when it has taken enough."""
        self._untaken_before = 0
        """What was not taken when the wait for the client to take it began."""
        self.blocked_s = 0.0
        """Since when."""
        self.deadline_s: float | None = None
        """When the wait for the client is over; None while it is the client who waits."""

    @property
    def busy(self) -> bool:
        """Whether a request is being served whose whole answer does not only wait for the client to take it."""
        serving = self._serving
        return serving is not None and not (serving.complete and self.blocked is not None)

    @property
    def deaf(self) -> bool:
        """Whether nothing is read for now, so that a client who hangs up is not heard."""
        return not self.reading and not self._transport.is_closing()

    def fileno(self) -> int:
        """Return the descriptor of its socket."""
        number: int = self._transport.get_extra_info("socket").fileno()
        return number

    @property
    def answered(self) -> bool:
        """Whether the client had an answer, while none is being served."""
        return self._idle is not None

    @property
    def heard(self) -> bool:
        """Whether something of a request came that is not served yet, and would be."""
        return bool(self._buffer) and self.blocked is None

    @property
    def waits_until_s(self) -> float:
        """When the wait for the client is over, by the clock of the loop: the sooner, the longer it has been idle."""
        return self.blocked_s if self.deadline_s is None else self.deadline_s

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
            self._over()
        else:
            self._serving.lost()

    def eof_received(self) -> bool:
        # Who says no more is taken for gone: that is how a tenant's hanging up is seen in time.
        return False

    def pause_writing(self) -> None:
        if self.blocked is None:
            self.blocked = self._loop.create_future()
            self.blocked_s = self._loop.time()

    def resume_writing(self) -> None:
        self._let_write()
        if self._serving is None and not self._leaving:
            self._await_request()

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
            self._transport.close()
            self._await_taking(self._loop.time() + CLOSE_S)

    def hang_up(self) -> None:
        """End the connection at once, as when its client hangs up. What is being served for it learns of that."""
        self._transport.abort()

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
                self._over()
            return []
        serving.task.cancel()
        return [serving.task]

    def expire(self) -> None:
        """The deadline has passed."""
        self.deadline_s = None
        if self._leaving or self.blocked is not None:
            if self._untaken_before - self.untaken_bytes() < TAKEN_BYTES_MIN:
                self._transport.abort()
            else:
                self._await_taking(self._loop.time() + (CLOSE_S if self._leaving else self._house.write_timeout_s))
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
        serving = self._serving = Serving(self, self._transport, head, whole)
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
        idle, self._idle = self._idle, None
        if idle is None or idle.done():  # done: cancelled with its task
            self._task = task = self._loop.create_task(self._work())
            task.add_done_callback(self._worked)
        else:
            task = self._task
            idle.set_result(None)
        serving.task = task

    async def _work(self) -> None:
        """Serve the requests of this connection: one task for each costs more than all else here."""
        task = self._task
        while (serving := self._serving) is not None:
            await self._house.app(serving.head, serving)
            self._served(serving)
            del serving  # nothing of a request is held while the next is awaited
            if self._leaving or task.cancelling():
                return  # the next has a task in which nobody wanted anything to end
            self._idle = idle = self._loop.create_future()
            await idle

    def _worked(self, task: asyncio.Task[None]) -> None:
        """The task is over. What it was at has failed, or was cancelled, if only before it began."""
        serving = self._serving
        if serving is not None and serving.task is task:
            self._served(serving)

    def _served(self, serving: Serving) -> None:
        """The application is done with a request, however that came."""
        self._serving = None
        if serving.gone:
            self._over()
        elif self._transport.is_closing():
            pass
        elif not serving.complete:
            # Without its end nobody takes the answer for whole.
            self._transport.abort()
        elif self.blocked is not None and self._loop.time() >= self.blocked_s + self._house.write_timeout_s:
            self._transport.abort()
        elif not serving.read_to_the_end:
            self._leaving = True
            self._buffer.clear()
            self._untaken_before = 0
            self.deadline_s = self._loop.time() + LINGER_S
            if not self.reading:
                self._read(True)
            self._transport.write_eof()
        elif serving.close or self._house.draining:
            self.close_when_idle()
        elif self.blocked is not None:
            # Whoever does not read would have answer after answer made and held here.
            self._await_taking(self.blocked_s + self._house.write_timeout_s)
            if self.reading:
                self._read(False)
        else:
            self._await_request()

    def _await_request(self) -> None:
        """Serve the next request. What is here already of it is part of a head."""
        house = self._house
        self.deadline_s = self._loop.time() + (house.head_timeout_s if self._buffer else house.idle_timeout_s)
        if not self.reading:
            self._hold_back()
        if self._buffer:
            self._next_request()

    def _over(self) -> None:
        """The client is gone, and nothing is served any more."""
        idle, self._idle = self._idle, None
        if idle is not None and not idle.done():
            idle.set_result(None)
        self._house.left(self)

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

    def untaken_bytes(self) -> int:
        """Return what was written and not taken yet."""
        return untaken_bytes(self._transport)

    def _await_taking(self, until_s: float) -> None:
        """Wait until then for the client to take some of what was written."""
        self.deadline_s = until_s
        self._untaken_before = self.untaken_bytes()

    async def writable(self) -> None:
        """Return when the client has taken enough of what was written, or is gone."""
        while self.blocked is not None:
            await asyncio.shield(self.blocked)

    def _let_write(self) -> None:
        blocked, self.blocked = self.blocked, None
        if blocked is not None and not blocked.done():
            blocked.set_result(None)
