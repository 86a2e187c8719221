"""What an engine says of a prompt's length is held against the bytes of the request."""

from __future__ import annotations

import json
import unicodedata

import pytest

from orchestrator.engines.generation import Finished, Generation, Message, ModelId, Role, Sampling
from orchestrator.engines.prompt_bound import NORMALISED_TIMES, RAW_TOKENS, TEMPLATE_TOKENS
from tests.engines.test_hostile_engines import DONE, STREAM_HEAD, answer, failure, serving, sse, text


def asked(words: str, role: Role = Role.USER) -> Generation:
    return Generation(ModelId("m"), (Message(role, words),), Sampling(max_tokens=7))


def telling(prompt_tokens: int) -> bytes:
    usage = {"choices": [], "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 1}}
    return STREAM_HEAD + sse(text("a", "stop"), usage) + DONE


async def body_bytes(generation: Generation) -> int:
    """How many bytes such a request has."""
    async with serving(telling(1)) as server:
        await answer(telling(1), generation, base_url=f"http://127.0.0.1:{server.port}")
        return len(server.requests[0][1])


@pytest.mark.parametrize(("role", "more"), [(Role.USER, TEMPLATE_TOKENS), (Role.PROMPT, RAW_TOKENS)])
@pytest.mark.parametrize(("words", "times"), [("hello", 1), ("h\u00e9llo", NORMALISED_TIMES)])
async def test_an_engine_that_tells_more_tokens_than_the_prompt_can_have_fails(
    role: Role, more: int, words: str, times: int
) -> None:
    generation = asked(words, role)
    most = await body_bytes(generation) * times + more
    last = (await answer(telling(most), generation))[-1]
    assert isinstance(last, Finished)
    assert last.prompt_tokens == most
    for told in (most + 1, 4_000_000_000):
        assert failure(await answer(telling(told), generation)) == "engine_protocol"


async def test_no_prompt_makes_an_honest_engine_a_liar() -> None:
    """Not even one that grows the most in a normal form, with a token for each byte of that."""
    words = "\ufdfa" * 2_000
    told = len(unicodedata.normalize("NFKC", words).encode()) + TEMPLATE_TOKENS
    assert isinstance((await answer(telling(told), asked(words)))[-1], Finished)
    hidden = "".join(chr(one) for one in range(32)) * 100
    assert len(json.dumps(hidden)) > len(hidden)
    assert isinstance((await answer(telling(len(hidden) + TEMPLATE_TOKENS), asked(hidden)))[-1], Finished)
