"""What the law is told, between values and protobuf. Total both ways: what cannot be read is refused, never guessed."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import TypeVar

from google.protobuf.message import DecodeError

from orchestrator.evidence.canonical import INTEGER_MAX
from orchestrator.evidence.citation import Citation
from orchestrator.evidence.inputs import InputManifest, InputPart
from orchestrator.evidence.remembered import REMEMBERED_MAX, remembered
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import AttemptId, Digest, EntityId, PathwayId, SideId, is_digest
from orchestrator.policy.jurisdictions import Jurisdiction, parse_jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.pathways import ALL_CATEGORIES, Pathway, PathwayKind, Role
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Category, Purpose
from protos.tidegate.v1 import labels_pb2 as pb

Value = TypeVar("Value")

REMEMBERED_CODES_MAX = 16
"""Of sets with more, each is parsed by itself."""
REMEMBERED_BYTES_MAX = 16 * 1024
"""Facts whose message is larger are read every time, so that nobody fills the memory with what is remembered."""

# The wire's zero is "unspecified", which no value of ours has: a forgotten field is refused.
_PERSONAL_OUT = {
    Personal.NONE: pb.PERSONAL_NONE,
    Personal.PERSONAL: pb.PERSONAL_PERSONAL,
    Personal.SENSITIVE: pb.PERSONAL_SENSITIVE,
    Personal.UNKNOWN: pb.PERSONAL_UNKNOWN,
}
_GRADE_OUT = {
    Grade.PUBLIC: pb.GRADE_PUBLIC,
    Grade.GENERAL: pb.GRADE_GENERAL,
    Grade.IMPORTANT: pb.GRADE_IMPORTANT,
    Grade.CORE: pb.GRADE_CORE,
    Grade.UNKNOWN: pb.GRADE_UNKNOWN,
}
_DOMESTIC_OUT = {
    Domestic.NO: pb.DOMESTIC_NO,
    Domestic.YES: pb.DOMESTIC_YES,
    Domestic.UNKNOWN: pb.DOMESTIC_UNKNOWN,
}
_CLEAN_OUT = {
    Clean.ANONYMISED: pb.CLEAN_ANONYMISED,
    Clean.DEIDENTIFIED: pb.CLEAN_DEIDENTIFIED,
    Clean.PSEUDONYMISED: pb.CLEAN_PSEUDONYMISED,
    Clean.TOKENISED: pb.CLEAN_TOKENISED,
    Clean.RAW: pb.CLEAN_RAW,
    Clean.UNKNOWN: pb.CLEAN_UNKNOWN,
}
_ROLE_OUT = {Role.CONTROLLER: pb.ROLE_CONTROLLER, Role.PROCESSOR: pb.ROLE_PROCESSOR}
_DECLARED_OUT = {
    Declared.NO: pb.DECLARED_NO,
    Declared.YES: pb.DECLARED_YES,
    Declared.UNKNOWN: pb.DECLARED_UNKNOWN,
}
_PERSONAL_IN = {number: value for value, number in _PERSONAL_OUT.items()}
_GRADE_IN = {number: value for value, number in _GRADE_OUT.items()}
_DOMESTIC_IN = {number: value for value, number in _DOMESTIC_OUT.items()}
_CLEAN_IN = {number: value for value, number in _CLEAN_OUT.items()}
_ROLE_IN = {number: value for value, number in _ROLE_OUT.items()}
_DECLARED_IN = {number: value for value, number in _DECLARED_OUT.items()}
_CATEGORIES = frozenset(category.value for category in Category) | {UNKNOWN}
_PURPOSES = frozenset(purpose.value for purpose in Purpose) | {UNKNOWN}
_ASSETS = frozenset(asset.value for asset in Asset) | {UNKNOWN}

TEXT_MAX = 512
SET_MAX = 300
"""More codes than there are jurisdictions are never meant."""
OWNERS_MAX = 64
PATHWAYS_MAX = 256
COUNTERS_MAX = 64
NOTICES_MAX = 256
PARTS_MAX = 16


class WireError(ValueError):
    """A message of a peer cannot be read. Names the field, never its content."""

    def __init__(self, field: str, expected: str) -> None:
        super().__init__(f"{field}: expected {expected}")
        self.field = field


def read(field: str, expected: str, parse: Callable[[], Value]) -> Value:
    """Return `parse()`; a ValueError or KeyError in it becomes a WireError that names the field."""
    try:
        return parse()
    except (ValueError, KeyError):
        raise WireError(field, expected) from None


def text(field: str, value: str, size_max: int = TEXT_MAX) -> str:
    """Return a text that is not empty and not too long."""
    if not value or len(value) > size_max:
        raise WireError(field, f"1 to {size_max} characters")
    return value


def number(field: str, value: int) -> int:
    """Return an integer that canonical JSON can hold: facts are signed and recorded in that form."""
    if not -INTEGER_MAX <= value <= INTEGER_MAX:
        raise WireError(field, "an integer within 2^53")
    return value


def few(field: str, count: int, count_max: int) -> None:
    """Refuse a list that is longer than anybody means."""
    if count > count_max:
        raise WireError(field, f"at most {count_max}")


def jurisdictions(field: str, values: Iterable[str]) -> frozenset[Jurisdiction]:
    """Return a set of assigned codes."""
    codes = tuple(values)
    few(field, len(codes), SET_MAX)
    assigned = _few_assigned if len(codes) <= REMEMBERED_CODES_MAX else _assigned
    return read(field, "assigned ISO 3166-1 codes", lambda: assigned(codes))


def _assigned(codes: tuple[str, ...]) -> frozenset[Jurisdiction]:
    return frozenset(map(parse_jurisdiction, codes))


_few_assigned = lru_cache(maxsize=REMEMBERED_MAX)(_assigned)


def places(field: str, values: Iterable[str]) -> frozenset[Jurisdiction]:
    """Return a set of assigned codes, in which the word `unknown` stands for any."""
    codes = list(values)
    known = [code for code in codes if code != UNKNOWN]
    found = jurisdictions(field, known)
    return found if len(known) == len(codes) else found | {Jurisdiction(UNKNOWN)}


def some(field: str, values: frozenset[Value]) -> frozenset[Value]:
    """Return a set that is never empty. On the wire a forgotten set looks empty, which would be the lowest."""
    if not values:
        raise WireError(field, "at least one")
    return values


def words(field: str, values: object, allowed: frozenset[str]) -> frozenset[str]:
    """Return a set of words from a closed vocabulary."""
    found: frozenset[str] = frozenset(values)  # type: ignore[call-overload]
    if not found <= allowed:
        raise WireError(field, "known words")
    return found


def entity_out(entity: Entity) -> pb.Entity:
    """Return the message of an entity."""
    owners = [pb.Owner(entity=o.entity, country=o.country, share_percent=o.share_percent) for o in entity.owners]
    return pb.Entity(id=entity.id, country=entity.country, owners=owners)


def entity_in(message: pb.Entity) -> Entity:
    """Return the entity of a message. Raises WireError."""
    few("entity.owners", len(message.owners), OWNERS_MAX)
    owners = tuple(
        Owner(
            EntityId(text("entity.owners.entity", owner.entity)),
            read("entity.owners.country", "a code", lambda owner=owner: parse_jurisdiction(owner.country)),  # type: ignore[misc]
            owner.share_percent,
        )
        for owner in message.owners
    )
    if any(not 1 <= owner.share_percent <= 100 for owner in owners):
        raise WireError("entity.owners.share_percent", "1 to 100")
    country = read("entity.country", "an assigned ISO 3166-1 code", lambda: parse_jurisdiction(message.country))
    return Entity(EntityId(text("entity.id", message.id)), country, owners)


def label_out(label: Effective) -> pb.EffectiveLabel:
    """Return the message of a label."""
    return pb.EffectiveLabel(
        personal=_PERSONAL_OUT[label.personal],
        grade=_GRADE_OUT[label.grade],
        domestic=_DOMESTIC_OUT[label.domestic],
        origin=sorted(label.origin),
        clean=_CLEAN_OUT[label.clean],
        categories=sorted(label.categories),
        located=sorted(label.located),
        collected=sorted(label.collected),
        purpose=sorted(label.purpose),
        asset=sorted(label.asset),
    )


def label_in(message: pb.EffectiveLabel) -> Effective:
    """Return the label of a message. An enum value that we do not know is refused. Raises WireError."""
    return Effective(
        read("label.personal", "a known value", lambda: _PERSONAL_IN[message.personal]),
        read("label.grade", "a known value", lambda: _GRADE_IN[message.grade]),
        read("label.domestic", "a known value", lambda: _DOMESTIC_IN[message.domestic]),
        places("label.origin", message.origin),
        read("label.clean", "a known value", lambda: _CLEAN_IN[message.clean]),
        words("label.categories", message.categories, _CATEGORIES),
        some("label.located", places("label.located", message.located)),
        some("label.collected", places("label.collected", message.collected)),
        some("label.purpose", words("label.purpose", message.purpose, _PURPOSES)),
        some("label.asset", words("label.asset", message.asset, _ASSETS)),
    )


def pathway_out(pathway: Pathway) -> pb.Pathway:
    """Return the message of a pathway."""
    return pb.Pathway(
        id=pathway.id,
        kind=pathway.kind.value,
        exporter=pathway.exporter,
        exporter_role=_ROLE_OUT[pathway.exporter_role],
        importer=pathway.importer,
        importer_role=_ROLE_OUT[pathway.importer_role],
        countries=sorted(pathway.countries),
        personal_max=_PERSONAL_OUT[pathway.personal_max],
        valid_from_ms=pathway.valid_from_ms,
        valid_until_ms=pathway.valid_until_ms,
        reference=pathway.reference,
        categories=sorted(pathway.categories),
        purposes=sorted(pathway.purposes),
        onward=sorted(pathway.onward),
        module=pathway.module or 0,
    )


def pathway_in(message: pb.Pathway) -> Pathway:
    """Return the pathway of a message. Raises WireError."""
    few("pathway.onward", len(message.onward), OWNERS_MAX)
    categories = frozenset(message.categories)
    if categories != ALL_CATEGORIES:
        categories = words("pathway.categories", message.categories, _CATEGORIES)
    if UNKNOWN in categories or message.personal_max == pb.PERSONAL_UNKNOWN:
        raise WireError("pathway.categories", "known words, and a known personal_max")
    if message.module > 4:
        raise WireError("pathway.module", "0 to 4")
    return Pathway(
        id=PathwayId(text("pathway.id", message.id)),
        kind=read("pathway.kind", "a known kind", lambda: PathwayKind(message.kind)),
        exporter=EntityId(text("pathway.exporter", message.exporter)),
        exporter_role=read("pathway.exporter_role", "a known role", lambda: _ROLE_IN[message.exporter_role]),
        importer=EntityId(text("pathway.importer", message.importer)),
        importer_role=read("pathway.importer_role", "a known role", lambda: _ROLE_IN[message.importer_role]),
        countries=jurisdictions("pathway.countries", message.countries),
        personal_max=read("pathway.personal_max", "a known value", lambda: _PERSONAL_IN[message.personal_max]),
        categories=categories,
        valid_from_ms=number("pathway.valid_from_ms", message.valid_from_ms),
        valid_until_ms=number("pathway.valid_until_ms", message.valid_until_ms),
        reference=message.reference,
        purposes=words("pathway.purposes", message.purposes, _PURPOSES),
        onward=frozenset(EntityId(text("pathway.onward", name)) for name in message.onward),
        module=message.module or None,
    )


def counter_in(message: pb.Counter) -> Counter:
    """Return the counter of a message. Raises WireError."""
    if message.count < 0:
        raise WireError("counter.count", "0 or more")
    return Counter(
        read("counter.kind", "a known kind", lambda: CounterKind(message.kind)),
        number("counter.count", message.count),
        number("counter.as_of_ms", message.as_of_ms),
        number("counter.valid_until_ms", message.valid_until_ms),
    )


def facts_out(facts: Facts) -> pb.Facts:
    """Return the message of facts."""
    return pb.Facts(
        tenant=entity_out(facts.tenant),
        label=label_out(facts.label),
        pathways=[pathway_out(pathway) for pathway in facts.pathways],
        processed_in=sorted(facts.processed_in),
        role=pb.ROLE_UNSPECIFIED if facts.role is None else _ROLE_OUT[facts.role],
        critical_infrastructure=_DECLARED_OUT[facts.critical_infrastructure],
        counters=[
            pb.Counter(kind=c.kind.value, count=c.count, as_of_ms=c.as_of_ms, valid_until_ms=c.valid_until_ms)
            for c in facts.counters
        ],
        notices=[pb.Notice(name=name, version=version) for name, version in facts.notices],
    )


def facts_in(message: pb.Facts) -> Facts:
    """Return the facts of a message. Raises WireError."""
    few("facts.pathways", len(message.pathways), PATHWAYS_MAX)
    few("facts.counters", len(message.counters), COUNTERS_MAX)
    few("facts.notices", len(message.notices), NOTICES_MAX)
    unsaid = message.role == pb.ROLE_UNSPECIFIED
    declared = message.critical_infrastructure
    return Facts(
        entity_in(message.tenant),
        label_in(message.label),
        tuple(pathway_in(pathway) for pathway in message.pathways),
        jurisdictions("facts.processed_in", message.processed_in),
        None if unsaid else read("facts.role", "a known role", lambda: _ROLE_IN[message.role]),
        read("facts.critical_infrastructure", "a known value", lambda: _DECLARED_IN[declared]),
        tuple(counter_in(counter) for counter in message.counters),
        tuple(
            (text("facts.notices.name", notice.name), text("facts.notices.version", notice.version))
            for notice in message.notices
        ),
    )


def _facts_to_bytes(facts: Facts) -> bytes:
    return facts_out(facts).SerializeToString()


facts_to_bytes: Callable[[Facts], bytes] = remembered(_facts_to_bytes)
"""The message of facts, written. Attempts of one tenant tell the same facts again and again."""


def facts_of_bytes(data: bytes) -> Facts:
    """Return the facts of a written message; the same bytes mostly give the same value. Raises WireError."""
    return _read_again(data) if len(data) <= REMEMBERED_BYTES_MAX else _facts_of_bytes(data)


def _facts_of_bytes(data: bytes) -> Facts:
    try:
        message = pb.Facts.FromString(data)
    except DecodeError:
        raise WireError("facts", "a message of facts") from None
    return facts_in(message)


_read_again = lru_cache(maxsize=REMEMBERED_MAX)(_facts_of_bytes)


def inputs_out(manifest: InputManifest, into: pb.InputManifest) -> None:
    """Fill the message of an input manifest. Its attempt stands in the frame."""
    for part in manifest.parts:
        into.parts.add(
            kind=part.kind, count=part.count, size_bytes=part.size_bytes, commitment=part.commitment or ""
        )
    into.domestic = _DOMESTIC_OUT[manifest.domestic]
    into.origin.extend(sorted(manifest.origin))
    into.collected.extend(sorted(manifest.collected))
    into.cache_namespace = manifest.cache_namespace


def inputs_in(message: pb.InputManifest, attempt: AttemptId) -> InputManifest:
    """Return the input manifest of a message. Raises WireError."""
    few("inputs.parts", len(message.parts), PARTS_MAX)
    parts = []
    for part in message.parts:
        kind, commitment = text("inputs.parts.kind", part.kind, 32), part.commitment
        size_bytes = number("inputs.parts.size_bytes", part.size_bytes)
        parts.append(
            InputPart(kind, part.count, size_bytes, text("inputs.parts.commitment", commitment) if commitment else None)
        )
    origin, collected = tuple(message.origin), tuple(message.collected)
    few_codes = len(origin) + len(collected) <= REMEMBERED_CODES_MAX
    stated = (_few_stated if few_codes else _stated)(message.domestic, origin, collected)
    return InputManifest(attempt, tuple(parts), *stated, text("inputs.cache_namespace", message.cache_namespace, 128))


Stated = tuple[Domestic, frozenset[Jurisdiction], frozenset[Jurisdiction]]


def _stated(domestic: pb.Domestic.ValueType, origin: tuple[str, ...], collected: tuple[str, ...]) -> Stated:
    """Return what an input manifest states of all inputs. Raises WireError."""
    return (
        read("inputs.domestic", "a known value", lambda: _DOMESTIC_IN[domestic]),
        places("inputs.origin", origin),
        places("inputs.collected", collected),
    )


_few_stated = lru_cache(maxsize=REMEMBERED_MAX)(_stated)


def citation_out(citation: Citation, into: pb.Citation) -> None:
    """Fill the message of a citation."""
    into.side, into.manifest, into.manifest_digest = citation.side, citation.manifest, citation.manifest_digest
    into.revocations, into.now_ms = citation.revocations, citation.now_ms
    into.permit_version = citation.permit_version


def citation_in(message: pb.Citation) -> Citation:
    """Return the citation of a message. Raises WireError."""
    manifest, revocations = message.manifest, message.revocations
    side, digest = _law_in(message.side, manifest, message.manifest_digest, revocations)
    now_ms = number("citation.now_ms", message.now_ms)
    return Citation(manifest, digest, now_ms, message.permit_version, revocations, side)


@lru_cache(maxsize=REMEMBERED_MAX)
def _law_in(side: str, manifest: int, manifest_digest: str, revocations: int) -> tuple[SideId, Digest]:
    """Return the names of a law. Raises WireError where these are none. All attempts cite the same until it changes."""
    if not is_digest(manifest_digest):
        raise WireError("citation.manifest_digest", "a digest, sha256:<hex>")
    text("citation.side", side)
    number("citation.manifest", manifest)
    number("citation.revocations", revocations)
    return SideId(side), Digest(manifest_digest)
