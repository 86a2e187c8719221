"""The leases of a program's limits as one of its processes has them: `holder`, with a clock and a line."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time

from orchestrator.watch.holder import Holder
from orchestrator.watch.leases import BEAT_US, Leased, Told
from orchestrator.watch.line import Line, opened

PAUSE_S = 0.005
"""The least time between two messages: what changes meanwhile goes with the next."""


class Holding:
    """What this process may use of the limits. Asked and told of every use; only `changed` waits."""

    def __init__(self, leased: Leased, index: int) -> None:
        self._holder = Holder(leased, index)
        self._due = asyncio.Event()
        self._changed = asyncio.Event()
        """Never stays set: it wakes those who wait when it happens."""

    def amount(self, name: str) -> int:
        """Return how much of a limit may be in use here now."""
        return self._holder.amount(name)

    def uneven(self) -> int:
        """Return of how many limits this process may use more or less than its even share."""
        return self._holder.uneven()

    def taken(self, name: str) -> None:
        """One more of a limit is in use."""
        if self._holder.taken(name):
            self._due.set()

    def freed(self, name: str) -> None:
        """One less of a limit is in use."""
        if self._holder.freed(name):
            self._due.set()

    def refused(self, name: str) -> None:
        """There was no room for one more."""
        if self._holder.refused(name):
            self._due.set()

    def lends(self, name: str) -> bool:
        """Return whether others have some of a limit that this process might be lent."""
        return self._holder.lends(name)

    async def changed(self) -> None:
        """Return when the watch has said something else than before."""
        await self._changed.wait()

    async def run(self, end: socket.socket) -> None:
        """Speak with the watch, whose line ends in `end`. Runs until it is cancelled. Raises OSError."""
        line = await opened(end, Told)
        hearing = asyncio.create_task(self._hear(line), name="hear of leases")
        try:
            while True:
                self._due.clear()
                line.send(self._holder.saying(_now_us()))
                await asyncio.sleep(PAUSE_S)
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(BEAT_US / 1e6):
                        await self._due.wait()
                self._holder.lapse(_now_us())
        finally:
            hearing.cancel()
            await asyncio.gather(hearing, return_exceptions=True)
            line.close()

    async def _hear(self, line: Line[Told]) -> None:
        while (told := await line.received()) is not None:
            if self._holder.told(told, _now_us()):
                self._due.set()
                self._changed.set()
                self._changed.clear()


def _now_us() -> int:
    return time.monotonic_ns() // 1_000
