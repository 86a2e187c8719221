"""What a decision stood on, and what an edge attests of an attempt, in the bytes that it signs."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from orchestrator.evidence.canonical import JsonValue, spelled, written_part
from orchestrator.evidence.remembered import remembered
from orchestrator.policy.counters import Counter
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import AttemptId, DecisionId, Digest, EdgeId, PoolId, SideId
from orchestrator.policy.labels import Effective
from orchestrator.policy.pathways import Pathway

ATTESTATION_VERSION = 2
ATTESTATION_PREFIX = b"tidegate attestation v2\n"


class Citation(msgspec.Struct, frozen=True):
    """Manifest, revocation list and time that a decision used. Records hold its fields by their names, in order."""

    manifest: int
    manifest_digest: Digest
    now_ms: int
    permit_version: int
    revocations: int
    side: SideId


def label_to_json(label: Effective) -> dict[str, JsonValue]:
    """Return a label as canonical JSON holds it."""
    return {
        "personal": label.personal.word,
        "grade": label.grade.word,
        "domestic": label.domestic.word,
        "origin": list[JsonValue](sorted(label.origin)),
        "clean": label.clean.word,
        "categories": list[JsonValue](sorted(label.categories)),
        "located": list[JsonValue](sorted(label.located)),
        "collected": list[JsonValue](sorted(label.collected)),
        "purpose": list[JsonValue](sorted(label.purpose)),
        "asset": list[JsonValue](sorted(label.asset)),
    }


def entity_to_json(entity: Entity) -> dict[str, JsonValue]:
    """Return an entity as canonical JSON holds it."""
    return {
        "id": entity.id,
        "country": entity.country,
        "owners": [
            {"entity": owner.entity, "country": owner.country, "share_percent": owner.share_percent}
            for owner in entity.owners
        ],
    }


def pathway_to_json(pathway: Pathway) -> dict[str, JsonValue]:
    """Return a pathway as canonical JSON holds it."""
    return {
        "id": pathway.id,
        "kind": pathway.kind.value,
        "exporter": pathway.exporter,
        "exporter_role": pathway.exporter_role.value,
        "importer": pathway.importer,
        "importer_role": pathway.importer_role.value,
        "countries": list[JsonValue](sorted(pathway.countries)),
        "personal_max": pathway.personal_max.word,
        "valid_from_ms": pathway.valid_from_ms,
        "valid_until_ms": pathway.valid_until_ms,
        "reference": pathway.reference,
        "categories": list[JsonValue](sorted(pathway.categories)),
        "purposes": list[JsonValue](sorted(pathway.purposes)),
        "onward": list[JsonValue](sorted(pathway.onward)),
        "module": pathway.module,
    }


def counter_to_json(counter: Counter) -> dict[str, JsonValue]:
    """Return a counter as canonical JSON holds it."""
    return {
        "kind": counter.kind.value,
        "count": counter.count,
        "as_of_ms": counter.as_of_ms,
        "valid_until_ms": counter.valid_until_ms,
    }


def facts_to_json(facts: Facts) -> dict[str, JsonValue]:
    """Return what the law was told as canonical JSON holds it."""
    return {
        "tenant": entity_to_json(facts.tenant),
        "label": label_to_json(facts.label),
        "pathways": [pathway_to_json(pathway) for pathway in facts.pathways],
        "processed_in": list[JsonValue](sorted(facts.processed_in)),
        "role": None if facts.role is None else facts.role.value,
        "critical_infrastructure": facts.critical_infrastructure.word,
        "counters": [counter_to_json(counter) for counter in facts.counters],
        "notices": [{"name": name, "version": version} for name, version in facts.notices],
    }


facts_part: Callable[[Facts], msgspec.Raw] = remembered(lambda facts: written_part(facts_to_json(facts)))
"""What the law was told, as records hold it."""


def attestation_bytes(
    edge: EdgeId,
    attempt: AttemptId,
    decision: DecisionId,
    pool: PoolId,
    facts: Facts,
    citation: Citation,
    inputs: Digest | None,
) -> bytes:
    """Return the bytes that an edge signs for one attempt: who asks, for what, what went in, what the law was told."""
    told, version = facts_part(facts), ATTESTATION_VERSION
    return ATTESTATION_PREFIX + spelled(_Attested(attempt, citation, decision, edge, told, inputs, pool, version))


class _Attested(msgspec.Struct, frozen=True):
    """What is attested, by the names of its bytes, in their order."""

    attempt: AttemptId
    citation: Citation
    decision: DecisionId
    edge: EdgeId
    facts: msgspec.Raw
    inputs: Digest | None
    pool: PoolId
    v: int
