"""Identifiers. Every kind of id has its own type, so that mypy finds two that were swapped.

Ids that we make are UUIDv7 (RFC 9562 section 5.7) in lower-case hex with a prefix, so they sort by time and say what
they are. Ids that people choose (tenants, pools, edges) are short lower-case names.
API keys are ``tg_<keyid>_<secret>``: the key id is public, the secret is 256 bits in unpadded base64url.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NewType

TenantId = NewType("TenantId", str)
EntityId = NewType("EntityId", str)
EdgeId = NewType("EdgeId", str)
PoolId = NewType("PoolId", str)
ReplicaId = NewType("ReplicaId", str)
SchedulerId = NewType("SchedulerId", str)
PlaceId = NewType("PlaceId", str)
SideId = NewType("SideId", str)
PackId = NewType("PackId", str)
RuleId = NewType("RuleId", str)
PathwayId = NewType("PathwayId", str)
ModelId = NewType("ModelId", str)
KeyId = NewType("KeyId", str)
"""Public part of an API key, and the name of a signing or commitment key."""
RequestId = NewType("RequestId", str)
DecisionId = NewType("DecisionId", str)
AttemptId = NewType("AttemptId", str)
UsageId = NewType("UsageId", str)
SessionId = NewType("SessionId", str)
FlowId = NewType("FlowId", str)
"""Whose work it is, where that matters: of which tenant at an edge, of which entity of which edge at a scheduler."""
Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hex digits."""

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?\Z")
KEY_ID_PATTERN = re.compile(r"[a-z0-9]{6,32}\Z")
# One text per secret: of the last character of 43, the two unused bits are zero.
_API_KEY = re.compile(r"tg_([a-z0-9]{6,32})_([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])\Z")
SECRET_BYTES = 32
RANDOM_BYTES = 10
_RANDOM_DIGITS = 2 * RANDOM_BYTES
# Of a random digit the two lower bits go on behind those that tell the variant.
_VARIANT = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}


@lru_cache(maxsize=16)
def _stamp(now_ms: int) -> str:
    """Return how an id of this time begins, up to the version: within a millisecond many are made."""
    if not 0 <= now_ms < 1 << 48:
        raise ValueError("now_ms does not fit in 48 bits")
    return f"_{now_ms:012x}7"


def _made_with(prefix: str) -> Callable[[int, bytes], Any]:
    """Return what makes ids with a prefix, each from Unix milliseconds and `RANDOM_BYTES` random bytes.

    The rest of an id is a UUIDv7 as 32 hex digits (RFC 9562 section 5.7). Raises ValueError for any other time or size.
    """

    def make(now_ms: int, entropy: bytes) -> str:
        stamp, chance = _stamp(now_ms), entropy.hex()
        if len(chance) != _RANDOM_DIGITS:
            raise ValueError(f"a UUIDv7 takes {RANDOM_BYTES} random bytes")
        return f"{prefix}{stamp}{chance[17:]}{_VARIANT[chance[1]]}{chance[2:17]}"

    return make


make_request_id: Callable[[int, bytes], RequestId] = _made_with("req")
make_decision_id: Callable[[int, bytes], DecisionId] = _made_with("dec")
make_attempt_id: Callable[[int, bytes], AttemptId] = _made_with("att")
make_usage_id: Callable[[int, bytes], UsageId] = _made_with("usg")
make_session_id: Callable[[int, bytes], SessionId] = _made_with("ses")

# Whether a text is an id that we make: a match, or None.
is_request_id: Callable[[str], object] = re.compile(r"req_[0-9a-f]{32}\Z").match
is_decision_id: Callable[[str], object] = re.compile(r"dec_[0-9a-f]{32}\Z").match
is_attempt_id: Callable[[str], object] = re.compile(r"att_[0-9a-f]{32}\Z").match
is_session_id: Callable[[str], object] = re.compile(r"ses_[0-9a-f]{32}\Z").match
is_digest: Callable[[str], object] = re.compile(r"sha256:[0-9a-f]{64}\Z").match
"""Whether a text is a digest in our notation, likewise."""


def is_name(text: str) -> bool:
    """Whether `text` is a name that people may choose: lower-case letters, digits, dots and hyphens, at most 63."""
    return NAME_PATTERN.match(text) is not None


def digest_of(data: bytes) -> Digest:
    """Return the SHA-256 of `data` in our notation."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


def parse_api_key(text: str) -> tuple[KeyId, str] | None:
    """Return the id of a key and the SHA-256 of its secret in hex, or None for what is not ``tg_<keyid>_<secret>``."""
    found = _API_KEY.match(text)
    if found is None:
        return None
    key_id, secret = found.groups()
    decoded = binascii.a2b_base64(secret.replace("-", "+").replace("_", "/") + "=")
    return KeyId(key_id), hashlib.sha256(decoded).hexdigest()


def format_api_key(key_id: KeyId, secret: bytes) -> str:
    """Return the text of an API key from its id and 32 secret bytes."""
    if KEY_ID_PATTERN.match(key_id) is None:
        raise ValueError("a key id is 6 to 32 lower-case letters and digits")
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")
    return f"tg_{key_id}_{base64.urlsafe_b64encode(secret).rstrip(b'=').decode('ascii')}"
