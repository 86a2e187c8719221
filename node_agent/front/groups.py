"""Requests begin in groups: what a group shares is paid for once, and no group is so large that others wait for it.

The requests of a group share a write of records, a signature and a message to each site, which together cost as much as
a whole request does. A loop that begins each as soon as it is read makes small groups. One that begins all that there
are makes ever larger ones: they go round together, and while the edge works on them the site has nothing to do.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

GROUP_MAX = 16
"""Begun in one turn of the loop. Measured with 32 connections: of 8 to 24, this served most (docs/performance.md)."""


class Groups:
    """What is to begin, in the order in which it came. It belongs to one event loop."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()  # bounded: by the connections, each with one request
        self._turning = False
        """Whether the loop was asked for a turn."""

    def add(self, begin: Callable[[], None]) -> None:
        """Have `begin` called in a turn of the loop that comes soon: after those that were added before, never now."""
        self._waiting.append(begin)
        if not self._turning:
            self._turning = True
            asyncio.get_running_loop().call_soon(self._look)

    def _look(self) -> None:
        """Less than a group has the loop look once more whether others came: it waits for nothing."""
        if len(self._waiting) >= GROUP_MAX:
            self._begin()
        else:
            asyncio.get_running_loop().call_soon(self._begin)

    def _begin(self) -> None:
        waiting = self._waiting
        try:
            for _ in range(min(len(waiting), GROUP_MAX)):
                waiting.popleft()()
        finally:
            # Also where one of them failed: the others have their turn.
            self._turning = bool(waiting)
            if waiting:
                asyncio.get_running_loop().call_soon(self._look)
