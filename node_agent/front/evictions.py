"""Which connection is ended so that another finds room: the one whose client loses least by it.

First those that never had an answer, the oldest of them, all but the newest few: whoever has just come may still be
about to ask. Then those that had answers, by when they were used last: the pool of a client who asks now and then
outlives one that nobody uses. Last those on which something came since their last answer: it is a request on its way.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from itertools import islice

from node_agent.front.connection import Connection

NEWEST = 256
"""So many of those that never had an answer are not chosen while an idle one can be, or newcomers would only end each
other."""
CHOSEN_AT_ONCE = 64
"""Looking through all connections is paid for once for so many evictions."""


class Evictions:
    """Chooses among the connections of one server."""

    def __init__(self) -> None:
        self._next: list[tuple[Connection, float]] = []  # bounded: by CHOSEN_AT_ONCE
        """Who is chosen next, the first of them last, each with when its wait was to be over."""

    def choose(self, held: Collection[Connection]) -> Connection | None:
        """Return the one of `held` that is to be ended now; None when each has a request."""
        return self._still(held) or self._looked(held)

    def _still(self, held: Collection[Connection]) -> Connection | None:
        """Return one that was chosen before and of which nothing was heard since."""
        while self._next:
            connection, until_s = self._next.pop()
            if connection in held and not connection.busy and connection.waits_until_s == until_s:
                return connection
        return None

    def _looked(self, held: Collection[Connection]) -> Connection | None:
        found = list(islice(_in_order(held), CHOSEN_AT_ONCE))
        self._next = [(one, one.waits_until_s) for one in reversed(found)]
        return self._still(held)


def _in_order(held: Collection[Connection]) -> Iterator[Connection]:
    """Yield those that are not busy: who loses least first."""
    new: list[Connection] = []
    idle: list[Connection] = []
    heard: list[Connection] = []
    for one in held:
        if not one.busy:
            (new if not one.answered else heard if one.heard else idle).append(one)
    new.sort(key=lambda one: (one.heard, one.waits_until_s))
    older = max(0, len(new) - NEWEST)
    yield from new[:older]
    for group in (idle, new[older:], heard):
        group.sort(key=lambda one: one.waits_until_s)
        yield from group
