"""Every way out of the edge: sessions to each scheduler of the declared fleet, and a link per configured engine."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Callable, Mapping

from node_agent.alarm import Alarm
from node_agent.uplink.engine_link import EngineLink
from node_agent.uplink.session_link import LinkState, Sendable, Tally
from node_agent.uplink.site_links import SiteLinks
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.fleet import Fleet, Pool
from orchestrator.placement.requests import PoolView
from orchestrator.policy.ids import EdgeId, PoolId, SchedulerId
from orchestrator.wire.deadlines import Deadlines
from orchestrator.wire.frames import Broken, Refused, StreamFrame, Tokens

LEAVE_S = 3.0


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
        self._in_flight: dict[PoolId, int] = {}

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

    def view(self, pool: Pool) -> PoolView:
        """Return what is known of `pool` now."""
        own = self._in_flight.get(pool.id, 0)
        if pool.engine is not None:
            engine = self._engines.get(pool.engine)
            # In-region: there is no border between, and the probe's time is the engine's, not the network's.
            return PoolView(pool.id, engine is not None and engine.up, 1_000, None, own)
        link = None if pool.scheduler is None else self._links.get(pool.scheduler)
        if link is None:
            return PoolView(pool.id, False, None, None, own)
        return PoolView(pool.id, *link.view(pool.id), own)

    def sessions(self) -> tuple[LinkState, ...]:
        """Return the state of every session, for `status`."""
        return tuple(state for link in self._links.values() for state in link.states())

    async def send(self, pool: Pool, sendable: Sendable, tally: Tally) -> AsyncGenerator[StreamFrame, None]:
        """Carry one permitted and recorded attempt to `pool`, for as long as it may take. Only the gate calls this."""
        frames = self._frames(pool, sendable, tally)
        deadlines = Deadlines(sendable.waits, sendable.budget_ms, time.monotonic_ns() // 1000)
        alarm = Alarm()
        self._in_flight[pool.id] = self._in_flight.get(pool.id, 0) + 1
        try:
            try:
                # Only while there is time: a frame that is ready is never waited for, so no alarm would ring.
                while left_us := deadlines.left_us(time.monotonic_ns() // 1000):
                    frame = await alarm.wait(anext(frames, None), left_us / 1_000_000)
                    if frame is None:
                        return
                    if type(frame) is Tokens:
                        deadlines.begun = True
                    yield frame
            finally:
                await frames.aclose()
            raise TimeoutError
        except TimeoutError:
            code, sentence = deadlines.over()
            yield Broken(0, sendable.attempt, code, sentence, PoolCounts())
        finally:
            alarm.off()
            self._in_flight[pool.id] -= 1

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

    def _frames(self, pool: Pool, sendable: Sendable, tally: Tally) -> AsyncGenerator[StreamFrame, None]:
        if pool.engine is not None and pool.engine in self._engines:
            return self._engines[pool.engine].send(sendable, tally)
        if pool.scheduler is not None and pool.scheduler in self._links:
            return self._links[pool.scheduler].best(pool.id).send(sendable, tally)
        return _nowhere(sendable)


async def _nowhere(sendable: Sendable) -> AsyncGenerator[StreamFrame, None]:
    yield Refused(0, sendable.attempt, "engine_unreachable", "There is no link to this pool.")
