"""What waits for the wire in one direction of a session, and the moment it leaves. Thin I/O around `pace`."""

from __future__ import annotations

import asyncio
import time
from typing import Generic, TypeVar

from orchestrator.wire.pace import Haste, Pace

Frame = TypeVar("Frame")

TIMER_US = 500
"""The loop's timers are whole milliseconds: what is due within half of one is due."""
_NOTHING = len(Haste)
"""Less haste than any has."""
# A member costs several times as much by way of its enumeration.
_NOW = Haste.NOW


class Outbox(Generic[Frame]):
    """Frames in order. One task awaits `due` and then takes all of them as one message. Whoever puts bounds it."""

    __slots__ = ("_loop", "_pace", "_ready", "_timer", "_waiter", "frames", "haste")

    def __init__(self) -> None:
        self.frames: list[Frame] = []  # bounded: by whoever puts
        """What waits. Only `put`, `take` and `drop` change it."""
        self._pace = Pace()
        self._ready = False
        """Whether a message is to leave."""
        self._waiter: asyncio.Future[None] | None = None
        """What its task awaits: by itself, for an event costs more than all else here."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.haste: int = _NOTHING
        """Of what the next message leaves for. As much haste or less leaves with it: it would not leave sooner."""

    def put(self, frame: Frame, haste: Haste) -> None:
        """Let a frame leave, after those that were put before."""
        self.frames.append(frame)
        if haste < self.haste:
            self.wake(haste)

    def wake(self, haste: Haste) -> None:
        """Something of more haste than `haste` tells is there to be taken, if only once it is asked for."""
        now_us = time.monotonic_ns() // 1000
        at_us = self._pace.at_us(haste, now_us)
        self._stop_timer()
        self.haste = haste
        if at_us - now_us <= TIMER_US:
            self.hurry()
            return
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later((at_us - now_us) / 1_000_000, self.hurry)

    def hurry(self) -> None:
        """Let `due` return at once, whatever there is."""
        self.haste = _NOW
        self._ready = True
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():  # its task may have been cancelled
            waiter.set_result(None)

    async def due(self) -> None:
        """Return when a message is to leave. What is put until it is taken leaves with it."""
        if not self._ready:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter

    def take(self) -> list[Frame]:
        """Take all frames: they leave now."""
        frames, self.frames = self.frames, []
        self._ready = False
        self._stop_timer()
        self.haste = _NOTHING
        if frames:
            self._pace.left(time.monotonic_ns() // 1000)
        return frames

    def drop(self) -> list[Frame]:
        """Take all frames: they do not leave. Nothing of this outbox waits any more."""
        frames, self.frames = self.frames, []
        self._stop_timer()
        if not self._ready:
            self.haste = _NOTHING
        return frames

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
