"""Strict YAML: the text that operators write, as plain values that know their lines.

The subset is small on purpose, because a pack is law and a settings file opens ports: YAML 1.2 core scalars without
floats (money and shares are exact: they are written as quoted decimals), no anchors, aliases, tags, merge keys,
directives, second documents or duplicate keys, and bounds on size, depth and the number of nodes. `no`, `NO` and `off`
are text. Dates stay ISO text; the loader of the domain reads them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import yaml

from orchestrator.files.typed import DecodeHook, FieldPath, Misfit, fit, spell

T = TypeVar("T")

SIZE_BYTES_MAX = 256 * 1024
DEPTH_MAX = 16
NODES_MAX = 50_000
KEY_CHARS_MAX = 128
_INT_MIN, _INT_MAX = -(2**63), 2**64 - 1

_NULL = frozenset({"", "~", "null", "Null", "NULL"})
_TRUE = frozenset({"true", "True", "TRUE"})
_FALSE = frozenset({"false", "False", "FALSE"})
_DECIMAL_INT = re.compile(r"[-+]?[0-9]+\Z")
_OCTAL_INT = re.compile(r"0o[0-7]+\Z")
_HEX_INT = re.compile(r"0x[0-9a-fA-F]+\Z")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?\Z|[-+]?\.(inf|Inf|INF)\Z|\.(nan|NaN|NAN)\Z")
# Controls, the line ends that only some parsers know, marks that reorder what a reader sees, half characters.
_FORBIDDEN = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff]|\r(?!\n)"
)


class FileError(ValueError):
    """A file that people wrote cannot be used. Its text is one sentence: file, line, field, what was expected."""

    def __init__(self, file: str, line: int, field: str, expected: str) -> None:
        place = f"{file}:{line}" if line else file
        super().__init__(f"{place}: {field}: {expected}" if field else f"{place}: {expected}")
        self.file = file
        self.line = line
        """Counted from 1; 0 where the file as a whole is meant."""
        self.field = field
        """Path of the field, such as `rules[3].effect`; empty for the whole file."""
        self.expected = expected


class ScalarError(ValueError):
    """A plain scalar that this subset refuses. Its text says how to write it."""


def plain_scalar(text: str) -> str | int | bool | None:
    """The value of an unquoted scalar under the YAML 1.2 core schema. Raises ScalarError for floats and odd numbers."""
    if text in _NULL:
        return None
    if text in _TRUE or text in _FALSE:
        return text in _TRUE
    number: int | None = None
    if _DECIMAL_INT.match(text):
        digits = text.lstrip("+-")
        # The order matters: a number of a million digits must not reach int().
        if len(digits) > 20:
            raise ScalarError("expected a whole number of at most 64 bits, or quoted text")
        if len(digits) > 1 and digits[0] == "0":
            raise ScalarError("expected a number without leading zeros, or quoted text")
        number = int(text)
    elif _OCTAL_INT.match(text) or _HEX_INT.match(text):
        if len(text) > 24:
            raise ScalarError("expected a whole number of at most 64 bits, or quoted text")
        number = int(text, 0)
    elif _FLOAT.match(text):
        raise ScalarError("write it as a quoted decimal")
    if number is None:
        return text
    if not _INT_MIN <= number <= _INT_MAX:
        raise ScalarError("expected a whole number of at most 64 bits, or quoted text")
    return number


@dataclass(frozen=True, slots=True)
class Document:
    """The values of one strict YAML text, and the line of each."""

    name: str
    """How errors call the file."""
    value: dict[str, object] = field(repr=False)
    """Plain values: None, bool, int, str, list, dict with text keys."""
    _lines: Mapping[FieldPath, int] = field(repr=False)

    def convert(self, type_: type[T], dec_hook: DecodeHook | None = None) -> T:
        """The document as `type_`, whose Structs all forbid unknown fields. Raises FileError."""
        try:
            return fit(self.value, type_, dec_hook)
        except Misfit as misfit:
            raise self.error(misfit.path, misfit.expected) from None

    def line_of(self, path: FieldPath) -> int:
        """The line of the field at `path`, or of the nearest field around it."""
        while path and path not in self._lines:
            path = path[:-1]
        return self._lines.get(path, 1)

    def error(self, path: FieldPath, expected: str) -> FileError:
        """The error that a loader raises about the field at `path`; `expected` is a phrase without the value."""
        return FileError(self.name, self.line_of(path), spell(path), expected)


def read_document(path: Path, name: str | None = None) -> Document:
    """Reads and loads one file; `name` is how errors call it, by default its path. Raises FileError."""
    shown = name if name is not None else str(path)
    try:
        with path.open("rb") as file:
            body = file.read(SIZE_BYTES_MAX + 1)
    except OSError as failure:
        raise FileError(shown, 0, "", f"expected a readable file ({failure.strerror})") from None
    if len(body) > SIZE_BYTES_MAX:
        raise FileError(shown, 0, "", f"expected at most {SIZE_BYTES_MAX} bytes")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as failure:
        line = body.count(b"\n", 0, failure.start) + 1
        raise FileError(shown, line, "", "expected text in UTF-8") from None
    return load_document(text, shown)


def load_document(text: str, name: str) -> Document:
    """Loads one strict YAML text; `name` is how errors call it. Raises FileError."""
    if len(text) > SIZE_BYTES_MAX or len(text.encode("utf-8", "surrogatepass")) > SIZE_BYTES_MAX:
        raise FileError(name, 0, "", f"expected at most {SIZE_BYTES_MAX} bytes")
    odd = _FORBIDDEN.search(text)
    if odd is not None:
        line = text.count("\n", 0, odd.start()) + 1
        raise FileError(name, line, "", f"expected no character U+{ord(odd[0]):04X}")
    composer = _Composer(name)
    for event in _events(text, name):
        composer.take(event)
    return composer.document()


def _events(text: str, name: str) -> Iterator[yaml.Event]:
    try:
        # The parser of libyaml: iterative, fast, and the same on every machine that we build for.
        yield from yaml.parse(text, Loader=yaml.CSafeLoader)
    except yaml.MarkedYAMLError as failure:
        mark = failure.problem_mark or failure.context_mark
        line = mark.line + 1 if mark is not None else 0
        raise FileError(name, line, "", f"expected well-formed YAML: {failure.problem}") from None
    except yaml.YAMLError:
        raise FileError(name, 0, "", "expected well-formed YAML") from None


def _line(event: yaml.Event) -> int:
    mark = event.start_mark
    return mark.line + 1 if mark is not None else 0


@dataclass(slots=True)
class _Open:
    """A mapping or list that is being filled."""

    container: dict[str, object] | list[object]
    path: FieldPath
    line: int
    key: str | None = None


class _Composer:
    """Builds values from parser events without recursion, and refuses what the subset leaves out."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._stack: list[_Open] = []
        self._lines: dict[FieldPath, int] = {}
        self._root: dict[str, object] | None = None
        self._documents = 0
        self._nodes = 0

    def document(self) -> Document:
        if self._root is None:
            raise FileError(self._name, 1, "", "expected a mapping of fields, but the file is empty")
        return Document(self._name, self._root, self._lines)

    def take(self, event: yaml.Event) -> None:
        match event:
            case yaml.DocumentStartEvent():
                self._documents += 1
                if self._documents > 1:
                    raise self._error(event, "expected one document")
                if event.version is not None or event.tags:
                    raise self._error(event, "expected no % directive")
            case yaml.AliasEvent():
                raise self._error(event, "expected no alias: write the value out")
            case yaml.ScalarEvent():
                self._scalar(event)
            case yaml.MappingStartEvent():
                self._open(event, {})
            case yaml.SequenceStartEvent():
                self._open(event, [])
            case yaml.MappingEndEvent() | yaml.SequenceEndEvent():
                self._stack.pop()

    def _error(self, event: yaml.Event, expected: str) -> FileError:
        path: FieldPath = ()
        if self._stack:
            path = self._next_path()
        return FileError(self._name, _line(event), spell(path), expected)

    def _next_path(self) -> FieldPath:
        top = self._stack[-1]
        if isinstance(top.container, list):
            return (*top.path, len(top.container))
        return top.path if top.key is None else (*top.path, top.key)

    def _node(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent) -> None:
        self._nodes += 1
        if self._nodes > NODES_MAX:
            raise self._error(event, f"expected at most {NODES_MAX} values in a file")
        if event.anchor is not None:
            raise self._error(event, "expected no anchor: write the value out")
        if event.tag is not None:
            raise self._error(event, "expected no tag")

    def _open(self, event: yaml.CollectionStartEvent, container: dict[str, object] | list[object]) -> None:
        self._node(event)
        line = _line(event)
        if not self._stack:
            if not isinstance(container, dict):
                raise self._error(event, "expected a mapping of fields")
            self._root = container
            self._lines[()] = line
            self._stack.append(_Open(container, (), line))
            return
        if len(self._stack) == DEPTH_MAX:
            raise self._error(event, f"expected at most {DEPTH_MAX} levels")
        if isinstance(self._stack[-1].container, dict) and self._stack[-1].key is None:
            raise self._error(event, "expected a text key")
        path = self._next_path()
        self._place(container, line)
        self._stack.append(_Open(container, path, line))

    def _scalar(self, event: yaml.ScalarEvent) -> None:
        self._node(event)
        if not self._stack:
            raise self._error(event, "expected a mapping of fields")
        value = self._scalar_value(event)
        top = self._stack[-1]
        if isinstance(top.container, dict) and top.key is None:
            self._key(event, value, top, top.container)
            return
        self._place(value, _line(event))

    def _scalar_value(self, event: yaml.ScalarEvent) -> str | int | bool | None:
        if event.style:
            odd = _FORBIDDEN.search(event.value)
            if odd is not None:
                raise self._error(event, f"expected no character U+{ord(odd[0]):04X}")
            return str(event.value)
        try:
            return plain_scalar(event.value)
        except ScalarError as refusal:
            raise self._error(event, str(refusal)) from None

    def _key(self, event: yaml.ScalarEvent, value: object, top: _Open, container: dict[str, object]) -> None:
        if not isinstance(value, str) or not value:
            raise self._error(event, "expected a text key: quote it")
        if value == "<<":
            raise self._error(event, "expected no merge key: write the fields out")
        if len(value) > KEY_CHARS_MAX:
            raise self._error(event, f"expected a key of at most {KEY_CHARS_MAX} characters")
        top.key = value
        if value in container:
            raise self._error(event, f"expected one such key, but line {self._lines[*top.path, value]} has it already")
        self._lines[(*top.path, value)] = _line(event)

    def _place(self, value: object, line: int) -> None:
        top = self._stack[-1]
        if isinstance(top.container, list):
            self._lines[(*top.path, len(top.container))] = line
            top.container.append(value)
        else:
            top.container[str(top.key)] = value
            top.key = None
