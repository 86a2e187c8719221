"""Tenants that leave at any moment: no work goes on for them, no slot stays taken, and each is counted once."""

from __future__ import annotations

import asyncio
import json
from contextlib import aclosing
from pathlib import Path
from random import Random

from node_agent.uplink.sending import Tally
from orchestrator.spool.records import RecordKind
from orchestrator.wire.frames import Accepted, Done, Tokens
from tests.intake.engine_stand import SharedEngine, replica_of
from tests.intake.site_stand import POOL, Stand, standing
from tests.intake.test_bad_days_of_a_site import until
from tests.sending import sent

CANCELS = 300
AT_ONCE = 24
SLOTS = 8


async def leave_somewhere(stand: Stand, random: Random, seen: dict[str, Tally]) -> None:
    """Ask, and hang up at some moment: in the permit, in the queue, when a replica has it, after its first token."""
    sendable, tally = stand.sendable(), Tally()
    seen[sendable.attempt] = tally
    enough = random.choice((Accepted, Tokens, None))
    reached = asyncio.Event()

    async def read() -> None:
        async with aclosing(sent(stand.link.send, sendable, tally)) as frames:
            async for frame in frames:
                if enough is not None and isinstance(frame, enough):
                    reached.set()
        reached.set()

    reading = asyncio.create_task(read())
    if enough is None:
        for _ in range(random.randint(0, 40)):
            await asyncio.sleep(0)
    else:
        await reached.wait()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)


async def test_hundreds_that_hang_up_at_random_moments_leave_nothing_behind(tmp_path: Path) -> None:
    random, seen = Random(7), dict[str, Tally]()
    async with (
        SharedEngine().serving() as engine,
        standing(tmp_path, waiting_max=64) as stand,
        replica_of(stand, engine, "engine", SLOTS) as replica,
    ):
        engine.go.clear()
        left = CANCELS
        while left:
            await stand.live(1)
            number = min(left, AT_ONCE)
            await asyncio.gather(*(leave_somewhere(stand, random, seen) for _ in range(number)))
            left -= number
        await until(lambda: stand.site.busy() == 0)
        await until(lambda: engine.running == 0)
        await until(lambda: not stand.site._permitting)
        await until(lambda: not stand.site._by_stream)
        state = stand.site.dispatchers[POOL].state()
        assert (state.running, state.waiting, state.free) == (0, 0, SLOTS)
        assert (replica.working, stand.link.state().streams, stand.link._streams.by_attempt) == ({}, 0, {})
        assert len(engine.texts) > CANCELS // 4, "some of them had begun"
        # And the pool serves as before.
        engine.go.set()
        tally = Tally()
        async with aclosing(sent(stand.link.send, stand.sendable(), tally)) as frames:
            read = [frame async for frame in frames]
        assert isinstance(read[-1], Done)
        assert "".join(frame.text for frame in read if isinstance(frame, Tokens)) == "Good day"
        await until(lambda: stand.site.busy() == 0)
        await stand.site.close()
        records = [json.loads(e.data) for e in stand.spool.read_from() if e.kind == RecordKind("usage")]
    found = {record["attempt"]: record for record in records}
    assert len(found) == len(records), "each attempt has one record"
    assert found.keys() >= {attempt for attempt, tally in seen.items() if tally.received}
    for attempt, tally in seen.items():
        if attempt in found:
            assert found[attempt]["outcome"] in ("cancelled", "refused")
            assert found[attempt]["counts"]["edge"]["delivered"] == tally.delivered
