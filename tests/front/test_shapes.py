"""The events of a stream are the JSON of their objects, byte for byte, whatever was written once for all of them."""

from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.front.shapes import NOTHING, Answering, Chunks, usage_of
from node_agent.front.sse import DONE, event
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, RequestId

OURS = {"tidegate": {"segments": [{"pool": "sg\u2028pool", "first_token": 0}]}}
COUNTS = PoolCounts(5, 9, 3, 3)
TEXTS = st.text(max_size=40) | st.text("ab\n\r\x0b\x1c\x85\u2028\u2029", max_size=8)
"""With what some reader or other takes for the end of a line."""


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize(("include", "continuous"), [(False, False), (False, True), (True, False), (True, True)])
@given(TEXTS, st.integers(0, 2**31))
def test_events_are_what_their_objects_encode_to(
    raw: bool, include: bool, continuous: bool, text: str, delivered: int
) -> None:
    answering = Answering(RequestId("req_01"), ModelId("org/m:1"), 1_700_000_000, raw)
    chunks = Chunks(answering, include, continuous)
    frame = answering.frame("text_completion" if raw else "chat.completion.chunk")
    so_far = {"prompt_tokens": 0, "completion_tokens": delivered, "total_tokens": delivered}

    def chunk(delta: dict[str, object], reason: str | None, usage: object, **ours: object) -> bytes:
        told = {"text": delta.get("content", "")} if raw else {"delta": delta}
        choice = {"index": 0, **told, "logprobs": None, "finish_reason": reason}
        counted = {"usage": usage if continuous else None} if include else {}
        return event({**frame, "choices": [choice], **ours, **counted})

    nothing = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
    role = chunk({"role": "assistant", "content": "", "refusal": None}, None, nothing)
    assert chunks.role() == (b"" if raw else role)
    assert chunks.text(text, delivered) == chunk({"content": text}, None, so_far)
    for ours in (NOTHING, OURS):
        usage = usage_of(COUNTS, delivered)
        if include:
            end = chunk({}, "stop", usage) + event({**frame, "choices": [], "usage": usage, **ours})
        else:
            end = chunk({}, "stop", None, **ours)
        assert chunks.last("stop", usage, ours) == end + DONE


@pytest.mark.parametrize("raw", [False, True])
@given(TEXTS, st.integers(0, 2**31), st.integers(0, 9), st.integers(0, 9))
def test_a_whole_answer_is_what_its_object_encodes_to(
    raw: bool, text: str, delivered: int, prompt: int, cached: int
) -> None:
    answering = Answering(RequestId("req_01"), ModelId("org/m:1"), 1_700_000_000, raw)
    counts = PoolCounts(prompt, cached, 3, 3)
    told = {"text": text} if raw else {"message": {"role": "assistant", "content": text, "refusal": None}}
    choice = {"index": 0, **told, "logprobs": None, "finish_reason": "length"}
    frame = answering.frame("text_completion" if raw else "chat.completion")
    for ours in (NOTHING, OURS):
        whole = {**frame, "choices": [choice], "usage": usage_of(counts, delivered), **ours}
        assert answering.whole(text, "length", counts, delivered, ours) == msgspec.json.encode(whole)


@given(TEXTS)
def test_an_event_is_one_line_for_every_reader(text: str) -> None:
    answering = Answering(RequestId("req_01"), ModelId("m"), 1)
    data = Chunks(answering, include_usage=False).text(text, 1)
    assert data.endswith(b"\n\n")
    (line,) = data[:-2].decode().splitlines()
    assert json.loads(line.removeprefix("data: "))["choices"][0]["delta"]["content"] == text


def test_no_more_of_a_prompt_was_cached_than_it_had() -> None:
    told = msgspec.json.decode(msgspec.json.encode(usage_of(COUNTS, 7)))
    assert told == {
        "prompt_tokens": 5,
        "completion_tokens": 7,
        "total_tokens": 12,
        "prompt_tokens_details": {"cached_tokens": 5},
    }
