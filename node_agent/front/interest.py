"""Somebody wants the answer: for as long as that is so, and not longer, work goes on for it."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

from node_agent.front.http import Client


class Gone(Exception):
    """The client hung up."""


class Interest:
    """`with` round the work for one request. Ends the work with an exception when it is wanted no more.

    It works as `asyncio.timeout` does: the task that serves the client is cancelled, so that every wait in it ends at
    once, and the cancellation becomes the exception when it leaves the block.
    """

    __slots__ = ("_client", "_task", "_why")

    def __init__(self, client: Client) -> None:
        self._client = client
        self._task: asyncio.Task[None] | None = None
        self._why: Exception | None = None

    def __enter__(self) -> Self:
        self._task = self._client.task
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        task, self._task = self._task, None
        self._client.left = None
        why, self._why = self._why, None
        if why is None:
            return
        others = 0 if task is None else task.uncancel()
        # A cancellation from elsewhere is not ours to replace.
        if kind is asyncio.CancelledError and others <= 0:
            try:
                raise why from None
            finally:
                # Its traceback names this frame: as cycles they would keep the whole request until they are looked for.
                del why

    def watch(self) -> None:
        """From now on the client's hanging up ends the work. Only after the body was read."""
        self._client.left = self._left
        if self._client.gone:
            asyncio.get_running_loop().call_soon(self._left)

    def interrupt(self, why: Exception) -> None:
        """End the work with `why`. Does nothing when it has ended or was interrupted before."""
        if self._task is not None and self._why is None:
            self._why = why
            self._task.cancel()

    def _left(self) -> None:
        self.interrupt(Gone())
