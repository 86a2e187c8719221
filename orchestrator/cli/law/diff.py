"""`tidegate policy diff`: what does another law newly allow, and newly forbid?

Over the distinguishable classes of both laws, on every route of the fleet, and over recorded decisions. The worst comes
first: what is newly allowed for the most sensitive payloads.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from orchestrator.bundles.assemble import Bundle
from orchestrator.cli.law.explain import CannotExplain
from orchestrator.evidence.canonical import JsonValue
from orchestrator.evidence.reading import facts_from_json
from orchestrator.placement.fleet import Edge
from orchestrator.policy.classes import PayloadClass, payload_classes
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, PlaceId, PoolId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.pathways import Role
from orchestrator.policy.permit import permit_route
from orchestrator.policy.places import Place
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Tenant

EXAMPLES_MAX = 20
"""Examples that are shown of each kind of change on each route."""


@dataclass(slots=True)
class Change:
    """What changes on one route, in one direction."""

    edge: str
    pool: str
    tenant: str
    newly_allowed: bool
    count: int = 0
    examples: list[tuple[tuple[int, ...], str, tuple[str, ...]]] = field(default_factory=list)
    """(severity, payload, rules of the law that refuses)."""

    def add(self, severity: tuple[int, ...], words: str, rules: tuple[str, ...]) -> None:
        """Count one payload; the worst are kept as examples."""
        self.count += 1
        self.examples.append((severity, words, rules))
        if len(self.examples) >= 4 * EXAMPLES_MAX:
            self.trim()

    def trim(self) -> None:
        """Keep the worst examples."""
        self.examples = sorted(self.examples, key=lambda one: (tuple(-rank for rank in one[0]), one[1]))[:EXAMPLES_MAX]

    def worst(self) -> tuple[int, ...]:
        """Return the severity of the worst example."""
        return max(example[0] for example in self.examples)


@dataclass(frozen=True, slots=True)
class Difference:
    """Everything that changes."""

    classes: int
    """Payload classes that were compared, for each route and tenant."""
    decisions: int
    """Recorded decisions that were compared."""
    changes: tuple[Change, ...]

    def to_json(self) -> dict[str, JsonValue]:
        """Return the difference, worst first."""
        return {
            "v": 1,
            "classes": self.classes,
            "decisions": self.decisions,
            "changes": [
                {
                    "change": "newly_allowed" if change.newly_allowed else "newly_forbidden",
                    "edge": change.edge,
                    "pool": change.pool,
                    "tenant": change.tenant,
                    "count": change.count,
                    "examples": [
                        {"payload": words, "rules": list[JsonValue](rules)} for _, words, rules in change.examples
                    ],
                }
                for change in self.changes
            ],
        }


Tick = Callable[[int], None]


def difference(
    before: Bundle, after: Bundle, records: Iterable[Mapping[str, Any]], now_ms: int, tick: Tick
) -> Difference:
    """Compare two bundles at `now_ms`. `tick` is told how many classes were compared.

    Raises CannotExplain for a record that no decision of an edge wrote.
    """
    changes: dict[tuple[str, str, str, bool], Change] = {}
    names = sorted({pool.id for bundle in (before, after) for pool in bundle.fleet.pools})
    edges = {edge.id: edge for bundle in (after, before) for edge in bundle.fleet.edges}
    routes = [
        (edge, tuple(_table(bundle, edge, names, now_ms) for bundle in (before, after)))
        for _, edge in sorted(edges.items())
    ]
    holders = _holders(before, after)
    count = 0
    for one in payload_classes((before.law, after.law), _countries(before) | _countries(after)):
        count += 1
        tick(count)
        for name, pair in holders:
            told = [_facts(tenant, one, now_ms) for tenant in pair]
            for edge, tables in routes:
                masks = [table.allowed(facts, now_ms) for table, facts in zip(tables, told, strict=True)]
                for index in _bits(masks[0] ^ masks[1]):
                    allowed = bool(masks[1] >> index & 1)
                    key = (edge.id, names[index], name, allowed)
                    change = changes.setdefault(key, Change(*key))
                    refusing = int(not allowed)
                    change.add(one.severity(), one.words(), _rules(tables[refusing], told[refusing], index, now_ms))
    decisions = 0
    for record in records:
        decisions += 1
        _compare_record(before, after, record, changes)
    for change in changes.values():
        change.trim()
    ordered = sorted(
        changes.values(),
        key=lambda change: (not change.newly_allowed, tuple(-rank for rank in change.worst()), -change.count),
    )
    return Difference(count, decisions, tuple(ordered))


def _table(bundle: Bundle, edge: Edge, pools: list[PoolId], now_ms: int) -> RouteTable:
    """Return the law of a bundle over every pool of either. One that it does not declare, or revokes, is nowhere."""
    own = bundle.fleet.edge(edge.id)
    here = _NOWHERE if own is None or own.id in bundle.revoked.edges else own.place
    found = [None if name in bundle.revoked.pools else bundle.fleet.pool(name) for name in pools]
    return RouteTable(bundle.law, here, [_NOWHERE if pool is None else pool.place for pool in found], now_ms)


_NOWHERE = Place(
    PlaceId("nowhere"), frozenset(), frozenset(), (), Entity(EntityId("nobody"), Jurisdiction("AQ"))
)
"""A place without soil: nothing may go there."""


def _holders(before: Bundle, after: Bundle) -> list[tuple[str, tuple[Tenant | None, Tenant | None]]]:
    """Every tenant that holds pathways or notices in one of the bundles, and nobody in particular."""
    found: list[tuple[str, tuple[Tenant | None, Tenant | None]]] = [("", (None, None))]
    sides = [
        {tenant.id: _unrevoked(bundle, tenant) for tenant in bundle.tenants if tenant.id not in bundle.revoked.tenants}
        for bundle in (before, after)
    ]
    for name in sorted({*sides[0], *sides[1]}):
        pair = (sides[0].get(name), sides[1].get(name))
        if any(tenant is not None and (tenant.pathways or tenant.notices) for tenant in pair):
            found.append((name, pair))
    return found


def _unrevoked(bundle: Bundle, tenant: Tenant) -> Tenant:
    kept = tuple(pathway for pathway in tenant.pathways if pathway.id not in bundle.revoked.pathways)
    return replace(tenant, pathways=kept)


def _facts(tenant: Tenant | None, one: PayloadClass, now_ms: int) -> Facts:
    critical, counters = one.critical_infrastructure, one.counters(now_ms)
    if tenant is None:
        nobody = Entity(EntityId("nobody"), Jurisdiction("SG"))
        return Facts(nobody, one.label, (), frozenset(), Role.CONTROLLER, critical, counters, ())
    return Facts(
        tenant.entity, one.label, tenant.pathways, frozenset(), tenant.role, critical, counters, tenant.notices
    )


def _rules(table: RouteTable, facts: Facts, index: int, now_ms: int) -> tuple[str, ...]:
    if _NOWHERE in (table.edge, table.pools[index]):
        return ("not declared, or revoked",)
    return permit_route(table.law, facts, table.edge, table.pools[index], now_ms).rules


def _compare_record(
    before: Bundle, after: Bundle, record: Mapping[str, Any], changes: dict[tuple[str, str, str, bool], Change]
) -> None:
    """Judge a recorded payload by both laws, at the time at which it was decided."""
    try:
        told = (record["id"], record["edge"], record["tenant"])
        facts, now_ms = facts_from_json(record["facts"]), record["decided_ms"]
    except (KeyError, ValueError, TypeError, AttributeError):
        raise CannotExplain("--trace: a record does not hold what a decision is made again from") from None
    decision, edge, tenant = map(str, told)
    edges = [bundle.fleet.edge(EdgeId(edge)) for bundle in (before, after)]
    if edges[0] is None or edges[1] is None:
        return
    for pool in before.fleet.pools:
        other = after.fleet.pool(pool.id)
        if other is None:
            continue
        first = permit_route(before.law, facts, edges[0].place, pool.place, now_ms)
        second = permit_route(after.law, facts, edges[1].place, other.place, now_ms)
        if first.allowed is second.allowed:
            continue
        key = (edge, str(pool.id), tenant, second.allowed)
        label = facts.label
        severity = (int(label.personal), int(label.grade), int(label.domestic))
        refusing = first if second.allowed else second
        changes.setdefault(key, Change(*key)).add(severity, f"decision {decision}", refusing.rules)


def _countries(bundle: Bundle) -> frozenset[Jurisdiction]:
    places = [edge.place for edge in bundle.fleet.edges] + [pool.place for pool in bundle.fleet.pools]
    return frozenset(country for place in places for country in place.reach())


def _bits(mask: int) -> Iterator[int]:
    index = 0
    while mask:
        if mask & 1:
            yield index
        mask >>= 1
        index += 1
