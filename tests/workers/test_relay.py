"""A request with a key at a process that does not answer for the key: it is served by the one that does."""

from __future__ import annotations

import asyncio
import json
import os
import stat
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from node_agent.border.decider import Asked
from node_agent.front.limits import Limits
from node_agent.idempotency.rules import owner
from node_agent.workers import relay, scrape
from node_agent.workers.local import LocalServer
from node_agent.workers.relay import Siblings
from orchestrator.policy.ids import TenantId
from orchestrator.watch.places import private_folder, socket_of
from tests.bundles.sides import MODEL
from tests.front.room import (
    ACME,
    BETA,
    CHAT,
    LIMITS,
    QUESTION,
    SEALER,
    Frames,
    Key,
    Reply,
    Room,
    chat_body,
    done,
    request_bytes,
    room_in,
    saying,
    tokens,
    until,
)

ANSWER = saying(tokens("an answer "), tokens("of the model"), done())
Served = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def key_of(index: int, tenant: str = "acme", processes: int = 2) -> str:
    """A key for which process `index` answers."""
    names = (f"key-{number}" for number in range(1_000))
    return next(
        name for name in names if owner(SEALER.key(TenantId(tenant), CHAT, name), processes) == index
    )


THEIRS = key_of(1)
OURS = key_of(0)


@pytest.fixture
def run_dir() -> Iterator[Path]:
    """A folder whose name is short enough for sockets, whatever the test is called."""
    with tempfile.TemporaryDirectory() as folder:
        private_folder(Path(folder) / "run")
        yield Path(folder) / "run"


def siblings(run_dir: Path, **limits: int) -> Siblings:
    given = Limits(**{**LIMITS, **limits})
    return Siblings(SEALER, 0, 2, run_dir, given, given.requests_max)


@asynccontextmanager
async def two(folder: Path, run_dir: Path, plan: Any = ANSWER, **more: Any) -> AsyncIterator[tuple[Room, Room]]:
    """A process that tenants call, and the owner of some keys that listens for it alone."""
    ours = folder / "ours"
    async with room_in(folder / "theirs", plan, **more) as theirs:
        local = LocalServer(theirs.front, socket_of(run_dir, 1))
        await local.start()
        try:
            async with room_in(ours, plan, elsewhere=siblings(run_dir), **more) as called:
                yield called, theirs
        finally:
            await local.stop(1.0)
    assert not socket_of(run_dir, 1).exists()


@asynccontextmanager
async def owned_by(folder: Path, run_dir: Path, served: Served, **limits: int) -> AsyncIterator[Room]:
    """A process that tenants call, and in place of the owner what the test makes of one connection."""
    server = await asyncio.start_unix_server(served, str(socket_of(run_dir, 1)))
    try:
        async with room_in(folder, ANSWER, elsewhere=siblings(run_dir, **limits)) as room:
            yield room
    finally:
        server.close()
        await server.wait_closed()


async def ask(room: Room, name: str, key: Key = ACME, **fields: Any) -> Reply:
    return await room.call(body=chat_body(**fields), headers=[("Idempotency-Key", name)], key=key)


@pytest.mark.parametrize("stream", [False, True])
async def test_the_owner_serves_and_sends_again(tmp_path: Path, run_dir: Path, stream: bool) -> None:
    async with two(tmp_path, run_dir, keeps=("acme",)) as (room, theirs):
        first = await ask(room, THEIRS, stream=stream)
        again = await ask(room, THEIRS, stream=stream)
        direct = await ask(theirs, THEIRS, stream=stream)
        assert (room.gate.sent, theirs.gate.sent) == (0, 1)
        await ask(room, OURS, stream=stream)
        await room.call(body=chat_body(stream=stream))
        assert (room.gate.sent, theirs.gate.sent) == (2, 1)
        # Told of once, where it was served.
        served = [where.metrics.render().count(b'requests_total{outcome="answered"} ') for where in (room, theirs)]
        assert served == [1, 1]
        assert b'requests_total{outcome="answered"} 2.0' in room.metrics.render()
        assert b'requests_total{outcome="answered"} 3.0' in theirs.metrics.render()
    assert (first.status, first.ended) == (200, True)
    assert (again.status, again.body) == (direct.status, direct.body) == (200, first.body)
    assert again.header("x-tidegate-first-request") == direct.header("x-tidegate-first-request")
    assert first.header("x-request-id") == again.header("x-tidegate-first-request")
    assert [name for name, _ in again.headers] == [name for name, _ in direct.headers]


async def test_one_of_many_goes_on_whoever_is_asked(tmp_path: Path, run_dir: Path) -> None:
    release = asyncio.Event()

    async def plan(asked: Asked) -> Frames:
        await release.wait()
        yield tokens("now")
        yield done()

    async with two(tmp_path, run_dir, plan, tenant_requests_max=64, requests_max=99) as (room, theirs):
        asking = [asyncio.create_task(ask(room if number % 2 else theirs, THEIRS)) for number in range(12)]
        await until(lambda: sum(one.done() for one in asking) == 11, within_s=5)
        release.set()
        replies = [await one for one in asking]
        assert (room.gate.sent, theirs.gate.sent) == (0, 1)
    assert sorted(reply.status for reply in replies) == [200] + [409] * 11
    refused = [reply.error()["code"] for reply in replies if reply.status == 409]
    assert refused == ["idempotency_in_progress"] * 11


async def test_an_unmodified_client_keeps_its_connection(tmp_path: Path, run_dir: Path) -> None:
    async with two(tmp_path, run_dir, keeps=("acme",)) as (room, _theirs):
        async with room.client() as client:
            texts = []
            for name in (THEIRS, OURS, THEIRS):
                stream = await client.chat.completions.create(
                    model=MODEL, messages=QUESTION, stream=True, extra_headers={"Idempotency-Key": name}
                )
                texts.append("".join([chunk.choices[0].delta.content or "" async for chunk in stream]))
            with pytest.raises(openai.BadRequestError):
                await client.chat.completions.create(
                    model=MODEL, messages=[], extra_headers={"Idempotency-Key": THEIRS}
                )
            assert len(room.server._connections) == 1
    assert texts == ["an answer of the model"] * 3


async def test_every_check_is_made_by_the_owner_and_the_key_of_the_tenant_here_too(
    tmp_path: Path, run_dir: Path
) -> None:
    async with two(tmp_path, run_dir) as (room, theirs):
        stranger = await ask(room, THEIRS, key=Key("acmekey1"))
        assert (stranger.status, b"idempotency" in theirs.metrics.render()) == (401, True)
        large = await ask(room, THEIRS, user="x" * LIMITS["body_bytes_max"])
        assert (large.status, large.error()["code"]) == (413, "body_too_large")
        assert large.header("connection") == "close"
        wrong = await ask(room, THEIRS, model="unheard-of")
        assert (wrong.status, wrong.error()["code"]) == (404, "model_not_found")
        # One tenant's key is not another's: it may be another process that answers for it.
        assert (await ask(room, key_of(1, "beta"), key=BETA)).status == 200
        assert (room.gate.sent, theirs.gate.sent) == (0, 1)


async def test_a_body_in_chunks_is_handed_over_in_chunks(tmp_path: Path, run_dir: Path) -> None:
    body = chat_body()
    pieces = [body[at : at + 7] for at in range(0, len(body), 7)]
    chunks = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
    lines = [
        ("Host", "edge"),
        ("Connection", "close"),
        ("Authorization", f"Bearer {ACME.text()}"),
        ("Content-Type", "application/json"),
        ("Transfer-Encoding", "chunked"),
        ("Expect", "100-continue"),
        ("Idempotency-Key", THEIRS),
    ]
    async with two(tmp_path, run_dir) as (room, theirs):
        reply = await room.raw(request_bytes("POST", CHAT, lines, chunks))
        assert reply.status == 200
        assert theirs.gate.asked[0].body == body
        broken = await room.raw(request_bytes("POST", CHAT, lines[:5] + lines[6:], b"5\r\nhello7\r\n"))
        assert (broken.status, broken.error()["code"]) == (400, "body_incomplete")


async def test_who_hangs_up_is_gone_for_the_owner_too(tmp_path: Path, run_dir: Path) -> None:
    async def plan(asked: Asked) -> Frames:
        yield tokens("begun")
        await asyncio.sleep(30)
        yield done()

    async with two(tmp_path, run_dir, plan) as (room, theirs):
        _, writer = await asyncio.open_connection("127.0.0.1", room.server.port)
        lines = [("Host", "edge"), ("Authorization", f"Bearer {ACME.text()}"), ("Content-Type", "application/json")]
        body = chat_body(stream=True)
        lines += [("Content-Length", str(len(body))), ("Idempotency-Key", THEIRS)]
        writer.write(request_bytes("POST", CHAT, lines, body))
        await until(lambda: theirs.gate.frames_taken == 1, within_s=5)
        writer.close()
        await writer.wait_closed()
        await until(lambda: theirs.gate.answers_closed == 1, within_s=5)


async def test_metrics_are_those_of_all_processes(tmp_path: Path, run_dir: Path) -> None:
    async with two(tmp_path, run_dir) as (room, theirs):
        for name in (THEIRS, OURS, key_of(1, "beta")):
            await ask(room, name, key=BETA if name == key_of(1, "beta") else ACME)
        page = (await room.call("GET", "/metrics")).body.decode()
        families = {family.name: family for family in text_string_to_metric_families(page)}
        answered = {
            one.labels["process"]: one.value
            for one in families["tidegate_requests"].samples
            if one.labels["outcome"] == "answered"
        }
        assert answered == {"0": 1, "1": 2}
        own = room.metrics.render().decode()
        assert families.keys() == {family.name for family in text_string_to_metric_families(own)}
        assert page.count("# HELP") == page.count("# TYPE") == own.count("# HELP")
        seconds = [one.labels for one in families["tidegate_request_seconds"].samples if one.name.endswith("_bucket")]
        assert {one["process"] for one in seconds} == {"0", "1"}
        # Asked on its own socket, a process tells of itself; one that is gone is left out.
        assert b"process=" not in (await theirs.call("GET", "/metrics")).body
    async with room_in(tmp_path / "alone", ANSWER, elsewhere=siblings(run_dir)) as room:
        page = (await room.call("GET", "/metrics")).body.decode()
        assert 'process="0"' in page
        assert 'process="1"' not in page


async def test_a_process_that_does_not_answer_is_left_out(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scrape, "ANSWER_S", 0.1)

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async with owned_by(tmp_path, run_dir, served) as room:
        page = (await room.call("GET", "/metrics")).body
        assert b'tidegate_requests_active{process="0"} 0.0\n' in page


async def test_nobody_else_may_hand_over(tmp_path: Path, run_dir: Path) -> None:
    async with two(tmp_path, run_dir):
        modes = [stat.S_IMODE(os.stat(path).st_mode) for path in (run_dir, socket_of(run_dir, 1))]
        assert modes == [0o700, 0o600]


async def test_an_owner_that_is_not_there_is_waited_for(tmp_path: Path, run_dir: Path) -> None:
    async with room_in(tmp_path / "ours", ANSWER, elsewhere=siblings(run_dir)) as room:
        async with room_in(tmp_path / "theirs", ANSWER) as theirs:
            asking = asyncio.create_task(ask(room, THEIRS))
            await asyncio.sleep(0.2)
            local = LocalServer(theirs.front, socket_of(run_dir, 1))
            await local.start()
            assert (await asking).status == 200
            await local.stop(1.0)


async def test_an_owner_that_stays_away_is_told_of(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "CONNECT_S", 0.1)
    async with room_in(tmp_path, ANSWER, elsewhere=siblings(run_dir)) as room:
        reply = await ask(room, THEIRS)
        assert (reply.status, reply.error()["code"]) == (503, "idempotency_unavailable")
        assert "nothing was sent" in reply.error()["message"]
        assert (reply.header("x-should-retry"), reply.header("retry-after")) == ("true", "2")
        assert b'requests_total{outcome="refused"} 1.0' in room.metrics.render()


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: "
EVENTS = HEAD + b"text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
DOCUMENT = HEAD + b"application/json\r\ncontent-length: 20\r\n\r\n"


@pytest.mark.parametrize(
    ("said", "status", "ended", "body"),
    [
        (b"", 503, True, b"not sent twice"),
        (EVENTS[:40], 503, True, b"not sent twice"),
        (b"SSH-2.0\r\n\r\n", 503, True, b"not sent twice"),
        (EVENTS + b"9\r\ndata: a\n\n\r\n", 200, True, b"data: a\n\ndata: {"),
        # Within an event or a document there is no place for a word.
        (EVENTS + b"9\r\ndata: a\n\n\r\n7\r\ndata: b\r\n", 200, False, b"data: a\n\ndata: b"),
        (EVENTS + b"x", 200, True, b"data: {"),
        (DOCUMENT + b'{"half":', 200, False, b'{"half":'),
    ],
)
async def test_an_owner_that_dies_in_the_middle(
    tmp_path: Path, run_dir: Path, said: bytes, status: int, ended: bool, body: bytes
) -> None:
    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(said)
        await writer.drain()
        writer.close()

    async with owned_by(tmp_path, run_dir, served) as room:
        reply = await ask(room, THEIRS)
        assert (reply.status, reply.ended) == (status, ended)
        assert body in reply.body
        if status == 503:
            assert reply.header("x-should-retry") == "true"
        # The process is none the worse for it.
        assert (await ask(room, OURS)).status == 200


async def test_an_owner_that_says_nothing_is_given_up(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "MARGIN_S", 0.0)
    hung_up = asyncio.Event()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        hung_up.set()
        writer.close()

    async with owned_by(tmp_path, run_dir, served, budget_ms=100, body_timeout_ms=100) as room:
        reply = await ask(room, THEIRS)
        assert (reply.status, reply.error()["code"]) == (503, "idempotency_unavailable")
        async with asyncio.timeout(5):
            await hung_up.wait()


async def test_an_answer_that_is_passed_on_ends_with_its_owners_word_when_both_stop(
    tmp_path: Path, run_dir: Path
) -> None:
    async def plan(_: Asked) -> Frames:
        yield tokens("one ")
        yield tokens("two")
        await asyncio.Event().wait()

    async with two(tmp_path, run_dir, plan) as (room, theirs):
        asking = asyncio.create_task(ask(room, THEIRS, stream=True))
        await until(lambda: theirs.gate.sent == 1, within_s=5)
        await asyncio.sleep(0.1)
        # In the order in which it is told worse.
        room.front.cut()
        theirs.front.cut()
        reply = await asking
    event = json.loads(reply.body.rstrip().rpartition(b"data: ")[2])["error"]
    assert (event["code"], event["usage"]["completion_tokens"]) == ("draining", 2)
    assert event["resume"]["reason"] == "cause"
    assert reply.body.count(b'"error"') == 1


@pytest.mark.parametrize(("begun", "word"), [(b"data: {}\n\n", True), (b"data: {", False)])
async def test_where_only_one_of_both_stops_its_word_comes_between_two_events(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch, begun: bytes, word: bool
) -> None:
    monkeypatch.setattr(relay, "OWNER_ENDS_S", 0.0)
    arrived = asyncio.Event()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(EVENTS + b"%x\r\n%b\r\n" % (len(begun), begun))
        arrived.set()
        await reader.read()
        writer.close()

    async with owned_by(tmp_path, run_dir, served) as room:
        asking = asyncio.create_task(ask(room, THEIRS, stream=True))
        await arrived.wait()
        await asyncio.sleep(0.1)
        room.front.cut()
        reply = await asking
    assert reply.body.startswith(begun)
    assert (b'"draining"' in reply.body) is word
    assert reply.ended is word


async def test_there_is_a_bound_on_what_is_passed_on_and_its_end_with_a_drain(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay, "OWNER_ENDS_S", 0.0)
    arrived = asyncio.Event()

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.set()
        await reader.read()
        writer.close()

    async with owned_by(tmp_path, run_dir, served, requests_max=1) as room:
        first = asyncio.create_task(ask(room, THEIRS))
        await arrived.wait()
        second = await ask(room, THEIRS)
        assert (second.status, second.error()["code"]) == (503, "overloaded")
        room.front.cut()
        reply = await first
        assert (reply.status, reply.error()["code"]) == (503, "draining")


async def test_a_reader_that_is_slow_holds_up_the_owner(tmp_path: Path, run_dir: Path) -> None:
    written = 0

    async def served(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal written
        await reader.readuntil(b"\r\n\r\n")
        writer.transport.set_write_buffer_limits(high=1)
        writer.write(EVENTS)
        piece = b"data: " + b"x" * 4086 + b"\n\n"
        try:
            while written < 1 << 30:
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                await writer.drain()
                written += len(piece)
        except ConnectionError:
            writer.close()

    async with owned_by(tmp_path, run_dir, served) as room:
        reader, writer = await asyncio.open_connection("127.0.0.1", room.server.port, limit=1024)
        lines = [("Host", "edge"), ("Authorization", f"Bearer {ACME.text()}"), ("Content-Type", "application/json")]
        lines += [("Content-Length", str(len(chat_body()))), ("Idempotency-Key", THEIRS)]
        writer.write(request_bytes("POST", CHAT, lines, chat_body()))
        await until(lambda: written > 0, within_s=5)
        before = -1
        while before != written:
            before = written
            await asyncio.sleep(0.3)
        # What the two sockets and the buffers of this process hold, and no more.
        assert written < 16 << 20
        writer.close()
        await writer.wait_closed()
        assert reader is not None
