"""One pool: its replicas, the line before them, and what it says of itself."""

from __future__ import annotations

from collections import deque

from orchestrator.placement.replay.replica import Attempt, Replica
from orchestrator.placement.replay.router import Router
from orchestrator.placement.replay.world import PoolReport, SimPool

REPORT_AT_LEAST_US = 10_000_000
"""A pool that has nothing new to say still says so this often."""


class Site:
    """The replicas of one pool behind one scheduler, whose choice is the router's `replica`.

    While every replica has as many requests as slots, a request for the pool waits in the pool's line, and is given to
    a replica when one has room. A request that was sent to a replica by name goes past that line into the replica's.
    """

    __slots__ = ("_down", "_line", "_number", "_pool", "_router", "_said_idle_us", "index", "replicas")

    def __init__(self, index: int, pool: SimPool, block_tokens: int, router: Router) -> None:
        """Start up and idle."""
        self.index = index
        self.replicas = [
            Replica(index, number, pool.gpu, block_tokens, pool.waiting_max) for number in range(pool.replicas)
        ]
        self._pool = pool
        self._router = router
        self._line: deque[Attempt] = deque()  # bounded: by waiting_max, on arrival
        self._down = 0
        """Outages that hold now: they may overlap."""
        self._number = 0
        self._said_idle_us = -1
        """When it last said that it is idle, if it has been so at every report since; else -1."""

    @property
    def up(self) -> bool:
        """Whether no outage holds."""
        return not self._down

    @property
    def line(self) -> int:
        """Requests that no replica was given yet."""
        return len(self._line)

    def take(self, attempt: Attempt, now_us: int) -> bool:
        """Give a request that has reached the pool to a replica, or keep it in line; False when neither can be."""
        attempt.reached_us = now_us
        request, pool = attempt.request, self._pool
        tokens = request.prompt_tokens + request.output_tokens
        if self._down or request.model != pool.model or tokens > min(pool.context_tokens, pool.gpu.kv_tokens):
            return False
        if attempt.asked >= 0:
            return self.replicas[attempt.asked].submit(attempt, now_us)
        if not self._line and self._has_room():
            return self._assign(attempt, now_us)
        if len(self._line) >= pool.waiting_max:
            return False
        self._line.append(attempt)
        return True

    def give_out(self, now_us: int) -> tuple[list[Attempt], list[Attempt]]:
        """Give the line to replicas that have room; return those given out, and those that their replica refused."""
        given: list[Attempt] = []
        refused: list[Attempt] = []
        while self._line and self._has_room():
            attempt = self._line.popleft()
            (given if self._assign(attempt, now_us) else refused).append(attempt)
        return given, refused

    def report(self, now_us: int) -> PoolReport:
        """Say how things are now. The number is that of the last report that was sent."""
        replicas = self.replicas
        return PoolReport(
            self._number,
            now_us,
            tuple([replica.running for replica in replicas]),
            tuple([replica.present - replica.running for replica in replicas]),
            tuple([replica.queued_tokens(now_us) for replica in replicas]),
            tuple([replica.memory.used_tokens for replica in replicas]),
            len(self._line),
            not self._down,
        )

    def news(self, now_us: int) -> PoolReport | None:
        """Return the report that is due, or None: while it is down, or still idle since it last said so."""
        if self._down:
            return None
        if self._line or any(replica.present for replica in self.replicas):
            self._said_idle_us = -1
        elif self._said_idle_us >= 0 and now_us - self._said_idle_us < REPORT_AT_LEAST_US:
            return None
        else:
            self._said_idle_us = now_us
        self._number += 1
        return self.report(now_us)

    def told(self, now_us: int) -> PoolReport:
        """Return a report that goes with a reply."""
        self._number += 1
        return self.report(now_us)

    def go_down(self, now_us: int) -> tuple[list[Attempt], PoolReport]:
        """An outage begins: return what it cuts, and what the closed sockets tell the edges."""
        self._down += 1
        cut = [attempt for replica in self.replicas for attempt in replica.break_all(now_us)]
        for attempt in self._line:
            attempt.refused = True
            attempt.ended_us = now_us
        cut.extend(self._line)
        self._line.clear()
        return cut, self._announced(now_us)

    def come_up(self, now_us: int) -> PoolReport | None:
        """An outage ends: return what an idle and cold pool reports, or None when another outage still holds."""
        self._down -= 1
        return None if self._down else self._announced(now_us)

    def _announced(self, now_us: int) -> PoolReport:
        self._said_idle_us = now_us
        self._number += 1
        return self.report(now_us)

    def _has_room(self) -> bool:
        slots = self._pool.gpu.slots
        return any(replica.present < slots for replica in self.replicas)

    def _assign(self, attempt: Attempt, now_us: int) -> bool:
        chosen = self._router.replica(attempt.request, self.index, self.report(now_us), now_us)
        if not 0 <= chosen < len(self.replicas):
            raise ValueError(f"pool {self.index} has no replica {chosen}")
        return self.replicas[chosen].submit(attempt, now_us)
