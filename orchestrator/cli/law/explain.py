"""`tidegate explain`: why a request may or may not go where, now or for a decision of the past. Read only.

It runs the code that decides: the label, the table of the law, the placement. What it prints for a past decision is
made again from the record and the bundle of that day, and compared with what was recorded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

from msgspec import structs

from orchestrator.bundles.assemble import Bundle
from orchestrator.evidence.canonical import JsonValue, canonical_bytes, written
from orchestrator.evidence.citation import facts_to_json, label_to_json
from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.evidence.reading import facts_from_json
from orchestrator.evidence.records import RECORD_VERSION, sources_to_json
from orchestrator.files.pool_states import IDLE
from orchestrator.files.requests import AskedRequest
from orchestrator.files.typed import spell
from orchestrator.ledger.money import Currency
from orchestrator.placement.asked import Asked, asked_from_json
from orchestrator.placement.decide import Ground, gather, judge, label, place_permitted
from orchestrator.placement.explain import (
    answers_to_json,
    needs_of,
    placement_to_json,
    reason_to_json,
    runner_up_to_json,
    terms_to_json,
    verdict_to_json,
)
from orchestrator.placement.fleet import Edge
from orchestrator.placement.pick import Drop, Placement
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.placement.shape import shape_of
from orchestrator.policy.bundle import Law
from orchestrator.policy.counters import Counter, year_in_shanghai
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, ModelId, PoolId, RuleId, TenantId
from orchestrator.policy.labels import LabelSources
from orchestrator.policy.packs import Rule
from orchestrator.policy.permit import PERMIT_VERSION, permit_sink
from orchestrator.policy.places import Action, SinkKind
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import Verdict

EXPLAIN_VERSION = 1
CHANCE = 0
"""Ties are broken by chance; an explanation without a record takes the first."""
_SINK_ACTIONS = {
    SinkKind.LOG: Action.STORE,
    SinkKind.TRACE: Action.EXPORT,
    SinkKind.RESULTS: Action.STORE,
    SinkKind.CACHE: Action.REUSE,
    SinkKind.ARTEFACTS: Action.STORE,
}


_LAW_ALONE = PlacementSettings(Currency("USD"), 0, 0, 1, 1, 0, 1, 1)
"""For a bundle without placement settings: the law is explained, nothing is placed."""


class CannotExplain(Exception):
    """What was asked about cannot be explained. Its text is a sentence."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """An explanation as JSON, with what a program would do."""

    value: dict[str, JsonValue]
    chosen: PoolId | None
    permitted: bool
    """Whether any pool of the declared fleet is."""


@dataclass(frozen=True, slots=True)
class Case:
    """Everything that one decision rests on and no bundle holds: asked for by a file, or recorded by an edge."""

    edge: EdgeId
    tenant: TenantId
    facts: Facts
    request: PlacementRequest
    views: Mapping[PoolId, PoolView]
    now_ms: int
    chance: int
    recorded: Asked | None = None
    """What the record says of revocations and of the clock; without one, those of the bundle count."""

    def ground(self, ground: Ground) -> Ground:
        """Return the ground of a bundle as it was for this decision."""
        return ground if self.recorded is None else self.recorded.ground(ground)


def case_of_request(bundle: Bundle, asked: AskedRequest, now_ms: int) -> tuple[Case, LabelSources]:
    """Return what a request at `now_ms` rests on, and every voice on its label. Raises CannotExplain."""
    edge = edge_of(bundle, asked.edge)
    tenant = _tenant(bundle, asked.tenant)
    if edge.id not in tenant.edges:
        raise CannotExplain(f"edge: expected one that serves {tenant.id}: {', '.join(sorted(tenant.edges))}")
    known = {pool.id for pool in bundle.fleet.pools}
    for name in asked.pools:
        if name not in known:
            has = ", ".join(sorted(known)) or "none"
            raise CannotExplain(f"{spell(('pools', name))}: expected a pool of the bundle's fleet; it has {has}")
    sources = label(tenant, asked.declared, edge)
    counters = tuple(
        Counter(kind, count, now_ms, year_in_shanghai(now_ms)[1] if kind.calendar_year else now_ms + 86_400_000)
        for kind, count in sorted(asked.counters.items(), key=lambda item: item[0].value)
    )
    request = shape_of(
        tenant,
        bundle.prices,
        asked.model or min(tenant.models, default=ModelId("none")),
        asked.capabilities,
        asked.prompt_tokens,
        asked.output_tokens,
        asked.upload_bytes,
        max_tokens=asked.max_tokens,
        canary=asked.canary,
    )
    if asked.revision is not None:
        request = structs.replace(request, revision=asked.revision)
    # A pool of which the file says nothing is taken to be up and idle.
    views = {
        pool.id: asked.pools.get(pool.id, IDLE).view(pool, asked.prompt_tokens) for pool in bundle.fleet.pools
    }
    facts = gather(tenant, sources, counters, asked.processed_in)
    return Case(edge.id, tenant.id, facts, request, views, now_ms, CHANCE), sources


def case_of_record(record: Mapping[str, Any]) -> Case:
    """Return what a recorded decision rested on. Raises CannotExplain."""
    try:
        asked = asked_from_json(record["asked"])
        return Case(
            EdgeId(record["edge"]),
            TenantId(record["tenant"]),
            facts_from_json(record["facts"]),
            asked.request,
            asked.views,
            int(record["citation"]["now_ms"]),
            asked.chance,
            asked,
        )
    except (KeyError, ValueError, TypeError, AttributeError):
        raise CannotExplain("the record does not hold what a decision is made again from") from None


def explain_request(bundle: Bundle, asked: AskedRequest, now_ms: int) -> Explanation:
    """Explain what would become of a request at `now_ms`. Raises CannotExplain."""
    case, sources = case_of_request(bundle, asked, now_ms)
    edge = edge_of(bundle, case.edge)
    ground = ground_of(bundle, edge, now_ms)
    verdicts = judge(ground, case.facts, now_ms)
    placement = None
    if bundle.settings is not None:
        placement = place_permitted(ground, case.facts, case.request, case.views, now_ms, case.chance)
    value = {
        **_head(bundle, now_ms),
        "edge": edge.id,
        "tenant": case.tenant,
        "model": case.request.model,
        "labels": {**sources_to_json(sources), "effective": label_to_json(case.facts.label)},
        "regulated": case.facts.label.regulated(),
        "facts": facts_to_json(case.facts),
        **_body(bundle, edge, case, verdicts, placement),
    }
    chosen = None if placement is None or placement.chosen is None else placement.chosen.pool.id
    return Explanation(value, chosen, any(verdict.allowed for verdict in verdicts.values()))


def explain_record(bundle: Bundle, record: Mapping[str, Any]) -> Explanation:
    """Explain a recorded decision of an edge: made again with the bundle that it cites. Raises CannotExplain."""
    if record.get("v") != RECORD_VERSION or record.get("program") != "edge":
        raise CannotExplain(f"expected a decision of an edge, recorded as version {RECORD_VERSION}")
    cited = record["citation"]
    if cited["permit_version"] != PERMIT_VERSION:
        raise CannotExplain(
            f"it was decided by version {cited['permit_version']} of permit; this command evaluates {PERMIT_VERSION}"
        )
    if cited["manifest_digest"] != bundle.digest:
        raise CannotExplain(
            f"expected the bundle that it cites: manifest {cited['manifest']} of {cited['side']}, "
            f"{cited['manifest_digest']}; this one is {bundle.number}, {bundle.digest}"
        )
    edge = edge_of(bundle, EdgeId(record["edge"]))
    case = case_of_record(record)
    ground = case.ground(ground_of(bundle, edge, case.now_ms))
    placement = place_permitted(ground, case.facts, case.request, case.views, case.now_ms, case.chance)
    verdicts = {candidate.pool.id: candidate.verdict for candidate in placement.candidates}
    again = written(placement_to_json(placement))
    recorded = canonical_bytes(record["placement"])
    value: dict[str, JsonValue] = {
        **_head(bundle, case.now_ms),
        "decision": record["id"],
        "request": record["request"],
        "outcome": record["outcome"],
        "edge": edge.id,
        "tenant": record["tenant"],
        "model": record["model"],
        "labels": {**record["labels"], "effective": label_to_json(case.facts.label)},
        "regulated": record["regulated"],
        "facts": facts_to_json(case.facts),
        "discharged": record["discharged"],
        "replay": {"identical": again == recorded, "recorded": record["placement"]["chosen"]},
        **_body(bundle, edge, case, verdicts, placement),
    }
    chosen = None if placement.chosen is None else placement.chosen.pool.id
    return Explanation(value, chosen, any(verdict.allowed for verdict in verdicts.values()))


def ground_of(bundle: Bundle, edge: Edge, now_ms: int) -> Ground:
    """Return what a decision of `edge` by this bundle stands on."""
    places = tuple(pool.place for pool in bundle.fleet.pools)
    settings = bundle.settings or _LAW_ALONE
    return Ground(
        RouteTable(bundle.law, edge.place, places, now_ms),
        bundle.fleet,
        Plan(edge.id, bundle.fleet, bundle.prices, settings.currency),
        settings,
        bundle.revoked.pools,
        bundle.revoked.pathways,
        DISCHARGERS.keys(),
    )


def rules_by_id(law: Law) -> dict[RuleId, Rule]:
    """Return every rule of the law by its id."""
    return {rule.id: rule for admitted in law.packs for rule in admitted.pack.rules}


def _body(
    bundle: Bundle, edge: Edge, case: Case, verdicts: Mapping[PoolId, Verdict], placement: Placement | None
) -> dict[str, JsonValue]:
    rules = rules_by_id(bundle.law)
    pools: list[JsonValue] = []
    for pool in sorted(bundle.fleet.pools, key=lambda pool: pool.id):
        verdict = verdicts[pool.id]
        candidate = (
            None if placement is None else next(c for c in placement.candidates if c.pool.id == pool.id)
        )
        told: dict[str, JsonValue] = {
            "pool": pool.id,
            "assurance": pool.assurance.value,
            "places": list[JsonValue](pool.place.reached),
            **verdict_to_json(verdict),
            "reasons": [_sourced(reason_to_json(reason), rules) for reason in verdict.reasons],
            "needs": needs_of(verdict),
            "movements": answers_to_json(verdict, pool, edge),
            "drop": None if candidate is None or candidate.drop is None else candidate.drop.value,
            "doubtful": candidate is not None and candidate.doubtful,
            "terms": None if candidate is None or candidate.terms is None else terms_to_json(candidate.terms),
        }
        pools.append(told)
    sinks: list[JsonValue] = []
    # A revoked paper opens no sink either; `judge` leaves it out for pools.
    papers = tuple(p for p in case.facts.pathways if p.id not in bundle.revoked.pathways)
    asked = replace(case.facts, pathways=papers)
    for sink in sorted(bundle.fleet.sinks, key=lambda sink: sink.id):
        action = _SINK_ACTIONS[sink.kind]
        verdict = permit_sink(bundle.law, asked, action, edge.place, sink.place, case.now_ms)
        sinks.append(
            {
                "sink": sink.id,
                "kind": sink.kind.value,
                "action": action.value,
                **verdict_to_json(verdict),
                "needs": needs_of(verdict),
            }
        )
    permitted = sorted(pool for pool, verdict in verdicts.items() if verdict.allowed)
    chosen = None if placement is None or placement.chosen is None else placement.chosen.pool.id
    return {
        "permitted": list[JsonValue](permitted),
        "status": status_of(case.request, bool(permitted), placement),
        "chosen": chosen,
        "placement": None if placement is None else _placed(bundle.settings or _LAW_ALONE, case.request, placement),
        "pools": pools,
        "sinks": sinks,
    }


def _placed(settings: PlacementSettings, request: PlacementRequest, placement: Placement) -> dict[str, JsonValue]:
    """Return the choice in short; every pool's terms stand with the pool."""
    return {
        "chosen": None if placement.chosen is None else placement.chosen.pool.id,
        "runner_up": runner_up_to_json(placement),
        "dropped": dict[str, JsonValue](placement.counts()),
        "settings": "canary" if request.canary and settings.canary is not None else "base",
        "currency": settings.currency,
    }


def status_of(request: PlacementRequest, permitted: bool, placement: Placement | None) -> int:
    """Return the HTTP status of such a request; without placement settings nothing is placed: the law alone answers."""
    if not request.entitled:
        return 404
    if not permitted:
        return 451
    if placement is None or placement.chosen is not None:
        return 200
    drops = {candidate.drop for candidate in placement.permitted()}
    if drops <= {Drop.MODEL}:
        return 404
    return 400 if drops <= {Drop.MODEL, Drop.CAPABILITY} else 503


def _sourced(reason: dict[str, JsonValue], rules: Mapping[RuleId, Rule]) -> dict[str, JsonValue]:
    """Add to a reason where its rule comes from; rules of the house have no source."""
    rule = rules.get(RuleId(str(reason["rule"])))
    if rule is None:
        return reason
    return {
        **reason,
        "source": {
            "instrument": rule.source.instrument,
            "article": rule.source.article,
            "dated": rule.source.dated,
        },
        "confidence": rule.confidence.value,
    }


def _head(bundle: Bundle, now_ms: int) -> dict[str, JsonValue]:
    packs: list[JsonValue] = [
        {"id": admitted.pack.id, "revision": admitted.pack.version, "mode": admitted.pack.mode.value}
        for admitted in sorted(bundle.law.packs, key=lambda admitted: admitted.pack.id)
        if admitted.pack.in_force(now_ms)
    ]
    return {
        "v": EXPLAIN_VERSION,
        "at_ms": now_ms,
        "at": datetime.fromtimestamp(now_ms / 1000, UTC).isoformat(timespec="milliseconds"),
        "permit_version": PERMIT_VERSION,
        "bundle": {"side": bundle.side, "manifest": bundle.number, "digest": bundle.digest, "packs": packs},
    }


def edge_of(bundle: Bundle, name: EdgeId) -> Edge:
    """Return an edge of the fleet. Raises CannotExplain."""
    edge = bundle.fleet.edge(name)
    if edge is None:
        known = ", ".join(sorted(one.id for one in bundle.fleet.edges)) or "none"
        raise CannotExplain(f"edge: expected an edge of the bundle's fleet; it has {known}")
    return edge


def _tenant(bundle: Bundle, name: TenantId) -> Tenant:
    tenant = next((one for one in bundle.tenants if one.id == name), None)
    if tenant is None or tenant.id in bundle.revoked.tenants:
        known = ", ".join(sorted(one.id for one in bundle.tenants)) or "none"
        raise CannotExplain(f"tenant: expected a tenant of the bundle that is not revoked; it has {known}")
    return tenant
