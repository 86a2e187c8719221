"""Bounds on waits that come one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

T = TypeVar("T")

AHEAD_S = 5.0
"""The timer is set no further ahead; where a wait may be longer, it looks again when it rings. Of two waits the second
often may not be as long as the first: while both may be longer than this, one timer does for them."""


class Alarm:
    """Bounds waits for anything. `asyncio.timeout` sets a timer for each, which costs more than most waits.

    It works as that does: the task that waits is cancelled, and the cancellation becomes a TimeoutError. One task
    waits at a time, and whoever made it calls `off`. Its timer is moved only when it would ring too late.
    """

    __slots__ = ("_handle", "_late", "_loop", "_rings_s", "_task", "_until_s")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._task: asyncio.Task[object] | None = None
        """Who waits."""
        self._until_s = 0.0
        """How long the last wait may last."""
        self._late = False
        self._handle: asyncio.Handle | None = None
        self._rings_s = 0.0
        """When the timer ends. Kept here: what uvloop gives for a time that has come does not know it."""

    async def wait(self, awaitable: Awaitable[T], timeout_s: float) -> T:
        """Return what is waited for. Raises TimeoutError."""
        task = asyncio.current_task()
        if task is None:
            raise RuntimeError("only a task can be woken")
        cancelling = task.cancelling()
        self._task = task
        now_s = self._loop.time()
        self._until_s = until_s = now_s + timeout_s
        if self._handle is None:
            self._set(now_s)
        elif until_s < self._rings_s:
            self._handle.cancel()
            self._set(now_s)
        try:
            return await awaitable
        except asyncio.CancelledError:
            if not self._late:
                raise
            self._late = False
            if task.uncancel() > cancelling:
                raise  # somebody else wants the task to end as well
            raise TimeoutError from None
        finally:
            self._task = None

    def off(self) -> None:
        """Nothing is waited for any more, for good."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _set(self, now_s: float) -> None:
        self._rings_s = self._until_s if self._until_s < now_s + AHEAD_S else now_s + AHEAD_S
        self._handle = self._loop.call_at(self._rings_s, self._ring)

    def _ring(self) -> None:
        self._handle = None
        now_s = self._loop.time()
        if now_s < self._until_s:
            self._set(now_s)
        elif self._task is not None:
            self._late = True
            self._task.cancel()
