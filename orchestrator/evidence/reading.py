"""Facts and labels as canonical JSON holds them, back to values: what a decision is made again from.

Raises KeyError, ValueError and TypeError on anything that our own records do not hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId, PathwayId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.pathways import Pathway, PathwayKind, Role


def facts_from_json(value: Mapping[str, Any]) -> Facts:
    """Return the facts that `citation.facts_to_json` wrote."""
    return Facts(
        tenant=_entity(value["tenant"]),
        label=label_from_json(value["label"]),
        pathways=tuple(_pathway(pathway) for pathway in value["pathways"]),
        processed_in=_codes(value["processed_in"]),
        role=None if value["role"] is None else Role(value["role"]),
        critical_infrastructure=Declared[value["critical_infrastructure"].upper()],
        counters=tuple(
            Counter(CounterKind(one["kind"]), one["count"], one["as_of_ms"], one["valid_until_ms"])
            for one in value["counters"]
        ),
        notices=tuple((notice["name"], notice["version"]) for notice in value["notices"]),
    )


def label_from_json(value: Mapping[str, Any]) -> Effective:
    """Return the label that `citation.label_to_json` wrote."""
    return Effective(
        personal=Personal[value["personal"].upper()],
        grade=Grade[value["grade"].upper()],
        domestic=Domestic[value["domestic"].upper()],
        origin=_codes(value["origin"]),
        clean=Clean[value["clean"].upper()],
        categories=frozenset(value["categories"]),
        located=_codes(value["located"]),
        collected=_codes(value["collected"]),
        purpose=frozenset(value["purpose"]),
        asset=frozenset(value["asset"]),
    )


def _entity(value: Mapping[str, Any]) -> Entity:
    owners = tuple(
        Owner(EntityId(owner["entity"]), Jurisdiction(owner["country"]), owner["share_percent"])
        for owner in value["owners"]
    )
    return Entity(EntityId(value["id"]), Jurisdiction(value["country"]), owners)


def _pathway(value: Mapping[str, Any]) -> Pathway:
    return Pathway(
        id=PathwayId(value["id"]),
        kind=PathwayKind(value["kind"]),
        exporter=EntityId(value["exporter"]),
        exporter_role=Role(value["exporter_role"]),
        importer=EntityId(value["importer"]),
        importer_role=Role(value["importer_role"]),
        countries=_codes(value["countries"]),
        personal_max=Personal[value["personal_max"].upper()],
        categories=frozenset(value["categories"]),
        valid_from_ms=value["valid_from_ms"],
        valid_until_ms=value["valid_until_ms"],
        reference=value["reference"],
        purposes=frozenset(value["purposes"]),
        onward=frozenset(EntityId(name) for name in value["onward"]),
        module=value["module"],
    )


def _codes(values: list[str]) -> frozenset[Jurisdiction]:
    return frozenset(Jurisdiction(code) for code in values)
