"""What came for one attempt and waits for its tenant. Thin I/O: one task takes, the session's reader puts."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

Frame = TypeVar("Frame")


class Inbox(Generic[Frame]):
    """Frames in order. Whoever puts bounds it.

    A queue of asyncio holds four deques, some 3 KB, and there is one inbox for every stream.
    """

    __slots__ = ("_frames", "_waiter")

    def __init__(self) -> None:
        self._frames: list[Frame] = []  # bounded: by whoever puts
        self._waiter: asyncio.Future[None] | None = None

    def __len__(self) -> int:
        return len(self._frames)

    def put(self, frame: Frame) -> None:
        """Let a frame wait, after those that were put before."""
        self._frames.append(frame)
        waiter, self._waiter = self._waiter, None
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def clear(self) -> None:
        """Drop what waits."""
        self._frames.clear()

    def take(self) -> Frame:
        """Return the first frame. Raises IndexError when there is none."""
        return self._frames.pop(0)

    async def get(self) -> Frame:
        """Return the first frame, once there is one. Only one task may wait; when it is cancelled, nothing is lost."""
        while not self._frames:
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        return self._frames.pop(0)
