"""The sessions of this edge to one scheduler: one to each process of its intake.

The processes of an intake listen at one address, and the system chooses which of them a connection reaches. Each has
slots of its own, so an edge wants a session to every one: a session that reaches a process which has one already is
given up, and its link dials again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node_agent.uplink.session_link import LinkState, SessionLink
from orchestrator.placement.requests import PoolLoad
from orchestrator.policy.ids import EdgeId, PoolId, SchedulerId
from orchestrator.watch.shares import PROCESSES_MAX
from orchestrator.wire.frames import Load, Process


class SiteLinks:
    """Keeps a session to every process of one intake, and says which has the most openings."""

    def __init__(
        self,
        edge: EdgeId,
        scheduler: SchedulerId,
        target: str,
        wall_ms: Callable[[], int],
        went_on: Callable[[int], None] | None = None,
    ) -> None:
        self.target = target
        self._own = (edge, scheduler, target, wall_ms, went_on)
        self._links = [self._link()]  # bounded: PROCESSES_MAX
        self._changed = asyncio.Event()

    async def run(self) -> None:
        """Keep the links running, as many as the intake says that it has processes. Ends only when cancelled."""
        running: dict[SessionLink, asyncio.Task[None]] = {}
        try:
            while True:
                self._changed.clear()
                for link in self._links:
                    if link not in running:
                        running[link] = asyncio.create_task(link.run())
                for link in [one for one in running if one not in self._links]:
                    running.pop(link).cancel()
                await self._changed.wait()
        finally:
            for task in running.values():
                task.cancel()
            await asyncio.gather(*running.values(), return_exceptions=True)

    def states(self) -> tuple[LinkState, ...]:
        """Return the state of every session."""
        return tuple(link.state() for link in self._links)

    def streams(self) -> int:
        """Return how many streams are not settled."""
        return sum(state.streams for state in self.states())

    def view(self, pool: PoolId, now_us: int) -> tuple[bool, int | None, PoolLoad | None, int]:
        """Return what `routes` does: of a session nobody but the gate counts attempts.

        It is told of the processes that take work, and of all of them where none does.
        """
        links = self._links
        if len(links) == 1:
            # Nearly every site, asked for each pool of it in each decision.
            ready, rtt_us, found = links[0].view(pool, now_us)
            if found is None:
                return False, rtt_us, None, 0
            load, heard_us = found
            return ready, rtt_us, _told(load, heard_us, now_us), 0
        views = [link.view(pool, now_us) for link in links]
        ready = any(accepts for accepts, _, _ in views)
        heard = [found for accepts, _, found in views if found is not None and (accepts or not ready)]
        rtt_us = min((rtt_us for _, rtt_us, _ in views if rtt_us is not None), default=None)
        return ready and bool(heard), rtt_us, load_of(heard, now_us) if heard else None, 0

    def best(self, pool: PoolId) -> SessionLink:
        """Return the link that a new attempt at `pool` goes by. `routes` sends it."""
        if len(self._links) == 1:
            return self._links[0]
        return max(self._links, key=lambda link: _rank(link, pool))

    async def close(self) -> None:
        """Let what was decided leave. `run` must be cancelled after."""
        await asyncio.gather(*(link.close() for link in self._links), return_exceptions=True)

    def _link(self) -> SessionLink:
        return SessionLink(*self._own, self._wanted)

    def _wanted(self, link: SessionLink, process: Process) -> bool:
        """A session of `link` reached a process. Returns whether it is wanted there."""
        self._fit(link, min(process.count, PROCESSES_MAX))
        return link in self._links and all(
            other is link or other.process is None or other.process.index != process.index for other in self._links
        )

    def _fit(self, greeted: SessionLink, count: int) -> None:
        """Have as many links as the intake has processes; none that has work is given up."""
        idle = [link for link in self._links if link is not greeted and link.state().streams == 0]
        while len(self._links) > count and idle:
            self._links.remove(idle.pop())
        while len(self._links) < count:
            self._links.append(self._link())
        self._changed.set()


def load_of(heard: list[tuple[Load, int]], now_us: int) -> PoolLoad:
    """Return as one what the processes of an intake said of one pool, each with when it came. Pure.

    Each tells of its own share of the slots and the queue. The replicas, and the memory in them, all have in common.
    """
    first, *others = (_told(load, heard_us, now_us) for load, heard_us in heard)
    for other in others:
        first = _joined(first, other)
    return first


def _told(load: Load, heard_us: int, now_us: int) -> PoolLoad:
    return PoolLoad(
        load.replicas,
        load.slots,
        load.running,
        load.waiting,
        load.waiting_max,
        (now_us - heard_us) // 1000,
        load.queued_tokens,
        load.kv_tokens,
        load.kv_used_tokens,
        load.openings,
    )


def _joined(one: PoolLoad, other: PoolLoad) -> PoolLoad:
    return PoolLoad(
        max(one.replicas, other.replicas),
        one.slots + other.slots,
        one.running + other.running,
        one.waiting + other.waiting,
        one.waiting_max + other.waiting_max,
        max(one.age_ms, other.age_ms),
        _sum(one.queued_tokens, other.queued_tokens),
        _most(one.kv_tokens, other.kv_tokens),
        _most(one.kv_used_tokens, other.kv_used_tokens),
        _sum(one.openings, other.openings),
    )


def _sum(one: int | None, other: int | None) -> int | None:
    """Return the sum; None where one of them is unknown, for unknown is not zero."""
    return None if one is None or other is None else one + other


def _most(one: int | None, other: int | None) -> int | None:
    return other if one is None else one if other is None else max(one, other)


def _rank(link: SessionLink, pool: PoolId) -> tuple[bool, int, int]:
    state = link.state()
    return (state.accepts_work and link.load(pool) is not None, link.left(pool), -state.streams)
