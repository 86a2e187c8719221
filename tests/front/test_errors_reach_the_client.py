"""Every refusal and failure, as the official client sees it: its class, its code, and whether it tries again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import openai
import pytest

from node_agent.border.decider import Asked
from orchestrator.wire.catalogue import CATALOGUE, Problem, ProblemError
from tests.bundles.sides import MODEL
from tests.front.room import QUESTION, Frames, broken, chat_body, done, room_in, saying, tokens

TEXT = "the secret beginning of an answer"

CLASSES: list[tuple[str, type[openai.APIStatusError]]] = [
    ("capability_not_offered", openai.BadRequestError),
    ("context_length_exceeded", openai.BadRequestError),
    ("not_entitled", openai.PermissionDeniedError),
    ("model_not_found", openai.NotFoundError),
    ("residency_blocked", openai.APIStatusError),
    ("policy_mismatch", openai.InternalServerError),
    ("internal_error", openai.InternalServerError),
]


@pytest.mark.parametrize(("code", "kind"), CLASSES)
async def test_what_no_retry_can_mend_is_asked_once(
    tmp_path: Path, code: str, kind: type[openai.APIStatusError]
) -> None:
    async def refuse(asked: Asked) -> None:
        raise ProblemError(Problem(code, "A sentence.", "messages", ("EU-1",), "A pathway."))

    async with room_in(tmp_path, saying(done())) as room, room.client() as client:
        room.gate.before = refuse
        with pytest.raises(kind) as found:
            await client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert len(room.gate.asked) == 1
    error, request = found.value, room.gate.asked[0].request
    assert type(error) is kind
    assert error.status_code == CATALOGUE[code].http
    assert (error.code, error.param, error.type) == (code, "messages", CATALOGUE[code].kind.value)
    assert error.request_id == request
    assert error.response.headers["x-should-retry"] == "false"
    assert "retry-after" not in error.response.headers
    assert isinstance(error.body, dict)
    assert error.body["rules"] == ["EU-1"]
    assert error.body["needs"] == "A pathway."
    assert request in error.message


async def test_what_may_pass_is_tried_again_when_it_was_told_to(tmp_path: Path) -> None:
    async def once(asked: Asked) -> None:
        if len(room.gate.asked) == 1:
            raise ProblemError(Problem("no_feasible_pool", retry_after_ms=300))

    async with room_in(tmp_path, saying(tokens("ok"), done())) as room, room.client(retries=1) as client:
        room.gate.before = once
        answer = await client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert answer.choices[0].message.content == "ok"
        assert len({asked.request for asked in room.gate.asked}) == 2
        room.gate.asked.clear()
        refused = await room.call(body=chat_body())
    assert (refused.status, refused.header("retry-after"), refused.header("x-should-retry")) == (503, "1", "true")


async def test_a_cut_answer_that_was_to_be_whole_is_an_error_without_text(tmp_path: Path) -> None:
    plan = saying(tokens(TEXT), broken("engine_failed", "The engine is gone."))
    async with room_in(tmp_path, plan) as room:
        reply = await room.call(body=chat_body())
        assert (reply.status, reply.error()["code"]) == (502, "engine_failed")
        assert TEXT.encode() not in reply.body
        assert room.gate.answers_closed == 1


@pytest.mark.parametrize("ended", ["broken", "silence", "unknown reason"])
async def test_a_cut_stream_ends_with_an_error_and_never_with_done(tmp_path: Path, ended: str) -> None:
    ends: dict[str, Any] = {"broken": [broken()], "silence": [], "unknown reason": [done("cancelled")]}
    async with room_in(tmp_path, saying(tokens(TEXT), *ends[ended])) as room:
        reply = await room.call(body=chat_body(stream=True))
        request = room.gate.asked[0].request
        async with room.client() as client:
            texts: list[str | None] = []
            stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True)
            with pytest.raises(openai.APIError) as found:
                async for chunk in stream:
                    texts.append(chunk.choices[0].delta.content)
        assert len(room.gate.asked) == 2
        assert room.gate.answers_closed == 2
    assert reply.status == 200
    assert b"[DONE]" not in reply.body
    assert reply.ended
    error = json.loads(reply.events()[-1])["error"]
    assert error["code"] == ("engine_protocol" if ended == "unknown reason" else "session_lost")
    assert request in error["message"]
    assert "".join(text or "" for text in texts) == TEXT
    assert found.value.code == error["code"]


async def test_what_is_broken_before_the_first_byte_has_a_status_of_its_own(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(broken("timeout_first_token"))) as room:
        reply = await room.call(body=chat_body(stream=True))
    assert (reply.status, reply.error()["code"]) == (504, "timeout_first_token")


async def test_what_nobody_foresaw_is_an_internal_error(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    async def crash(asked: Asked) -> None:
        raise RuntimeError(TEXT)

    async def crashing(asked: Asked) -> Frames:
        yield tokens("a")
        raise RuntimeError(TEXT)

    async with room_in(tmp_path, crashing) as room:
        streamed = await room.call(body=chat_body(stream=True))
        whole = await room.call(body=chat_body())
        room.gate.before = crash
        refused = await room.call(body=chat_body())
        assert 'tidegate_requests_total{outcome="failed"} 3.0' in room.metrics.render().decode()
    assert json.loads(streamed.events()[-1])["error"]["code"] == "internal_error"
    for reply in (whole, refused):
        assert (reply.status, reply.error()["code"]) == (500, "internal_error")
        assert reply.header("x-should-retry") == "false"
        assert reply.header("x-request-id") in reply.error()["message"]
    told = streamed.body + whole.body + refused.body + "".join(capfd.readouterr()).encode()
    assert TEXT.encode() not in told


async def test_an_answer_of_any_length_is_not_gathered(tmp_path: Path) -> None:
    async def endless(asked: Asked) -> Frames:
        while True:
            yield tokens("word ")

    async with room_in(tmp_path, endless, answer_chars_max=1000) as room:
        reply = await room.call(body=chat_body())
        assert (reply.status, reply.error()["code"]) == (502, "engine_protocol")
        assert room.gate.frames_taken <= 202
        assert room.gate.answers_closed == 1


async def test_an_edge_without_a_bundle_or_with_an_old_one_says_so(tmp_path: Path) -> None:
    async with room_in(tmp_path, saying(done())) as room:
        held = room.bundle
        room.bundle = None
        reply = await room.call(body=chat_body())
        assert (reply.status, reply.error()["code"]) == (503, "no_bundle")
        assert (reply.header("x-should-retry"), reply.header("retry-after")) == ("true", "2")
        assert (await room.call("GET", "/v1/models")).status == 503
        unready = await room.call("GET", "/readyz", key=None)
        assert (unready.status, unready.json()) == (503, {"ready": False, "reason": "no bundle is held"})
        assert (await room.call("GET", "/healthz", key=None)).status == 200
        room.bundle = held
        assert (await room.call("GET", "/readyz", key=None)).json() == {"ready": True}
    week_ms = 7 * 24 * 3600 * 1000
    async with room_in(tmp_path / "later", saying(done()), now_ms=1_790_000_000_000 + week_ms) as room:
        assert (await room.call("GET", "/readyz", key=None)).json()["reason"] == "the bundle has expired"
