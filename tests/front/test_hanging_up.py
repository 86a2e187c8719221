"""A tenant who leaves or does not read: the work for it ends, and nothing is held for it beyond a bound."""

from __future__ import annotations

import asyncio
import gc
import resource
import socket
import struct
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from node_agent.border.decider import Asked
from tests.bundles.sides import MODEL
from tests.front.room import (
    ACME,
    CHAT,
    QUESTION,
    Frames,
    Room,
    chat_body,
    done,
    request_bytes,
    room_in,
    saying,
    tokens,
    until,
)

FRAME_BYTES = 16 * 1024


async def waiting(asked: Asked) -> Frames:
    yield tokens("a")
    await asyncio.sleep(60)
    yield done()


async def flood(asked: Asked) -> Frames:
    for number in range(100_000):
        yield tokens("x" * FRAME_BYTES, number)
    yield done()


def chat_request(**fields: object) -> bytes:
    body = chat_body(**fields)
    headers = [("Host", "e"), ("Authorization", f"Bearer {ACME.text()}"), ("Content-Type", "application/json")]
    return request_bytes("POST", CHAT, [*headers, ("Content-Length", str(len(body)))], body)


@asynccontextmanager
async def unread(room: Room, request: bytes) -> AsyncIterator[socket.socket]:
    """A connection that sends a request and reads nothing of the answer, with a small buffer of its own."""
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(connection, ("127.0.0.1", room.server.port))
        await loop.sock_sendall(connection, request)
        yield connection


async def test_leaving_in_the_middle_of_a_stream_closes_the_answer(tmp_path: Path) -> None:
    async with room_in(tmp_path, waiting) as room, room.client() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        await anext(stream)
        await anext(stream)
        assert room.gate.answers_closed == 0
        await stream.close()
        await until(lambda: room.gate.answers_closed == 1)
        assert room.front._admission.running == 0
        assert 'tidegate_requests_total{outcome="cancelled"} 1.0' in room.metrics.render().decode()


async def test_leaving_leaves_nothing_that_only_a_search_for_cycles_would_find(tmp_path: Path) -> None:
    held: list[weakref.ref[set[str]]] = []

    async def long(asked: Asked) -> Frames:
        of_this_answer = {"a"}
        held.append(weakref.ref(of_this_answer))
        yield tokens("a")
        await asyncio.sleep(60)
        yield done()

    async with room_in(tmp_path, long) as room:
        gc.collect()
        gc.disable()
        try:
            async with unread(room, chat_request(stream=True)):
                await until(lambda: len(held) == 1)
            await until(lambda: room.gate.answers_closed == 1)
            await until(lambda: held[0]() is None)
        finally:
            gc.enable()


async def test_leaving_before_the_first_token_cancels_the_question(tmp_path: Path) -> None:
    async def never(asked: Asked) -> None:
        await asyncio.sleep(60)

    async with room_in(tmp_path, saying(done())) as room:
        room.gate.before = never
        for number, stream in enumerate((True, False), 1):
            _, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
            writer.write(chat_request(stream=stream))
            await until(lambda number=number: len(room.gate.asked) == number)  # type: ignore[misc]
            writer.close()
            await writer.wait_closed()
            await until(lambda number=number: room.gate.asks_cancelled == number)  # type: ignore[misc]
        await until(lambda: room.front._admission.running == 0)


@pytest.mark.parametrize("reset", [True, False])
async def test_leaving_is_seen_behind_what_was_sent_ahead(tmp_path: Path, reset: bool) -> None:
    async with room_in(tmp_path, waiting) as room, unread(room, chat_request()) as connection:
        await until(lambda: room.gate.frames_taken == 1)
        (ours,) = room.server._connections
        # More than is held here, and no more than the system takes: what stands behind it is not seen by anybody.
        await asyncio.get_running_loop().sock_sendall(connection, b"x" * (96 << 10))
        await until(lambda: not ours.reading)
        room.server._listen_for_hanging_up()
        await asyncio.sleep(0.05)
        assert room.front._admission.running == 1, "who sends ahead and stays is served on"
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", reset, 0))
        connection.close()
        await until(lambda: room.front._admission.running == 0, 5)
        assert room.gate.answers_closed == 1


async def test_leaving_while_an_answer_is_gathered_closes_it(tmp_path: Path) -> None:
    async with room_in(tmp_path, waiting) as room:
        _, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        writer.write(chat_request())
        await until(lambda: room.gate.frames_taken == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: room.gate.answers_closed == 1)


async def test_leaving_in_the_middle_of_the_body_asks_nothing(tmp_path: Path) -> None:
    async with room_in(tmp_path, waiting, body_timeout_ms=5000) as room:
        _, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        writer.write(chat_request()[:-1])
        await until(lambda: room.front._admission.running == 1)
        writer.close()
        await writer.wait_closed()
        await until(lambda: room.front._admission.running == 0)
        assert room.gate.asked == []


async def test_what_the_gate_records_at_the_end_is_not_cut_short(tmp_path: Path) -> None:
    recorded = asyncio.Event()

    async def recording(asked: Asked) -> Frames:
        try:
            yield tokens("a")
            yield done()
        finally:
            # As the gate does after the last frame: a record is written, and that takes a moment.
            await asyncio.sleep(0.2)
            recorded.set()

    async with room_in(tmp_path, recording) as room, room.client() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        async for _ in stream:
            pass
        assert not recorded.is_set(), "the tenant does not wait for the record"
        await stream.close()
        await client.close()
        async with asyncio.timeout(1):
            await recorded.wait()
        await until(lambda: room.gate.answers_closed == 1)


async def test_a_reader_that_is_slow_holds_the_answer_back(tmp_path: Path) -> None:
    async with room_in(tmp_path, flood) as room, unread(room, chat_request(stream=True)) as connection:
        before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        await until(lambda: room.gate.frames_taken > 1)
        taken = -1
        while taken != room.gate.frames_taken:
            taken = room.gate.frames_taken
            await asyncio.sleep(0.3)
        # What the sockets of both ends hold, and no more.
        assert taken * FRAME_BYTES < 16 << 20
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 32 << 10
        read = 0
        while read < 8 << 20:
            read += len(await asyncio.get_running_loop().sock_recv(connection, 1 << 20))
        await until(lambda: room.gate.frames_taken > taken)
        assert room.gate.frames_taken * FRAME_BYTES < read + (16 << 20)
        connection.close()
        await until(lambda: room.gate.answers_closed == 1)


async def test_a_reader_that_stands_still_is_left_after_a_bound(tmp_path: Path) -> None:
    async with room_in(tmp_path, flood, write_timeout_ms=300) as room:
        async with unread(room, chat_request(stream=True)) as connection:
            await until(lambda: room.gate.answers_closed == 1, 5)
            assert 'tidegate_refusals_total{code="slow_reader"} 1.0' in room.metrics.render().decode()
            read = b""
            while chunk := await asyncio.get_running_loop().sock_recv(connection, 1 << 20):
                read = (read + chunk)[-4096:]
        # The connection ends without an end of the answer, so that nobody takes it for whole.
        assert b"[DONE]" not in read
        assert not read.endswith(b"0\r\n\r\n")


async def test_a_comment_that_cannot_be_written_ends_the_wait_too(tmp_path: Path) -> None:
    async def big(asked: Asked) -> Frames:
        yield tokens("x" * (64 << 20))
        await asyncio.sleep(60)
        yield done()

    async with room_in(tmp_path, big, write_timeout_ms=300, keep_alive_ms=50) as room:
        async with unread(room, chat_request(stream=True)):
            await until(lambda: room.gate.answers_closed == 1, 5)


@pytest.mark.parametrize("at_once", [4])
async def test_one_that_leaves_does_not_disturb_the_others(tmp_path: Path, at_once: int) -> None:
    async def counting(asked: Asked) -> Frames:
        for number in range(20):
            yield tokens(f"{number},", number)
            await asyncio.sleep(0.01)
        yield done()

    whole = "".join(f"{number}," for number in range(20))
    async with room_in(tmp_path, counting) as room, room.client() as client:

        async def one(leave: bool) -> str:
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            text = ""
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if leave and text:
                    await stream.close()
                    break
            return text

        texts = await asyncio.gather(*(one(number % 2 == 0) for number in range(at_once)))
        await until(lambda: room.gate.answers_closed == at_once)
    assert texts[1::2] == [whole] * (at_once // 2)
