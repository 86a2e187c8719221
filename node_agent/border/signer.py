"""Signs what the edge attests: whatever waits for its record at one time, under one signature.

Only what is recorded leaves. Whose record is kept first has all signed that were attested by then, so that what one
turn of the loop or one wait for the disk brings together costs one signature, and nobody waits for that alone.
"""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.bundles.roots import SigningKey
from orchestrator.evidence.attestation import SEALED_TOGETHER_MAX, seal


class Sealing:
    """Attestations under one signature, which is made when the first of them is to leave."""

    __slots__ = ("_attestations", "_sign", "made")

    def __init__(self, sign: Callable[[bytes], bytes], attestations: list[bytes]) -> None:
        self.made: bytes | None = None
        """The seal of each of them, one and the same: it holds the digests of all. None until it is made."""
        self._sign = sign
        self._attestations = attestations

    def make(self) -> bytes:
        """Sign them, and return what was made. Nothing is attested under it any more."""
        self.made = seal(self._sign, self._attestations)[0]
        return self.made


class Signer:
    """Seals attestations of one edge."""

    def __init__(self, key: SigningKey) -> None:
        self._sign = key.sign
        self._waiting: list[bytes] = []  # bounded: SEALED_TOGETHER_MAX
        """What is under `_sealing`."""
        self._sealing = Sealing(self._sign, self._waiting)

    def add(self, attestation: bytes) -> Sealing:
        """Return what seals one attestation, and others that wait with it."""
        if self._sealing.made is not None or len(self._waiting) == SEALED_TOGETHER_MAX:
            self._waiting = []
            self._sealing = Sealing(self._sign, self._waiting)
        self._waiting.append(attestation)
        return self._sealing
