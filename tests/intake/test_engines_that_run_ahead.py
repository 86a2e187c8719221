"""An engine that says its answer faster than the way to the edge carries it is held back, and not its reader blamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node_agent.uplink.sending import Tally
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.engines.http import HELD_BYTES_MAX
from orchestrator.engines.openai import OpenAIEngine
from orchestrator.policy.ids import ReplicaId
from orchestrator.wire.frames import Accepted, Broken, Done, StreamFrame, Tokens
from orchestrator.wire.intake_stream import AHEAD_BYTES_MAX
from scheduler.intake.engine_replica import EngineReplica
from scheduler.intake.replica import Replica, Told
from tests.engines.test_hostile_engines import DONE, STREAM_HEAD, USAGE, Script, Server, engine_at, serving, sse, text
from tests.intake.site_stand import MODEL, POOL, Stand, now_us, standing
from tests.intake.test_bad_days_of_a_site import until
from tests.sending import sent

ENDLESS = Generation(MODEL, (Message(Role.USER, "Hello"),), Sampling())
PART = 4_096
PARTS = 6_400
"""25 MB, far more than all that may wait between an engine and its reader."""
NAME = ReplicaId("engine")


async def all_at_once(server: Server, writer: asyncio.StreamWriter) -> None:
    """Say the whole answer as fast as it is taken."""
    writer.write(STREAM_HEAD)
    for number in range(PARTS):
        writer.write(sse(text(f"{number:{PART}}")))
        server.sent_bytes += PART
        await writer.drain()
    usage = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": PARTS}}
    writer.write(sse(text("", "stop"), usage) + DONE)


@asynccontextmanager
async def behind(stand: Stand, engine: OpenAIEngine) -> AsyncIterator[EngineReplica]:
    replica = EngineReplica(stand.site, POOL, NAME, MODEL, 1, engine, now_us)
    joined = Replica(NAME, "1", MODEL, 1, now_us(), beats=False, told=Told())
    stand.site.replica_joined(POOL, joined, replica)
    await stand.live(1)
    try:
        yield replica
    finally:
        await replica.close()


@asynccontextmanager
async def held_back(
    folder: Path, script: Script
) -> AsyncIterator[tuple[Server, Stand, EngineReplica, AsyncGenerator[StreamFrame, None]]]:
    """An engine that says what `script` has, and waits: of its answer nobody took more than that it was accepted."""
    async with (
        serving(script) as server,
        standing(folder) as stand,
        engine_at(server.port) as engine,
        behind(stand, engine) as replica,
    ):
        reading = sent(stand.link.send, stand.sendable(generation=ENDLESS), Tally())
        assert isinstance(await anext(reading), Accepted)
        await until(lambda: any(working._held for working in replica.working.values()))
        yield server, stand, replica, reading


def text_of(frames: list[StreamFrame]) -> str:
    return "".join(frame.text for frame in frames if isinstance(frame, Tokens))


async def test_a_reader_at_full_speed_gets_all_that_an_engine_says_at_once(tmp_path: Path) -> None:
    most = 0
    async with (
        serving(all_at_once) as server,
        standing(tmp_path) as stand,
        engine_at(server.port) as engine,
        behind(stand, engine) as replica,
    ):
        frames: list[StreamFrame] = []
        async for frame in sent(stand.link.send, stand.sendable(generation=ENDLESS), Tally()):
            frames.append(frame)
            for port in stand.intake.ports:
                most = max(most, *(stream.ready_bytes for stream in port.machine._streams.values()), 0)
        end = frames[-1]
        assert isinstance(end, Done), end
        assert (end.reason, end.counts.generated) == ("stop", PARTS)
        assert text_of(frames) == "".join(f"{number:{PART}}" for number in range(PARTS))
        assert 0 < most <= AHEAD_BYTES_MAX + 2 * HELD_BYTES_MAX
        assert replica.working == {}


async def test_a_reader_who_takes_nothing_holds_no_slot(tmp_path: Path) -> None:
    async with held_back(tmp_path, all_at_once) as (server, stand, replica, reading):
        (working,) = replica.working.values()
        assert sum(len(getattr(event, "text", "")) for event in working.waiting) <= 2 * HELD_BYTES_MAX
        await until(lambda: stand.site.dispatchers[POOL].state().running == 0)
        await server.gone.wait()
        assert server.sent_bytes < PARTS * PART
        frames = [frame async for frame in reading]
    assert isinstance(frames[-1], Broken)
    assert frames[-1].code == "slow_reader"
    assert replica.working == {}


async def test_who_hangs_up_while_an_engine_is_held_back_frees_the_slot(tmp_path: Path) -> None:
    async with held_back(tmp_path, all_at_once) as (server, stand, replica, reading):
        await reading.aclose()
        await until(lambda: stand.site.busy() == 0)
        await server.gone.wait()
        assert replica.working == {}


@pytest.mark.parametrize("cut", [False, True])
async def test_the_end_of_an_answer_that_is_held_back_comes_after_all_of_it(tmp_path: Path, cut: bool) -> None:
    parts = 80  # more than runs ahead, and less than the client of an engine holds

    async def script(_server: Server, writer: asyncio.StreamWriter) -> None:
        end = b"" if cut else sse(text("", "stop"), USAGE) + DONE
        writer.write(STREAM_HEAD + b"".join(sse(text(f"{number:{PART}}")) for number in range(parts)) + end)
        await writer.drain()

    async with held_back(tmp_path, script) as (_, stand, replica, reading):
        frames = [frame async for frame in reading]
        assert text_of(frames) == "".join(f"{number:{PART}}" for number in range(parts))
        assert isinstance(frames[-1], Broken if cut else Done)
        assert getattr(frames[-1], "code", "engine_failed") == "engine_failed"
        await until(lambda: stand.site.busy() == 0 and not replica.working)
