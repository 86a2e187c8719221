"""A stream of events that is never silent for long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import TracebackType
from typing import Self

from node_agent.front.exchange import Exchange
from node_agent.front.sse import KEEP_ALIVE
from orchestrator.wire.catalogue import ProblemError


class EventStream:
    """`async with` round the writing of events: between them, comments are written while nothing else is."""

    __slots__ = ("_exchange", "_keep_alive_s", "_keeper", "_lock", "_on_stall", "_wrote_s")

    def __init__(self, exchange: Exchange, keep_alive_ms: int, on_stall: Callable[[Exception], None]) -> None:
        """`on_stall` is told when a comment could not be written in time."""
        self._exchange = exchange
        self._keep_alive_s = keep_alive_ms / 1000
        self._on_stall = on_stall
        self._lock = asyncio.Lock()
        self._wrote_s = asyncio.get_running_loop().time()
        self._keeper: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        self._keeper = asyncio.create_task(self._keep_alive())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)

    async def write(self, data: bytes) -> None:
        """Write whole events; returns when the connection has taken them. Raises ProblemError(slow_reader)."""
        async with self._lock:
            await self._exchange.write(data)
            self._wrote_s = asyncio.get_running_loop().time()

    async def _keep_alive(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            left_s = self._wrote_s + self._keep_alive_s - loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
                continue
            try:
                await self.write(KEEP_ALIVE)
            except ProblemError as error:
                self._on_stall(error)
                return
