"""Whatever a server does to us, a call ends in bounded time and memory with a sentence of ours."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
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
from orchestrator.engines.openai import OpenAIEngine, OpenAIEngineSettings, connections_for

CANARY = "canary-prompt"
KEY = "canary-key"
GENERATION = Generation(ModelId("m"), (Message(Role.USER, CANARY),), Sampling(temperature=0.5, max_tokens=7))
WITHOUT_MOST = Generation(ModelId("m"), (Message(Role.USER, CANARY),), Sampling(temperature=0.5))
STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


def sse(*chunks: object) -> bytes:
    return b"".join(f"data: {json.dumps(chunk)}\n\n".encode() for chunk in chunks)


def text(content: str | None, finish_reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": finish_reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}
DONE = b"data: [DONE]\n\n"
WHOLE = sse(text("日本"), text(" é", "stop"), USAGE) + DONE
WHOLE_EVENTS = [Delta("日本 é", (), 2), Finished(FinishReason.STOP, 5, 2)]


@dataclass(slots=True)
class Server:
    """A TCP server that reads one request per connection and then plays a script."""

    port: int = 0
    requests: list[tuple[bytes, bytes]] = field(default_factory=list)
    """Head and body of each request."""
    sent_bytes: int = 0
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when a script found that the client had closed."""


Script = Callable[[Server, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def serving(script: Script | bytes) -> AsyncIterator[Server]:
    server = Server()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            head = await reader.readuntil(b"\r\n\r\n")
            lengths = [line[16:] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length: ")]
            server.requests.append((head, await reader.readexactly(int(lengths[0])) if lengths else b""))
            if isinstance(script, bytes):
                writer.write(script)
                await writer.drain()
            else:
                watch = asyncio.create_task(reader.read())
                play = asyncio.ensure_future(script(server, writer))
                try:
                    await asyncio.wait({watch, play}, return_when=asyncio.FIRST_COMPLETED)
                    if not play.done() or isinstance(play.exception(), ConnectionError):
                        server.gone.set()
                finally:
                    for task in (watch, play):
                        task.cancel()
                    await asyncio.gather(watch, play, return_exceptions=True)
        writer.close()
        with contextlib.suppress(ConnectionError, asyncio.CancelledError):
            await writer.wait_closed()

    listener = await asyncio.start_server(handle, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await listener.wait_closed()


@contextlib.asynccontextmanager
async def engine_at(port: int, **settings: Any) -> AsyncIterator[OpenAIEngine]:
    bounds = {"connect_timeout_ms": 1_000, "first_byte_timeout_ms": 2_000, "stall_timeout_ms": 2_000} | settings
    engine = OpenAIEngine(OpenAIEngineSettings(bounds.pop("base_url", f"http://127.0.0.1:{port}"), "served", **bounds))
    try:
        yield engine
    finally:
        await engine.close()


def joined(events: list[EngineEvent]) -> list[EngineEvent]:
    """The events with all text in one: what comes together is a matter of the network."""
    deltas = [event for event in events if isinstance(event, Delta)]
    whole = Delta("".join(delta.text for delta in deltas), (), sum(delta.tokens for delta in deltas))
    return [*([whole] if deltas else []), *(event for event in events if not isinstance(event, Delta))]


async def answer(script: Script | bytes, generation: Generation = GENERATION, **settings: Any) -> list[EngineEvent]:
    async with serving(script) as server, engine_at(server.port, **settings) as engine:
        async with contextlib.aclosing(engine.generate(generation)) as events:
            return joined([event async for event in events])


def failure(events: list[EngineEvent]) -> str:
    *before, last = events
    assert isinstance(last, Failed | Refused), events
    assert all(isinstance(event, Delta) for event in before)
    assert "canary" not in last.detail
    return last.code


async def pause(_server: Server, _writer: asyncio.StreamWriter) -> None:
    await asyncio.sleep(30)


async def test_only_the_fields_we_know_are_sent() -> None:
    async with serving(STREAM_HEAD + WHOLE) as server, engine_at(server.port, api_key=KEY) as engine:
        sampling = Sampling(0.5, 0.9, 2**64 - 1, ("a", "b"), 7, ignore_eos=True, min_tokens=3)
        full = Generation(ModelId("m"), (Message(Role.SYSTEM, "s"), Message(Role.USER, "u")), sampling)
        assert joined([event async for event in engine.generate(full)]) == WHOLE_EVENTS
        plain = Generation(ModelId("m"), (Message(Role.USER, "u"),), Sampling())
        assert joined([event async for event in engine.generate(plain)]) == WHOLE_EVENTS
    always = {"model": "served", "stream": True, "stream_options": {"include_usage": True}}
    (head, body), (_, plain_body) = server.requests
    assert json.loads(body) == always | {
        "messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "temperature": 0.5,
        "top_p": 0.9,
        "seed": 2**63 - 1,
        "stop": ["a", "b"],
        "max_tokens": 7,
        "ignore_eos": True,
        "min_tokens": 3,
    }
    assert json.loads(plain_body) == always | {
        "messages": [{"role": "user", "content": "u"}],
        "temperature": 1.0,
        "top_p": 1.0,
    }
    lines = head.decode().lower().split("\r\n")
    assert lines[0] == "post /v1/chat/completions http/1.1"
    assert f"authorization: bearer {KEY}" in lines
    assert "accept-encoding: identity" in lines


async def test_an_answer_in_single_bytes_is_the_same_answer() -> None:
    async def drip(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for at in range(len(WHOLE)):
            writer.write(WHOLE[at : at + 1])
            await asyncio.sleep(0)

    assert await answer(drip) == WHOLE_EVENTS


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (WHOLE.removesuffix(DONE), "engine_protocol"),
        (sse(text("a")), "engine_failed"),
        (b"", "engine_failed"),
        (b"data: {garbage\n\n" + WHOLE, "engine_protocol"),
        (sse(text("a"), {"error": {"message": "canary"}}) + WHOLE, "engine_failed"),
        (
            sse({"choices": [text("a")["choices"][0], text("b")["choices"][0] | {"index": 1}]}) + WHOLE,
            "engine_protocol",
        ),
        (gzip.compress(WHOLE), "engine_protocol"),
    ],
    ids=["no done", "no finish", "nothing", "garbage", "error in the middle", "two choices", "unannounced gzip"],
)
async def test_a_bad_stream_is_a_failure(body: bytes, code: str) -> None:
    assert failure(await answer(STREAM_HEAD + body)) == code


@pytest.mark.parametrize(
    ("reply", "code"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Encoding: gzip\r\n\r\n", "engine_protocol"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}", "engine_protocol"),
        (b"HTTP/1.1 200 OK\r\n\r\n" + WHOLE, "engine_protocol"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
            "engine_protocol",
        ),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 9\r\n\r\ndata:", "engine_failed"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "engine_protocol"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "engine_protocol"),
        (b"", "engine_failed"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 6\r\n\r\ncanary", "engine_protocol"),
        (b"HTTP/1.1 404 No\r\nContent-Length: 6\r\n\r\ncanary", "model_not_served"),
        (b"HTTP/1.1 429 No\r\nContent-Length: 6\r\n\r\ncanary", "engine_busy"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 99\r\n\r\ncanary", "bad_generation"),
        (b"HTTP/1.1 400 No\r\n\r\n" + b"x" * 200_000, "bad_generation"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 6\r\n\r\ncanary", "engine_failed"),
    ],
)
async def test_a_reply_that_is_no_stream_is_refused_or_failed(reply: bytes, code: str) -> None:
    assert failure(await answer(reply)) == code


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_never_followed(status: int) -> None:
    async with serving(STREAM_HEAD + WHOLE) as canary_listener:
        location = f"http://127.0.0.1:{canary_listener.port}/v1/chat/completions"
        reply = f"HTTP/1.1 {status} Go\r\nLocation: {location}\r\nContent-Length: 0\r\n\r\n".encode()
        assert failure(await answer(reply)) == "engine_protocol"
    assert canary_listener.requests == []


async def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving(STREAM_HEAD + WHOLE) as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        assert await answer(STREAM_HEAD + WHOLE) == WHOLE_EVENTS
    assert proxy.requests == []


async def test_a_line_of_100_mb_costs_bounded_memory_and_is_cut() -> None:
    async def flood(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + b"data: ")
        for _ in range(1_600):
            writer.write(b"x" * 65_536)
            server.sent_bytes += 65_536
            await writer.drain()

    async with serving(flood) as server, engine_at(server.port, line_bytes_max=262_144) as engine:
        tracemalloc.start()
        try:
            events = [event async for event in engine.generate(GENERATION)]
            peak_bytes = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert failure(events) == "engine_protocol"
    assert peak_bytes < 8 * 1_048_576
    assert server.sent_bytes < 16 * 1_048_576


async def test_a_consumer_that_waits_holds_the_engine_back() -> None:
    chunk = sse(text("x" * 1_000))

    async def run_ahead(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(chunk)
            server.sent_bytes += len(chunk)
            await writer.drain()

    async with serving(run_ahead) as server, engine_at(server.port) as engine:
        async with contextlib.aclosing(engine.generate(WITHOUT_MOST)) as events:
            await anext(events)
            await asyncio.sleep(0.3)
            early_bytes = server.sent_bytes
            await asyncio.sleep(0.3)
            # Socket buffers of both ends hold some megabytes; what matters is that the flow stopped.
            assert server.sent_bytes == early_bytes < 32 * 1_048_576
        await asyncio.wait_for(server.gone.wait(), 1)


@pytest.mark.parametrize(
    ("before", "settings", "code"),
    [
        (b"", {"first_byte_timeout_ms": 150}, "engine_failed"),
        (STREAM_HEAD, {"first_byte_timeout_ms": 150}, "engine_failed"),
        (STREAM_HEAD + sse(text("a")), {"stall_timeout_ms": 150}, "engine_failed"),
        (STREAM_HEAD + sse(text("a")), {"total_timeout_ms": 150}, "engine_failed"),
        (b"HTTP/1.1 400 No\r\nContent-Length: 9\r\n\r\n", {"first_byte_timeout_ms": 150}, "bad_generation"),
    ],
)
async def test_silence_is_bounded(before: bytes, settings: dict[str, int], code: str) -> None:
    async def stall(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(before)
        await pause(server, writer)

    begun = asyncio.get_running_loop().time()
    assert failure(await answer(stall, **settings)) == code
    assert 0.1 < asyncio.get_running_loop().time() - begun < 1


async def test_an_answer_without_end_is_bounded() -> None:
    async def babble(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(sse(text("a")) * 1_000)
            await writer.drain()

    begun = asyncio.get_running_loop().time()
    assert failure(await answer(babble, WITHOUT_MOST, total_timeout_ms=300)) == "engine_failed"
    assert asyncio.get_running_loop().time() - begun < 1.5


async def test_the_total_bound_holds_for_a_slow_consumer_of_a_fast_engine() -> None:
    async def run_ahead(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(sse(text("x" * 10_000)))
            await writer.drain()

    async with serving(run_ahead) as server, engine_at(server.port, total_timeout_ms=200) as engine:
        async with contextlib.aclosing(engine.generate(WITHOUT_MOST)) as events:
            seen: list[EngineEvent] = []
            # The consumer leaves the engine time to have bytes ready at each read, so that no read ever waits.
            async with asyncio.timeout(3):
                async for event in events:
                    seen.append(event)
                    await asyncio.sleep(0.005)
    assert failure(seen) == "engine_failed"


async def test_the_time_that_a_consumer_takes_is_not_the_silence_of_the_engine() -> None:
    async def rest(_server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + sse(text("日本")))
        await asyncio.sleep(0.45)
        writer.write(sse(text(" é", "stop"), USAGE) + DONE)
        await asyncio.sleep(1)

    bounds = {"first_byte_timeout_ms": 150, "stall_timeout_ms": 150}
    async with serving(rest) as server, engine_at(server.port, **bounds) as engine:
        async with contextlib.aclosing(engine.generate(GENERATION)) as events:
            seen: list[EngineEvent] = []
            async for event in events:
                seen.append(event)
                await asyncio.sleep(0.4 if len(seen) == 1 else 0)
    assert joined(seen) == WHOLE_EVENTS


async def test_closing_or_cancelling_a_call_closes_its_connection() -> None:
    async def one_chunk(server: Server, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + sse(text("a")))
        await pause(server, writer)

    async def consume(engine: OpenAIEngine) -> None:
        async with contextlib.aclosing(engine.generate(GENERATION)) as events:
            async for _ in events:
                pass

    async with serving(one_chunk) as server, engine_at(server.port) as engine:
        async with contextlib.aclosing(engine.generate(GENERATION)) as events:
            assert await anext(events) == Delta("a", (), 1)
        await asyncio.wait_for(server.gone.wait(), 1)
    for script in (one_chunk, pause):
        async with serving(script) as server, engine_at(server.port) as engine:
            task = asyncio.create_task(consume(engine))
            await asyncio.sleep(0.1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.wait_for(server.gone.wait(), 1)


async def test_closing_the_engine_fails_what_runs_and_what_comes() -> None:
    async with serving(pause) as server, engine_at(server.port) as engine:
        running = asyncio.create_task(anext(engine.generate(GENERATION)))
        await asyncio.sleep(0.1)
        await engine.close()
        assert failure([await asyncio.wait_for(running, 1)]) == "engine_failed"
        assert failure([event async for event in engine.generate(GENERATION)]) == "engine_unreachable"
        assert (await probe(engine, deadline_ms=500)).up is False


async def test_no_call_waits_for_a_connection() -> None:
    async with serving(pause) as server, engine_at(server.port, connections_max=1) as engine:
        first = asyncio.create_task(anext(engine.generate(GENERATION)))
        await asyncio.sleep(0.1)
        assert [type(event) async for event in engine.generate(GENERATION)] == [Refused]
        first.cancel()
        with pytest.raises(asyncio.CancelledError):
            await first
    async with serving(STREAM_HEAD + WHOLE) as server, engine_at(server.port, connections_max=1) as engine:
        for _ in range(3):
            assert joined([event async for event in engine.generate(GENERATION)]) == WHOLE_EVENTS


async def test_an_engine_of_many_slots_takes_as_many_calls() -> None:
    slots = 300
    async with serving(pause) as server, engine_at(server.port, connections_max=connections_for(slots)) as engine:
        calls: list[asyncio.Task[EngineEvent]] = []
        async with asyncio.timeout(20):
            while len(calls) < slots:
                # As many at a time as a server lets wait to be accepted.
                calls += [asyncio.create_task(anext(engine.generate(GENERATION))) for _ in range(50)]
                while len(server.requests) < len(calls):  # noqa: ASYNC110 - the server counts them
                    await asyncio.sleep(0.01)
        assert not any(call.done() for call in calls)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)


async def test_text_that_is_no_unicode_is_refused_and_quoted_nowhere() -> None:
    async with serving(STREAM_HEAD + WHOLE) as server, engine_at(server.port) as engine:
        generation = Generation(ModelId("m"), (Message(Role.USER, CANARY + "\ud800"),), Sampling())
        assert failure([event async for event in engine.generate(generation)]) == "bad_generation"
    assert server.requests == []


async def test_an_engine_that_cannot_be_reached_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        refusing = taken.getsockname()[1]
        async with engine_at(refusing) as engine:
            assert failure([event async for event in engine.generate(GENERATION)]) == "engine_unreachable"
            assert (await probe(engine, deadline_ms=500)).up is False
    async with serving(STREAM_HEAD + WHOLE) as server:
        async with engine_at(0, base_url=f"https://127.0.0.1:{server.port}") as engine:
            assert failure([event async for event in engine.generate(GENERATION)]) == "engine_unreachable"
    assert server.requests == []


async def test_connecting_is_bounded() -> None:
    with socket.socket() as full, socket.socket() as first, socket.socket() as second:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for waiting in (first, second):
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        async with engine_at(full.getsockname()[1], connect_timeout_ms=200) as engine:
            begun = asyncio.get_running_loop().time()
            assert failure([event async for event in engine.generate(GENERATION)]) == "engine_unreachable"
            assert asyncio.get_running_loop().time() - begun < 1.5


def json_reply(document: object) -> bytes:
    body = json.dumps(document).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


async def health_of(script: Script | bytes, **settings: Any) -> EngineHealth:
    async with serving(script) as server, engine_at(server.port, **settings) as engine:
        return await probe(engine, deadline_ms=300)


async def test_a_probe_tells_the_models() -> None:
    models = {"object": "list", "data": [{"id": "a", "owned_by": "x"}, {"id": "b"}]}
    assert await health_of(json_reply(models)) == EngineHealth(up=True, models=("a", "b"), detail="")


@pytest.mark.parametrize(
    "script",
    [
        pause,
        b"",
        b"HTTP/1.1 503 Loading\r\nContent-Length: 6\r\n\r\ncanary",
        b"HTTP/1.1 404 No\r\nContent-Length: 6\r\n\r\ncanary",
        b"HTTP/1.1 302 Go\r\nLocation: http://127.0.0.1:1/\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 2\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * 2_000_000,
        json_reply({"data": "canary"}),
        json_reply({"data": [{"id": "a"}] * 1_001}),
        json_reply({"data": [{"id": "a" * 300}]}),
        json_reply({"data": [{"id": 5}]}),
        b'HTTP/1.1 200 OK\r\nContent-Length: 22\r\n\r\n{"data": [{"id":"\xff"}]}',
    ],
)
async def test_a_probe_of_a_broken_engine_is_down_with_a_reason(script: Script | bytes) -> None:
    health = await health_of(script)
    assert (health.up, health.models) == (False, ())
    assert health.detail
    assert "canary" not in health.detail


async def test_a_full_engine_can_still_be_probed() -> None:
    async def by_path(server: Server, writer: asyncio.StreamWriter) -> None:
        if server.requests[-1][0].startswith(b"GET /v1/models "):
            writer.write(json_reply({"data": []}))
        else:
            await pause(server, writer)

    async with serving(by_path) as server, engine_at(server.port, connections_max=1) as engine:
        running = asyncio.create_task(anext(engine.generate(GENERATION)))
        await asyncio.sleep(0.1)
        assert (await probe(engine, deadline_ms=1_000)).up is True
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
