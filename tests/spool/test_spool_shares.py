"""Who has how much of a spool: one that sends much leaves the others room, and what counts follows what is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spool.holders import Holders
from orchestrator.spool.records import FullReason, Holder, Rank, RecordId, RecordKind, SpoolFull
from orchestrator.spool.room import SEGMENT_BYTES_MIN
from orchestrator.spool.store import Spool

DECISION, USAGE = RecordKind("decision"), RecordKind("usage")
CAPACITY_BYTES = 16 * SEGMENT_BYTES_MIN
MUCH, LITTLE, LATER = Holder("much"), Holder("little"), Holder("later")


def opened(folder: Path, backlog_max: int = 100_000) -> Spool:
    return Spool(
        folder,
        capacity_bytes=CAPACITY_BYTES,
        segment_bytes=SEGMENT_BYTES_MIN,
        backlog_max=backlog_max,
        holder_of=lambda kind, data: Holder(data[:10].decode().strip()) or None,
    )


class Writer:
    """Appends records that say whose they are."""

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._count = spool.backlog

    def append(
        self, holder: Holder, *, durable: bool = False, rank: Rank = Rank.NEW, size_bytes: int = 8_000
    ) -> None:
        self._count += 1
        data = holder.encode().ljust(10).ljust(size_bytes, b"x")
        kind = USAGE if rank is Rank.CLOSES else DECISION
        self.spool.append(kind, RecordId(f"r{self._count}"), data, durable=durable, rank=rank, holder=holder)

    def until_refused(
        self, holder: Holder, *, durable: bool = False, size_bytes: int = 8_000
    ) -> tuple[FullReason, int]:
        """Append as much as is taken, and return why no more is, and how many records it was."""
        for number in range(100_000):
            try:
                self.append(holder, durable=durable, size_bytes=size_bytes)
            except SpoolFull as full:
                return full.reason, number
        raise AssertionError("the spool has no bound")


@pytest.mark.parametrize("durable", [False, True], ids=["general", "regulated"])
def test_one_that_sends_much_leaves_room_for_what_others_send(tmp_path: Path, durable: bool) -> None:
    with opened(tmp_path) as spool:
        writer = Writer(spool)
        reason, much = writer.until_refused(MUCH)
        assert reason is FullReason.SHARE
        assert spool.free_bytes > CAPACITY_BYTES * 9 // 20
        # What it began is closed all the same.
        writer.append(MUCH, rank=Rank.CLOSES)
        reason, little = writer.until_refused(LITTLE, durable=durable)
        assert reason is (FullReason.REGULATED_RESERVE if durable else FullReason.SHARE)
        assert little > much // 3


def test_who_comes_last_finds_room_whatever_two_others_sent(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        writer = Writer(spool)
        refused: dict[Holder, FullReason] = {}
        while len(refused) < 2:
            for holder in {MUCH, LITTLE} - refused.keys():
                try:
                    writer.append(holder)
                except SpoolFull as full:
                    refused[holder] = full.reason
        assert set(refused.values()) == {FullReason.SHARE}
        writer.append(LATER, durable=True)
        assert writer.until_refused(LATER)[1] > 10


def test_one_that_is_alone_shares_with_nobody(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        spool.expect(1)
        assert Writer(spool).until_refused(MUCH)[0] is FullReason.CLOSING_RESERVE


def test_where_nobody_else_can_come_nothing_is_kept_for_one_more() -> None:
    holders = Holders()
    holders.add(1, [(MUCH, 40), (LITTLE, 50)])
    assert not holders.may_hold(MUCH, 90, 100), "a third may come"
    holders.expected = 2
    assert holders.may_hold(MUCH, 90, 100)
    assert not holders.may_hold(LITTLE, 90, 100)


def test_small_records_share_the_backlog_as_well(tmp_path: Path) -> None:
    with opened(tmp_path, backlog_max=300) as spool:
        writer = Writer(spool)
        reason, much = writer.until_refused(MUCH, size_bytes=100)
        assert reason is FullReason.SHARE
        assert 190 <= much <= 210
        writer.append(LITTLE, size_bytes=100)


def test_a_restart_knows_whose_its_records_are(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        Writer(spool).until_refused(MUCH)
    with opened(tmp_path) as spool:
        writer = Writer(spool)
        assert writer.until_refused(MUCH) == (FullReason.SHARE, 0)
        writer.append(LITTLE)


def test_room_that_comes_back_with_shipping_is_shared_anew(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        writer = Writer(spool)
        _, much = writer.until_refused(MUCH)
        spool.release(spool.end, now_ms=0)
        # All but what is in the segment that goes on.
        assert writer.until_refused(MUCH)[1] >= much - SEGMENT_BYTES_MIN // 8_000


def test_what_was_shipped_before_a_restart_is_nobodys(tmp_path: Path) -> None:
    with opened(tmp_path) as spool:
        writer = Writer(spool)
        writer.append(MUCH)
        spool.release(spool.end, now_ms=0)
    with opened(tmp_path) as spool:
        assert spool._holders.held_bytes(MUCH) == 0
        writer = Writer(spool)
        writer.append(LITTLE, size_bytes=1_000)
        assert spool._holders.held_bytes(LITTLE) > 1_000


@given(st.lists(st.tuples(st.integers(1, 4), st.sampled_from([MUCH, LITTLE, LATER, None]), st.integers(1, 99))))
def test_what_is_counted_is_what_is_there(records: list[tuple[int, Holder | None, int]]) -> None:
    holders = Holders()
    for segment, holder, size_bytes in records:
        holders.add(segment, [(holder, size_bytes)])
    left = list(records)
    for gone in (2, 1, 3, 4, 4):
        holders.forget(gone)
        left = [one for one in left if one[0] != gone]
        for holder in (MUCH, LITTLE, LATER):
            assert holders.held_bytes(holder) == sum(one[2] for one in left if one[1] == holder)
    assert holders._held == {}
