"""After a crash: a cut last write is cut off, everything else is there, and damage is named and never hidden."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.spool import framing
from orchestrator.spool.framing import SEGMENT_HEADER_BYTES, decode_segment_header, encode_frames, offer
from orchestrator.spool.records import Position, Rank, RecordId, RecordKind, SpoolCorrupt
from orchestrator.spool.room import SEGMENT_BYTES_MIN
from orchestrator.spool.store import Spool

DECISION = RecordKind("decision")
SEGMENT_BYTES = SEGMENT_BYTES_MIN
CAPACITY_BYTES = 32 * SEGMENT_BYTES


def opened(folder: Path) -> Spool:
    return Spool(folder, capacity_bytes=CAPACITY_BYTES, segment_bytes=SEGMENT_BYTES, regulated_reserve_bytes=0)


def append(spool: Spool, name: str, data: bytes = b"data", *, durable: bool = False) -> Position:
    return spool.append(DECISION, RecordId(name), data, durable=durable)


def names(spool: Spool) -> list[str]:
    return [entry.record_id for entry in spool.read_from()]


def last_segment(folder: Path) -> Path:
    return max(folder.glob("*.seg"))


def test_what_was_appended_is_there_after_a_restart(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a", b"", durable=True)
        append(spool, "b", b"\x00" * 65536)
        spool.append(RecordKind("usage"), RecordId("c"), b"x", durable=False, retain_until_ms=77)
        before = list(spool.read_from())
    with opened(tmp_path) as spool:
        assert list(spool.read_from()) == before
        assert [(e.kind, e.data, e.retain_until_ms) for e in before[2:]] == [("usage", b"x", 77)]
        assert spool.torn_bytes == 0


def test_a_write_cut_at_any_byte_loses_that_record_alone(tmp_path: Path) -> None:
    with opened(tmp_path / "whole") as spool:
        for name in ("a", "b"):
            append(spool, name, durable=True)
        start = spool.end.offset
        append(spool, "last", bytes(range(64)))
        end = spool.end.offset
    for cut in range(start, end):
        folder = tmp_path / f"cut{cut}"
        shutil.copytree(tmp_path / "whole", folder)
        os.truncate(last_segment(folder), cut)
        with opened(folder) as spool:
            assert names(spool) == ["a", "b"]
            assert spool.torn_bytes == cut - start
            append(spool, "last", b"again")
        with opened(folder) as spool:
            assert names(spool) == ["a", "b", "last"]
            assert spool.torn_bytes == 0
        shutil.rmtree(folder)


@pytest.mark.parametrize("tail", [b"\x00" * 4096, b"\xa7\x5c" * 300, bytes(range(256)) * 12, b"\xff"])
def test_a_tail_of_anything_but_records_is_cut_off(tmp_path: Path, tail: bytes) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a", durable=True)
    with last_segment(tmp_path).open("ab") as file:
        file.write(tail)
    with opened(tmp_path) as spool:
        assert names(spool) == ["a"]
        assert spool.torn_bytes == len(tail)


def test_damage_to_any_byte_of_a_middle_record_is_named_and_not_repaired(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
        damaged = append(spool, "b", b"middle", durable=True)
        following = append(spool, "c")
        append(spool, "d")
    path = last_segment(tmp_path)
    good = path.read_bytes()
    for offset in range(damaged.offset, following.offset):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 0x41]) + good[offset + 1 :])
        with pytest.raises(SpoolCorrupt) as caught:
            opened(tmp_path)
        assert (caught.value.segment, caught.value.offset) == (1, damaged.offset)
        assert f"segment 1 is damaged at byte {damaged.offset}" in str(caught.value)
    path.write_bytes(good)
    with opened(tmp_path) as spool:
        assert names(spool) == ["a", "b", "c", "d"]


def test_a_record_inside_the_data_of_a_cut_record_is_not_taken_for_a_record(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        start = spool.end.offset
    salt = decode_segment_header(last_segment(tmp_path).read_bytes(), 1)
    inner = [offer(DECISION, RecordId("inner"), b"forged", 0, False, Rank.NEW)]
    # Both as one would write it knowing the salt of the segment but not the offset, and knowing neither.
    with opened(tmp_path) as spool:
        append(spool, "outer", encode_frames(inner, salt, 0) + encode_frames(inner, bytes(16), start) + b"." * 100)
        end = spool.end.offset
    os.truncate(last_segment(tmp_path), end - 1)
    with opened(tmp_path) as spool:
        assert names(spool) == []


def fill_segments(spool: Spool, count: int) -> None:
    number = 0
    while spool.end.segment < count:
        append(spool, f"r{number}", b"x" * 30_000)
        number += 1


def test_damage_in_a_sealed_segment_is_named_even_at_its_end(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        fill_segments(spool, 3)
        assert spool.verify() == len(names(spool))
    second = sorted(tmp_path.glob("*.seg"))[1]
    os.truncate(second, second.stat().st_size - 1)
    with pytest.raises(SpoolCorrupt) as caught:
        opened(tmp_path)
    assert caught.value.segment == 2


@pytest.mark.parametrize("gone", [0, 1])
def test_a_missing_segment_is_named(tmp_path: Path, gone: int) -> None:
    with opened(tmp_path) as spool:
        fill_segments(spool, 3)
    sorted(tmp_path.glob("*.seg"))[gone].unlink()
    with pytest.raises(SpoolCorrupt, match=f"segment {gone + 1} is damaged at byte 0: the segment is missing"):
        opened(tmp_path)


def test_a_folder_that_lost_all_its_segments_is_not_taken_for_a_new_one(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
        spool.release(spool.end, now_ms=0)
    last_segment(tmp_path).unlink()
    with pytest.raises(SpoolCorrupt, match="missing"):
        opened(tmp_path)


@pytest.mark.parametrize("body", [b"", b"TGSPOOL1", b"\x00" * SEGMENT_HEADER_BYTES])
def test_a_segment_whose_creation_was_cut_is_removed(tmp_path: Path, body: bytes) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a", durable=True)
    (tmp_path / f"{2:012d}.seg").write_bytes(body)
    with opened(tmp_path) as spool:
        assert names(spool) == ["a"]
        fill_segments(spool, 2)
    with opened(tmp_path) as spool:
        assert names(spool)[0] == "a"


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
    path = last_segment(tmp_path)
    good = path.read_bytes()
    for offset in range(SEGMENT_HEADER_BYTES):
        path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
        with pytest.raises(SpoolCorrupt, match="segment 1 is damaged at byte 0"):
            opened(tmp_path)


def test_a_segment_under_the_name_of_another_is_named(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        append(spool, "a")
    shutil.copy(last_segment(tmp_path), tmp_path / f"{2:012d}.seg")
    with pytest.raises(SpoolCorrupt, match="tells number 1"):
        opened(tmp_path)


def test_a_record_of_a_later_version_is_refused_and_never_cut_off(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(tmp_path) as spool, monkeypatch.context() as later:
        later.setattr(framing, "FRAME_VERSION", 2)
        append(spool, "a")
    size_bytes = last_segment(tmp_path).stat().st_size
    with pytest.raises(SpoolCorrupt, match="has version 2, this program knows 1"):
        opened(tmp_path)
    assert last_segment(tmp_path).stat().st_size == size_bytes


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 65536) | st.integers(0, 200), min_size=1, max_size=14),
    shipped=st.integers(0, 14),
    back=st.integers(0, 70_000),
)
def test_any_run_of_appends_cut_anywhere_in_its_last_segment_leaves_a_prefix(
    sizes: list[int], shipped: int, back: int
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        with opened(folder) as spool:
            for number, size in enumerate(sizes):
                append(spool, f"r{number}", bytes([number]) * size)
            entries = list(spool.read_from())
            if entries[:shipped]:
                spool.release(entries[:shipped][-1].following, now_ms=0)
            end = spool.end
        path = last_segment(folder)
        cut = max(SEGMENT_HEADER_BYTES, end.offset - back)
        os.truncate(path, cut)
        with opened(folder) as spool:
            expected = [
                entry
                for number, entry in enumerate(entries)
                if number >= shipped and (entry.position.segment < end.segment or entry.following.offset <= cut)
            ]
            assert list(spool.read_from()) == expected
            after = append(spool, "after", durable=True)
            assert list(spool.read_from())[-1].position == after
        with opened(folder) as spool:
            assert names(spool)[-1] == "after"


WRITER = """
import sys
from pathlib import Path
from orchestrator.spool.records import RecordId, RecordKind
from orchestrator.spool.store import Spool
spool = Spool(Path(sys.argv[1]), capacity_bytes=1 << 22, segment_bytes=1 << 17)
for number in range(100_000):
    spool.append(RecordKind("decision"), RecordId(f"r{number}"), b"x" * 700, durable=number % 3 == 0)
    print(number, flush=True)
"""


def test_a_killed_process_loses_nothing_that_it_had_told(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout is not None
        told = [int(writer.stdout.readline()) for _ in range(400)]
        writer.send_signal(signal.SIGKILL)
        told += [int(line) for line in writer.stdout.read().split("\n")[:-1]]
    with Spool(tmp_path, capacity_bytes=1 << 22, segment_bytes=1 << 17) as spool:
        found = names(spool)
        assert found[: len(told)] == [f"r{number}" for number in told]
        assert len(found) <= len(told) + 1
