"""Tenants: who calls, what their contract attests, and what they may have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Declared
from orchestrator.policy.ids import EdgeId, KeyId, ModelId, TenantId
from orchestrator.policy.labels import Labels
from orchestrator.policy.pathways import Pathway, Role


@dataclass(frozen=True, slots=True)
class KeyHash:
    """One API key: its public id and the SHA-256 (hex) of its secret bytes."""

    id: KeyId
    secret_sha256: str


@dataclass(frozen=True, slots=True)
class Service:
    """What a tenant was promised, and what its waiting is worth. None takes the side's setting. No law reads it."""

    value_of_time_pico_per_ms: int | None = None
    late_price_pico_per_ms: int | None = None
    slo_first_ms: int | None = None
    """To the first token."""
    slo_token_us: int | None = None
    """Per token after it."""
    budget_pico: int | None = None
    """The most that one request may be expected to cost the tenant, by its price book."""
    timeout_ms: int | None = None
    """The longest that one of its requests may take in all; like the next two, it only lowers what an edge allows."""
    first_token_timeout_ms: int | None = None
    between_tokens_timeout_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """An entity that calls an endpoint and is billed."""

    id: TenantId
    entity: Entity
    keys: tuple[KeyHash, ...]
    attested: Labels
    """What the signed contract says of payloads that declare nothing."""
    floor: Labels
    """What every payload of this tenant is at least."""
    models: frozenset[ModelId]
    """Models that it may use."""
    edges: frozenset[EdgeId]
    """Edges that serve it."""
    price_book: str
    pathways: tuple[Pathway, ...] = ()
    role: Role | None = None
    """In which role it handles the data that it sends; without one no pathway opens anything."""
    critical_infrastructure: Declared = Declared.UNKNOWN
    """Whether it operates critical information infrastructure (PIPL art. 40, CAC Order 16 art. 7)."""
    notices: tuple[tuple[str, str], ...] = ()
    """(name, version) of each notice that it has given its subjects, sorted."""
    service: Service | None = None
    revisions: Mapping[ModelId, str] = field(default_factory=dict)
    """The revision of a model that its contract insists on."""
    keep_results: bool = False
    """Whether results of requests with an `Idempotency-Key` are kept for a day, where the law lets them be."""
