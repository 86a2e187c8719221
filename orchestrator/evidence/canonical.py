"""Canonical bytes: one spelling per value, so that a digest or a signature of it means one thing (RFC 8785)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from functools import lru_cache
from types import NoneType
from typing import Any

import msgspec
import rfc8785
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC

from orchestrator.policy.ids import KeyId

JsonValue = None | bool | int | str | list["JsonValue"] | dict[str, "JsonValue"]
"""What our records may hold: no floats, so that no two machines differ on a number."""

Writable = (
    JsonValue | Enum | msgspec.Raw | msgspec.Struct | frozenset[Any] | Sequence["Writable"] | Mapping[str, "Writable"]
)
"""What `written` takes: the word of an enum, the fields of a struct and the sorted words of a set stand for it, and a
part that was written is copied."""

INTEGER_MAX = (1 << 53) - 1
"""RFC 8785 numbers are IEEE doubles; a larger integer is written as a string."""

KEYS_MAX = 16
"""Keys of commitments that are ready to be used: a program has one."""
_WORDS = frozenset({str, bool, NoneType})
_ENCODER = msgspec.json.Encoder(order="sorted")
_IN_ORDER = msgspec.json.Encoder()


def canonical_bytes(value: Mapping[str, JsonValue]) -> bytes:
    """Return the RFC 8785 form of `value`. Raises ValueError on a float, or an integer beyond 2^53 - 1."""
    if _check(value):
        # Of such values the encoder's spelling is that of the RFC; a test holds the two equal.
        return _ENCODER.encode(value)
    return rfc8785.dumps(value)


spelled: Callable[[msgspec.Struct], bytes] = _IN_ORDER.encode
"""Returns the canonical bytes of what our own code made of typed values, by names of its own.

Its names are ASCII and come in their order, down to those of its parts that were not written before, and no part of it
is a set: nothing is sorted, and it is not looked through once more.
"""


def written(value: Mapping[str, Writable] | msgspec.Struct) -> bytes:
    """Return the same whatever the names are, and in whatever order they come."""
    data = _ENCODER.encode(value)
    # Names beyond ASCII are sorted by UTF-16 code units, which the encoder does not know.
    return data if data.isascii() else canonical_bytes(msgspec.json.decode(data))


def written_part(value: Mapping[str, Writable] | msgspec.Struct) -> msgspec.Raw:
    """Return the canonical bytes of a part of a record, for a whole that is written or spelled with it."""
    return msgspec.Raw(written(value))


def in_order_part(values: Sequence[msgspec.Struct]) -> msgspec.Raw:
    """Return the same of a list of structs whose names are ASCII and come in any order."""
    return msgspec.Raw(_ENCODER.encode(values))


def commit(key: bytes, key_id: KeyId, parts: Sequence[bytes]) -> str:
    """Return a keyed commitment to a payload, ``hmac-sha256:<key id>:<hex>``.

    Each part is framed with its length, so that no two different lists share a commitment. Destroying the key makes
    the commitment say nothing about the payload.
    """
    mac = _keyed(key).copy()
    for part in parts:
        mac.update(len(part).to_bytes(8, "big") + part)
    return f"hmac-sha256:{key_id}:{mac.finalize().hex()}"


@lru_cache(maxsize=KEYS_MAX)
def _keyed(key: bytes) -> HMAC:
    """Return the code of a key over nothing yet: to begin with the key costs more than a short payload."""
    return HMAC(key, SHA256())


def _check(value: Mapping[str, JsonValue]) -> bool:
    """Whether every name is ASCII and every type exact. Raises ValueError on what has no canonical form."""
    exact = type(value) is dict
    stack: list[Any] = [value]
    while stack:
        inner = stack.pop()
        if type(inner) is not list:
            exact = _check_names(inner) and exact
            inner = inner.values()
        if _WORDS.issuperset(map(type, inner)):
            continue
        for found in inner:
            kind = type(found)
            if kind is dict or kind is list:
                stack.append(found)
            elif kind is int:
                if not -INTEGER_MAX <= found <= INTEGER_MAX:
                    raise ValueError("an integer beyond 2^53 - 1 has no canonical number; write it as a string")
            elif kind not in _WORDS:
                exact = False
                stack.append(_known(found))
    return exact


def _check_names(value: Mapping[str, JsonValue]) -> bool:
    """Whether every name is ASCII: others are sorted by UTF-16 code units, which the encoder does not know."""
    try:
        return "".join(value).isascii()
    except TypeError:
        raise ValueError("a canonical object has string keys only") from None


def _known(value: object) -> object:
    """Return what is to be checked of a value of another type. Raises ValueError where that has no canonical form."""
    if isinstance(value, dict):
        return value
    if isinstance(value, list | tuple):
        return list(value)
    if isinstance(value, int):
        return [int(value)]
    if isinstance(value, str):
        return [str(value)]
    raise ValueError(f"a {type(value).__name__} has no canonical form")
