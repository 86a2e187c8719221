"""The HTTP server: it listens in the program's own loop, holds the connections, and stops in an orderly way."""

from __future__ import annotations

import asyncio
import contextlib
import select

from node_agent.front.app import Front
from node_agent.front.connection import Connection
from node_agent.front.evictions import Evictions
from node_agent.front.groups import Groups
from node_agent.front.http import App
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import CONNECTIONS_CUT, Event

log = logger("node_agent.front")

BACKLOG = 1_024
CONNECTIONS_MAX = 4_096
"""Connections that are held at once, idle ones among them; for one more, one that has no request is ended."""
HEAD_TIMEOUT_MS = 15_000
"""How long a head may take from its first byte on, and how long a new connection may say nothing."""
IDLE_TIMEOUT_MS = 75_000
"""How long a connection may stay without another request after an answer. Longer than the 60 s for which load
balancers keep theirs: who closes first must be the one that sends, or a request meets a closed connection."""
CUT_TIMEOUT_S = 2.0
"""How long the answers that were cut at the deadline have for their last event."""
SWEEP_S_MAX = 1.0
NOTICE_S = 0.3
"""How long a server that stops still answers, if only with a refusal."""


class FrontServer:
    """Listens, and stops in an orderly way. It installs no signal handlers and starts no thread."""

    def __init__(
        self,
        app: Front,
        host: str,
        port: int,
        *,
        head_timeout_ms: int = HEAD_TIMEOUT_MS,
        idle_timeout_ms: int = IDLE_TIMEOUT_MS,
        connections_max: int | None = None,
        shared: bool = False,
    ) -> None:
        """`host` is an address. Port 0 lets the system choose. `connections_max` is CONNECTIONS_MAX unless it is given.
        A `shared` port is also that of other processes, among which the system spreads the connections."""
        self.app: App = app
        self.groups = Groups()
        self.head_timeout_s = head_timeout_ms / 1000
        self.idle_timeout_s = idle_timeout_ms / 1000
        self.write_timeout_s = app.write_timeout_ms / 1000
        self.draining = False
        self.port = port
        """Where it listens; with port 0 only after `start`."""
        self._front = app
        self._connections_max = CONNECTIONS_MAX if connections_max is None else connections_max
        self._host = host
        self._shared = shared
        self._connections: dict[Connection, None] = {}  # bounded: by `_connections_max`
        self._evictions = Evictions()
        self._cut = app.metrics.counter(CONNECTIONS_CUT)
        self._cut_since_told = 0
        self._empty = asyncio.Event()
        self._empty.set()
        self._server: asyncio.Server | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Listen. Returns when the port answers. Raises OSError when it cannot be had."""
        self._server = await self._listen(asyncio.get_running_loop())
        self._sweep()

    async def stop(self, deadline_s: float) -> None:
        """Take no new requests, let running answers end until the deadline, cut the rest, and return.

        Requests are refused as `draining` from now on, and their connections closed. While there are clients the port
        stays open for a moment: a connection that is closed before its first answer looks like a lost request.
        """
        if self._server is None:
            return
        server, self._server = self._server, None
        self._front.drain()
        self.draining = True
        await self._emptied(min(NOTICE_S, deadline_s))
        server.close()
        for connection in tuple(self._connections):
            connection.close_when_idle()
        try:
            if not await self._emptied(deadline_s):
                self._front.cut()
                await self._emptied(CUT_TIMEOUT_S)
        finally:
            await self._leave(server)

    def came(self, connection: Connection) -> bool:
        """Count a connection in. Returns whether there was room."""
        if len(self._connections) >= self._connections_max:
            self._cut_since_told += 1
            idle = self._evictions.choose(self._connections)
            if idle is None:
                self._cut["refused"].value += 1
                return False
            self._cut["evicted"].value += 1
            # Gone from the list at once: its end is told only in a later turn of the loop.
            del self._connections[idle]
            idle.hang_up()
        self._connections[connection] = None
        self._empty.clear()
        return True

    def left(self, connection: Connection) -> None:
        """A connection is over."""
        self._connections.pop(connection, None)
        if not self._connections:
            self._empty.set()

    async def _listen(self, loop: asyncio.AbstractEventLoop) -> asyncio.Server:
        # All that wait are accepted in one turn, and have a descriptor until those that are too many are ended.
        backlog = min(BACKLOG, max(1, self._connections_max // 4))
        server = await loop.create_server(
            lambda: Connection(self, loop), self._host, self.port, backlog=backlog, reuse_port=self._shared or None
        )
        self.port = server.sockets[0].getsockname()[1]
        return server

    async def _emptied(self, within_s: float) -> bool:
        """Wait until no connection is left. Returns whether that is so."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._empty.wait()
        return not self._connections

    async def _leave(self, server: asyncio.Server) -> None:
        """Make sure that nothing of this server is left."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        tasks = []
        for connection in tuple(self._connections):
            tasks += connection.abort()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    def _sweep(self) -> None:
        """End the waits that took too long. One timer for all connections costs a request nothing."""
        loop = asyncio.get_running_loop()
        now_s = loop.time()
        for connection in tuple(self._connections):
            if connection.deadline_s is not None and now_s > connection.deadline_s:
                connection.expire()
        self._listen_for_hanging_up()
        if self._cut_since_told:
            self._tell_cut()
        every_s = min(min(self.head_timeout_s, self.idle_timeout_s, self.write_timeout_s) / 4, SWEEP_S_MAX)
        self._sweeping = loop.call_later(every_s, self._sweep)

    def _listen_for_hanging_up(self) -> None:
        """End the connections of which nothing is read for now, and whose clients have left."""
        deaf = {connection.fileno(): connection for connection in self._connections if connection.deaf}
        if not deaf:
            return
        poll = select.poll()
        for number in deaf:
            poll.register(number, select.POLLRDHUP)
        for number, _ in poll.poll(0):
            deaf[number].hang_up()

    def _tell_cut(self) -> None:
        detail = "Every connection is taken: those that wait longest are ended for those that come."
        log.warning(Event.CONNECTIONS_FULL, count=self._cut_since_told, limit=self._connections_max, detail=detail)
        self._cut_since_told = 0
