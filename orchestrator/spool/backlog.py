"""Which records wait to be shipped, and where each begins, in as little memory as finding one again allows."""

from __future__ import annotations

from array import array
from bisect import bisect_left
from collections.abc import Callable
from itertools import islice
from typing import Final

from orchestrator.spool.records import Position, RecordId

_DIGEST_MASK: Final = (1 << 60) - 1
"""What an integer of Python holds in 32 bytes. An id as text takes three times as many."""


class Backlog:
    """The records from the shipped position on, in the order of their positions.

    An id is kept as a digest, so that what is found only may be the record: whoever asks reads it to know.
    """

    __slots__ = ("_digest", "_held", "_starts")

    def __init__(self, digest: Callable[[str], int] = hash) -> None:
        """`digest` need not tell all ids apart."""
        self._digest = digest
        self._held: dict[int | RecordId, None] = {}  # bounded: by the spool's bound on what waits
        """One for each record, in their order: the digest of its id, or the id where another has that digest."""
        self._starts: dict[int, array[int]] = {}
        """By segment: where each record in it begins."""

    def __len__(self) -> int:
        return len(self._held)

    def add(self, record_id: RecordId, position: Position) -> None:
        """Note a record that begins at `position`, after all others. An id that is held already keeps its place."""
        key: int | RecordId = self._digest(record_id) & _DIGEST_MASK
        if key in self._held:
            key = record_id
            if key in self._held:
                return
        self._held[key] = None
        try:
            self._starts[position.segment].append(position.offset)
        except KeyError:
            self._starts[position.segment] = array("I", (position.offset,))

    def find(self, record_id: RecordId) -> tuple[Position, ...]:
        """Return where the records begin that may have this id: nearly always none. Finding one takes long."""
        digest = self._digest(record_id) & _DIGEST_MASK
        if digest not in self._held and record_id not in self._held:
            return ()
        found = [place for place, key in enumerate(self._held) if key in (digest, record_id)]
        return tuple(self._at(place) for place in found)

    def forget(self, position: Position) -> None:
        """Drop what begins before `position`."""
        shipped = 0
        for segment, starts in tuple(self._starts.items()):
            if segment > position.segment:
                break
            count = len(starts) if segment < position.segment else bisect_left(starts, position.offset)
            shipped += count
            if count == len(starts):
                del self._starts[segment]
            else:
                del starts[:count]
        for key in tuple(islice(self._held, shipped)):
            del self._held[key]

    def _at(self, place: int) -> Position:
        for segment, starts in self._starts.items():
            if place < len(starts):
                return Position(segment, starts[place])
            place -= len(starts)
        raise IndexError("a record of the backlog has its place in a segment")
