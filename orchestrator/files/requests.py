"""A request as `explain` reads it: who asks where, with which labels. It holds no payload."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import (
    Count,
    CountOrZero,
    Version,
    Written,
    read_jurisdictions,
    read_model,
    read_name,
    read_revision,
)
from orchestrator.files.label_header import LabelHeaderError, parse_label_header
from orchestrator.files.pool_states import PoolState, PoolStateDocument, pool_states_of
from orchestrator.placement.capabilities import Capability
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.ids import EdgeId, ModelId, PoolId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels

Header = Annotated[str, Meta(examples=['personal=personal, origin="DE"'])]


class RequestDocument(Written, frozen=True):
    """One request. `labels` is the text of the header `x-tidegate-labels`; left out, the request sends none.

    `counters` are the counts of persons, this request included; one that is left out is unknown. `processed_in` names
    the places that produced a text, when a cut answer goes on elsewhere. `output_tokens` is how long the answer is
    expected to be, `max_tokens` the limit that the request sets on it. `revision` takes the place of the one that the
    contract insists on. `canary` asks the settings on trial. `pools` is what is known of single pools at that moment.
    """

    version: Version
    edge: str
    tenant: str
    labels: Header | UnsetType = UNSET
    model: str | UnsetType = UNSET
    counters: dict[CounterKind, CountOrZero] = msgspec.field(default_factory=dict)
    processed_in: tuple[str, ...] = ()
    prompt_tokens: Count = 100
    output_tokens: Count = 100
    upload_bytes: Count = 1000
    capabilities: tuple[Capability, ...] = ()
    max_tokens: Count | UnsetType = UNSET
    revision: str | UnsetType = UNSET
    canary: bool = False
    pools: dict[str, PoolStateDocument] = msgspec.field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class AskedRequest:
    """A request to be explained."""

    edge: EdgeId
    tenant: TenantId
    declared: Labels
    model: ModelId | None
    """None: any model that the tenant may use."""
    counters: Mapping[CounterKind, int]
    processed_in: frozenset[Jurisdiction]
    prompt_tokens: int
    output_tokens: int
    """Expected: at most `max_tokens`."""
    upload_bytes: int
    capabilities: frozenset[Capability]
    max_tokens: int | None = None
    revision: str | None = None
    """None: what the contract says."""
    canary: bool = False
    pools: Mapping[PoolId, PoolState] = field(default_factory=dict)
    """What is known of single pools; the others are idle."""


def request_of(document: RequestDocument) -> AskedRequest:
    """Return the request. Raises DomainError."""
    declared = Labels()
    if document.labels is not UNSET:
        try:
            declared = parse_label_header(document.labels)
        except LabelHeaderError as refusal:
            raise DomainError(("labels",), str(refusal)) from None
    processed, most = document.processed_in, document.max_tokens
    return AskedRequest(
        edge=EdgeId(read_name(document.edge, ("edge",))),
        tenant=TenantId(read_name(document.tenant, ("tenant",))),
        declared=declared,
        model=None if document.model is UNSET else read_model(document.model, ("model",)),
        counters=document.counters,
        processed_in=read_jurisdictions(processed, ("processed_in",)) if processed else frozenset(),
        prompt_tokens=document.prompt_tokens,
        output_tokens=document.output_tokens if most is UNSET else min(document.output_tokens, most),
        upload_bytes=document.upload_bytes,
        capabilities=frozenset(document.capabilities),
        max_tokens=None if most is UNSET else most,
        revision=None if document.revision is UNSET else read_revision(document.revision, ("revision",)),
        canary=document.canary,
        pools=pool_states_of(document.pools, ("pools",)),
    )
