"""What chunks, HTTP statuses and settings mean."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines.chunks import AnswerReader, UsageExpectation
from orchestrator.engines.generation import Delta, EngineEvent, Failed, Finished, FinishReason, Refused
from orchestrator.engines.openai import OpenAIEngineSettings
from orchestrator.engines.replies import outcome_of_reply
from protos.tidegate.v1.usage_pb2 import PoolCounts

USAGE = {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 3}}
CANARY = "canary-payload"
COUNT_MAX = 2**32 - 1


def text(content: str | None, finish_reason: str | None = None, **others: Any) -> dict[str, Any]:
    choice = {"index": 0, "delta": {"role": "assistant", "content": content}, "finish_reason": finish_reason}
    return {"id": "c", "object": "chat.completion.chunk", "choices": [choice | others], "usage": None}


def usage(**others: Any) -> dict[str, Any]:
    return {"choices": [], "usage": USAGE | others}


def read(
    *chunks: dict[str, Any] | str, done: bool = True, expects: UsageExpectation = UsageExpectation.REQUIRED
) -> list[EngineEvent]:
    """Reads the chunks as one stream, up to its end. A str is sent as it is."""
    reader = AnswerReader(line_bytes_max=300_000, usage=expects)
    lines = [chunk if isinstance(chunk, str) else json.dumps(chunk) for chunk in chunks] + ["[DONE]"] * done
    events = reader.feed("".join(f"data: {line}\n\n" for line in lines).encode())
    return events + reader.feed(b"")


def failure(events: list[EngineEvent]) -> str:
    """Returns the code of the failure that the events end with, after nothing but text."""
    *before, last = events
    assert isinstance(last, Failed), events
    assert all(isinstance(event, Delta) for event in before)
    assert CANARY not in last.detail
    return last.code


def test_words_of_an_engine_that_are_not_utf8_are_a_refusal_like_any_other() -> None:
    for body in (b'{"error": {"message": "\xff"}}', b'{"message": "\x80"}', b"\xff\xfe"):
        assert outcome_of_reply(400, body) == outcome_of_reply(400, b"{}")


def test_an_answer_is_its_texts_and_the_counts_of_the_engine() -> None:
    events = read(text(None), text(""), text("Pa"), text("ris"), text(None, "stop"), usage())
    assert events == [
        Delta("Paris", (), 2),
        Finished(FinishReason.STOP, prompt_tokens=9, completion_tokens=4, cached_tokens=3),
    ]


def test_a_continuation_is_read_from_the_text_of_its_choices() -> None:
    def raw(words: str, reason: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "text": words, "logprobs": None, "finish_reason": reason}
        return {"object": "text_completion", "choices": [choice]}

    assert read(raw("Pa"), raw("ris"), raw("", "length"), usage()) == [
        Delta("Paris", (), 2),
        Finished(FinishReason.LENGTH, prompt_tokens=9, completion_tokens=4, cached_tokens=3),
    ]
    assert failure(read({"choices": [{"index": 0, "finish_reason": None}]})) == "engine_protocol"


def test_text_and_finish_reason_may_share_a_chunk_and_usage_may_come_with_every_chunk() -> None:
    events = read(
        text("Pa") | usage(completion_tokens=1) | {"choices": text("Pa")["choices"]}, text("ris", "length"), usage()
    )
    assert events[-1] == Finished(FinishReason.LENGTH, 9, 4, 3)
    assert len(events) == 2


@pytest.mark.parametrize("details", [None, {}, {"cached_tokens": None}, {"audio_tokens": 1}])
def test_cached_tokens_that_are_not_told_count_as_none(details: dict[str, Any] | None) -> None:
    assert read(text("a", "stop"), usage(prompt_tokens_details=details))[-1] == Finished(FinishReason.STOP, 9, 4, 0)


def test_without_usage_chunks_are_counted_only_where_that_was_agreed() -> None:
    chunks = (text("a"), text("b"), text(None, "stop"))
    assert failure(read(*chunks)) == "engine_protocol"
    assert read(*chunks, expects=UsageExpectation.OPTIONAL)[-1] == Finished(FinishReason.STOP, 0, 2)
    assert read(*chunks, usage(), expects=UsageExpectation.OPTIONAL)[-1] == Finished(FinishReason.STOP, 9, 4, 3)


def test_a_stream_without_done_is_never_a_finished_answer() -> None:
    assert failure(read(done=False)) == "engine_failed"
    assert failure(read(text("a"), done=False)) == "engine_failed"
    assert failure(read(text("a", "stop"), usage(), done=False)) == "engine_protocol"


def test_nothing_is_read_after_done() -> None:
    complete = [text("a", "stop"), usage()]
    assert read(*complete, "[DONE]", text("b"), "garbage") == read(*complete)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("content_filter", "engine_failed"),
        ("abort", "engine_failed"),
        ("error", "engine_failed"),
        ("tool_calls", "engine_protocol"),
        ("function_call", "engine_protocol"),
        (CANARY, "engine_protocol"),
        ("", "engine_protocol"),
    ],
)
def test_other_finish_reasons_fail_the_answer(reason: str, code: str) -> None:
    assert failure(read(text("a"), text(None, reason), usage())) == code


@pytest.mark.parametrize(
    "chunk",
    [
        {"error": {"message": CANARY, "code": 500}},
        {"error": CANARY},
        {"object": "error", "message": CANARY, "code": 400},
    ],
)
def test_an_error_in_the_middle_fails_the_answer(chunk: dict[str, Any]) -> None:
    assert failure(read(text("a"), chunk, text("b", "stop"), usage())) == "engine_failed"


@pytest.mark.parametrize(
    "chunk",
    [
        "garbage " + CANARY,
        "[]",
        "null",
        "{}",
        '{"choices":null}',
        '{"choices":[{"index":0}]}',
        '{"choices":[{"index":"0","delta":{}}]}',
        '{"choices":[{"index":1,"delta":{"content":"canary-payload"}}]}',
        '{"choices":[{"index":0,"delta":{"content":"a"}},{"index":1,"delta":{"content":"b"}}]}',
        '{"choices":[{"index":0,"delta":{"content":"a"}},{"index":0,"delta":{"content":"b"}}]}',
        '{"choices":[{"index":0,"delta":{"content":5}}]}',
        '{"choices":[{"index":0,"delta":{"content":"\\ud800 canary-payload"}}]}',
        '{"choices":[],"usage":{"prompt_tokens":-1,"completion_tokens":1}}',
        '{"choices":[],"usage":{"prompt_tokens":1.5,"completion_tokens":1}}',
        '{"choices":[],"usage":{"prompt_tokens":' + "9" * 5_000 + ',"completion_tokens":1}}',
        '{"choices":[],"usage":{"prompt_tokens":1}}',
        '{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":1,"prompt_tokens_details":{"cached_tokens":2}}}',
        '{"choices":[],"x":NaN}',
        '{"choices":[],"x":' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"choices":[]} {"choices":[]}',
    ],
)
def test_a_chunk_that_is_not_what_was_asked_for_fails_the_answer(chunk: str) -> None:
    assert failure(read(text("a"), chunk, text("b", "stop"), usage())) == "engine_protocol"


@pytest.mark.parametrize("name", ["prompt_tokens", "completion_tokens"])
def test_a_count_that_no_frame_can_hold_fails_the_answer(name: str) -> None:
    assert PoolCounts(prompt=COUNT_MAX).prompt == COUNT_MAX
    with pytest.raises(ValueError):
        PoolCounts(prompt=COUNT_MAX + 1)
    assert isinstance(read(text("a", "stop"), usage(**{name: COUNT_MAX}))[-1], Finished)
    assert failure(read(text("a", "stop"), usage(**{name: COUNT_MAX + 1}))) == "engine_protocol"
    cached = {"prompt_tokens": COUNT_MAX, "prompt_tokens_details": {"cached_tokens": COUNT_MAX + 1}}
    assert failure(read(text("a", "stop"), usage(**cached))) == "engine_protocol"


def test_an_answer_cannot_go_on_after_its_finish_reason() -> None:
    assert failure(read(text("a", "stop"), text("b"), usage())) == "engine_protocol"
    assert failure(read(text("a", "stop"), text(None, "length"), usage())) == "engine_protocol"
    assert failure(read(text("a"), usage())) == "engine_protocol"


def test_named_events_are_not_chunks() -> None:
    for name, code in (("error", "engine_failed"), ("ping", "engine_protocol")):
        reader = AnswerReader(line_bytes_max=1_000, usage=UsageExpectation.REQUIRED)
        assert failure(reader.feed(f"event: {name}\ndata: {CANARY}\n\n".encode())) == code
        assert reader.ended
        assert reader.feed(b"") == []


def test_faults_of_the_stream_fail_the_answer() -> None:
    for data in (b"data: \xff\n\n", b"x" * 1_001, b"data: " + b"x\ndata: " * 1_001):
        reader = AnswerReader(line_bytes_max=1_000, usage=UsageExpectation.REQUIRED)
        assert failure(reader.feed(data)) == "engine_protocol"


@given(
    st.lists(
        st.binary(max_size=40) | st.sampled_from([b"data: ", b"\n\n", b"[DONE]", b'{"choices":[]}', b'{"error"']),
        max_size=20,
    )
)
def test_any_bytes_end_in_one_failure_and_never_in_an_exception(parts: list[bytes]) -> None:
    reader = AnswerReader(line_bytes_max=100, usage=UsageExpectation.REQUIRED)
    events = [event for part in [*filter(None, parts), b""] for event in reader.feed(part)]
    assert [type(event) for event in events] == [Failed]


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (401, "engine_protocol"),
        (403, "engine_protocol"),
        (404, "model_not_served"),
        (429, "engine_busy"),
        (503, "engine_busy"),
        (400, "bad_generation"),
        (413, "bad_generation"),
        (422, "bad_generation"),
        (500, "engine_failed"),
        (502, "engine_failed"),
        (302, "engine_protocol"),
        (307, "engine_protocol"),
        (201, "engine_protocol"),
        (999, "engine_protocol"),
    ],
)
def test_every_status_has_a_meaning_of_ours(status: int, code: str) -> None:
    outcome = outcome_of_reply(status, json.dumps({"error": {"message": CANARY, "type": CANARY}}).encode())
    assert outcome.code == code
    assert CANARY not in outcome.detail
    assert isinstance(outcome, Failed if code.startswith("engine_") and code != "engine_busy" else Refused)


@pytest.mark.parametrize(
    "error",
    [
        {"code": 400, "type": "exceed_context_size_error", "message": CANARY},
        {"code": "context_length_exceeded", "message": CANARY},
        {"code": 400, "param": "input_tokens", "message": CANARY},
        {"code": 400, "message": f"This model's maximum context length is 8 tokens. {CANARY}"},
        {"code": 400, "message": f"The input is longer than the model's context length {CANARY}"},
    ],
)
def test_engines_name_a_prompt_that_does_not_fit_in_their_own_ways(error: dict[str, Any]) -> None:
    for body in ({"error": error}, {"object": "error"} | error):
        outcome = outcome_of_reply(400, json.dumps(body).encode())
        assert outcome == Refused(
            "context_length_exceeded", "the prompt does not fit into the model's context", "messages"
        )


@pytest.mark.parametrize("count", ["9", True, -1, 1.5, None, 2**60, CANARY])
def test_counts_are_taken_over_only_when_they_are_counts(count: object) -> None:
    error = {"type": "exceed_context_size_error", "n_prompt_tokens": 4031, "n_ctx": 1024}
    told = outcome_of_reply(400, json.dumps({"error": error}).encode())
    assert "4031" in told.detail
    assert "1024" in told.detail
    assert ":" not in outcome_of_reply(400, json.dumps({"error": error | {"n_ctx": count}}).encode()).detail


@pytest.mark.parametrize("body", [b"", b"garbage", b"[]", b'{"error":"x"}', b'{"error":' + b"[" * 100_000, b"\xff"])
def test_a_bad_request_without_readable_reasons_is_a_bad_generation(body: bytes) -> None:
    assert outcome_of_reply(400, body).code == "bad_generation"


@pytest.mark.parametrize(
    "base_url",
    [
        "",
        "localhost:8000",
        "ftp://engine",
        "file:///etc/passwd",
        "http://",
        "http://user:word@engine",
        "http://engine?x=1",
        "http://engine#x",
        "http://engine/v1",
        "http://engine/v1/",
        "http://engine/a/../b",
        "http://engine:99999",
        "http://engine\\@other",
        "http://engine /",
        "http://engine/\r\nx: y",
        "http://engi\u212ae",
        "http://" + "a" * 64 + ".example",
        "http://a..b",
        "HTTP://engine",
    ],
)
def test_a_base_url_that_could_be_read_in_two_ways_is_refused(base_url: str) -> None:
    with pytest.raises(ValueError):
        OpenAIEngineSettings(base_url, "model")


@pytest.mark.parametrize("base_url", ["http://127.0.0.1:8000", "https://llm_server.example./a/b/", "http://[::1]:80"])
def test_plain_base_urls_are_taken(base_url: str) -> None:
    assert OpenAIEngineSettings(base_url, "model").base_url == base_url


def test_the_key_is_in_no_repr_and_in_no_error() -> None:
    assert CANARY not in repr(OpenAIEngineSettings("http://engine", "model", api_key=CANARY))
    with pytest.raises(ValueError) as caught:
        OpenAIEngineSettings("http://engine", "model", api_key=CANARY + "\n")
    assert CANARY not in str(caught.value)


@pytest.mark.parametrize("name", ["connect_timeout_ms", "stall_timeout_ms", "line_bytes_max", "connections_max"])
def test_every_bound_must_bound(name: str) -> None:
    bounds: dict[str, Any] = {name: 0}
    with pytest.raises(ValueError, match=name):
        OpenAIEngineSettings("http://engine", "model", **bounds)


PIECES = st.lists(
    st.sampled_from(
        [
            b'data: {"choices":[{"index":0,"delta":{"content":"a"}}]}\n\n',
            'data: {"choices":[{"index":0,"delta":{"content":"日本"}}]}\n\n'.encode(),
            b'data: {"choices":[{"index":0,"delta":{"role":"assistant","content":null}}]}\n\n',
            b'data: {"choices":[{"index":0,"delta":{"content":"b"}}]}\r\n\r\n',
            b'data:{"choices":[{"index":0,"delta":{"content":"c"},"finish_reason":"stop"}]}\n\n',
            b'data: {"choices":[],\ndata: "usage":{"prompt_tokens":1,"completion_tokens":2}}\n\n',
            b": comment\n\n",
            b"event: message\n",
            b"data: [DONE]\n\n",
            b"data: {bad}\n\n",
            b"\n",
            b"\xff",
        ]
    ),
    max_size=12,
)


@given(PIECES, st.data())
def test_whole_events_read_quickly_are_what_the_decoder_reads(pieces: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(pieces)
    whole, cut = (AnswerReader(line_bytes_max=300, usage=UsageExpectation.REQUIRED) for _ in range(2))
    at, told = 0, []
    while at < len(stream):
        until = data.draw(st.integers(at + 1, len(stream)))
        told += whole.feed(stream[at:until])
        at = until
    slow = [event for byte in stream for event in cut.feed(bytes([byte]))]
    assert joined(told) == joined(slow)


def joined(events: list[EngineEvent]) -> list[object]:
    deltas = [event for event in events if isinstance(event, Delta)]
    text, tokens = "".join(delta.text for delta in deltas), sum(delta.tokens for delta in deltas)
    return [text, tokens, *(event for event in events if not isinstance(event, Delta))]
