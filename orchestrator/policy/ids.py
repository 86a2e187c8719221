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
from dataclasses import dataclass
from typing import NewType

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
Digest = NewType("Digest", str)
"""``sha256:`` and 64 lower-case hex digits."""

NAME_PATTERN = re.compile(r"[a-z0-9](?:[a-z0-9.-]{0,61}[a-z0-9])?\Z")
MADE_PATTERN = re.compile(r"(req|dec|att|usg|ses)_[0-9a-f]{32}\Z")
DIGEST_PATTERN = re.compile(r"sha256:[0-9a-f]{64}\Z")
KEY_ID_PATTERN = re.compile(r"[a-z0-9]{6,32}\Z")
# One text per secret: of the last character of 43, the two unused bits are zero.
_API_KEY = re.compile(r"tg_([a-z0-9]{6,32})_([A-Za-z0-9_-]{42}[AEIMQUYcgkosw048])\Z")
SECRET_BYTES = 32
RANDOM_BYTES = 10


def uuid7_hex(now_ms: int, entropy: bytes) -> str:
    """Return a UUIDv7 as 32 hex digits from Unix milliseconds and ten random bytes (RFC 9562 section 5.7)."""
    if not 0 <= now_ms < 1 << 48:
        raise ValueError("now_ms does not fit in 48 bits")
    if len(entropy) != RANDOM_BYTES:
        raise ValueError(f"a UUIDv7 takes {RANDOM_BYTES} random bytes")
    chance = int.from_bytes(entropy, "big")
    rand_a = chance & 0xFFF
    rand_b = (chance >> 12) & ((1 << 62) - 1)
    value = (now_ms << 80) | (7 << 76) | (rand_a << 64) | (2 << 62) | rand_b
    return f"{value:032x}"


def make_request_id(now_ms: int, entropy: bytes) -> RequestId:
    """Return a new ``req_`` id."""
    return RequestId("req_" + uuid7_hex(now_ms, entropy))


def make_decision_id(now_ms: int, entropy: bytes) -> DecisionId:
    """Return a new ``dec_`` id."""
    return DecisionId("dec_" + uuid7_hex(now_ms, entropy))


def make_attempt_id(now_ms: int, entropy: bytes) -> AttemptId:
    """Return a new ``att_`` id."""
    return AttemptId("att_" + uuid7_hex(now_ms, entropy))


def make_usage_id(now_ms: int, entropy: bytes) -> UsageId:
    """Return a new ``usg_`` id."""
    return UsageId("usg_" + uuid7_hex(now_ms, entropy))


def make_session_id(now_ms: int, entropy: bytes) -> SessionId:
    """Return a new ``ses_`` id."""
    return SessionId("ses_" + uuid7_hex(now_ms, entropy))


def is_name(text: str) -> bool:
    """Whether `text` is a name that people may choose: lower-case letters, digits, dots and hyphens, at most 63."""
    return NAME_PATTERN.match(text) is not None


def is_made(text: str, prefix: str) -> bool:
    """Whether `text` is an id that we make, with this prefix of three letters."""
    return text[:3] == prefix and MADE_PATTERN.match(text) is not None


def is_digest(text: str) -> bool:
    """Whether `text` is a digest in our notation."""
    return DIGEST_PATTERN.match(text) is not None


def digest_of(data: bytes) -> Digest:
    """Return the SHA-256 of `data` in our notation."""
    return Digest("sha256:" + hashlib.sha256(data).hexdigest())


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A parsed API key. The secret itself is not kept, only its SHA-256."""

    key_id: KeyId
    secret_sha256: str

    @staticmethod
    def parse(text: str) -> ApiKey | None:
        """Return the key, or None when `text` does not have the form ``tg_<keyid>_<secret>``."""
        found = _API_KEY.match(text)
        if found is None:
            return None
        key_id, secret = found.groups()
        decoded = binascii.a2b_base64(secret.replace("-", "+").replace("_", "/") + "=")
        return ApiKey(KeyId(key_id), hashlib.sha256(decoded).hexdigest())


def format_api_key(key_id: KeyId, secret: bytes) -> str:
    """Return the text of an API key from its id and 32 secret bytes."""
    if KEY_ID_PATTERN.match(key_id) is None:
        raise ValueError("a key id is 6 to 32 lower-case letters and digits")
    if len(secret) != SECRET_BYTES:
        raise ValueError(f"a secret has {SECRET_BYTES} bytes")
    return f"tg_{key_id}_{base64.urlsafe_b64encode(secret).rstrip(b'=').decode('ascii')}"
