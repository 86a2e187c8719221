"""A process's side of the leases: what it may use of each limit now, and what it says to the watch. Pure.

It says at once what it has: only who finds none of it may wait a moment for a lease. What it may use grows only by what
it is told. Where it is told less than it uses, it keeps what runs and gives back each place as it comes free.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.watch.leases import LIMITS_MAX, TERM_US, Leased, Said, Told, Use

KEPT_US = 2_000_000
"""A need that is over is still told for so long: loads come in bursts, and each change of a share costs messages."""
SPARE_PART = 4
"""One part in so many of what is used is asked for beside it, so that the next ones find room at once."""


@dataclass(slots=True)
class _Wish:
    """A need that is told."""

    need: int
    since_us: int | None = None
    """When it was last as large; None when that was not told yet."""
    refused: int = 0
    """Uses that were refused since it was last told."""


class Holder:
    """Holds the part of one process in the limits of its program."""

    def __init__(self, leased: Leased, index: int) -> None:
        self._leased = leased
        self._index = index
        self._amounts: dict[str, int] | None = None
        """What it was told last; None before it was told anything."""
        self._used: dict[str, int] = {}  # bounded: by what is in use
        self._wishes: dict[str, _Wish] = {}  # bounded: LIMITS_MAX, and what it was told of
        self._said = 0
        self._heard = 0
        self._heard_us = 0

    def amount(self, name: str) -> int:
        """Return how much of a limit may be in use here. What is in use beyond it stays, and nothing is added."""
        if self._amounts is None:
            return self._leased.floor(name, self._index)
        amount = self._amounts.get(name)
        return self._leased.even(name, self._index) if amount is None else amount

    def lends(self, name: str) -> bool:
        """Return whether there is more of a limit than may be in use here and the others keep in any case."""
        leased, index = self._leased, self._index
        kept = sum(leased.floor(name, other) for other in range(leased.processes) if other != index)
        return self._amounts is not None and self.amount(name) + kept < leased.whole(name)

    def uneven(self) -> int:
        """Return of how many limits this process was told another amount than its even share."""
        amounts = self._amounts or {}
        return sum(1 for name, amount in amounts.items() if amount != self._leased.even(name, self._index))

    def taken(self, name: str) -> bool:
        """One more of a limit is in use. Returns whether the watch should hear of it now."""
        used = self._used[name] = self._used.get(name, 0) + 1
        return self._needs(name, self._aim(name, used))

    def refused(self, name: str) -> bool:
        """There was no room for one more. Returns whether the watch should hear of it now."""
        wish = self._wishes.get(name)
        if wish is not None:
            wish.refused += 1
        return self._needs(name, self._aim(name, max(self._used.get(name, 0), self.amount(name)) + 1))

    def freed(self, name: str) -> bool:
        """One less of a limit is in use. Returns whether the watch waits to hear of it."""
        used = self._used.pop(name) - 1
        if used:
            self._used[name] = used
        return used >= self.amount(name)

    def told(self, message: Told, now_us: int) -> bool:
        """Go by what the watch says. Returns whether that is something else than before, and so to be answered."""
        if message.number <= self._heard:
            return False
        before, self._amounts = self._amounts, message.amounts
        self._heard, self._heard_us = message.number, now_us
        return before != message.amounts

    def lapse(self, now_us: int) -> bool:
        """End what is beyond the even shares where the watch has been silent too long. Returns whether any was."""
        amounts = self._amounts or {}
        evens = {name: min(amount, self._leased.even(name, self._index)) for name, amount in amounts.items()}
        if now_us - self._heard_us <= TERM_US or evens == amounts:
            return False
        self._amounts = evens
        return True

    def saying(self, now_us: int) -> Said:
        """Return what the watch is to be told."""
        uses: dict[str, Use] = {}
        told = self._amounts or {}
        for name in sorted({*told, *self._wishes}):
            using = self._used.get(name, 0)
            need = self._need(name, using, now_us)
            if name in told or need > self._leased.even(name, self._index):
                uses[name] = Use(max(self.amount(name), using), need)
            else:
                del self._wishes[name]
        self._said += 1
        return Said(self._said, self._heard, uses)

    def _need(self, name: str, using: int, now_us: int) -> int:
        """Return what is told as needed: what is now, or was within the last moments."""
        wish = self._wishes.setdefault(name, _Wish(0))
        now = self._aim(name, using + wish.refused)
        wish.refused = 0
        if wish.since_us is None or now >= wish.need:
            wish.need, wish.since_us = max(now, wish.need), now_us
        elif now_us - wish.since_us > KEPT_US:
            wish.need, wish.since_us = now, now_us
        return wish.need

    def _needs(self, name: str, aim: int) -> bool:
        """Wish for `aim`. Returns whether that is more than was wished for, and than the even share."""
        wish = self._wishes.get(name)
        if wish is None:
            if aim <= self._leased.even(name, self._index) or len(self._wishes) >= LIMITS_MAX:
                return False
            self._wishes[name] = _Wish(aim)
            return True
        if aim <= wish.need:
            return False
        wish.need, wish.since_us = aim, None
        return True

    def _aim(self, name: str, used: int) -> int:
        """Return what is needed where so much is used: some spare beside it, in steps of a floor, within the whole."""
        step = self._leased.floor(name, self._index)
        return min(self._leased.whole(name), -(-(used + used // SPARE_PART + 1) // step) * step)
