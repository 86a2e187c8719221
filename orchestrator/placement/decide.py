"""The decision about one attempt: label, permit, place. Facts and a view in, an account out.

The edge decides with it, `explain` shows it, and a recorded decision is made again with it: one code for all three.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

import msgspec

from orchestrator.placement.fleet import Edge, Fleet, Pool, PrefixCache
from orchestrator.placement.pick import Placement, place
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.counters import Counter
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, PathwayId, PoolId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective, Labels, LabelSources, Mismatch, at_inference
from orchestrator.policy.packs import ObligationKind
from orchestrator.policy.permit import at_fault, deny
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import CLOCK_SKEW, NO_DISCHARGER, REVOKED, Verdict

SKEW_REGULATED_MS = 30_000
"""With a clock that is further off than this, no date of the law can be judged for what is regulated."""

REMEMBERED_MAX = 4096
"""Declarations of tenants that are remembered; beyond it, all are forgotten at once."""


class Told(msgspec.Struct, frozen=True):
    """What is told of a payload by its tenant and its declaration."""

    sources: LabelSources
    """Every voice on it."""
    mismatches: tuple[Mismatch, ...]
    """Where one of them says less than what counts."""
    facts: Facts
    regulated: bool
    """Whether evidence must be durable before a byte leaves."""


class _Judged(msgspec.Struct, frozen=True):
    """The verdicts about the pools, and when they are what the law says."""

    table: RouteTable
    since_ms: int
    until_ms: int
    verdicts: dict[PoolId, Verdict]


class FactBook:
    """What the law is told of the payloads of one bundle: worked out once for each tenant and declaration.

    Payloads that are told of in the same words share one value, which is then checked and written down once.
    """

    __slots__ = ("_held", "_judged", "_told")

    def __init__(self) -> None:
        self._held: dict[tuple[int, int, EdgeId], tuple[Tenant, Labels, Told]] = {}
        self._told: dict[tuple[int, Labels, EdgeId], tuple[Tenant, Told]] = {}
        self._judged: dict[Facts, _Judged] = {}

    def look_up(self, tenant: Tenant, declared: Labels, edge: Edge) -> Told:
        """Return what is told of a payload of `tenant` at `edge`."""
        # Mostly the declaration is the very one of before, and to compare its words would take longer than to find it.
        key = (id(tenant), id(declared), edge.id)
        try:
            return self._held[key][2]
        except KeyError:
            found = self._look_closer(tenant, declared, edge)
        if len(self._held) >= REMEMBERED_MAX:
            self._held.clear()
        # Both are held too, so that their identities are not given to others.
        self._held[key] = (tenant, declared, found)
        return found

    def _look_closer(self, tenant: Tenant, declared: Labels, edge: Edge) -> Told:
        """Return the same for a declaration of these words, whichever it is."""
        key = (id(tenant), declared, edge.id)
        try:
            return self._told[key][1]
        except KeyError:
            sources = label(tenant, declared, edge)
            facts = gather(tenant, sources)
        if len(self._told) >= REMEMBERED_MAX:
            self._told.clear()
        found = Told(sources, sources.mismatches(), facts, facts.label.regulated())
        self._told[key] = (tenant, found)
        return found

    def judged(self, ground: Ground, facts: Facts, now_ms: int) -> dict[PoolId, Verdict]:
        """Return what the house makes of the law's verdicts, made once for as long as the law's answer holds.

        Only of a ground without a reason of the house's own to refuse anything.
        """
        table, found = ground.table, self._judged.get(facts)
        if found is not None and found.table is table and found.since_ms <= now_ms < found.until_ms:
            return found.verdicts
        told = table.verdicts(facts, now_ms)
        verdicts = _by_the_house(ground, told, False, now_ms)
        # What could not be worked out, and what the house refuses for now, is good for no time.
        until_ms = min((verdict.valid_until_ms for verdict in told), default=now_ms)
        if until_ms > table.valid_until_ms:
            until_ms = table.valid_until_ms
        if len(self._judged) >= REMEMBERED_MAX:
            self._judged.clear()
        self._judged[facts] = _Judged(table, now_ms, until_ms, verdicts)
        return verdicts


@dataclass(frozen=True, slots=True)
class Ground:
    """What a decision stands on, taken from one bundle so that nothing changes half-way."""

    table: RouteTable
    """The law over the pools of `fleet`, in their order, from the edge that decides."""
    fleet: Fleet
    plan: Plan
    """What the pools of `fleet` offer and charge, seen from the edge that decides."""
    settings: PlacementSettings
    revoked_pools: frozenset[PoolId]
    revoked_pathways: frozenset[PathwayId]
    dischargers: Collection[ObligationKind]
    """The duties that this program can do."""
    skew_ms: int = 0
    """Of this program's clock, as control sees it."""
    book: FactBook = field(default_factory=FactBook, repr=False, compare=False)


class Carried(msgspec.Struct, frozen=True):
    """What travels with a prompt where an answer that was cut goes on: the label of what was said, and where it was."""

    label: Effective | None = None
    processed_in: frozenset[Jurisdiction] = frozenset()


NOTHING_CARRIED = Carried()


class Decision(msgspec.Struct, frozen=True):
    """What the edge decided, and everything that led to it."""

    sources: LabelSources
    mismatches: tuple[Mismatch, ...]
    """Where a source says less than what counts."""
    facts: Facts
    placement: Placement
    regulated: bool
    """Whether evidence must be durable before a byte leaves."""

    def travelling(self, edge: Edge) -> Facts:
        """Return the facts that go with the attempt: of pathways only those to the chosen operator, or back to ours."""
        chosen = self.placement.chosen
        if chosen is None:
            return replace(self.facts, pathways=())
        if not self.facts.pathways:
            return self.facts
        importers = {chosen.pool.place.operator.id, edge.place.operator.id}
        if all(pathway.importer in importers for pathway in self.facts.pathways):
            return self.facts
        return replace(self.facts, pathways=tuple(p for p in self.facts.pathways if p.importer in importers))


def label(tenant: Tenant, declared: Labels, edge: Edge) -> LabelSources:
    """Return every voice on a payload that arrives at an inference endpoint of `edge`."""
    return LabelSources(
        declared=at_inference(declared), attested=tenant.attested, floor=tenant.floor, soil=edge_soil(edge)
    )


def edge_soil(edge: Edge) -> frozenset[Jurisdiction]:
    """Return the jurisdictions that the edge's soil adds to the origin of everything it takes."""
    return edge.place.soil()


def gather(
    tenant: Tenant,
    sources: LabelSources,
    counters: tuple[Counter, ...] = (),
    processed_in: frozenset[Jurisdiction] = frozenset(),
) -> Facts:
    """Return what the law is told of a payload of `tenant`."""
    return Facts(
        tenant=tenant.entity,
        label=sources.effective(),
        pathways=tenant.pathways,
        processed_in=processed_in,
        role=tenant.role,
        critical_infrastructure=tenant.critical_infrastructure,
        counters=counters,
        notices=tenant.notices,
    )


def decide(
    ground: Ground,
    edge: Edge,
    tenant: Tenant,
    declared: Labels,
    request: PlacementRequest,
    views: Mapping[PoolId, PoolView],
    now_ms: int,
    chance: int,
    carried: Carried = NOTHING_CARRIED,
) -> Decision:
    """Label the payload, ask the law about every declared pool, and place it among the permitted ones.

    Prompt and what was said of its answer are labelled together: what travels is both.
    """
    told = ground.book.look_up(tenant, declared, edge)
    sources, facts, regulated = told.sources, told.facts, told.regulated
    if carried is not NOTHING_CARRIED:
        facts = gather(tenant, sources, processed_in=carried.processed_in)
        if carried.label is not None:
            facts = replace(facts, label=facts.label.join(carried.label))
        regulated = facts.label.regulated()
    verdicts = judge(ground, facts, now_ms)
    placement = place(request, ground.plan, verdicts, views, ground.settings, now_ms, chance)
    return Decision(sources, told.mismatches, facts, placement, regulated)


def place_permitted(
    ground: Ground,
    facts: Facts,
    request: PlacementRequest,
    views: Mapping[PoolId, PoolView],
    now_ms: int,
    chance: int,
) -> Placement:
    """Ask the law about every declared pool, and place among the permitted ones."""
    return place(request, ground.plan, judge(ground, facts, now_ms), views, ground.settings, now_ms, chance)


def judge(ground: Ground, facts: Facts, now_ms: int) -> dict[PoolId, Verdict]:
    """Return the verdict about every pool of the fleet: the law's, unless the house refuses first.

    Never raises: whatever goes wrong in here is a refusal of every pool.
    """
    try:
        asked = facts
        if ground.revoked_pathways:
            asked = replace(facts, pathways=tuple(p for p in facts.pathways if p.id not in ground.revoked_pathways))
        skewed = not -SKEW_REGULATED_MS <= ground.skew_ms <= SKEW_REGULATED_MS and facts.label.regulated()
        if skewed or ground.revoked_pools:
            return _by_the_house(ground, ground.table.verdicts(asked, now_ms), skewed, now_ms)
        return ground.book.judged(ground, asked, now_ms)
    except Exception:  # noqa: BLE001  # outermost: of a decision; what cannot be worked out is no
        return {pool.id: at_fault() for pool in ground.fleet.pools}


def _by_the_house(ground: Ground, told: tuple[Verdict, ...], skewed: bool, now_ms: int) -> dict[PoolId, Verdict]:
    verdicts: dict[PoolId, Verdict] = {}
    for pool, verdict in zip(ground.fleet.pools, told, strict=True):
        if pool.id in ground.revoked_pools:
            verdict = deny(REVOKED, f"The pool {pool.id} is revoked.", "A revocation list without it.", now_ms)
        elif skewed:
            sentence = "This program's clock is more than 30 s off, and the payload is regulated."
            verdict = deny(CLOCK_SKEW, sentence, "A clock that agrees with control's.", now_ms)
        elif verdict.allowed:
            verdict = _dischargeable(ground, pool, verdict)
        verdicts[pool.id] = verdict
    return verdicts


def _dischargeable(ground: Ground, pool: Pool, verdict: Verdict) -> Verdict:
    """Refuse what comes with a duty that nothing here can do, or that cannot be done for this pool."""
    owed = {duty.kind for duty in verdict.obligations}
    until_ms = verdict.valid_until_ms
    if ObligationKind.PROVE_NO_DOMESTIC_INPUT in owed and pool.prefix_cache is PrefixCache.SHARED:
        sentence = "It cannot be proven that nothing domestic enters where engines share prefixes between requests."
        return deny(NO_DISCHARGER, sentence, "A pool whose engines share no prefixes.", until_ms)
    undone = sorted(kind.value for kind in owed if kind not in ground.dischargers)
    if not undone:
        return verdict
    sentence = f"The law asks for a duty that nothing here discharges: {', '.join(undone)}."
    return deny(NO_DISCHARGER, sentence, "A program with a discharger for it.", until_ms)
