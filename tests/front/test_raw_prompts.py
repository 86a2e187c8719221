"""POST /v1/completions: a raw prompt goes the way of every other request, and comes back in the older shape."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest

from orchestrator.engines.generation import Message, Role
from orchestrator.placement.capabilities import Capability
from tests.bundles.sides import MODEL, NOW_MS
from tests.front.room import broken, done, room_in, saying, tokens

HELLO = saying(tokens("Hel", 0, 2), tokens("", 2, 1), tokens("lo", 3, 1), done())
PATH = "/v1/completions"


async def test_a_whole_continuation_is_a_text_completion(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room, room.client() as client:
        answer = await client.completions.create(model=MODEL, prompt="Once", max_tokens=5, user="u", seed=1)
    [asked] = room.gate.asked
    assert asked.generation.messages == (Message(Role.PROMPT, "Once"),)
    assert asked.capabilities == {Capability.COMPLETIONS, Capability.SEED}
    assert answer.id == "cmpl-" + asked.request.removeprefix("req_")
    assert (answer.object, answer.model, answer.created) == ("text_completion", MODEL, NOW_MS // 1000)
    [choice] = answer.choices
    assert (choice.index, choice.text, choice.finish_reason, choice.logprobs) == (0, "Hello", "stop", None)
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)


async def test_a_streamed_continuation_is_text_from_the_first_chunk_on(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room, room.client() as client:
        stream = await client.completions.create(
            model=MODEL, prompt="Once", stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        raw = await room.call(path=PATH, body=json.dumps({"model": MODEL, "prompt": "x", "stream": True}).encode())
    *texts, last, usage = chunks
    assert [chunk.choices[0].text for chunk in texts] == ["Hel", "lo"]
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert (last.choices[0].text, last.choices[0].finish_reason) == ("", "stop")
    assert (usage.choices, usage.usage is not None) == ([], True)
    assert raw.events()[-1] == "[DONE]"
    assert raw.header("x-tidegate-pool") == "sg-pool"


async def test_a_continuation_that_is_cut_never_looks_whole(tmp_path: Path) -> None:
    body = json.dumps({"model": MODEL, "prompt": "x", "stream": True}).encode()
    async with room_in(tmp_path, saying(tokens("a"), broken())) as room:
        reply = await room.call(path=PATH, body=body)
    assert reply.events()[-1] != "[DONE]"
    assert json.loads(reply.events()[-1])["error"]["code"] == "session_lost"


async def test_two_prompts_and_token_ids_are_refused_by_name(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room, room.client() as client:
        for prompt in (["a", "b"], [[1, 2]], [1, 2]):
            with pytest.raises(openai.BadRequestError) as found:
                await client.completions.create(model=MODEL, prompt=prompt)  # type: ignore[arg-type]
            assert (found.value.param or "").startswith("prompt")
        assert room.gate.asked == []
