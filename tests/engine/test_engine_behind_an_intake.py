"""A real engine, linked to a real intake as Ray's actor links it, and an edge that hears of it."""

from __future__ import annotations

import asyncio
import itertools
from contextlib import aclosing
from pathlib import Path

from node_agent.uplink.sending import Tally
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.wire.channels import open_channel
from orchestrator.wire.frames import Done, Load
from scheduler.pools.engine.loop import Engine
from scheduler.pools.replica import ReplicaSpec, _Link
from tests.intake.site_stand import MODEL, POOL, TOKEN, Stand, standing
from tests.sending import sent

SLOTS, CONTEXT = 2, 256
ANSWERS = 4
SOON_S = 30.0


async def test_an_edge_hears_how_full_the_engine_is_and_how_its_answers_fared(tmp_path: Path, tiny_model: Path) -> None:
    engine = Engine(
        tiny_model,
        slots=SLOTS,
        context_tokens=CONTEXT,
        waiting_max=SLOTS,
        threads=1,
        entropy=itertools.count(1).__next__,
        serves=MODEL,
    )
    identity = engine.start(timeout_s=60)
    try:
        async with standing(tmp_path, waiting_max=ANSWERS) as stand:
            intake = f"127.0.0.1:{stand.replica_port}"
            spec = ReplicaSpec(
                "cn-guizhou-0", POOL, MODEL, str(tiny_model), intake, TOKEN, SLOTS, SLOTS, CONTEXT, 1, {}
            )
            async with open_channel(intake) as channel:
                link = asyncio.create_task(_Link(spec, "one", engine, identity).run(channel))
                await stand.live(1)
                loads, ends = await ask_together(stand)
                link.cancel()
                await asyncio.gather(link, return_exceptions=True)
    finally:
        assert engine.stop(deadline_s=0)
    assert {load.kv_tokens for load in loads if load.replicas} <= {None, SLOTS * CONTEXT}
    assert all(load.openings is not None for load in loads)
    assert all(end.queued_us is not None and end.beside is not None and end.beside < SLOTS for end in ends)
    # Some waited in the queue while others, who waited less, ran.
    assert len({end.queued_us for end in ends}) > 1


async def ask_together(stand: Stand) -> tuple[list[Load], list[Done]]:
    """More answers than there are slots, until the edge has heard of all that it should; its loads, and the ends."""
    ends: list[Done] = []
    loads: list[Load] = []

    async def listen() -> None:
        while True:
            found = stand.link.load(POOL)
            if found is not None and (not loads or found.number > loads[-1].number):
                loads.append(found)
            await asyncio.sleep(0.001)

    async def ask(number: int) -> Done:
        said = Message(Role.USER, f"hello {number} " * 10)
        wanted = Generation(MODEL, (said,), Sampling(temperature=0, max_tokens=60))
        async with aclosing(sent(stand.link.send, stand.sendable(generation=wanted), Tally())) as frames:
            last = [frame async for frame in frames][-1]
        assert isinstance(last, Done)
        return last

    listening = asyncio.create_task(listen())
    async with asyncio.timeout(SOON_S):
        # Beats and reports come four times a second, and so may miss a short answer.
        while not (
            any(load.kv_used_tokens for load in loads)
            and any(load.queued_tokens for load in loads)
            and any(end.beside for end in ends)
        ):
            ends += await asyncio.gather(*(ask(number) for number in range(ANSWERS)))
    listening.cancel()
    return loads, ends
