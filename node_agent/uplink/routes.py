"""Every way out of the edge: sessions to each scheduler of the declared fleet, and a link per configured engine."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping

from node_agent.uplink.engine_link import EngineLink
from node_agent.uplink.sending import Sendable, Sending, Tally, Unsent
from node_agent.uplink.session_link import LinkState
from node_agent.uplink.site_links import SiteLinks
from orchestrator.placement.fleet import Fleet, Pool
from orchestrator.placement.requests import PoolLoad
from orchestrator.policy.ids import EdgeId, SchedulerId
from orchestrator.wire.deadlines import Deadlines

LEAVE_S = 3.0
IN_REGION_RTT_US = 1_000
"""Between an edge and an engine beside it is no border, and the time of a probe is the engine's, not the network's."""

Way = tuple[bool, int | None, PoolLoad | None, int]
"""What the way to a pool says of it: whether it takes a new attempt, the round trip, how the pool is (None where these
are unknown), and how many attempts run there that only the way counts."""
NO_WAY: Way = (False, None, None, 0)


class Routes:
    """Follows the declared fleet and carries permitted attempts. Decides nothing."""

    def __init__(
        self,
        edge: EdgeId,
        engines: Mapping[str, EngineLink],
        wall_ms: Callable[[], int],
        went_on: Callable[[int], None] | None = None,
    ) -> None:
        self._edge = edge
        self._engines = dict(engines)
        self._wall_ms = wall_ms
        self._went_on = went_on
        self._links: dict[SchedulerId, SiteLinks] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self) -> None:
        """Begin to probe the configured engines."""
        for name, engine in self._engines.items():
            self._tasks[f"engine {name}"] = asyncio.create_task(engine.run())

    def follow(self, fleet: Fleet) -> None:
        """Dial every scheduler of `fleet`, and leave those that are no longer declared or have moved."""
        wanted = {pool.scheduler: pool.intake for pool in fleet.pools if pool.scheduler and pool.intake}
        for scheduler, link in list(self._links.items()):
            if wanted.get(scheduler) != link.target and link.streams() == 0:
                self._tasks.pop(f"session {scheduler}").cancel()
                del self._links[scheduler]
        for scheduler, target in wanted.items():
            if scheduler not in self._links:
                link = SiteLinks(self._edge, scheduler, target, self._wall_ms, self._went_on)
                self._links[scheduler] = link
                self._tasks[f"session {scheduler}"] = asyncio.create_task(link.run())

    def view(self, pool: Pool, now_us: int) -> Way:
        """Return what the way to `pool` says of it now. What was sent over a session, the gate counts."""
        if pool.engine is not None:
            engine = self._engines.get(pool.engine)
            if engine is None:
                return False, IN_REGION_RTT_US, None, 0
            return engine.pulse.up, IN_REGION_RTT_US, None, engine.in_flight
        link = None if pool.scheduler is None else self._links.get(pool.scheduler)
        return NO_WAY if link is None else link.view(pool.id, now_us)

    def sessions(self) -> tuple[LinkState, ...]:
        """Return the state of every session, for `status`."""
        return tuple(state for link in self._links.values() for state in link.states())

    def send(self, pool: Pool, sendable: Sendable, tally: Tally, now_us: int) -> Sending:
        """Send one permitted and recorded attempt to `pool`; its time counts from now on. Only the gate calls this."""
        deadlines = Deadlines(sendable.waits, sendable.budget_ms, now_us)
        if pool.engine is not None and pool.engine in self._engines:
            return self._engines[pool.engine].send(sendable, tally, deadlines)
        if pool.scheduler is not None and pool.scheduler in self._links:
            return self._links[pool.scheduler].best(pool.id).send(sendable, tally, deadlines, now_us)
        return Unsent(sendable.attempt, "There is no link to this pool.")

    async def close(self) -> None:
        """Let cancels and settlements leave, then close every link."""
        await asyncio.gather(*(link.close() for link in self._links.values()), return_exceptions=True)
        for task in self._tasks.values():
            task.cancel()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LEAVE_S):
                await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        for engine in self._engines.values():
            await engine.close()
