"""Which records wait to be shipped, and where each begins, in as little memory as finding one again allows."""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left
from collections.abc import Callable, Collection, Iterable
from typing import Final

from orchestrator.spool.records import Position, RecordId

TAG_BYTES: Final = 4
BUCKETS: Final = 1 << 12
"""Of a million records some 250 are in each: a kilobyte, which is searched in less than a microsecond."""
_TAG_MASK: Final = (1 << (8 * TAG_BYTES)) - 1


class Backlog:
    """The records from the shipped position on, in the order of their positions: some 13 bytes for each.

    Of an id four bytes are kept, so that what is found only may be the record: whoever asks reads it to know. Of a
    million records one in some four thousand is taken for another.
    """

    __slots__ = ("_buckets", "_count", "_digest", "_segments")

    def __init__(self, digest: Callable[[str], int] = hash) -> None:
        """`digest` need not tell all ids apart."""
        self._digest = digest
        self._count = 0
        self._buckets = tuple(bytearray() for _ in range(BUCKETS))  # bounded: by the spool's bound on what waits
        """Tags, by what is left of them over `BUCKETS`. Empty they take a quarter of a megabyte."""
        self._segments: dict[int, tuple[array[int], array[int]]] = {}
        """By segment: where each record in it begins, and its tag."""

    def __len__(self) -> int:
        return self._count

    def tags(self, record_ids: Iterable[RecordId]) -> array[int]:
        """Return what is kept of each of these ids, in their order."""
        return array("I", [digest & _TAG_MASK for digest in map(self._digest, record_ids)])

    def may_hold(self, tags: array[int]) -> bool:
        """Whether a record that waits may have one of the ids of these tags: nearly never."""
        buckets = self._buckets
        for tag in tags:
            bucket = buckets[tag % BUCKETS]
            if bucket and tag.to_bytes(TAG_BYTES, sys.byteorder) in bucket:
                return True
        return False

    def add(self, segment: int, tags: array[int], offsets: Collection[int]) -> None:
        """Note records of a segment by their tags and where each begins, in this order and after all others."""
        buckets, written, at = self._buckets, tags.tobytes(), 0
        for tag in tags:
            bucket = buckets[tag % BUCKETS]
            bucket += written[at : at + TAG_BYTES]
            at += TAG_BYTES
        try:
            all_starts, all_tags = self._segments[segment]
        except KeyError:
            all_starts, all_tags = self._segments[segment] = (array("I"), array("I"))
        all_starts.extend(offsets)
        all_tags.extend(tags)
        self._count += len(tags)

    def find(self, record_id: RecordId) -> tuple[Position, ...]:
        """Return where the records begin that may have this id: nearly always none. Finding one takes long."""
        tag = self._digest(record_id) & _TAG_MASK
        written = tag.to_bytes(TAG_BYTES, sys.byteorder)
        if written not in self._buckets[tag % BUCKETS]:
            return ()
        found: list[Position] = []
        for segment, (starts, tags) in self._segments.items():
            data = tags.tobytes()
            place = _place(data, written, 0)
            while place >= 0:
                found.append(Position(segment, starts[place]))
                place = _place(data, written, place + 1)
        return tuple(found)

    def forget(self, position: Position) -> None:
        """Drop what begins before `position`."""
        for segment, (starts, tags) in tuple(self._segments.items()):
            if segment > position.segment:
                break
            count = len(starts) if segment < position.segment else bisect_left(starts, position.offset)
            for tag in tags[:count]:
                self._drop(tag)
            self._count -= count
            if count == len(starts):
                del self._segments[segment]
            else:
                del starts[:count], tags[:count]

    def _drop(self, tag: int) -> None:
        bucket = self._buckets[tag % BUCKETS]
        at = TAG_BYTES * _place(bucket, tag.to_bytes(TAG_BYTES, sys.byteorder), 0)
        del bucket[at : at + TAG_BYTES]


def _place(data: bytes | bytearray, tag: bytes, first: int) -> int:
    """Return the number of the first such tag from the number `first` on, -1 where there is none."""
    at = data.find(tag, first * TAG_BYTES)
    while at % TAG_BYTES and at >= 0:  # bytes of two neighbours
        at = data.find(tag, at + 1)
    return at // TAG_BYTES
