"""How many connections of tenants an edge may hold by the descriptors that it may have.

A descriptor that a silent client holds is one that no record, key or engine can have: so the connections are bounded
below the limit, and what everything else needs is kept back.
"""

from __future__ import annotations

KEPT = 256
"""For the program itself: records, keys, bundles, sessions, and connections that are accepted only to be refused."""
LEAST = 16


def connections_within(descriptors: int, requests: int, ways: int, most: int) -> int:
    """Return how many connections to hold, of at most `most`, with so many descriptors.

    Each of `requests` that run at once takes one more descriptor for each of `ways`: to an engine by URL, or to and
    from another process of the edge. Where there are few descriptors, connections have their part of them, for no
    request runs without one.
    """
    free = descriptors - KEPT
    return max(LEAST, min(most, max(free - ways * requests, free // (1 + ways))))
