"""Records of one turn of a loop are written together, and become what they would have become one after another."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.spool.records import (
    FullReason,
    Position,
    Rank,
    RecordId,
    RecordKind,
    SpoolBroken,
    SpoolError,
    SpoolFull,
)
from orchestrator.spool.room import SEGMENT_BYTES_MIN
from orchestrator.spool.store import RUN_MAX, Spool

KIND = RecordKind("decision")
Write = Callable[[int, bytes], int]
Want = tuple[str, bytes, Rank, int, bool]
"""Id, data, rank, until when it is kept, and whether it is to be on the disk."""

WANTS = st.lists(
    st.tuples(
        st.sampled_from([f"r{number}" for number in range(12)]),
        st.integers(0, 60_000).map(bytes),
        st.sampled_from(Rank),
        st.integers(0, 5),
        st.booleans(),
    ),
    max_size=14,
)


def opened(folder: Path, backlog_max: int = 1_000, segments: int = 4) -> Spool:
    return Spool(
        folder,
        capacity_bytes=segments * SEGMENT_BYTES_MIN,
        segment_bytes=SEGMENT_BYTES_MIN,
        backlog_max=backlog_max,
    )


async def together(spool: Spool, wants: Sequence[Want]) -> list[object]:
    """Offer all in one turn, and return what each became."""
    futures = [
        spool.append_async(KIND, RecordId(name), data, durable=durable, rank=rank, retain_until_ms=until)
        for name, data, rank, until, durable in wants
    ]
    return [told(one) for one in await asyncio.gather(*futures, return_exceptions=True)]


def told(outcome: object) -> object:
    return outcome if isinstance(outcome, Position) else (type(outcome), getattr(outcome, "reason", None))


def in_order(spool: Spool, wants: Sequence[Want]) -> list[object]:
    found: list[object] = []
    for name, data, rank, until, durable in wants:
        try:
            found.append(spool.append(KIND, RecordId(name), data, durable=durable, rank=rank, retain_until_ms=until))
        except SpoolError as error:
            found.append(told(error))
    return found


def retained_until(spool: Spool) -> list[int | None]:
    return [segment.retain_until_ms for segment in spool._segments]


@settings(max_examples=40, deadline=None)
@given(turns=st.lists(WANTS, max_size=3), backlog_max=st.integers(1, 20))
def test_a_turn_comes_to_what_its_records_come_to_one_by_one(turns: list[list[Want]], backlog_max: int) -> None:
    async def in_turns(spool: Spool) -> tuple[list[object], list[int | None]]:
        found: list[object] = []
        for wants in turns:
            found += await together(spool, wants)
        retained = retained_until(spool)
        await spool.close_async()
        return found, retained

    with TemporaryDirectory() as at_once, TemporaryDirectory() as alone:
        found, retained = asyncio.run(in_turns(opened(Path(at_once), backlog_max)))
        with opened(Path(alone), backlog_max) as spool:
            assert in_order(spool, [want for wants in turns for want in wants]) == found
            # Opened again, a spool reads this from its files.
            assert retained_until(spool) == retained
            with opened(Path(at_once), backlog_max) as again:
                assert list(again.read_from()) == list(spool.read_from())
                assert (again.used_bytes, again.end) == (spool.used_bytes, spool.end)
                assert again.release(again.end, now_ms=3) == spool.release(spool.end, now_ms=3)
                assert again.used_bytes == spool.used_bytes


class Disk:
    """Counts writes of the real disk, and refuses those of more than `most_bytes` after having written some of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, code: int = errno.ENOSPC) -> None:
        self.writes = 0
        self.most_bytes = 1 << 30
        self._code = code
        self._write: Write = os.write
        monkeypatch.setattr(os, "write", self._counted)

    def _counted(self, descriptor: int, data: bytes) -> int:
        self.writes += 1
        if len(data) > self.most_bytes:
            self._write(descriptor, bytes(data)[: self.most_bytes])
            raise OSError(self._code, os.strerror(self._code))
        return self._write(descriptor, data)


def wanted(*sizes_bytes: int) -> list[Want]:
    return [(f"r{number}", b"x" * size, Rank.NEW, 0, False) for number, size in enumerate(sizes_bytes)]


async def test_records_of_one_turn_are_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spool = opened(tmp_path)
    disk = Disk(monkeypatch)
    outcomes = await together(spool, wanted(*[100] * 20))
    assert all(isinstance(outcome, Position) for outcome in outcomes)
    assert disk.writes == 1
    await spool.close_async()


@pytest.mark.parametrize(
    "turns_ms", [[(0, 9_000, 3_000)], [(9_000, 0, 0)], [(9_000,), (3_000, 0), (0,)], [(3_000,), (0, 9_000)]]
)
async def test_a_segment_is_retained_as_long_as_any_record_of_its_turns(
    tmp_path: Path, turns_ms: list[tuple[int, ...]]
) -> None:
    spool = opened(tmp_path)
    for turn, untils_ms in enumerate(turns_ms):
        await together(
            spool, [(f"r{turn}-{number}", b"x", Rank.NEW, until, False) for number, until in enumerate(untils_ms)]
        )
    assert retained_until(spool) == [9_000]
    await spool.close_async()


async def test_more_than_one_write_takes_are_written_in_their_order(tmp_path: Path) -> None:
    spool = opened(tmp_path)
    outcomes = await together(spool, wanted(*[100] * (2 * RUN_MAX + 1)))
    await spool.close_async()
    with opened(tmp_path) as again:
        found = list(again.read_from())
    assert [entry.position for entry in found] == outcomes
    assert [entry.record_id for entry in found] == [f"r{number}" for number in range(2 * RUN_MAX + 1)]


async def test_a_disk_without_space_for_all_takes_those_it_has_space_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    disk = Disk(monkeypatch)
    disk.most_bytes = 1_000
    outcomes = await together(spool, wanted(500, 2_000, 500))
    assert [type(outcome) for outcome in outcomes] == [Position, tuple, Position]
    assert outcomes[1] == (SpoolFull, FullReason.DISK)
    await spool.close_async()
    with opened(tmp_path) as again:
        assert [entry.record_id for entry in again.read_from()] == ["r0", "r2"]
        assert again.torn_bytes == 0


async def test_of_a_turn_on_a_full_disk_what_closes_something_has_the_room_that_is_kept_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    ballast = tmp_path / "BALLAST"
    assert isinstance((await together(spool, [("admitted", b"", Rank.NEW, 0, False)]))[0], Position)

    def no_room(*_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write(descriptor: int, data: bytes) -> int:
        if ballast.exists():
            no_room()
        return really_write(descriptor, data)

    really_write = os.write
    with monkeypatch.context() as full:
        full.setattr(os, "write", write)
        full.setattr(os, "posix_fallocate", no_room)
        ranks = (Rank.NEW, Rank.CLOSES, Rank.NEW, Rank.CLOSES)
        wants = [(f"r{number}", b"", rank, 0, False) for number, rank in enumerate(ranks)]
        refused = (SpoolFull, FullReason.DISK)
        outcomes = await together(spool, wants)
        assert [isinstance(outcome, Position) or outcome for outcome in outcomes] == [refused, True, refused, True]
    await spool.close_async()
    with opened(tmp_path) as again:
        assert [entry.record_id for entry in again.read_from()] == ["admitted", "r1", "r3"]


async def test_of_a_turn_that_the_disk_fails_nothing_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = opened(tmp_path)
    disk = Disk(monkeypatch, errno.EIO)
    disk.most_bytes = 1_000
    outcomes = await together(spool, wanted(500, 500, 500))
    assert outcomes == [(SpoolBroken, None)] * 3
    assert spool.backlog == 0
    await spool.close_async()
    with opened(tmp_path) as again:
        assert list(again.read_from()) == []


async def test_a_turn_that_begins_a_segment_is_held_to_the_same_bounds(tmp_path: Path) -> None:
    data = bytes(2_000)
    found: list[list[object]] = []
    for way in ("together", "in order"):
        spool = opened(tmp_path / way, segments=5)
        try:
            number = 0
            while len(spool._segments) < 2 or spool._segments[-1].size_bytes + 2 * len(data) < SEGMENT_BYTES_MIN:
                spool.append(KIND, RecordId(f"r{number}"), data, durable=False)
                number += 1
            # The first few of them end the segment, and half of the spool is soon full.
            wants: list[Want] = [(f"s{number}", data, Rank.SPARE, 0, False) for number in range(RUN_MAX)]
            found.append(await together(spool, wants) if way == "together" else in_order(spool, wants))
            assert spool.used_bytes <= 5 * SEGMENT_BYTES_MIN // 2
        finally:
            spool.close()
    assert found[0] == found[1]
    assert {type(one) for one in found[0]} == {Position, tuple}
