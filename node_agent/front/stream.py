"""A stream of events that is never silent for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node_agent.front.exchange import Exchange
from node_agent.front.sse import KEEP_ALIVE
from orchestrator.wire.catalogue import ProblemError


class EventStream:
    """Writes events until it is closed: between them, comments are written while nothing else is."""

    __slots__ = (
        "_comment",
        "_exchange",
        "_keep_alive_s",
        "_loop",
        "_on_stall",
        "_put",
        "_timer",
        "_writing",
        "_wrote_s",
    )

    def __init__(self, exchange: Exchange, keep_alive_ms: int, on_stall: Callable[[Exception], None]) -> None:
        """`on_stall` is told when a comment could not be written in time."""
        self._exchange = exchange
        # Straight to the client where nobody keeps a copy.
        self._put: Callable[[bytes], bool] = exchange.client.put if exchange.keeper is None else exchange.put
        self._keep_alive_s = keep_alive_ms / 1000
        self._on_stall = on_stall
        self._loop = asyncio.get_running_loop()
        self._wrote_s = self._loop.time()
        self._writing = False
        self._timer: asyncio.TimerHandle | None = None
        self._comment: asyncio.Task[None] | None = None
        self._arm()

    async def close(self) -> None:
        """No event follows."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._comment is not None:
            self._comment.cancel()
            await asyncio.gather(self._comment, return_exceptions=True)

    async def write(self, data: bytes) -> None:
        """Write whole events; returns when the connection has taken them. Raises ProblemError(slow_reader)."""
        if self._comment is not None:
            await asyncio.wait([self._comment])
        if not self._put(data):
            self._writing = True
            try:
                await self._exchange.taken()
            finally:
                self._writing = False
        self._wrote_s = self._loop.time()

    def _arm(self) -> None:
        self._timer = self._loop.call_at(max(self._wrote_s + self._keep_alive_s, self._loop.time()), self._quiet)

    def _quiet(self) -> None:
        """Nothing was written for a while, or something was meanwhile: comment, or wait on."""
        if self._writing:
            self._wrote_s = self._loop.time()
        if self._wrote_s + self._keep_alive_s > self._loop.time():
            self._arm()
        else:
            self._comment = asyncio.create_task(self._say())

    async def _say(self) -> None:
        try:
            await self._exchange.write(KEEP_ALIVE)
        except ProblemError as error:
            self._on_stall(error)
            return
        finally:
            self._comment = None
        self._wrote_s = self._loop.time()
        self._arm()
