"""What a program holds of each side: the bundle that counts, revocation lists, and the manifests of the recent past.

Everything is checked here before it counts: a refusal leaves the last good bundle in place. Calls block on the disk
and on arithmetic; an event loop makes them in a thread, one at a time. What is held may be read anywhere.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from orchestrator.bundles.assemble import Assembler, Bundle
from orchestrator.bundles.formats import Manifest, SectionEntry, Signed, open_manifest
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import RevocationList, nothing_revoked, open_revocations
from orchestrator.bundles.roots import Roots
from orchestrator.bundles.store import BundleStore, Held
from orchestrator.policy.ids import Digest, SideId

REMEMBERED_PAST = 256


class Holdings:
    """The bundles of one program: its own side in full, the others as law alone."""

    def __init__(self, side: SideId, store: BundleStore, roots: Roots) -> None:
        self.side = side
        self.store = store
        self.roots = roots
        self._assembler = Assembler(roots)
        self._bundles: dict[SideId, Bundle] = {}
        self.bundle: Callable[[SideId], Bundle | None] = self._bundles.get
        """Returns the bundle of a side that counts, or None. Asked for with every request."""
        self._past: OrderedDict[tuple[SideId, int, Digest], Bundle] = OrderedDict()
        self._lists: dict[SideId, RevocationList] = {}

    @property
    def lists(self) -> Mapping[SideId, RevocationList]:
        """The newest revocation list of each side that has one."""
        return dict(self._lists)

    def list_of(self, side: SideId, number: int) -> RevocationList | None:
        """Return a kept revocation list by its number; number 0 is the empty list of a side that issued none."""
        return nothing_revoked(side) if number == 0 else self.store.list_of(side, number)

    def load(self) -> tuple[BundleRefused, ...]:
        """Take up what is on the disk; return why something there cannot be used."""
        refusals: list[BundleRefused] = []
        for side in sorted(self.roots.sides):
            newest = self.store.revocations(side)
            if newest is not None:
                self._lists[side] = newest[0]
        for side in sorted(self.roots.sides):
            held = self.store.current(side)
            if held is None:
                continue
            try:
                self._bundles[side] = self.assemble(held.manifest, held.digest)
            except BundleRefused as refusal:
                refusals.append(refusal)
        for damaged in self.store.damaged:
            sentence = f"The manifest of {damaged} that was held last cannot be read."
            refusals.append(BundleRefused(RefusalCode.MALFORMED, sentence))
        return tuple(refusals)

    def take_list(self, signed: Signed) -> bool:
        """Check and keep a revocation list; return whether it is news. Raises BundleRefused and OSError."""
        side = self._known(signed)
        revocations = open_revocations(signed, self.roots, side)
        held = self._lists.get(side)
        self.store.put_revocations(revocations, signed)
        if held is not None and held.number == revocations.number:
            return False
        self._lists[side] = revocations
        for name, bundle in list(self._bundles.items()):
            self._bundles[name] = bundle.with_revocations(self._lists)
        return True

    def check(self, signed: Signed, now_ms: int) -> Manifest | None:
        """Return the manifest in these bytes when it may replace the one that counts; None when it is that one.

        Raises BundleRefused: not signed by a pinned root, older than one held before, expired, without its revocation
        list.
        """
        side = self._known(signed)
        manifest = open_manifest(signed, self.roots, side)
        self.store.check_number(signed)
        counted = self._bundles.get(side)
        if counted is not None and counted.digest == signed.digest:
            return None
        what = f"Manifest {manifest.number} of {side}"
        if now_ms >= manifest.horizons.not_after_ms:
            raise BundleRefused(RefusalCode.EXPIRED, f"{what} is past its last horizon.")
        held = self._lists.get(side, nothing_revoked(side))
        if held.number < manifest.revocations:
            sentence = f"{what} was issued under revocation list {manifest.revocations}, which is not here."
            raise BundleRefused(RefusalCode.MISSING_REVOCATIONS, sentence)
        return manifest

    def missing(self, manifest: Manifest) -> tuple[SectionEntry, ...]:
        """Return the sections whose bodies must be fetched before `accept`."""
        return self.store.missing(manifest.needed(manifest.side != self.side))

    def keep_section(self, entry: SectionEntry, body: bytes) -> None:
        """Check the body of a section and keep it. Raises BundleRefused and OSError."""
        self._assembler.open(entry, body)
        self.store.put_section(entry.digest, body)

    def assemble(self, manifest: Manifest, digest: Digest) -> Bundle:
        """Return the bundle of a manifest whose sections are here, without keeping it. Raises BundleRefused."""
        law_only = manifest.side != self.side
        return self._assembler.assemble(manifest, digest, self._body, self._lists, law_only=law_only)

    def accept(self, manifest: Manifest, signed: Signed, now_ms: int) -> Bundle:
        """Make a checked manifest the one that counts, on the disk first. Raises BundleRefused and OSError."""
        bundle = self.assemble(manifest, signed.digest)
        self.store.put_manifest(Held(manifest, signed), now_ms, law_only=bundle.law_only)
        self._bundles[manifest.side] = bundle
        self._assembler.keep(held.manifest for side in self.roots.sides for held in self.store.held(side))
        return bundle

    def remembered(self, side: SideId, number: int, digest: Digest) -> Bundle | None:
        """Return a bundle of the recent past that was asked for before, or the one that counts; without the disk."""
        counted = self.bundle(side)
        if counted is not None and counted.number == number and counted.digest == digest:
            return counted
        return self._past.get((side, number, digest))

    def past(self, side: SideId, number: int, digest: Digest) -> Bundle | None:
        """Return a manifest of the recent past as law alone, or None when it is not kept."""
        held = self.store.find(side, number, digest)
        if held is None:
            return None
        try:
            return self._remember(self._law(held.manifest, digest, {}))
        except BundleRefused:
            return None

    def missing_law(self, manifest: Manifest) -> tuple[SectionEntry, ...]:
        """Return the sections whose bodies must be fetched before `learn`."""
        needed = manifest.needed(law_only=True)
        return self.store.missing(entry for entry in needed if not self._assembler.knows(entry))

    def learn(self, manifest: Manifest, digest: Digest, bodies: Mapping[Digest, bytes]) -> Bundle:
        """Remember a checked manifest as law alone, without making it the one that counts. Raises BundleRefused."""
        return self._remember(self._law(manifest, digest, bodies))

    def _law(self, manifest: Manifest, digest: Digest, bodies: Mapping[Digest, bytes]) -> Bundle:
        def body_of(entry: SectionEntry) -> bytes | None:
            return bodies.get(entry.digest) or self._body(entry)

        return self._assembler.assemble(manifest, digest, body_of, self._lists, law_only=True)

    def _remember(self, bundle: Bundle) -> Bundle:
        self._past[bundle.side, bundle.number, bundle.digest] = bundle
        while len(self._past) > REMEMBERED_PAST:
            self._past.popitem(last=False)
        return bundle

    def _body(self, entry: SectionEntry) -> bytes | None:
        return self.store.section(entry.digest)

    def _known(self, signed: Signed) -> SideId:
        if signed.side not in self.roots.sides:
            raise BundleRefused(RefusalCode.WRONG_SIDE, "It is of a side without a pinned root.")
        return signed.side
