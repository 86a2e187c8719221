"""The watch's side of the leases: what each process may still be using, and what it is told it may use. Pure.

For every limit that is not shared evenly, and each process, three things are kept: what it said that it holds, the
amounts of messages that it may not have heard yet, and what it is to have now. It may be using the largest of these,
and over all processes these never exceed the whole. So one is told more only out of what is left, and one that is told
less is counted with what it had until it says that it has given it back. One that died uses nothing any more, and the
one that is started in its place begins with its floor.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from orchestrator.watch.leases import LIMITS_MAX, Leased, Said, Told, fill, targets


@dataclass(slots=True)
class _Part:
    """What one process has of one limit."""

    amount: int
    """What it is to have."""
    held: int
    need: int = 0
    unheard: deque[tuple[int, int]] = field(default_factory=deque)  # bounded: amounts that fall, each but once
    """Numbers and amounts of messages it may yet go by. An amount that no later one exceeds is all that counts."""

    def most(self) -> int:
        """Return what the process may be using, now or once it hears what was said."""
        return max(self.amount, self.held, self.unheard[0][1] if self.unheard else 0)

    def told(self, number: int) -> None:
        while self.unheard and self.unheard[-1][1] <= self.amount:
            self.unheard.pop()
        self.unheard.append((number, self.amount))

    def heard(self, number: int) -> bool:
        before = len(self.unheard)
        while self.unheard and self.unheard[0][0] <= number:
            self.unheard.popleft()
        return len(self.unheard) < before


@dataclass(slots=True)
class _Process:
    there: bool = False
    told: int = 0
    """Number of the last message to it, and to those before it in its place."""
    said: int = 0
    """Number of the last message of it that counted."""


class Lessor:
    """Leases the limits of one program to its processes."""

    def __init__(self, leased: Leased) -> None:
        self._leased = leased
        self._processes = [_Process() for _ in range(leased.processes)]
        self._limits: dict[str, list[_Part]] = {}  # bounded: LIMITS_MAX
        self._stale: set[str] = set()
        """Limits of which something changed since they were last shared out."""

    def came(self, index: int) -> None:
        """A process was started. Nothing of it was heard, and it was told nothing."""
        process = self._processes[index]
        process.there, process.said = True, 0
        self._stale.update(self._limits)

    def gone(self, index: int) -> None:
        """A process is dead, for certain: what it had is free."""
        self._processes[index].there = False
        for name, parts in self._limits.items():
            floor = self._leased.floor(name, index)
            parts[index] = _Part(floor, floor)
        self._stale.update(self._limits)

    def said(self, index: int, message: Said) -> bool:
        """Take in what a process says. Returns False for what is older than what is known."""
        process = self._processes[index]
        if not process.there or message.number <= process.said or message.heard > process.told:
            return False
        process.said = message.number
        for name, use in message.uses.items():
            if name not in self._limits and not self._opened(name, use.need, index):
                continue
            part = self._limits[name][index]
            if (part.held, part.need) != (use.held, use.need):
                part.held, part.need = use.held, use.need
                self._stale.add(name)
        for name, parts in self._limits.items():
            part = parts[index]
            if name not in message.uses and part.need:
                part.need = 0
                self._stale.add(name)
            if part.heard(message.heard):
                self._stale.add(name)
        return True

    def plan(self) -> set[int]:
        """Share out anew what has changed. Returns the processes that are to be told something else than before."""
        changed: set[int] = set()
        for name in self._stale:
            changed |= self._shared_out(name)
        self._stale.clear()
        return {index for index in changed if self._processes[index].there}

    def telling(self, index: int) -> Told:
        """Return what a process is to be told now. Whether it arrives is another matter."""
        process = self._processes[index]
        process.told += 1
        amounts: dict[str, int] = {}
        for name, parts in self._limits.items():
            parts[index].told(process.told)
            amounts[name] = parts[index].amount
        return Told(process.told, amounts)

    def _opened(self, name: str, need: int, index: int) -> bool:
        """Begin to share a limit unevenly, where that is asked for. Returns whether it is so shared now."""
        leased = self._leased
        if not leased.knows(name) or need <= leased.even(name, index) or len(self._limits) >= LIMITS_MAX:
            return False
        parts = []
        for at, process in enumerate(self._processes):
            amount = leased.even(name, at) if process.there else leased.floor(name, at)
            part = _Part(amount, amount)
            if process.there:
                # Until it hears more, it goes by what it was told, which does not name this limit.
                part.told(process.told)
            parts.append(part)
        self._limits[name] = parts
        return True

    def _shared_out(self, name: str) -> set[int]:
        parts = self._limits[name]
        before = [part.amount for part in parts]
        there = [process.there for process in self._processes]
        needs = [part.need if here else None for part, here in zip(parts, there, strict=True)]
        aims = targets(self._leased, name, needs)
        for part, aim in zip(parts, aims, strict=True):
            part.amount = min(part.amount, aim)
        left = self._leased.whole(name) - sum(part.most() for part in parts)
        more = fill(left, [max(0, aim - part.most()) for part, aim in zip(parts, aims, strict=True)])
        for part, aim, one in zip(parts, aims, more, strict=True):
            part.amount = min(aim, part.most() + one)
        if self._at_rest(name):
            del self._limits[name]
            return set(range(len(parts)))
        return {at for at, part in enumerate(parts) if part.amount != before[at]}

    def _at_rest(self, name: str) -> bool:
        """Whether every process has its even share of a limit and needs no more."""
        for index, part in enumerate(self._limits[name]):
            even = self._leased.even(name, index)
            if self._processes[index].there and not part.need <= part.amount == part.most() == even:
                return False
        return True
