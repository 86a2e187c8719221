"""From a tree of plain values to strict types, with the path and the fix of the first thing that does not fit. Pure.

Both YAML files and JSON requests end here: `fit` converts, `Misfit` tells where and what was expected. A misfit names
fields and types and never repeats a value, because a value can be a payload or a secret.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from functools import lru_cache
from types import UnionType
from typing import Annotated, Any, Literal, NewType, TypeVar, Union, get_args, get_origin, is_typeddict

import msgspec

T = TypeVar("T")
FieldPath = tuple[str | int, ...]
DecodeHook = Callable[[type[Any], Any], Any]

_LISTED_MAX = 40
_NAME_CHARS_MAX = 64
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*\Z")
_MESSAGE = re.compile(r"(?P<text>.*?)(?: - at `(?P<key>key` in `)?\$(?P<path>[^`]*)`)?\Z", re.DOTALL)
_STEP = re.compile(r"\.(?P<field>[A-Za-z0-9_]+)|\[(?P<index>\d+)\]|(?P<any>\[\.\.\.\])")
_QUOTED_TYPE = re.compile(r"`([^`]*)`")
_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "str": "text",
    "bool": "true or false",
    "array": "a list",
    "object": "a mapping",
    "null": "null",
}
_ANY_KEY = "..."
_UNKNOWN = "Object contains unknown field `"
_MISSING = "Object missing required field `"


class MisfitKind(Enum):
    """What is wrong with the value at the path."""

    UNKNOWN_FIELD = "unknown_field"
    MISSING_FIELD = "missing_field"
    TYPE = "type"
    VALUE = "value"


class Misfit(ValueError):
    """A value does not have the shape that was asked for."""

    def __init__(self, path: FieldPath, kind: MisfitKind, expected: str) -> None:
        super().__init__(f"{spell(path)}: {expected}" if path else expected)
        self.path = path
        self.kind = kind
        self.expected = expected
        """A phrase that says what was expected. It holds no value."""


def spell(path: FieldPath) -> str:
    """A path as people write it: `rules[3].effect`. Names that are not plain are quoted and cut to 64 characters."""
    parts: list[str] = []
    for step in path:
        if isinstance(step, int):
            parts.append(f"[{step}]")
        elif len(step) <= _NAME_CHARS_MAX and _PLAIN_NAME.match(step):
            parts.append(f".{step}" if parts else step)
        else:
            shown = "".join(char if char.isprintable() and char not in '"\\' else "?" for char in step)
            parts.append(f'["{shown[:_NAME_CHARS_MAX]}"]')
    return "".join(parts)


def fit(value: object, type_: type[T], dec_hook: DecodeHook | None = None) -> T:
    """Converts plain values (None, bool, int, float, str, list, dict) to `type_`, strictly.

    Every Struct within `type_` must refuse unknown fields; a type that would drop what it does not know is a
    programming error and raises TypeError. Raises Misfit.
    """
    hashed: Any = type_  # mypy takes no type of a parameter for hashable
    require_strict(hashed)
    try:
        if dec_hook is None:
            # Strict unless told otherwise: to name the arguments costs half of what it takes to convert a request.
            return msgspec.convert(value, type_)
        return msgspec.convert(value, type_, strict=True, dec_hook=dec_hook)
    except msgspec.ValidationError as failure:
        text = str(failure)
    # Raised outside the handler: the message of msgspec repeats values and must not travel as the context.
    raise _misfit(text, value, type_, dec_hook)


@lru_cache(maxsize=256)
def require_strict(type_: Any) -> None:
    """Raises TypeError if `type_` holds a record type that silently drops unknown fields."""
    for record in record_types(type_):
        if not _is_struct(record) or not record.__struct_config__.forbid_unknown_fields:
            raise TypeError(f"{record!r} must be a msgspec.Struct with forbid_unknown_fields=True")


def record_types(type_: Any) -> Iterator[Any]:
    """Every type with named fields within `type_`, itself included."""
    seen: set[Any] = set()
    pending = [type_]
    while pending:
        for member in members(pending.pop()):
            if member in seen:
                continue
            seen.add(member)
            if _is_struct(member):
                yield member
                pending.extend(field.type for field in msgspec.structs.fields(member))
            elif dataclasses.is_dataclass(member) or is_typeddict(member) or hasattr(member, "_fields"):
                yield member
            elif get_origin(member) is not Literal:
                pending.extend(arg for arg in get_args(member) if arg is not Ellipsis)


def field_type(type_: Any, name: str, value: object = None) -> Any | None:
    """The type of the field called `name` in the Struct that `type_` is or allows; None where there is no such field.

    `value` helps where `type_` allows several Structs that differ by their tag.
    """
    for struct in _structs_for(type_, value):
        for field in msgspec.structs.fields(struct):
            if field.encode_name == name:
                return field.type
    return None


def _misfit(text: str, value: object, type_: Any, dec_hook: DecodeHook | None) -> Misfit:
    parts = _MESSAGE.match(text)
    # A client names its unknown fields itself: a name that looks like the place of an error must not be read as one.
    at_root = isinstance(value, Mapping) and text.startswith(_UNKNOWN) and text[len(_UNKNOWN) : -1] in value
    if at_root or parts is None or parts["path"] is None:
        steps: list[str | int] = []
        message = text
    else:
        message = parts["text"]
        steps = [_step(step) for step in _STEP.finditer(parts["path"])]
    path: list[str | int] = []
    parent: Any = None
    here = type_
    for step in steps:
        if step == _ANY_KEY:
            inner = _first_failure(value, _value_type(here, value), dec_hook)
            if inner is None:
                break
            return Misfit((*path, *inner.path), inner.kind, inner.expected)
        parent, here, value = here, _step_type(here, step, value), _step_value(value, step)
        path.append(step)
    if not at_root and parts is not None and parts["key"] is not None:
        return Misfit(tuple(path), MisfitKind.VALUE, f"{_phrase(message, _key_type(here), None, None)} as a key")
    return _at(tuple(path), message, here, parent, value)


def _at(path: FieldPath, message: str, here: Any, parent: Any, value: object) -> Misfit:
    unknown = message.removeprefix(_UNKNOWN)
    if unknown != message:
        known = ", ".join(_field_names(here, value))
        return Misfit((*path, unknown[:-1]), MisfitKind.UNKNOWN_FIELD, f"expected one of the fields {known}")
    missing = message.removeprefix(_MISSING)
    if missing != message:
        return Misfit((*path, missing[:-1]), MisfitKind.MISSING_FIELD, "expected this field, which is missing")
    kind = MisfitKind.TYPE if message.startswith("Expected ") and ", got `" in message else MisfitKind.VALUE
    return Misfit(path, kind, _phrase(message, here, parent, path[-1] if path else None))


def _phrase(message: str, here: Any, parent: Any, last: str | int | None) -> str:
    """The message of msgspec in our words, without the value that it quotes."""
    choices = list(_choices(here)) or list(_tags(parent, last))
    if choices:
        shown = ", ".join(choices[:_LISTED_MAX])
        return f"expected one of {shown}" + (", ..." if len(choices) > _LISTED_MAX else "")
    if message.startswith(("Invalid enum value", "Invalid value")):
        return "expected another value"
    if message.startswith("Expected "):
        return _QUOTED_TYPE.sub(_words, message.replace("Expected", "expected", 1))
    if message.startswith("Invalid "):
        return f"expected a valid {message.removeprefix('Invalid ').split(chr(39))[0].strip()}"
    return message


def _words(quoted: re.Match[str]) -> str:
    return " or ".join(_WORDS.get(word, word) for word in quoted[1].split(" | "))


def _step(step: re.Match[str]) -> str | int:
    if step["any"] is not None:
        return _ANY_KEY
    return int(step["index"]) if step["index"] is not None else step["field"]


def _step_value(value: object, step: str | int) -> object:
    if isinstance(value, Mapping):
        return value.get(step)
    if isinstance(value, list) and isinstance(step, int) and step < len(value):
        return value[step]
    return None


def _step_type(type_: Any, step: str | int, value: object) -> Any:
    if isinstance(step, int):
        return _item_type(type_, step)
    found = field_type(type_, step, value)
    return Any if found is None else found


def _item_type(type_: Any, index: int) -> Any:
    for member in members(type_):
        origin, args = get_origin(member), get_args(member)
        if origin is tuple and not (len(args) == 2 and args[1] is Ellipsis):
            return args[index] if index < len(args) else Any
        if origin in (list, tuple, set, frozenset) and args:
            return args[0]
    return Any


def _key_type(type_: Any) -> Any:
    for member in members(type_):
        origin, args = get_origin(member), get_args(member)
        if isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2:
            return args[0]
    return Any


def _value_type(type_: Any, value: object) -> Any:
    if isinstance(value, Mapping):
        for member in members(type_):
            origin, args = get_origin(member), get_args(member)
            if isinstance(origin, type) and issubclass(origin, Mapping) and len(args) == 2:
                return args[1]
    return Any


def _first_failure(value: object, type_: Any, dec_hook: DecodeHook | None) -> Misfit | None:
    """msgspec does not name the key of a mapping whose value does not fit: each value is tried alone."""
    if not isinstance(value, Mapping) or type_ is Any:
        return None
    for key, item in value.items():
        try:
            msgspec.convert(item, type_, strict=True, dec_hook=dec_hook)
        except msgspec.ValidationError as failure:
            text = str(failure)
        else:
            continue
        inner = _misfit(text, item, type_, dec_hook)
        return Misfit((str(key), *inner.path), inner.kind, inner.expected)
    return None


def members(type_: Any) -> Iterator[Any]:
    """The alternatives of a type without None, with Annotated and NewType taken off."""
    while True:
        if isinstance(type_, NewType):
            type_ = type_.__supertype__
        elif get_origin(type_) is Annotated:
            type_ = get_args(type_)[0]
        else:
            break
    if get_origin(type_) in (Union, UnionType):
        for arg in get_args(type_):
            yield from members(arg)
    elif type_ is not type(None):
        yield type_


def _is_struct(type_: Any) -> bool:
    return isinstance(type_, type) and issubclass(type_, msgspec.Struct)


def _structs_for(type_: Any, value: object) -> list[Any]:
    """The Structs that `value` can be: of several tagged ones, the one whose tag it bears."""
    structs = [member for member in members(type_) if _is_struct(member)]
    if len(structs) > 1 and isinstance(value, Mapping):
        tagged = [s for s in structs if value.get(s.__struct_config__.tag_field) == s.__struct_config__.tag]
        return tagged or structs
    return structs


def _field_names(type_: Any, value: object) -> list[str]:
    names: list[str] = []
    for struct in _structs_for(type_, value):
        if struct.__struct_config__.tag_field is not None:
            names.append(struct.__struct_config__.tag_field)
        names.extend(field.encode_name for field in msgspec.structs.fields(struct))
    return list(dict.fromkeys(names))


def _choices(type_: Any) -> Iterator[str]:
    for member in members(type_):
        if isinstance(member, type) and issubclass(member, Enum):
            yield from (str(choice.value) for choice in member)
        elif get_origin(member) is Literal:
            yield from (str(arg) for arg in get_args(member))


def _tags(type_: Any, last: str | int | None) -> Iterator[str]:
    for member in members(type_):
        if _is_struct(member) and member.__struct_config__.tag_field == last:
            yield str(member.__struct_config__.tag)
