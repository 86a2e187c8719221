"""Digests that say nothing without a secret, and results that nobody reads without the secret and the tenant's own key.

The secret comes from the edge's commitment key, which is mounted and never in the store: destroying it leaves digests
that match nothing and results that stay shut.
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass, field
from hashlib import sha256

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from node_agent.idempotency.rules import BodyDigest, KeyDigest, TenantDigest
from orchestrator.policy.ids import EdgeId, TenantId

NONCE_BYTES = 12


@dataclass(frozen=True, slots=True)
class Sealed:
    """The digests of one request with a key, and the seal of its result."""

    tenant: TenantDigest
    key: KeyDigest
    body: BodyDigest
    _seal: bytes = field(repr=False)

    def shut(self, result: bytes) -> bytes:
        """Return a result as it may lie on a disk."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return nonce + AESGCM(self._seal).encrypt(nonce, result, self.key + self.body)

    def open(self, shut: bytes) -> bytes | None:
        """Return a result that was shut for this key and body, or None for anything else."""
        try:
            return AESGCM(self._seal).decrypt(shut[:NONCE_BYTES], shut[NONCE_BYTES:], self.key + self.body)
        except (InvalidTag, ValueError):
            return None


class Sealer:
    """Makes the digests of one edge."""

    def __init__(self, secret: bytes, region: EdgeId) -> None:
        self._secret = hmac.digest(secret, b"tidegate idempotency 1", "sha256")
        self._region = region

    def key(self, tenant: TenantId, endpoint: str, key: str) -> KeyDigest:
        """Return the digest of a key alone: by it the process is chosen that answers for the key."""
        return KeyDigest(self._keyed(b"key", *self._named(tenant, endpoint, key)))

    def of(self, tenant: TenantId, endpoint: str, key: str, labels: str, body: bytes) -> Sealed:
        """Return the digests of one request. Lengths go in front, so that no two requests read the same."""
        named = self._named(tenant, endpoint, key)
        # The body is hashed first: it is large, and only its digest has to be keyed.
        asked = (labels.encode("latin-1"), sha256(body).digest())
        return Sealed(
            TenantDigest(self._keyed(b"tenant", tenant.encode())),
            KeyDigest(self._keyed(b"key", *named)),
            BodyDigest(self._keyed(b"body", *asked)),
            self._keyed(b"seal", *named),
        )

    def _named(self, tenant: TenantId, endpoint: str, key: str) -> tuple[bytes, ...]:
        return (tenant.encode(), endpoint.encode(), self._region.encode(), key.encode())

    def _keyed(self, purpose: bytes, *parts: bytes) -> bytes:
        said = b"".join(len(part).to_bytes(8, "big") + part for part in (purpose, *parts))
        return hmac.digest(self._secret, said, "sha256")
