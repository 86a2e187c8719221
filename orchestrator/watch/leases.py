"""Leased shares of a program's limits: what there is, how much of it each process should have, and what is said. Pure.

Each limit has a name, `<kind>` or `<kind>/<whose>`, and a whole that its kind gives. At rest every process may use an
even share of it, and nobody speaks of it. A process that is short says so to the watch. The watch has those that need
less give back what is free, down to a floor that stays theirs, and once they have said that they did, it gives that to
the one that is short. So at no moment may the processes together use more than the whole, whatever is late, lost or
dead: `lessor` counts what each may still be using, `holder` never uses more than it was told.

A message says all there is to say. One that is lost is made good by the next, and one that comes after a later one is
left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import msgspec

from orchestrator.watch.parts import share

FLOOR_PART = 8
"""One part in so many of its even share stays with a process that needs nothing: what it begins with."""
LIMITS_MAX = 256
"""Limits that are shared unevenly at once. Of any other, each process has its even share."""
BEAT_US = 500_000
"""How often watch and process speak at least."""
TERM_US = 5_000_000
"""What a process has beyond its even share ends when it hears nothing of the watch for so long."""


@dataclass(frozen=True, slots=True)
class Leased:
    """The limits of one program that are leased, and between how many processes."""

    wholes: Mapping[str, int]
    """By kind, at least one for each process."""
    processes: int

    def knows(self, name: str) -> bool:
        """Whether `name` is that of a limit."""
        return _kind(name) in self.wholes

    def whole(self, name: str) -> int:
        """Return what all processes together may use."""
        return self.wholes[_kind(name)]

    def even(self, name: str, index: int) -> int:
        """Return the even share of process `index`. The shares are the whole."""
        return share(self.whole(name), self.processes, index)

    def floor(self, name: str, index: int) -> int:
        """Return what a process may use whatever the others need: some of its even share, and never nothing."""
        return max(1, self.even(name, index) // FLOOR_PART)


class Use(msgspec.Struct, frozen=True, array_like=True):
    """What a process says of one limit."""

    held: int
    """It uses no more than this, and never will unless it is told more."""
    need: int
    """What it could do with."""


class Said(msgspec.Struct, frozen=True, array_like=True):
    """A process to the watch."""

    number: int
    """From 1, one more each time."""
    heard: int
    """Number of the last message of the watch that it goes by; 0 for none."""
    uses: dict[str, Use]
    """Of every limit that it was told of, and of those of which it needs more than its even share."""


class Told(msgspec.Struct, frozen=True, array_like=True):
    """The watch to a process."""

    number: int
    """From 1, one more each time."""
    amounts: dict[str, int]
    """What the process may use of each limit named here. Of every other it may use its even share."""


def fill(room: int, wants: Sequence[int]) -> list[int]:
    """Share `room` out to those who want some: as evenly as can be, nobody more than is wanted.

    The parts add up to the smaller of `room` and all that is wanted.
    """
    parts = [0] * len(wants)
    for done, at in enumerate(sorted(range(len(wants)), key=lambda at: wants[at])):
        parts[at] = max(0, min(wants[at], room // (len(wants) - done)))
        room -= parts[at]
    return parts


def targets(leased: Leased, name: str, needs: Sequence[int | None]) -> list[int]:
    """Return what each process should have of a limit, by what it needs; None for a process that is not there.

    Nobody has less than its floor, nor than it needs of its even share. Needs beyond that are met as evenly as can be,
    and what nobody needs is shared out evenly.
    """
    parts = [leased.floor(name, index) for index in range(leased.processes)]
    evens = [leased.even(name, index) for index in range(leased.processes)]
    known = [need or 0 for need in needs]
    for aims in (list(map(min, known, evens)), known, evens):
        wants = [0 if need is None else max(0, aim - part) for need, aim, part in zip(needs, aims, parts, strict=True)]
        more = fill(leased.whole(name) - sum(parts), wants)
        parts = [part + one for part, one in zip(parts, more, strict=True)]
    return parts


def _kind(name: str) -> str:
    return name.partition("/")[0]
