"""`tidegate policy table`: who may send what where, as a matrix for people. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from html import escape

from orchestrator.bundles.assemble import Bundle
from orchestrator.evidence.canonical import JsonValue
from orchestrator.policy.classes import jurisdiction_atoms
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.pathways import Role
from orchestrator.policy.permit import permit_route
from orchestrator.policy.verdicts import NO_PACK, Verdict
from orchestrator.policy.vocabulary import Asset, Category, Purpose

PAYLOADS: tuple[tuple[str, Personal, Grade, frozenset[str]], ...] = (
    ("general data", Personal.NONE, Grade.GENERAL, frozenset()),
    ("personal data", Personal.PERSONAL, Grade.GENERAL, frozenset({Category.CONTACT.value})),
    ("sensitive personal data", Personal.SENSITIVE, Grade.GENERAL, frozenset({Category.HEALTH.value})),
    ("important data", Personal.NONE, Grade.IMPORTANT, frozenset()),
)
"""The rows of each origin: overseas data, fully declared, of a controller that is no critical infrastructure."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One answer."""

    allowed: bool
    rules: tuple[str, ...]
    needs: tuple[str, ...]
    obligations: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Row:
    """One kind of payload of one origin, sent from one edge."""

    edge: str
    origin: str
    payload: str
    cells: tuple[Cell, ...]
    """One for each pool."""


@dataclass(frozen=True, slots=True)
class Table:
    """The whole matrix, for a tenant or for one without papers."""

    tenant: str
    pools: tuple[str, ...]
    rows: tuple[Row, ...]

    def to_json(self) -> dict[str, JsonValue]:
        """Return the matrix."""
        return {
            "v": 1,
            "tenant": self.tenant or None,
            "pools": list[JsonValue](self.pools),
            "rows": [
                {
                    "edge": row.edge,
                    "origin": row.origin,
                    "payload": row.payload,
                    "cells": {
                        pool: {
                            "allowed": cell.allowed,
                            "rules": list[JsonValue](cell.rules),
                            "needs": list[JsonValue](cell.needs),
                            "obligations": list[JsonValue](cell.obligations),
                        }
                        for pool, cell in zip(self.pools, row.cells, strict=True)
                    },
                }
                for row in self.rows
            ],
        }


def table(bundle: Bundle, now_ms: int, tenant_name: str | None) -> Table:
    """Return who may send what where at `now_ms`. Raises KeyError for a tenant that the bundle does not have."""
    tenant = None
    if tenant_name is not None:
        found = {str(tenant.id): tenant for tenant in bundle.tenants}
        tenant = found[tenant_name]
    base = Facts(Entity(EntityId("nobody"), Jurisdiction("SG")), Effective(), (), frozenset(), Role.CONTROLLER)
    if tenant is not None:
        base = replace(
            base, tenant=tenant.entity, pathways=tenant.pathways, role=tenant.role, notices=tenant.notices
        )
    base = replace(base, critical_infrastructure=Declared.NO)
    pools = sorted(bundle.fleet.pools, key=lambda pool: pool.id)
    rows = []
    for edge in sorted(bundle.fleet.edges, key=lambda edge: edge.id):
        for origin in _origins(bundle):
            for words, personal, grade, categories in PAYLOADS:
                here = frozenset({origin})
                label = Effective(
                    personal=personal,
                    grade=grade,
                    domestic=Domestic.NO,
                    origin=here | edge.place.soil(),
                    clean=Clean.RAW,
                    categories=categories,
                    located=here,
                    collected=here,
                    purpose=frozenset({Purpose.INFERENCE.value}),
                    asset=frozenset({Asset.PAYLOAD.value}),
                )
                facts = replace(base, label=label)
                cells = tuple(
                    _cell(permit_route(bundle.law, facts, edge.place, pool.place, now_ms)) for pool in pools
                )
                rows.append(Row(edge.id, origin, words, cells))
    return Table(tenant_name or "", tuple(pool.id for pool in pools), tuple(rows))


def to_html(found: Table, title: str) -> str:
    """Return the matrix as one page that needs nothing else."""
    head = "".join(f"<th>{escape(pool)}</th>" for pool in found.pools)
    body = []
    for row in found.rows:
        cells = "".join(_html_cell(cell) for cell in row.cells)
        names = "".join(f"<td>{escape(name)}</td>" for name in (row.edge, row.origin, row.payload))
        body.append(f"<tr>{names}{cells}</tr>")
    whose = f"for tenant {escape(found.tenant)}" if found.tenant else "for a tenant without papers"
    return (
        "<!doctype html><html lang=en><meta charset=utf-8>"
        f"<title>{escape(title)}</title><style>"
        "body{font:14px system-ui,sans-serif;margin:2em}table{border-collapse:collapse}"
        "th,td{border:1px solid #ccc;padding:.3em .6em;text-align:left;vertical-align:top}"
        "th{position:sticky;top:0;background:#fff}.yes{background:#e4f4e4}.no{background:#f8e4e4}"
        "small{color:#555;display:block;max-width:24em}</style>"
        f"<h1>{escape(title)}</h1><p>Who may send what where, {whose}. Engineering, not legal advice.</p>"
        f"<table><thead><tr><th>edge</th><th>origin</th><th>payload</th>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></html>\n"
    )


def _origins(bundle: Bundle) -> tuple[Jurisdiction, ...]:
    """Every country with a pack of its own, and one of those for which a pack speaks together with others."""
    spoken = bundle.law.jurisdictions()
    tests = [
        test
        for admitted in bundle.law.packs
        for rule in admitted.pack.rules
        for test in (*rule.when, *rule.unless)
    ]
    return tuple(atom for atom in jurisdiction_atoms((bundle.law,), tests) if atom in spoken)


def _cell(verdict: Verdict) -> Cell:
    rules = verdict.rules if not verdict.allowed else ()
    shown = tuple(rule for rule in rules if rule != NO_PACK) or rules
    needs = tuple(dict.fromkeys(reason.needs for reason in verdict.reasons if reason.needs))
    duties = tuple(f"{duty.kind.value}:{duty.argument}" for duty in verdict.obligations)
    return Cell(verdict.allowed, shown, needs, duties)


def _html_cell(cell: Cell) -> str:
    if cell.allowed:
        duties = f"<small>{escape(', '.join(cell.obligations))}</small>" if cell.obligations else ""
        return f"<td class=yes>allowed{duties}</td>"
    needs = f"<small>{escape(' '.join(cell.needs))}</small>" if cell.needs else ""
    return f"<td class=no>{escape(', '.join(cell.rules))}{needs}</td>"
