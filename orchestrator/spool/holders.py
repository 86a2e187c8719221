"""How many bytes of a spool are whose, and who may have more. Pure; used under the lock of its spool.

Nothing in a spool makes room by itself, as a request does that ends. So here a holder may have at most twice what is
free: one alone takes two thirds of what is shared, and whoever comes later finds the rest.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from orchestrator.placement import shares
from orchestrator.spool.records import Holder

IDLE_FACTOR: Final = 2
"""A holder may have so many times what is free, beyond its equal share."""


class Holders:
    """Counts, by segment, what each holder has. What no holder is known of is nobody's."""

    __slots__ = ("_held", "_segments", "expected")

    def __init__(self) -> None:
        self._held: dict[Holder, int] = {}  # bounded: by the holders that have something
        self._segments: dict[int, dict[Holder, int]] = {}  # bounded: by the segments
        self.expected: int | None = None
        """How many holders there are in all, where that is known: one alone shares with nobody."""

    def add(self, segment: int, sizes: Iterable[tuple[Holder | None, int]]) -> None:
        """Count records of a segment: whose each is, and its bytes."""
        held = self._held
        here = self._segments.get(segment)
        if here is None:
            here = self._segments[segment] = {}
        for holder, size_bytes in sizes:
            if holder is not None:
                here[holder] = here.get(holder, 0) + size_bytes
                held[holder] = held.get(holder, 0) + size_bytes

    def forget(self, segment: int) -> None:
        """A segment was deleted."""
        for holder, size_bytes in self._segments.pop(segment, {}).items():
            self._held[holder] -= size_bytes
            if not self._held[holder]:
                del self._held[holder]

    def held_bytes(self, holder: Holder) -> int:
        """Return what one holder has."""
        return self._held.get(holder, 0)

    def may_hold(self, holder: Holder, used_bytes: int, shared_bytes: int) -> bool:
        """Whether a holder may have more, where `used_bytes` are taken and `shared_bytes` are for all of them.

        Where all of these are taken, one that has less than its equal share may still.
        """
        if self.expected == 1:
            return True
        held = self._held.get(holder, 0)
        count = len(self._held) + (held == 0)
        if self.expected is not None and count >= self.expected:
            count = self.expected - 1  # nobody else comes
        taken = used_bytes if used_bytes < shared_bytes else shared_bytes - 1
        return shares.may_hold(held, taken, shared_bytes, count, IDLE_FACTOR)
