"""Traces of three kinds are told apart by their first line; what cannot be read is named by line and field."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.files.document import FileError
from orchestrator.files.traces import (
    MOONCAKE_WINDOW_US,
    TraceLine,
    TraceRow,
    read_recorded,
    read_trace,
    trace_head,
    trace_line,
)

HEAD = '{"v":1,"kind":"tidegate-trace"}\n'
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"


def half() -> float:
    return 0.5


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "trace"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def rows(folder: Path, text: str, limit: int | None = None) -> list[TraceRow]:
    return read_trace(written(folder, text), half, limit)


def refusal(folder: Path, text: str | bytes) -> FileError:
    with pytest.raises(FileError) as caught:
        read_trace(written(folder, text), half)
    return caught.value


def test_ours_keeps_every_field(tmp_path: Path) -> None:
    line = (
        '{"at_ms":5,"prompt_tokens":10,"output_tokens":20,"max_tokens":30,"blocks":[18446744073709551615,1],'
        '"session":7,"edge":"edge-a","tenant":"t","model":"m","class":"chat","labels":"personal=none",'
        '"upload_bytes":99}\n'
    )
    assert rows(tmp_path, HEAD + line) == [
        TraceRow(
            0, 10, 20, 30, ((1 << 64) - 1, 1), 7, "edge-a", "t", "m", "chat", "personal=none", 99
        )
    ]


def test_rows_come_by_arrival_from_the_first_one_on(tmp_path: Path) -> None:
    text = HEAD + "".join(f'{{"at_ms":{at},"prompt_tokens":{at},"output_tokens":1}}\n' for at in (30, 10, 20))
    assert [(row.at_us, row.prompt_tokens) for row in rows(tmp_path, text)] == [(0, 10), (10_000, 20), (20_000, 30)]


def test_a_limit_takes_the_first_lines_and_empty_ones_do_not_count(tmp_path: Path) -> None:
    text = HEAD + "\n".join(f'{{"at_ms":{at},"prompt_tokens":1,"output_tokens":1}}\n' for at in range(9))
    assert len(rows(tmp_path, text, 4)) == 4
    assert len(rows(tmp_path, text)) == 9


LINES = st.builds(
    TraceLine,
    at_ms=st.integers(0, 1 << 50),
    prompt_tokens=st.integers(0, 10_000_000),
    output_tokens=st.integers(0, 10_000_000),
    blocks=st.lists(st.integers(0, (1 << 64) - 1), max_size=4).map(tuple),
    session=st.none() | st.integers(0, (1 << 64) - 1),
    labels=st.none() | st.text(max_size=20),
    canary=st.booleans(),
    outcome=st.none() | st.sampled_from(["complete", "broken"]),
    cost_pico=st.none() | st.integers(0, 10**30 - 1).map(str),
    end_us=st.none() | st.integers(0, 1 << 60),
)


@given(lines=st.lists(LINES, min_size=1, max_size=4))
def test_what_is_written_is_read(tmp_path_factory: pytest.TempPathFactory, lines: list[TraceLine]) -> None:
    file = written(tmp_path_factory.mktemp("trace"), trace_head() + b"".join(map(trace_line, lines)))
    assert read_recorded(file) == lines
    assert len(read_trace(file, half)) == len(lines)


def test_mooncakes_windows_are_spread_by_chance(tmp_path: Path) -> None:
    text = (
        '{"timestamp":0,"input_length":6955,"output_length":52,"hash_ids":[46,47,48]}\n'
        '{"timestamp":3000,"input_length":10,"output_length":1,"hash_ids":[46]}\n'
        '{"timestamp":3000,"input_length":10,"output_length":1,"hash_ids":[],"more":{"x":[1]}}\n'
    )
    values = iter([0.9, 0.1, 0.5])
    found = read_trace(written(tmp_path, text), lambda: next(values))
    at = [int(0.9 * MOONCAKE_WINDOW_US), 3_000_000 + int(0.1 * MOONCAKE_WINDOW_US), 4_500_000]
    assert [row.at_us for row in found] == [one - min(at) for one in sorted(at)]
    assert [(row.blocks, row.session) for row in found] == [((46, 47, 48), 47), ((46,), 46), ((), None)]


def test_azures_times_are_utc_to_the_microsecond(tmp_path: Path) -> None:
    text = AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319600,3180,8\n"
    found = rows(tmp_path, text)
    assert [(row.at_us, row.prompt_tokens, row.output_tokens) for row in found] == [(0, 4808, 10), (52_000, 3180, 8)]
    # An hour that a zone of summer time would have twice.
    text = AZURE + "2023-10-29 00:30:00.0000000,1,1\n2023-10-29 03:30:00.0000000,1,1\n"
    assert [row.at_us for row in rows(tmp_path, text)] == [0, 3 * 3600 * 1_000_000]


def test_a_mark_of_byte_order_is_no_part_of_the_first_line(tmp_path: Path) -> None:
    assert len(rows(tmp_path, "\ufeff" + AZURE + "2023-11-16 18:17:03.9799600,4808,10\n")) == 1


@pytest.mark.parametrize("odd", ["\x0b", " "])
def test_a_header_that_is_nearly_azures_is_another_form(tmp_path: Path, odd: str) -> None:
    line = "2023-11-16 18:17:03.9799600,4808,10\n"
    for header in (odd + AZURE, AZURE.replace("\n", odd + "\n")):
        assert refusal(tmp_path, header + line).line == 1


GOOD = '"at_ms":1,"prompt_tokens":1,"output_tokens":1'
BAD_LINES = [
    ('{"at_ms":1,"prompt_tokens":1}', "output_tokens", "expected this field, which is missing"),
    ('{"at_ms":-1,"prompt_tokens":1,"output_tokens":1}', "at_ms", "expected"),
    ('{"at_ms":1,"prompt_tokens":"SECRET","output_tokens":1}', "prompt_tokens", "expected a whole number"),
    ('{"at_ms":1,"prompt_tokens":10000001,"output_tokens":1}', "prompt_tokens", "expected"),
    ('{"at_ms":1.5,"prompt_tokens":1,"output_tokens":1}', "at_ms", "expected a whole number"),
    (f'{{{GOOD},"blocks":[1,"SECRET"]}}', "blocks[1]", "expected a whole number"),
    (f'{{{GOOD},"blocks":[-1]}}', "blocks[0]", "expected"),
    (f'{{{GOOD},"session":-1}}', "session", "expected"),
    (f'{{{GOOD},"prompt":"SECRET"}}', "prompt", "expected one of the fields at_ms, prompt_tokens"),
    (f'{{{GOOD},"traffic":"SECRET"}}', "traffic", "expected one of the fields"),
    (f'{{{GOOD},"cost_pico":"SECRET"}}', "cost_pico", "expected"),
    (f'{{{GOOD},"end_us":-1}}', "end_us", "expected"),
    ("[1]", "", "expected one JSON object a line"),
    ("SECRET", "", "expected one JSON object a line"),
    ("{" + GOOD, "", "expected one JSON object a line"),
    ('{"x":' + "[" * 100_000, "", "expected one JSON object a line"),
]


@pytest.mark.parametrize(("line", "field", "expected"), BAD_LINES, ids=lambda part: str(part)[:40])
def test_a_line_of_ours_that_cannot_be_read_is_named(tmp_path: Path, line: str, field: str, expected: str) -> None:
    text = f"{HEAD}{{{GOOD}}}\n\n{line}\n"
    error = refusal(tmp_path, text)
    assert (error.line, error.field) == (4, field)
    assert error.expected.startswith(expected)
    assert "SECRET" not in str(error)
    with pytest.raises(FileError) as caught:
        read_recorded(written(tmp_path, text))
    assert str(caught.value) == str(error)


@pytest.mark.parametrize(
    ("line", "field", "expected"),
    [
        ('{"timestamp":0,"input_length":1}', "output_length", "expected this field, which is missing"),
        ('{"timestamp":"SECRET","input_length":1,"output_length":1}', "timestamp", "expected a whole number"),
        ('{"timestamp":0,"input_length":-1,"output_length":1}', "input_length", "expected"),
        ('{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":["SECRET"]}', "hash_ids[0]", "expected a whole"),
        ('{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":7,"more":1}', "hash_ids", "expected a list"),
        ("SECRET", "", "expected one JSON object a line"),
        ('{"x":' + "[" * 100_000, "", "expected one JSON object a line"),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_line_of_mooncakes_that_cannot_be_read_is_named(
    tmp_path: Path, line: str, field: str, expected: str
) -> None:
    error = refusal(tmp_path, '{"timestamp":0,"input_length":1,"output_length":1,"hash_ids":[]}\n' + line + "\n")
    assert (error.line, error.field) == (2, field)
    assert error.expected.startswith(expected)
    assert "SECRET" not in str(error)


@pytest.mark.parametrize(
    "line",
    [
        "2023-11-16 18:17:03.9799600,SECRET,10",
        "2023-11-16 18:17:03.9799600,10",
        "SECRET,1,1",
        "2023-11-16 18:17:03.9799600,-1,10",
        "2023-11-16 18:17:03.9799600,1,99999999",
        "2023-11-16 18:17:03.9799600," + "9" * 5000 + ",1",
        '"' + "x" * 200_000 + '",1,1',
    ],
    ids=lambda part: part[:40],
)
def test_a_line_of_azures_that_cannot_be_read_is_named(tmp_path: Path, line: str) -> None:
    error = refusal(tmp_path, f"{AZURE}2023-11-16 18:17:03.9799600,1,1\n{line}\n")
    assert (error.line, error.expected) == (3, "expected a time and two whole numbers")
    assert "SECRET" not in str(error)


@pytest.mark.parametrize(
    ("text", "line", "expected"),
    [
        ("", 0, "expected at least one request"),
        (HEAD, 0, "expected at least one request"),
        (AZURE, 0, "expected at least one request"),
        (b"\xff\xfe\x00", 0, "expected text in UTF-8"),
        ('{"v":2,"kind":"tidegate-trace"}\n', 1, "expected kind tidegate-trace of version 1"),
        ('{"v":1,"kind":"SECRET"}\n', 1, "expected kind tidegate-trace of version 1"),
        ('{"v":1,"kind":"tidegate-trace","more":1}\n', 1, 'expected {"v":1,"kind":"tidegate-trace"}'),
        ('{"kind":' + "[" * 100_000 + "\n", 1, 'expected {"v":1,"kind":"tidegate-trace"}'),
    ],
    ids=lambda part: str(part)[:40],
)
def test_a_file_that_is_no_trace_is_one_sentence(
    tmp_path: Path, text: str | bytes, line: int, expected: str
) -> None:
    error = refusal(tmp_path, text)
    assert (error.line, error.field, error.expected) == (line, "", expected)


def test_a_file_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    for read in (lambda path: read_trace(path, half), read_recorded):
        with pytest.raises(FileError, match="missing: No such file"):
            read(tmp_path / "missing")
        with pytest.raises(FileError, match="Is a directory"):
            read(tmp_path)


def test_an_empty_recorded_file_has_no_first_line(tmp_path: Path) -> None:
    with pytest.raises(FileError) as caught:
        read_recorded(written(tmp_path, ""))
    assert (caught.value.line, caught.value.expected) == (1, 'expected {"v":1,"kind":"tidegate-trace"}')
