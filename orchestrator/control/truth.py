"""What counts on this side: etcd is the truth, the disk of this control is what it serves by while etcd is gone.

Nothing is published that was not committed to etcd first, under a guard on what was read; nothing is believed from etcd
that the root of its side did not sign. A manifest of the other side counts for members as soon as it was checked: its
signature is its proof, and our own manifest follows when etcd takes it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType
from typing import TypeVar

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.clock import HighestTime
from orchestrator.bundles.formats import Manifest, SectionEntry, Signed, sign_manifest
from orchestrator.bundles.holdings import Holdings
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import RevocationList, nothing_revoked, sign_revocations
from orchestrator.bundles.store import pack_signed, unpack_signed
from orchestrator.bundles.streams import in_thread
from orchestrator.control.entries import (
    ABSENT,
    Entry,
    Guard,
    Put,
    RegistryConflict,
    RegistryError,
    RegistryKey,
    RegistryUnavailable,
    Revision,
)
from orchestrator.control.publish import (
    Imported,
    Offer,
    Submission,
    choices,
    next_list,
    next_manifest,
    reissue_due,
    signed_entries,
)
from orchestrator.control.registry import Registry
from orchestrator.control.settings import Identity
from orchestrator.policy.ids import Digest, SideId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event

log = logger("orchestrator.control")
Answer = TypeVar("Answer")

MANIFEST_KEY = RegistryKey("manifest/current")
REVOCATIONS_KEY = RegistryKey("manifest/revocations")
READ_BACK_TRIES = 3
REFUSED_KEPT = 64


class StaleExpectation(Exception):
    """The operator meant to replace another manifest than the one that counts."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What control tells its members: the signed bytes that count, of every side. Immutable."""

    manifests: Mapping[SideId, Signed]
    lists: Mapping[SideId, Signed]


@dataclass(frozen=True, slots=True)
class _Heads:
    """What etcd says counts, as it was read."""

    manifest: Entry | None
    revocations: Entry | None

    def guards(self) -> tuple[Guard, Guard]:
        """Return the guards under which both may be replaced."""
        return Guard(MANIFEST_KEY, _revision(self.manifest)), Guard(REVOCATIONS_KEY, _revision(self.revocations))


class Truth:
    """The state of one control. One publication at a time; what other sides send never waits for etcd."""

    def __init__(self, identity: Identity, holdings: Holdings, registry: Registry, clock: HighestTime) -> None:
        self._identity = identity
        self._holdings = holdings
        self._registry = registry
        self._clock = clock
        self._publishing = asyncio.Lock()
        self._touching = asyncio.Lock()
        self._news = asyncio.Event()
        self._refused: dict[Digest, None] = {}
        self._recorded: dict[RegistryKey, Digest] = {}
        self._alarms: dict[str, str] = {}
        self.standing = Standing({}, {})
        """What members are told now."""

    @property
    def side(self) -> SideId:
        """The side of this control."""
        return self._identity.side

    @property
    def current(self) -> Bundle | None:
        """The bundle of this side that counts."""
        return self._holdings.bundle(self.side)

    @property
    def holdings(self) -> Holdings:
        """Manifests and sections, for those who fetch them."""
        return self._holdings

    def now_ms(self) -> int:
        """Return the time by which to decide."""
        return self._clock.now_ms()

    def alarms(self) -> tuple[str, ...]:
        """Return what is wrong now, one sentence each."""
        found = dict(self._alarms)
        current = self.current
        if current is None:
            found["no_bundle"] = "Nothing was published yet."
        elif self.now_ms() >= current.law.horizons.fresh_until_ms:
            found["not_fresh"] = f"Manifest {current.number} of {current.side} is past its first horizon."
        return tuple(f"{kind}: {sentence}" for kind, sentence in sorted(found.items()))

    async def news(self) -> None:
        """Wait for the next change of `standing`."""
        await self._news.wait()

    async def load(self) -> None:
        """Take up what is on the disk. Raises OSError."""
        for refusal in await self._work(self._holdings.load):
            self._alarm("unreadable", refusal.sentence)
        self._tell()

    async def publish(self, submission: Submission, expected: int) -> tuple[int, Digest]:
        """Replace this side's sections; return number and digest of the new manifest.

        Raises BundleRefused with a sentence for the operator, StaleExpectation, and RegistryError when etcd does not
        take it: then nothing has changed, unless the error says that it may have.
        """
        async with self._publishing:
            heads = await self._agree()
            current = self.current
            if expected and expected != (0 if current is None else current.number):
                raise StaleExpectation
            entries = signed_entries(submission, self._identity.key, self._identity.root.key_id)
            bodies = {section.digest: section.body for section in submission.sections}
            self._refused.clear()
            revocations = next_list(self._own_list(), submission.revoked, self.now_ms())
            return await self._issue(heads, entries, revocations, bodies)

    async def maintain(self) -> None:
        """Agree with etcd; issue the manifest again if due. Raises RegistryError, BundleRefused and OSError."""
        async with self._publishing:
            heads = await self._agree()
            await self._record_others()
            current = self.current
            if current is None:
                return
            if reissue_due(current.manifest, self._others(), frozenset(self._refused), self.now_ms()):
                await self._issue(heads, current.manifest.own_sections(), self._own_list())

    def note_upkeep(self, failure: str) -> None:
        """Note whether the last `maintain` went well; empty: it did."""
        if failure:
            self._alarm("registry", f"The manifest is not maintained: {failure}.")
        elif self._alarms.pop("registry", None) is not None:
            log.info(Event.REGISTRY_CONNECTED)

    async def save_time(self) -> None:
        """Save the highest time seen, when it has moved on by a second. Raises nothing; a failure is an alarm."""
        self._clock.now_ms()
        if not self._clock.due():
            return
        try:
            await in_thread(self._clock.save)
            self._alarms.pop("clock_unsaved", None)
        except OSError as failure:
            self._alarm("clock_unsaved", f"The highest time seen cannot be saved: {failure.strerror}.")

    def foreign_refused(self, side: SideId, what: str, refusal: BundleRefused) -> None:
        """Note that something of another side was refused; what was taken before stays."""
        self._alarm(f"exchange_refused_{what}_{side}", f"{refusal.sentence} What was taken before stays.")

    def foreign_taken(self, side: SideId, what: str) -> None:
        """Note that something of another side is good again."""
        self._alarms.pop(f"exchange_refused_{what}_{side}", None)

    async def take_list(self, signed: Signed) -> None:
        """Take a revocation list of another side. Raises BundleRefused and OSError."""
        self._foreign(signed)
        if await self._work(partial(self._holdings.take_list, signed)):
            self._tell()

    async def take_manifest(self, signed: Signed, bodies: Mapping[Digest, bytes]) -> None:
        """Take a manifest of another side with the sections that came before it. Raises BundleRefused and OSError."""
        self._foreign(signed)
        if await self._work(partial(self._take_foreign, signed, bodies)):
            log.info(Event.BUNDLE_LOADED, number=signed.number, side=signed.side)
            self._tell()

    def _take_foreign(self, signed: Signed, bodies: Mapping[Digest, bytes]) -> bool:
        manifest = self._holdings.check(signed, self.now_ms())
        if manifest is None:
            return False
        self._keep(manifest.needed(law_only=True), bodies)
        self._holdings.accept(manifest, signed, self.now_ms())
        return True

    async def _work(self, work: Callable[[], Answer]) -> Answer:
        """Do something with the holdings, which one thread at a time may touch."""
        async with self._touching:
            return await in_thread(work)

    def _foreign(self, signed: Signed) -> None:
        if signed.side == self.side:
            raise BundleRefused(RefusalCode.WRONG_SIDE, "The other side sent what is said to be ours.")

    def _keep(self, entries: Sequence[SectionEntry], bodies: Mapping[Digest, bytes]) -> None:
        for entry in entries:
            body = bodies.get(entry.digest)
            if body is not None:
                self._holdings.keep_section(entry, body)

    async def _agree(self) -> _Heads:
        """Bring what we hold and what etcd says together; return what etcd says then. Raises RegistryError."""
        heads = await self._read_heads()
        if await self._adopt(heads):
            self._tell()
        current = self.current
        held = None if current is None else self._signed(current)
        if current is None or held is None or _digest(heads.manifest) == held.digest:
            return heads
        if heads.manifest is None:
            # etcd was emptied. What we hold is signed and newer than nothing.
            await self._write_sections(current.manifest.sections, {}, frozenset())
            await self._commit(heads, held, self._list_to_write(heads))
        else:
            # etcd was set back, or holds what nobody signed: the same content under a number that nobody has seen.
            log.warning(Event.BUNDLE_REISSUED, number=current.number)
            await self._issue(heads, current.manifest.own_sections(), self._own_list(), whole=True)
        self._recorded.clear()
        return await self._read_heads()

    async def _read_heads(self) -> _Heads:
        return _Heads(await self._registry.get(MANIFEST_KEY), await self._registry.get(REVOCATIONS_KEY))

    async def _adopt(self, heads: _Heads) -> bool:
        """Take from etcd what is newer than what we hold; return whether something was."""
        news = False
        try:
            listed = _unpacked(heads.revocations)
            if listed is not None and listed.side == self.side and listed.number > self._own_list().number:
                news = await self._work(partial(self._holdings.take_list, listed))
            signed = _unpacked(heads.manifest)
            if signed is not None and signed.side == self.side and signed.number >= self._highest():
                news = await self._adopt_manifest(signed) or news
            for side in self._holdings.roots.sides - {self.side}:
                if self._holdings.bundle(side) is None:
                    news = await self._adopt_other(side) or news
        except BundleRefused as refusal:
            self._alarm("registry_refused", f"What etcd holds is refused: {refusal.sentence}")
        else:
            self._alarms.pop("registry_refused", None)
        return news

    async def _adopt_other(self, side: SideId) -> bool:
        """Take what another side sent to a control whose disk we do not have."""
        listed = _unpacked(await self._registry.get(RegistryKey(f"imported/{side}/revocations")))
        if listed is not None and listed.side == side:
            await self._work(partial(self._holdings.take_list, listed))
        signed = _unpacked(await self._registry.get(RegistryKey(f"imported/{side}/manifest")))
        return signed is not None and signed.side == side and await self._adopt_manifest(signed)

    async def _adopt_manifest(self, signed: Signed) -> bool:
        manifest = await self._work(partial(self._holdings.check, signed, self.now_ms()))
        if manifest is None:
            return False
        for entry in await self._work(partial(self._holdings.missing, manifest)):
            found = await self._registry.get(_section_key(entry))
            if found is not None:
                await self._work(partial(self._holdings.keep_section, entry, found.value))
        await self._work(partial(self._holdings.accept, manifest, signed, self.now_ms()))
        log.info(Event.BUNDLE_LOADED, number=manifest.number, side=manifest.side)
        return True

    async def _issue(
        self,
        heads: _Heads,
        entries: Sequence[SectionEntry],
        revocations: RevocationList,
        bodies: Mapping[Digest, bytes] = MappingProxyType({}),
        *,
        whole: bool = False,
    ) -> tuple[int, Digest]:
        """Issue a manifest over these sections of ours. Raises BundleRefused, RegistryError, OSError.

        `bodies` are the sections that may be new; `whole` says that etcd may lack any.
        """
        key, key_id = self._identity.key, self._identity.root.key_id
        manifest = await self._assembled(entries, revocations, bodies)
        signed = sign_manifest(manifest, key, key_id)
        listed = sign_revocations(revocations, key, key_id) if revocations.number > self._own_list().number else None
        before = self.current
        there = frozenset() if before is None or whole else frozenset(e.digest for e in before.manifest.sections)
        await self._write_sections(manifest.sections, bodies, there)
        await self._commit(heads, signed, listed if listed is not None else self._list_to_write(heads))

        def accept() -> None:
            if listed is not None:
                self._holdings.take_list(listed)
            # Another side's manifest may have come meanwhile, and with it the end of sections that none named yet.
            self._keep(manifest.sections, bodies)
            self._holdings.accept(manifest, signed, self.now_ms())

        await self._work(accept)
        log.info(Event.BUNDLE_PUBLISHED, number=manifest.number, count=len(manifest.sections))
        self._tell()
        if before is not None:
            await self._drop_sections(before.manifest, manifest)
        return signed.number, signed.digest

    async def _assembled(
        self, entries: Sequence[SectionEntry], revocations: RevocationList, bodies: Mapping[Digest, bytes]
    ) -> Manifest:
        """Return the next manifest, with the best imports that can stand beside our sections."""
        now_ms = self.now_ms()
        current = self.current
        others = self._others()
        failure: BundleRefused | None = None
        for offers in choices(current.manifest if current else None, others, frozenset(self._refused), now_ms):
            manifest = next_manifest(
                self.side, self._highest(), entries, offers, revocations.number, now_ms, self._identity.lifetimes
            )
            try:
                await self._work(partial(self._try, manifest, bodies))
            except BundleRefused as refusal:
                failure = failure or refusal
                continue
            if failure is not None:
                self._refuse_imports(offers, others, failure)
            elif not self._refused.keys() & {imported.digest for imported in others.values()}:
                self._refused.clear()
                self._alarms.pop("import_refused", None)
            return manifest
        raise failure or BundleRefused(RefusalCode.MALFORMED, "There is nothing to publish.")

    def _try(self, manifest: Manifest, bodies: Mapping[Digest, bytes]) -> None:
        self._keep(manifest.sections, bodies)
        self._holdings.assemble(manifest, Digest(""))

    def _refuse_imports(
        self, taken: Sequence[Offer], others: Mapping[SideId, Imported], failure: BundleRefused
    ) -> None:
        kept = {offer.entry.digest for offer in taken}
        for imported in others.values():
            if imported.digest not in kept:
                self._refused[imported.digest] = None
        while len(self._refused) > REFUSED_KEPT:
            self._refused.pop(next(iter(self._refused)))
        self._alarm("import_refused", f"{failure.sentence} What was imported before stays.")

    async def _commit(self, heads: _Heads, manifest: Signed, listed: Signed | None) -> None:
        """Make a manifest the one that counts in etcd. Raises RegistryError."""
        manifest_guard, list_guard = heads.guards()
        puts = [Put(MANIFEST_KEY, pack_signed(manifest))]
        if listed is not None:
            puts.append(Put(REVOCATIONS_KEY, pack_signed(listed)))
        try:
            await self._registry.commit(puts, guards=(manifest_guard, list_guard))
        except RegistryUnavailable as failure:
            if not failure.may_have_applied:
                raise
            await self._read_back(manifest, failure)
        except RegistryConflict:
            await self._read_back(manifest, RegistryUnavailable("publish", "another control published meanwhile"))

    async def _read_back(self, manifest: Signed, failure: RegistryError) -> None:
        """After an outcome that is not known: return when our manifest is in etcd, else raise `failure`."""
        for _ in range(READ_BACK_TRIES):
            try:
                entry = await self._registry.get(MANIFEST_KEY)
            except RegistryError:
                continue
            if _digest(entry) == manifest.digest:
                return
            break
        raise failure

    async def _write_sections(
        self, entries: Sequence[SectionEntry], bodies: Mapping[Digest, bytes], there: frozenset[Digest]
    ) -> None:
        """Put sections into etcd that are not there, before the manifest that names them."""
        for entry in entries:
            if entry.digest in there:
                continue
            body = bodies.get(entry.digest) or await in_thread(partial(self._holdings.store.section, entry.digest))
            if body is None:
                raise BundleRefused(RefusalCode.MISSING_SECTION, f"Section {entry.title} is not on the disk.")
            try:
                await self._registry.create(_section_key(entry), body)
            except RegistryConflict:
                continue  # named by its content, so what is there is the same

    async def _drop_sections(self, old: Manifest, new: Manifest) -> None:
        """Delete from etcd what the new manifest no longer names. What fails stays behind and does no harm."""
        named = {entry.digest for entry in new.sections}
        for entry in old.sections:
            if entry.digest in named:
                continue
            key = _section_key(entry)
            try:
                found = await self._registry.get(key)
                if found is not None:
                    await self._registry.delete(key, found.mod_revision)
            except RegistryError:
                return

    async def _record_others(self) -> None:
        """Write what other sides sent into etcd, so that a control with an empty disk has it. Raises RegistryError."""
        for side, signed in self.standing.manifests.items():
            if side != self.side:
                await self._record(RegistryKey(f"imported/{side}/manifest"), signed)
        for side, signed in self.standing.lists.items():
            if side != self.side:
                await self._record(RegistryKey(f"imported/{side}/revocations"), signed)

    async def _record(self, key: RegistryKey, signed: Signed) -> None:
        if self._recorded.get(key) == signed.digest:
            return
        found = await self._registry.get(key)
        if _digest(found) != signed.digest:
            await self._registry.replace(key, pack_signed(signed), _revision(found))
        self._recorded[key] = signed.digest

    def _others(self) -> dict[SideId, Imported]:
        found: dict[SideId, Imported] = {}
        for side in self._holdings.roots.sides:
            bundle = self._holdings.bundle(side)
            if bundle is not None and side != self.side:
                found[side] = Imported(bundle.manifest, bundle.digest)
        return found

    def _own_list(self) -> RevocationList:
        return self._holdings.lists.get(self.side, nothing_revoked(self.side))

    def _list_to_write(self, heads: _Heads) -> Signed | None:
        """Return our revocation list where etcd does not have it."""
        signed = self.standing.lists.get(self.side)
        return signed if signed is not None and _digest(heads.revocations) != signed.digest else None

    def _highest(self) -> int:
        return self._holdings.store.highest(self.side)

    def _signed(self, bundle: Bundle) -> Signed | None:
        held = self._holdings.store.find(bundle.side, bundle.number, bundle.digest)
        return None if held is None else held.signed

    def _tell(self) -> None:
        manifests: dict[SideId, Signed] = {}
        lists: dict[SideId, Signed] = {}
        for side in sorted(self._holdings.roots.sides):
            bundle = self._holdings.bundle(side)
            signed = None if bundle is None else self._signed(bundle)
            if signed is not None:
                manifests[side] = signed
            listed = self._holdings.store.revocations(side)
            if listed is not None:
                lists[side] = listed[1]
        self.standing = Standing(manifests, lists)
        self._news.set()
        self._news = asyncio.Event()

    def _alarm(self, kind: str, sentence: str) -> None:
        if self._alarms.get(kind) != sentence:
            log.warning(Event.ALARM_RAISED, kind=kind, detail=sentence)
        self._alarms[kind] = sentence


def _section_key(entry: SectionEntry) -> RegistryKey:
    return RegistryKey(f"sections/{entry.digest.removeprefix('sha256:')}")


def _revision(entry: Entry | None) -> Revision:
    return ABSENT if entry is None else entry.mod_revision


def _unpacked(entry: Entry | None) -> Signed | None:
    return None if entry is None else unpack_signed(entry.value)


def _digest(entry: Entry | None) -> Digest | None:
    signed = _unpacked(entry)
    return None if signed is None else signed.digest
