"""Tenants: who calls, what their contract attests, and what they may have.

A file holds key ids and the SHA-256 of secrets, never a secret.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    CATEGORY_WORDS,
    PURPOSE_WORDS,
    CategoryWord,
    Count,
    Day,
    EntityDocument,
    LabelsDocument,
    PurposeWord,
    Text,
    Version,
    Written,
    read_amount,
    read_day_ms,
    read_entity,
    read_jurisdictions,
    read_labels,
    read_model,
    read_name,
    read_names,
    read_revision,
    read_text,
    read_word,
    read_words,
    refuse_repeats,
)
from orchestrator.files.settings import read_time_price
from orchestrator.files.typed import FieldPath
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Declared
from orchestrator.policy.ids import KEY_ID_PATTERN, EdgeId, EntityId, KeyId, PathwayId, TenantId
from orchestrator.policy.labels import PERSONAL_WORDS, Personal
from orchestrator.policy.pathways import ALL_CATEGORIES, INFERENCE_ONLY, SCC_MODULES, Pathway, PathwayKind, Role
from orchestrator.policy.tenants import KeyHash, Service, Tenant
from orchestrator.policy.vocabulary import UNKNOWN

CoveredWord = Annotated[str, Meta(extra_json_schema={"enum": ["none", "personal", "sensitive"]})]
_SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_COVERED_WORDS = {word: value for word, value in PERSONAL_WORDS.items() if value is not Personal.UNKNOWN}


class KeyDocument(Written, frozen=True):
    """One API key: its public id and the SHA-256 (hex) of its secret bytes."""

    id: str
    sha256: str


class PathwayDocument(Written, frozen=True):
    """A recorded legal basis. It holds from midnight UTC of `valid_from` until midnight UTC of `valid_until`.

    `categories` names every category of personal data that it covers; `[all]` covers the unknown ones too. `onward`
    names other entities with access at the importer's place.
    """

    id: str
    kind: PathwayKind
    exporter: str
    exporter_role: Role
    importer: str
    importer_role: Role
    countries: tuple[str, ...]
    personal_max: CoveredWord
    categories: tuple[CategoryWord | Literal["all"], ...]
    valid_from: Day
    valid_until: Day
    reference: Text
    purposes: tuple[PurposeWord, ...] | UnsetType = UNSET
    """Left out: inference."""
    onward: tuple[str, ...] = ()
    module: Annotated[int, Meta(ge=1, le=4)] | UnsetType = UNSET


class NoticeDocument(Written, frozen=True):
    """A notice that the tenant has given its subjects, and its version."""

    id: str
    version: str


class ServiceDocument(Written, frozen=True):
    """What the tenant was promised, and what its waiting is worth, in the currency of the side's settings.

    What is left out is as the side's settings say. `budget_per_request` is the most that one request may be expected to
    cost the tenant by its price book, in the currency in which that prices the model; without one, no request is
    refused for its price. `timeout_ms` bounds each of its requests in all, the others the waits for the first token and
    between two: they only lower what an edge allows.
    """

    value_of_time_per_second: str | UnsetType = UNSET
    late_price_per_second: str | UnsetType = UNSET
    slo_first_ms: Count | UnsetType = UNSET
    slo_token_ms: Count | UnsetType = UNSET
    budget_per_request: str | UnsetType = UNSET
    timeout_ms: Count | UnsetType = UNSET
    first_token_timeout_ms: Count | UnsetType = UNSET
    between_tokens_timeout_ms: Count | UnsetType = UNSET


class TenantDocument(Written, frozen=True):
    """One tenant. `attested.origin` must be given: a contract says whose data it is about.

    `role` is the one in which it handles that data, `critical_infrastructure` whether it operates critical information
    infrastructure; what is left out is unknown, which is the worst.
    """

    id: str
    entity: EntityDocument
    keys: tuple[KeyDocument, ...]
    attested: LabelsDocument
    models: tuple[str, ...]
    edges: tuple[str, ...]
    price_book: str
    floor: LabelsDocument = LabelsDocument()
    role: Role | UnsetType = UNSET
    critical_infrastructure: bool | UnsetType = UNSET
    pathways: tuple[PathwayDocument, ...] = ()
    notices: tuple[NoticeDocument, ...] = ()
    service: ServiceDocument | UnsetType = UNSET
    revisions: dict[str, str] = msgspec.field(default_factory=dict)
    """By model: the revision that the contract insists on. Pools that serve another are no candidates."""
    keep_results: bool = False
    """Whether the edge keeps results of requests with an `Idempotency-Key` for 24 h and sends them again. The law of
    every place that they touch must grant the movement `store` besides."""


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
    if pathways and document.role is UNSET:
        raise DomainError((*path, "role"), "expected controller or processor: pathways are held in a role")
    critical = document.critical_infrastructure
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
        role=None if document.role is UNSET else document.role,
        critical_infrastructure=Declared.UNKNOWN if critical is UNSET else Declared(int(critical)),
        notices=_notices(document.notices, (*path, "notices")),
        revisions={
            read_model(model, (*path, "revisions", model)): read_revision(revision, (*path, "revisions", model))
            for model, revision in document.revisions.items()
        },
        service=None if document.service is UNSET else _service(document.service, (*path, "service")),
        keep_results=document.keep_results,
    )


def _service(document: ServiceDocument, path: FieldPath) -> Service:
    value, late, budget = (
        document.value_of_time_per_second,
        document.late_price_per_second,
        document.budget_per_request,
    )
    return Service(
        value_of_time_pico_per_ms=None
        if value is UNSET
        else read_time_price(value, (*path, "value_of_time_per_second")),
        late_price_pico_per_ms=None if late is UNSET else read_time_price(late, (*path, "late_price_per_second")),
        slo_first_ms=None if document.slo_first_ms is UNSET else document.slo_first_ms,
        slo_token_us=None if document.slo_token_ms is UNSET else document.slo_token_ms * 1000,
        budget_pico=None if budget is UNSET else read_amount(budget, 1, (*path, "budget_per_request")),
        timeout_ms=_said(document.timeout_ms),
        first_token_timeout_ms=_said(document.first_token_timeout_ms),
        between_tokens_timeout_ms=_said(document.between_tokens_timeout_ms),
    )


def _said(value: int | UnsetType) -> int | None:
    return None if value is UNSET else value


def _notices(documents: Sequence[NoticeDocument], path: FieldPath) -> tuple[tuple[str, str], ...]:
    refuse_repeats((notice.id for notice in documents), path, "id")
    return tuple(
        sorted(
            (read_name(notice.id, (*path, index, "id")), read_text(notice.version, (*path, index, "version")))
            for index, notice in enumerate(documents)
        )
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
    module = None if document.module is UNSET else document.module
    _check_module(document, module, path)
    return Pathway(
        id=PathwayId(read_name(document.id, (*path, "id"))),
        kind=document.kind,
        exporter=exporter,
        exporter_role=document.exporter_role,
        importer=EntityId(read_name(document.importer, (*path, "importer"))),
        importer_role=document.importer_role,
        countries=read_jurisdictions(document.countries, (*path, "countries")),
        personal_max=read_word(document.personal_max, _COVERED_WORDS, (*path, "personal_max")),
        categories=_categories(document.categories, (*path, "categories")),
        valid_from_ms=valid_from_ms,
        valid_until_ms=valid_until_ms,
        reference=read_text(document.reference, (*path, "reference")),
        purposes=_purposes(document.purposes, (*path, "purposes")),
        onward=frozenset(EntityId(name) for name in read_names(document.onward, (*path, "onward"))),
        module=module,
    )


def _purposes(texts: Sequence[str] | UnsetType, path: FieldPath) -> frozenset[str]:
    if texts is UNSET:
        return INFERENCE_ONLY
    if not texts:
        raise DomainError(path, "expected at least one: a pathway for no purpose opens nothing")
    return read_words(texts, [word for word in PURPOSE_WORDS if word != UNKNOWN], path)


def _check_module(document: PathwayDocument, module: int | None, path: FieldPath) -> None:
    """A module of the EU clauses says who is who (Decision (EU) 2021/914): the roles must be those."""
    if document.kind is not PathwayKind.EU_SCC:
        if module is not None:
            raise DomainError((*path, "module"), "expected no such field: only eu_scc has modules")
        return
    if module is None:
        raise DomainError((*path, "module"), "expected the module of the clauses, 1 to 4")
    for field, given, expected in (
        ("exporter_role", document.exporter_role, SCC_MODULES[module][0]),
        ("importer_role", document.importer_role, SCC_MODULES[module][1]),
    ):
        if given is not expected:
            raise DomainError((*path, field), f"expected {expected.value}, as in module {module} of the clauses")


def _categories(texts: Sequence[str], path: FieldPath) -> frozenset[str]:
    if not texts:
        raise DomainError(path, "expected the categories that it covers, or [all]")
    if tuple(texts) == tuple(ALL_CATEGORIES):
        return ALL_CATEGORIES
    return read_words(texts, [word for word in CATEGORY_WORDS if word != UNKNOWN], path)
