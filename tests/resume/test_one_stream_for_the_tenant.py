"""The openai client, a real edge, session and intake: a replica dies, and the client sees one stream."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any

import openai
import pytest

from node_agent.front.app import Front
from node_agent.front.http import RESUME_HEADER
from node_agent.front.limits import Limits
from node_agent.front.serve import FrontServer
from orchestrator.policy.ids import format_api_key
from tests.front.room import LIMITS
from tests.intake.site_stand import EDGE, MODEL, now_ms
from tests.resume.line import SOON_S, Line, line
from tests.resume.wordy import PROMPT_TOKENS, TOKENS, whole
from tests.values import replace

QUESTION: list[Any] = [{"role": "user", "content": "Good morning"}]


@asynccontextmanager
async def served(folder: Path) -> AsyncIterator[tuple[Line, openai.AsyncOpenAI]]:
    """A line with a front before it, and a client with a key of its tenant."""
    async with line(folder, replicas=2) as made:
        shelf, secret = made.stand.shelf, secrets.token_bytes(32)
        assert shelf.current is not None
        held = next(one for one in shelf.current.keys.values() if one.tenant.id == "acme-sg")
        key = replace(held.key, secret_sha256=sha256(secret).hexdigest())
        shelf.current = replace(shelf.current, keys={key.id: replace(held, key=key)})
        front = Front(
            edge=EDGE,
            ask=made.gate.ask,
            bundle=lambda: shelf.current,
            limits=Limits(**LIMITS),
            now_ms=now_ms,
            entropy=secrets.token_bytes,
            metrics=made.metrics,
        )
        server = FrontServer(front, "127.0.0.1", 0)
        await server.start()
        url, text = f"http://127.0.0.1:{server.port}/v1", format_api_key(key.id, secret)
        try:
            async with openai.AsyncOpenAI(base_url=url, api_key=text, max_retries=0) as client:
                yield made, client
        finally:
            await server.stop(2.0)


async def kill_the_holder(made: Line, at: int) -> None:
    """Kill the replica that stopped behind `at` tokens, once the intake has them: then the edge gets them first."""
    holder = await made.holder()
    runs = made.stand.site._running
    while not any(running.generated >= at for running in runs.values()):  # noqa: ASYNC110 - the site is asked
        await asyncio.sleep(0.005)
    await holder.die()
    made.hold_at(None)


async def test_a_dead_replica_shows_in_the_last_chunk_alone(tmp_path: Path) -> None:
    async with served(tmp_path) as (made, client), asyncio.timeout(SOON_S):
        made.hold_at(4)
        killing = asyncio.create_task(kill_the_holder(made, 4))
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=QUESTION,
            max_tokens=TOKENS,
            stream=True,
            stream_options={"include_usage": True},
        )
        chunks = [chunk async for chunk in stream]
        await killing
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert text == whole(made.asked().generation)
        assert [one.choices[0].finish_reason for one in chunks if one.choices][-1] == "length"
        last = chunks[-1]
        assert last.usage is not None
        assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (PROMPT_TOKENS, TOKENS)
        segments = (last.model_extra or {})["tidegate"]["segments"]
        assert [(one["pool"], one["first_token"], one["tokens"]) for one in segments] == [
            ("cn-guizhou", 0, 4),
            ("cn-guizhou", 4, TOKENS - 4),
        ]
        await made.stand.live(2)
        made.hold_at(2)
        killing = asyncio.create_task(kill_the_holder(made, 2))
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=TOKENS)
        await killing
        assert answer.choices[0].message.content == text
        assert len((answer.model_extra or {})["tidegate"]["segments"]) == 2


async def test_a_client_that_says_never_gets_an_error_and_what_it_used(tmp_path: Path) -> None:
    async with served(tmp_path) as (made, client), asyncio.timeout(SOON_S):
        made.hold_at(4)
        killing = asyncio.create_task(kill_the_holder(made, 4))
        stream = await client.chat.completions.create(
            model=MODEL, messages=QUESTION, max_tokens=TOKENS, stream=True, extra_headers={RESUME_HEADER: "never"}
        )
        with pytest.raises(openai.APIError) as cut:
            async for _ in stream:
                pass
        await killing
        told: Any = cut.value.body
        assert told["code"] == "engine_failed"
        assert told["resume"]["reason"] == "tenant"
        assert told["usage"]["completion_tokens"] == 4
