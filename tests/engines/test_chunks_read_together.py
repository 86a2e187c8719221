"""Chunks that are read together are what each of them is by itself, whatever an engine writes."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines.alike import LEARNS_FIRST, alike_of
from orchestrator.engines.chunks import AnswerReader, UsageExpectation, _text_of
from orchestrator.engines.generation import Delta, EngineEvent, Finished, FinishReason
from orchestrator.engines.sse import plain_data

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
    # Mostly a reader has learned what they are like before anything else comes.
    first = draw(runs.filter(lambda run: len(run) >= LEARNS_FIRST) | st.just([]))
    parts = [first, *draw(st.lists(runs | odd.map(lambda one: [one]), min_size=1, max_size=6))]
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


@given(streams(), st.data())
def test_events_that_come_whole_a_few_at_a_time_are_what_each_is_by_itself(stream: bytes, data: st.DataObject) -> None:
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    *events, _ = stream.split(b"\n\n")
    told: list[EngineEvent] = []
    while events:
        number = data.draw(st.integers(1, 4))
        told += reader.feed(b"".join(one + b"\n\n" for one in events[:number]))
        del events[:number]
    assert joined(told + reader.feed(b"")) == joined(by_themselves(stream))


@given(streams(), st.data())
def test_events_that_come_framed_one_by_one_are_what_each_is_by_itself(stream: bytes, data: st.DataObject) -> None:
    """Most parts are one event; some are cut, and some are two that were framed together."""
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    parts = [part + b"\n\n" for part in stream.split(b"\n\n")[:-1]]
    for _ in range(data.draw(st.integers(0, 2))):
        number = data.draw(st.integers(0, len(parts) - 1))
        cut = data.draw(st.integers(1, len(parts[number])))
        parts[number : number + 1] = filter(None, (parts[number][:cut], parts[number][cut:]))
    if len(parts) > 1 and data.draw(st.booleans()):
        number = data.draw(st.integers(1, len(parts) - 1))
        parts[number - 1 : number + 1] = [parts[number - 1] + parts[number]]
    told: list[EngineEvent] = []
    while parts:
        number = data.draw(st.integers(1, 4))
        told += reader.feed_parts(parts[:number])
        del parts[:number]
    assert joined(told + reader.feed_parts([])) == joined(by_themselves(stream))


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
        [*of()[:8], VLLM[0] + b"\xff" + VLLM[1], *of()[8:]],
        [*of()[:8], VLLM[0] + b"\xe6\x97" + VLLM[1], *of()[8:]],
        of("x" * 3_000),
        [ROLE[:-1] + b"\xff}", *of()],
        [*of(), OTHERS[3][:-1] + b"\r}", *OTHERS[5:8]],
        [VLLM[0] + VLLM[1][1:]],
        [VLLM[0] + VLLM[1][1:], *of()],
        [*of(), VLLM[0] + VLLM[1][1:]],
    ],
)
@pytest.mark.parametrize("known", [b"", b"".join(map(event, of()))], ids=["", "known"])
def test_pitfalls_of_reading_together(chunks: list[bytes], known: bytes) -> None:
    """Once the reader is to learn from the very chunks, and once it knew what they are like."""
    stream = b"".join(map(event, chunks))
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    told = reader.feed(known) if known else []
    assert joined(told + reader.feed(stream) + reader.feed(b"")) == joined(by_themselves(known + stream))


@given(st.sampled_from(ENGINES), st.data())
def test_what_is_read_together_decodes_to_the_same_one_by_one(around: tuple[bytes, bytes], data: st.DataObject) -> None:
    before, after = around
    plain, hostile = st.sampled_from(PLAIN), st.sampled_from(HOSTILE)
    middles = data.draw(st.lists(plain | hostile, min_size=1, max_size=10))
    chunks = [before + middle.encode() + after for middle in middles]
    alike = alike_of(before + b"x" + after, _text_of)
    stream = b"".join(map(event, chunks))
    found = None if alike is None else alike.texts(stream, 2_000)
    if found is not None:
        begin, end, texts = found
        assert texts == [_text_of(chunk) for chunk in plain_data(stream[begin:end], 2_000) or ()]


@given(st.sampled_from(ENGINES), st.data())
def test_one_event_decodes_to_the_same_whichever_way_it_is_read(
    around: tuple[bytes, bytes], data: st.DataObject
) -> None:
    before, after = around
    some = st.sampled_from(PLAIN + HOSTILE).map(str.encode) | st.binary(max_size=3)
    around_it = st.sampled_from([before, after, after + b"\n\ndata: " + before])
    middle = data.draw(st.lists(some, max_size=3).map(b"".join) | around_it)
    chunk = before + middle + after
    if data.draw(st.booleans()):
        begin = data.draw(st.integers(0, len(chunk)))
        chunk = chunk[:begin] + chunk[begin + data.draw(st.integers(0, 3)) :]
    alike, one = alike_of(before + b"x" + after, _text_of), event(chunk)
    text = None if alike is None else alike.text(one, 2_000)
    if text is not None:
        assert plain_data(one, 2_000) == [chunk], "it is one event"
        assert _text_of(chunk) == text
    parts = [event(before + b"a" + after), one, event(before + b"b" + after)]
    texts = None if alike is None else alike.texts_of(parts, 2_000)
    if texts is not None:
        chunks = plain_data(b"".join(parts), 2_000)
        assert chunks is not None
        assert texts == [_text_of(chunk) for chunk in chunks]


@pytest.mark.parametrize("around", READ_TOGETHER)
def test_the_texts_of_the_engines_that_we_know_are_read_the_quick_way(around: tuple[bytes, bytes]) -> None:
    before, after = around
    alike = alike_of(before + b"x" + after, _text_of)
    assert alike is not None
    events = [event(before + middle.encode() + after) for middle in PLAIN]
    texts = [json.loads(f'"{middle}"') for middle in PLAIN]
    assert [alike.text(one, 2_000) for one in events] == texts
    assert alike.texts_of(events, 20_000) == texts
    assert alike.text(events[0], len(events[0]) - 1) is None, "it may be longer than a line may be"
    assert alike.texts_of(events, 1_000) is None, "one may be longer than a line may be"
    assert alike.text(events[0] + events[0], 2_000) is None
    assert alike.text(event(before + after[1:]), 2_000) is None, "the two quotes are one"


@pytest.mark.parametrize("first", [1, 20])
def test_a_byte_order_mark_after_the_first_line_is_none(first: int) -> None:
    before, after = VLLM
    stream = event(before + b"a" + after) * 20 + b"\xef\xbb\xbf" + event(before + b"b" + after) + event(b"[DONE]")
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    cut = len(event(before + b"a" + after)) * first
    told = reader.feed(stream[:cut]) + reader.feed(stream[cut:])
    assert joined(told + reader.feed(b"")) == joined(by_themselves(stream))


@pytest.mark.parametrize("around", READ_TOGETHER)
def test_the_chunks_of_the_engines_that_we_know_are_read_together(around: tuple[bytes, bytes]) -> None:
    before, after = around
    chunks = [before + middle.encode() + after for middle in PLAIN]
    alike = alike_of(chunks[len(chunks) // 2], _text_of)
    assert alike is not None
    whole = [ROLE, *chunks, *OTHERS[3:4], *OTHERS[5:6], b"[DONE]"]
    alone, together = event(ROLE), b"".join(map(event, chunks))
    texts = [_text_of(chunk) for chunk in chunks]
    stream = b"".join(map(event, whole))
    assert alike.texts(stream, 2_000) == (len(alone), len(alone) + len(together), texts)
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
        assert reader._alike is not None
        assert reader._alike.texts(event(chunk), 2_000) is not None


def test_what_chunks_are_like_is_learned_where_they_come_one_by_one() -> None:
    before, after = VLLM
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    one = event(before + b"a" + after)
    for _ in range(LEARNS_FIRST):
        assert reader._alike is None, "an answer of few chunks does not pay for it"
        assert reader.feed(one) == [Delta("a", (), 1)]
    assert reader._alike is not None
    assert reader._alike.texts(one, 2_000) == (0, len(one), ["a"])


def test_an_event_whose_lines_come_apart_is_one_event() -> None:
    reader = AnswerReader(line_bytes_max=2_000, usage=UsageExpectation.OPTIONAL)
    assert reader.feed(b'data: {"choices":[{"index":0,\n') == []
    assert reader.feed(b'data: "delta":{"content":"x"}}]}\n\n') == [Delta("x", (), 1)]
