"""Who of the edges has how much at one pool, and the openings that follow: counted here, shared by `share_openings`.

Every reply carries openings, and sharing among many sessions takes time. So a sharing stands for a while that grows
with the sessions, and what a session starts meanwhile is taken from its share: nothing is granted twice.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
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
    starts: dict[int, int] = field(default_factory=dict)  # bounded: RECENT_S seconds
    """By second."""

    def recent(self, now_us: int) -> int:
        oldest = now_us // 1_000_000 - RECENT_S
        for second in [second for second in self.starts if second <= oldest]:
            del self.starts[second]
        return sum(self.starts.values())


class Grants(Generic[Session]):
    """The demands and openings of every session at one pool."""

    def __init__(self) -> None:
        self._held: dict[Session, _Held] = {}  # bounded: by the sessions that are open
        self._arriving = 0
        self._last_key = 0
        self._shared: tuple[int, int] | None = None
        """The turn of the last sharing, and when it was made."""

    def started(self, session: Session, now_us: int) -> bool:
        """An attempt arrived. Say whether it is the first of its session in a while."""
        held = self._known(session)
        first = held.in_flight == 0 and held.recent(now_us) == 0
        second = now_us // 1_000_000
        held.starts[second] = held.starts.get(second, 0) + 1
        held.in_flight += 1
        if held.openings:
            held.openings -= 1
        self._arriving += 1
        return first

    def queued(self) -> None:
        """An attempt that had arrived is in the queue now, or was turned away: the pool's own figures show it."""
        self._arriving -= 1

    def ended(self, session: Session) -> None:
        """An attempt ended."""
        held = self._held.get(session)
        if held is not None and held.in_flight:
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
        held = self._known(session)
        # What has arrived and is not in the queue yet will need room that nobody else sees taken.
        left = max(0, room - self._arriving)
        if held.openings is None or self._due(turn, now_us):
            self._share({*live(), session}, left, turn, now_us)
        return min(held.openings or 0, left)

    def _due(self, turn: int, now_us: int) -> bool:
        if self._shared is None:
            return True
        shared_turn, shared_us = self._shared
        return turn != shared_turn or now_us - shared_us >= len(self._held) * SHARE_EACH_US

    def _share(self, live: Collection[Session], room: int, turn: int, now_us: int) -> None:
        held = [self._known(session) for session in live]
        demands = [Demand(one.key, one.in_flight, one.recent(now_us)) for one in held]
        active = [one for one in demands if one.active]
        idle = [Demand(one.key, 0, 1) for one in demands if not one.active]
        kept = _kept(room, len(active), len(idle))
        shares = share_openings(room - kept, active, turn) | share_openings(kept, idle, turn)
        for one in held:
            one.openings = shares[one.key]
        self._shared = (turn, now_us)

    def _known(self, session: Session) -> _Held:
        held = self._held.get(session)
        if held is None:
            self._last_key += 1
            held = self._held[session] = _Held(f"{self._last_key:012}")
        return held


def _kept(room: int, active: int, idle: int) -> int:
    """Return the part of the room that sessions share which asked for nothing lately: each may be the next to ask.

    Without an active session it is the whole room. Else every idle one has an opening where the active ones have
    theirs, and up to `IDLE_EACH` out of a quarter of what is left: who wakes up often has more than one request.
    """
    if active == 0:
        return room
    spare = max(0, room - active)
    return max(min(idle, spare), min(spare // IDLE_SHARE, idle * IDLE_EACH))
