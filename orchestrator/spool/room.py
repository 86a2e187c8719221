"""The bounds of a spool, and which record is refused at which of them. Pure."""

from __future__ import annotations

from typing import Final

import msgspec

from orchestrator.spool.framing import SEGMENT_HEADER_BYTES
from orchestrator.spool.holders import IDLE_FACTOR, Holders
from orchestrator.spool.records import DATA_BYTES_MAX, FullReason, Offered, Rank

SEGMENT_BYTES_MIN: Final = 2 * DATA_BYTES_MAX
SEGMENT_BYTES_MAX: Final = 64 * 1024 * 1024
SEGMENTS_MIN: Final = 4
BACKLOG_MAX: Final = 1_000_000
"""Each takes some 16 bytes of memory."""


class Room(msgspec.Struct, frozen=True):
    """What a spool may hold."""

    capacity_bytes: int
    reserve_bytes: int
    """Kept from new durable records."""
    closing_bytes: int
    """Kept from all new records."""
    backlog_max: int
    easy_bytes: int
    """While a spool takes no more than this, and fewer than half of `backlog_max` wait, nothing is refused."""

    def refusal(self, one: Offered, used_bytes: int, waiting: int, holders: Holders) -> FullReason | None:
        """Return which bound keeps a record out of a spool of so many bytes, with so many records that wait."""
        left_bytes = self.capacity_bytes - used_bytes - one.size_bytes - SEGMENT_HEADER_BYTES
        if left_bytes < 0:
            return FullReason.CAPACITY
        if one.rank is Rank.CLOSES:
            return None
        if waiting >= self.backlog_max:
            return FullReason.BACKLOG
        half = left_bytes < self.capacity_bytes // 2 or waiting >= self.backlog_max // 2
        if half and one.rank is Rank.SPARE:
            return FullReason.SPARE_ROOM
        shared_bytes = self.shared_bytes(used_bytes, waiting)
        if one.holder is not None and not holders.may_hold(one.holder, used_bytes, shared_bytes):
            return FullReason.SHARE
        if left_bytes < self.closing_bytes:
            return FullReason.CLOSING_RESERVE
        if one.durable and left_bytes < self.reserve_bytes:
            return FullReason.REGULATED_RESERVE
        return None

    def shared_bytes(self, used_bytes: int, waiting: int) -> int:
        """Return what holders share: what a regulated request may fill, or as much as the backlog will reach to.

        So what one of them sends, regulated or not, leaves the others room for both.
        """
        open_bytes = self.capacity_bytes - self.reserve_bytes
        if not waiting:
            return open_bytes
        reach_bytes = used_bytes * self.backlog_max // waiting
        return reach_bytes if reach_bytes < open_bytes else open_bytes


def room_of(
    capacity_bytes: int, segment_bytes: int, reserve_bytes: int | None, closing_bytes: int | None, backlog_max: int
) -> Room:
    """Return the bounds of a spool: a reserve of None is as `Spool` says. Raises ValueError for nonsense."""
    reserve = capacity_bytes // 4 if reserve_bytes is None else reserve_bytes
    closing = min(capacity_bytes // 16, reserve) if closing_bytes is None else closing_bytes
    if not SEGMENT_BYTES_MIN <= segment_bytes <= SEGMENT_BYTES_MAX:
        raise ValueError(f"segment_bytes: expected {SEGMENT_BYTES_MIN} to {SEGMENT_BYTES_MAX}")
    if capacity_bytes < SEGMENTS_MIN * segment_bytes:
        raise ValueError(f"capacity_bytes: expected at least {SEGMENTS_MIN} segments")
    if not 0 <= closing <= reserve < capacity_bytes:
        raise ValueError("expected 0 <= closing_reserve_bytes <= regulated_reserve_bytes < capacity_bytes")
    easy = capacity_bytes - SEGMENT_HEADER_BYTES - max(capacity_bytes // 2, reserve)
    # One that has all of it may still have more.
    easy = min(easy, (capacity_bytes - reserve) * IDLE_FACTOR // (IDLE_FACTOR + 1))
    return Room(capacity_bytes, reserve, closing, backlog_max, easy)
