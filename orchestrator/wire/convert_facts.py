"""What the law is told, between values and protobuf. Total both ways: what cannot be read is refused, never guessed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from orchestrator.evidence.canonical import INTEGER_MAX
from orchestrator.evidence.citation import Citation
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.ids import Digest, EntityId, PathwayId, SideId, is_digest
from orchestrator.policy.jurisdictions import Jurisdiction, parse_jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import Facts
from protos.tidegate.v1 import labels_pb2 as pb

Value = TypeVar("Value")

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
_PERSONAL_IN = {number: value for value, number in _PERSONAL_OUT.items()}
_GRADE_IN = {number: value for value, number in _GRADE_OUT.items()}
_DOMESTIC_IN = {number: value for value, number in _DOMESTIC_OUT.items()}

TEXT_MAX = 512
SET_MAX = 300
"""More codes than there are jurisdictions are never meant."""
OWNERS_MAX = 64
PATHWAYS_MAX = 256


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
    if abs(value) > INTEGER_MAX:
        raise WireError(field, "an integer within 2^53")
    return value


def few(field: str, count: int, count_max: int) -> None:
    """Refuse a list that is longer than anybody means."""
    if count > count_max:
        raise WireError(field, f"at most {count_max}")


def jurisdictions(field: str, values: object) -> frozenset[Jurisdiction]:
    """Return a set of assigned codes."""
    codes = list(values)  # type: ignore[call-overload]
    if len(codes) > SET_MAX:
        raise WireError(field, f"at most {SET_MAX} codes")
    return read(field, "assigned ISO 3166-1 codes", lambda: frozenset(parse_jurisdiction(code) for code in codes))


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
    )


def label_in(message: pb.EffectiveLabel) -> Effective:
    """Return the label of a message. An enum value that we do not know is refused. Raises WireError."""
    return Effective(
        read("label.personal", "a known value", lambda: _PERSONAL_IN[message.personal]),
        read("label.grade", "a known value", lambda: _GRADE_IN[message.grade]),
        read("label.domestic", "a known value", lambda: _DOMESTIC_IN[message.domestic]),
        jurisdictions("label.origin", message.origin),
    )


def pathway_out(pathway: Pathway) -> pb.Pathway:
    """Return the message of a pathway."""
    return pb.Pathway(
        id=pathway.id,
        kind=pathway.kind.value,
        exporter=pathway.exporter,
        importer=pathway.importer,
        countries=sorted(pathway.countries),
        personal_max=_PERSONAL_OUT[pathway.personal_max],
        valid_from_ms=pathway.valid_from_ms,
        valid_until_ms=pathway.valid_until_ms,
        reference=pathway.reference,
    )


def pathway_in(message: pb.Pathway) -> Pathway:
    """Return the pathway of a message. Raises WireError."""
    return Pathway(
        PathwayId(text("pathway.id", message.id)),
        read("pathway.kind", "a known kind", lambda: PathwayKind(message.kind)),
        EntityId(text("pathway.exporter", message.exporter)),
        EntityId(text("pathway.importer", message.importer)),
        jurisdictions("pathway.countries", message.countries),
        read("pathway.personal_max", "a known value", lambda: _PERSONAL_IN[message.personal_max]),
        number("pathway.valid_from_ms", message.valid_from_ms),
        number("pathway.valid_until_ms", message.valid_until_ms),
        message.reference,
    )


def facts_out(facts: Facts) -> pb.Facts:
    """Return the message of facts."""
    return pb.Facts(
        tenant=entity_out(facts.tenant),
        label=label_out(facts.label),
        pathways=[pathway_out(pathway) for pathway in facts.pathways],
        processed_in=sorted(facts.processed_in),
    )


def facts_in(message: pb.Facts) -> Facts:
    """Return the facts of a message. Raises WireError."""
    few("facts.pathways", len(message.pathways), PATHWAYS_MAX)
    return Facts(
        entity_in(message.tenant),
        label_in(message.label),
        tuple(pathway_in(pathway) for pathway in message.pathways),
        jurisdictions("facts.processed_in", message.processed_in),
    )


def citation_out(citation: Citation) -> pb.Citation:
    """Return the message of a citation."""
    return pb.Citation(
        side=citation.side,
        manifest=citation.manifest,
        manifest_digest=citation.manifest_digest,
        revocations=citation.revocations,
        now_ms=citation.now_ms,
        permit_version=citation.permit_version,
    )


def citation_in(message: pb.Citation) -> Citation:
    """Return the citation of a message. Raises WireError."""
    if not is_digest(message.manifest_digest):
        raise WireError("citation.manifest_digest", "a digest, sha256:<hex>")
    return Citation(
        SideId(text("citation.side", message.side)),
        number("citation.manifest", message.manifest),
        Digest(message.manifest_digest),
        number("citation.revocations", message.revocations),
        number("citation.now_ms", message.now_ms),
        message.permit_version,
    )
