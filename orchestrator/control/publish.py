"""From what stands and what an operator submits to the next manifest, or a refusal. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from orchestrator.bundles.formats import (
    ImportEntry,
    Manifest,
    Section,
    SectionEntry,
    SectionKind,
    build_section,
    sign_section,
)
from orchestrator.bundles.refusals import BundleRefused, RefusalCode
from orchestrator.bundles.revocations import RevocationList, RevocationsDocument, Revoked, revoked_of
from orchestrator.bundles.roots import SigningKey
from orchestrator.files.domain_error import DomainError
from orchestrator.files.strict_json import RequestError, parse_strict
from orchestrator.files.typed import Misfit, fit
from orchestrator.policy.bundle import Horizons
from orchestrator.policy.ids import Digest, KeyId, SideId
from orchestrator.policy.permit import PERMIT_VERSION

REVOCATIONS_KIND = "revocations"


@dataclass(frozen=True, slots=True)
class Lifetimes:
    """How long after its issue a manifest may be relied on."""

    fresh_ms: int
    regulated_ms: int
    not_after_ms: int

    def from_issue(self, issued_ms: int) -> Horizons:
        """Return the horizons of a manifest issued then."""
        return Horizons(issued_ms + self.fresh_ms, issued_ms + self.regulated_ms, issued_ms + self.not_after_ms)


@dataclass(frozen=True, slots=True)
class Submitted:
    """One document as an operator sent it: canonical JSON, or anything else."""

    kind: str
    name: str
    document: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Submission:
    """A complete set of a side's sections. Whether the documents make sense is seen when they are assembled."""

    sections: tuple[Section, ...]
    revoked: Revoked | None
    """None: the revocation list stays as it is."""


@dataclass(frozen=True, slots=True)
class Imported:
    """The newest manifest of another side that was accepted here."""

    manifest: Manifest
    digest: Digest

    def entry(self) -> ImportEntry:
        """Return how our manifest names it: under its own horizons, which we never extend."""
        return ImportEntry(self.manifest.side, self.manifest.number, self.digest, self.manifest.horizons)


@dataclass(frozen=True, slots=True)
class Offer:
    """What a manifest takes from one other side."""

    entry: ImportEntry
    sections: tuple[SectionEntry, ...]


def read_submission(side: SideId, files: Iterable[Submitted]) -> Submission:
    """Return what an operator submitted. Raises BundleRefused with a sentence for the operator."""
    sections: list[Section] = []
    revoked: Revoked | None = None
    for file in files:
        document = _document(file)
        if file.kind == REVOCATIONS_KIND:
            if revoked is not None:
                raise BundleRefused(RefusalCode.CONFLICT, "There are two revocation lists.")
            revoked = _revoked(document)
            continue
        if file.kind not in {kind.value for kind in SectionKind}:
            sentence = "A section has an unknown kind: expected pack, tenants, fleet, prices, settings or revocations."
            raise BundleRefused(RefusalCode.MALFORMED, sentence)
        sections.append(build_section(side, SectionKind(file.kind), file.name, document))  # type: ignore[arg-type]
    named: set[tuple[SectionKind, str]] = set()
    for section in sections:
        if (section.kind, section.name) in named:
            sentence = f"There are two sections {section.kind.value}/{section.name}."
            raise BundleRefused(RefusalCode.CONFLICT, sentence)
        named.add((section.kind, section.name))
    if not sections:
        raise BundleRefused(
            RefusalCode.MALFORMED, "A set has at least one section: an empty one would deny everything."
        )
    return Submission(tuple(sections), revoked)


def signed_entries(submission: Submission, key: SigningKey, key_id: KeyId) -> tuple[SectionEntry, ...]:
    """Return the entries of a submission as a manifest names them."""
    return tuple(sign_section(section, key, key_id) for section in submission.sections)


def next_list(current: RevocationList, revoked: Revoked | None, now_ms: int) -> RevocationList:
    """Return the revocation list that counts next: the current one, unless other names were submitted."""
    if revoked is None or revoked == current.revoked:
        return current
    return RevocationList(current.side, current.number + 1, now_ms, revoked)


def next_manifest(
    side: SideId,
    highest: int,
    entries: Iterable[SectionEntry],
    offers: Iterable[Offer],
    revocations: int,
    now_ms: int,
    lifetimes: Lifetimes,
) -> Manifest:
    """Return the manifest that follows number `highest`: our sections, and what other sides offer."""
    taken = sorted(offers, key=lambda offer: offer.entry.side)
    sections = [*entries, *(entry for offer in taken for entry in offer.sections)]
    return Manifest(
        side=side,
        number=highest + 1,
        issued_ms=now_ms,
        horizons=lifetimes.from_issue(now_ms),
        permit_version=PERMIT_VERSION,
        sections=tuple(sorted(sections, key=SectionEntry.order)),
        imports=tuple(offer.entry for offer in taken),
        revocations=revocations,
    )


def choices(
    standing: Manifest | None, others: Mapping[SideId, Imported], refused: frozenset[Digest], now_ms: int
) -> Sequence[tuple[Offer, ...]]:
    """Return what may be imported, the best first: the newest manifest of each side, or else what we import now.

    An import past its last horizon is left out, because with it our own manifest would deny everything. `refused` are
    manifests of which it is known that they cannot stand beside ours.
    """
    newest = {
        side: Offer(imported.entry(), imported.manifest.exported())
        for side, imported in others.items()
        if imported.digest not in refused
    }
    present = {} if standing is None else _present(standing)
    best = _alive({**present, **newest}, now_ms)
    old = _alive(present, now_ms)
    return (best,) if best == old else (best, old)


def reissue_due(standing: Manifest, others: Mapping[SideId, Imported], refused: frozenset[Digest], now_ms: int) -> bool:
    """Whether the standing manifest should be issued again under a new number.

    It should when half of its time until `fresh_until` is over; when an import has lost half of its own, and a fresher
    one is here; when what another side exports has changed; and when an import is past its last horizon. A mere new
    number of the other side is no reason, or two sides would answer each other for ever.
    """
    if now_ms >= _half(standing.issued_ms, standing.horizons):
        return True
    present = _present(standing)
    if any(now_ms >= offer.entry.horizons.not_after_ms for offer in present.values()):
        return True
    for side, imported in others.items():
        if imported.digest in refused or now_ms >= imported.manifest.horizons.not_after_ms:
            continue
        offer = present.get(side)
        if offer is None or offer.sections != _ordered(imported.manifest.exported()):
            return True
        fresher = imported.manifest.horizons.fresh_until_ms > offer.entry.horizons.fresh_until_ms
        fresh_ms = imported.manifest.horizons.fresh_until_ms - imported.manifest.issued_ms
        if fresher and now_ms >= offer.entry.horizons.fresh_until_ms - fresh_ms // 2:
            return True
    return False


def _half(issued_ms: int, horizons: Horizons) -> int:
    return issued_ms + (horizons.fresh_until_ms - issued_ms) // 2


def _present(standing: Manifest) -> dict[SideId, Offer]:
    return {
        entry.side: Offer(entry, tuple(section for section in standing.sections if section.side == entry.side))
        for entry in standing.imports
    }


def _alive(offers: Mapping[SideId, Offer], now_ms: int) -> tuple[Offer, ...]:
    return tuple(offer for _, offer in sorted(offers.items()) if now_ms < offer.entry.horizons.not_after_ms)


def _ordered(entries: Iterable[SectionEntry]) -> tuple[SectionEntry, ...]:
    return tuple(sorted(entries, key=SectionEntry.order))


def _document(file: Submitted) -> dict[str, object]:
    reason = ""
    value: object = None
    try:
        value = parse_strict(file.document)
    except RequestError as failure:
        reason = str(failure)
    if not isinstance(value, dict):
        raise BundleRefused(RefusalCode.MALFORMED, f"A document is no JSON object. {reason}".strip())
    return value


def _revoked(document: dict[str, object]) -> Revoked:
    try:
        return revoked_of(fit(document, RevocationsDocument))
    except (Misfit, DomainError) as refusal:
        reason = str(refusal)
    raise BundleRefused(RefusalCode.INVALID_SECTION, f"Revocations: {reason}.")
