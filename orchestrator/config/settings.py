"""One YAML file and the environment, as one frozen value that a program reads once at its start.

A settings type is a frozen `msgspec.Struct` with `forbid_unknown_fields=True`, down to its last section; times and
sizes are whole numbers with their unit in the name, shares and money are `Decimal`. There is no way to leave a setting
misspelt: an unknown field of the file and an unknown variable of the environment both stop the program.

Environment: `<PREFIX><FIELD>` sets a field, `<PREFIX><SECTION>__<FIELD>` a field of a section. A value is read as a
YAML scalar, except where the field is text. Lists and mappings are set in the file only. Three kinds of variables are
left alone: `<PREFIX>CONFIG` (where a program may look for its file), `<PREFIX>LOG_LEVEL`, and the service links that
Kubernetes puts into every container.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, Literal, TextIO, TypeVar, get_args, get_origin

import msgspec
import yaml

from orchestrator.config.secret import Secret, SettingsError
from orchestrator.files.document import Document, FileError, ScalarError, plain_scalar, read_document
from orchestrator.files.typed import Misfit, field_type, fit, members, record_types, spell

T = TypeVar("T", bound=msgspec.Struct)

ALLOWED = frozenset({"CONFIG", "LOG_LEVEL"})
"""Suffixes of variables that are not settings and may still bear the prefix of a program."""

EXIT_STATUS_BAD_SETTINGS = 2

_PROTOCOL = "(tcp|udp|sctp)"
_SERVICE_LINK = re.compile(
    rf"(\w+_)?(SERVICE_HOST=[0-9a-fA-F.:]+|SERVICE_PORT(_\w+)?=\d+|PORT(_\d+_{_PROTOCOL})?={_PROTOCOL}://\S+"
    rf"|PORT_\d+_{_PROTOCOL}_(PROTO={_PROTOCOL}|PORT=\d+|ADDR=[0-9a-fA-F.:]+))\Z",
    re.IGNORECASE | re.ASCII,
)
_USERINFO = re.compile(r"://[^/@\s]*@")
_MASK = "(secret)"
_MASKED_ENDINGS = ("_key", "_token", "_secret", "_password")
_SHOWN = frozenset({"public_key"})


@dataclass(frozen=True, slots=True)
class _Override:
    variable: str
    path: tuple[str, ...]
    value: str | int | bool | None


def load_settings(type_: type[T], path: Path, env: Mapping[str, str], prefix: str) -> T:
    """The settings of a program from its file and its environment.

    `prefix` is that of the program's variables, such as `TIDEGATE_EDGE_`. Paths in settings are used as written,
    relative to the working folder. Raises SettingsError.
    """
    _require_frozen(type_)
    try:
        document = read_document(path)
    except FileError as failure:
        raise SettingsError(failure.file, failure.field, failure.expected, failure.line) from None
    overrides = {override.path: override for override in _overrides(type_, env, prefix)}
    value: object = document.value
    for override in overrides.values():
        value = _with(value, override.path, override)
    try:
        return fit(value, type_, _decode)
    except Misfit as misfit:
        raise _settings_error(misfit, document, overrides) from None


def render_effective(settings: msgspec.Struct) -> str:
    """The settings as YAML, secrets masked, for people to read at the start of a program.

    Masked are values of type Secret, fields whose name ends in `_key`, `_token`, `_secret` or `_password`, and user
    names and passwords within URLs.
    """
    return yaml.safe_dump(_plain(settings), sort_keys=False, allow_unicode=True, width=120)


def run_program(main: Callable[[], int | None], stderr: TextIO | None = None) -> int:
    """Runs a program's main function and returns its exit status.

    Settings, files or secrets that cannot be used end it with status 2 and one sentence on `stderr`, no traceback.
    """
    stream = sys.stderr if stderr is None else stderr
    try:
        return main() or 0
    except (SettingsError, FileError) as failure:
        stream.write(f"{failure}\n")
        stream.flush()
        return EXIT_STATUS_BAD_SETTINGS


def _settings_error(
    misfit: Misfit, document: Document, overrides: Mapping[tuple[str, ...], _Override]
) -> SettingsError:
    for end in range(len(misfit.path), 0, -1):
        override = next((o for where, o in overrides.items() if where == misfit.path[:end]), None)
        if override is not None:
            return SettingsError("environment", override.variable, misfit.expected)
    return SettingsError(document.name, spell(misfit.path), misfit.expected, document.line_of(misfit.path))


def _overrides(type_: type[msgspec.Struct], env: Mapping[str, str], prefix: str) -> Iterator[_Override]:
    for variable in sorted(env):
        name = variable.removeprefix(prefix)
        if name == variable or name in ALLOWED:
            continue
        path = tuple(part.lower() for part in name.split("__"))
        found = _type_at(type_, path) if name == name.upper() else None
        if _SERVICE_LINK.match(f"{name}={env[variable]}") and (found is None or "://" in env[variable]):
            continue
        if found is None:
            raise SettingsError("environment", variable, f"expected a setting of this program after {prefix}")
        yield _Override(variable, path, _scalar(variable, env[variable], found))


def _type_at(type_: Any, path: tuple[str, ...]) -> Any | None:
    for part in path:
        type_ = field_type(type_, part)
        if type_ is None:
            return None
    return type_


def _scalar(variable: str, text: str, type_: Any) -> str | int | bool | None:
    alternatives = list(members(type_))
    if any(_holds_many(alternative) for alternative in alternatives):
        raise SettingsError("environment", variable, "expected it in the file: a variable holds one value")
    if not any(_is_textual(alternative) for alternative in alternatives):
        try:
            return plain_scalar(text)
        except ScalarError as refusal:
            raise SettingsError("environment", variable, str(refusal)) from None
    if text in ("null", "~") and type(None) in get_args(type_):
        return None
    return text


def _holds_many(type_: Any) -> bool:
    origin = get_origin(type_)
    return (origin is not None and origin is not Literal) or (
        isinstance(type_, type) and issubclass(type_, (msgspec.Struct, list, dict, tuple, set, frozenset))
    )


def _is_textual(type_: Any) -> bool:
    if get_origin(type_) is Literal:
        return any(isinstance(arg, str) for arg in get_args(type_))
    if isinstance(type_, type) and issubclass(type_, Enum):
        return any(isinstance(choice.value, str) for choice in type_)
    return isinstance(type_, type) and type_ not in (int, bool, float)


def _with(value: object, path: tuple[str, ...], override: _Override) -> object:
    if not path:
        return override.value
    if value is None:
        value = {}
    if not isinstance(value, dict):
        raise SettingsError("environment", override.variable, "expected a mapping of fields around it in the file")
    return {**value, path[0]: _with(value.get(path[0]), path[1:], override)}


def _decode(type_: type[Any], value: Any) -> Any:
    if type_ is Path:
        if not isinstance(value, str) or not value:
            raise ValueError("expected a path")
        return Path(value)
    if type_ is Secret:
        raise ValueError("expected no secret here: name a mounted file in a setting that ends in _file")
    raise TypeError(f"settings cannot hold {type_!r}")


def _require_frozen(type_: type[msgspec.Struct]) -> None:
    for record in record_types(type_):
        if issubclass(record, msgspec.Struct) and not record.__struct_config__.frozen:
            raise TypeError(f"{record.__name__} must be declared with frozen=True")


def _plain(value: object) -> object:
    """The value as what YAML knows, secrets masked."""
    match value:
        case Secret():
            return _MASK
        case msgspec.Struct():
            config = value.__struct_config__
            tag = {config.tag_field: config.tag} if config.tag_field is not None else {}
            fields = msgspec.structs.fields(value)
            return {**tag, **{f.encode_name: _masked(f.encode_name, getattr(value, f.name)) for f in fields}}
        case Mapping():
            return {str(_plain(key)): _masked(str(_plain(key)), item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case set() | frozenset():
            return sorted((_plain(item) for item in value), key=str)
        case Enum():
            return _plain(value.value)
        case None | bool() | int():
            return value
        case _:
            return _USERINFO.sub(f"://{_MASK}@", str(value))


def _masked(name: str, value: object) -> object:
    masked = name.endswith(_MASKED_ENDINGS) and name not in _SHOWN
    return _MASK if value is not None and masked else _plain(value)
