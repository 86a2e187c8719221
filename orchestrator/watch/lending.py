"""The leases of a program's limits as its watch gives them: `lessor`, with a clock and a line to each process.

A lease ends when it is given back, or with its holder. A process that says nothing for `HUNG_US` hangs, and what runs
in it still counts, so no clock can give that to another: the watch ends the process, and then it is free for certain.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.watch.leases import BEAT_US, Leased, Said
from orchestrator.watch.lessor import Lessor
from orchestrator.watch.line import Line, opened
from orchestrator.wire.silence import Silence

HUNG_US = 30_000_000
"""A process that has spoken once, and then not for so long in which it could be heard, is ended."""

log = logger("watch")


class Lending:
    """Leases limits to the processes of one program."""

    def __init__(self, leased: Leased, end: Callable[[int], None]) -> None:
        """`end` ends a process that hangs."""
        self._lessor = Lessor(leased)
        self._end = end
        self._lines: dict[int, Line[Said]] = {}
        self._followed: dict[int, asyncio.Task[None]] = {}
        self._silences: dict[int, Silence] = {}

    @asynccontextmanager
    async def line(self, index: int) -> AsyncIterator[int]:
        """Give the end of a line, a file, that a process is to be started with; it is there when the block ends well.

        Raises OSError.
        """
        own, theirs = socket.socketpair()
        with theirs, contextlib.ExitStack() as failing:
            line = await opened(own, Said)
            failing.callback(line.close)
            yield theirs.fileno()
            failing.pop_all()
        self._lines[index] = line
        self._lessor.came(index)
        self._share_out()
        self._tell(index)
        self._followed[index] = asyncio.create_task(self._follow(index, line), name=f"lease to {index}")

    async def ended(self, index: int) -> None:
        """A process is dead: what it had is free."""
        following = self._followed.pop(index, None)
        if following is not None:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)
            self._lessor.gone(index)
            self._share_out()

    async def run(self) -> None:
        """Speak to every process now and then, and end those that hang. Runs until it is cancelled."""
        try:
            while True:
                await asyncio.sleep(BEAT_US / 1e6)
                self._beat(_now_us())
        finally:
            for following in self._followed.values():
                following.cancel()
            await asyncio.gather(*self._followed.values(), return_exceptions=True)

    def _beat(self, now_us: int) -> None:
        for index, silence in tuple(self._silences.items()):
            silence.ticked(now_us)
            if silence.silent_us(now_us) > HUNG_US:
                del self._silences[index]
                self._end(index)
        for index in tuple(self._lines):
            self._tell(index)

    async def _follow(self, index: int, line: Line[Said]) -> None:
        try:
            while (said := await line.received()) is not None:
                if index not in self._silences:
                    self._silences[index] = Silence(BEAT_US)
                    self._silences[index].begun(_now_us())
                self._silences[index].heard_us = _now_us()
                if self._lessor.said(index, said):
                    self._share_out()
        except Exception as failure:  # noqa: BLE001 - outermost: the processes go on with what they have
            log.crash(Event.TASK_FAILED, failure, number=index)
        finally:
            self._silences.pop(index, None)
            del self._lines[index]
            line.close()

    def _share_out(self) -> None:
        for index in sorted(self._lessor.plan()):
            self._tell(index)

    def _tell(self, index: int) -> None:
        line = self._lines.get(index)
        if line is not None:
            line.send(self._lessor.telling(index))


def _now_us() -> int:
    return time.monotonic_ns() // 1_000
