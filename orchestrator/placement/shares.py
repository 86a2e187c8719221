"""Who may hold one more of a bounded number of places, so that none of the holders can take the room of the others.

A holder may use what is idle, but never all of it: the nearer the places come to their end, the less may one holder
have beyond its equal share (a dynamic threshold, as switches use it for shared buffers). So whoever holds little finds
room at once, and it is the one with more than its share that is turned away first.
"""

from __future__ import annotations

IDLE_FACTOR = 8
"""A holder may have at most so many times what is free: one alone leaves a ninth of the places to others."""


def equal_share(places: int, holders: int) -> int:
    """Return what each of `holders` may have whatever the others do: at least one place."""
    share = places // holders if holders > 1 else places
    return share if share > 1 else 1


def may_hold(held: int, taken: int, places: int, holders: int, idle_factor: int = IDLE_FACTOR) -> bool:
    """Whether one that has `held` of the `taken` places may take one more, of `places` that there are.

    `holders` counts those that hold a place, and the one that asks. `idle_factor` is as `IDLE_FACTOR`.
    """
    if taken >= places:
        return False
    # The share as it would be with one holder more: whoever comes next finds room.
    return held < idle_factor * (places - taken) or held < equal_share(places, holders + 1)
