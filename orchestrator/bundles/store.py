"""Manifests, sections and revocation lists on disk: what a program serves by when control is gone.

    sections/<sha256>                       the body of a section
    manifests/<side>/<number>-<sha256>      a line of JSON about the signature, then the body
    revocations/<side>/<number>-<sha256>    the same
    current/<side>                          the number and digest that hold
    archive/                                manifests that no longer count, where they are kept (see `archive`)

A file is written beside its name, forced to the disk and renamed, so it is whole or absent; `current` is written after
everything that it names is there. What is read is checked again, like what comes from the wire: a damaged file is as
good as none. A number below the highest ever held is refused.

Calls block on the disk; an event loop makes them in a thread, one at a time.
"""

from __future__ import annotations

import base64
import binascii
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Literal

import msgspec

from orchestrator.bundles.archive import Archive
from orchestrator.bundles.formats import (
    FORMAT_VERSION,
    MANIFEST_BYTES_MAX,
    SECTION_BYTES_MAX,
    Manifest,
    SectionEntry,
    Signed,
    open_manifest,
)
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import RevocationList, open_revocations
from orchestrator.bundles.roots import Roots
from orchestrator.evidence.canonical import JsonValue, canonical_bytes
from orchestrator.files.strict_json import RequestError, parse_strict
from orchestrator.files.typed import Misfit, fit
from orchestrator.policy.ids import Digest, KeyId, SideId, digest_of, is_digest

KEPT_MANIFESTS = 64
KEPT_MS = 600_000
KEPT_LISTS = 64
_ENVELOPE_BYTES_MAX = MANIFEST_BYTES_MAX + 4096
_NUMBER_DIGITS = 16


class _HeaderForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    side: str
    number: int
    digest: str
    key_id: str
    signature: str


class _CurrentForm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: int
    number: int
    digest: str


@dataclass(frozen=True, slots=True)
class Held:
    """A manifest that was checked, with the bytes that prove it."""

    manifest: Manifest
    signed: Signed = field(repr=False)

    @property
    def digest(self) -> Digest:
        """The digest of the manifest."""
        return self.signed.digest


@dataclass(slots=True)
class _Side:
    """What is known of one side. The current manifest is the one with the number `highest`, if it is there."""

    highest: int = 0
    highest_digest: Digest | None = None
    manifests: dict[int, Held] = field(default_factory=dict)
    lists: dict[int, tuple[RevocationList, Signed]] = field(default_factory=dict)


class BundleStore:
    """The store of one program in a folder of its own. Raises OSError when the disk fails."""

    def __init__(self, folder: Path, roots: Roots, *, archive_ms: int = 0, read_only: bool = False) -> None:
        """Open the store.

        `archive_ms` is how long manifests are kept once they no longer count, 0 for not at all. `read_only` writes
        nothing.
        """
        self._folder = folder
        self._roots = roots
        self._read_only = read_only
        self._archive = Archive(folder / "archive", archive_ms) if archive_ms or read_only else None
        self._sides: dict[SideId, _Side] = {}
        self.damaged: tuple[str, ...] = ()
        """Sides whose current manifest was held but can no longer be read; empty once a newer one is held."""
        for place in (*_side_folders(roots), "sections", "current") if not read_only else ():
            (folder / place).mkdir(parents=True, exist_ok=True)
        self._load()

    def current(self, side: SideId) -> Held | None:
        """Return the manifest of `side` that holds, or None when there is none that can be read."""
        state = self._sides[side]
        return state.manifests.get(state.highest)

    def highest(self, side: SideId) -> int:
        """Return the highest number ever held of `side`, 0 for none."""
        return self._sides[side].highest

    def held(self, side: SideId) -> tuple[Held, ...]:
        """Return every manifest of `side` that is kept, oldest first."""
        manifests = self._sides[side].manifests
        return tuple(manifests[number] for number in sorted(manifests))

    def find(self, side: SideId, number: int, digest: Digest) -> Held | None:
        """Return a kept manifest, or None."""
        state = self._sides.get(side)
        held = state.manifests.get(number) if state is not None else None
        return held if held is not None and held.digest == digest else None

    def kept(self, side: SideId, number: int, digest: Digest) -> Held | None:
        """Return a manifest that counts, or that counted and is still kept, or None."""
        found = self.find(side, number, digest)
        if found is not None or self._archive is None or side not in self._roots.sides or not is_digest(digest):
            return found
        held = self._archived(self._archive.manifest(side, _name(number, digest)), side)
        return held if held is not None and held.digest == digest else None

    def revocations(self, side: SideId) -> tuple[RevocationList, Signed] | None:
        """Return the newest list of `side`, or None."""
        lists = self._sides[side].lists
        return lists[max(lists)] if lists else None

    def list_of(self, side: SideId, number: int) -> RevocationList | None:
        """Return a kept revocation list by its number, or None."""
        found = self._sides[side].lists.get(number)
        return None if found is None else found[0]

    def section(self, digest: Digest) -> bytes | None:
        """Return the body of a section, or None when it is not there or is damaged."""
        places = [self._folder / "sections" / _hex(digest)]
        if self._archive is not None:
            places.append(self._archive.section(_hex(digest)))
        bodies = (_read(place, SECTION_BYTES_MAX) for place in places)
        return next((body for body in bodies if body is not None and digest_of(body) == digest), None)

    def missing(self, entries: Iterable[SectionEntry]) -> tuple[SectionEntry, ...]:
        """Return the entries whose bodies are not there."""
        return tuple(entry for entry in entries if self.section(entry.digest) is None)

    def put_section(self, digest: Digest, body: bytes) -> None:
        """Keep a section. Raises BundleRefused when the body does not have that digest, or is too large."""
        if len(body) > SECTION_BYTES_MAX:
            raise BundleRefused(RefusalCode.OVERSIZED, f"A section is larger than {SECTION_BYTES_MAX} bytes.")
        if digest_of(body) != digest:
            raise BundleRefused(RefusalCode.DIGEST_MISMATCH, "A section does not have the digest that was asked for.")
        if self.section(digest) is None:
            write_whole(self._folder / "sections" / _hex(digest), body)

    def check_number(self, signed: Signed) -> None:
        """Refuse a manifest whose number is below the highest held, or is held with another digest."""
        state = self._sides[signed.side]
        what = f"Manifest {signed.number} of {signed.side}"
        if signed.number < state.highest:
            raise BundleRefused(RefusalCode.ROLLED_BACK, f"{what} is older than {state.highest}, which was held.")
        if signed.number == state.highest and state.highest_digest not in (None, signed.digest):
            raise BundleRefused(RefusalCode.EQUIVOCATION, f"{what} differs from the one that was held.")

    def put_manifest(self, held: Held, now_ms: int, *, law_only: bool) -> None:
        """Keep a manifest and make it the current one. Its sections must be there. Raises BundleRefused."""
        self.check_number(held.signed)
        lost = self.missing(held.manifest.needed(law_only))
        if lost:
            raise BundleRefused(RefusalCode.MISSING_SECTION, f"Section {lost[0].title} is not there.")
        manifest = held.manifest
        side, state = manifest.side, self._sides[manifest.side]
        write_whole(self._path("manifests", held.signed), pack_signed(held.signed))
        pointer: dict[str, JsonValue] = {"v": FORMAT_VERSION, "number": manifest.number, "digest": held.digest}
        write_whole(self._folder / "current" / side, canonical_bytes(pointer))
        state.highest, state.highest_digest = manifest.number, held.digest
        state.manifests[manifest.number] = held
        self.damaged = tuple(name for name in self.damaged if name != side)
        self._collect(side, now_ms)

    def put_revocations(self, revocations: RevocationList, signed: Signed) -> None:
        """Keep a revocation list. Raises BundleRefused when a newer one, or another of this number, was held."""
        state = self._sides[revocations.side]
        newest = max(state.lists, default=0)
        what = f"Revocation list {revocations.number} of {revocations.side}"
        if revocations.number < newest:
            raise BundleRefused(RefusalCode.ROLLED_BACK, f"{what} is older than {newest}, which was held.")
        if revocations.number == newest:
            if state.lists[newest][1].digest != signed.digest:
                raise BundleRefused(RefusalCode.EQUIVOCATION, f"{what} differs from the one that was held.")
            return
        write_whole(self._path("revocations", signed), pack_signed(signed))
        state.lists[revocations.number] = (revocations, signed)
        for number in sorted(state.lists)[:-KEPT_LISTS]:
            _, old = state.lists.pop(number)
            self._path("revocations", old).unlink(missing_ok=True)

    def _path(self, kind: Literal["manifests", "revocations"], signed: Signed) -> Path:
        return self._folder / kind / signed.side / _name(signed.number, signed.digest)

    def _archived(self, file: Path, side: SideId) -> Held | None:
        body = _read(file, _ENVELOPE_BYTES_MAX)
        signed = unpack_signed(body) if body is not None else None
        if signed is None:
            return None
        with suppress(BundleRefused):
            return Held(open_manifest(signed, self._roots, side), signed)
        return None

    def _archived_sections(self, file: Path) -> tuple[Digest, ...]:
        held = self._archived(file, SideId(file.parent.name))
        return () if held is None else tuple(entry.digest for entry in held.manifest.sections)

    def _load(self) -> None:
        damaged: list[str] = []
        for side in sorted(self._roots.sides):
            state = self._sides[side] = _Side()
            for signed in self._files("manifests", side):
                with suppress(BundleRefused):
                    state.manifests[signed.number] = Held(open_manifest(signed, self._roots, side), signed)
            for signed in self._files("revocations", side):
                with suppress(BundleRefused):
                    state.lists[signed.number] = (open_revocations(signed, self._roots, side), signed)
            pointer = self._pointer(side)
            if pointer is None:
                # Without a pointer nothing says which was held: the newest that is complete.
                whole = [n for n, h in state.manifests.items() if not self.missing(h.manifest.needed(law_only=True))]
                state.highest = max(whole, default=0)
                state.highest_digest = state.manifests[state.highest].digest if whole else None
                continue
            state.highest, state.highest_digest = pointer
            held = state.manifests.get(state.highest)
            if held is None or held.digest != state.highest_digest:
                state.manifests.pop(state.highest, None)
                damaged.append(side)
        self.damaged = tuple(damaged)

    def _files(self, kind: Literal["manifests", "revocations"], side: SideId) -> Iterator[Signed]:
        folder = self._folder / kind / side
        for path in sorted(folder.iterdir()) if folder.is_dir() else ():
            if path.name.startswith("."):
                if not self._read_only:
                    path.unlink(missing_ok=True)
                continue
            body = _read(path, _ENVELOPE_BYTES_MAX)
            signed = unpack_signed(body) if body is not None else None
            if signed is not None and path.name == self._path(kind, signed).name:
                yield signed

    def _pointer(self, side: SideId) -> tuple[int, Digest] | None:
        body = _read(self._folder / "current" / side, 4096)
        if body is None:
            return None
        try:
            form = fit(parse_strict(body), _CurrentForm)
        except (RequestError, Misfit):
            return None
        if form.v != FORMAT_VERSION or form.number < 1 or not is_digest(form.digest):
            return None
        return form.number, Digest(form.digest)

    def _collect(self, side: SideId, now_ms: int) -> None:
        """Drop manifests that are neither among the newest 64 nor held in the last ten minutes, then loose sections."""
        state = self._sides[side]
        numbers = sorted(state.manifests)
        for number, follower in pairwise(numbers):
            recent = number > numbers[-1 - KEPT_MANIFESTS] if len(numbers) > KEPT_MANIFESTS else True
            if recent or state.manifests[follower].manifest.issued_ms > now_ms - KEPT_MS:
                continue
            old = state.manifests.pop(number)
            file = self._path("manifests", old.signed)
            if self._archive is None:
                file.unlink(missing_ok=True)
            else:
                sections = [self._folder / "sections" / _hex(entry.digest) for entry in old.manifest.sections]
                self._archive.put(file, side, sections, now_ms)
        if self._archive is not None:
            self._archive.prune(now_ms, self._archived_sections)
        named = {
            _hex(entry.digest)
            for kept in self._sides.values()
            for held in kept.manifests.values()
            for entry in held.manifest.sections
        }
        for path in (self._folder / "sections").iterdir():
            if path.name not in named:
                path.unlink(missing_ok=True)


def pack_signed(signed: Signed) -> bytes:
    """Return a manifest or a list with its signature as one value: for a file, or for the registry."""
    header = canonical_bytes(
        {
            "v": FORMAT_VERSION,
            "side": signed.side,
            "number": signed.number,
            "digest": signed.digest,
            "key_id": signed.key_id,
            "signature": base64.b64encode(signed.signature).decode("ascii"),
        }
    )
    return header + b"\n" + signed.body


def unpack_signed(value: bytes) -> Signed | None:
    """Return what `pack_signed` packed, unchecked, or None when it is something else."""
    header, separator, body = value.partition(b"\n")
    if not separator:
        return None
    try:
        form = fit(parse_strict(header), _HeaderForm)
        signature = base64.b64decode(form.signature, validate=True)
    except (RequestError, Misfit, binascii.Error, ValueError):
        return None
    if form.v != FORMAT_VERSION or not is_digest(form.digest):
        return None
    return Signed(SideId(form.side), form.number, Digest(form.digest), body, KeyId(form.key_id), signature)


def write_whole(path: Path, body: bytes) -> None:
    """Write a file so that it is whole or absent after any crash, and on the disk when this returns. Raises OSError."""
    beside = path.with_name(f".{path.name}")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(body)
        file.flush()
        os.fsync(descriptor)
    beside.replace(path)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _read(path: Path, bytes_max: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            body = file.read(bytes_max + 1)
    except OSError:
        return None
    return body if len(body) <= bytes_max else None


def _side_folders(roots: Roots) -> tuple[str, ...]:
    return tuple(f"{kind}/{side}" for side in sorted(roots.sides) for kind in ("manifests", "revocations"))


def _name(number: int, digest: Digest) -> str:
    return f"{number:0{_NUMBER_DIGITS}d}-{_hex(digest)}"


def _hex(digest: Digest) -> str:
    """A digest as the name of a file. What is no digest could be a path to somewhere else."""
    if not is_digest(digest):
        raise ValueError("not a digest")
    return digest.removeprefix("sha256:")
