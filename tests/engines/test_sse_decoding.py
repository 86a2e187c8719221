"""Server-sent events mean the same wherever their bytes were split, and their size is bounded."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines.sse import SseDecoder, SseEvent, SseFault

LINE_BYTES_MAX = 24
EVENT_BYTES_MAX = 32

lines = st.sampled_from(
    [
        b"",
        b"",
        b"data: one",
        b"data:two",
        b"data",
        b"data: ",
        b"event: error",
        b": a comment",
        b"id: 7",
        b"other",
        "data: 日本 é".encode(),
        b"data: \xff",
        b"data: " + b"x" * 30,
        b"\xef\xbb\xbfdata: one",
        b"\x00",
    ]
)
pieces = st.tuples(lines, st.sampled_from([b"\n", b"\r\n", b"\r", b""])).map(b"".join)


def decoder(line_bytes_max: int = LINE_BYTES_MAX, event_bytes_max: int = EVENT_BYTES_MAX) -> SseDecoder:
    return SseDecoder(line_bytes_max=line_bytes_max, event_bytes_max=event_bytes_max)


def decoded(*parts: bytes) -> list[SseEvent | SseFault]:
    reader = decoder()
    return [event for part in parts for event in reader.feed(part)]


@given(st.lists(pieces | st.binary(max_size=6), max_size=30), st.data())
def test_any_split_gives_the_same_events(stream: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(stream)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=12)))
    parts = [whole[start:end] for start, end in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    expected = decoded(whole)
    assert decoded(*parts) == expected
    assert decoded(*(whole[at : at + 1] for at in range(len(whole)))) == expected


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), max_size=5), max_size=5))
def test_events_come_back_as_they_were_written(texts: list[str]) -> None:
    written = "".join(f"data: {text}\n\n" for text in texts).encode()
    assert decoded(written) == [SseEvent("", text) for text in texts]


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_every_line_end_of_the_standard_ends_a_line(end: bytes) -> None:
    assert decoded(end.join([b"event: e", b"data: a", b"data: b", b"", b"data: c", b"", b""])) == [
        SseEvent("e", "a\nb"),
        SseEvent("", "c"),
    ]


def test_a_line_end_cut_in_two_is_one_line_end() -> None:
    assert decoded(b"data: a\r", b"\ndata: b\r", b"", b"\n\r", b"\n") == [SseEvent("", "a\nb")]


def test_one_leading_byte_order_mark_is_dropped() -> None:
    assert decoded(b"\xef", b"\xbb\xbfdata: a\n\n") == [SseEvent("", "a")]
    assert decoded(b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\n") == []


def test_only_the_first_space_after_the_colon_is_dropped() -> None:
    assert decoded(b"data:  a: b \n\n") == [SseEvent("", " a: b ")]


def test_comments_unknown_fields_and_events_without_data_say_nothing() -> None:
    assert decoded(b": ping\n\nid: 1\nretry: 2\nnope\n\nevent: error\n\ndata: a\n\n") == [SseEvent("", "a")]


@pytest.mark.parametrize("line", [b": x\n\n", b"\n", b"\r\n", b"\r", b"id: 1\n", b"retry\r\n", b"\n: data: x\n"])
def test_lines_that_mean_nothing_are_passed_over_without_being_read(
    line: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[bytes] = []
    flood = line * 1_000
    reader = decoder(line_bytes_max=len(flood) + 1)
    end_line = SseDecoder._end_line
    monkeypatch.setattr(SseDecoder, "_end_line", lambda self, part: read.append(part) or end_line(self, part))
    assert reader.feed(b"data: a\n\n: begins") == [SseEvent("", "a")]
    for _ in range(3):
        assert reader.feed(flood) == []
    assert reader.feed(b"\ndata: b\n\n")[-1:] == [SseEvent("", "b")]
    assert len(read) <= 6


def test_an_event_that_no_empty_line_ended_is_not_returned() -> None:
    assert decoded(b"data: a\n\ndata: b\n") == [SseEvent("", "a")]


def test_a_line_at_the_bound_is_read_and_one_beyond_is_a_fault_after_which_nothing_is_read() -> None:
    room = LINE_BYTES_MAX - len(b"data: ")
    assert decoded(b"data: " + b"x" * room + b"\n\n") == [SseEvent("", "x" * room)]
    beyond = b"data: a\n\ndata: " + b"x" * (room + 1)
    assert decoded(beyond, b"\n\ndata: b\n\n") == [SseEvent("", "a"), SseFault.LINE_TOO_LONG]


def test_an_event_of_many_short_lines_is_bounded() -> None:
    assert decoded(b"data: abcdef\n" * 10) == [SseFault.EVENT_TOO_LONG]
    assert decoded(b"data\n" * 1_000) == [SseFault.EVENT_TOO_LONG]


def test_bytes_that_are_not_utf8_are_a_fault() -> None:
    assert decoded(b"data: a\n\ndata: \xff\n\ndata: b\n\n") == [SseEvent("", "a"), SseFault.NOT_UTF8]


def test_the_repr_of_an_event_holds_no_payload() -> None:
    assert "canary" not in repr(SseEvent("canary-name", "canary"))
