"""The bundle that an operator's command reads: a folder of declared files, or one exported signed file.

A folder is signed with throw-away keys and assembled like any other bundle, so that what `explain` says of it is what a
program would hold. A folder that holds folders of sides is read as all of them; one without `side.yaml` is taken to be
signed by a root that may grant everywhere.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from orchestrator.bundles.assemble import Assembler, Bundle
from orchestrator.bundles.export import EXPORT_BYTES_MAX, open_export
from orchestrator.bundles.formats import (
    ImportEntry,
    Manifest,
    Section,
    SectionEntry,
    SectionKind,
    build_section,
    sign_manifest,
    sign_section,
)
from orchestrator.bundles.refusals import BundleRefused
from orchestrator.bundles.revocations import RevocationList, RevocationsDocument, Revoked, revoked_of
from orchestrator.bundles.roots import Root, Roots, SigningKey, key_id_of
from orchestrator.cli.publish import REVOCATIONS, SIDE_FILE, declared_side, load_directory
from orchestrator.files.document import FileError
from orchestrator.files.typed import fit
from orchestrator.policy.bundle import Horizons
from orchestrator.policy.ids import Digest, SideId, digest_of, is_name
from orchestrator.policy.jurisdictions import ASSIGNED
from orchestrator.policy.permit import PERMIT_VERSION

_CONTENT = ("packs", "tenants", "fleet", "prices", "packs.yaml", "fleet.yaml", "tenants.yaml", "settings.yaml")


@dataclass(frozen=True, slots=True)
class Lawbook:
    """A bundle, and where it came from."""

    bundle: Bundle
    source: str
    """`folder`, or `export`."""
    note: str = ""
    """What the reader should know of its signatures; may be empty."""


@dataclass(frozen=True, slots=True)
class _Side:
    name: SideId
    key: SigningKey
    root: Root
    sections: tuple[Section, ...]
    revoked: Revoked | None


def read_lawbook(path: Path, now_ms: int, *, side: str | None = None, roots: Roots | None = None) -> Lawbook:
    """Return the bundle at `path`, a folder's as if issued at `now_ms`.

    `side` chooses whose tenants and settings count, where a folder holds more than one side with tenants. Raises
    FileError.
    """
    if path.is_dir():
        return Lawbook(_from_folder(path, now_ms, side), "folder")
    try:
        with path.open("rb") as file:
            data = file.read(EXPORT_BYTES_MAX + 1)
    except OSError as error:
        reason = error.strerror or "expected a file that can be read"
        raise FileError(str(path), 0, "", reason) from None
    try:
        bundle = open_export(data, roots)
    except BundleRefused as refusal:
        raise FileError(str(path), 0, "", refusal.sentence) from None
    note = "" if roots else "Signatures were checked against the roots in the file itself: pin your own with --roots."
    return Lawbook(bundle, "export", note)


def side_folders(path: Path) -> tuple[Path, ...]:
    """Return the folder itself when it declares something, else the folders of sides in it."""
    if (path / SIDE_FILE).exists() or any((path / name).exists() for name in _CONTENT):
        return (path,)
    return tuple(sorted(inner for inner in path.iterdir() if inner.is_dir() and not inner.name.startswith(".")))


def _from_folder(path: Path, now_ms: int, wanted: str | None) -> Bundle:
    folders = side_folders(path)
    if not folders:
        raise FileError(str(path), 0, "", "expected packs, a fleet and tenants, or folders of sides that hold them")
    sides = [_read_side(folder) for folder in folders]
    own = _own_side(path, sides, wanted)
    others = [side for side in sides if side is not own]
    horizons = Horizons.from_issue(now_ms)
    entries: list[SectionEntry] = []
    for side in sides:
        kept = (section for section in side.sections if side is own or section.kind in _EXPORTED)
        entries += (sign_section(section, side.key, side.root.key_id) for section in kept)
    lists = {side.name: RevocationList(side.name, 1, now_ms, side.revoked) for side in sides if side.revoked}
    manifest = Manifest(
        own.name,
        1,
        now_ms,
        horizons,
        PERMIT_VERSION,
        tuple(sorted(entries, key=SectionEntry.order)),
        tuple(
            ImportEntry(side.name, 1, digest_of(side.name.encode()), horizons)
            for side in sorted(others, key=lambda side: side.name)
        ),
        1 if own.revoked else 0,
    )
    bodies = {section.digest: section.body for side in sides for section in side.sections}
    roots = Roots(side.root for side in sides)
    try:
        signed = sign_manifest(manifest, own.key, own.root.key_id)
        return Assembler(roots).assemble(
            manifest, signed.digest, lambda entry: bodies.get(Digest(entry.digest)), lists, law_only=False
        )
    except BundleRefused as refusal:
        raise FileError(str(path), 0, "", refusal.sentence) from None


_EXPORTED = frozenset({SectionKind.PACK, SectionKind.FLEET, SectionKind.PRICES})


def _read_side(folder: Path) -> _Side:
    declared = declared_side(folder)
    name = SideId(folder.resolve().name if declared is None else declared.side)
    if not is_name(name):
        name = SideId("folder")
    key = SigningKey.generate()
    soil = ASSIGNED if declared is None else declared.jurisdictions
    root = Root(name, key_id_of(key.public_key), key.public_key, frozenset(soil))
    sections: list[Section] = []
    revoked: Revoked | None = None
    for file in load_directory(folder):
        document: dict[str, Any] = json.loads(file.document)
        if file.kind == REVOCATIONS:
            revoked = revoked_of(fit(document, RevocationsDocument))
            continue
        sections.append(build_section(name, SectionKind(file.kind), file.name, document))
    return _Side(name, key, root, tuple(sections), revoked)


def _own_side(path: Path, sides: list[_Side], wanted: str | None) -> _Side:
    """Return the side whose tenants and settings count."""
    if wanted is not None:
        found = next((side for side in sides if side.name == wanted), None)
        if found is None:
            names = ", ".join(sorted(side.name for side in sides))
            raise FileError(str(path), 0, "", f"expected the folder of side {wanted}; there are {names}")
        return found
    named = {side.name for side in sides}
    if len(named) < len(sides):
        raise FileError(str(path), 0, "", "expected sides with different names in their side.yaml")
    with_tenants = [side for side in sides if any(s.kind is SectionKind.TENANTS for s in side.sections)]
    if len(with_tenants) > 1:
        names = ", ".join(sorted(side.name for side in with_tenants))
        raise FileError(str(path), 0, "", f"expected one side with tenants, or --side: {names} have some")
    return with_tenants[0] if with_tenants else sides[0]
