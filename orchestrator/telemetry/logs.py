"""Logs as JSON lines, from allow-listed events and fields only.

A name that is not in `names` is a mistake in the program and raises TelemetryError, always, so that the first test that
passes there finds it. A value that breaks the rule of its field comes from outside; it must not end a request and must
not be shown: it is replaced and counted. Lines of other libraries tell where they come from and never what they say,
because their texts can quote a payload or a secret.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from enum import Enum
from math import isfinite
from pathlib import PurePath
from types import TracebackType
from typing import Final, Self, TextIO

import msgspec

from orchestrator.telemetry.names import FIELDS, Event, FieldKind, LogField

LogValue = str | int | float | bool | Enum | None

TEXT_CHARS_MAX: Final = 200
REFUSED: Final = "(refused)"
"""What is written in place of a value that breaks the rule of its field."""

_ROOT = "tidegate"
_ROOT_LOGGER = logging.getLogger()
_LEVELS = {number: name.lower() for name, number in logging.getLevelNamesMapping().items()}
_FIELDS_KEY = "tidegate_fields"
_LOGGER_NAME = re.compile(r"[a-z_]+(\.[a-z_]+)*\Z")
_ID = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@+=\[\]-]{0,127}\Z")
_FRAMES_MAX = 6


class TelemetryError(Exception):
    """The program used a name that `names` does not have, or used it in the wrong way."""


class Log:
    """Writes the lines of one part of a program."""

    __slots__ = ("_logger",)

    def __init__(self, logger: logging.Logger) -> None:
        self._logger = logger

    def debug(self, event: Event, **fields: LogValue) -> None:
        """For a developer who follows one request. Raises TelemetryError for a field without a name of ours."""
        self._write(logging.DEBUG, event, fields)

    def info(self, event: Event, **fields: LogValue) -> None:
        """For the normal course of things."""
        self._write(logging.INFO, event, fields)

    def warning(self, event: Event, **fields: LogValue) -> None:
        """For what an operator should look at some time."""
        self._write(logging.WARNING, event, fields)

    def error(self, event: Event, **fields: LogValue) -> None:
        """For what an operator should look at now."""
        self._write(logging.ERROR, event, fields)

    def crash(self, event: Event, failure: BaseException, **fields: LogValue) -> None:
        """For an exception nobody expected: its class and where it was raised. Its text is not written."""
        told = {**fields, "exception": type(failure).__name__, "where": _where(failure.__traceback__)}
        self._write(logging.ERROR, event, told)

    def _write(self, level: int, event: Event, fields: dict[str, LogValue]) -> None:
        if not isinstance(event, Event):
            raise TelemetryError("expected an event of orchestrator.telemetry.names")
        for name in fields:
            if name not in FIELDS:
                raise TelemetryError(f"the log field {name} is not in orchestrator.telemetry.names")
        if not self._logger.isEnabledFor(level):
            return
        told: dict[str, str | int | float | bool] = {}
        refused = 0
        for name, value in fields.items():
            if value is None:
                continue
            allowed = _allowed(FIELDS[name], value.value if isinstance(value, Enum) else value)
            refused += allowed is None
            told[name] = REFUSED if allowed is None else allowed
        if refused:
            told["refused_values"] = refused
        handlers = _ROOT_LOGGER.handlers
        sink = handlers[0] if len(handlers) == 1 else None
        if isinstance(sink, _JsonLines) and not self._logger.handlers:
            # Nearly always nobody else listens: what the machinery of `logging` would make of it is what is known here.
            sink.write(level, self._logger.name, event.value, told)
        else:
            self._logger.log(level, event.value, extra={_FIELDS_KEY: told})


def logger(name: str) -> Log:
    """The log of one part of a program, such as `node_agent.border`."""
    if not _LOGGER_NAME.match(name):
        raise TelemetryError("expected a logger name such as node_agent.border")
    return Log(logging.getLogger(f"{_ROOT}.{name}"))


class LogSink:
    """Writes every log line of the process to one stream, until it is closed.

    It takes the root logger, so the lines of libraries pass through it as well: those of warnings and errors are
    written with their place, level and class of exception, without their text.
    """

    def __init__(
        self,
        stream: TextIO,
        program: str,
        level: int = logging.INFO,
        on_fault: Callable[[str], None] | None = None,
    ) -> None:
        """`program` is written in each line; `level` is the least that is written.

        `on_fault` is told `log_value` for each line with a value that was replaced, and `log_line` for each line lost.
        """
        self._handler = _JsonLines(stream, program, on_fault)
        self._root_level = logging.getLogger().level
        logging.getLogger().addHandler(self._handler)
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger(_ROOT).setLevel(level)

    @property
    def lines(self) -> int:
        """Lines written."""
        return self._handler.lines

    @property
    def lines_lost(self) -> int:
        """Lines that the stream did not take."""
        return self._handler.lines_lost

    def close(self) -> None:
        """Gives the root logger back. The stream stays open."""
        logging.getLogger().removeHandler(self._handler)
        logging.getLogger().setLevel(self._root_level)
        logging.getLogger(_ROOT).setLevel(logging.NOTSET)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class _JsonLines(logging.Handler):
    def __init__(self, stream: TextIO, program: str, on_fault: Callable[[str], None] | None) -> None:
        super().__init__()
        self._stream = stream
        self._program = program
        self._on_fault = on_fault
        self.lines = 0
        self.lines_lost = 0
        self._names: dict[str, str] = {}  # bounded: by the loggers of the program
        self._second = 0
        self._clock = ""

    def write(self, level: int, name: str, event: str, fields: Mapping[str, object]) -> None:
        """Write a line of our own."""
        self.acquire()
        try:
            self._line(self._begun(time.time(), level, name) | {"event": event, **fields})
        finally:
            self.release()
        if "refused_values" in fields:
            self._fault("log_value")

    def _fault(self, what: str) -> None:
        if self._on_fault is not None:
            self._on_fault(what)

    def emit(self, record: logging.LogRecord) -> None:
        line = self._begun(record.created, record.levelno, record.name)
        fields = getattr(record, _FIELDS_KEY, None)
        if isinstance(fields, dict) and record.name.startswith(f"{_ROOT}."):
            if "refused_values" in fields:
                self._fault("log_value")
            line |= {"event": record.msg, **fields}
        else:
            failure = record.exc_info[0].__name__ if record.exc_info and record.exc_info[0] else None
            line |= {"event": "library_log", "where": f"{PurePath(record.pathname).name}:{record.lineno}"}
            line |= {"exception": failure} if failure else {}
        self._line(line)

    def _begun(self, now_s: float, level: int, name: str) -> dict[str, object]:
        """What every line begins with."""
        told = self._names.get(name)
        if told is None:
            told = self._names[name] = _escape(name.removeprefix(f"{_ROOT}."))
        second = int(now_s)
        if second != self._second:
            self._second, self._clock = second, datetime.fromtimestamp(second, UTC).isoformat()[:-6]
        return {
            "time": f"{self._clock}.{int((now_s - second) * 1000):03d}+00:00",
            "level": _LEVELS.get(level, "other"),
            "program": self._program,
            "logger": told,
        }

    def _line(self, line: dict[str, object]) -> None:
        try:
            self._stream.write(msgspec.json.encode(line).decode() + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            # A stream that is gone must not end what is being logged.
            self.lines_lost += 1
            self._fault("log_line")
        else:
            self.lines += 1


def _allowed(field: LogField, value: object) -> str | int | float | bool | None:
    """The value as it may be written, or None."""
    kind = field.kind
    if kind is FieldKind.ID:
        return value if isinstance(value, str) and _ID.match(value) else None
    if kind is FieldKind.CHOICE:
        return value if isinstance(value, str) and value in field.values else None
    if kind is FieldKind.TEXT:
        return _escape(value[:TEXT_CHARS_MAX])[:TEXT_CHARS_MAX] if isinstance(value, str) else None
    if kind is FieldKind.FLAG:
        return value if isinstance(value, bool) else None
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if kind is FieldKind.WHOLE:
        return value if isinstance(value, int) and abs(value) < 2**63 else None
    return value if isfinite(value) else None


def _escape(text: str) -> str:
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)


def _where(traceback: TracebackType | None) -> str:
    """The innermost places of a traceback, without source lines and values."""
    places: list[str] = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        places.append(f"{PurePath(code.co_filename).name}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return " < ".join(reversed(places[-_FRAMES_MAX:]))
