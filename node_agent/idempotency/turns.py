"""The store from an event loop: one thread, and one transaction for all that wait at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol, TypeVar, cast

from node_agent.idempotency.store import KeyStore, StoreError, StoreFull

T = TypeVar("T")
Action = Callable[[KeyStore], T]

PENDING_MAX = 4_096


class Turns(Protocol):
    """Does something to the store, durably, without holding up the loop."""

    async def do(self, action: Action[T]) -> T:
        """Return what `action` returns, once all that it did is on the disk. Raises StoreError."""

    async def close(self) -> None:
        """Do what waits, then close. Raises StoreError."""


@dataclass(slots=True)
class _Waiting:
    action: Action[object]
    done: asyncio.Future[object]


class StoreThread:
    """Runs actions in the order in which they come. What waits while the disk is busy shares one commit."""

    def __init__(self, store: KeyStore, pending_max: int = PENDING_MAX) -> None:
        self._store = store
        self._pending_max = pending_max
        self._pending: list[_Waiting] = []
        self._job: asyncio.Future[None] | None = None
        self._closed = False
        # The thread is started by the first use.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="keys")

    async def do(self, action: Action[T]) -> T:
        """Return what `action` returns, once all that it did is on the disk. Raises StoreError.

        A caller that is cancelled may leave it done.
        """
        if self._closed:
            raise StoreError("the store was closed")
        if len(self._pending) >= self._pending_max:
            raise StoreFull("too many wait for the disk")
        loop = asyncio.get_running_loop()
        waiting = _Waiting(action, loop.create_future())
        self._pending.append(waiting)
        if self._job is None:
            self._start(loop)
        return cast(T, await waiting.done)

    async def close(self) -> None:
        """Do what waits, then close. Raises StoreError."""
        self._closed = True
        while self._job is not None:
            await asyncio.wait([self._job])
            # The callback of the job runs in the turn after it ends, and may begin the next one.
            await asyncio.sleep(0)
        await asyncio.get_running_loop().run_in_executor(self._thread, self._store.close)
        self._thread.shutdown(wait=True)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._pending = self._pending, []
        self._job = loop.run_in_executor(self._thread, self._work, batch, loop)
        self._job.add_done_callback(lambda job: self._finish(batch, job, loop))

    def _finish(self, batch: list[_Waiting], job: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
        self._job = None
        failure = StoreError("the store was closed") if job.cancelled() else job.exception()
        for waiting in batch:
            if failure is not None and not waiting.done.done():
                waiting.done.set_exception(failure)
        if self._pending:
            self._start(loop)

    def _work(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: all in one transaction or, where that fails, each in one of its own."""
        told: list[tuple[_Waiting, object]] = []
        try:
            with self._store.transaction():
                for waiting in batch:
                    told.append((waiting, _outcome(waiting.action, self._store)))
        except StoreError as failure:
            if len(batch) == 1:
                told = [(batch[0], failure)]
            else:
                for waiting in batch:
                    self._work([waiting], loop)
                return
        for waiting, outcome in told:
            loop.call_soon_threadsafe(_tell, waiting, outcome)


def _outcome(action: Action[object], store: KeyStore) -> object:
    """Return what an action returns or, as a value, that there was no room: that undoes nobody else's work."""
    try:
        return action(store)
    except StoreFull as full:
        return full


def _tell(waiting: _Waiting, outcome: object) -> None:
    if waiting.done.done():
        return
    if isinstance(outcome, StoreError):
        waiting.done.set_exception(outcome)
    else:
        waiting.done.set_result(outcome)
