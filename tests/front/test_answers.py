"""What a tenant gets: whole answers, streams, usage, models, and where an answer comes from."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import openai
import pytest

from node_agent.border.decider import Asked
from node_agent.front.endpoints import COMPLETIONS
from orchestrator.files.label_header import parse_label_header
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Grade, Labels, Personal
from orchestrator.wire.deadlines import Waits
from tests.bundles.sides import MODEL, NOW_MS
from tests.front.room import (
    ACME,
    ACME_SECOND,
    BETA,
    CHAT,
    DECISION,
    OTHER_MODEL,
    QUESTION,
    Frames,
    Room,
    chat_body,
    done,
    room_in,
    saying,
    tokens,
)

HELLO = saying(tokens("Hel", 0, 2), tokens("", 2, 1), tokens("lo", 3, 1), done())


async def test_a_whole_answer_is_a_chat_completion(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room, room.client() as client:
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION, max_tokens=5, user="u-1")
    asked = room.gate.asked[0]
    assert answer.id == "chatcmpl-" + asked.request.removeprefix("req_")
    assert (answer.object, answer.model, answer.created) == ("chat.completion", MODEL, NOW_MS // 1000)
    [choice] = answer.choices
    assert (choice.index, choice.finish_reason) == (0, "stop")
    assert (choice.message.role, choice.message.content) == ("assistant", "Hello")
    assert answer.usage is not None
    # Four tokens were delivered, whatever the pool says that it generated.
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (7, 4, 11)
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 3
    assert answer._request_id == asked.request


async def test_the_gate_is_asked_with_what_was_checked(tmp_path: Path) -> None:
    body = chat_body(seed=-1, stop="x", max_tokens=9)
    labels = ("x-tidegate-labels", 'personal=none, grade=public, origin=("DE" "FR")')
    async with room_in(tmp_path, HELLO) as room:
        reply = await room.call(body=body, headers=[labels, ("x-request-id", "mine-1")], key=ACME_SECOND)
    [asked] = room.gate.asked
    assert reply.status == 200
    assert reply.header("x-request-id") == asked.request
    assert asked.client_request == "mine-1"
    assert (asked.tenant.id, asked.key_id) == ("acme", "acmekey2")
    assert asked.declared == Labels(
        Personal.NONE, Grade.PUBLIC, None, frozenset({Jurisdiction("DE"), Jurisdiction("FR")})
    )
    assert asked.body == body
    assert 29_000 < asked.budget_ms <= 30_000
    assert asked.waits == Waits()
    assert asked.generation.sampling.max_tokens == 9
    assert {capability.value for capability in asked.capabilities} == {"chat", "seed", "stop"}


async def test_an_id_of_the_client_that_cannot_be_kept_is_ignored(tmp_path: Path) -> None:
    odd = [[("x-request-id", "a b")], [("x-request-id", "x" * 129)], [("x-request-id", "1"), ("x-request-id", "2")]]
    async with room_in(tmp_path, HELLO) as room:
        for headers in odd:
            assert (await room.call(body=chat_body(), headers=headers)).status == 200
        assert [asked.client_request for asked in room.gate.asked] == [None, None, None]


async def test_an_answer_says_where_it_comes_from(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room:
        for stream in (False, True):
            reply = await room.call(body=chat_body(stream=stream))
            assert reply.header("x-tidegate-pool") == "sg-pool"
            assert reply.header("x-tidegate-jurisdiction") == "SG"
            assert reply.header("x-tidegate-decision") == DECISION
            assert reply.header("cache-control") == "no-store"
            assert reply.header("server") == "tidegate"
            assert reply.header("content-type") == ("text/event-stream" if stream else "application/json")


async def test_what_the_law_wants_said_reaches_the_tenant(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room:
        silent = await room.call(body=chat_body())
        room.gate.headers = (("x-ai-disclosure", "made-by-ai"), ("x-ai-label", f'synthetic; id="{DECISION}"'))
        for stream in (False, True):
            reply = await room.call(body=chat_body(stream=stream))
            assert reply.header("x-ai-disclosure") == "made-by-ai"
            assert reply.header("x-ai-label") == f'synthetic; id="{DECISION}"'
            assert reply.header("x-tidegate-decision") == DECISION
    assert not any("x-ai-" in name for name, _ in silent.headers)


async def test_the_new_keys_of_a_label_reach_the_gate(tmp_path: Path) -> None:
    text = 'categories=(health), located="SG", collected=("SG" "DE"), clean=raw, purpose=inference, asset=payload'
    async with room_in(tmp_path, HELLO) as room:
        assert (await room.call(body=chat_body(), headers=[("x-tidegate-labels", text)])).status == 200
    [asked] = room.gate.asked
    assert asked.declared == parse_label_header(text)
    assert asked.declared.categories == {"health"}


async def test_a_stream_has_role_text_reason_and_end(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room:
        reply = await room.call(body=chat_body(stream=True))
    *chunks, end = reply.events()
    assert end == "[DONE]"
    assert reply.ended
    found = [json.loads(chunk) for chunk in chunks]
    assert {chunk["id"] for chunk in found} == {"chatcmpl-" + room.gate.asked[0].request.removeprefix("req_")}
    assert {chunk["object"] for chunk in found} == {"chat.completion.chunk"}
    assert all("usage" not in chunk for chunk in found)
    choices = [chunk["choices"][0] for chunk in found]
    assert [choice["delta"].get("role") for choice in choices] == ["assistant", None, None, None]
    assert [choice["delta"].get("content") for choice in choices] == ["", "Hel", "lo", None]
    assert [choice["finish_reason"] for choice in choices] == [None, None, None, "stop"]
    assert reply.header("x-accel-buffering") == "no"


async def test_usage_is_streamed_only_to_those_who_ask(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room:
        reply = await room.call(body=chat_body(stream=True, stream_options={"include_usage": True}))
        *chunks, last = [json.loads(chunk) for chunk in reply.events()[:-1]]
        assert all(chunk["usage"] is None and chunk["choices"] for chunk in chunks)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 4
        async with room.client() as client:
            stream = await client.chat.completions.create(
                model=MODEL, messages=QUESTION, stream=True, stream_options={"include_usage": True}
            )
            told = [chunk async for chunk in stream]
    assert told[-1].usage is not None
    assert told[-1].usage.total_tokens == 11
    assert "".join(chunk.choices[0].delta.content or "" for chunk in told if chunk.choices) == "Hello"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
async def test_usage_so_far_is_in_every_chunk_for_those_who_ask(tmp_path: Path, path: str) -> None:
    fields: dict[str, object] = {"model": MODEL, "stream": True}
    fields |= {"messages": QUESTION} if path == CHAT else {"prompt": "x"}

    async def ask(room: Room, **options: bool) -> list[dict[str, Any]]:
        reply = await room.call(path=path, body=json.dumps(fields | {"stream_options": options}).encode())
        *chunks, end = reply.events()
        assert (reply.status, end) == (200, "[DONE]")
        return [json.loads(chunk) for chunk in chunks]

    async with room_in(tmp_path, HELLO) as room:
        usual = await ask(room, include_usage=True)
        told = await ask(room, include_usage=True, continuous_usage_stats=True)
        switched_off = await ask(room, include_usage=True, continuous_usage_stats=False)
        alone = await ask(room, continuous_usage_stats=True)
    # A token without text of its own counts with the next text.
    delivered = [0, 2, 4] if path == CHAT else [2, 4]
    *texts, finished, last = told
    assert [chunk["usage"] for chunk in texts] == [
        {"prompt_tokens": 0, "completion_tokens": count, "total_tokens": count} for count in delivered
    ]
    # With its end the pool tells how long the prompt was.
    assert finished["usage"] == last["usage"] == usual[-1]["usage"]
    assert (last["choices"], last["usage"]["prompt_tokens"], last["usage"]["total_tokens"]) == ([], 7, 11)
    assert [chunk["choices"] for chunk in told] == [chunk["choices"] for chunk in usual]
    assert [chunk["usage"] for chunk in switched_off] == [None] * len(texts) + [None, last["usage"]]
    # As with vLLM: without include_usage no usage is told.
    assert all("usage" not in chunk for chunk in alone)


async def test_an_answer_without_a_token_is_an_answer(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done("length"))) as room:
        whole = await room.call(body=chat_body())
        streamed = await room.call(body=chat_body(stream=True))
    assert whole.json()["choices"][0]["message"]["content"] == ""
    assert whole.json()["usage"]["completion_tokens"] == 0
    choices = [json.loads(event)["choices"][0] for event in streamed.events()[:-1]]
    assert choices[0]["delta"]["role"] == "assistant"
    assert choices[-1]["finish_reason"] == "length"


async def test_the_first_token_does_not_wait_for_the_second(tmp_path: Path) -> None:
    go_on = asyncio.Event()

    async def halting(asked: Asked) -> Frames:
        yield tokens("first")
        await go_on.wait()
        yield tokens(" second")
        yield done()

    async with room_in(tmp_path, halting) as room, room.client() as client:
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
        async with asyncio.timeout(2):
            chunk = await anext(stream)
            while not chunk.choices[0].delta.content:
                chunk = await anext(stream)
        assert chunk.choices[0].delta.content == "first"
        go_on.set()
        rest = [chunk async for chunk in stream]
    assert rest[0].choices[0].delta.content == " second"


async def test_a_silent_stream_is_kept_alive_with_comments(tmp_path: Path) -> None:
    async def slow(asked: Asked) -> Frames:
        yield tokens("a")
        await asyncio.sleep(0.4)
        yield tokens("b")
        yield done()

    async with room_in(tmp_path, slow, keep_alive_ms=100) as room:
        reply = await room.call(body=chat_body(stream=True))
        assert 2 <= reply.body.count(b": keep-alive\n\n") <= 5
        assert reply.events()[-1] == "[DONE]"
        async with room.client() as client:
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            texts = [chunk.choices[0].delta.content async for chunk in stream]
    assert "".join(text or "" for text in texts) == "ab"


async def test_what_other_readers_take_for_line_ends_stays_inside_an_event(tmp_path: Path) -> None:
    text = "a\u2028b\u2029c\u0085d\re\nf\x0bg\x1ch 漢字 😀 \"\\"
    async with room_in(tmp_path, saying(tokens(text), done())) as room:
        reply = await room.call(body=chat_body(stream=True))
        async with room.client() as client:
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            texts = [chunk.choices[0].delta.content async for chunk in stream]
    assert "".join(choice or "" for choice in texts) == text
    # A reader that splits text wherever Unicode ends a line must see whole events.
    lines = [line for line in reply.body.decode().splitlines() if line]
    assert all(line.startswith("data: ") for line in lines)
    assert json.loads(lines[1].removeprefix("data: "))["choices"][0]["delta"]["content"] == text


async def test_a_stream_outlives_the_timeouts_of_its_connection(tmp_path: Path) -> None:
    async def long(asked: Asked) -> Frames:
        for number in range(8):
            yield tokens(str(number))
            await asyncio.sleep(0.1)
        yield done()

    async with room_in(tmp_path, long, head_timeout_ms=200, idle_timeout_ms=200) as room:
        reply = await room.call(body=chat_body(stream=True))
    assert reply.events()[-1] == "[DONE]"


async def test_a_body_in_chunks_is_read(tmp_path: Path) -> None:
    body = chat_body()
    chunks = b"%x\r\n%b\r\n" % (10, body[:10]) + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body) - 10, body[10:])
    async with room_in(tmp_path, HELLO) as room:
        head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nAuthorization: bearer {ACME.text()}\r\n".encode()
        head += b"Content-Type: application/json; charset=UTF-8\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n"
        reply = await room.raw(head + b"\r\n" + chunks)
        assert reply.status == 200
        assert room.gate.asked[0].body == body


async def test_one_connection_serves_many_requests(tmp_path: Path) -> None:
    body = chat_body()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: e\r\nAuthorization: Bearer {ACME.text()}\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    async with room_in(tmp_path, HELLO) as room:
        once = head.encode() + b"\r\n" + body
        last = head.encode() + b"Connection: close\r\n\r\n" + body
        first = await room.raw(once * 3 + last)
        assert first.status == 200
        assert first.rest.count(b"HTTP/1.1 200 OK") == 3
        assert len({asked.request for asked in room.gate.asked}) == 4


async def test_a_tenant_sees_the_models_that_it_may_use(tmp_path: Path) -> None:
    async with room_in(tmp_path, HELLO) as room, room.client() as client, room.client(BETA) as beta:
        listed = await client.models.list()
        assert [(model.id, model.object, model.created, model.owned_by) for model in listed.data] == [
            (MODEL, "model", 0, "tidegate"),
            (OTHER_MODEL, "model", 0, "tidegate"),
        ]
        assert [model.id async for model in beta.models.list()] == [MODEL]
        assert (await client.models.retrieve(OTHER_MODEL)).id == OTHER_MODEL
        found = []
        for name in (OTHER_MODEL, "nowhere", "a/b"):
            try:
                await beta.models.retrieve(name)
            except openai.NotFoundError as error:
                found.append((error.code, error.param))
    assert found == [("model_not_found", "model")] * 3
