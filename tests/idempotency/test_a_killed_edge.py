"""Keys of a real edge process, over its death and its drain."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import openai
import pytest

from tests.bundles.sides import MODEL
from tests.idempotency.lone_edge import API_KEY, TIMEOUT_S, LoneEdge, lone_edge


def client(edge: LoneEdge, retries: int = 2) -> openai.AsyncOpenAI:
    url = f"http://127.0.0.1:{edge.port}/v1"
    return openai.AsyncOpenAI(base_url=url, api_key=API_KEY, max_retries=retries, timeout=TIMEOUT_S)


async def ask(edge: LoneEdge, key: str, *, stream: bool = False, retries: int = 2) -> tuple[Mapping[str, str], bytes]:
    async with client(edge, retries) as asking:
        raw = await asking.chat.completions.with_raw_response.create(
            model=MODEL,
            messages=[{"role": "user", "content": "Well?"}],
            stream=stream,
            extra_headers={"Idempotency-Key": key},
        )
        return raw.headers, await raw.http_response.aread()


async def until(holds: Callable[[], bool]) -> None:
    end_at = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < end_at
        await asyncio.sleep(0.02)


@pytest.mark.timeout(180)
async def test_a_killed_edge_sends_no_key_twice_and_forgets_no_result(tmp_path: Path) -> None:
    with lone_edge(tmp_path) as edge:
        engine = edge.engine
        engine.may_answer.set()
        first, whole = await ask(edge, "whole")
        _, stream = await ask(edge, "stream", stream=True)
        engine.may_answer.clear()
        engine.arrived.clear()
        # Killed while it runs: the client's own retries find the edge gone.
        running = asyncio.create_task(ask(edge, "running", retries=0))
        await until(engine.arrived.is_set)
        edge.stop(signal.SIGKILL)
        with pytest.raises(openai.APIConnectionError):
            await running
        assert engine.asked == 3
        engine.may_answer.set()
        edge.start()
        with pytest.raises(openai.ConflictError) as conflict:
            await ask(edge, "running")
        assert conflict.value.code == "idempotency_result_not_kept"
        assert "may have been sent" in conflict.value.message
        again, replayed = await ask(edge, "whole")
        assert replayed == whole
        assert again["idempotent-replayed"] == "true"
        assert again["x-tidegate-first-request"] == first["x-request-id"]
        assert (await ask(edge, "stream", stream=True))[1] == stream
        assert engine.asked == 3
        await ask(edge, "new")
        assert engine.asked == 4
        assert edge.stop(signal.SIGTERM) == 0
        # One charge for each key that brought an answer, none for what was sent again, nor for what the kill cut.
        usage = edge.records("usage")
        assert [record["outcome"] for record in usage] == ["complete", "complete", "lost", "complete"]
        assert [record["price"] is not None for record in usage] == [True, True, False, True]
        assert len({record["request"] for record in usage}) == 4


@pytest.mark.timeout(180)
async def test_a_drained_edge_settles_what_it_cuts(tmp_path: Path) -> None:
    with lone_edge(tmp_path) as edge:
        running = asyncio.create_task(ask(edge, "running"))
        await until(edge.engine.arrived.is_set)
        assert edge.process is not None
        edge.process.send_signal(signal.SIGTERM)
        with pytest.raises(openai.InternalServerError) as cut:
            await running
        # A retry under the same key could not do better, so the client makes none.
        assert (cut.value.status_code, cut.value.code) == (502, "draining"), "503 asks for the same again"
        assert "Another Idempotency-Key" in cut.value.message
        assert edge.process.wait(TIMEOUT_S) == 0
        edge.engine.may_answer.set()
        edge.start()
        with pytest.raises(openai.ConflictError) as conflict:
            await ask(edge, "running")
        assert "is over" in conflict.value.message
        assert edge.engine.asked == 1
