"""Chunks that are read together are what each of them is by itself, whatever an engine writes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines.alike import TOGETHER_MIN, alike_of
from orchestrator.engines.chunks import AnswerReader, UsageExpectation, _text_of
from orchestrator.engines.generation import Delta, EngineEvent, Finished, FinishReason

VLLM = (
    b'{"id":"chatcmpl-7","object":"chat.completion.chunk","created":1764164000,"model":"m","choices":[{"index":0,'
    b'"delta":{"content":"',
    b'"},"logprobs":null,"finish_reason":null}]}',
)
SGLANG = (
    b'{"id":"7","object":"chat.completion.chunk","created":1764164000,"model":"m","choices":[{"index":0,'
    b'"delta":{"role":null,"content":"',
    b'","reasoning_content":null,"tool_calls":null},"logprobs":null,"finish_reason":null,"matched_stop":null}],'
    b'"usage":null}',
)
LLAMA_CPP = (
    b'{"choices":[{"finish_reason":null,"index":0,"delta":{"content":"',
    b'"}}],"created":1764164000,"id":"chatcmpl-x","model":"m","system_fingerprint":"b1","object":'
    b'"chat.completion.chunk"}',
)
SPACED = (b'{"choices": [{"index": 0, "delta": {"content": "', b'"}, "finish_reason": null}], "usage": null}')
TWO_CONTENTS = (b'{"x":{"content":"a"},"choices":[{"index":0,"delta":{"content":"', b'"}}]}')
SAID_TWICE = (b'{"choices":[{"index":0,"delta":{"content":"a","content":"', b'"}}]}')
OVERRULED = (b'{"choices":[{"index":0,"delta":{"content":"', b'","content":"a"}}]}')
A_KEY_THAT_LOOKS_SO = (b'{"x\\"content":"a","choices":[{"index":0,"delta":{"content":"', b'"}}]}')
ENGINES = [VLLM, SGLANG, LLAMA_CPP, SPACED, TWO_CONTENTS, SAID_TWICE, OVERRULED, A_KEY_THAT_LOOKS_SO]
READ_TOGETHER = [VLLM, SGLANG, LLAMA_CPP, SPACED]

ROLE = b'{"choices":[{"index":0,"delta":{"role":"assistant","content":""},"finish_reason":null}]}'
OTHERS = [
    ROLE,
    b'{"choices":[{"index":0,"delta":{"content":null}}]}',
    b'{"choices":[{"index":0,"delta":{"content":"z"},"finish_reason":"stop"}]}',
    b'{"choices":[{"index":0,"delta":{},"finish_reason":"length"}]}',
    b'{"choices":[{"index":0,"delta":{"content":"u"}}],"usage":{"prompt_tokens":1,"completion_tokens":2}}',
    b'{"choices":[],"usage":{"prompt_tokens":1,"completion_tokens":2}}',
    b'{"error":{"message":"no"}}',
    b"[DONE]",
    b"{bad",
    b"",
]
"""What comes between and after the texts."""
PLAIN = ["a", " tok", "", "日本", "\\n", '\\"', "\\\\", "\\u00e9", "\\ud83d\\ude00", "\\u0000", "?", "!", "},{", "\\/"]
HOSTILE = [
    'a"',
    ',"b',
    'a","b',
    '","',
    '"',
    "a\\",
    "\\",
    "\\\\\\",
    ',"w',
    "\\ud83d",
    "\\ude00",
    "\\x",
    "a\nb",
    "a\n\ndata: b",
    "\r",
    "\t",
    "\x01",
    '"\n,"',
    '"]',
    '["',
    '","finish_reason":"stop","x":"',
    '"}}],"usage":{"prompt_tokens":1,"completion_tokens":1},"x":[{"y":{"content":"',
]
"""Raw middles that are no text, or more than one, or reach for what stands around them."""


def event(chunk: bytes) -> bytes:
    return b"data: " + chunk + b"\n\n"


@st.composite
def streams(draw: st.DrawFn) -> bytes:
    """Streams of one engine: runs of texts, the bytes around them as texts too, and whatever else there is."""
    before, after = draw(st.sampled_from(ENGINES))
    around = [(after + b"\n\ndata: " + before), before, after, b'"' + after, json.dumps(before.decode())[1:-1].encode()]
    middles = st.sampled_from([one.encode() for one in PLAIN])
    hostile = st.sampled_from([one.encode() for one in HOSTILE] + around) | st.binary(max_size=3)
    odd = hostile.map(lambda middle: before + middle + after) | st.sampled_from(OTHERS)
    runs = st.lists(middles.map(lambda middle: before + middle + after), min_size=4, max_size=12)
    parts = draw(st.lists(runs | odd.map(lambda one: [one]), min_size=1, max_size=6))
    return b"".join(event(chunk) for part in parts for chunk in part)


def by_themselves(stream: bytes) -> list[EngineEvent]:
    """Read byte by byte: no two chunks ever come together."""
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    return [event for byte in stream for event in reader.feed(bytes([byte]))] + reader.feed(b"")


def joined(events: list[EngineEvent]) -> list[object]:
    deltas = [event for event in events if isinstance(event, Delta)]
    text, tokens = "".join(delta.text for delta in deltas), sum(delta.tokens for delta in deltas)
    return [text, tokens, *(event for event in events if not isinstance(event, Delta))]


@given(streams(), st.data())
def test_chunks_that_come_together_are_what_each_is_by_itself(stream: bytes, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=4)))
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    told: list[EngineEvent] = []
    for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
        told += reader.feed(stream[start:end]) if end > start else []
    assert joined(told + reader.feed(b"")) == joined(by_themselves(stream))


def of(*middles: str) -> list[bytes]:
    """Return chunks with these middles among usual ones, from which the reader learns."""
    before, after = VLLM
    return [before + middle.encode() + after for middle in (*"abcdefghij", *middles, *"klmn")]


SOMEWHERE_ELSE = b'{"choices":[{"index":0,"delta":{"content"  :"?"}}],"x":{"content":"%b"}}'


@pytest.mark.parametrize(
    "chunks",
    [
        of('x","y'),
        of("z\\", ',"w'),
        of('x","y', "z\\"),
        of('x","y', "z\\", "w"),
        of("\\\\", '\\"', "\\\\\\"),
        of("\\ud83d", "\\ude00"),
        [*of()[:8], VLLM[0] + b'a"', b',"b' + VLLM[1], *of()[8:]],
        [*of()[:8], VLLM[0] + VLLM[1][1:], *of()[8:]],
        [ROLE, of()[0].replace(b'"index":0', b'"index":1'), *of()],
        [*of(), *[of()[0].replace(b'"finish_reason":null', b'"finish_reason":"no"')] * 4],
        [SOMEWHERE_ELSE % b"x"] * 9,
        [OTHERS[3], *of()],
        [b"[DONE]", *of()],
    ],
)
def test_pitfalls_of_reading_together(chunks: list[bytes]) -> None:
    stream = b"".join(map(event, chunks))
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    assert joined(reader.feed(stream) + reader.feed(b"")) == joined(by_themselves(stream))


@given(st.sampled_from(ENGINES), st.data())
def test_what_is_read_together_decodes_to_the_same_one_by_one(around: tuple[bytes, bytes], data: st.DataObject) -> None:
    before, after = around
    plain, hostile = st.sampled_from(PLAIN), st.sampled_from([one for one in HOSTILE if "\n" not in one])
    middles = data.draw(st.lists(plain | hostile, min_size=TOGETHER_MIN, max_size=TOGETHER_MIN + 4))
    chunks = [before + middle.encode() + after for middle in middles]
    alike = alike_of(before + b"x" + after, _text_of)
    found = None if alike is None else alike.texts(chunks)
    if found is not None:
        first, last, texts = found
        assert texts == [_text_of(chunk) for chunk in chunks[first:last]]


@pytest.mark.parametrize("around", READ_TOGETHER)
def test_the_chunks_of_the_engines_that_we_know_are_read_together(around: tuple[bytes, bytes]) -> None:
    before, after = around
    chunks = [before + middle.encode() + after for middle in PLAIN]
    alike = alike_of(chunks[len(chunks) // 2], _text_of)
    assert alike is not None
    whole = [ROLE, *chunks, *OTHERS[3:4], *OTHERS[5:6], b"[DONE]"]
    assert alike.texts(whole) == (1, 1 + len(chunks), [_text_of(chunk) for chunk in chunks])
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.REQUIRED)
    text, tokens, end = joined(reader.feed(b"".join(event(chunk) for chunk in whole)))
    assert (text, tokens) == ("".join(json.loads(f'"{one}"') for one in PLAIN), len(PLAIN) - 1)
    assert end == Finished(FinishReason.LENGTH, 1, 2)


@pytest.mark.parametrize("around", [SAID_TWICE, OVERRULED, A_KEY_THAT_LOOKS_SO])
def test_a_place_that_is_not_surely_the_text_is_not_taken_for_it(around: tuple[bytes, bytes]) -> None:
    before, after = around
    assert alike_of(before + b"x" + after, _text_of) is None
    for chunk in OTHERS[1:]:
        assert alike_of(chunk, _text_of) is None


def test_text_of_any_length_and_of_nothing_but_escapes_is_read_together() -> None:
    before, after = SGLANG
    for middle, text in ((b"\\n" * 20_000, "\n" * 20_000), (b"x" * 40_000, "x" * 40_000), (b'\\"', '"')):
        reader = AnswerReader(line_bytes_max=50_000, usage=UsageExpectation.OPTIONAL)
        assert reader.feed(event(before + middle + after) * 10) == [Delta(text * 10, (), 10)]


def test_a_time_that_changes_between_two_reads_is_learned() -> None:
    before, after = LLAMA_CPP
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    for second in (b"0", b"1", b"2"):
        chunk = before + b"a" + after.replace(b"1764164000", b"176416400" + second)
        assert reader.feed(event(chunk) * 20) == [Delta("a" * 20, (), 20)]
