"""Seals of an edge on what it attests: one Ed25519 signature (RFC 8032) over a few attestations that leave together.

A signature costs more processor time than a permit, and checking it three times that. So an edge signs the digests of
all attestations that wait for their records together at once, and a seal is that signature with those digests: each
proves its own attestation, and says nothing of the others but a digest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from hashlib import sha256

from orchestrator.evidence.signing import verify

SEALED_TOGETHER_MAX = 16
"""Attestations under one signature. Every seal carries the digests of all of them."""
SEAL_PREFIX = b"tidegate seal v1\n"
SIGNATURE_BYTES = 64
DIGEST_BYTES = 32
CHECKED_MAX = 1024
"""Signatures whose check is remembered: what was sealed together shares its own."""


def seal(sign: Callable[[bytes], bytes], attestations: Sequence[bytes]) -> list[bytes]:
    """Return the seal of each attestation, in order. Raises ValueError when there are none or too many."""
    if not 0 < len(attestations) <= SEALED_TOGETHER_MAX:
        raise ValueError(f"a signature seals 1 to {SEALED_TOGETHER_MAX} attestations")
    digests = b"".join([sha256(attestation).digest() for attestation in attestations])
    return [sign(SEAL_PREFIX + digests) + digests] * len(attestations)


def sealed(public_key: bytes, attestation: bytes, given: bytes) -> bool:
    """Whether `given` is a seal of the key on this attestation. Malformed: no."""
    signature, digests = given[:SIGNATURE_BYTES], given[SIGNATURE_BYTES:]
    size_bytes = len(digests)
    if size_bytes % DIGEST_BYTES or not 0 < size_bytes <= SEALED_TOGETHER_MAX * DIGEST_BYTES:
        return False
    own = sha256(attestation).digest()
    at = digests.find(own)
    while at % DIGEST_BYTES and at >= 0:  # bytes of two neighbours
        at = digests.find(own, at + 1)
    return at >= 0 and _signed(public_key, digests, signature)


@lru_cache(maxsize=CHECKED_MAX)
def _signed(public_key: bytes, digests: bytes, signature: bytes) -> bool:
    return verify(public_key, SEAL_PREFIX + digests, signature)
