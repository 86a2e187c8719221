"""An OpenAI-compatible server as a replica of a pool: probed for liveness, fed over HTTP, seen like any other.

Where it has a metrics page, that says how full it is. Others may use it too: what runs or waits in it beyond ours takes
slots that are not free then.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator.engines.generation import Delta, EngineEvent, Failed, Finished, Generation, Refused, Started
from orchestrator.engines.health import Pulse, probe
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.engines.metrics_page import EngineLoad, scrape
from orchestrator.engines.openai import Answer, OpenAIEngine
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from scheduler.intake.replica import Replica, Told
from scheduler.intake.site import Site

log = logger("scheduler.intake")

PROBE_EVERY_S = 1.0
PROBE_AGAIN_S = 0.1
"""After a probe that was not answered, and while work waits for slots that others have."""
LOOK_S = 0.02
"""How often it is looked whether work waits for slots that others have."""
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
        context_tokens: Callable[[], int | None] = lambda: None,
    ) -> None:
        """`continuing` is what its operator declares of the engine; `siblings_slots` of it other processes have.

        `context_tokens` is what the fleet declares of its model now, if anything.
        """
        self.site = site
        self.engine = engine
        self.pulse = Pulse()
        self.context_tokens = context_tokens
        self.working: dict[int, _Working] = {}
        """What the engine works on, by work."""
        self._pool = pool
        self._replica = replica
        self._model = model
        self._slots = slots
        self._now_us = now_us
        self._continuing = continuing
        self._siblings_slots = siblings_slots
        self._times_up = 0
        self._up = False
        self._assigned = 0
        self._told = Told()
        self._pages_missed = 0
        self._loop = asyncio.get_running_loop()

    async def run(self) -> None:
        """Probe for as long as it lives: join when up, leave when down. Ends only when cancelled."""
        while True:
            begun_us = self._now_us()
            health = await probe(self.engine, deadline_ms=PROBE_DEADLINE_MS)
            self.pulse.probed(health, (self._now_us() - begun_us) // 1000, PROBE_DEADLINE_MS)
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
                self.site.replica_joined(self._pool, replica, self)
            elif health.up:
                self.site.replica_beat(self._pool, self._replica, self._incarnation(), True, self._told)
            elif self._up and not self.pulse.up:
                self._up = False
                self._told = Told()
                self.site.replica_left(self._pool, self._replica, self._incarnation())
            await asyncio.sleep(PROBE_AGAIN_S)
            if health.up or not self._up:
                await self._until_probe(PROBE_EVERY_S - PROBE_AGAIN_S)

    async def close(self) -> None:
        """Stop all work and close every connection."""
        for working in tuple(self.working.values()):
            working.cancelled()
        await self.engine.close()

    def assign(self, work: int, generation: Generation, budget_ms: int) -> None:
        """Run this."""
        self._assigned += 1
        try:
            self.working[work] = _Working(self, work, generation, budget_ms + BACKSTOP_MS)
        except Exception as failure:  # noqa: BLE001  # outermost: of this work; the site is in the midst of other work
            log.crash(Event.TASK_FAILED, failure, replica=self._replica)
            self._loop.call_soon(self.site.work_failed, work, "internal_error", "The work could not be begun.")

    def withdraw(self, work: int) -> None:
        """Stop that. Closing the connection frees the engine's slot."""
        working = self.working.get(work)
        if working is not None:
            working.close()
            # The site, which may be in the midst of something, hears of it in a turn of its own.
            self._loop.call_soon(working.cancelled)

    def hold(self, work: int, *, held: bool) -> None:
        """Read no more of that from the engine, which the full connection holds back, or go on."""
        working = self.working.get(work)
        if working is None:
            return
        if held:
            working.hold()
        else:
            # The site may be in the midst of something, and could not hold it at once.
            working.going_on = self._loop.call_soon(working.go_on)

    def expel(self) -> None:
        """A probed engine is never expelled for silence."""

    async def _until_probe(self, left_s: float) -> None:
        """Wait for the next probe. It comes early where work waits for slots that others had: they may be free."""
        if not self._told.slots_of_others():
            await asyncio.sleep(left_s)
            return
        dispatcher, until_us = self.site.dispatchers[self._pool], self._now_us() + round(left_s * 1e6)
        while not dispatcher.waits and self._now_us() < until_us:  # noqa: ASYNC110 - the queue is pure: it tells nobody
            await asyncio.sleep(LOOK_S)

    async def _read_page(self) -> None:
        """Ask the engine how full it is. Its last word stands while it misses a page or two: it may only be busy."""
        if self._pages_missed >= PAGES_MISSED_MAX and self._pages_missed % PAGE_AGAIN_ROUNDS:
            self._pages_missed += 1
            return
        ours, assigned = len(self.working), self._assigned
        load = await scrape(self.engine, PROBE_DEADLINE_MS)
        if load is not None:
            # Whatever was ours at any time while the page was made may be on it.
            self._told = told_of(load, ours + self._assigned - assigned, self._siblings_slots)
            self._pages_missed = 0
            return
        self._pages_missed += 1
        if self._pages_missed >= PAGES_MISSED_MAX:
            self._told = Told()

    def _incarnation(self) -> str:
        return str(self._times_up)


class _Working(Answer):
    """One generation that the engine works on; the site hears what it makes."""

    def __init__(self, replica: EngineReplica, work: int, generation: Generation, total_ms: int) -> None:
        self._replica = replica
        self._work = work
        self._generation = generation
        self._made = 0
        self.waiting: list[EngineEvent] = []  # bounded: by what one read of the engine says
        """What was heard and is to be told once it goes on."""
        self.going_on: asyncio.Handle | None = None
        """Set while it is about to go on."""
        # With a most the context is not asked for: placement lets none through that goes beyond it.
        context_tokens = replica.context_tokens() if generation.sampling.max_tokens is None else None
        super().__init__(replica.engine, generation, total_ms, context_tokens)

    def told(self, events: list[EngineEvent]) -> None:
        """The engine said something. With the last of it, its slot is free."""
        replica, work = self._replica, self._work
        left = iter(events)
        try:
            for event in left:
                if type(event) is Delta:
                    replica.pulse.missed = 0
                    self._made += event.tokens
                    replica.site.work_tokens(work, event.text, event.token_ids, event.tokens)
                    if self._held:
                        self.waiting = list(left)
                elif type(event) is Finished:
                    if self._forgotten():
                        prompt_tokens = event.prompt_tokens
                        if self._generation.said is not None:
                            prompt_tokens = self._generation.of_prompt(prompt_tokens)
                        counts = PoolCounts(prompt_tokens, event.cached_tokens, event.completion_tokens)
                        replica.site.work_finished(work, event.reason._value_, counts)
                else:
                    self._told_else(event)
        except BaseException:
            if self._forgotten():
                self.close()
                replica.site.work_failed(work, "engine_protocol", "The engine's answer ended without an end.")
            raise

    def hold(self) -> None:
        """See `Answer`."""
        if self.going_on is not None:
            self.going_on.cancel()
            self.going_on = None
        super().hold()

    def go_on(self) -> None:
        """See `Answer`. What was heard before comes first, and may have been the end."""
        self.going_on = None
        self._held = False
        if self.waiting:
            waiting, self.waiting = self.waiting, []
            self.told(waiting)
        if not self._held:
            super().go_on()

    def cancelled(self) -> None:
        """It is not wanted any more."""
        self.waiting = []
        self.close()
        if self._forgotten():
            self._replica.site.work_finished(self._work, "cancelled", PoolCounts(generated=self._made))

    def _forgotten(self) -> bool:
        """Take it from what the engine works on. Returns False where that was done before."""
        if self._replica.working.get(self._work) is not self:
            return False
        del self._replica.working[self._work]
        return True

    def _told_else(self, event: EngineEvent) -> None:
        site, work = self._replica.site, self._work
        if isinstance(event, Started):
            site.work_started(work, event.prompt_tokens)
        elif not self._forgotten():
            return
        elif isinstance(event, Failed) and event.code != "engine_unreachable":
            site.work_failed(work, event.code, event.detail)
        elif isinstance(event, Refused | Failed):
            param = event.param if isinstance(event, Refused) else None
            site.work_refused(work, event.code, event.detail, param)


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
