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

from orchestrator.spool.framing import offer
from orchestrator.spool.records import (
    FullReason,
    Holder,
    Offered,
    Outcome,
    Position,
    Rank,
    RecordId,
    RecordKind,
    SpoolClosed,
    SpoolFull,
)

T = TypeVar("T")
# By way of its class, a member of an enumeration costs as much as a call.
_CLOSES = Rank.CLOSES

AHEAD_BYTES = 256 * 1024
"""Written by the loop between two syncs that nobody waits for."""
Put = Callable[[Sequence[Offered], int], list[Outcome]]
"""Writes some of these records, from the one at a place on, and says what became of them: of one at least."""
Sync = Callable[[Position], None]
Quick = Callable[[int], bool]
"""Whether so many bytes of records could be written now without waiting for the disk."""


Done = asyncio.Future[Position]
Told = Sequence[tuple[Done, Position | BaseException]]
Durable = list[tuple[Done, Position]]


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
        self._pending: list[Offered] = []
        self._waiting: list[Done] = []
        """Who waits for each of these."""
        self._pending_bytes = 0
        self._given_up: dict[Done, Callable[[], object]] = {}
        """What is called once a record that nobody waits for any more is written. Bounded: by those that wait."""
        self._job: asyncio.Future[Durable] | None = None
        self._turning = False
        """Whether the end of this turn writes what is pending."""
        self._loop: asyncio.AbstractEventLoop
        """The loop whose turn it is, or which the thread works for; none before the first append."""
        self._closed = False
        self._ended = False
        # The thread is started by the first use.
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="spool")

    def append(
        self,
        kind: RecordKind,
        record_id: RecordId,
        data: bytes,
        *,
        durable: bool,
        retain_until_ms: int = 0,
        rank: Rank = Rank.NEW,
        holder: Holder | None = None,
    ) -> Done:
        """Appends one record; the future raises SpoolError. When cancelled, the record may still be written.

        Raises BadRecord, SpoolClosed and SpoolFull at once where there is nothing to wait for.
        """
        record = offer(kind, record_id, data, retain_until_ms, durable, rank, holder)
        if self._closed:
            raise SpoolClosed("the spool was closed")
        # What closes something is bounded by what was begun, and nobody would write it later.
        if rank is not _CLOSES and len(self._waiting) >= self._pending_max:
            raise SpoolFull(kind, FullReason.PENDING)
        if self._job is None and not self._turning:
            # Once a turn: whoever asks for the loop, or makes a future without it, calls the kernel.
            self._loop = asyncio.get_running_loop()
            self._turning = True
            self._loop.call_soon(self._turn, self._loop)
        done: Done = self._loop.create_future()
        self._pending.append(record)
        self._waiting.append(done)
        self._pending_bytes += record.size_bytes
        return done

    def once_written(self, done: Done, then: Callable[[], object]) -> None:
        """Calls `then` in the loop once the record of an append that was cancelled is written; never if it is not."""
        if done.cancelled():
            self._given_up[done] = then
        elif done.done() and done.exception() is None:
            then()

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
        _, waiting = self._take()
        self._tell([(done, SpoolClosed("the spool was closed")) for done in waiting])

    def _turn(self, loop: asyncio.AbstractEventLoop) -> None:
        """At the end of a turn: write here what can be, or hand all of it to the thread."""
        self._turning = False
        if self._ended or self._job is not None or not self._waiting:
            return
        size_bytes = self._pending_bytes
        offered, waiting = self._take()
        if not self._quick(size_bytes):
            self._begin(loop, waiting, lambda: self._write(offered, waiting, loop))
            return
        self._unsynced_bytes += size_bytes
        try:
            durable = self._put_all(offered, waiting, self._tell)
        except Exception as failure:
            # Nobody else holds those that wait.
            self._tell([(done, failure) for done in waiting])
            raise
        if durable:
            self._unsynced_bytes = 0
            self._begin(loop, [done for done, _ in durable], lambda: self._sync_all(durable))
        elif self._unsynced_bytes > AHEAD_BYTES and self._syncing is None:
            # Else the end of a segment syncs all of it, and everybody waits for that.
            self._unsynced_bytes = 0
            self._syncing = loop.run_in_executor(self._thread, self._ahead)
            self._syncing.add_done_callback(self._synced)

    def _synced(self, syncing: asyncio.Future[None]) -> None:
        self._syncing = None
        if not syncing.cancelled():
            syncing.exception()  # the next append tells what it was

    def _take(self) -> tuple[list[Offered], list[Done]]:
        """What is pending, which is then no more."""
        taken = (self._pending, self._waiting)
        self._pending, self._waiting, self._pending_bytes = [], [], 0
        return taken

    def _put_all(self, offered: list[Offered], waiting: list[Done], tell: Callable[[Told], object]) -> Durable:
        """Writes all, tells those that need no sync, and returns the others."""
        durable: Durable = []
        at, count = 0, len(offered)
        while at < count:
            told: list[tuple[Done, Position | BaseException]] = []
            for outcome in self._put(offered, at):
                done = waiting[at]
                if offered[at].durable and type(outcome) is Position:
                    durable.append((done, outcome))
                else:
                    told.append((done, outcome))
                at += 1
            if told:
                tell(told)
        return durable

    def _begin(self, loop: asyncio.AbstractEventLoop, waiting: list[Done], work: Callable[[], Durable]) -> None:
        """Has the thread do what it then returns the durable records of; `waiting` are told where it fails."""
        self._job = loop.run_in_executor(self._thread, work)
        self._job.add_done_callback(lambda job: self._finish(waiting, job, loop))

    def _finish(self, waiting: list[Done], job: asyncio.Future[Durable], loop: asyncio.AbstractEventLoop) -> None:
        """What was to be on the disk is there, or the disk failed."""
        failure = SpoolClosed("the spool was closed") if job.cancelled() else job.exception()
        self._tell(job.result() if failure is None else [(done, failure) for done in waiting])
        self._job = None
        self._turn(loop)

    def _write(self, offered: list[Offered], waiting: list[Done], loop: asyncio.AbstractEventLoop) -> Durable:
        """In the thread: writes all, has those told that need no sync, and syncs once for the others."""
        return self._sync_all(self._put_all(offered, waiting, lambda told: loop.call_soon_threadsafe(self._tell, told)))

    def _sync_all(self, durable: Durable) -> Durable:
        """In the thread: brings these onto the disk, and returns them."""
        if durable:
            self._sync(max(position for _, position in durable))
        return durable

    def _tell(self, told: Told) -> None:
        for done, outcome in told:
            try:
                if type(outcome) is Position:
                    done.set_result(outcome)
                else:
                    done.set_exception(outcome)
            except asyncio.InvalidStateError:
                # Whoever waited was told before the rest of its batch failed, or was cancelled and may not know it yet.
                if done.cancelled() and not self._ended:
                    self._loop.call_soon(self._end_given_up, done, type(outcome) is Position)

    def _end_given_up(self, done: Done, written: bool) -> None:
        then = self._given_up.pop(done, None)
        if then is not None and written:
            then()
