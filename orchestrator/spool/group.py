"""Appends from an event loop: one fdatasync for all that wait together, in one thread.

Records are written by the loop itself at the end of its turn, into the page cache, as long as the disk is idle and the
segment has room: handing a record to a thread and back costs more than writing it, and a thread that writes contends
with the loop for the interpreter. Then the thread does nothing but sync, for those that need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

from orchestrator.spool.records import FullReason, Position, Rank, Record, SpoolClosed, SpoolError, SpoolFull

T = TypeVar("T")

AHEAD_BYTES = 256 * 1024
"""Written by the loop between two syncs that nobody waits for."""
Put = Callable[[Record, bool, Rank], Position]
Sync = Callable[[Position], None]
Quick = Callable[[Sequence[Record]], bool]
"""Whether these records could be written now without waiting for the disk."""


@dataclass(slots=True)
class _Waiting:
    record: Record
    durable: bool
    rank: Rank
    done: asyncio.Future[Position]


class GroupWriter:
    """Collects appends while the disk is busy and hands them over together. It belongs to one event loop."""

    def __init__(self, put: Put, sync: Sync, quick: Quick, ahead: Callable[[], None], pending_max: int) -> None:
        """`ahead` brings what was written onto the disk before anybody waits for that."""
        self._put = put
        self._sync = sync
        self._ahead = ahead
        self._unsynced_bytes = 0
        self._syncing: asyncio.Future[None] | None = None
        self._quick = quick
        self._pending_max = pending_max
        self._pending: list[_Waiting] = []
        self._job: asyncio.Future[None] | None = None
        self._turning = False
        """Whether the end of this turn writes what is pending."""
        self._closed = False
        self._ended = False
        # The thread is started by the first use.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    async def append(self, record: Record, durable: bool, rank: Rank) -> Position:
        """Appends one record. Raises SpoolError; when cancelled, the record may still be written."""
        if self._closed:
            raise SpoolClosed("the spool was closed")
        if len(self._pending) >= self._pending_max:
            raise SpoolFull(record.kind, FullReason.PENDING)
        loop = asyncio.get_running_loop()
        waiting = _Waiting(record, durable, rank, loop.create_future())
        self._pending.append(waiting)
        if self._job is None and not self._turning:
            self._turning = True
            loop.call_soon(self._turn, loop)
        return await waiting.done

    async def run(self, action: Callable[[], T]) -> T:
        """Runs one blocking action in the thread of the spool."""
        if self._closed:
            raise SpoolClosed("the spool was closed")
        return await asyncio.get_running_loop().run_in_executor(self._thread, action)

    async def drain(self) -> None:
        """Refuses new appends and waits until those that wait are written. The disk bounds the wait."""
        self._closed = True
        while self._job is not None or self._syncing is not None or self._turning:
            under_way = [one for one in (self._job, self._syncing) if one is not None]
            if under_way:
                await asyncio.wait(under_way)
            # The callbacks of the job run in the turn after it ends, and may begin the next one.
            await asyncio.sleep(0)

    def close(self) -> None:
        """Ends the thread. Appends that were not handed over yet get SpoolClosed."""
        self._closed = self._ended = True
        self._thread.shutdown(wait=True)
        pending, self._pending = self._pending, []
        for waiting in pending:
            if not waiting.done.done():
                waiting.done.set_exception(SpoolClosed("the spool was closed"))

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of a turn: write here what can be, or hand all of it to the thread."""
        self._turning = False
        if self._ended or self._job is not None or not self._pending:
            return
        if not self._quick([waiting.record for waiting in self._pending]):
            self._start(loop)
            return
        batch, self._pending = self._pending, []
        durable: list[tuple[_Waiting, Position]] = []
        for waiting in batch:
            try:
                position = self._put(waiting.record, waiting.durable, waiting.rank)
            except SpoolError as failure:
                _fail(waiting, failure)
                continue
            self._unsynced_bytes += len(waiting.record.data)
            if waiting.durable:
                durable.append((waiting, position))
            else:
                _tell(waiting, position)
        if durable:
            self._unsynced_bytes = 0
            self._job = loop.run_in_executor(self._thread, self._sync, max(position for _, position in durable))
            self._job.add_done_callback(lambda job: self._durable(durable, job, loop))
        elif self._unsynced_bytes > AHEAD_BYTES and self._syncing is None:
            # Else the end of a segment syncs all of it, and everybody waits for that.
            self._unsynced_bytes = 0
            self._syncing = loop.run_in_executor(self._thread, self._ahead)
            self._syncing.add_done_callback(self._synced)

    def _synced(self, syncing: asyncio.Future[None]) -> None:
        self._syncing = None
        if not syncing.cancelled():
            syncing.exception()  # the next append tells what it was

    def _durable(
        self, batch: list[tuple[_Waiting, Position]], job: asyncio.Future[None], loop: asyncio.AbstractEventLoop
    ) -> None:
        """What the loop wrote is on the disk, or the disk failed."""
        failure = _failure(job)
        for waiting, position in batch:
            if failure is None:
                _tell(waiting, position)
            else:
                _fail(waiting, failure)
        self._ended_job(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        batch, self._pending = self._pending, []
        self._job = loop.run_in_executor(self._thread, self._write, batch, loop)
        self._job.add_done_callback(lambda job: self._finish(batch, job, loop))

    def _finish(self, batch: list[_Waiting], job: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
        failure = _failure(job)
        for waiting in batch:
            if failure is not None:
                _fail(waiting, failure)
        self._ended_job(loop)

    def _ended_job(self, loop: asyncio.AbstractEventLoop) -> None:
        self._job = None
        self._turn(loop)

    def _write(self, batch: list[_Waiting], loop: asyncio.AbstractEventLoop) -> None:
        """In the thread: writes all, tells those that need no sync, syncs once, tells the others."""
        synced: list[tuple[_Waiting, Position]] = []
        for waiting in batch:
            try:
                position = self._put(waiting.record, waiting.durable, waiting.rank)
            except SpoolError as failure:
                loop.call_soon_threadsafe(_fail, waiting, failure)
                continue
            if waiting.durable:
                synced.append((waiting, position))
            else:
                loop.call_soon_threadsafe(_tell, waiting, position)
        if not synced:
            return
        try:
            self._sync(max(position for _, position in synced))
        except SpoolError as failure:
            for waiting, _ in synced:
                loop.call_soon_threadsafe(_fail, waiting, failure)
            return
        for waiting, position in synced:
            loop.call_soon_threadsafe(_tell, waiting, position)


def _tell(waiting: _Waiting, position: Position) -> None:
    if not waiting.done.done():
        waiting.done.set_result(position)


def _failure(job: asyncio.Future[None]) -> BaseException | None:
    return SpoolClosed("the spool was closed") if job.cancelled() else job.exception()


def _fail(waiting: _Waiting, failure: BaseException) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(failure)
