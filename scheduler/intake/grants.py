"""Who of the edges has how much at one pool, and the openings that follow: counted here, shared by `share_openings`.

Every reply carries openings, and sharing among many sessions takes time. So a sharing stands for a while that grows
with the sessions, and what a session starts meanwhile is taken from its share: nothing is granted twice.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from itertools import count
from typing import Generic, TypeVar

from orchestrator.placement.openings import Demand, share_openings

Session = TypeVar("Session")

RECENT_S = 10
"""Starts within so many seconds make a demand."""
IDLE_SHARE = 4
IDLE_EACH = 8
SHARE_EACH_US = 250
"""How long a sharing stands, for each session: among a thousand it is made four times a second."""


@dataclass(slots=True)
class _Held:
    key: str
    in_flight: int = 0
    openings: int | None = None
    """Of the last sharing, what is left; None before the first."""
    starts: Counter[int] = field(default_factory=Counter)  # bounded: RECENT_S seconds
    """By second."""
    count: int = 0
    """Of all of these."""

    def forget(self, now_s: int) -> None:
        """Forget what is recent no more."""
        for second in [second for second in self.starts if second <= now_s - RECENT_S]:
            self.count -= self.starts.pop(second)


class Grants(Generic[Session]):
    """The demands and openings of every session at one pool."""

    def __init__(self) -> None:
        keys = count(1)
        self._held: defaultdict[Session, _Held] = defaultdict(lambda: _Held(f"{next(keys):012}"))
        """Bounded: by the sessions that are open."""
        self.arriving = 0
        """Attempts that arrived and are neither in the queue yet, whose figures show them, nor turned away. Whoever
        moves one on counts it out."""
        self._shared: tuple[int, int] | None = None
        """The turn of the last sharing, and when it was made."""

    def started(self, session: Session, now_us: int) -> bool:
        """An attempt arrived. Say whether it is the first of its session in a while."""
        held, second = self._held[session], now_us // 1_000_000
        if second not in held.starts:
            held.forget(second)
        first = held.in_flight == 0 and held.count == 0
        held.starts[second] += 1
        held.count += 1
        held.in_flight += 1
        if held.openings:
            held.openings -= 1
        self.arriving += 1
        return first

    def ended(self, session: Session) -> None:
        """An attempt ended."""
        if session in self._held:
            held = self._held[session]
            if held.in_flight:
                held.in_flight -= 1

    def closed(self, session: Session) -> None:
        """A session is gone. What it left running is seen in the pool's own figures."""
        self._held.pop(session, None)
        self._shared = None

    def changed(self) -> None:
        """The room is another than before: whoever asks next is told of a new sharing."""
        self._shared = None

    def openings(
        self, session: Session, live: Callable[[], Collection[Session]], room: int, turn: int, now_us: int
    ) -> int:
        """Return what `session` may start now. The shares of all `live` sessions together never exceed the room.

        `turn` counts up four times a second: what does not reach round goes round with it.
        """
        held = self._held[session]
        # What has arrived and is not in the queue yet will need room that nobody else sees taken.
        left = room - self.arriving if room > self.arriving else 0
        if held.openings is None or self._due(turn, now_us):
            self._share({*live(), session}, left, turn, now_us)
        openings = held.openings or 0
        return openings if openings < left else left

    def _due(self, turn: int, now_us: int) -> bool:
        if self._shared is None:
            return True
        shared_turn, shared_us = self._shared
        return turn != shared_turn or now_us - shared_us >= len(self._held) * SHARE_EACH_US

    def _share(self, live: Collection[Session], room: int, turn: int, now_us: int) -> None:
        held = [self._held[session] for session in live]
        self._shared = (turn, now_us)
        if len(held) == 1:
            held[0].openings = room  # there is nobody to share it with
            return
        active: list[Demand] = []
        idle: list[Demand] = []
        for one in held:
            one.forget(now_us // 1_000_000)
            if one.in_flight or one.count:
                active.append(Demand(one.key, one.in_flight, one.count))
            else:
                idle.append(Demand(one.key, 0, 1))
        kept = _kept(room, len(active), len(idle)) if idle else 0
        shares = share_openings(room - kept, active, turn)
        if idle:
            shares |= share_openings(kept, idle, turn)
        for one in held:
            one.openings = shares[one.key]


def _kept(room: int, active: int, idle: int) -> int:
    """Return the part of the room that sessions share which asked for nothing lately: each may be the next to ask.

    Without an active session it is the whole room. Else every idle one has an opening where the active ones have
    theirs, and up to `IDLE_EACH` out of a quarter of what is left: who wakes up often has more than one request.
    """
    if active == 0:
        return room
    spare = max(0, room - active)
    return max(min(idle, spare), min(spare // IDLE_SHARE, idle * IDLE_EACH))
