"""Sections and manifests: their bytes, how they are signed and what makes one acceptable. Pure.

Everything is canonical JSON (RFC 8785) with a version, under an Ed25519 signature over a prefix that says what kind of
thing is signed. Parsing is strict: another spelling of the same value, an unknown field or an unknown version is
refused, never repaired.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise
from typing import TypeVar, cast

import msgspec

from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.roots import Root, Roots, SigningKey
from orchestrator.evidence.canonical import INTEGER_MAX, JsonValue, canonical_bytes
from orchestrator.files.strict_json import RequestError, parse_strict
from orchestrator.files.typed import Misfit, fit
from orchestrator.policy.bundle import Horizons
from orchestrator.policy.ids import Digest, KeyId, SideId, digest_of, is_digest, is_name

FORMAT_VERSION = 1
SECTION_BYTES_MAX = 256 * 1024
MANIFEST_BYTES_MAX = 768 * 1024
SECTIONS_MAX = 1500
"""What fits into a manifest of the largest size, with room."""
SECTION_PREFIX = b"tidegate section v1\n"
MANIFEST_PREFIX = b"tidegate manifest v1\n"

T = TypeVar("T")


class SectionKind(Enum):
    """What a section holds."""

    PACK = "pack"
    TENANTS = "tenants"
    FLEET = "fleet"
    PRICES = "prices"
    SETTINGS = "settings"


EXPORTED = frozenset({SectionKind.PACK, SectionKind.FLEET, SectionKind.PRICES})
"""The kinds whose bodies cross the border. Of the others the other side sees digests."""


@dataclass(frozen=True, slots=True)
class Signed:
    """The bytes of a manifest or a revocation list on their way: nothing in it has been checked."""

    side: SideId
    number: int
    digest: Digest
    body: bytes = field(repr=False)
    key_id: KeyId
    signature: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Section:
    """One document of one side. `body` is its canonical bytes, `digest` their SHA-256."""

    side: SideId
    kind: SectionKind
    name: str
    document: dict[str, JsonValue] = field(repr=False)
    body: bytes = field(repr=False)
    digest: Digest


@dataclass(frozen=True, slots=True)
class SectionEntry:
    """How a manifest names a section."""

    kind: SectionKind
    name: str
    side: SideId
    digest: Digest
    size_bytes: int
    key_id: KeyId
    signature: bytes = field(repr=False)

    @property
    def title(self) -> str:
        """The section as sentences call it."""
        return f"{self.kind.value}/{self.name} of {self.side}"

    def order(self) -> tuple[str, str, str]:
        """The place of the entry in a manifest."""
        return (self.kind.value, self.side, self.name)


@dataclass(frozen=True, slots=True)
class ImportEntry:
    """From which manifest of the other side the imported sections come, with that manifest's own horizons."""

    side: SideId
    number: int
    digest: Digest
    horizons: Horizons


@dataclass(frozen=True, slots=True)
class Manifest:
    """A numbered list of the sections of a side, own and imported."""

    side: SideId
    number: int
    issued_ms: int
    horizons: Horizons
    """Of this manifest alone: see `effective_horizons`."""
    permit_version: int
    sections: tuple[SectionEntry, ...]
    imports: tuple[ImportEntry, ...]
    revocations: int
    """Number of the revocation list that the side had when it issued the manifest; 0 for none."""

    def effective_horizons(self) -> Horizons:
        """Return the earliest of its own horizons and those of its imports."""
        horizons = self.horizons
        for entry in self.imports:
            horizons = horizons.within(entry.horizons)
        return horizons

    def own_sections(self) -> tuple[SectionEntry, ...]:
        """Return the entries that its own side signed."""
        return tuple(entry for entry in self.sections if entry.side == self.side)

    def exported(self) -> tuple[SectionEntry, ...]:
        """Return the entries of its own side whose bodies may cross the border."""
        return tuple(entry for entry in self.own_sections() if entry.kind in EXPORTED)

    def needed(self, law_only: bool) -> tuple[SectionEntry, ...]:
        """Return the entries whose bodies a reader needs: all, or those that `permit` and placement rest on."""
        return tuple(entry for entry in self.sections if not law_only or entry.kind in EXPORTED)


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class _SectionForm(_Strict, frozen=True):
    v: int
    side: str
    kind: SectionKind
    name: str
    document: dict[str, object]


class _EntryForm(_Strict, frozen=True):
    kind: SectionKind
    name: str
    side: str
    digest: str
    size_bytes: int
    key_id: str
    signature: str


class _ImportForm(_Strict, frozen=True):
    side: str
    number: int
    digest: str
    fresh_until_ms: int
    regulated_until_ms: int
    not_after_ms: int


class _ManifestForm(_Strict, frozen=True):
    v: int
    side: str
    number: int
    issued_ms: int
    fresh_until_ms: int
    regulated_until_ms: int
    not_after_ms: int
    permit_version: int
    sections: list[_EntryForm]
    imports: list[_ImportForm]
    revocations: int


def build_section(side: SideId, kind: SectionKind, name: str, document: dict[str, JsonValue]) -> Section:
    """Return a section of `side`. Raises BundleRefused when it is too large, or cannot be written canonically."""
    if not is_name(name):
        raise BundleRefused(RefusalCode.MALFORMED, "The name of a section is a short lower-case name.")
    form: dict[str, JsonValue] = {
        "v": FORMAT_VERSION,
        "side": side,
        "kind": kind.value,
        "name": name,
        "document": document,
    }
    try:
        body = canonical_bytes(form)
    except ValueError as failure:
        raise BundleRefused(RefusalCode.MALFORMED, f"Section {kind.value}/{name}: {failure}.") from None
    if len(body) > SECTION_BYTES_MAX:
        sentence = f"Section {kind.value}/{name} has {len(body)} bytes; at most {SECTION_BYTES_MAX} are allowed."
        raise BundleRefused(RefusalCode.OVERSIZED, sentence)
    return Section(side, kind, name, document, body, digest_of(body))


def sign_section(section: Section, key: SigningKey, key_id: KeyId) -> SectionEntry:
    """Return the entry that a manifest of the section's own side has for it."""
    signature = key.sign(SECTION_PREFIX + section.body)
    return SectionEntry(section.kind, section.name, section.side, section.digest, len(section.body), key_id, signature)


def open_section(entry: SectionEntry, body: bytes, roots: Roots) -> Section:
    """Return the section behind a manifest's entry. Raises BundleRefused unless digest, signature and body agree."""
    if len(body) > SECTION_BYTES_MAX or entry.size_bytes > SECTION_BYTES_MAX:
        raise BundleRefused(RefusalCode.OVERSIZED, f"Section {entry.title} is larger than {SECTION_BYTES_MAX} bytes.")
    if len(body) != entry.size_bytes or digest_of(body) != entry.digest:
        raise BundleRefused(RefusalCode.DIGEST_MISMATCH, f"Section {entry.title} is not what the manifest names.")
    what = f"Section {entry.title}"
    _check_signature(roots, entry.side, entry.key_id, SECTION_PREFIX + body, entry.signature, what)
    form = _read(body, _SectionForm, what)
    if form.side != entry.side:
        raise BundleRefused(RefusalCode.WRONG_SIDE, f"{what} says that it is of another side.")
    if form.kind is not entry.kind or form.name != entry.name:
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} says that it is another section.")
    document = cast(dict[str, JsonValue], form.document)
    return Section(entry.side, entry.kind, entry.name, document, body, entry.digest)


def manifest_to_json(manifest: Manifest) -> dict[str, JsonValue]:
    """Return a manifest as canonical JSON holds it."""
    return {
        "v": FORMAT_VERSION,
        "side": manifest.side,
        "number": manifest.number,
        "issued_ms": manifest.issued_ms,
        **_horizons_to_json(manifest.horizons),
        "permit_version": manifest.permit_version,
        "sections": [
            {
                "kind": entry.kind.value,
                "name": entry.name,
                "side": entry.side,
                "digest": entry.digest,
                "size_bytes": entry.size_bytes,
                "key_id": entry.key_id,
                "signature": base64.b64encode(entry.signature).decode("ascii"),
            }
            for entry in manifest.sections
        ],
        "imports": [
            {"side": entry.side, "number": entry.number, "digest": entry.digest, **_horizons_to_json(entry.horizons)}
            for entry in manifest.imports
        ],
        "revocations": manifest.revocations,
    }


def sign_manifest(manifest: Manifest, key: SigningKey, key_id: KeyId) -> Signed:
    """Return the signed bytes of a manifest. Raises BundleRefused when it is too large."""
    body = canonical_bytes(manifest_to_json(manifest))
    if len(body) > MANIFEST_BYTES_MAX or len(manifest.sections) > SECTIONS_MAX:
        sentence = f"The manifest is too large: at most {SECTIONS_MAX} sections and {MANIFEST_BYTES_MAX} bytes."
        raise BundleRefused(RefusalCode.OVERSIZED, sentence)
    signature = key.sign(MANIFEST_PREFIX + body)
    return Signed(manifest.side, manifest.number, digest_of(body), body, key_id, signature)


def open_manifest(signed: Signed, roots: Roots, side: SideId) -> Manifest:
    """Return the manifest of `side` in these bytes. Raises BundleRefused.

    Whether it has expired, or is older than one held before, is for the reader to judge: that needs a clock and a
    store.
    """
    what = f"Manifest {signed.number} of {side}"
    check_signed(signed, roots, side, MANIFEST_PREFIX, MANIFEST_BYTES_MAX, what)
    form = _read(signed.body, _ManifestForm, what)
    check_named(what, signed, form.side, form.number)
    horizons = _horizons(form, form.issued_ms, what)
    manifest = Manifest(
        side,
        form.number,
        form.issued_ms,
        horizons,
        form.permit_version,
        tuple(_entry(entry, what) for entry in form.sections),
        tuple(_import(entry, what) for entry in form.imports),
        form.revocations,
    )
    _check_manifest(manifest, what)
    return manifest


def check_signed(signed: Signed, roots: Roots, side: SideId, prefix: bytes, bytes_max: int, what: str) -> None:
    """Check size, digest, side and signature of signed bytes. Raises BundleRefused."""
    if len(signed.body) > bytes_max:
        raise BundleRefused(RefusalCode.OVERSIZED, f"{what} is larger than {bytes_max} bytes.")
    if signed.side != side:
        raise BundleRefused(RefusalCode.WRONG_SIDE, f"{what} was sent as one of another side.")
    if digest_of(signed.body) != signed.digest:
        raise BundleRefused(RefusalCode.DIGEST_MISMATCH, f"{what} does not have the digest that it was sent with.")
    _check_signature(roots, side, signed.key_id, prefix + signed.body, signed.signature, what)


def check_named(what: str, signed: Signed, side: str, number: int) -> None:
    """Check that a body says of itself what its envelope says. Raises BundleRefused."""
    if side != signed.side:
        raise BundleRefused(RefusalCode.WRONG_SIDE, f"{what} says that it is of another side.")
    if number != signed.number or not 1 <= number <= INTEGER_MAX:
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} says that it has another number.")


def read_canonical(body: bytes, type_: type[T], what: str) -> T:
    """Return canonical JSON of version 1 as `type_`. Raises BundleRefused."""
    return _read(body, type_, what)


def _read(body: bytes, type_: type[T], what: str) -> T:
    reason = ""
    value: object = None
    try:
        value = parse_strict(body)
    except RequestError as failure:
        reason = failure.code
    if not isinstance(value, dict):
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} is no JSON object{reason and f' ({reason})'}.")
    if value.get("v") != FORMAT_VERSION or isinstance(value.get("v"), bool):
        raise BundleRefused(RefusalCode.UNKNOWN_VERSION, f"{what} is not of version {FORMAT_VERSION}.")
    try:
        canonical = canonical_bytes(value) == body
    except ValueError:
        canonical = False
    if not canonical:
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} is not in canonical form.")
    try:
        return fit(value, type_)
    except Misfit as misfit:
        reason = str(misfit)
    raise BundleRefused(RefusalCode.MALFORMED, f"{what}: {reason}.")


def _check_signature(roots: Roots, side: SideId, key_id: KeyId, message: bytes, signature: bytes, what: str) -> Root:
    root = roots.find(side, key_id)
    if root is None:
        raise BundleRefused(RefusalCode.UNKNOWN_KEY, f"{what} is signed by no pinned root of {side}.")
    if not root.signed(message, signature):
        raise BundleRefused(RefusalCode.BAD_SIGNATURE, f"{what} does not have a valid signature.")
    return root


def _horizons_to_json(horizons: Horizons) -> dict[str, JsonValue]:
    return {
        "fresh_until_ms": horizons.fresh_until_ms,
        "regulated_until_ms": horizons.regulated_until_ms,
        "not_after_ms": horizons.not_after_ms,
    }


def _horizons(form: _ManifestForm | _ImportForm, issued_ms: int, what: str) -> Horizons:
    found = Horizons(form.fresh_until_ms, form.regulated_until_ms, form.not_after_ms)
    if not 0 <= issued_ms < found.fresh_until_ms <= found.regulated_until_ms <= found.not_after_ms:
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} has horizons that are not in order.")
    return found


def _entry(form: _EntryForm, what: str) -> SectionEntry:
    try:
        signature = base64.b64decode(form.signature, validate=True)
    except (binascii.Error, ValueError):
        signature = b""
    if not is_digest(form.digest) or not is_name(form.name) or form.size_bytes < 1 or not signature:
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} names a section without name, digest, size or signature.")
    return SectionEntry(
        form.kind,
        form.name,
        SideId(form.side),
        Digest(form.digest),
        form.size_bytes,
        KeyId(form.key_id),
        signature,
    )


def _import(form: _ImportForm, what: str) -> ImportEntry:
    if not is_digest(form.digest) or form.number < 1:
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} has an import without number or digest.")
    return ImportEntry(SideId(form.side), form.number, Digest(form.digest), _horizons(form, 0, what))


def _check_manifest(manifest: Manifest, what: str) -> None:
    if len(manifest.sections) > SECTIONS_MAX:
        raise BundleRefused(RefusalCode.OVERSIZED, f"{what} names more than {SECTIONS_MAX} sections.")
    _check_order([entry.order() for entry in manifest.sections], what)
    _check_order([(entry.side,) for entry in manifest.imports], what)
    imported = {entry.side for entry in manifest.imports}
    if manifest.side in imported or manifest.revocations < 0:
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} imports itself, or has a negative number.")
    for entry in manifest.sections:
        if entry.side == manifest.side:
            continue
        if entry.kind not in EXPORTED:
            sentence = f"{what} imports {entry.title}: sections of this kind never cross the border."
            raise BundleRefused(RefusalCode.NOT_IMPORTABLE, sentence)
        if entry.side not in imported:
            raise BundleRefused(RefusalCode.WRONG_SIDE, f"{what} names {entry.title} without importing that side.")


def _check_order(keys: Iterable[tuple[str, ...]], what: str) -> None:
    listed = list(keys)
    if any(first >= second for first, second in pairwise(listed)):
        raise BundleRefused(RefusalCode.MALFORMED, f"{what} has a list that is not sorted, or a name twice.")
