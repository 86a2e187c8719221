"""Two sides with keys, and what they sign: small documents that every test can change."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from orchestrator.bundles.formats import (
    ImportEntry,
    Manifest,
    Section,
    SectionEntry,
    SectionKind,
    Signed,
    build_section,
    sign_manifest,
    sign_section,
)
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.revocations import RevocationList, Revoked, sign_revocations
from orchestrator.bundles.roots import Root, Roots, SigningKey, key_id_of
from orchestrator.bundles.store import BundleStore
from orchestrator.policy.bundle import Horizons
from orchestrator.policy.ids import Digest, SideId
from orchestrator.policy.jurisdictions import expand
from orchestrator.policy.permit import PERMIT_VERSION

NOW_MS = 1_790_000_000_000
MODEL = "demo"

Document = dict[str, Any]
File = tuple[SectionKind, str, Document]


@dataclass(frozen=True)
class Side:
    """A side that can sign."""

    name: SideId
    key: SigningKey
    root: Root
    files: tuple[File, ...]
    """Its sections as an operator would publish them."""


@dataclass(frozen=True)
class Issue:
    """A signed manifest with the bodies of its own side's sections."""

    manifest: Manifest
    signed: Signed
    bodies: dict[Digest, bytes] = field(repr=False)


def make_side(name: str, jurisdictions: tuple[str, ...], files: Sequence[File]) -> Side:
    key = SigningKey.generate()
    root = Root(SideId(name), key_id_of(key.public_key), key.public_key, expand(jurisdictions))
    return Side(SideId(name), key, root, tuple(files))


def overseas() -> Side:
    files = [
        (SectionKind.PACK, "eu", pack("eu-transfer", ["EEA"], "EU", target=["DE", "SG"])),
        (SectionKind.FLEET, "fleet", fleet("sg-edge", "sg-pool", "SG", "harbour-sg")),
        (SectionKind.PRICES, "prices", prices("sg-pool")),
        (SectionKind.SETTINGS, "settings", placement_settings()),
        (SectionKind.TENANTS, "tenants", tenants("acme")),
    ]
    return make_side("overseas", ("EEA", "SG"), files)


def domestic() -> Side:
    files = [
        (SectionKind.PACK, "cn", pack("cn-import", ["CN"], "CN", target=["CN"])),
        (SectionKind.FLEET, "fleet", fleet("cn-edge", "cn-pool", "CN", "river-cn")),
        (SectionKind.PRICES, "prices", prices("cn-pool")),
        (SectionKind.SETTINGS, "settings", placement_settings()),
        (SectionKind.TENANTS, "tenants", tenants("river")),
    ]
    return make_side("domestic", ("CN",), files)


def pack(name: str, jurisdictions: list[str], prefix: str, *, target: list[str], effect: str = "grant") -> Document:
    """A pack of one rule: public payloads may go to `target`."""
    rule: Document = {
        "id": f"{prefix}-PUBLIC-1",
        "effect": effect,
        "when": [{"grade": {"at_most": "public"}}, {"target": {"within": target}}],
        "sentence": "Public data may go there.",
        "source": {"instrument": "Test Act", "article": "1", "dated": "2026-01-01"},
        "confidence": "high",
        "vectors": [
            {
                "label": {"personal": "none", "grade": "public"},
                "from": ["DE"],
                "target": [target[0]],
                "action": "infer",
                "expect": "holds",
            },
            {
                "label": {"personal": "none", "grade": "core"},
                "from": ["DE"],
                "target": [target[0]],
                "action": "infer",
                "expect": "not",
            },
        ],
    }
    return {
        "version": 1,
        "id": name,
        "title": "A pack for tests",
        "topic": "transfers",
        "jurisdictions": jurisdictions,
        "effective_from": "2026-01-01",
        "mode": "enforce",
        "rules": [rule],
    }


def fleet(edge: str, pool: str, country: str, operator: str) -> Document:
    place = {"infers": [country], "operator": operator}
    served = {
        "id": MODEL,
        "context_tokens": 4096,
        "capabilities": ["chat", "stream"],
        "prefill_us_per_token": 100,
        "decode_us_per_token": 10_000,
    }
    return {
        "version": 1,
        "entities": [{"id": operator, "country": country}],
        "edges": [
            {
                "id": edge,
                "region": f"{country.lower()}-1",
                "place": place,
                "keys": [{"id": f"{edge}-1", "public_key": base64.b64encode(bytes(32)).decode()}],
            }
        ],
        "pools": [
            {
                "id": pool,
                "region": f"{country.lower()}-1",
                "accelerator": "cpu",
                "place": place,
                "assurance": "two-party",
                "models": [served],
                "slots": 4,
                "scheduler": f"{pool}-scheduler",
                "intake": "127.0.0.1:9",
            }
        ],
    }


def prices(pool: str) -> Document:
    amounts = {"input_per_million": "0.1", "cached_per_million": "0.05", "output_per_million": "0.2"}
    cost = {"pool": pool, "model": MODEL, "currency": "USD", **amounts, "egress_per_gb": "0.09"}
    book = {"id": "standard", "prices": [{"model": MODEL, "currency": "USD", **amounts}]}
    return {"version": 1, "costs": [cost], "books": [book]}


def placement_settings() -> Document:
    return {
        "version": 1,
        "currency": "USD",
        "value_of_time_per_second": "0.0001",
        "late_price_per_second": "0.001",
        "slo_first_ms": 2000,
        "slo_token_ms": 100,
        "epsilon_ppm": 20_000,
        "unknown_rtt_ms": 300,
        "expected_output_tokens": 256,
    }


def tenants(name: str) -> Document:
    tenant = {
        "id": name,
        "entity": {"id": f"{name}-gmbh", "country": "DE"},
        "keys": [{"id": f"{name}key1".replace("-", ""), "sha256": "0" * 64}],
        "attested": {"personal": "none", "grade": "public", "origin": ["DE"]},
        "models": [MODEL],
        "edges": ["sg-edge"],
        "price_book": "standard",
    }
    return {"version": 1, "tenants": [tenant]}


def roots_of(*sides: Side) -> Roots:
    return Roots(side.root for side in sides)


def entries_of(side: Side, files: Sequence[File] | None = None) -> list[tuple[SectionEntry, Section]]:
    """Sign sections as their side does."""
    sections = [build_section(side.name, kind, name, document) for kind, name, document in files or side.files]
    return [(sign_section(section, side.key, side.root.key_id), section) for section in sections]


def issue(
    side: Side,
    number: int,
    *,
    files: Sequence[File] | None = None,
    imported: Issue | None = None,
    issued_ms: int = NOW_MS,
    horizons: Horizons | None = None,
    revocations: int = 0,
    permit_version: int = PERMIT_VERSION,
) -> Issue:
    """Issue a manifest over the side's sections, and what `imported` exports."""
    own = entries_of(side, files)
    entries = [entry for entry, _ in own]
    imports: tuple[ImportEntry, ...] = ()
    if imported is not None:
        entries += imported.manifest.exported()
        theirs = imported.manifest
        imports = (ImportEntry(theirs.side, theirs.number, imported.signed.digest, theirs.horizons),)
    manifest = Manifest(
        side=side.name,
        number=number,
        issued_ms=issued_ms,
        horizons=horizons or Horizons.from_issue(issued_ms),
        permit_version=permit_version,
        sections=tuple(sorted(entries, key=SectionEntry.order)),
        imports=imports,
        revocations=revocations,
    )
    signed = sign_manifest(manifest, side.key, side.root.key_id)
    return Issue(manifest, signed, {section.digest: section.body for _, section in own})


def revoke(side: Side, number: int, revoked: Revoked) -> Signed:
    return sign_revocations(RevocationList(side.name, number, NOW_MS, revoked), side.key, side.root.key_id)


def holdings_in(folder: Path, side: Side, *others: Side) -> Holdings:
    """What a program of `side` holds in a folder, taken up from the disk."""
    roots = roots_of(side, *others)
    holdings = Holdings(side.name, BundleStore(folder, roots), roots)
    holdings.load()
    return holdings


def take(holdings: Holdings, issued: Issue, *more: Issue, now_ms: int = NOW_MS) -> None:
    """Take a manifest as a follower does: check, bodies, accept."""
    manifest = holdings.check(issued.signed, now_ms)
    if manifest is None:
        return
    bodies = {digest: body for one in (issued, *more) for digest, body in one.bodies.items()}
    for entry in holdings.missing(manifest):
        if entry.digest in bodies:
            holdings.keep_section(entry, bodies[entry.digest])
    holdings.accept(manifest, issued.signed, now_ms)
