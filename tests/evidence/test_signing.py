"""Signatures: those of RFC 8032 hold, what another library signs holds, and nothing malformed or weak does."""

from __future__ import annotations

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.bundles.roots import SigningKey
from orchestrator.evidence.signing import verify

RFC_8032 = [
    (  # 7.1, test 1
        "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60",
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a",
        "",
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e065224901555fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe2465"
        "5141438e7a100b",
    ),
    (  # 7.1, test 3
        "c5aa8df43f9f837bedb7442f31dcb7b166d38535076f094b85ce3a2e0b4458f7",
        "fc51cd8e6218a1a38da47ed00230f0580816ed13ba3303ac5deb911548908025",
        "af82",
        "6291d657deec24024827e69c3abe01a30ce548a284743a445e3680d7db5ac3ac18ff9b538d16f290ae67f760984dc6594a7c15e9716ed28dc0"
        "27beceea1ec40a",
    ),
]
SEEDS = st.binary(min_size=32, max_size=32)
NEUTRAL = bytes([1]) + bytes(31)
"""The neutral element of the curve, a point of order 1."""


@pytest.mark.parametrize(("seed", "public", "message", "signature"), RFC_8032)
def test_the_vectors_of_the_rfc_hold(seed: str, public: str, message: str, signature: str) -> None:
    key = SigningKey(bytes.fromhex(seed))
    assert key.public_key.hex() == public
    assert key.sign(bytes.fromhex(message)).hex() == signature
    assert verify(key.public_key, bytes.fromhex(message), bytes.fromhex(signature))


@given(SEEDS, st.binary(max_size=200))
def test_two_libraries_sign_alike_and_check_each_other(seed: bytes, message: bytes) -> None:
    theirs = Ed25519PrivateKey.from_private_bytes(seed)
    signature = SigningKey(seed).sign(message)
    assert signature == theirs.sign(message)
    assert verify(theirs.public_key().public_bytes_raw(), message, signature)


@given(SEEDS, st.binary(max_size=200), st.data())
def test_a_changed_signature_does_not_hold(seed: bytes, message: bytes, data: st.DataObject) -> None:
    key = SigningKey(seed)
    made = bytearray(key.sign(message))
    made[data.draw(st.integers(0, 63))] ^= data.draw(st.integers(1, 255))
    assert not verify(key.public_key, message, bytes(made))


@given(st.binary(max_size=70), st.binary(max_size=70))
def test_what_is_malformed_does_not_hold(public: bytes, signature: bytes) -> None:
    assert not verify(public, b"message", signature)


def test_a_key_of_small_order_proves_nothing() -> None:
    # With R the neutral element and S zero the equation of RFC 8032, 5.1.7, holds for every message: OpenSSL says yes.
    assert not verify(NEUTRAL, b"any message", NEUTRAL + bytes(32))
