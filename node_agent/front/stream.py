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
        "_timer",
        "_writing",
        "put",
        "wrote_s",
    )

    def __init__(
        self,
        exchange: Exchange,
        keep_alive_ms: int,
        on_stall: Callable[[Exception], None],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`on_stall` is told when a comment could not be written in time."""
        self._exchange = exchange
        # Straight to the client where nobody keeps a copy.
        self.put: Callable[[bytes], bool] = exchange.client.put if exchange.keeper is None else exchange.put
        """Writes whole events. Returns False when the connection is to take some first: await `taken` then."""
        self._keep_alive_s = keep_alive_ms / 1000
        self._on_stall = on_stall
        self._loop = loop
        self.wrote_s = self._loop.time()
        """When something was written last, by the clock of the loop: whoever writes sets it."""
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

    async def taken(self) -> None:
        """Return when the connection has taken enough of what was written. Raises ProblemError(slow_reader)."""
        if self._comment is not None:
            # It waits for the same, and one waits at a time.
            await asyncio.wait([self._comment])
        self._writing = True
        try:
            await self._exchange.taken()
        finally:
            self._writing = False

    def _arm(self) -> None:
        self._timer = self._loop.call_at(max(self.wrote_s + self._keep_alive_s, self._loop.time()), self._quiet)

    def _quiet(self) -> None:
        """Nothing was written for a while, or something was meanwhile: comment, or wait on."""
        if self._writing:
            self.wrote_s = self._loop.time()
        if self.wrote_s + self._keep_alive_s > self._loop.time():
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
        self.wrote_s = self._loop.time()
        self._arm()
