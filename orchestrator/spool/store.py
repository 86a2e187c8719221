"""The spool: records appended to segments in one folder, durable on demand, deleted when shipped and old enough.

One process writes; a lock in the folder holds others off. Every public method may be called from any thread. The
`_async` methods run in one thread of the spool's own, so that no event loop waits for the disk; durable appends that
wait at the same time share one fdatasync.

What happens at the bounds: from the half on, records that can be spared are refused, such as those of refusals; then
new durable ones (they announce regulated requests), then all new ones, and only at the very end those that close
something admitted before, such as its usage. Before any of these, whoever holds more than a share of what is left gets
no new ones (`holders`). A disk that others fill is a bound as well: some of it is kept for closing records.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate, islice
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from orchestrator.spool.backlog import Backlog
from orchestrator.spool.ballast import BALLAST_BYTES_MAX, Ballast
from orchestrator.spool.framing import SEGMENT_HEADER_BYTES, encode_frames, offer
from orchestrator.spool.group import GroupWriter
from orchestrator.spool.holders import Holders
from orchestrator.spool.records import (
    Entry,
    FullReason,
    Holder,
    Offered,
    Outcome,
    Position,
    Rank,
    RecordId,
    RecordKind,
    Released,
    SpoolBroken,
    SpoolClosed,
    SpoolCorrupt,
    SpoolError,
    SpoolFull,
)
from orchestrator.spool.room import BACKLOG_MAX, room_of
from orchestrator.spool.segments import (
    NO_SPACE,
    Segment,
    check_sequence,
    create_segment,
    delete_until,
    disk,
    entries_of,
    find_known,
    is_unborn,
    list_segments,
    lock_folder,
    open_segment,
    read_shipped,
    scan_file,
    write_all,
    write_shipped,
)

PENDING_MAX: Final = 1024
RUN_MAX: Final = 64
"""Records of one write. What was looked up for all of them is looked up again where only the first can be written."""


class Spool:
    """A bounded, durable, append-only store of records in one folder."""

    def __init__(
        self,
        directory: Path,
        *,
        capacity_bytes: int,
        segment_bytes: int,
        regulated_reserve_bytes: int | None = None,
        closing_reserve_bytes: int | None = None,
        backlog_max: int = BACKLOG_MAX,
        pending_max: int = PENDING_MAX,
        holder_of: Callable[[RecordKind, bytes], Holder | None] = lambda kind, data: None,
    ) -> None:
        """Opens the spool and recovers it: a cut last write is cut off, anything else that is damaged is refused.

        `regulated_reserve_bytes` (default a quarter of the capacity) is kept from new durable records;
        `closing_reserve_bytes` (default a sixteenth, at most that) from all new ones. `backlog_max` bounds the records
        that wait to be shipped, `pending_max` the appends that wait for the disk and close nothing. `holder_of` says
        whose a record is that is found and not shipped; what was is nobody's. Raises ValueError for bounds that make no
        sense, SpoolLocked, SpoolCorrupt and SpoolBroken.
        """
        self._room = room_of(
            capacity_bytes, segment_bytes, regulated_reserve_bytes, closing_reserve_bytes, backlog_max
        )
        self._folder = directory
        self._segment_bytes = segment_bytes
        self._lock = threading.Lock()
        self._backlog = Backlog()
        self._holders = Holders()
        self._holder_of = holder_of
        self._segments: list[Segment] = []
        self._sealed_bytes = 0
        """Of all segments but the active one, the last."""
        self._broken: str | None = None
        self._closed = False
        self._descriptor = -1
        self._torn_bytes = 0
        self._folder_lock = lock_folder(directory)
        try:
            self._shipped = self._recover()
        except SpoolError:
            self._close_descriptors()
            raise
        self._synced = self._end()
        self._ballast = Ballast(directory, min(self._room.closing_bytes, BALLAST_BYTES_MAX))
        self._ballast.take()
        self._group = GroupWriter(self._put, self._sync, self._is_quick, self._sync_ahead, pending_max)
        self.once_written = self._group.once_written
        self.append_async = self._group.append
        """As `append`, without blocking the event loop. A caller that is cancelled may leave the record written.

        An append that is not durable waits at most for the sync that is under way. What is clear at once is raised
        at once: BadRecord, SpoolClosed, and SpoolFull where too many wait.
        """

    @property
    def end(self) -> Position:
        """The position after the last record."""
        with self._lock:
            return self._end()

    @property
    def shipped(self) -> Position:
        """The position up to which records were released; it survives a restart."""
        return self._shipped

    @property
    def used_bytes(self) -> int:
        """Bytes of all segments."""
        with self._lock:
            return self._sealed_bytes + self._segments[-1].size_bytes

    @property
    def free_bytes(self) -> int:
        """Bytes up to the capacity, reserves included."""
        return max(0, self._room.capacity_bytes - self.used_bytes)

    @property
    def backlog(self) -> int:
        """Records that wait to be shipped."""
        return len(self._backlog)

    def expect(self, holders: int) -> None:
        """Say how many holders there are in all, some of which may have nothing here yet."""
        self._holders.expected = holders

    @property
    def torn_bytes(self) -> int:
        """Bytes of a cut last write that were cut off when this spool was opened."""
        return self._torn_bytes

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
    ) -> Position:
        """Appends a record and returns where it begins; when `durable`, it is on the disk by then.

        `rank` says who gives way when room runs out, `holder` out of whose share it is. An id that waits to be shipped
        already is not written twice: the same record gives its old position, another one SpoolConflict. Raises
        SpoolFull, BadRecord, SpoolBroken, SpoolClosed. May block on the disk.
        """
        (outcome,) = self._put((offer(kind, record_id, data, retain_until_ms, durable, rank, holder),), 0)
        if not isinstance(outcome, Position):
            raise outcome
        if durable:
            self._sync(outcome)
        return outcome

    def read_from(self, position: Position | None = None) -> Iterator[Entry]:
        """The records from `position` (default: what is not shipped yet) to the end as it is now.

        Records that were released and deleted are passed over. Raises SpoolCorrupt and SpoolBroken. May block.
        """
        with self._lock:
            self._check_open()
            start = self._shipped if position is None else position
            end = self._end()
            segments = [segment for segment in self._segments if segment.number >= start.segment]
        for segment in segments:
            offset = start.offset if segment.number == start.segment else SEGMENT_HEADER_BYTES
            size_bytes = end.offset if segment.number == end.segment else segment.size_bytes
            yield from entries_of(segment, offset, size_bytes)

    def read_batch(self, position: Position | None = None, *, records_max: int) -> tuple[Entry, ...]:
        """The first `records_max` records of `read_from`."""
        return tuple(islice(self.read_from(position), records_max))

    def read_back(self) -> Iterator[Entry]:
        """The records that are not shipped yet, the last one first. Raises SpoolCorrupt and SpoolBroken. May block."""
        with self._lock:
            self._check_open()
            start, segments = self._shipped, list(self._segments)
        for segment in reversed(segments):
            if segment.number < start.segment:
                return
            offset = start.offset if segment.number == start.segment else SEGMENT_HEADER_BYTES
            yield from reversed(list(entries_of(segment, offset, segment.size_bytes)))

    async def read_batch_async(self, position: Position | None = None, *, records_max: int) -> tuple[Entry, ...]:
        """As `read_batch`, without blocking the event loop."""
        return await self._group.run(lambda: self.read_batch(position, records_max=records_max))

    def release(self, position: Position, *, now_ms: int) -> Released:
        """Notes that all records before `position` are shipped, and deletes what may go.

        A segment goes when all of it is shipped and every record in it is past its retention; segments go in order.
        Nothing deletes earlier. A position before the shipped one changes nothing. Raises ValueError for a position
        beyond the end, SpoolCorrupt, SpoolBroken. May block.
        """
        with self._lock:
            self._check_open()
            if position > self._end():
                raise ValueError("expected a position of this spool")
            if position > self._shipped:
                write_shipped(self._folder, position)
                self._shipped = position
                self._backlog.forget(position)
            return self._delete(now_ms)

    async def release_async(self, position: Position, *, now_ms: int) -> Released:
        """As `release`, without blocking the event loop."""
        return await self._group.run(lambda: self.release(position, now_ms=now_ms))

    def verify(self) -> int:
        """Reads every record, those shipped and kept included, and returns how many there are. Raises SpoolCorrupt."""
        return sum(1 for _ in self.read_from(Position(0, 0)))

    def close(self) -> None:
        """Ends the spool; what was appended is made durable. Appends that still wait get SpoolClosed. May block."""
        self._group.close()
        with self._lock:
            if self._closed:
                return
            self._closed = True
            try:
                if self._broken is None:
                    with disk("syncing"):
                        os.fdatasync(self._descriptor)
            finally:
                self._close_descriptors()

    async def close_async(self) -> None:
        """As `close`, after the appends that wait are written."""
        await self._group.drain()
        self.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def _end(self) -> Position:
        last = self._segments[-1]
        return Position(last.number, last.size_bytes)

    def _check_open(self) -> None:
        if self._closed:
            raise SpoolClosed("the spool was closed")

    def _check_writable(self) -> None:
        self._check_open()
        if self._broken is not None:
            raise SpoolBroken(self._broken)

    def _recover(self) -> Position:
        """Brings the folder into order and returns the shipped position."""
        segments = list_segments(self._folder)
        shipped = read_shipped(self._folder)
        if segments and is_unborn(segments[-1]):
            with disk("removing a segment that was never begun"):
                segments.pop().path.unlink()
        check_sequence(segments, shipped)
        if not segments:
            self._roll(1)
            return self._end()
        self._segments = segments
        origin = shipped if shipped is not None else Position(1, SEGMENT_HEADER_BYTES)
        for segment in segments:
            if segment.number >= origin.segment:
                self._recover_segment(segment, segment is segments[-1], origin)
        self._sealed_bytes = sum(segment.size_bytes for segment in segments[:-1])
        self._descriptor = open_segment(segments[-1])
        with disk("recovering its last segment"):
            os.ftruncate(self._descriptor, segments[-1].size_bytes)
            # What a process left in the page cache counts as durable from here on.
            os.fsync(self._descriptor)
        if origin > self._end():
            # A record that was shipped and never synced can be lost with the power. The next records take its place,
            # so the position must go back with it, or they would count as shipped.
            origin = self._end()
            write_shipped(self._folder, origin)
        return origin

    def _recover_segment(self, segment: Segment, last: bool, origin: Position) -> None:
        scan = scan_file(segment)
        if scan.torn_bytes and not last:
            raise SpoolCorrupt(segment.number, scan.end, "a later segment follows the damage")
        self._torn_bytes += scan.torn_bytes
        segment.size_bytes = scan.end
        waiting = [frame for frame in scan.frames if Position(segment.number, frame.offset) >= origin]
        tags = self._backlog.tags([frame.record_id for frame in waiting])
        self._backlog.add(segment.number, tags, [frame.offset for frame in waiting])
        held = ((self._holder_of(frame.kind, frame.data), frame.end - frame.offset) for frame in waiting)
        self._holders.add(segment.number, held)

    def _put(self, offered: Sequence[Offered], begin: int) -> list[Outcome]:
        """Writes the records from `begin` on that one write can take, without syncing them.

        Returns what became of them, in their order: of one at least. The next call takes the others.
        """
        with self._lock:
            return self._put_run(offered, begin)

    def _put_run(self, offered: Sequence[Offered], begin: int) -> list[Outcome]:
        if self._closed or self._broken is not None:
            return [SpoolClosed("the spool was closed") if self._closed else SpoolBroken(self._broken)]
        run = offered[begin : begin + RUN_MAX]
        ids, sizes = [one.record_id for one in run], [one.size_bytes for one in run]
        tags = self._backlog.tags(ids)
        may_be_known = self._backlog.may_hold(tags)
        if may_be_known or len(set(ids)) < len(ids) or not self._is_easy(len(run), sum(sizes)):
            count, others = self._admit(run, may_be_known)
            if not count:
                return others
            run, sizes, tags = run[:count], sizes[:count], tags[:count]
        active = self._segments[-1]
        number, end = active.number, active.size_bytes
        try:
            self._write(encode_frames(run, active.salt or b"", end), active, run[0].kind)
        except SpoolError as failure:
            return self._put_again(run, failure)
        offsets = list(accumulate(sizes, initial=end))
        active.size_bytes = offsets.pop()
        retain_until_ms = max([one.retain_until_ms for one in run])
        if retain_until_ms > (active.retain_until_ms or 0):
            active.retain_until_ms = retain_until_ms
        self._backlog.add(number, tags, offsets)
        self._holders.add(number, [(one.holder, one.size_bytes) for one in run])
        return [Position(number, offset) for offset in offsets]

    def _is_easy(self, count: int, size_bytes: int) -> bool:
        """Whether the active segment takes so many new records, and they are so few that none is refused."""
        end, room = self._segments[-1].size_bytes + size_bytes, self._room
        easy = end <= self._segment_bytes and end <= room.easy_bytes - self._sealed_bytes
        return easy and len(self._backlog) + count <= room.backlog_max // 2 and self._ballast.held

    def _admit(self, run: Sequence[Offered], may_be_known: bool) -> tuple[int, list[Outcome]]:
        """How many, from the first on, go into the active segment, new or not; if none, what became of the first."""
        placed: set[RecordId] = set()
        backlog, room = self._backlog, self._room
        end, waiting = self._segments[-1].size_bytes, len(backlog)
        for one in run:
            alike = backlog.find(one.record_id) if may_be_known else ()
            rolls = end + one.size_bytes > self._segment_bytes
            if placed and (rolls or alike or one.record_id in placed):
                break  # first, what is placed is written
            try:
                if alike and (known := find_known(self._segments, one, alike)) is not None:
                    return 0, [known]
            except SpoolError as failure:
                return 0, [failure]
            reason = room.refusal(one, self._sealed_bytes + end, waiting, self._holders)
            if reason is None and one.rank is not Rank.CLOSES and not (self._ballast.held or self._ballast.take()):
                # Whatever were admitted now might not be closed.
                reason = FullReason.DISK
            if reason is not None:
                return len(placed), [SpoolFull(one.kind, reason)]
            if rolls:
                try:
                    self._roll_for(one.kind)
                except SpoolError as failure:
                    return 0, self._put_again((one,), failure)
                end = SEGMENT_HEADER_BYTES
            placed.add(one.record_id)
            end += one.size_bytes
            waiting += 1
        return len(placed), []

    def _put_again(self, offered: Sequence[Offered], failure: SpoolError) -> list[Outcome]:
        """Writes what one write could not take: each alone, or with the room that is kept for what closes something."""
        if len(offered) > 1:
            return [outcome for one in offered for outcome in self._put_run((one,), 0)]
        if self._broken is None and offered[0].rank is Rank.CLOSES and self._ballast.give_up():
            return self._put_run(offered, 0)
        return [failure]

    def _is_quick(self, size_bytes: int) -> bool:
        """Whether so many bytes of records go into the active segment, and nobody is at the disk."""
        return not self._lock.locked() and self._segments[-1].size_bytes + size_bytes <= self._segment_bytes

    def _write(self, frames: bytes, active: Segment, kind: RecordKind) -> None:
        try:
            write_all(self._descriptor, frames)
        except OSError as failure:
            try:
                # A part of them may be there: without this cut, the next record would follow damage.
                os.ftruncate(self._descriptor, active.size_bytes)
            except OSError:
                self._break("writing", failure)
            if failure.errno in NO_SPACE and self._broken is None:
                raise SpoolFull(kind, FullReason.DISK) from failure
            self._break("writing", failure)
            raise SpoolBroken(self._broken) from failure

    def _roll_for(self, kind: RecordKind) -> None:
        try:
            self._roll(self._segments[-1].number + 1)
        except SpoolBroken as failure:
            cause = failure.__cause__
            if isinstance(cause, OSError) and cause.errno in NO_SPACE and self._broken is None:
                raise SpoolFull(kind, FullReason.DISK) from cause
            raise

    def _roll(self, number: int) -> None:
        """Seals the active segment, if there is one, and begins the next."""
        if self._descriptor >= 0:
            self._sync_active()
        with disk("beginning a segment"):
            segment, descriptor = create_segment(self._folder, number)
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._sealed_bytes += self._segments[-1].size_bytes
        self._descriptor = descriptor
        self._segments.append(segment)

    def _sync(self, position: Position) -> None:
        """Makes everything up to and with the record at `position` durable."""
        with self._lock:
            if position >= self._synced:
                self._check_writable()
                self._sync_active()

    def _sync_ahead(self) -> None:
        """Bring what is written onto the disk while others go on writing. Promises nothing to anybody."""
        with self._lock:
            if self._closed or self._broken is not None:
                return
            descriptor = os.dup(self._descriptor)
        try:
            os.fdatasync(descriptor)
        except OSError as failure:
            with self._lock:
                self._break("syncing", failure)
        finally:
            os.close(descriptor)

    def _sync_active(self) -> None:
        try:
            os.fdatasync(self._descriptor)
        except OSError as failure:
            # The kernel may have dropped the pages: a second sync that succeeds would prove nothing.
            self._break("syncing", failure)
            raise SpoolBroken(self._broken) from failure
        self._synced = self._end()

    def _break(self, doing: str, failure: OSError) -> None:
        if self._broken is None:
            self._broken = f"the spool failed while {doing}: {failure.strerror}"

    def _delete(self, now_ms: int) -> Released:
        shipped = [segment for segment in self._segments if segment.number < self._shipped.segment]
        deleted = freed_bytes = 0
        for segment in delete_until(self._folder, shipped, now_ms):
            self._segments.remove(segment)
            self._holders.forget(segment.number)
            self._sealed_bytes -= segment.size_bytes
            deleted += 1
            freed_bytes += segment.size_bytes
        return Released(deleted, freed_bytes, len(shipped) - deleted)

    def _close_descriptors(self) -> None:
        for descriptor in (self._descriptor, self._folder_lock):
            if descriptor >= 0:
                os.close(descriptor)
        self._descriptor = self._folder_lock = -1
