"""From an event loop: the loop never waits for the disk, and appends that wait together share one sync."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
import time
from pathlib import Path

import pytest

from orchestrator.spool.group import AHEAD_BYTES
from orchestrator.spool.records import (
    FullReason,
    Position,
    Rank,
    RecordId,
    RecordKind,
    SpoolBroken,
    SpoolClosed,
    SpoolFull,
)
from orchestrator.spool.room import SEGMENT_BYTES_MAX, SEGMENT_BYTES_MIN
from orchestrator.spool.store import Spool

DECISION = RecordKind("decision")
USAGE = RecordKind("usage")
SLOW_S = 0.05


class Disk:
    """Counts the syncs of the real disk and makes each as slow as asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, slow_s: float) -> None:
        self.syncs = 0
        self.fails = False
        self._slow_s = slow_s
        self._fdatasync = os.fdatasync
        monkeypatch.setattr(os, "fdatasync", self._sync)

    def _sync(self, descriptor: int) -> None:
        self.syncs += 1
        time.sleep(self._slow_s)
        if self.fails:
            raise OSError(5, "Input/output error")
        self._fdatasync(descriptor)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch, SLOW_S)


def opened(folder: Path, pending_max: int = 1000) -> Spool:
    return Spool(
        folder, capacity_bytes=16 * SEGMENT_BYTES_MIN, segment_bytes=SEGMENT_BYTES_MIN, pending_max=pending_max
    )


def append(spool: Spool, name: str, *, durable: bool = True) -> asyncio.Future[Position]:
    return spool.append_async(DECISION, RecordId(name), b"x" * 100, durable=durable)


async def test_the_loop_turns_while_the_disk_syncs(tmp_path: Path, disk: Disk) -> None:
    spool = opened(tmp_path)
    waiting = append(spool, "a")
    turns = 0
    while not waiting.done():
        await asyncio.sleep(0.001)
        turns += 1
    assert turns > 10
    await spool.close_async()


async def test_appends_that_wait_together_share_one_sync(tmp_path: Path, disk: Disk) -> None:
    spool = opened(tmp_path)
    await asyncio.gather(*(append(spool, f"r{number}") for number in range(500)))
    assert disk.syncs <= 3
    assert spool.backlog == 500
    assert [entry.record_id for entry in spool.read_from()] == [f"r{number}" for number in range(500)]
    await spool.close_async()


async def test_a_durable_append_waits_for_its_sync_and_another_only_for_the_one_under_way(
    tmp_path: Path, disk: Disk
) -> None:
    spool = opened(tmp_path)
    await append(spool, "first", durable=False)
    assert disk.syncs == 0
    under_way = append(spool, "under-way")
    await asyncio.sleep(SLOW_S / 5)
    durable, passing = append(spool, "durable"), append(spool, "passing", durable=False)
    await passing
    assert under_way.done()
    assert not durable.done()
    await durable
    assert disk.syncs == 2
    await spool.close_async()


async def test_each_append_gets_its_own_refusal(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    good = append(spool, "a", durable=False)
    conflict = spool.append_async(DECISION, RecordId("a"), b"other", durable=True)
    later = append(spool, "b")
    results = await asyncio.gather(good, conflict, later, return_exceptions=True)
    assert [type(result).__name__ for result in results] == ["Position", "SpoolConflict", "Position"]
    await spool.close_async()


async def test_a_failed_sync_reaches_everyone_who_waited_for_it(tmp_path: Path, disk: Disk) -> None:
    spool = opened(tmp_path)
    disk.fails = True
    results = await asyncio.gather(*(append(spool, f"r{n}") for n in range(20)), return_exceptions=True)
    assert {type(result) for result in results} == {SpoolBroken}
    disk.fails = False
    with pytest.raises(SpoolBroken):
        await append(spool, "later", durable=False)
    await spool.close_async()


async def test_the_number_of_appends_that_wait_is_bounded(tmp_path: Path, disk: Disk) -> None:
    spool = opened(tmp_path, pending_max=5)
    first = append(spool, "first")
    await asyncio.sleep(SLOW_S / 5)
    waiting = [append(spool, f"r{number}") for number in range(5)]
    with pytest.raises(SpoolFull) as caught:
        await append(spool, "sixth")
    assert caught.value.reason is FullReason.PENDING
    # What closes something is bounded by what was begun.
    closing = spool.append_async(USAGE, RecordId("use"), b"", durable=False, rank=Rank.CLOSES)
    await asyncio.gather(first, *waiting, closing)
    await spool.close_async()


async def test_a_cancelled_append_harms_no_other(tmp_path: Path, disk: Disk) -> None:
    spool = opened(tmp_path)
    first, second, third = (append(spool, name) for name in ("a", "b", "c"))
    await asyncio.sleep(0.01)
    second.cancel()
    await asyncio.gather(first, third)
    assert second.cancelled()
    assert [entry.record_id for entry in spool.read_from()] == ["a", "b", "c"]
    await spool.close_async()


async def test_closing_writes_what_waits_and_ends_the_thread(tmp_path: Path, disk: Disk) -> None:
    spool = opened(tmp_path)
    waiting = [append(spool, "a")]
    await asyncio.sleep(SLOW_S / 5)
    waiting += [append(spool, f"r{number}") for number in range(50)]
    await asyncio.sleep(0)
    closing = asyncio.ensure_future(spool.close_async())
    await asyncio.sleep(0)
    with pytest.raises(SpoolClosed):
        await append(spool, "late")
    await asyncio.gather(closing, *waiting)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("spool")]
    with opened(tmp_path) as again:
        assert again.backlog == 51


async def test_closing_at_once_refuses_what_still_waits(tmp_path: Path, disk: Disk) -> None:
    spool = opened(tmp_path)
    first = append(spool, "a")
    await asyncio.sleep(SLOW_S / 5)
    second = append(spool, "b")
    await asyncio.sleep(0)
    spool.close()
    await first
    with pytest.raises(SpoolClosed):
        await second


async def test_reading_and_releasing_work_from_a_loop(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    await asyncio.gather(*(append(spool, f"r{number}", durable=False) for number in range(10)))
    batch = await spool.read_batch_async(records_max=4)
    assert [entry.record_id for entry in batch] == ["r0", "r1", "r2", "r3"]
    await spool.release_async(batch[-1].following, now_ms=0)
    assert spool.backlog == 6
    await spool.close_async()


def test_the_measurement_of_the_loop_would_notice_a_blocking_append(tmp_path: Path, disk: Disk) -> None:
    """Positive control: the plain append does block for as long as the disk does."""
    with opened(tmp_path) as spool:
        started_s = time.monotonic()
        spool.append(DECISION, RecordId("a"), b"", durable=True)
        assert time.monotonic() - started_s >= SLOW_S


async def test_what_needs_no_sync_is_written_without_a_thread_while_the_segment_has_room(tmp_path: Path) -> None:
    spool = Spool(tmp_path, capacity_bytes=4 * SEGMENT_BYTES_MIN, segment_bytes=SEGMENT_BYTES_MIN)
    try:
        await asyncio.gather(*(append(spool, f"r{number}", durable=False) for number in range(20)))
        assert not spool_threads()
        assert spool.backlog == 20
        await append(spool, "durable", durable=True)
        assert spool_threads()
    finally:
        await spool.close_async()


async def test_a_new_segment_is_begun_in_the_thread(tmp_path: Path) -> None:
    spool = Spool(tmp_path, capacity_bytes=4 * SEGMENT_BYTES_MIN, segment_bytes=SEGMENT_BYTES_MIN)
    try:
        data = b"x" * (SEGMENT_BYTES_MIN // 2 - 256)
        kind = RecordKind("decision")
        for number in range(3):
            await spool.append_async(kind, RecordId(f"r{number}"), data, durable=False)
            assert bool(spool_threads()) is (number == 2)
        assert [len(entry.data) for entry in spool.read_from()] == [len(data)] * 3
    finally:
        await spool.close_async()


def spool_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("spool")]


async def test_a_disk_that_fails_behind_the_loop_ends_the_writing(tmp_path: Path, disk: Disk) -> None:
    spool = Spool(tmp_path, capacity_bytes=16 * SEGMENT_BYTES_MAX, segment_bytes=SEGMENT_BYTES_MAX)
    disk.fails = True
    try:
        with pytest.raises(SpoolBroken, match="syncing"):
            for number in range(AHEAD_BYTES // 4096 + 2):
                await spool.append_async(DECISION, RecordId(f"r{number}"), b"x" * 4096, durable=False)
            for number in range(1_000):
                await spool.append_async(DECISION, RecordId(f"later{number}"), b"x", durable=False)
                await asyncio.sleep(0.001)
    finally:
        disk.fails = False
        await spool.close_async()


async def test_nobody_waits_for_ever_where_even_the_kept_room_cannot_be_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool, told = opened(tmp_path), list[object]()
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context.get("exception")))

    def full(_descriptor: int, _data: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    def broken(_path: Path, missing_ok: bool = False) -> None:
        raise OSError(errno.EIO, "Input/output error")

    try:
        with monkeypatch.context() as faults:
            faults.setattr(os, "write", full)
            faults.setattr(Path, "unlink", broken)
            ends = [
                spool.append_async(USAGE, RecordId(name), b"x", durable=False, rank=Rank.CLOSES) for name in ("a", "b")
            ]
            async with asyncio.timeout(5):
                outcomes = await asyncio.gather(*ends, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [OSError, OSError]
        assert told == [outcomes[0]], "and the loop hears of it"
    finally:
        await spool.close_async()
