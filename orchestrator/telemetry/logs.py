"""Logs as JSON lines, from allow-listed events and fields only.

A name that is not in `names` is a mistake in the program and raises TelemetryError, always, so that the first test that
passes there finds it. A value that breaks the rule of its field comes from outside; it must not end a request and must
not be shown: it is replaced and counted. Lines of other libraries tell where they come from and never what they say,
because their texts can quote a payload or a secret.
"""

from __future__ import annotations

import io
import logging
import re
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from functools import lru_cache, partial
from math import isfinite
from pathlib import PurePath
from types import TracebackType
from typing import Final, Self, TextIO

import msgspec

from orchestrator.telemetry.names import FIELDS, Event, FieldKind, LogField

LogValue = str | int | float | bool | Enum | None
Told = dict[str, str | int | float | bool]
"""The fields of a line, as they may be written."""

TEXT_CHARS_MAX: Final = 200
SHARED_MAX: Final = 1024
"""Sets of values that lines of one event share, and whose text is remembered."""
BEGINNINGS_MAX: Final = 256
"""Beginnings of lines that are remembered: by program, level, place and event."""
REFUSED: Final = "(refused)"
"""What is written in place of a value that breaks the rule of its field."""

_ROOT = "tidegate"
_ROOT_LOGGER = logging.getLogger()
_LEVELS = {number: name.lower() for name, number in logging.getLevelNamesMapping().items()}
_FIELDS_KEY = "tidegate_fields"
_LOGGER_NAME = re.compile(r"[a-z_]+(\.[a-z_]+)*\Z")
_ID = re.compile(r"[A-Za-z0-9\[][A-Za-z0-9._:/@+=\[\]-]{0,127}\Z").match
_WHOLE_END = 2**63
_FRAMES_MAX = 6
_encode = msgspec.json.Encoder().encode
_PLAIN = frozenset({str, int, float, bool})
_NAMES = FIELDS.keys()
_ALLOW_TEXT: Final[dict[str, Callable[[str], object]]] = {
    **{name: _ID for name, field in FIELDS.items() if field.kind is FieldKind.ID},
    **{name: field.values.__contains__ for name, field in FIELDS.items() if field.kind is FieldKind.CHOICE},
}
"""What says whether a text may be told as it is, by the field."""
_ALLOW_WHOLE: Final = frozenset(
    name for name, field in FIELDS.items() if field.kind in (FieldKind.WHOLE, FieldKind.NUMBER)
)
"""The fields that may be a whole number."""


class TelemetryError(Exception):
    """The program used a name that `names` does not have, or used it in the wrong way."""


class Log:
    """Writes the lines of one part of a program."""

    __slots__ = ("_logger", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        self._logger = logging.getLogger(f"{_ROOT}.{name}")

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
        # Every line of a request comes through here: its names and values are judged in one pass each.
        if type(event) is not Event:
            raise TelemetryError("expected an event of orchestrator.telemetry.names")
        if not fields.keys() <= _NAMES:
            raise TelemetryError(f"the log field {min(fields.keys() - _NAMES)} is not in orchestrator.telemetry.names")
        logger_ = self._logger
        if not logger_.isEnabledFor(level):
            return
        told = _told(fields)
        sink = _lone_sink(logger_)
        if sink is None:
            logger_.log(level, str(event), extra={_FIELDS_KEY: told})
        else:
            # What the machinery of `logging` would make of it is what is known here.
            sink.write(time.time(), _LEVELS[level], self._name, event, told)

    def recurring(self, event: Event, own: str, shared: tuple[str, ...], numbers: tuple[str, str]) -> Recurring:
        """Return what tells of an event, with these fields in their order. Raises TelemetryError for other names."""
        return Recurring(self, event, own, shared, numbers)


class Recurring:
    """An event that every request tells of with the same fields: what many of its lines share is spelled once.

    A line has an id of its own, then values that come again, then two whole numbers.
    """

    __slots__ = ("_event", "_fields", "_log", "_numbers", "_own", "_shared")

    def __init__(self, log: Log, event: Event, own: str, shared: tuple[str, ...], numbers: tuple[str, str]) -> None:
        self._fields = (own, *shared, *numbers)
        if type(event) is not Event or len(set(self._fields)) != len(self._fields):
            raise TelemetryError("expected an event of orchestrator.telemetry.names, and each field once")
        if not set(self._fields) <= _NAMES or FIELDS[own].kind is not FieldKind.ID or not set(numbers) <= _ALLOW_WHOLE:
            raise TelemetryError("expected the names of an id, of fields and of two whole numbers")
        self._log = log
        self._event = event
        self._own = f',"{own}":"'
        self._numbers = ',"{}":%d,"{}":%d'.format(*numbers)
        self._shared = lru_cache(maxsize=SHARED_MAX)(partial(_shared, shared))

    def tell(self, level: int, own: str, shared: tuple[str | int | None, ...], number: int, number_2: int) -> None:
        """Write a line. None leaves a field out. The two numbers are ours: they are not judged."""
        log = self._log
        logger_ = log._logger
        if not logger_.isEnabledFor(level):
            return
        sink, spelled = _lone_sink(logger_), self._shared(shared)
        if sink is None or spelled is None or _ID(own) is None:
            # Hardly ever: another listens, or a value may not be told.
            values: tuple[LogValue, ...] = (own, *shared, number, number_2)
            log._write(level, self._event, dict(zip(self._fields, values, strict=True)))
            return
        beginning = _beginning(sink.program, _LEVELS[level], log._name, self._event)
        sink.put(time.time(), f'{beginning}{self._own}{own}"{spelled}{self._numbers % (number, number_2)}')


def logger(name: str) -> Log:
    """The log of one part of a program, such as `node_agent.border`."""
    if not _LOGGER_NAME.match(name):
        raise TelemetryError("expected a logger name such as node_agent.border")
    return Log(name)


class LogSink:
    """Writes every log line of the process to one stream, until it is closed.

    It takes the root logger, so the lines of libraries pass through it as well: those of warnings and errors are
    written with their place, level and class of exception, without their text.
    """

    def __init__(self, stream: TextIO, program: str, level: int = logging.INFO) -> None:
        """`program` is written in each line; `level` is the least that is written."""
        self._handler = _JsonLines(stream, program)
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


def report_faults(on_fault: Callable[[str], None]) -> None:
    """Have whatever writes the log lines of this process tell what it had to replace or lose.

    `on_fault` is told `log_value` for each line with a value that was replaced, and `log_line` for each line lost, from
    any thread.
    """
    for handler in _ROOT_LOGGER.handlers:
        if isinstance(handler, _JsonLines):
            handler.on_fault = on_fault


class _JsonLines(logging.Handler):
    def __init__(self, stream: TextIO, program: str) -> None:
        super().__init__()
        self._stream = stream
        self._file = _file_of(stream)
        """Where whole lines go past the stream's own layers, as long as it takes each at once."""
        self.program = program
        self._rest = b""
        """What an unbuffered file did not take of the last line that it took some of."""
        self.on_fault: Callable[[str], None] | None = None
        self._writing = self.lock or threading.RLock()
        self.lines = 0
        self.lines_lost = 0
        self._second = 0
        self._clock = ""

    def write(self, now_s: float, level: str, name: str, event: str, told: Told) -> None:
        """Write a line, from any thread. `told` is written as it is."""
        try:
            line = _beginning(self.program, level, name, event) + _spelled(told)
        except ValueError:
            self._lose()
        else:
            self.put(now_s, line)
        if "refused_values" in told:
            self._fault("log_value")

    def put(self, now_s: float, line: str) -> None:
        """Write a line, from any thread, as it is spelled after its time."""
        with self._writing:
            second = int(now_s)
            if second != self._second:
                self._second, self._clock = second, datetime.fromtimestamp(second, UTC).isoformat()[:-6]
            thousandths = int((now_s - second) * 1000)
            whole = f'{{"time":"{self._clock}.{thousandths:03d}+00:00"{line}}}\n'
            try:
                if self._file is None:
                    self._stream.write(whole)
                    self._stream.flush()
                else:
                    self._send(whole.encode(), self._file)
                self.lines += 1
            except (OSError, ValueError):
                # A stream that is gone must not end what is being logged.
                self._lose()

    def emit(self, record: logging.LogRecord) -> None:
        """Write what came through `logging`: a line of our own, or the place of a library's."""
        event, told = record.msg, getattr(record, _FIELDS_KEY, None)
        if not (isinstance(told, dict) and record.name.startswith(f"{_ROOT}.")):
            event, told = "library_log", {"where": f"{PurePath(record.pathname).name}:{record.lineno}"}
            if record.exc_info and record.exc_info[0]:
                told["exception"] = record.exc_info[0].__name__
        name, level = _escape(record.name.removeprefix(f"{_ROOT}.")), _LEVELS.get(record.levelno, "other")
        self.write(record.created, level, name, event, told)

    def _send(self, line: bytes, file: io.FileIO) -> None:
        """Raises OSError and ValueError."""
        if self._rest:
            self._rest = _left(self._rest, file)
            if self._rest:
                raise BlockingIOError("there is no room behind half of a line")
        left = _left(line, file)
        if not left:
            return
        # Hardly ever: no room.
        if self._stream.buffer is file:
            # Nobody keeps what finds none. Of a line that was begun the rest goes before whatever follows.
            self._rest = _left(left, file)
            if self._rest == line:
                self._rest = b""
                raise BlockingIOError("there is no room")
            return
        # What is left waits in the stream, and what follows goes behind it.
        self._file = None
        self._stream.buffer.write(left)
        self._stream.flush()

    def _lose(self) -> None:
        with self._writing:
            self.lines_lost += 1
            self._fault("log_line")

    def _fault(self, what: str) -> None:
        if self.on_fault is not None:
            self.on_fault(what)


def _left(data: bytes, file: io.FileIO) -> bytes:
    """Write what there is room for, and return the rest."""
    try:
        return data[file.write(data) or 0 :]
    except OSError:
        return data


def _file_of(stream: TextIO) -> io.FileIO | None:
    """The file of a stream that writes text as it is and holds no line back, as standard error does; else None."""
    if type(stream) is not io.TextIOWrapper or stream.encoding.lower() != "utf-8":
        return None
    file: object = stream.buffer
    if stream.line_buffering and isinstance(file, io.BufferedWriter):
        file = file.raw
    elif not stream.write_through:
        return None
    return file if isinstance(file, io.FileIO) else None


def _lone_sink(logger_: logging.Logger) -> _JsonLines | None:
    """The sink, where nobody else listens: nearly always."""
    handlers = _ROOT_LOGGER.handlers
    sink = handlers[0] if len(handlers) == 1 else None
    return sink if type(sink) is _JsonLines and not logger_.handlers else None


@lru_cache(maxsize=BEGINNINGS_MAX)
def _beginning(program: str, level: str, name: str, event: str) -> str:
    """How a line goes on after its time. Raises ValueError for half of a surrogate pair."""
    return _spelled({"level": level, "program": program, "logger": name, "event": event})


def _spelled(told: Told) -> str:
    """Fields as they stand in a line, each behind a comma. Raises ValueError for half of a surrogate pair."""
    return f",{_encode(told).decode()[1:-1]}" if told else ""


def _shared(names: tuple[str, ...], values: tuple[LogValue, ...]) -> str | None:
    """Fields as they stand in a line; None where one may not be told."""
    told = _told(dict(zip(names, values, strict=True)))
    return None if "refused_values" in told else _spelled(told)


def _told(fields: dict[str, LogValue]) -> Told:
    """Each value as it may be written. The names of the fields are known to be in `FIELDS`."""
    told: Told = {}
    refused = 0
    for name, value in fields.items():
        # Nearly every value is an id, a choice or a whole number that may be told: those are not looked at twice.
        if type(value) is str:
            allows = _ALLOW_TEXT.get(name)
            if allows is not None and allows(value):
                told[name] = value
                continue
        elif value is None:
            continue
        elif type(value) is int and name in _ALLOW_WHOLE and -_WHOLE_END < value < _WHOLE_END:
            told[name] = value
            continue
        allowed = _allowed(FIELDS[name], value)
        if allowed is None:
            allowed = REFUSED
            refused += 1
        told[name] = allowed
    if refused:
        told["refused_values"] = refused
    return told


def _allowed(field: LogField, value: LogValue) -> str | int | float | None:
    """A value by the rule of its field, whatever it is; None where it may not be told."""
    given = value if type(value) in _PLAIN else _plain(value)
    kind = field.kind
    if type(given) is str:
        if kind is FieldKind.TEXT:
            return _escape(given[:TEXT_CHARS_MAX])[:TEXT_CHARS_MAX]
        allows = _ALLOW_TEXT.get(field.name)
        return given if allows is not None and allows(given) else None
    if type(given) is bool:
        return given if kind is FieldKind.FLAG else None
    if type(given) is int:
        return given if field.name in _ALLOW_WHOLE and -_WHOLE_END < given < _WHOLE_END else None
    return given if type(given) is float and kind is FieldKind.NUMBER and isfinite(given) else None


def _plain(value: object) -> object:
    """What an enumeration stands for, and what a subclass is, in one of the types that are written."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, int):
        return int(value)
    return float(value) if isinstance(value, float) else value


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
