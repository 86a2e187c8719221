"""Revocation lists: what a side takes back at once, ahead of any manifest. Small, signed, numbered. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import msgspec

from orchestrator.bundles.formats import FORMAT_VERSION, Signed, check_named, check_signed, read_canonical
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.roots import Roots, SigningKey
from orchestrator.evidence.canonical import JsonValue, canonical_bytes
from orchestrator.files.fields import Version, Written, read_names
from orchestrator.policy.ids import EdgeId, KeyId, PathwayId, PoolId, SideId, TenantId, digest_of

REVOCATIONS_BYTES_MAX = 256 * 1024
REVOCATIONS_PREFIX = b"tidegate revocations v1\n"


@dataclass(frozen=True, slots=True)
class Revoked:
    """Names that count no longer. `keys` are ids of API keys and of signing keys of edges."""

    tenants: frozenset[TenantId] = frozenset()
    keys: frozenset[KeyId] = frozenset()
    pools: frozenset[PoolId] = frozenset()
    edges: frozenset[EdgeId] = frozenset()
    pathways: frozenset[PathwayId] = frozenset()

    def joined(self, other: Revoked) -> Revoked:
        """Return what either revokes."""
        return Revoked(
            self.tenants | other.tenants,
            self.keys | other.keys,
            self.pools | other.pools,
            self.edges | other.edges,
            self.pathways | other.pathways,
        )

    def without(self, other: Revoked) -> Revoked:
        """Return what this revokes and `other` does not name."""
        return Revoked(
            self.tenants - other.tenants,
            self.keys - other.keys,
            self.pools - other.pools,
            self.edges - other.edges,
            self.pathways - other.pathways,
        )

    def to_json(self) -> dict[str, JsonValue]:
        """Return the names as canonical JSON holds them."""
        return {
            "tenants": list[JsonValue](sorted(self.tenants)),
            "keys": list[JsonValue](sorted(self.keys)),
            "pools": list[JsonValue](sorted(self.pools)),
            "edges": list[JsonValue](sorted(self.edges)),
            "pathways": list[JsonValue](sorted(self.pathways)),
        }


@dataclass(frozen=True, slots=True)
class RevocationList:
    """One numbered list of one side. A side without a list has number 0 and revokes nothing."""

    side: SideId
    number: int
    issued_ms: int
    revoked: Revoked


class _RevokedForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenants: list[str]
    keys: list[str]
    pools: list[str]
    edges: list[str]
    pathways: list[str]


class _ListForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    side: str
    number: int
    issued_ms: int
    revoked: _RevokedForm


class RevocationsDocument(Written, frozen=True):
    """`revocations.yaml` as operators write it: lists of names, each of which may be left out."""

    version: Version
    tenants: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    pools: tuple[str, ...] = ()
    edges: tuple[str, ...] = ()
    pathways: tuple[str, ...] = ()


def revoked_of(document: RevocationsDocument) -> Revoked:
    """Return the names of a document. Raises DomainError."""
    return Revoked(
        frozenset(TenantId(name) for name in read_names(document.tenants, ("tenants",))),
        frozenset(KeyId(name) for name in read_names(document.keys, ("keys",))),
        frozenset(PoolId(name) for name in read_names(document.pools, ("pools",))),
        frozenset(EdgeId(name) for name in read_names(document.edges, ("edges",))),
        frozenset(PathwayId(name) for name in read_names(document.pathways, ("pathways",))),
    )


def nothing_revoked(side: SideId) -> RevocationList:
    """Return the list of a side that never issued one."""
    return RevocationList(side, 0, 0, Revoked())


def joined(lists: Iterable[RevocationList]) -> Revoked:
    """Return what any of these lists revokes."""
    found = Revoked()
    for one in lists:
        found = found.joined(one.revoked)
    return found


def sign_revocations(revocations: RevocationList, key: SigningKey, key_id: KeyId) -> Signed:
    """Return the signed bytes of a list. Raises BundleRefused when it is too large."""
    form: dict[str, JsonValue] = {
        "v": FORMAT_VERSION,
        "side": revocations.side,
        "number": revocations.number,
        "issued_ms": revocations.issued_ms,
        "revoked": revocations.revoked.to_json(),
    }
    body = canonical_bytes(form)
    if len(body) > REVOCATIONS_BYTES_MAX:
        sentence = f"The revocation list has {len(body)} bytes; at most {REVOCATIONS_BYTES_MAX} are allowed."
        raise BundleRefused(RefusalCode.OVERSIZED, sentence)
    signature = key.sign(REVOCATIONS_PREFIX + body)
    return Signed(revocations.side, revocations.number, digest_of(body), body, key_id, signature)


def open_revocations(signed: Signed, roots: Roots, side: SideId) -> RevocationList:
    """Return the list of `side` in these bytes. Raises BundleRefused."""
    what = f"Revocation list {signed.number} of {side}"
    check_signed(signed, roots, side, REVOCATIONS_PREFIX, REVOCATIONS_BYTES_MAX, what)
    form = read_canonical(signed.body, _ListForm, what)
    check_named(what, signed, form.side, form.number)
    revoked = Revoked(
        frozenset(TenantId(name) for name in form.revoked.tenants),
        frozenset(KeyId(name) for name in form.revoked.keys),
        frozenset(PoolId(name) for name in form.revoked.pools),
        frozenset(EdgeId(name) for name in form.revoked.edges),
        frozenset(PathwayId(name) for name in form.revoked.pathways),
    )
    return RevocationList(side, form.number, form.issued_ms, revoked)
