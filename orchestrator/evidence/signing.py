"""Checking an Ed25519 signature (RFC 8032). Signing needs a private key and lives where keys are read.

libsodium checks in half of the time that OpenSSL takes, and refuses keys of small order, under which one signature
fits every message.
"""

from __future__ import annotations

from functools import lru_cache

from nacl.exceptions import BadSignatureError
from nacl.signing import VerifyKey


def verify(public_key: bytes, message: bytes, signature: bytes) -> bool:
    """Whether `signature` over `message` was made with the key behind `public_key`. Malformed: no."""
    try:
        _read(public_key).verify(message, signature)
    except (BadSignatureError, ValueError):
        return False
    return True


@lru_cache(maxsize=1024)
def _read(public_key: bytes) -> VerifyKey:
    return VerifyKey(public_key)
