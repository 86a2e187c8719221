"""The stream of a log: each line is out when it is written, whole and in its place, whatever the stream is made of."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from orchestrator.telemetry.logs import LogSink, logger, report_faults
from orchestrator.telemetry.names import Event


@pytest.mark.parametrize("buffering", [1, -1], ids=["by line", "by block"])
def test_a_line_is_out_when_it_is_written(buffering: int) -> None:
    reading, writing = os.pipe()
    with os.fdopen(reading, "rb", buffering=0) as told, os.fdopen(writing, "w", buffering=buffering) as stream:
        with LogSink(stream, "control"):
            logger("orchestrator.control").info(Event.PROGRAM_STARTED)
            assert json.loads(told.read(4096))["event"] == "program_started"


class Narrow(io.FileIO):
    """A file that takes at most so many bytes at once, or has no room just now."""

    room: list[int | None]

    def write(self, data: Any, /) -> int:
        most = self.room.pop(0) if self.room else len(data)
        if most == -1:
            raise OSError("no space left")
        # As a file does that would have us wait.
        return None if most is None else super().write(bytes(data)[:most])  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("unbuffered", "room"),
    [
        *((False, room) for room in ([9], [None], [-1], [0], [9, 20, 30], [None, 5])),
        *((False, [first, *more]) for first in (9, None, -1, 0) for more in ([None], [-1], [20, None], [20, -1])),
        (True, [9]),
        (True, [None]),
    ],
)
@pytest.mark.parametrize("others", [[], ["another"]], ids=["the log alone", "others write too"])
def test_a_line_for_which_there_is_no_room_at_once_comes_before_those_after_it(
    tmp_path: Path, unbuffered: bool, room: list[int | None], others: list[str]
) -> None:
    file = Narrow(str(tmp_path / "log"), "w")
    file.room = []
    # As standard error is made, with and without PYTHONUNBUFFERED.
    buffer: Any = file if unbuffered else io.BufferedWriter(file)
    stream = io.TextIOWrapper(buffer, "utf-8", write_through=unbuffered, line_buffering=not unbuffered)
    log = logger("orchestrator.control")
    with stream, LogSink(stream, "control") as sink:
        log.info(Event.PROGRAM_STARTED, count=1)
        file.room = list(room)
        log.info(Event.PROGRAM_STARTED, count=2, detail="\u00e9")
        stream.writelines(f"{other}\n" for other in others)
        log.info(Event.PROGRAM_STARTED, count=3)
        assert sink.lines + sink.lines_lost == 3
    one, two, *between, three = (tmp_path / "log").read_text().splitlines()
    assert [json.loads(line)["count"] for line in (one, two, three)] == [1, 2, 3]
    assert (json.loads(two)["detail"], between) == ("\u00e9", others)


@pytest.mark.parametrize(
    ("room", "whole"),
    [
        ([9, 20], [1, 2, 3, 4]),
        ([9, None], [1, 2, 3, 4]),
        ([9, -1], [1, 2, 3, 4]),
        ([None, 5], [1, 2, 3, 4]),
        ([9, None, 20], [1, 2, 4]),
        ([9, None, None], [1, 2, 4]),
        ([None, None], [1, 3, 4]),
        ([-1, -1], [1, 3, 4]),
        ([None, None, 9, 5], [1, 3, 4]),
    ],
)
def test_without_a_buffer_a_line_is_whole_or_counted_as_lost(
    tmp_path: Path, room: list[int | None], whole: list[int]
) -> None:
    """As with PYTHONUNBUFFERED, where nobody else keeps what the file has no room for."""
    file = Narrow(str(tmp_path / "log"), "w")
    file.room = []
    unbuffered: Any = file
    log = logger("orchestrator.control")
    with io.TextIOWrapper(unbuffered, "utf-8", write_through=True) as stream, LogSink(stream, "control") as sink:
        log.info(Event.PROGRAM_STARTED, count=1)
        file.room = list(room)
        for count in (2, 3, 4):
            log.info(Event.PROGRAM_STARTED, count=count)
        assert (sink.lines, sink.lines_lost) == (len(whole), 4 - len(whole))
    assert [json.loads(line)["count"] for line in (tmp_path / "log").read_text().splitlines()] == whole


@pytest.mark.parametrize(("unbuffered", "write_through"), [(False, False), (True, False), (False, True)])
def test_a_line_comes_after_what_its_stream_holds_back(tmp_path: Path, unbuffered: bool, write_through: bool) -> None:
    file = io.FileIO(str(tmp_path / "log"), "w")
    buffer: Any = file if unbuffered else io.BufferedWriter(file)
    with io.TextIOWrapper(buffer, "utf-8", write_through=write_through) as stream, LogSink(stream, "control"):
        stream.write("another\n")
        logger("orchestrator.control").info(Event.PROGRAM_STARTED)
    other, line = (tmp_path / "log").read_text().splitlines()
    assert (other, json.loads(line)["event"]) == ("another", "program_started")


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1", "ascii"])
def test_a_line_is_written_as_its_stream_encodes(tmp_path: Path, encoding: str) -> None:
    with open(tmp_path / "log", "w", encoding=encoding, errors="backslashreplace", buffering=1) as stream:
        with LogSink(stream, "control"):
            logger("orchestrator.control").info(Event.PROGRAM_STARTED, detail="\u00e9\u4e2d")
    told = "\u00e9\u4e2d".encode(encoding, "backslashreplace")
    assert b'"detail":"' + told + b'"}\n' in (tmp_path / "log").read_bytes()


def test_a_stream_that_is_gone_ends_nothing() -> None:
    stream, faults = io.StringIO(), list[str]()
    with LogSink(stream, "control") as sink:
        report_faults(faults.append)
        stream.close()
        logger("orchestrator.control").info(Event.PROGRAM_STARTED)
        assert sink.lines_lost == 1
    assert faults == ["log_line"]
