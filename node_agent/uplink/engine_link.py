"""One in-region engine: probes that say whether it is up, and attempts carried over HTTP without crossing anything."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

from node_agent.alarm import Alarm
from node_agent.uplink.sending import Sendable, Sending, Tally, overdue
from orchestrator.engines.generation import Delta, Failed, Finished, Started
from orchestrator.engines.health import Pulse, probe
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.engines.openai import OpenAIEngine
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import AttemptId, ReplicaId
from orchestrator.wire.deadlines import Deadlines
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, StreamFrame, Tokens

PROBE_EVERY_S = 1.0
PROBE_AGAIN_S = 0.1
"""After a probe that was not answered."""
PROBE_DEADLINE_MS = 900
BACKSTOP_MS = 1_000
"""So much later than we, who say what happened, the client of an engine ends a call by itself."""


class EngineLink:
    """Keeps one engine probed, and carries attempts to it."""

    def __init__(self, name: str, engine: OpenAIEngine, continuing: Continuing = NOT_CONTINUED) -> None:
        """`continuing` is what the operator declares of the engine."""
        self.name = name
        self._continuing = continuing
        self.pulse = Pulse()
        """Whether it is taken to be up."""
        self.in_flight = 0
        self._engine = engine

    async def run(self) -> None:
        """Probe for as long as it lives. Ends only when cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            begun_s = loop.time()
            health = await probe(self._engine, deadline_ms=PROBE_DEADLINE_MS)
            self.pulse.probed(health, int((loop.time() - begun_s) * 1000), PROBE_DEADLINE_MS)
            await asyncio.sleep(PROBE_AGAIN_S if self.pulse.up and not health.up else PROBE_EVERY_S)

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.close()

    def send(self, sendable: Sendable, tally: Tally, deadlines: Deadlines) -> Sending:
        """Send one attempt, and keep `tally`. Only the gate calls this, through `routes`."""
        return _Carried(sendable.attempt, self._carry(sendable, tally), deadlines)

    async def _carry(self, sendable: Sendable, tally: Tally) -> AsyncGenerator[StreamFrame, None]:
        """Yield what comes back for one attempt, in the frames that a session would bring."""
        attempt, said = sendable.attempt, sendable.generation.said
        if said is not None and self._continuing != Continuing(said.identity, said.by):
            yield Refused(0, attempt, "identity_mismatch", "The engine cannot go on with this answer.")
            return
        accepted = False
        self.in_flight += 1
        try:
            async with aclosing(self._engine.generate(sendable.generation, sendable.budget_ms + BACKSTOP_MS)) as events:
                async for event in events:
                    if not accepted and isinstance(event, Delta | Finished):
                        accepted = True
                        yield Accepted(0, attempt, ReplicaId(self.name), self._continuing)
                    if isinstance(event, Delta):
                        self.pulse.missed = 0
                        first, tally.received = tally.received, tally.received + event.tokens
                        yield Tokens(0, attempt, first, event.tokens, event.text, event.token_ids)
                        tally.delivered += event.tokens
                    elif isinstance(event, Finished):
                        # There is no scheduler to count: what was generated and sent is the engine's own word.
                        completion = event.completion_tokens
                        prompt = sendable.generation.of_prompt(event.prompt_tokens)
                        counts = PoolCounts(prompt, event.cached_tokens, completion, completion)
                        yield Done(0, attempt, event.reason.value, counts)
                        return
                    elif isinstance(event, Failed):
                        yield self._failed(attempt_frame=sendable, event=event, begun=tally.received > 0)
                        return
                    elif not isinstance(event, Started):
                        yield Refused(0, attempt, event.code, event.detail, event.param)
                        return
        finally:
            self.in_flight -= 1
        detail = "The engine's answer ended without an end."
        yield Broken(0, attempt, "engine_protocol", detail, PoolCounts(sent=tally.received))

    def _failed(self, attempt_frame: Sendable, event: Failed, begun: bool) -> StreamFrame:
        if event.code == "engine_unreachable" and not begun:
            self.pulse.gone()  # no need to wait for the next probe
            return Refused(0, attempt_frame.attempt, event.code, event.detail)
        return Broken(0, attempt_frame.attempt, event.code, event.detail, PoolCounts())


class _Carried:
    """An attempt that an engine beside this edge works on. A call of `next` that is cancelled ends it."""

    def __init__(self, attempt: AttemptId, frames: AsyncGenerator[StreamFrame, None], deadlines: Deadlines) -> None:
        self._attempt = attempt
        self._frames = frames
        self._deadlines = deadlines
        self._alarm = Alarm()
        self._over = False

    async def next(self, now_us: int) -> StreamFrame | None:
        """See `Sending`."""
        if self._over:
            return None
        left_us = self._deadlines.left_us(now_us)
        try:
            if not left_us:  # also where frames are always ready: an answer that never ends is ended
                raise TimeoutError
            frame = await self._alarm.wait(anext(self._frames, None), left_us / 1_000_000)
        except TimeoutError:
            await self.close()
            return overdue(self._attempt, self._deadlines)
        if type(frame) is Tokens:
            self._deadlines.begun = True
        return frame

    async def close(self) -> None:
        """See `Sending`."""
        self._over = True
        self._alarm.off()
        await self._frames.aclose()
