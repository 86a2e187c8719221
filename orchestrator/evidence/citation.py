"""What a decision stood on, and what an edge attests of an attempt, in the bytes that it signs."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.evidence.canonical import JsonValue, canonical_bytes
from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import AttemptId, DecisionId, Digest, EdgeId, PoolId, SideId
from orchestrator.policy.labels import Effective
from orchestrator.policy.pathways import Pathway
from orchestrator.policy.permit import Facts

ATTESTATION_VERSION = 1
ATTESTATION_PREFIX = b"tidegate attestation v1\n"


@dataclass(frozen=True, slots=True)
class Citation:
    """Manifest, revocation list and time that a decision used."""

    side: SideId
    manifest: int
    manifest_digest: Digest
    revocations: int
    now_ms: int
    permit_version: int

    def to_json(self) -> dict[str, JsonValue]:
        """Return the citation as canonical JSON holds it."""
        return {
            "side": self.side,
            "manifest": self.manifest,
            "manifest_digest": self.manifest_digest,
            "revocations": self.revocations,
            "now_ms": self.now_ms,
            "permit_version": self.permit_version,
        }


def label_to_json(label: Effective) -> dict[str, JsonValue]:
    """Return a label as canonical JSON holds it."""
    return {
        "personal": label.personal.word,
        "grade": label.grade.word,
        "domestic": label.domestic.word,
        "origin": list[JsonValue](sorted(label.origin)),
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
        "importer": pathway.importer,
        "countries": list[JsonValue](sorted(pathway.countries)),
        "personal_max": pathway.personal_max.word,
        "valid_from_ms": pathway.valid_from_ms,
        "valid_until_ms": pathway.valid_until_ms,
        "reference": pathway.reference,
    }


def facts_to_json(facts: Facts) -> dict[str, JsonValue]:
    """Return what the law was told as canonical JSON holds it."""
    return {
        "tenant": entity_to_json(facts.tenant),
        "label": label_to_json(facts.label),
        "pathways": [pathway_to_json(pathway) for pathway in facts.pathways],
        "processed_in": list[JsonValue](sorted(facts.processed_in)),
    }


def attestation_bytes(
    edge: EdgeId, attempt: AttemptId, decision: DecisionId, pool: PoolId, facts: Facts, citation: Citation
) -> bytes:
    """Return the bytes that an edge signs for one attempt: who asks, for what, and what the law was told."""
    return ATTESTATION_PREFIX + canonical_bytes(
        {
            "v": ATTESTATION_VERSION,
            "edge": edge,
            "attempt": attempt,
            "decision": decision,
            "pool": pool,
            "facts": facts_to_json(facts),
            "citation": citation.to_json(),
        }
    )
