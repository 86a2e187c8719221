"""Canonical bytes: one spelling per value, so that a digest or a signature of it means one thing (RFC 8785)."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from hashlib import sha256

import rfc8785

from orchestrator.policy.ids import Digest, KeyId, digest_of

JsonValue = None | bool | int | str | list["JsonValue"] | dict[str, "JsonValue"]
"""What our records may hold: no floats, so that no two machines differ on a number."""

INTEGER_MAX = (1 << 53) - 1
"""RFC 8785 numbers are IEEE doubles; a larger integer is written as a string."""


def canonical_bytes(value: Mapping[str, JsonValue]) -> bytes:
    """Return the RFC 8785 form of `value`. Raises ValueError on a float, or an integer beyond 2^53 - 1."""
    _check(value)
    return rfc8785.dumps(value)


def canonical_digest(value: Mapping[str, JsonValue]) -> Digest:
    """Return the SHA-256 of the canonical bytes."""
    return digest_of(canonical_bytes(value))


def commit(key: bytes, key_id: KeyId, parts: tuple[bytes, ...]) -> str:
    """Return a keyed commitment to a payload, ``hmac-sha256:<key id>:<hex>``.

    Each part is framed with its length, so that no two different lists share a commitment. Destroying the key makes
    the commitment say nothing about the payload.
    """
    mac = hmac.new(key, digestmod=sha256)
    for part in parts:
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    return f"hmac-sha256:{key_id}:{mac.hexdigest()}"


def _check(value: object) -> None:
    if isinstance(value, bool) or value is None or isinstance(value, str):
        return
    if isinstance(value, int):
        if abs(value) > INTEGER_MAX:
            raise ValueError("an integer beyond 2^53 - 1 has no canonical number; write it as a string")
        return
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if not isinstance(key, str):
                raise ValueError("a canonical object has string keys only")
            _check(inner)
        return
    if isinstance(value, list | tuple):
        for inner in value:
            _check(inner)
        return
    raise ValueError(f"a {type(value).__name__} has no canonical form")
