"""Engines behind URLs go on by text, where their operator says what they are: at a site, and beside an edge."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from node_agent.uplink.engine_link import EngineLink
from node_agent.uplink.sending import Tally
from orchestrator.engines.generation import Finished, Generation, Message, Refused, Resume, Role, Said, Sampling
from orchestrator.engines.identity import NOT_CONTINUED, Continuing, DeclaredIdentity, continuing
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings
from orchestrator.policy.ids import ReplicaId, digest_of
from orchestrator.wire.frames import Accepted, Done, StreamFrame
from orchestrator.wire.frames import Refused as RefusedFrame
from scheduler.intake.engine_replica import EngineReplica
from tests.intake.site_stand import MODEL, POOL, now_us
from tests.resume.line import line
from tests.resume.wordy import read
from tests.sending import sent as read_out
from tests.values import replace

WORDS = 8
PROMPT = 10
DECLARED = DeclaredIdentity("w", "t", "p", "vllm-0.11", "bf16")


class Writer:
    """An OpenAI-compatible server that says `w0 w1 ...`, goes on from a partial last message, and dies when told."""

    def __init__(self) -> None:
        self.die_at: int | None = None
        self.bodies: list[dict[str, Any]] = []
        self.port = 0

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[Writer]:
        app = web.Application()
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/chat/completions", self._answer)
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.port = runner.addresses[0][1]
        try:
            yield self
        finally:
            await runner.cleanup()

    def client(self) -> OpenAIEngine:
        return OpenAIEngine(OpenAIEngineSettings(f"http://127.0.0.1:{self.port}", "served", None))

    async def _models(self, _: web.Request) -> web.Response:
        return web.json_response({"data": [{"id": "served"}]})

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        last = body["messages"][-1]
        said = last["content"].split() if last["role"] == "assistant" else []
        assert (last["role"] == "assistant") is body.get("continue_final_message", False)
        assert body.get("add_generation_prompt", True) is not body.get("continue_final_message", False)
        end = min(WORDS, len(said) + body["max_tokens"])
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for index in range(len(said), end):
            if index == self.die_at and not said:
                break
            chunk: dict[str, Any] = {"choices": [{"index": 0, "delta": {"content": f"w{index} "}}]}
            if index == end - 1:
                chunk["choices"][0]["finish_reason"] = "stop"
            await response.write(f"data: {json.dumps(chunk)}\n\n".encode())
        else:
            usage = {"prompt_tokens": PROMPT + len(said), "completion_tokens": end - len(said)}
            await response.write(f"data: {json.dumps({'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n".encode())
            return response
        assert request.transport is not None
        request.transport.abort()
        return response


@pytest.mark.parametrize("at", [1, 4, WORDS - 1])
async def test_at_a_site_one_engine_goes_on_with_the_text_of_another(tmp_path: Path, at: int) -> None:
    declared = continuing("text", DECLARED)
    writers = [Writer(), Writer()]
    async with AsyncExitStack() as stack:
        made = await stack.enter_async_context(line(tmp_path, replicas=0))
        for number, writer in enumerate(writers):
            await stack.enter_async_context(writer.serving())
            writer.die_at = at
            replica = EngineReplica(
                made.stand.site, POOL, ReplicaId(f"r-{number}"), MODEL, 2, writer.client(), now_us, declared
            )
            probing = asyncio.create_task(replica.run())
            stack.push_async_callback(replica.close)
            stack.push_async_callback(asyncio.gather, probing, return_exceptions=True)
            stack.callback(probing.cancel)
        await made.stand.live(2)
        got = await read(await made.gate.ask(made.asked(stop=("never",))))
    assert got.text == "".join(f"w{index} " for index in range(WORDS))
    assert isinstance(got.end, Done)
    assert got.end.counts.prompt == PROMPT, "what was said is no part of the prompt that is billed"
    told = sorted((body for writer in writers for body in writer.bodies), key=lambda body: len(body["messages"]))
    assert told[1]["messages"][-1] == {"role": "assistant", "content": "".join(f"w{i} " for i in range(at))}
    assert (told[0]["max_tokens"], told[1]["max_tokens"]) == (WORDS, WORDS - at)


def going_on(said: Said | None, most: int | None = WORDS) -> Generation:
    return Generation(MODEL, (Message(Role.USER, "Good morning"),), Sampling(max_tokens=most), said)


IDENTITY = digest_of(b"any")


@pytest.mark.parametrize(
    "said",
    [
        Said(Resume.IDS, IDENTITY, 1, "w0 ", (1,)),
        # Whether it ended there cannot be asked: one token more would be one too many.
        Said(Resume.TEXT, IDENTITY, WORDS, "whatever"),
    ],
)
async def test_such_an_engine_refuses_what_it_cannot_go_on_with(said: Said) -> None:
    async with Writer().serving() as writer, _closing(writer) as engine:
        (event,) = [event async for event in engine.generate(going_on(said))]
    assert isinstance(event, Refused)
    assert event.code == "identity_mismatch"
    assert writer.bodies == []


async def test_nothing_said_is_no_partial_message() -> None:
    async with Writer().serving() as writer, _closing(writer) as engine:
        events = [event async for event in engine.generate(going_on(Said(Resume.TEXT, IDENTITY, 2, "")))]
    assert isinstance(events[-1], Finished)
    (body,) = writer.bodies
    assert [message["role"] for message in body["messages"]] == ["user"]
    assert "continue_final_message" not in body
    assert body["max_tokens"] == WORDS - 2


@pytest.mark.parametrize(("fewest", "asked"), [(6, 4), (2, None), (1, None)])
async def test_the_fewest_tokens_are_those_of_the_whole_answer(fewest: int, asked: int | None) -> None:
    wanted = going_on(Said(Resume.TEXT, IDENTITY, 2, "w0 w1 "))
    wanted = replace(wanted, sampling=replace(wanted.sampling, min_tokens=fewest, ignore_eos=True))
    async with Writer().serving() as writer, _closing(writer) as engine:
        events = [event async for event in engine.generate(wanted)]
    assert isinstance(events[-1], Finished)
    (body,) = writer.bodies
    assert (body.get("min_tokens"), body["ignore_eos"]) == (asked, True)


@asynccontextmanager
async def _closing(writer: Writer) -> AsyncIterator[OpenAIEngine]:
    engine = writer.client()
    try:
        yield engine
    finally:
        await engine.close()


async def test_beside_an_edge_an_engine_goes_on_with_what_it_declares_and_nothing_else(tmp_path: Path) -> None:
    declared = continuing("text", DECLARED)
    assert declared.identity is not None
    said = Said(Resume.TEXT, declared.identity, 3, "w0 w1 w2 ")

    async def sent(link: EngineLink, wanted: Said | None) -> list[StreamFrame]:
        sendable = replace(made.stand.sendable(), generation=going_on(wanted))
        frames = read_out(lambda one, tally, deadlines, _: link.send(one, tally, deadlines), sendable, Tally())
        async with aclosing(frames):
            return [frame async for frame in frames]

    async with line(tmp_path, replicas=0) as made, Writer().serving() as writer, _closing(writer) as engine:
        link = EngineLink("beside", engine, declared)
        first, *_, last = await sent(link, said)
        assert isinstance(first, Accepted)
        assert first.continuing == declared
        assert isinstance(last, Done)
        assert last.counts.prompt == PROMPT
        first, *_ = await sent(EngineLink("beside", engine), None)
        assert isinstance(first, Accepted)
        assert first.continuing == NOT_CONTINUED
        for other in (NOT_CONTINUED, Continuing(digest_of(b"other"), Resume.TEXT)):
            (only,) = await sent(EngineLink("beside", engine, other), said)
            assert isinstance(only, RefusedFrame)
            assert only.code == "identity_mismatch"
    assert len(writer.bodies) == 2


def test_an_identity_is_declared_whole_or_not_at_all() -> None:
    assert continuing("none", DECLARED) == NOT_CONTINUED
    for part in ("weights_sha256", "tokenizer_sha256", "template_sha256", "engine_family", "quantisation"):
        parts = {name: getattr(DECLARED, name) for name in DECLARED.__struct_fields__}
        with pytest.raises(ValueError, match="identity"):
            continuing("text", DeclaredIdentity(**{**parts, part: ""}))
        assert continuing("text", DeclaredIdentity(**{**parts, part: "other"})) != continuing("text", DECLARED)
    with pytest.raises(ValueError, match="identity"):
        continuing("text", None)
