"""What came for one attempt and waits for its tenant. Thin I/O: one task takes, the session's reader puts."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Frame = TypeVar("Frame")


class Inbox(Generic[Frame]):
    """Frames in order. Whoever puts bounds it, and whoever takes takes them from `frames` itself.

    A queue of asyncio holds four deques, some 3 KB, and there is one inbox for every stream.
    """

    __slots__ = ("_loop", "_waiter", "frames")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.frames: list[Frame] = []  # bounded: by whoever puts
        self._loop = loop
        self._waiter: asyncio.Future[None] | None = None

    def put(self, frame: Frame) -> None:
        """Let a frame wait, after those that were put before."""
        self.frames.append(frame)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def more(self) -> asyncio.Future[None]:
        """Return what is done once another frame is put. Only one task may await it; nothing is lost with that."""
        self._waiter = waiter = self._loop.create_future()
        return waiter
