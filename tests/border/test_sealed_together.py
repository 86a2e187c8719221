"""What waits for its record together leaves under one signature; nothing is added to one that was made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from node_agent.border.signer import Sealing, Signer
from orchestrator.bundles.roots import SigningKey
from orchestrator.evidence.attestation import DIGEST_BYTES, SEALED_TOGETHER_MAX, SIGNATURE_BYTES, sealed
from tests.border.edge import Edge

KEY = SigningKey.generate()
STEPS = st.lists(st.none() | st.integers(0, 99), max_size=80)
"""None attests once more; a number has one of those sealed that were attested."""


def sealed_with(given_seal: bytes) -> int:
    return (len(given_seal) - SIGNATURE_BYTES) // DIGEST_BYTES


@given(STEPS)
def test_every_seal_proves_its_own_whatever_is_sealed_when(steps: list[int | None]) -> None:
    signer = Signer(KEY)
    waiting: list[tuple[bytes, Sealing]] = []
    for number, step in enumerate(steps):
        if step is None:
            attestation = b"attestation %d" % number
            waiting.append((attestation, signer.add(attestation)))
        elif waiting:
            attestation, sealing = waiting[step % len(waiting)]
            made = sealing.made or sealing.make()
            assert sealed(KEY.public_key, attestation, made)
            assert sealing.made == made
    for attestation, sealing in waiting:
        assert sealed(KEY.public_key, attestation, sealing.made or sealing.make())


def test_more_than_a_seal_may_carry_take_several() -> None:
    signer = Signer(KEY)
    sealings = [signer.add(b"%d" % number) for number in range(2 * SEALED_TOGETHER_MAX + 1)]
    assert [sealed_with(one.made or one.make()) for one in sealings] == [SEALED_TOGETHER_MAX] * 32 + [1]


async def test_requests_that_come_together_share_a_signature_and_a_later_one_has_its_own(
    make_edge: Callable[..., Edge],
) -> None:
    edge = make_edge()
    await asyncio.gather(*(edge.text(edge.asked("acme-sg")) for _ in range(5)))
    await edge.text(edge.asked("acme-sg"))
    seals = [sendable.signature for _, sendable in edge.routes.sent]
    assert [sealed_with(one) for one in seals] == [5, 5, 5, 5, 5, 1]
    assert len(set(seals)) == 2
