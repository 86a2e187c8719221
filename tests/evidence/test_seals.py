"""Seals: one signature over what leaves together, and each proves its own attestation alone."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bundles.roots import SigningKey
from orchestrator.evidence.attestation import SEAL_PREFIX, SEALED_TOGETHER_MAX, seal, sealed

KEY, OTHER = SigningKey.generate(), SigningKey.generate()
FEW = st.lists(st.binary(max_size=40), min_size=1, max_size=SEALED_TOGETHER_MAX)


@given(FEW)
def test_every_seal_proves_its_own_attestation(attestations: list[bytes]) -> None:
    for attestation, given_seal in zip(attestations, seal(KEY.sign, attestations), strict=True):
        assert sealed(KEY.public_key, attestation, given_seal)
        assert not sealed(OTHER.public_key, attestation, given_seal)


@given(FEW, st.binary(max_size=40))
def test_a_seal_proves_nothing_else(attestations: list[bytes], other: bytes) -> None:
    assert sealed(KEY.public_key, other, seal(KEY.sign, attestations)[0]) == (other in attestations)


@given(FEW, st.data())
def test_a_changed_seal_proves_nothing(attestations: list[bytes], data: st.DataObject) -> None:
    made = bytearray(seal(KEY.sign, attestations)[0])
    at = data.draw(st.integers(0, len(made) - 1))
    made[at] ^= data.draw(st.integers(1, 255))
    assert not any(sealed(KEY.public_key, attestation, bytes(made)) for attestation in attestations)


@pytest.mark.parametrize("cut", [0, 1, 63, 64, 65, 95])
def test_a_seal_that_is_cut_is_none(cut: int) -> None:
    assert not sealed(KEY.public_key, b"attestation", seal(KEY.sign, [b"attestation"])[0][:cut])


def test_a_digest_that_was_added_is_not_sealed() -> None:
    made = seal(KEY.sign, [b"one"])[0] + sha256(b"two").digest()
    assert not sealed(KEY.public_key, b"two", made)
    assert not sealed(KEY.public_key, b"one", made)


@pytest.mark.parametrize("at", [1, 16, 31])
def test_a_digest_is_found_only_in_its_place(at: int) -> None:
    own = sha256(b"attestation").digest()
    across = bytes(at) + own + bytes(32 - at)
    assert not sealed(KEY.public_key, b"attestation", KEY.sign(SEAL_PREFIX + across) + across)
    assert sealed(KEY.public_key, b"attestation", KEY.sign(SEAL_PREFIX + across + own) + across + own)


def test_no_more_are_sealed_together_than_a_seal_may_carry() -> None:
    with pytest.raises(ValueError, match="1 to 16"):
        seal(KEY.sign, [b"attestation"] * (SEALED_TOGETHER_MAX + 1))
    with pytest.raises(ValueError, match="1 to 16"):
        seal(KEY.sign, [])
