"""An OpenAI-compatible server as a replica of a pool: probed for liveness, fed over HTTP, seen like any other.

Where it has a metrics page, that says how full it is. Others may use it too: what runs or waits in it beyond ours takes
slots that are not free then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from orchestrator.engines.generation import Delta, Failed, Finished, Generation, Refused, Started
from orchestrator.engines.health import Pulse, probe
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.engines.metrics_page import EngineLoad, scrape
from orchestrator.engines.openai import Answer, OpenAIEngine
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from scheduler.intake.replica import Replica, Told
from scheduler.intake.site import Site

PROBE_EVERY_S = 1.0
PROBE_AGAIN_S = 0.1
"""After a probe that was not answered."""
PROBE_DEADLINE_MS = 900
PAGES_MISSED_MAX = 3
"""An engine that misses so many pages in a row says nothing of itself any more: its last word is too old."""
PAGE_AGAIN_ROUNDS = 30
"""After that, its page is asked for once in so many rounds: it may have none."""
PPM = 1_000_000
BACKSTOP_MS = 1_000
"""So much later than the site, which says what happened, the client of an engine ends a call by itself."""


class EngineReplica:
    """One configured engine of one pool. Make it in the event loop that runs it."""

    def __init__(
        self,
        site: Site,
        pool: PoolId,
        replica: ReplicaId,
        model: ModelId,
        slots: int,
        engine: OpenAIEngine,
        now_us: Callable[[], int],
        continuing: Continuing = NOT_CONTINUED,
        siblings_slots: int = 0,
    ) -> None:
        """`continuing` is what its operator declares of the engine; `siblings_slots` of it other processes have."""
        self._site = site
        self._pool = pool
        self._replica = replica
        self._model = model
        self._slots = slots
        self._engine = engine
        self._now_us = now_us
        self._continuing = continuing
        self._siblings_slots = siblings_slots
        self._times_up = 0
        self._up = False
        self._pulse = Pulse()
        self._tasks: dict[int, asyncio.Task[None]] = {}
        self._assigned = 0
        self._told = Told()
        self._pages_missed = 0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Probe for as long as it lives: join when up, leave when down. Ends only when cancelled."""
        while True:
            begun_us = self._now_us()
            health = await probe(self._engine, deadline_ms=PROBE_DEADLINE_MS)
            self._pulse.probed(health, (self._now_us() - begun_us) // 1000, PROBE_DEADLINE_MS)
            if health.up:
                await self._read_page()
            if health.up and not self._up:
                self._times_up += 1
                replica = Replica(
                    self._replica,
                    self._incarnation(),
                    self._model,
                    self._slots,
                    self._now_us(),
                    beats=False,
                    told=self._told,
                    continuing=self._continuing,
                )
                self._up = True
                self._site.replica_joined(self._pool, replica, self)
            elif health.up:
                self._site.replica_beat(self._pool, self._replica, self._incarnation(), True, self._told)
            elif self._up and not self._pulse.up:
                self._up = False
                self._told = Told()
                self._site.replica_left(self._pool, self._replica, self._incarnation())
            await asyncio.sleep(PROBE_AGAIN_S if self._up and not health.up else PROBE_EVERY_S)

    async def close(self) -> None:
        """Stop all work and close every connection."""
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)
        await self._engine.close()

    def assign(self, work: int, generation: Generation, budget_ms: int) -> None:
        """Run this."""
        self._assigned += 1
        task = self._loop.create_task(self._work(work, generation, budget_ms + BACKSTOP_MS))
        self._tasks[work] = task
        task.add_done_callback(partial(self._forget, work))

    def withdraw(self, work: int) -> None:
        """Stop that. Closing the connection frees the engine's slot."""
        task = self._tasks.get(work)
        if task is not None:
            task.cancel()

    def expel(self) -> None:
        """A probed engine is never expelled for silence."""

    async def _read_page(self) -> None:
        """Ask the engine how full it is. Its last word stands while it misses a page or two: it may only be busy."""
        if self._pages_missed >= PAGES_MISSED_MAX and self._pages_missed % PAGE_AGAIN_ROUNDS:
            self._pages_missed += 1
            return
        ours, assigned = len(self._tasks), self._assigned
        load = await scrape(self._engine, PROBE_DEADLINE_MS)
        if load is not None:
            # Whatever was ours at any time while the page was made may be on it.
            self._told = told_of(load, ours + self._assigned - assigned, self._siblings_slots)
            self._pages_missed = 0
            return
        self._pages_missed += 1
        if self._pages_missed >= PAGES_MISSED_MAX:
            self._told = Told()

    async def _work(self, work: int, generation: Generation, total_ms: int) -> None:
        made = 0
        ended = False
        answer = Answer(self._engine, generation, total_ms)
        try:
            while not answer.ended:
                for event in await answer.more():
                    if isinstance(event, Delta):
                        self._pulse.missed = 0
                        made += event.tokens
                        self._site.work_tokens(work, event.text, event.token_ids, event.tokens)
                    elif isinstance(event, Started):
                        self._site.work_started(work, event.prompt_tokens)
                    else:
                        ended = True
                        self._end(work, generation, event)
        except asyncio.CancelledError:
            ended = True
            self._site.work_finished(work, "cancelled", PoolCounts(generated=made))
            raise
        finally:
            # Whatever ended it, the engine's slot is free before the next step.
            answer.close()
            if not ended:
                self._site.work_failed(work, "engine_protocol", "The engine's answer ended without an end.")

    def _forget(self, work: int, task: asyncio.Task[None]) -> None:
        self._tasks.pop(work, None)
        if task.cancelled():
            # A task that is cancelled before its first step runs nothing; its slot is free all the same.
            self._site.work_finished(work, "cancelled", PoolCounts())

    def _end(self, work: int, generation: Generation, event: Finished | Refused | Failed) -> None:
        if isinstance(event, Finished):
            prompt_tokens = event.prompt_tokens
            if generation.said is not None:
                prompt_tokens = generation.of_prompt(prompt_tokens)
            counts = PoolCounts(prompt_tokens, event.cached_tokens, event.completion_tokens)
            self._site.work_finished(work, event.reason.value, counts)
        elif isinstance(event, Refused):
            self._site.work_refused(work, event.code, event.detail, event.param)
        elif event.code == "engine_unreachable":
            self._site.work_refused(work, event.code, event.detail, None)
        else:
            self._site.work_failed(work, event.code, event.detail)

    def _incarnation(self) -> str:
        return str(self._times_up)


def told_of(load: EngineLoad, ours: int, siblings_slots: int = 0) -> Told:
    """Return what an engine's page says beside our own requests, of which it may hold `ours`.

    `siblings_slots` of it are those of other processes of this intake.
    """
    used = None
    if load.kv_tokens is not None and load.kv_used_ppm is not None:
        used = load.kv_tokens * load.kv_used_ppm // PPM
    others = max(0, load.running + load.waiting - ours)
    # Whose wait and whose run it does not say; that ours run is the better guess, for they were given to free slots.
    waiting = min(load.waiting, others)
    return Told(None, load.kv_tokens, used, others - waiting, waiting, siblings_slots)
