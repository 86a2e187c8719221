"""Signs what the edge attests: whatever is ready in one turn of the loop, under one signature."""

from __future__ import annotations

import asyncio

from orchestrator.bundles.roots import SigningKey
from orchestrator.evidence.attestation import SEALED_TOGETHER_MAX, seal


class Signer:
    """Seals attestations of one edge, in its event loop."""

    def __init__(self, key: SigningKey) -> None:
        self._key = key
        self._waiting: list[tuple[bytes, asyncio.Future[bytes]]] = []  # bounded: SEALED_TOGETHER_MAX

    def seal(self, attestation: bytes) -> asyncio.Future[bytes]:
        """Return the seal of one attestation: it is there at the end of this turn of the loop."""
        done: asyncio.Future[bytes] = asyncio.Future()
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._seal)
        self._waiting.append((attestation, done))
        if len(self._waiting) == SEALED_TOGETHER_MAX:
            self._seal()
        return done

    def _seal(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        seals = seal(self._key.sign, [attestation for attestation, _ in waiting])
        for (_, done), made in zip(waiting, seals, strict=True):
            if not done.done():
                done.set_result(made)
