"""The decision of an edge about one attempt: label, permit, place. Pure: facts and a view in, an account out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from orchestrator.placement.fleet import Edge, Fleet, Prices
from orchestrator.placement.pick import Drop, Placement, place
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.bundle import Law
from orchestrator.policy.ids import PathwayId, PoolId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels, LabelSources
from orchestrator.policy.permit import Facts, deny, permit_route
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import REVOKED, Verdict
from orchestrator.wire.catalogue import Problem


@dataclass(frozen=True, slots=True)
class Ground:
    """What a decision stands on, taken from one bundle so that nothing changes half-way."""

    law: Law
    fleet: Fleet
    prices: Prices
    settings: PlacementSettings
    revoked_pools: frozenset[PoolId]
    revoked_pathways: frozenset[PathwayId]


@dataclass(frozen=True, slots=True)
class Decision:
    """What the edge decided, and everything that led to it."""

    sources: LabelSources
    facts: Facts
    placement: Placement

    @property
    def regulated(self) -> bool:
        """Whether evidence must be durable before a byte leaves."""
        return self.facts.label.regulated()


def decide(
    ground: Ground,
    edge: Edge,
    tenant: Tenant,
    declared: Labels,
    request: PlacementRequest,
    views: Mapping[PoolId, PoolView],
    now_ms: int,
    chance: int,
) -> Decision:
    """Label the payload, ask the law about every declared pool, and place it among the permitted ones."""
    sources = LabelSources(
        declared=declared, attested=tenant.attested, floor=tenant.floor, soil=edge_soil(edge)
    )
    pathways = tuple(p for p in tenant.pathways if p.id not in ground.revoked_pathways)
    facts = Facts(tenant.entity, sources.effective(), pathways)
    verdicts = {pool.id: _verdict(ground, edge, facts, pool.id, now_ms) for pool in ground.fleet.pools}
    placement = place(request, edge.id, ground.fleet, verdicts, views, ground.prices, ground.settings, chance)
    relied = placement.chosen
    if relied is not None:
        # Only pathways to the chosen operator, or back to the edge's own, travel with the request.
        importers = {relied.pool.place.operator.id, edge.place.operator.id}
        facts = replace(facts, pathways=tuple(p for p in pathways if p.importer in importers))
    return Decision(sources, facts, placement)


def edge_soil(edge: Edge) -> frozenset[Jurisdiction]:
    """Return the jurisdictions that the edge's soil adds to the origin of everything it takes."""
    return edge.place.soil()


def problem_of(placement: Placement, request: PlacementRequest) -> Problem:
    """Return what the tenant is told when nothing was chosen: a safe subset of the account."""
    permitted = placement.permitted()
    if not permitted:
        reasons = [reason for c in placement.candidates for reason in c.verdict.reasons]
        rules = tuple(sorted({reason.rule for reason in reasons}))
        sentences = " ".join(dict.fromkeys(reason.sentence for reason in reasons))
        needs = " ".join(dict.fromkeys(reason.needs for reason in reasons if reason.needs))
        if not placement.candidates:
            sentences = "The declared fleet has no pool."
        return Problem("residency_blocked", f"No pool may receive this payload. {sentences}", None, rules, needs)
    drops = {c.drop for c in permitted}
    if drops <= {Drop.MODEL}:
        return Problem("model_not_found", f"No permitted pool serves the model '{request.model}'.", "model")
    if drops <= {Drop.MODEL, Drop.CAPABILITY}:
        offered = frozenset[object]().union(
            *(served.capabilities for c in permitted for served in c.pool.models if served.id == request.model)
        )
        missing = sorted(need.value for need in request.capabilities if need not in offered)
        return Problem("capability_not_offered", f"No permitted pool offers: {', '.join(missing)}.")
    counts = ", ".join(f"{count} {drop}" for drop, count in sorted(placement.counts().items()))
    return Problem("no_feasible_pool", f"Permitted pools exist, but none can take the request now ({counts}).")


def _verdict(ground: Ground, edge: Edge, facts: Facts, pool_id: PoolId, now_ms: int) -> Verdict:
    pool = ground.fleet.pool(pool_id)
    if pool is None or pool_id in ground.revoked_pools:
        return deny(REVOKED, f"The pool {pool_id} is revoked.", "A revocation list without it.", now_ms)
    return permit_route(ground.law, facts, edge.place, pool.place, now_ms)
