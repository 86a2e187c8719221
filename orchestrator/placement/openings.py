"""Openings: how an intake shares its room among the edges that have sessions with it.

Edges do not see each other. In one instant many of them may hold the same cheap pool for the best, and each would be
right alone. So the intake tells each session how many requests it may send, its openings, and all of them together
never exceed its room: however many edges choose the pool at once, what arrives fits.

Room is the free slots and the free places in the queue. With free slots alone a busy pool, whose slots are all taken,
would have no openings and so be infeasible for everybody: its queue would run empty before anyone could send again, and
an edge could not choose to wait there even when waiting is cheaper than another pool. What waiting costs is for the
score to say (`queue_wait`), not for the room.

A share holds until the next one, which replaces it. What an edge sent by the old share and the intake has not seen yet
is in no count, so an intake still refuses what does not fit; that refusal is `not_started` and free.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import msgspec

SessionKey = str
"""What the intake knows a session by."""


class Demand(msgspec.Struct, frozen=True):
    """What one session asked of this intake. Raises ValueError for a negative count."""

    key: SessionKey
    in_flight: int
    """Requests of this session that wait or run here."""
    recent: int
    """Requests of this session that reached the intake in the last while, the refused ones included."""

    def __post_init__(self) -> None:
        if self.in_flight < 0 or self.recent < 0:
            raise ValueError("a demand has no negative counts")


def share_openings(room: int, sessions: Sequence[Demand], turn: int) -> dict[SessionKey, int]:
    """Return the openings of every session, 0 included. `turn` is the number of this sharing, one more each time.

    Every active session gets one, then every idle session one, and what is left goes to the active sessions in
    proportion to ``in_flight + recent + 1`` by largest remainder. While two are active, none gets more than half of the
    room, rounded up; what that cuts off goes to the others. Where something does not reach round, it goes round: while
    room and sessions stay as they are, each of n sessions that share k has had its own within ceil(n / k) turns. The
    order of `sessions` does not matter. O(n log n). Raises ValueError when a key is there twice.
    """
    shares: dict[SessionKey, int] = {}
    weights: dict[SessionKey, int] = {}
    idle: list[SessionKey] = []
    for demand in sorted(sessions, key=attrgetter("key")):
        key, weight = demand.key, demand.in_flight + demand.recent
        shares[key] = 0
        if weight:
            weights[key] = weight + 1
        else:
            idle.append(key)
    if len(shares) != len(sessions):
        raise ValueError("a session is there twice")
    active = list(weights)
    left = max(room, 0)
    for keys in (active, idle):
        if keys:
            chosen = _by_turn(len(keys), min(left, len(keys)), turn)
            left -= len(chosen)
            for place in chosen:
                shares[keys[place]] = 1
    if active and left:
        extras = _in_proportion(left, list(weights.values()), (room + 1) // 2 - 1, turn)
        for key, extra in zip(active, extras, strict=True):
            shares[key] += extra
    return shares


def _by_turn(places: int, count: int, turn: int) -> list[int]:
    """Return `count` of the places from 0 on; those of the next turn follow on them, round and round."""
    return [(turn * count + step) % places for step in range(count)]


def _in_proportion(total: int, weights: Sequence[int], most: int, turn: int) -> list[int]:
    """Share the whole of `total`. Where several share, none gets more than `most`, which is half of it or more."""
    top = max(range(len(weights)), key=weights.__getitem__)
    if len(weights) == 1 or total * weights[top] <= most * sum(weights):
        return _by_largest_remainder(total, weights, turn)
    # No second one can be above half, not even of what the first gives up.
    rest = _by_largest_remainder(total - most, [*weights[:top], *weights[top + 1 :]], turn)
    return [*rest[:top], most, *rest[top:]]


def _by_largest_remainder(total: int, weights: Sequence[int], turn: int) -> list[int]:
    """Share the whole of `total` by the largest remainder method (Hamilton's); equal remainders take turns."""
    whole = sum(weights)
    shares = [total * weight // whole for weight in weights]
    remainders = [total * weight % whole for weight in weights]
    missing = total - sum(shares)
    if missing:
        last = sorted(remainders, reverse=True)[missing - 1]
        above = [place for place, remainder in enumerate(remainders) if remainder > last]
        equal = [place for place, remainder in enumerate(remainders) if remainder == last]
        chosen = _by_turn(len(equal), missing - len(above), turn)
        for place in (*above, *(equal[one] for one in chosen)):
            shares[place] += 1
    return shares
