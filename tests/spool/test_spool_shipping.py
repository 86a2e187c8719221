"""Shipping: reading on, releasing, retention, restarts, and records that come twice."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestrator.spool.records import Position, RecordId, RecordKind, Released, SpoolConflict, SpoolCorrupt
from orchestrator.spool.room import SEGMENT_BYTES_MIN
from orchestrator.spool.store import Spool

DECISION = RecordKind("decision")
LONG = b"x" * 30_000
"""Four of these fill a segment."""


def opened(folder: Path) -> Spool:
    return Spool(folder, capacity_bytes=16 * SEGMENT_BYTES_MIN, segment_bytes=SEGMENT_BYTES_MIN)


def append(spool: Spool, name: str, data: bytes = LONG, retain_until_ms: int = 0) -> Position:
    return spool.append(DECISION, RecordId(name), data, durable=False, retain_until_ms=retain_until_ms)


def names(spool: Spool, position: Position | None = None) -> list[str]:
    return [entry.record_id for entry in spool.read_from(position)]


def test_reading_goes_on_where_it_stopped(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(10):
            append(spool, f"r{number}")
        first = spool.read_batch(records_max=6)
        assert [entry.record_id for entry in first] == [f"r{number}" for number in range(6)]
        assert names(spool, first[-1].following) == ["r6", "r7", "r8", "r9"]
        assert names(spool, spool.end) == []
        append(spool, "late")
        assert names(spool, first[3].position)[0] == "r3"
        assert names(spool)[-1] == "late"


def test_a_reader_sees_the_end_as_it_was_when_it_began(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
        reader = spool.read_from()
        assert next(reader).record_id == "a"
        append(spool, "b")
        assert list(reader) == []


def test_released_segments_are_deleted_and_the_rest_is_kept(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(10):
            append(spool, f"r{number}")
        entries = list(spool.read_from())
        assert spool.release(entries[5].position, now_ms=0) == Released(1, entries[3].following.offset, 0)
        assert names(spool) == ["r5", "r6", "r7", "r8", "r9"]
        assert names(spool, Position(1, 0))[0] == "r4"
        assert spool.release(entries[2].position, now_ms=0) == Released(0, 0, 0)
        assert spool.shipped == entries[5].position
        assert spool.backlog == 5


def test_a_record_younger_than_its_retention_is_not_deleted(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "r0")
        append(spool, "kept", retain_until_ms=1000)
        for number in range(2, 14):
            append(spool, f"r{number}")
        end = spool.end
        assert end.segment == 4
        assert spool.release(end, now_ms=999) == Released(0, 0, 3)
        assert spool.verify() == 14
    with opened(tmp_path) as spool:
        # Known again after a restart, though shipped segments are not read then.
        assert spool.release(end, now_ms=999) == Released(0, 0, 3)
        released = spool.release(end, now_ms=1000)
        assert (released.segments_deleted, released.segments_retained) == (3, 0)
        assert names(spool, Position(0, 0)) == ["r12", "r13"]


def test_retention_is_kept_when_the_spool_is_full(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(8):
            append(spool, f"r{number}", retain_until_ms=10**15)
        assert spool.release(spool.end, now_ms=10**12) == Released(0, 0, 1)
        assert spool.used_bytes > 8 * len(LONG)


def test_what_was_released_is_not_read_again_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(10):
            append(spool, f"r{number}", retain_until_ms=10**15)
        position = list(spool.read_from())[6].following
        spool.release(position, now_ms=0)
    with opened(tmp_path) as spool:
        assert spool.shipped == position
        assert names(spool) == ["r7", "r8", "r9"]
        assert spool.backlog == 3


def test_a_lost_shipped_position_means_shipping_once_more(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
        spool.release(spool.end, now_ms=0)
    (tmp_path / "shipped").write_bytes(b"damaged")
    with opened(tmp_path) as spool:
        assert names(spool) == ["a"]


def test_a_record_in_the_place_of_a_lost_one_does_not_count_as_shipped(tmp_path: Path) -> None:
    """A record that was shipped but not synced can be lost with the power; the next one takes its place."""
    with opened(tmp_path) as spool:
        append(spool, "a")
        lost = append(spool, "b")
        spool.release(spool.end, now_ms=0)
    os.truncate(tmp_path / f"{1:012d}.seg", lost.offset)
    with opened(tmp_path) as spool:
        assert spool.shipped == lost
        append(spool, "c", b"short")
    with opened(tmp_path) as spool:
        assert names(spool) == ["c"]


def test_damage_in_a_shipped_segment_shows_when_it_is_read(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(6):
            append(spool, f"r{number}", retain_until_ms=10)
        spool.release(spool.end, now_ms=0)
    path = tmp_path / f"{1:012d}.seg"
    body = bytearray(path.read_bytes())
    body[40_000] ^= 1
    path.write_bytes(body)
    with opened(tmp_path) as spool:
        for read in (spool.verify, lambda: spool.release(spool.end, now_ms=20)):
            with pytest.raises(SpoolCorrupt) as caught:
                read()
            assert caught.value.segment == 1
        assert path.exists()


def test_a_position_beyond_the_end_is_refused(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
        with pytest.raises(ValueError, match="position of this spool"):
            spool.release(Position(9, 0), now_ms=0)
        with pytest.raises(SpoolCorrupt):
            list(spool.read_from(Position(1, spool.end.offset - 5)))


def test_the_same_record_is_written_once_while_it_waits(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        position = append(spool, "a")
        end = spool.end
        assert append(spool, "a") == position
        assert spool.append(DECISION, RecordId("a"), LONG, durable=True) == position
        assert spool.end == end
    with opened(tmp_path) as spool:
        assert append(spool, "a") == position
        assert names(spool) == ["a"]


def test_another_record_under_the_same_id_is_a_conflict(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
        for data, kind, retain_until_ms in ((b"other", "decision", 0), (LONG, "usage", 0), (LONG, "decision", 5)):
            with pytest.raises(SpoolConflict, match="another record with the id a"):
                spool.append(RecordKind(kind), RecordId("a"), data, durable=False, retain_until_ms=retain_until_ms)
        assert names(spool) == ["a"]


def test_an_id_is_free_again_once_it_was_shipped(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
        append(spool, "b")
        spool.release(spool.read_batch(records_max=1)[0].following, now_ms=0)
        append(spool, "a", b"second")
        append(spool, "c")
        assert names(spool) == ["b", "a", "c"]
    with opened(tmp_path) as spool:
        assert spool.backlog == 3
        spool.release(spool.read_batch(records_max=2)[1].following, now_ms=0)
        assert spool.backlog == 1
        assert names(spool) == ["c"]


def test_a_reader_passes_over_segments_that_are_deleted_meanwhile(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        for number in range(12):
            append(spool, f"r{number}")
        reader = spool.read_from()
        assert next(reader).record_id == "r0"
        spool.release(spool.end, now_ms=0)
        rest = [entry.record_id for entry in reader]
        assert rest[:3] == ["r1", "r2", "r3"]
        assert rest[-1] == "r11"


def test_reading_back_begins_with_the_last_record_and_ends_where_shipping_stands(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        positions = [append(spool, f"r{number}") for number in range(10)]
        assert [entry.record_id for entry in spool.read_back()] == [f"r{number}" for number in range(9, -1, -1)]
        spool.release(positions[6], now_ms=0)
        assert [entry.record_id for entry in spool.read_back()] == ["r9", "r8", "r7", "r6"]
        spool.release(spool.end, now_ms=0)
        assert list(spool.read_back()) == []
