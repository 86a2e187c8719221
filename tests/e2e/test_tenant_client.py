"""The official `openai` client, unchanged, against both edges."""

from __future__ import annotations

import asyncio

import openai
import pytest

from orchestrator.cli.samples import MODEL, Caller
from tests.e2e.conftest import Standing

pytestmark = [pytest.mark.e2e, pytest.mark.asyncio(loop_scope="session"), pytest.mark.timeout(180)]

QUESTION = [{"role": "user", "content": "What is the capital of France? Answer with one word."}]
PAIRS = [("singapore", "cn-"), ("frankfurt", None)]


def callers(standing: Standing) -> list[Caller]:
    return [standing.up.caller("singapore"), standing.up.caller("frankfurt")]


async def slots_free(standing: Standing, site: str) -> bool:
    members = await standing.up.members()
    return site in members and all(pool.running == 0 and pool.waiting == 0 for pool in members[site].pools)


async def test_models_are_listed(standing: Standing) -> None:
    for caller in callers(standing):
        async with caller.client() as client:
            models = [model.id async for model in client.models.list()]
        assert models == [MODEL]


async def test_an_answer_comes_whole_with_usage(standing: Standing) -> None:
    for caller in callers(standing):
        async with caller.client() as client:
            answer = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=16, temperature=0
            )
        assert "Paris" in (answer.choices[0].message.content or "")
        assert answer.usage is not None
        assert answer.usage.prompt_tokens > 10
        assert 0 < answer.usage.completion_tokens <= 16
        assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


async def test_a_raw_prompt_is_continued_whole_and_streamed(standing: Standing) -> None:
    for caller in callers(standing):
        asked = {"model": MODEL, "prompt": "The capital of France is", "max_tokens": 8, "temperature": 0}
        async with caller.client() as client:
            whole = await client.completions.create(**asked)
            stream = await client.completions.create(**asked, stream=True)
            streamed = "".join([chunk.choices[0].text async for chunk in stream])
        assert whole.object == "text_completion"
        assert whole.choices[0].text
        assert streamed == whole.choices[0].text
        assert whole.usage is not None
        # No template was laid round it.
        assert whole.usage.prompt_tokens < 10


async def test_an_answer_streams_with_and_without_usage(standing: Standing) -> None:
    for caller in callers(standing):
        for include in (True, False):
            async with caller.client() as client:
                stream = await client.chat.completions.create(
                    model=MODEL,
                    messages=QUESTION,
                    max_tokens=16,
                    temperature=0,
                    stream=True,
                    stream_options={"include_usage": include},
                )
                chunks = [chunk async for chunk in stream]
            text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
            assert "Paris" in text
            assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] in ("stop", "length")
            assert (chunks[-1].usage is not None) == include


async def test_greedy_and_seeded_answers_repeat(standing: Standing) -> None:
    async with standing.up.caller("singapore").client() as client:

        async def text(**sampling: float) -> str:
            answer = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, max_tokens=12, **sampling  # type: ignore[arg-type]
            )
            return answer.choices[0].message.content or ""

        assert await text(temperature=0) == await text(temperature=0)
        assert await text(temperature=1, seed=7) == await text(temperature=1, seed=7)


async def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(standing: Standing) -> None:
    async with standing.up.caller("singapore").client() as client:
        answer = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Count: one two three four five six"}],
            max_tokens=40,
            temperature=0,
            stop=["e"],
        )
    assert answer.choices[0].finish_reason == "stop"
    assert "e" not in (answer.choices[0].message.content or "")


async def test_errors_arrive_as_the_clients_own_classes(standing: Standing) -> None:
    caller = standing.up.caller("singapore")
    async with caller.client() as client:
        with pytest.raises(openai.NotFoundError) as unknown:
            await client.chat.completions.create(model="no-such-model", messages=QUESTION)
        assert unknown.value.code == "model_not_found"
        assert unknown.value.param == "model"
        with pytest.raises(openai.NotFoundError):
            await client.embeddings.create(model=MODEL, input="text")
        with pytest.raises(openai.BadRequestError) as several:
            await client.chat.completions.create(model=MODEL, messages=QUESTION, n=2)
        assert several.value.param == "n"
        with pytest.raises(openai.BadRequestError) as long:
            await client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": "word " * 4000}], max_tokens=8
            )
        assert long.value.code == "context_length_exceeded"
        with pytest.raises(openai.APIStatusError) as law:
            await client.chat.completions.create(
                model=MODEL, messages=QUESTION, extra_headers={"x-tidegate-labels": 'personal=sensitive, origin="DE"'}
            )
        assert law.value.status_code == 451
        assert law.value.code == "residency_blocked"
    async with openai.AsyncOpenAI(base_url=caller.url, api_key="tg_nobody1_" + "A" * 43, max_retries=0) as stranger:
        with pytest.raises(openai.AuthenticationError):
            await stranger.chat.completions.create(model=MODEL, messages=QUESTION)


async def test_a_client_that_goes_away_frees_the_slot_within_a_second(standing: Standing) -> None:
    async with standing.up.caller("singapore").client() as client:
        stream = await client.chat.completions.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Write a very long story about the sea."}],
            max_tokens=900,
            stream=True,
        )
        seen = 0
        async for _ in stream:
            seen += 1
            if seen == 4:
                break
        await stream.close()
    began = asyncio.get_running_loop().time()
    while not await slots_free(standing, "guizhou"):
        # Status travels with a report a second: a second to stop, one to be told, and some for a busy machine.
        assert asyncio.get_running_loop().time() - began < 4, "the replica still works for nobody"
        await asyncio.sleep(0.1)


async def test_many_answers_run_together(standing: Standing) -> None:
    async with standing.up.caller("singapore").client() as client:

        async def one(number: int) -> str:
            answer = await client.chat.completions.create(
                model=MODEL,
                messages=[{"role": "user", "content": f"Say the number {number}."}],
                max_tokens=8,
                temperature=0,
            )
            return answer.choices[0].message.content or ""

        answers = await asyncio.gather(*(one(number) for number in range(6)))
    assert all(answers)
