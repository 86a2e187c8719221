"""Appends from an event loop: one fdatasync for all that wait together, in one thread.

Records are written by the loop itself at the end of its turn, into the page cache, as long as the disk is idle and the
segment has room: handing a record to a thread and back costs more than writing it, and a thread that writes contends
with the loop for the interpreter. Then the thread does nothing but sync, for those that need it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from orchestrator.spool.framing import frame_size_bytes
from orchestrator.spool.records import (
    FullReason,
    Offered,
    Outcome,
    Position,
    Rank,
    Record,
    SpoolClosed,
    SpoolError,
    SpoolFull,
)

T = TypeVar("T")

AHEAD_BYTES = 256 * 1024
"""Written by the loop between two syncs that nobody waits for."""
Put = Callable[[Sequence[Offered], int], list[Outcome]]
"""Writes some of these records, from the one at a place on, and says what became of them: of one at least."""
Sync = Callable[[Position], None]
Quick = Callable[[int], bool]
"""Whether so many bytes of records could be written now without waiting for the disk."""


class _Waiting(Offered, frozen=True):
    done: asyncio.Future[Position]


Told = list[tuple[_Waiting, Outcome]]
Durable = list[tuple[_Waiting, Position]]


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
        self._pending_bytes = 0
        self._job: asyncio.Future[None] | None = None
        self._turning = False
        """Whether the end of this turn writes what is pending."""
        self._closed = False
        self._ended = False
        # The thread is started by the first use.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    def append(self, record: Record, durable: bool, rank: Rank) -> asyncio.Future[Position]:
        """Appends one record; the future raises SpoolError. When cancelled, the record may still be written.

        Raises SpoolClosed and SpoolFull at once where there is nothing to wait for.
        """
        if self._closed:
            raise SpoolClosed("the spool was closed")
        # What closes something is bounded by what was begun, and nobody would write it later.
        if len(self._pending) >= self._pending_max and rank is not Rank.CLOSES:
            raise SpoolFull(record.kind, FullReason.PENDING)
        done: asyncio.Future[Position] = asyncio.Future()
        size_bytes = frame_size_bytes(record)
        self._pending.append(_Waiting(record, size_bytes, durable, rank, done))
        self._pending_bytes += size_bytes
        if self._job is None and not self._turning:
            self._turning = True
            loop = asyncio.get_running_loop()
            loop.call_soon(self._turn, loop)
        return done

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
        _tell([(waiting, SpoolClosed("the spool was closed")) for waiting in self._take()])

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of a turn: write here what can be, or hand all of it to the thread."""
        self._turning = False
        if self._ended or self._job is not None or not self._pending:
            return
        if not self._quick(self._pending_bytes):
            self._start(loop)
            return
        self._unsynced_bytes += self._pending_bytes
        durable = self._put_all(self._take(), _tell)
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

    def _take(self) -> list[_Waiting]:
        """What is pending, which is then no more."""
        taken, self._pending, self._pending_bytes = self._pending, [], 0
        return taken

    def _put_all(self, batch: list[_Waiting], tell: Callable[[Told], object]) -> Durable:
        """Writes all, tells those that need no sync, and returns the others."""
        durable: Durable = []
        at = 0
        while at < len(batch):
            told: Told = []
            for outcome in self._put(batch, at):
                waiting = batch[at]
                at += 1
                if waiting.durable and isinstance(outcome, Position):
                    durable.append((waiting, outcome))
                else:
                    told.append((waiting, outcome))
            tell(told)
        return durable

    def _durable(self, batch: Durable, job: asyncio.Future[None], loop: asyncio.AbstractEventLoop) -> None:
        """What the loop wrote is on the disk, or the disk failed."""
        failure = _failure(job)
        for waiting, position in batch:
            if failure is not None:
                _fail(waiting, failure)
            elif not waiting.done.done():
                waiting.done.set_result(position)
        self._ended_job(loop)

    def _start(self, loop: asyncio.AbstractEventLoop) -> None:
        batch = self._take()
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
        durable = self._put_all(batch, lambda told: loop.call_soon_threadsafe(_tell, told))
        if not durable:
            return
        try:
            self._sync(max(position for _, position in durable))
            told: Told = list(durable)
        except SpoolError as failure:
            told = [(waiting, failure) for waiting, _ in durable]
        loop.call_soon_threadsafe(_tell, told)


def _tell(told: Told) -> None:
    for waiting, outcome in told:
        if waiting.done.done():
            continue  # whoever waited was cancelled
        if isinstance(outcome, Position):
            waiting.done.set_result(outcome)
        else:
            waiting.done.set_exception(outcome)


def _failure(job: asyncio.Future[None]) -> BaseException | None:
    return SpoolClosed("the spool was closed") if job.cancelled() else job.exception()


def _fail(waiting: _Waiting, failure: BaseException) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(failure)
