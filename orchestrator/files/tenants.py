"""Tenants: who calls, what their contract attests, and what they may have.

A file holds key ids and the SHA-256 of secrets, never a secret.
"""

from __future__ import annotations

import re

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    EntityDocument,
    LabelsDocument,
    Text,
    Version,
    Written,
    read_day_ms,
    read_entity,
    read_jurisdictions,
    read_labels,
    read_model,
    read_name,
    read_names,
    read_text,
    read_word,
    refuse_repeats,
)
from orchestrator.files.typed import FieldPath
from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import KEY_ID_PATTERN, EdgeId, EntityId, KeyId, PathwayId, TenantId
from orchestrator.policy.labels import PERSONAL_WORDS, Personal
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.tenants import KeyHash, Tenant

_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_COVERED_WORDS = {word: value for word, value in PERSONAL_WORDS.items() if value is not Personal.UNKNOWN}


class KeyDocument(Written, frozen=True):
    """One API key: its public id and the SHA-256 (hex) of its secret bytes."""

    id: str
    sha256: str


class PathwayDocument(Written, frozen=True):
    """A recorded legal basis. It holds from midnight UTC of `valid_from` until midnight UTC of `valid_until`."""

    id: str
    kind: PathwayKind
    exporter: str
    importer: str
    countries: tuple[str, ...]
    personal_max: str
    valid_from: str
    valid_until: str
    reference: Text


class TenantDocument(Written, frozen=True):
    """One tenant. `attested.origin` must be given: a contract says whose data it is about."""

    id: str
    entity: EntityDocument
    keys: tuple[KeyDocument, ...]
    attested: LabelsDocument
    models: tuple[str, ...]
    edges: tuple[str, ...]
    price_book: str
    floor: LabelsDocument = LabelsDocument()
    pathways: tuple[PathwayDocument, ...] = ()


class TenantsDocument(Written, frozen=True):
    """A shard of the tenants of one side."""

    version: Version
    tenants: tuple[TenantDocument, ...]


def tenants_of(document: TenantsDocument) -> tuple[Tenant, ...]:
    """Return the tenants; ids of tenants and of keys are unique within the document. Raises DomainError."""
    tenants = tuple(_tenant(tenant, ("tenants", index)) for index, tenant in enumerate(document.tenants))
    refuse_repeats((tenant.id for tenant in tenants), ("tenants",), "id")
    holders: dict[KeyId, TenantId] = {}
    for index, tenant in enumerate(tenants):
        for number, key in enumerate(tenant.keys):
            if key.id in holders:
                path: FieldPath = ("tenants", index, "keys", number, "id")
                raise DomainError(path, f"expected it once, but tenant {holders[key.id]} has it already")
            holders[key.id] = tenant.id
    return tenants


def _tenant(document: TenantDocument, path: FieldPath) -> Tenant:
    if not document.attested.origin:
        raise DomainError((*path, "attested", "origin"), "expected at least one jurisdiction")
    entity = read_entity(document.entity, (*path, "entity"))
    pathways = tuple(
        _pathway(pathway, entity, (*path, "pathways", index)) for index, pathway in enumerate(document.pathways)
    )
    refuse_repeats((pathway.id for pathway in pathways), (*path, "pathways"), "id")
    models = tuple(read_model(model, (*path, "models", index)) for index, model in enumerate(document.models))
    refuse_repeats(models, (*path, "models"))
    return Tenant(
        id=TenantId(read_name(document.id, (*path, "id"))),
        entity=entity,
        keys=tuple(_key(key, (*path, "keys", index)) for index, key in enumerate(document.keys)),
        attested=read_labels(document.attested, (*path, "attested")),
        floor=read_labels(document.floor, (*path, "floor")),
        models=frozenset(models),
        edges=frozenset(EdgeId(name) for name in read_names(document.edges, (*path, "edges"))),
        price_book=read_name(document.price_book, (*path, "price_book")),
        pathways=pathways,
    )


def _key(document: KeyDocument, path: FieldPath) -> KeyHash:
    if KEY_ID_PATTERN.match(document.id) is None:
        raise DomainError((*path, "id"), "expected 6 to 32 lower-case letters and digits")
    if _SHA256.match(document.sha256) is None:
        raise DomainError((*path, "sha256"), "expected 64 lower-case hex digits")
    return KeyHash(KeyId(document.id), document.sha256)


def _pathway(document: PathwayDocument, holder: Entity, path: FieldPath) -> Pathway:
    exporter = EntityId(read_name(document.exporter, (*path, "exporter")))
    if exporter != holder.id:
        # `permit` asks for pathways whose exporter is the tenant: any other would be a paper that opens nothing.
        raise DomainError((*path, "exporter"), "expected the entity of this tenant")
    valid_from_ms = read_day_ms(document.valid_from, (*path, "valid_from"))
    valid_until_ms = read_day_ms(document.valid_until, (*path, "valid_until"))
    if valid_until_ms <= valid_from_ms:
        raise DomainError((*path, "valid_until"), "expected a date after valid_from")
    return Pathway(
        id=PathwayId(read_name(document.id, (*path, "id"))),
        kind=document.kind,
        exporter=exporter,
        importer=EntityId(read_name(document.importer, (*path, "importer"))),
        countries=read_jurisdictions(document.countries, (*path, "countries")),
        personal_max=read_word(document.personal_max, _COVERED_WORDS, (*path, "personal_max")),
        valid_from_ms=valid_from_ms,
        valid_until_ms=valid_until_ms,
        reference=read_text(document.reference, (*path, "reference")),
    )
