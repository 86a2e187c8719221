"""What a tenant sees of an answer that was cut: one stream and its parts, or an error that says why it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from node_agent.border.decider import Asked
from node_agent.border.gate import Answer
from node_agent.border.resume import Segment, Stopped
from node_agent.front.http import RESUME_HEADER
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import DecisionId
from orchestrator.wire.frames import Broken
from tests.bundles.sides import MODEL
from tests.front.room import ATTEMPT, DECISION, QUESTION, Room, chat_body, done, room_in, saying, tokens

SECOND = DecisionId("dec_" + "3" * 32)
PARTS = [
    {"pool": "sg-pool", "jurisdiction": "SG", "decision": DECISION, "first_token": 0, "tokens": 2},
    {"pool": "sg-pool", "jurisdiction": "SG", "decision": SECOND, "first_token": 2, "tokens": 1},
]
WHOLE = saying(tokens("Good "), tokens("mor"), tokens("ning"), done())
CUT = saying(tokens("Good "), tokens("mor"), Broken(1, ATTEMPT, "session_lost", "", PoolCounts(prompt=7)))
LAW = Stopped("law", "DE-CLEAN says so.", ("DE-CLEAN",))


def having(room: Room, change: Callable[[Answer], object]) -> None:
    """Let the gate's answers have more than frames."""
    ask = room.gate.ask

    async def changed(asked: Asked) -> Answer:
        answer = await ask(asked)
        change(answer)
        return answer

    room.front._completions._ask = changed


def two_parts(answer: Answer) -> None:
    answer.segments = [Segment(answer.pool, DECISION, 0, 2), Segment(answer.pool, SECOND, 2, 1)]


def one_part(answer: Answer) -> None:
    answer.segments = [Segment(answer.pool, DECISION, 0, 3)]


@pytest.mark.parametrize("usage", [False, True])
async def test_the_openai_client_reads_one_stream_and_finds_its_parts_in_the_last_chunk(
    tmp_path: Path, usage: bool
) -> None:
    async with room_in(tmp_path, WHOLE) as room, room.client() as client:
        having(room, two_parts)
        options: Any = {"stream_options": {"include_usage": True}} if usage else {}
        stream = await client.chat.completions.create(model=MODEL, messages=QUESTION, stream=True, **options)
        chunks = [chunk async for chunk in stream]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == "Good morning"
    told = [(chunk.model_extra or {}).get("tidegate") for chunk in chunks]
    assert told == [None] * (len(chunks) - 1) + [{"segments": PARTS}]
    if usage:
        assert chunks[-1].usage is not None
        assert chunks[-1].usage.completion_tokens == 3


async def test_a_whole_answer_has_its_parts_in_its_body(tmp_path: Path) -> None:
    async with room_in(tmp_path, WHOLE) as room, room.client() as client:
        having(room, two_parts)
        whole = await client.chat.completions.create(model=MODEL, messages=QUESTION)
        assert whole.choices[0].message.content == "Good morning"
        assert (whole.model_extra or {})["tidegate"] == {"segments": PARTS}


async def test_an_answer_in_one_part_says_nothing_of_parts(tmp_path: Path) -> None:
    async with room_in(tmp_path, WHOLE) as room:
        having(room, one_part)
        for stream in (False, True):
            assert b'"tidegate"' not in (await room.call(body=chat_body(stream=stream))).body


async def test_a_cut_stream_ends_with_what_the_tenant_has_and_why_it_does_not_go_on(tmp_path: Path) -> None:
    async with room_in(tmp_path, CUT) as room:
        having(room, lambda answer: setattr(answer, "stopped", LAW))
        reply = await room.call(body=chat_body(stream=True))
    *_, last = reply.events()
    error = json.loads(last)["error"]
    assert error["code"] == "session_lost"
    assert error["usage"] == {
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "total_tokens": 9,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert error["resume"] == {"reason": "law", "sentence": "DE-CLEAN says so.", "rules": ["DE-CLEAN"]}
    assert b"[DONE]" not in reply.body


async def test_a_whole_answer_that_is_cut_has_no_part_of_it_and_says_why(tmp_path: Path) -> None:
    async with room_in(tmp_path, CUT) as room:
        having(room, lambda answer: setattr(answer, "stopped", LAW))
        reply = await room.call(body=chat_body())
    assert reply.status == 502
    assert "usage" not in reply.error()
    assert reply.error()["resume"]["reason"] == "law"


async def test_a_client_may_say_never_and_nothing_else(tmp_path: Path) -> None:
    async with room_in(tmp_path, WHOLE) as room:
        assert (await room.call(body=chat_body(), headers=[(RESUME_HEADER, "never")])).status == 200
        assert (await room.call(body=chat_body())).status == 200
        assert [asked.resumes for asked in room.gate.asked] == [False, True]
        for bad in ("always", "Never", "", "never, never"):
            reply = await room.call(body=chat_body(), headers=[(RESUME_HEADER, bad)])
            assert (reply.status, reply.error()["param"]) == (400, RESUME_HEADER)
        twice = [(RESUME_HEADER, "never"), (RESUME_HEADER, "never")]
        assert (await room.call(body=chat_body(), headers=twice)).status == 400
        assert (await room.call(body=chat_body(), headers=[("x_tidegate_resume", "never")])).status == 400
