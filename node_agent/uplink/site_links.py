"""The sessions of this edge to one scheduler: one to each process of its intake.

The processes of an intake listen at one address, and the system chooses which of them a connection reaches. Each has
slots of its own, so an edge wants a session to every one: a session that reaches a process which has one already is
given up, and its link dials again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable

from node_agent.uplink.session_link import LinkState, Sendable, SessionLink, Tally
from orchestrator.placement.requests import PoolLoad
from orchestrator.policy.ids import EdgeId, PoolId, SchedulerId
from orchestrator.watch.shares import PROCESSES_MAX
from orchestrator.wire.frames import Load, Process, StreamFrame


class SiteLinks:
    """Keeps a session to every process of one intake, and gives each attempt to the one with the most openings."""

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

    def view(self, pool: PoolId) -> tuple[bool, int | None, PoolLoad | None]:
        """Return whether `pool` takes a new attempt, the round trip, and how the pool is; None where it is unknown.

        It is told of the processes that take work, and of all of them where none does.
        """
        states = [(link, link.state()) for link in self._links]
        ready = [link for link, state in states if state.accepts_work]
        heard = [found for link in ready or self._links if (found := link.load(pool)) is not None]
        rtt_us = min((state.rtt_us for _, state in states if state.rtt_us is not None), default=None)
        return bool(ready and heard), rtt_us, load_of(heard) if heard else None

    def send(self, sendable: Sendable, tally: Tally) -> AsyncGenerator[StreamFrame, None]:
        """Send one attempt, as `SessionLink.send`."""
        if len(self._links) == 1:
            return self._links[0].send(sendable, tally)
        return max(self._links, key=lambda link: _rank(link, sendable.pool)).send(sendable, tally)

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


def load_of(heard: list[tuple[Load, int]]) -> PoolLoad:
    """Return as one what the processes of an intake said of one pool, each with its age in milliseconds. Pure.

    Each tells of its own share of the slots and the queue. The replicas, and the memory in them, all have in common.
    """
    said = [load for load, _ in heard]
    return PoolLoad(
        replicas=max(load.replicas for load in said),
        slots=sum(load.slots for load in said),
        running=sum(load.running for load in said),
        waiting=sum(load.waiting for load in said),
        waiting_max=sum(load.waiting_max for load in said),
        age_ms=max(age_ms for _, age_ms in heard),
        queued_tokens=_sum(load.queued_tokens for load in said),
        kv_tokens=_max(load.kv_tokens for load in said),
        kv_used_tokens=_max(load.kv_used_tokens for load in said),
        openings=_sum(load.openings for load in said),
    )


def _sum(figures: Iterable[int | None]) -> int | None:
    """Return the sum; None where one of them is unknown, for unknown is not zero."""
    found = tuple(figures)
    known = [figure for figure in found if figure is not None]
    return sum(known) if len(known) == len(found) else None


def _max(figures: Iterable[int | None]) -> int | None:
    return max((figure for figure in figures if figure is not None), default=None)


def _rank(link: SessionLink, pool: PoolId) -> tuple[bool, int, int]:
    state = link.state()
    return (state.accepts_work and link.load(pool) is not None, link.left(pool), -state.streams)
