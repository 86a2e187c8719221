"""Through the real gate, session, intake and queue: whatever is killed at whatever token, the answer is whole."""

from __future__ import annotations

import asyncio
import itertools
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.generation import Generation, Message, Resume, Role, Sampling
from orchestrator.engines.identity import Identity
from orchestrator.wire.channels import open_channel
from orchestrator.wire.frames import Done, Tokens
from scheduler.pools.engine.loop import Engine
from scheduler.pools.replica import ReplicaSpec, _Link
from tests.engine.conftest import tiny_model
from tests.intake.site_stand import MODEL, POOL, TOKEN, ScriptedReplica
from tests.resume.line import SOON_S, Line, line, read_and_cut
from tests.resume.wordy import PROMPT_TOKENS, TOKENS, Read, read, whole
from tests.values import replace

__all__ = ["tiny_model"]


def undisturbed(got: Read, generation: Generation) -> None:
    assert got.text == whole(generation)
    assert got.places == list(range(TOKENS))
    assert isinstance(got.end, Done)
    assert got.end.counts.prompt == PROMPT_TOKENS
    assert got.end.reason == "length"


def usages(made: Line, request: str) -> list[dict[str, Any]]:
    found = [json.loads(entry.data) for entry in made.spool.read_from() if entry.kind == "usage"]
    return [one for one in found if one["request"] == request]


async def test_a_replica_that_dies_at_any_token_is_followed_by_its_sibling(tmp_path: Path) -> None:
    async with line(tmp_path, replicas=2) as made:
        calm = made.asked()
        bill = await read(await made.gate.ask(calm))
        undisturbed(bill, calm.generation)
        for at in range(TOKENS + 1):
            made.hold_at(at)
            asked = made.asked()

            async def kill() -> None:
                await (await made.holder()).die()
                made.hold_at(None)

            got = await read_and_cut(made, asked, at, kill)
            undisturbed(got, asked.generation)
            assert got.answer.price == bill.answer.price
            records = usages(made, asked.request)
            assert [one["outcome"] for one in records] == ["broken", "complete"], f"cut at {at}"
            assert [one["counts"]["edge"]["delivered"] for one in records] == [at, TOKENS - at]
            assert [one["first_token"] for one in records] == [0, at]
            assert records[1]["continues"] == records[0]["attempt"]
            await made.stand.live(2)


@pytest.mark.parametrize("at", [0, 1, 5, TOKENS])
async def test_a_session_that_is_lost_and_an_intake_that_starts_anew_lose_no_token(tmp_path: Path, at: int) -> None:
    async with line(tmp_path, replicas=1) as made:
        for again in range(2):
            made.hold_at(at)
            asked = made.asked()

            async def cut(again: int = again) -> None:
                made.hold_at(None)
                if again:
                    await made.stand.restart()
                    return
                for port in list(made.stand.intake.ports):
                    port.act(port.machine.close("session_lost"))

            undisturbed(await read_and_cut(made, asked, at, cut), asked.generation)
            await made.stand.live(1)


async def test_a_site_gives_an_answer_that_goes_on_to_equals_alone(tmp_path: Path) -> None:
    async with line(tmp_path, replicas=1) as made:
        other = ScriptedReplica(made.stand.replica_port, slots=4, name="cn-guizhou-9")
        other._hello = replace(other._hello, identity=Identity("w2", "t", "p", "scripted", "none"), resume=Resume.IDS)
        asked = made.asked()
        made.hold_at(3)

        async def kill() -> None:
            await other.start()
            await made.stand.live(2)
            await made.workers[0].close()

        made.gate._hands = replace(made.gate._hands, patience_ms=0)
        got = await read_and_cut(made, asked, 3, kill)
        assert got.places == [0, 1, 2]
        assert got.answer.stopped is not None
        assert got.answer.stopped.reason == "identity"
        assert other.got.empty(), "it never saw the work"
        await other.close()


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(temperature=0, max_tokens=40),
        Sampling(temperature=1.1, top_p=0.9, seed=7, max_tokens=40),
        Sampling(temperature=1.1, seed=7, max_tokens=40, ignore_eos=True, min_tokens=20),
    ],
    ids=["greedy", "seeded", "endless"],
)
async def test_real_engines_go_on_with_each_others_answers(
    tmp_path: Path, tiny_model: Path, sampling: Sampling
) -> None:
    engines = [
        Engine(
            tiny_model,
            slots=2,
            context_tokens=256,
            waiting_max=2,
            threads=1,
            entropy=itertools.count(seed).__next__,
            serves=MODEL,
        )
        for seed in (1, 1_000)
    ]
    identities = [engine.start(timeout_s=60) for engine in engines]
    try:
        async with line(tmp_path, replicas=0) as made:
            intake = f"127.0.0.1:{made.stand.replica_port}"
            links: list[asyncio.Task[None]] = []
            async with open_channel(intake) as channel:

                def link(number: int) -> None:
                    name = f"cn-guizhou-{number}"
                    spec = ReplicaSpec(name, POOL, MODEL, str(tiny_model), intake, TOKEN, 2, 2, 256, 1, {})
                    made_link = _Link(spec, "one", engines[number], identities[number])
                    links.append(asyncio.create_task(made_link.run(channel)))

                link(0)
                await made.stand.live(1)
                asked = made.asked()
                wanted = replace(asked.generation, messages=(Message(Role.USER, "hello"),), sampling=sampling)
                answer = await made.gate.ask(replace(asked, generation=wanted))
                ids: list[int] = []
                async with asyncio.timeout(SOON_S):
                    async for frame in answer.frames:
                        ids += frame.ids if isinstance(frame, Tokens) else ()
                        if isinstance(frame, Tokens) and len(links) == 1:
                            link(1)
                            links[0].cancel()
                assert [segment.pool.id for segment in answer.segments] == [POOL, POOL]
                assert all(segment.tokens for segment in answer.segments)
                (first,) = [one for one in decisions(made, asked.request) if one["continues"] is None]
                assert first["outcome"] == "sent"
                # The same seed in one engine draws the same tokens: nothing shows that there was a cut.
                calm = replace(made.asked(), generation=wanted)
                again = await read(await made.gate.ask(calm))
                assert [one for frame in again.frames if isinstance(frame, Tokens) for one in frame.ids] == ids
                for task in links:
                    task.cancel()
                with suppress(asyncio.CancelledError):
                    await asyncio.gather(*links, return_exceptions=True)
    finally:
        for engine in engines:
            assert engine.stop(deadline_s=0)


def decisions(made: Line, request: str) -> list[dict[str, Any]]:
    found = [json.loads(entry.data) for entry in made.spool.read_from() if entry.kind == "decision"]
    return [one for one in found if one["request"] == request]
