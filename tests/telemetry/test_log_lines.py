"""Log lines: JSON, from allowed names only, and without anything that came from a tenant or a library."""

from __future__ import annotations

import io
import json
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum, IntEnum, StrEnum
from math import isfinite
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.telemetry.logs import (
    REFUSED,
    SHARED_MAX,
    TEXT_CHARS_MAX,
    LogSink,
    Recurring,
    TelemetryError,
    logger,
    report_faults,
)
from orchestrator.telemetry.names import FIELDS, METRICS, Event, FieldKind, MetricKind

CANARY = "canary5531"


class Lines:
    """A sink and what it wrote."""

    def __init__(self, sink: LogSink, stream: io.StringIO, faults: list[str]) -> None:
        self.sink = sink
        self.stream = stream
        self.faults = faults

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def all(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    stream, faults = io.StringIO(), list[str]()
    with LogSink(stream, "node_agent", logging.DEBUG) as sink:
        report_faults(faults.append)
        yield Lines(sink, stream, faults)


def test_a_line_holds_the_time_the_place_the_event_and_the_fields(lines: Lines) -> None:
    log = logger("node_agent.border")
    log.info(Event.REQUEST_ENDED, request_id="req_1", pool="hz-1", duration_ms=12, regulated=True, outcome="answered")
    (line,) = lines.all
    assert line.pop("time").endswith("+00:00")
    assert line == {
        "level": "info",
        "program": "node_agent",
        "logger": "node_agent.border",
        "event": "request_ended",
        "request_id": "req_1",
        "pool": "hz-1",
        "duration_ms": 12,
        "regulated": True,
        "outcome": "answered",
    }
    assert lines.sink.lines == 1


def test_each_level_is_told_and_the_threshold_holds() -> None:
    stream = io.StringIO()
    with LogSink(stream, "scheduler", logging.WARNING):
        log = logger("scheduler.intake")
        for write in (log.debug, log.info, log.warning, log.error):
            write(Event.SESSION_LOST)
    assert [json.loads(line)["level"] for line in stream.getvalue().splitlines()] == ["warning", "error"]


def test_a_field_that_is_not_in_names_is_a_mistake_at_every_level(lines: Lines) -> None:
    log = logger("node_agent.border")
    for write in (log.debug, log.info, log.warning, log.error):
        with pytest.raises(TelemetryError, match="the log field prompt is not in"):
            write(Event.REQUEST_ENDED, prompt="x")
    with pytest.raises(TelemetryError):
        log.info("request_ended")  # type: ignore[arg-type]
    with pytest.raises(TelemetryError):
        logger("Node Agent")
    assert lines.text == ""


def test_names_are_checked_even_where_nothing_is_written() -> None:
    with pytest.raises(TelemetryError):
        logger("node_agent.border").debug(Event.REQUEST_ENDED, prompt="x")


class Colour(Enum):
    ANSWERED = "answered"
    OTHER = CANARY


class Shade(StrEnum):
    ANSWERED = "answered"
    OTHER = CANARY


class Size(IntEnum):
    LARGE = 8


class Said(str):
    """A text that shows itself as another."""

    __slots__ = ()

    def __str__(self) -> str:
        return "req_1"


class Share(float):
    __slots__ = ()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("request_id", f"req {CANARY}"),
        ("request_id", f"{CANARY}\n"),
        ("request_id", f"\x1b[31m{CANARY}"),
        ("request_id", CANARY * 20),
        ("request_id", ""),
        ("request_id", 7),
        ("outcome", CANARY),
        ("outcome", Colour.OTHER),
        ("outcome", Shade.OTHER),
        ("request_id", Said(f"req {CANARY}")),
        ("request_id", CANARY.encode()),
        ("request_id", [CANARY]),
        ("duration_ms", Shade.OTHER),
        ("regulated", Size.LARGE),
        ("duration_ms", CANARY),
        ("duration_ms", 1.5),
        ("duration_ms", True),
        ("duration_ms", 2**63),
        ("load", float("nan")),
        ("load", float("inf")),
        ("load", Share("nan")),
        ("load", 10**400),
        ("regulated", 1),
        ("regulated", CANARY),
        ("detail", 3),
    ],
)
def test_a_value_that_breaks_the_rule_of_its_field_is_replaced_and_counted(
    lines: Lines, field: str, value: object
) -> None:
    logger("node_agent.front").info(Event.REQUEST_REFUSED, **{field: value})  # type: ignore[arg-type]
    (line,) = lines.all
    assert line[field] == REFUSED
    assert line["refused_values"] == 1
    assert CANARY not in lines.text
    assert lines.faults == ["log_value"]


def test_good_values_are_told(lines: Lines) -> None:
    """Positive control of the test above."""
    told: dict[str, Any] = {"request_id": CANARY, "outcome": Colour.ANSWERED, "duration_ms": -3, "load": 0.5, "port": 8}
    logger("node_agent.front").info(Event.REQUEST_REFUSED, **told, rule=None, address="[::1]:8443")
    (line,) = lines.all
    assert line["request_id"] == CANARY
    assert (line["outcome"], line["duration_ms"], line["load"], line["port"]) == ("answered", -3, 0.5, 8)
    assert line["address"] == "[::1]:8443"
    assert "rule" not in line
    assert lines.faults == []


def test_an_enumeration_or_a_subclass_is_told_as_what_it_stands_for(lines: Lines) -> None:
    told: dict[str, Any] = {"outcome": Shade.ANSWERED, "request_id": Said(CANARY), "port": Size.LARGE}
    told |= {"load": Share(0.5)}
    logger("node_agent.front").info(Event.REQUEST_REFUSED, **told)
    (line,) = lines.all
    assert {name: line[name] for name in told} == {"outcome": "answered", "request_id": CANARY, "port": 8, "load": 0.5}
    assert lines.faults == []


VALUES = st.one_of(
    st.text(max_size=260),
    st.text("abcXYZ0189._:/@+=[]- \n\x1b", max_size=140),
    st.sampled_from(sorted({value for field in FIELDS.values() for value in field.values})),
    st.integers(),
    st.integers(-(2**63) - 1, 2**63),
    st.floats(),
    st.booleans(),
    st.binary(max_size=8),
    st.none(),
)


def may_be_told(name: str, value: object) -> bool:
    """The rules of the fields, said once more."""
    kind = FIELDS[name].kind
    if kind is FieldKind.ID:
        return isinstance(value, str) and bool(re.fullmatch(r"[A-Za-z0-9\[][A-Za-z0-9._:/@+=\[\]-]{0,127}", value))
    if kind is FieldKind.CHOICE:
        return value in FIELDS[name].values
    if kind is FieldKind.TEXT:
        return isinstance(value, str)
    if kind is FieldKind.FLAG:
        return isinstance(value, bool)
    if isinstance(value, int) and not isinstance(value, bool):
        return -(2**63) < value < 2**63
    return kind is FieldKind.NUMBER and isinstance(value, float) and isfinite(value)


@given(st.dictionaries(st.sampled_from(sorted(FIELDS)), VALUES, max_size=12))
def test_whatever_is_given_only_what_the_rules_allow_is_told(fields: dict[str, Any]) -> None:
    stream = io.StringIO()
    with LogSink(stream, "node_agent"):
        logger("node_agent.front").info(Event.REQUEST_ENDED, **fields)
    line = json.loads(stream.getvalue())
    refused = 0
    for name, value in fields.items():
        if value is None:
            assert name not in line
        elif not may_be_told(name, value):
            refused += 1
            assert line[name] == REFUSED
        elif FIELDS[name].kind is not FieldKind.TEXT:
            assert (line[name], type(line[name])) == (value, type(value))
    assert line.get("refused_values", 0) == refused


SHARED = ("tenant_id", "outcome", "http_status", "detail")
COUNTED = ("delivered_tokens", "duration_ms")
REMEMBERED = st.sampled_from(["acme", "b c", "answered", CANARY, "\u00e9\u2028\ud800", "", None, 0, 7, 2**63])
TELLABLE: list[tuple[str | int | None, ...]] = [("acme", "complete", 200, None), ("beta", None, 503, "no room")]


@contextmanager
def nobody_else_listening() -> Iterator[None]:
    """Takes away what pytest has listen: with it, no line goes the way that it goes in a program."""
    root = logging.getLogger()
    listening, root.handlers = root.handlers, []
    try:
        yield
    finally:
        root.handlers = listening


def ended() -> Recurring:
    return logger("node_agent.front").recurring(Event.REQUEST_ENDED, "request_id", SHARED, COUNTED)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([logging.DEBUG, logging.INFO, logging.ERROR]),
            st.sampled_from(["req_1", "req 1", "", "[x", "\n", "x" * 129]),
            st.sampled_from(TELLABLE) | st.tuples(REMEMBERED, REMEMBERED, REMEMBERED, REMEMBERED),
            st.integers(0, 2**40),
            st.integers(-3, 2**40),
        ),
        max_size=6,
    ),
    st.sampled_from(["nobody", "to all", "to these"]),
)
def test_what_recurs_is_told_byte_for_byte_as_it_would_be_once(given_: list[tuple[Any, ...]], others: str) -> None:
    """Also where its values are remembered from a line before, may not be told, or somebody else listens."""
    recurring, log = ended(), logger("node_agent.front")
    told, faults = list[str](), list[str]()
    for often in (True, False):
        stream = io.StringIO()
        with nobody_else_listening(), LogSink(stream, "node_agent"):
            report_faults(faults.append)
            heard = recurring._log._logger if others == "to these" else logging.getLogger()
            if others != "nobody":
                heard.addHandler(other := logging.StreamHandler(beside := io.StringIO()))
            for level, own, shared, first, second in given_:
                if often:
                    recurring.tell(level, own, shared, first, second)
                else:
                    fields = dict(zip(("request_id", *SHARED, *COUNTED), (own, *shared, first, second), strict=True))
                    {logging.DEBUG: log.debug, logging.INFO: log.info, logging.ERROR: log.error}[level](
                        Event.REQUEST_ENDED, **fields
                    )
            if others != "nobody":
                heard.removeHandler(other)
                told.append(beside.getvalue())
        told.append(re.sub(r'"time":"[^"]*"', "", stream.getvalue()))
        faults.append("|")
    half = len(told) // 2
    assert told[:half] == told[half:]
    half = len(faults) // 2
    assert faults[:half] == faults[half:]


def test_who_listens_to_one_part_of_a_program_hears_what_recurs() -> None:
    recurring = ended()
    part, heard = recurring._log._logger, logging.StreamHandler(beside := io.StringIO())
    with nobody_else_listening(), LogSink(stream := io.StringIO(), "node_agent"):
        part.addHandler(heard)
        try:
            recurring.tell(logging.INFO, "req_1", TELLABLE[0], 1, 2)
        finally:
            part.removeHandler(heard)
    assert beside.getvalue() == "request_ended\n"
    assert json.loads(stream.getvalue())["request_id"] == "req_1"


def test_what_recurs_is_spelled_once_within_a_bound() -> None:
    recurring = ended()
    with nobody_else_listening(), LogSink(stream := io.StringIO(), "node_agent"):
        for own in ("req_1", "req_2", "req 3"):
            for shared in TELLABLE:
                recurring.tell(logging.INFO, own, shared, 1, 2)
        recurring.tell(logging.DEBUG, "req_4", TELLABLE[0], 1, 2)
    told = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [line["request_id"] for line in told] == ["req_1"] * 2 + ["req_2"] * 2 + [REFUSED] * 2
    found = recurring._shared.cache_info()
    assert (found.misses, found.hits, found.maxsize) == (2, 4, SHARED_MAX)


def test_what_recurs_is_of_fields_of_ours() -> None:
    log = logger("node_agent.front")
    for own, shared, numbers in (
        ("prompt", ("pool",), COUNTED),
        ("count", ("pool",), COUNTED),
        ("request_id", ("prompt",), COUNTED),
        ("request_id", ("pool",), ("count", "prompt")),
        ("request_id", ("pool",), ("count", "outcome")),
        ("request_id", ("pool", "pool"), COUNTED),
        ("request_id", ("request_id",), COUNTED),
        ("request_id", ("count",), ("count", "duration_ms")),
        ("request_id", ("pool",), ("count", "count")),
    ):
        with pytest.raises(TelemetryError):
            log.recurring(Event.REQUEST_ENDED, own, shared, numbers)


@pytest.mark.parametrize("event", ["request_ended", Shade.ANSWERED, None])
def test_what_recurs_is_of_an_event_of_ours(event: Any) -> None:
    log = logger("node_agent.front")
    with pytest.raises(TelemetryError):
        log.recurring(event, "request_id", SHARED, COUNTED)
    log.recurring(Event.REQUEST_ENDED, "request_id", SHARED, COUNTED)


def test_text_is_escaped_and_cut_and_stays_one_line(lines: Lines) -> None:
    log = logger("node_agent.front")
    log.info(Event.TASK_FAILED, detail="a\nb\x1b[31m\u202e\u2028\ud800" + "x" * 1000)
    assert lines.text.count("\n") == 1
    (line,) = lines.all
    assert len(line["detail"]) == TEXT_CHARS_MAX
    assert line["detail"].startswith("a\\u000ab\\u001b[31m\\u202e\\u2028\\ud800xxx")
    assert "\x1b" not in lines.text


def test_a_crash_tells_the_class_and_the_place_and_not_the_text(lines: Lines) -> None:
    def inner() -> None:
        raise KeyError(CANARY)

    try:
        inner()
    except KeyError as failure:
        logger("node_agent.front").crash(Event.TASK_FAILED, failure, request_id="req_1")
    (line,) = lines.all
    assert line["exception"] == "KeyError"
    assert line["where"].startswith("test_log_lines.py:")
    assert " inner < test_log_lines.py:" in line["where"]
    assert CANARY not in lines.text


def test_a_library_tells_where_and_never_what(lines: Lines) -> None:
    library = logging.getLogger("asyncio.something")
    library.info("nobody asked %s", CANARY)
    library.warning(f"header {CANARY}")
    try:
        raise ValueError(CANARY)
    except ValueError:
        library.exception("failed with %s", CANARY, extra={"tidegate_fields": {"event": CANARY}})
    assert [line["level"] for line in lines.all] == ["warning", "error"]
    assert lines.all[1]["exception"] == "ValueError"
    assert lines.all[1]["event"] == "library_log"
    assert lines.all[1]["where"].startswith("test_log_lines.py:")
    assert CANARY not in lines.text


def test_lines_of_several_threads_stay_whole(lines: Lines) -> None:
    def write() -> None:
        for number in range(200):
            logger("node_agent.front").info(Event.REQUEST_ENDED, request_id="req_1", count=number)
            logging.getLogger("asyncio.something").warning("nothing")

    threads = [threading.Thread(target=write) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(line["event"] == "request_ended" for line in lines.all) == 800
    assert len(lines.all) == lines.sink.lines == 1600


def test_a_closed_sink_gives_the_root_logger_back() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    with LogSink(io.StringIO(), "control"):
        assert (root.level, list(root.handlers)) != before
    assert (root.level, list(root.handlers)) == before


def test_names_are_fit_to_be_names() -> None:
    reserved = {"time", "level", "program", "logger", "event", "refused_values", "failure", "self"}
    assert not reserved & set(FIELDS)
    assert all(name == field.name for name, field in FIELDS.items())
    assert all(bool(field.values) == (field.kind is FieldKind.CHOICE) for field in FIELDS.values())
    assert not {"prompt", "content", "text", "message", "body", "authorization", "key", "secret", "token"} & set(FIELDS)
    assert len({event.value for event in Event}) == len(Event)
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        assert metric.name.startswith("tidegate_")
        assert metric.name.endswith("_total") == (metric.kind is MetricKind.COUNTER)
        assert bool(metric.buckets) == (metric.kind is MetricKind.HISTOGRAM)
        assert sorted(metric.buckets) == list(metric.buckets)
