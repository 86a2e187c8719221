"""How many requests an edge takes, and how it stops."""

from __future__ import annotations

import asyncio
import json
import logging
import socket
from pathlib import Path

import openai
import pytest

from node_agent.border.decider import Asked
from node_agent.front.serve import NOTICE_S, FrontServer
from tests.bundles.sides import MODEL
from tests.front.room import (
    ACME,
    ACME_SECOND,
    BETA,
    CHAT,
    QUESTION,
    Frames,
    Room,
    chat_body,
    done,
    parse_reply,
    request_bytes,
    room_in,
    saying,
    tokens,
    until,
)


class Halting:
    """A plan whose answers stop after the first token until they are let go."""

    def __init__(self) -> None:
        self.go_on = asyncio.Event()

    async def plan(self, asked: Asked) -> Frames:
        yield tokens("first")
        await self.go_on.wait()
        yield tokens(" last")
        yield done()


async def texts_of(room: Room) -> list[str]:
    """Read one whole stream."""
    async with room.client() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        return [chunk.choices[0].delta.content or "" async for chunk in stream]


async def test_one_more_than_the_limit_is_told_to_come_back(tmp_path: Path) -> None:
    halting = Halting()
    async with room_in(tmp_path, halting.plan, requests_max=3, tenant_requests_max=2) as room:
        running = [asyncio.create_task(room.call(body=chat_body())) for _ in range(2)]
        await until(lambda: len(room.gate.asked) == 2)
        for key in (ACME, ACME_SECOND):
            async with room.client(key, retries=0) as client:
                with pytest.raises(openai.RateLimitError) as found:
                    await client.chat.completions.create(model=MODEL, messages=QUESTION)
            assert found.value.code == "tenant_limit"
            assert found.value.response.headers["retry-after"] == "2"
        running.append(asyncio.create_task(room.call(body=chat_body(), key=BETA)))
        await until(lambda: len(room.gate.asked) == 3)
        full = await room.call(body=chat_body(), key=BETA)
        assert (full.status, full.error()["code"]) == (429, "tenant_share"), "half of three is one"
        # Probes and scrapers have room when tenants have none.
        assert (await room.call("GET", "/healthz", key=None)).status == 200
        assert b"tidegate_requests_active 3.0" in (await room.call("GET", "/metrics", key=None)).body
        halting.go_on.set()
        assert [reply.status for reply in await asyncio.gather(*running)] == [200, 200, 200]
        assert (await room.call(body=chat_body())).status == 200
        assert b"tidegate_requests_active 0.0" in (await room.call("GET", "/metrics", key=None)).body


async def test_a_place_is_taken_while_the_body_is_on_its_way(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done()), requests_max=1, body_timeout_ms=5000) as room:
        headers = [("Host", "e"), ("Authorization", f"Bearer {ACME.text()}"), ("Content-Type", "application/json")]
        reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        writer.write(request_bytes("POST", CHAT, [*headers, ("Content-Length", "100")], b"{"))
        await until(lambda: room.front._admission.running == 1)
        assert (await room.call(body=chat_body())).status == 429
        writer.close()
        await writer.wait_closed()
        await until(lambda: room.front._admission.running == 0)
        assert (await room.call(body=chat_body())).status == 200
        assert await reader.read() == b""


async def test_an_edge_that_leaves_is_unready_and_serves_whoever_still_comes(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(tokens("here"), done())) as room:
        room.front.leave()
        unready = await room.call("GET", "/readyz", key=None)
        assert (unready.status, unready.json()["reason"]) == (503, "draining")
        assert (await room.call("GET", "/healthz", key=None)).status == 200
        body, key = chat_body(), f"Bearer {ACME.text()}"
        lines = [("Host", "e"), ("Authorization", key), ("Content-Type", "application/json")]
        kept = await room.raw(request_bytes("POST", CHAT, [*lines, ("Content-Length", str(len(body)))], body))
        assert (kept.status, kept.header("connection")) == (200, "close"), "the next one goes elsewhere"
        room.front.drain()
        assert (await room.call(body=chat_body())).error()["code"] == "draining"


async def test_draining_refuses_what_is_new_and_lets_the_rest_end(tmp_path: Path) -> None:
    halting = Halting()
    async with room_in(tmp_path, halting.plan) as room:
        running = asyncio.create_task(texts_of(room))
        await until(lambda: room.gate.frames_taken == 1)
        room.front.drain()
        refused = await room.raw(
            request_bytes("POST", CHAT, [("Host", "e"), ("Content-Length", "2")], b"{}")
            + request_bytes("GET", "/healthz", [("Host", "e")])
        )
        assert (refused.status, refused.error()["code"]) == (503, "draining")
        assert (refused.header("connection"), refused.rest) == ("close", b"")
        assert (refused.header("x-should-retry"), refused.header("retry-after")) == ("true", "2")
        unready = await room.call("GET", "/readyz", key=None)
        assert (unready.status, unready.json()["reason"]) == (503, "draining")
        assert (await room.call("GET", "/healthz", key=None)).status == 200
        halting.go_on.set()
        assert "".join(await running) == "first last"
        assert len(room.gate.asked) == 1


async def test_stopping_waits_for_running_answers_and_takes_no_connection(tmp_path: Path) -> None:
    halting = Halting()
    async with room_in(tmp_path, halting.plan) as room:
        # A connection that is open and has nothing to do does not hold the server.
        idle, idle_writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        idle_writer.write(request_bytes("GET", "/healthz", [("Host", "e")]))
        assert parse_reply(await idle.read(4096)).status == 200
        running = asyncio.create_task(texts_of(room))
        await until(lambda: room.gate.frames_taken == 1)
        began_s = asyncio.get_running_loop().time()
        stopping = asyncio.create_task(room.server.stop(10))
        await asyncio.sleep(NOTICE_S / 2)
        # For a moment it still says that it is stopping; then nobody listens.
        assert (await room.call(body=chat_body())).error()["code"] == "draining"
        await asyncio.sleep(NOTICE_S)
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", room.server.port)
        assert not stopping.done()
        halting.go_on.set()
        assert "".join(await running) == "first last"
        await stopping
        assert asyncio.get_running_loop().time() - began_s < 3
        assert await idle.read() == b""
        idle_writer.close()
        await idle_writer.wait_closed()


async def test_what_runs_at_the_deadline_is_cut_with_a_word(tmp_path: Path) -> None:
    halting = Halting()
    async with room_in(tmp_path, halting.plan) as room:
        streamed = asyncio.create_task(room.call(body=chat_body(stream=True)))
        whole = asyncio.create_task(room.call(body=chat_body()))
        await until(lambda: room.gate.frames_taken == 2)
        began_s = asyncio.get_running_loop().time()
        await room.server.stop(0.2)
        assert asyncio.get_running_loop().time() - began_s < 2
        assert room.gate.answers_closed == 2
    last = json.loads((await streamed).events()[-1])
    assert last["error"]["code"] == "draining"
    assert (await streamed).ended
    assert ((await whole).status, (await whole).error()["code"]) == (503, "draining")


async def test_a_tenant_who_does_not_read_cannot_hold_the_stop(tmp_path: Path) -> None:
    async def flood(asked: Asked) -> Frames:
        while True:
            yield tokens("x" * 65536)

    body = chat_body(stream=True)
    headers = [("Host", "e"), ("Authorization", f"Bearer {ACME.text()}"), ("Content-Type", "application/json")]
    async with room_in(tmp_path, flood) as room:
        with socket.create_connection(("127.0.0.1", room.server.port)) as connection:
            connection.sendall(request_bytes("POST", CHAT, [*headers, ("Content-Length", str(len(body)))], body))
            await until(lambda: room.gate.frames_taken > 10)
            began_s = asyncio.get_running_loop().time()
            await room.server.stop(0.2)
            assert asyncio.get_running_loop().time() - began_s < 4
            assert room.gate.answers_closed == 1


async def test_a_port_that_is_taken_is_an_error_and_not_shared(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        second = FrontServer(room.front, "127.0.0.1", room.server.port)
        with pytest.raises(OSError, match=r"[Aa]ddress already in use"):
            await second.start()
        for _ in range(8):
            assert (await room.call(body=chat_body())).status == 200
        port = room.server.port
    # And given back at once when the first one is gone.
    async with room_in(tmp_path / "next", saying(done())) as room:
        again = FrontServer(room.front, "127.0.0.1", port)
        await again.start()
        await again.stop(1)


async def test_an_address_that_is_not_ours_is_an_error(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        with pytest.raises(OSError, match="assign"):
            await FrontServer(room.front, "192.0.2.1", 0).start()


async def test_the_server_leaves_logging_and_signals_alone(tmp_path: Path) -> None:
    closed: list[str] = []

    class Watched(logging.Handler):
        def close(self) -> None:
            closed.append("closed")
            super().close()

    handler = Watched()
    logging.getLogger().addHandler(handler)
    try:
        async with room_in(tmp_path, saying(done())) as room:
            assert (await room.call(body=chat_body())).status == 200
            assert handler in logging.getLogger().handlers
            assert closed == []
    finally:
        logging.getLogger().removeHandler(handler)
