"""Roots: the pinned keys of the sides, and under whose law each may grant. The one place that signs and checks here.

A root is pinned in the configuration of every program. What is signed by no pinned root does not exist for us, and a
pack's grants count only for jurisdictions that its signer's root names: the other side can add a forbid to our law,
never a grant.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, load_pem_private_key
from nacl import signing

from orchestrator.evidence.signing import verify
from orchestrator.policy.ids import KEY_ID_PATTERN, KeyId, SideId, digest_of, is_name
from orchestrator.policy.jurisdictions import Jurisdiction, expand

PUBLIC_KEY_BYTES = 32
KEY_ID_CHARS = 16


@dataclass(frozen=True, slots=True)
class Root:
    """A pinned public key of one side."""

    side: SideId
    key_id: KeyId
    public_key: bytes
    """32 bytes, Ed25519."""
    jurisdictions: frozenset[Jurisdiction]
    """The soil of the side: under whose law its packs may grant, and where its fleet may stand."""

    @staticmethod
    def parse(side: str, public_key: str, jurisdictions: Iterable[str], key_id: str = "") -> Root:
        """Return a root from configuration: base64 key, codes or names of groups. Raises ValueError with a sentence.

        Without `key_id` the id is that of `key_id_of`.
        """
        if not is_name(side):
            raise ValueError("a side is a short lower-case name")
        try:
            key = base64.b64decode(public_key, validate=True)
        except (binascii.Error, ValueError):
            raise ValueError("a public key is base64") from None
        if len(key) != PUBLIC_KEY_BYTES:
            raise ValueError(f"a public key has {PUBLIC_KEY_BYTES} bytes")
        chosen = KeyId(key_id) if key_id else key_id_of(key)
        if KEY_ID_PATTERN.match(chosen) is None:
            raise ValueError("a key id is 6 to 32 lower-case letters and digits")
        return Root(SideId(side), chosen, key, expand(tuple(jurisdictions)))

    def signed(self, message: bytes, signature: bytes) -> bool:
        """Whether `signature` is this root's over `message`."""
        return verify(self.public_key, message, signature)


class Roots:
    """Every pinned root. A side may have two while a key is rotated."""

    __slots__ = ("_by_key", "sides")

    def __init__(self, roots: Iterable[Root]) -> None:
        self._by_key = {(root.side, root.key_id): root for root in roots}
        self.sides = frozenset(side for side, _ in self._by_key)

    def find(self, side: SideId, key_id: KeyId) -> Root | None:
        """Return the root of that side with that id, or None."""
        return self._by_key.get((side, key_id))

    def own(self, side: SideId, public_key: bytes) -> Root | None:
        """Return the root of `side` with this public key, or None."""
        found = (root for root in self._by_key.values() if root.side == side and root.public_key == public_key)
        return next(found, None)


class RootSetting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A pinned root in the configuration of a program."""

    side: str
    public_key: str
    """32 bytes in base64, Ed25519."""
    jurisdictions: tuple[str, ...]
    """Codes, or names of groups."""
    key_id: str = ""
    """Left out: the start of the key's SHA-256."""


def pinned(settings: Sequence[RootSetting]) -> Roots:
    """Return the roots of a configuration. Raises ValueError with a sentence."""
    return Roots(Root.parse(one.side, one.public_key, one.jurisdictions, one.key_id) for one in settings)


class SigningKey:
    """The private half of a root, made from its `seed` (32 bytes, RFC 8032, 5.1.5). Its repr holds nothing of it."""

    __slots__ = ("_private", "public_key")

    def __init__(self, seed: bytes) -> None:
        self._private = signing.SigningKey(seed)
        self.public_key = bytes(self._private.verify_key)

    @staticmethod
    def generate() -> SigningKey:
        """Return a new key."""
        return SigningKey(bytes(signing.SigningKey.generate()))

    @staticmethod
    def from_pem(text: str) -> SigningKey:
        """Return the key of a PKCS 8 PEM text. Raises ValueError, which holds none of it."""
        key: object = None
        try:
            key = load_pem_private_key(text.encode("ascii"), password=None)
        except (ValueError, TypeError, UnicodeEncodeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError("expected an unencrypted Ed25519 private key in PEM (PKCS 8)")
        return SigningKey(key.private_bytes_raw())

    def sign(self, message: bytes) -> bytes:
        """Return the 64 bytes of an Ed25519 signature."""
        return self._private.sign(message).signature

    def write(self, path: Path) -> None:
        """Write the key to a new file that only this user can read. Raises FileExistsError and other OSErrors."""
        private = Ed25519PrivateKey.from_private_bytes(bytes(self._private))
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb") as file:
            file.write(pem)
            file.flush()
            os.fsync(descriptor)

    def __repr__(self) -> str:
        return f"SigningKey({key_id_of(self.public_key)})"


def key_id_of(public_key: bytes) -> KeyId:
    """Return the id that a public key has when nobody chose one: the start of its SHA-256."""
    return KeyId(digest_of(public_key).removeprefix("sha256:")[:KEY_ID_CHARS])
