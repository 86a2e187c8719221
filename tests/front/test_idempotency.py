"""Requests with an `Idempotency-Key`, as tenants send them: one send for each key, and what the others are told."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import openai
import pytest

from node_agent.border.decider import Asked
from node_agent.idempotency.rules import KEEP_MS
from node_agent.idempotency.store import Bounds
from orchestrator.wire.catalogue import Problem, ProblemError
from tests.bundles.sides import MODEL
from tests.front.room import (
    ACME,
    ACME_SECOND,
    BETA,
    QUESTION,
    Frames,
    Key,
    Reply,
    Room,
    broken,
    chat_body,
    done,
    room_in,
    saying,
    tokens,
    until,
)

TEXT = "an answer of the model"
ANSWER = saying(tokens(TEXT, count=4), done())


async def ask(room: Room, name: str = "key-1", key: Key = ACME, labels: str = "", **fields: Any) -> Reply:
    headers = [("Idempotency-Key", name)] + ([("x-tidegate-labels", labels)] if labels else [])
    return await room.call(body=chat_body(**fields), headers=headers, key=key)


def taken(reply: Reply) -> tuple[int, str]:
    """Status and code of a refusal that no client may try again by itself."""
    assert reply.header("x-should-retry") == "false"
    assert reply.header("retry-after") is None
    assert reply.error()["param"] == "idempotency-key"
    return reply.status, reply.error()["code"]


@contextmanager
def small_files(size_bytes: int) -> Iterator[None]:
    """Writes beyond so many bytes of a file fail, as they do on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("stream", [False, True])
async def test_a_kept_result_is_sent_again_byte_for_byte(tmp_path: Path, stream: bool) -> None:
    plan = saying(tokens("an answer "), tokens("of the model"), done())
    async with room_in(tmp_path, plan, keeps=("acme",)) as room:
        first = await ask(room, stream=stream)
        again = [await ask(room, stream=stream) for _ in range(2)]
        assert room.gate.sent == 1
    async with room_in(tmp_path, plan, keeps=("acme",)) as room:
        again.append(await ask(room, stream=stream))
        assert room.gate.sent == 0
    assert (first.status, first.header("idempotent-replayed")) == (200, None)
    for reply in again:
        assert (reply.status, reply.body, reply.ended) == (200, first.body, True)
        assert reply.header("idempotent-replayed") == "true"
        assert reply.header("x-tidegate-first-request") == first.header("x-request-id")
        assert reply.header("x-request-id") != first.header("x-request-id")
        same = ("content-type", "x-tidegate-pool", "x-tidegate-jurisdiction", "x-tidegate-decision")
        assert [reply.header(name) for name in same] == [first.header(name) for name in same]
        # Where its body ends is told in one way: a client may not take two, nor know which counts.
        length, coding = (None, "chunked") if stream else (str(len(first.body)), None)
        assert (reply.header("content-length"), reply.header("transfer-encoding")) == (length, coding)
    if stream:
        assert first.header("content-type") == "text/event-stream"
        assert first.events()[-1] == "[DONE]"


async def test_the_comments_of_a_slow_stream_are_not_sent_again(tmp_path: Path) -> None:
    async def slow(asked: Asked) -> Frames:
        yield tokens("a")
        await asyncio.sleep(0.2)
        yield tokens("b")
        yield done()

    async with room_in(tmp_path, slow, keeps=("acme",), keep_alive_ms=30) as room:
        first, again = await ask(room, stream=True), await ask(room, stream=True)
    assert b": keep-alive" in first.body
    assert again.body == first.body.replace(b": keep-alive\n\n", b"")


async def test_without_a_kept_result_a_key_is_spent(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER) as room:
        first = await ask(room)
        again = await ask(room)
        assert room.gate.sent == 1
    assert first.status == 200
    assert taken(again) == (409, "idempotency_result_not_kept")
    assert first.header("x-request-id") == again.header("x-tidegate-first-request")
    assert str(first.header("x-request-id")) in again.error()["message"]


NOT_KEPT = {
    "the law says no": "the law that it touches does not grant it",
    "it is too long": "it is too large",
    "there is no room": "there was no room for it",
    "switched off since": "this tenant's contract keeps none",
}


@pytest.mark.parametrize("why", NOT_KEPT)
async def test_a_result_that_may_not_or_cannot_be_kept_is_not(tmp_path: Path, why: str) -> None:
    bounds = Bounds(10, 10, 100 if why == "there is no room" else 1 << 20, 1 << 20)
    plan = saying(tokens("x" * 300_000), done()) if why == "it is too long" else ANSWER
    async with room_in(tmp_path, plan, keeps=("acme",), bounds=bounds) as room:
        room.gate.may_keep = why != "the law says no"
        assert (await ask(room)).status == 200
    keeps = () if why == "switched off since" else ("acme",)
    async with room_in(tmp_path, plan, keeps=keeps, bounds=bounds) as room:
        again = await ask(room)
        assert taken(again) == (409, "idempotency_result_not_kept")
        assert NOT_KEPT[why] in again.error()["message"]
        assert room.gate.sent == 0


async def test_of_a_hundred_at_once_one_is_sent(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def waiting(asked: Asked) -> Frames:
        await go_on.wait()
        yield tokens(TEXT)
        yield done()

    async with room_in(tmp_path, waiting, keeps=("acme",), requests_max=200, tenant_requests_max=200) as room:
        calls = [asyncio.create_task(ask(room, key=(ACME, ACME_SECOND)[index % 2])) for index in range(100)]
        await until(lambda: sum(call.done() for call in calls) == 99, within_s=30)
        go_on.set()
        replies = await asyncio.gather(*calls)
        assert room.gate.sent == 1
        (first,) = [reply for reply in replies if reply.status == 200]
        for reply in replies:
            if reply is not first:
                assert taken(reply) == (409, "idempotency_in_progress")
                assert reply.header("x-tidegate-first-request") == first.header("x-request-id")
        replayed = await asyncio.gather(*(ask(room) for _ in range(20)))
        assert {reply.body for reply in replayed} == {first.body}
        assert room.gate.sent == 1
        shown = room.metrics.render().decode()
    for line in ('answer="new"} 1.0', 'answer="running"} 99.0', 'answer="replayed"} 20.0'):
        assert f"tidegate_idempotency_total{{{line}" in shown


async def test_another_body_or_other_labels_under_one_key_are_refused(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER, keeps=("acme",)) as room:
        assert (await ask(room, labels="personal=none")).status == 200
        others = [
            await ask(room, labels="personal=none", temperature=0.5),
            await ask(room),
            await ask(room, labels="personal=personal"),
        ]
        assert room.gate.sent == 1
        assert (await ask(room, labels="personal=none")).header("idempotent-replayed") == "true"
    assert {taken(reply) for reply in others} == {(422, "idempotency_body_differs")}


async def test_tenants_with_the_same_key_do_not_meet(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER, keeps=("acme", "beta")) as room:
        mine = await ask(room)
        theirs = await ask(room, key=BETA, temperature=0.5)
        fresh = await ask(room, "never seen", key=BETA)
        assert room.gate.sent == 3
    # A key that another tenant has used is answered as one that nobody has.
    assert (mine.status, theirs.status, fresh.status) == (200, 200, 200)
    for name in ("idempotent-replayed", "x-tidegate-first-request"):
        assert theirs.header(name) is fresh.header(name) is None
    assert [name for name, _ in theirs.headers] == [name for name, _ in fresh.headers]


@pytest.mark.parametrize("problem", ["residency_blocked", "no_feasible_pool", "evidence_unavailable"])
async def test_what_was_refused_before_it_was_sent_leaves_the_key_free(tmp_path: Path, problem: str) -> None:
    async def refuse(asked: Asked) -> None:
        raise ProblemError(Problem(problem))

    async with room_in(tmp_path, ANSWER) as room:
        room.gate.before = refuse
        refused = await ask(room)
        assert refused.error()["code"] == problem
        # Whether to try again is said as without a key.
        assert refused.header("x-should-retry") == ("false" if problem == "residency_blocked" else "true")
        room.gate.before = None
        assert (await ask(room, n=2)).status == 400
        assert (await ask(room, model="other-model")).status == 404
        assert (await ask(room)).status == 200


async def test_what_every_pool_refused_without_beginning_leaves_the_key_free(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER) as room:
        room.gate.refuses = True
        refused = await ask(room)
        assert (refused.error()["code"], refused.header("x-should-retry")) == ("engine_busy", "true")
    # Not in memory alone.
    async with room_in(tmp_path, ANSWER) as room:
        assert (await ask(room)).status == 200


async def test_what_broke_after_it_was_sent_is_not_to_be_tried_again(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(tokens("a"), broken("engine_failed")), keeps=("acme",)) as room:
        for stream in (False, True):
            first = await ask(room, f"key-{stream}", stream=stream)
            again = await ask(room, f"key-{stream}", stream=stream)
            assert taken(again) == (409, "idempotency_result_not_kept")
            if not stream:
                assert (first.status, first.error()["code"]) == (502, "engine_failed")
                assert first.header("x-should-retry") == "false"
                assert first.header("retry-after") is None
        without = await room.call(body=chat_body())
        assert without.header("x-should-retry") == "true"


async def test_hanging_up_spends_the_key(tmp_path: Path) -> None:
    async def endless(asked: Asked) -> Frames:
        while True:
            yield tokens("word ")
            await asyncio.sleep(0.01)

    async with room_in(tmp_path, endless, keeps=("acme",)) as room:
        call = asyncio.create_task(ask(room, stream=True))
        await until(lambda: room.gate.frames_taken > 2)
        call.cancel()
        await until(lambda: room.gate.answers_closed == 1)
        room.gate.plan = ANSWER
        assert taken(await ask(room, stream=True))[0] == 409
        assert room.gate.sent == 1


async def test_after_a_day_a_key_is_free_again(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER, keeps=("acme",)) as room:
        begun_ms = room.now_ms
        first = await ask(room)
        room.now_ms = begun_ms + KEEP_MS - 1
        assert (await ask(room)).body == first.body
        room.now_ms = begun_ms + KEEP_MS
        fresh = await ask(room, temperature=0.5)
        assert (fresh.status, fresh.header("idempotent-replayed")) == (200, None)
        assert room.gate.sent == 2
        await room.desk.purge()
        assert "tidegate_idempotency_keys 1.0" in room.metrics.render().decode()
        room.now_ms += KEEP_MS
        await room.desk.purge()
        shown = room.metrics.render().decode()
    assert "tidegate_idempotency_keys 0.0" in shown
    assert "tidegate_idempotency_bytes 0.0" in shown


@pytest.mark.parametrize("bad", ["", "k" * 256, "schl\xfcssel", "tab\tkey"])
async def test_a_key_that_is_none_is_refused_by_name(tmp_path: Path, bad: str) -> None:
    async with room_in(tmp_path, ANSWER) as room:
        reply = await ask(room, bad)
        twice = await room.call(body=chat_body(), headers=[("Idempotency-Key", "a"), ("idempotency-key", "a")])
        longest = await ask(room, "~ " * 127 + "~")
        assert room.gate.sent == 1
    for refused in (reply, twice):
        assert (refused.status, refused.error()["code"]) == (400, "invalid_header")
        assert refused.error()["param"] == "idempotency-key"
    assert longest.status == 200


async def test_a_full_store_refuses_new_keys_and_serves_the_rest(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER, keeps=("acme",), bounds=Bounds(3, 2, 1 << 20, 1 << 20)) as room:
        assert [(await ask(room, f"key-{index}")).status for index in range(2)] == [200, 200]
        refused = await ask(room, "one more")
        assert (refused.status, refused.error()["code"]) == (503, "idempotency_unavailable")
        assert (refused.header("x-should-retry"), refused.header("retry-after")) == ("true", "2")
        assert "as many idempotency keys" in refused.error()["message"]
        assert room.gate.sent == 2
        # One tenant cannot take all of it, and whoever comes without a key or with a known one is served.
        assert (await ask(room, key=BETA)).status == 200
        assert (await ask(room, "another", key=BETA)).status == 503
        assert (await room.call(body=chat_body())).status == 200
        assert (await ask(room, "key-1")).header("idempotent-replayed") == "true"
        room.now_ms += KEEP_MS
        assert (await ask(room, "one more")).status == 200


async def test_a_full_disk_refuses_keys_and_serves_the_rest(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER) as room:
        assert (await ask(room, "before")).status == 200
        size_bytes = (tmp_path / "idempotency" / "keys.db-wal").stat().st_size
        with small_files(size_bytes + 100):
            refused = await ask(room)
            assert (refused.status, refused.error()["code"]) == (503, "idempotency_unavailable")
            assert refused.header("x-should-retry") == "true"
            assert (await room.call(body=chat_body())).status == 200
            assert room.gate.sent == 2
        assert taken(await ask(room, "before")) == (409, "idempotency_result_not_kept")
        assert (await ask(room)).status == 200


async def test_a_store_that_is_none_refuses_keys_and_serves_the_rest(tmp_path: Path) -> None:
    (tmp_path / "idempotency").mkdir()
    (tmp_path / "idempotency" / "keys.db").write_bytes(b"no such thing" * 1000)
    async with room_in(tmp_path, ANSWER) as room:
        refused = await ask(room)
        assert (refused.status, refused.error()["code"]) == (503, "idempotency_unavailable")
        assert (await room.call(body=chat_body())).status == 200
        assert room.gate.sent == 1


async def test_the_official_client_does_not_try_a_taken_key_again(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER) as room, room.client() as client:
        headers = {"Idempotency-Key": "order-17"}
        fields: Any = {"model": MODEL, "messages": QUESTION, "extra_headers": headers}
        assert (await client.chat.completions.create(**fields)).choices[0].message.content == TEXT
        with pytest.raises(openai.ConflictError) as conflict:
            await client.chat.completions.create(**fields)
        with pytest.raises(openai.UnprocessableEntityError) as other:
            await client.chat.completions.create(**fields, temperature=0.1)
        shown = room.metrics.render().decode()
        assert room.gate.sent == 1
    assert (conflict.value.code, conflict.value.type) == ("idempotency_result_not_kept", "idempotency_error")
    assert other.value.code == "idempotency_body_differs"
    # Each was asked once.
    assert 'answer="not_kept"} 1.0' in shown
    assert 'answer="other_body"} 1.0' in shown


async def test_the_official_client_reads_a_stream_that_is_sent_again(tmp_path: Path) -> None:
    async with room_in(tmp_path, ANSWER, keeps=("acme",)) as room, room.client() as client:
        said = []
        for _ in range(2):
            stream = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, stream=True, extra_headers={"Idempotency-Key": "order-18"}
            )
            said.append([chunk.model_dump() async for chunk in stream])
        assert room.gate.sent == 1
    assert said[0] == said[1]


async def test_a_drain_ends_what_runs_and_spends_its_key(tmp_path: Path) -> None:
    async def waiting(asked: Asked) -> Frames:
        yield tokens("a")
        await asyncio.sleep(60)

    async with room_in(tmp_path, waiting, keeps=("acme",)) as room:
        call = asyncio.create_task(ask(room))
        await until(lambda: room.gate.frames_taken == 1)
        await room.server.stop(0.05)
        cut = await call
        assert (cut.status, cut.error()["code"]) == (502, "draining"), "503 asks for the same again"
        assert cut.header("x-should-retry") == "false"
    async with room_in(tmp_path, ANSWER, keeps=("acme",)) as room:
        again = await ask(room)
        assert taken(again) == (409, "idempotency_result_not_kept")
        assert "it did not come to its end" in again.error()["message"]
