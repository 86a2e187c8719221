"""At the bounds: who is refused first, what a full or failing disk does, and who may open a spool."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spool.framing import offer
from orchestrator.spool.holders import Holders
from orchestrator.spool.records import (
    DATA_BYTES_MAX,
    BadRecord,
    FullReason,
    Holder,
    Rank,
    RecordId,
    RecordKind,
    SpoolBroken,
    SpoolClosed,
    SpoolFull,
    SpoolLocked,
)
from orchestrator.spool.room import SEGMENT_BYTES_MIN, SEGMENTS_MIN, room_of
from orchestrator.spool.store import Spool

DECISION = RecordKind("decision")
USAGE = RecordKind("usage")
SEGMENT_BYTES = SEGMENT_BYTES_MIN
CAPACITY_BYTES = 8 * SEGMENT_BYTES


def opened(
    folder: Path, regulated_reserve_bytes: int = 0, closing_reserve_bytes: int = 0, backlog_max: int = 10_000
) -> Spool:
    return Spool(
        folder,
        capacity_bytes=CAPACITY_BYTES,
        segment_bytes=SEGMENT_BYTES,
        regulated_reserve_bytes=regulated_reserve_bytes,
        closing_reserve_bytes=closing_reserve_bytes,
        backlog_max=backlog_max,
    )


def fill(spool: Spool, kind: str, *, durable: bool = False, rank: Rank = Rank.NEW, size_bytes: int = 4000) -> SpoolFull:
    """Appends until it is refused."""
    for number in range(10_000):
        try:
            spool.append(DECISION, RecordId(f"{kind}-{number}"), b"x" * size_bytes, durable=durable, rank=rank)
        except SpoolFull as full:
            return full
    raise AssertionError("the spool has no bound")


@given(
    reserve_bytes=st.integers(0, SEGMENTS_MIN * SEGMENT_BYTES - 1),
    backlog_max=st.integers(1, 8),
    rank=st.sampled_from(Rank),
    durable=st.booleans(),
    data_bytes=st.integers(0, DATA_BYTES_MAX),
    below_bytes=st.integers(0, SEGMENT_BYTES),
    waiting=st.integers(0, 8),
)
def test_below_what_is_easy_nobody_is_refused(
    reserve_bytes: int, backlog_max: int, rank: Rank, durable: bool, data_bytes: int, below_bytes: int, waiting: int
) -> None:
    room = room_of(SEGMENTS_MIN * SEGMENT_BYTES, SEGMENT_BYTES, reserve_bytes, None, backlog_max)
    one = offer(DECISION, RecordId("r"), bytes(data_bytes), 0, durable, rank, Holder("one with everything"))
    used_bytes = max(0, room.easy_bytes - one.size_bytes - below_bytes)
    holders = Holders()
    holders.add(1, [(one.holder, used_bytes)])
    if waiting < backlog_max // 2:
        assert room.refusal(one, used_bytes, waiting, holders) is None
    spared = offer(DECISION, RecordId("r"), bytes(data_bytes), 0, durable=True, rank=Rank.SPARE)
    if reserve_bytes <= room.capacity_bytes // 4:
        assert room.refusal(spared, room.easy_bytes - one.size_bytes + 1, 0, Holders()) is not None


def test_a_full_spool_refuses_regulated_requests_first_and_what_closes_last(tmp_path: Path) -> None:
    with opened(tmp_path, CAPACITY_BYTES // 4, CAPACITY_BYTES // 16) as spool:
        assert fill(spool, "general", size_bytes=40_000, durable=True).reason is FullReason.REGULATED_RESERVE
        assert CAPACITY_BYTES // 4 < spool.free_bytes < CAPACITY_BYTES // 4 + 50_000
        # A general request is still served, a regulated one is not.
        spool.append(DECISION, RecordId("general"), b"x" * 4000, durable=False)
        with pytest.raises(SpoolFull, match="no room for a record of kind decision: regulated_reserve"):
            spool.append(DECISION, RecordId("regulated"), b"x" * 40_000, durable=True)
        assert fill(spool, "more").reason is FullReason.CLOSING_RESERVE
        # What was admitted can still be closed, durable or not, up to the last byte.
        spool.append(USAGE, RecordId("use"), b"x" * 4000, durable=True, rank=Rank.CLOSES)
        assert fill(spool, "closing", rank=Rank.CLOSES).reason is FullReason.CAPACITY
        assert spool.used_bytes <= CAPACITY_BYTES


def test_records_that_can_be_spared_leave_half_of_the_room_to_others(tmp_path: Path) -> None:
    with opened(tmp_path / "bytes") as spool:
        assert fill(spool, "refusal", rank=Rank.SPARE).reason is FullReason.SPARE_ROOM
        assert CAPACITY_BYTES // 2 <= spool.free_bytes < CAPACITY_BYTES // 2 + 10_000
        spool.append(DECISION, RecordId("regulated"), b"x" * 4000, durable=True)
    with opened(tmp_path / "records", backlog_max=10) as spool:
        assert fill(spool, "refusal", rank=Rank.SPARE, size_bytes=1).reason is FullReason.SPARE_ROOM
        assert spool.backlog == 5
        spool.append(DECISION, RecordId("general"), b"x", durable=False)


def test_the_files_never_grow_beyond_the_capacity(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        fill(spool, "odd", size_bytes=61_003)
        fill(spool, "small", size_bytes=10)
        assert sum(file.stat().st_size for file in tmp_path.glob("*.seg")) == spool.used_bytes <= CAPACITY_BYTES


def test_the_header_of_the_next_segment_counts_as_well(tmp_path: Path) -> None:
    def append(spool: Spool, number: int) -> None:
        spool.append(DECISION, RecordId(f"r{number}"), b"x" * 60_000, durable=False)

    with opened(tmp_path / "first") as spool:
        for number in range(8):
            append(spool, number)
        used_bytes = spool.used_bytes
        append(spool, 8)
        needed_bytes = spool.used_bytes
    assert needed_bytes - used_bytes == 60_000 + 67
    for capacity_bytes, fits in ((needed_bytes, True), (needed_bytes - 1, False)):
        with Spool(
            tmp_path / str(fits),
            capacity_bytes=capacity_bytes,
            segment_bytes=SEGMENT_BYTES,
            regulated_reserve_bytes=0,
        ) as spool:
            for number in range(8):
                append(spool, number)
            if fits:
                append(spool, 8)
                continue
            with pytest.raises(SpoolFull, match="capacity"):
                append(spool, 8)


def test_a_refused_record_leaves_no_trace_and_room_comes_back_with_shipping(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        fill(spool, "r")
        backlog, end = spool.backlog, spool.end
        with pytest.raises(SpoolFull):
            spool.append(DECISION, RecordId("late"), b"x" * 4000, durable=True)
        assert (spool.backlog, spool.end) == (backlog, end)
        released = spool.release(spool.end, now_ms=0)
        assert released.segments_deleted >= 6
        spool.append(DECISION, RecordId("late"), b"x" * 4000, durable=True)


def test_the_number_of_records_that_wait_is_bounded(tmp_path: Path) -> None:
    with opened(tmp_path, backlog_max=3) as spool:
        assert fill(spool, "r", size_bytes=1).reason is FullReason.BACKLOG
        assert spool.backlog == 3
        spool.append(USAGE, RecordId("use"), b"", durable=False, rank=Rank.CLOSES)
        spool.release(spool.end, now_ms=0)
        spool.append(DECISION, RecordId("next"), b"", durable=False)


@pytest.mark.parametrize(
    ("kind", "record_id", "size_bytes", "retain_until_ms"),
    [
        ("", "a", 1, 0),
        ("Decision", "a", 1, 0),
        ("k" * 33, "a", 1, 0),
        ("k", "", 1, 0),
        ("k", "a b", 1, 0),
        ("k", "a\n", 1, 0),
        ("k", "字", 1, 0),
        ("k", "a" * 97, 1, 0),
        ("k", "a", DATA_BYTES_MAX + 1, 0),
        ("k", "a", 1, -1),
        ("k", "a", 1, 2**63),
    ],
)
def test_a_record_that_no_spool_can_hold_is_refused(
    tmp_path: Path, kind: str, record_id: str, size_bytes: int, retain_until_ms: int
) -> None:
    with opened(tmp_path) as spool:
        with pytest.raises(BadRecord):
            spool.append(
                RecordKind(kind), RecordId(record_id), b"x" * size_bytes, durable=False, retain_until_ms=retain_until_ms
            )
        assert spool.backlog == 0


@pytest.mark.parametrize(
    "bounds",
    [
        {"capacity_bytes": CAPACITY_BYTES, "segment_bytes": 1000},
        {"capacity_bytes": SEGMENT_BYTES, "segment_bytes": SEGMENT_BYTES},
        {"capacity_bytes": CAPACITY_BYTES, "segment_bytes": SEGMENT_BYTES, "regulated_reserve_bytes": CAPACITY_BYTES},
        {
            "capacity_bytes": CAPACITY_BYTES,
            "segment_bytes": SEGMENT_BYTES,
            "regulated_reserve_bytes": 1,
            "closing_reserve_bytes": 2,
        },
    ],
)
def test_bounds_that_make_no_sense_are_refused(tmp_path: Path, bounds: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="expected"):
        Spool(tmp_path, **bounds)


def failing(code: int, *, after_bytes: int = 0) -> Callable[[int, bytes], int]:
    """A write that fails once; some of the bytes may reach the file before."""
    write = os.write

    def fail(descriptor: int, data: bytes) -> int:
        if after_bytes:
            write(descriptor, bytes(data)[:after_bytes])
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("after_bytes", [0, 1, 30])
def test_a_disk_without_space_refuses_and_keeps_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, after_bytes: int
) -> None:
    with opened(tmp_path) as spool:
        spool.append(DECISION, RecordId("a"), b"", durable=True)
        with monkeypatch.context() as full:
            full.setattr(os, "write", failing(errno.ENOSPC, after_bytes=after_bytes))
            with pytest.raises(SpoolFull, match="disk"):
                spool.append(DECISION, RecordId("b"), b"x" * 100, durable=True)
        spool.append(DECISION, RecordId("c"), b"", durable=True)
    with opened(tmp_path) as spool:
        assert [entry.record_id for entry in spool.read_from()] == ["a", "c"]


def test_a_disk_without_space_for_a_new_segment_refuses_and_recovers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as spool:
        spool.append(DECISION, RecordId("a"), b"x" * 65_000, durable=False)
        spool.append(DECISION, RecordId("b"), b"x" * 65_000, durable=False)
        with monkeypatch.context() as full:
            full.setattr(os, "write", failing(errno.ENOSPC, after_bytes=4))
            with pytest.raises(SpoolFull, match="disk"):
                spool.append(DECISION, RecordId("c"), b"x" * 65_000, durable=False)
        assert len(list(tmp_path.glob("*.seg"))) == 1
        spool.append(DECISION, RecordId("c"), b"x" * 65_000, durable=False)
        assert spool.end.segment == 2


@pytest.mark.parametrize("rolls", [False, True], ids=["in-the-segment", "in-the-next"])
def test_on_a_disk_that_others_filled_what_was_admitted_is_still_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rolls: bool
) -> None:
    ballast = tmp_path / "BALLAST"

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(descriptor: int, data: bytes) -> int:
        if ballast.exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return really_write(descriptor, data)

    really_write = os.write
    with opened(tmp_path, CAPACITY_BYTES // 4, CAPACITY_BYTES // 16) as spool:
        spool.append(DECISION, RecordId("admitted"), b"", durable=True)
        while rolls and (room := SEGMENT_BYTES - spool.end.offset) > 500:
            spool.append(DECISION, RecordId(f"admitted-{room}"), bytes(min(DATA_BYTES_MAX, room - 300)), durable=False)
        assert ballast.stat().st_blocks * 512 >= CAPACITY_BYTES // 16
        with monkeypatch.context() as full:
            full.setattr(os, "write", write)
            full.setattr(os, "posix_fallocate", no_room)
            with pytest.raises(SpoolFull, match="disk"):
                spool.append(DECISION, RecordId("late"), b"", durable=False)
            used = spool.append(USAGE, RecordId("use"), bytes(500), durable=False, rank=Rank.CLOSES)
            assert used.segment == (2 if rolls else 1)
            assert not ballast.exists()
            # There is room for a record now, but none to close what it would admit.
            with pytest.raises(SpoolFull, match="disk"):
                spool.append(DECISION, RecordId("later"), b"", durable=False)
        spool.append(DECISION, RecordId("again"), b"", durable=False)
        assert ballast.exists()
    with opened(tmp_path) as spool:
        kept = [entry.record_id for entry in spool.read_from()]
        assert kept[0] == "admitted"
        assert kept[-2:] == ["use", "again"]
        assert len(kept) == 3 or rolls


def test_a_failed_write_ends_all_writing_until_a_new_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(tmp_path) as spool:
        spool.append(DECISION, RecordId("a"), b"", durable=True)
        with monkeypatch.context() as bad:
            bad.setattr(os, "write", failing(errno.EIO, after_bytes=3))
            with pytest.raises(SpoolBroken, match="failed while writing: Input/output error"):
                spool.append(DECISION, RecordId("b"), b"", durable=False)
        with pytest.raises(SpoolBroken):
            spool.append(DECISION, RecordId("c"), b"", durable=False)
        assert [entry.record_id for entry in spool.read_from()] == ["a"]
    with opened(tmp_path) as spool:
        spool.append(DECISION, RecordId("c"), b"", durable=False)


def test_a_failed_sync_is_never_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a failed fsync the kernel may call the lost pages clean: a second one that succeeds proves nothing."""
    with opened(tmp_path) as spool:
        with monkeypatch.context() as bad:
            bad.setattr(os, "fdatasync", lambda descriptor: failing(errno.EIO)(descriptor, b""))
            with pytest.raises(SpoolBroken, match="failed while syncing"):
                spool.append(DECISION, RecordId("a"), b"", durable=True)
        with pytest.raises(SpoolBroken):
            spool.append(DECISION, RecordId("a"), b"", durable=True)


def test_one_process_has_a_spool_and_its_death_gives_it_back(tmp_path: Path) -> None:
    holder = (
        "import sys, time; from pathlib import Path; from orchestrator.spool.store import Spool;"
        f"s = Spool(Path(sys.argv[1]), capacity_bytes={CAPACITY_BYTES}, segment_bytes={SEGMENT_BYTES});"
        "print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", holder, str(tmp_path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(SpoolLocked):
            opened(tmp_path)
        process.kill()
    opened(tmp_path).close()


def test_a_spool_is_closed_once_and_then_refuses(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    spool.close()
    spool.close()
    with pytest.raises(SpoolClosed):
        spool.append(DECISION, RecordId("a"), b"", durable=False)
    with pytest.raises(SpoolClosed):
        list(spool.read_from())
    with pytest.raises(SpoolClosed):
        spool.release(spool.shipped, now_ms=0)


def test_the_files_of_a_spool_are_for_its_user_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "spool") as spool:
        spool.append(DECISION, RecordId("a"), b"", durable=True)
        spool.release(spool.end, now_ms=0)
        assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700
        assert {file.stat().st_mode & 0o777 for file in (tmp_path / "spool").iterdir()} == {0o600}


def test_no_repr_and_no_error_shows_the_data_of_a_record(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.append(DECISION, RecordId("a"), b"canary7", durable=False)
        (entry,) = spool.read_from()
        assert entry.data == b"canary7"
        assert "canary7" not in repr(entry)
