"""The law of a generated fleet: places, tenants with their papers, and what the shipped packs make of them.

The packs are those of `examples/two-sides`. Whether a pool may see a kind of traffic is what the live code says:
`label` and `gather` make the facts, `judge` gives the verdicts.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from functools import cache
from pathlib import Path

from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.files.document import read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.sides import SideDocument, side_of
from orchestrator.placement.decide import Ground, gather, judge, label
from orchestrator.placement.fleet import Edge, Fleet, Prices
from orchestrator.placement.plan import Plan
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.bundle import AdmittedPack, Horizons, Law
from orchestrator.policy.entities import Entity, Owner
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId, ModelId, PathwayId, PlaceId, TenantId
from orchestrator.policy.jurisdictions import EEA, Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Grade, Labels, Personal
from orchestrator.policy.pathways import ALL_CATEGORIES, Pathway, PathwayKind, Role
from orchestrator.policy.places import Place
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.vocabulary import Category

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "two-sides"
CN = Jurisdiction("CN")
DOMESTIC_OPERATOR = Entity(EntityId("tidegate-domestic"), CN)
NOTICES = (("cn-pipl-39", "1"), ("eu-13-cn", "1"))
"""What a tenant with papers has told its subjects."""
FAR_MS = 1 << 52

PAPERS: dict[str, tuple[PathwayKind, ...]] = {
    "SG": (PathwayKind.SG_CONTRACT,),
    "GB": (PathwayKind.UK_IDTA, PathwayKind.UK_TRA),
    "US": (PathwayKind.US_DSP_RESTRICTED,),
    "JP": (PathwayKind.JP_EQUIVALENT,),
    "KR": (PathwayKind.KR_CONTRACT,),
    "IN": (PathwayKind.IN_CONTRACT,),
    "BR": (PathwayKind.BR_SCC,),
    "AE": (PathwayKind.AE_CONTRACT,),
    "CN": (),
}
"""What the law of a country asks for where data leaves it. For overseas data to leave China again it wants a proof."""
PAPERS_EEA = (PathwayKind.EU_SCC, PathwayKind.EU_TIA)
PAPERS_OTHERWISE = (PathwayKind.RECORDED_BASIS,)


class Traffic(Enum):
    """What a tenant sends."""

    GENERAL = "general"
    """About nobody; somebody waits for it."""
    BATCH = "batch"
    """About nobody; nobody waits for it."""
    PERSONAL = "personal"
    """About people in the country of the edge."""
    SENSITIVE = "sensitive"
    """About their health."""


def shipped_law(issued_ms: int) -> Law:
    """Return the shipped packs, each signed by its side, in a bundle that was issued at `issued_ms`."""
    return Law(_shipped_packs(), Horizons.from_issue(issued_ms))


@cache
def _shipped_packs() -> tuple[AdmittedPack, ...]:
    found: list[AdmittedPack] = []
    for side in ("domestic", "overseas"):
        declared = read_as(read_document(EXAMPLE / side / "side.yaml"), SideDocument, side_of)
        for path in sorted((EXAMPLE / side / "packs").glob("*.yaml")):
            pack = read_as(read_document(path), PackDocument, pack_of)
            found.append(AdmittedPack(pack, declared.jurisdictions))
    return tuple(found)


def place_of(name: str, country: str, operator: Entity, accessors: Iterable[Entity] = ()) -> Place:
    """Return a place on the soil of `country`; its operator's staff reads plaintext, and that of `accessors`."""
    soil = frozenset({Jurisdiction(country)})
    return Place(PlaceId(name), soil, soil, (operator, *accessors), operator)


def operator_of(country: str, owner: str | None = None) -> Entity:
    """Return the company that runs places in `country`; with `owner`, one that an entity of that country owns."""
    here = Jurisdiction(country)
    if here == CN:
        return DOMESTIC_OPERATOR
    if owner is None:
        return Entity(EntityId(f"operator-{country.lower()}"), here)
    name = f"operator-{country.lower()}-of-{owner.lower()}"
    parent = Owner(EntityId(f"holding-{owner.lower()}"), Jurisdiction(owner), 80)
    return Entity(EntityId(name), here, (parent,))


def tenant_of(name: str, traffic: Traffic, country: str, edge: Edge, model: ModelId) -> Tenant:
    """Return a company of `country` whose contract attests what it sends; it has no papers yet."""
    here = frozenset({Jurisdiction(country)})
    personal, categories = _PERSONAL[traffic]
    attested = Labels(
        personal=personal,
        grade=Grade.GENERAL,
        domestic=Domestic.NO,
        origin=here,
        clean=Clean.RAW,
        categories=categories,
        located=here,
        collected=here,
    )
    return Tenant(
        id=TenantId(name),
        entity=Entity(EntityId(name), Jurisdiction(country)),
        keys=(),
        attested=attested,
        floor=Labels(),
        models=frozenset({model}),
        edges=frozenset({edge.id}),
        price_book="standard",
        role=Role.CONTROLLER,
        critical_infrastructure=Declared.NO,
    )


_PERSONAL: dict[Traffic, tuple[Personal, frozenset[str]]] = {
    Traffic.GENERAL: (Personal.NONE, frozenset()),
    Traffic.BATCH: (Personal.NONE, frozenset()),
    Traffic.PERSONAL: (Personal.PERSONAL, frozenset({Category.CONTACT.value})),
    Traffic.SENSITIVE: (Personal.SENSITIVE, frozenset({Category.HEALTH.value})),
}


def with_papers(tenant: Tenant, edge: Edge, pools: Iterable[Place]) -> Tenant:
    """Return the tenant with every paper that the laws of the edge and of these places ask for, out and back."""
    held = {pathway.id: pathway for pathway in tenant.pathways}
    for pool in pools:
        countries = edge.place.reach() | pool.reach()
        kinds = sorted({kind for country in countries for kind in _papers(country)}, key=lambda kind: kind.value)
        for importer, receiver in ((pool.operator, pool), (edge.place.operator, edge.place)):
            for kind in kinds:
                paper = _paper(kind, tenant, importer, receiver, countries)
                held.setdefault(paper.id, paper)
    return replace(tenant, pathways=tuple(held.values()), notices=NOTICES)


def _papers(country: Jurisdiction) -> tuple[PathwayKind, ...]:
    return PAPERS_EEA if country in EEA else PAPERS.get(country, PAPERS_OTHERWISE)


def _paper(
    kind: PathwayKind, tenant: Tenant, importer: Entity, receiver: Place, countries: frozenset[Jurisdiction]
) -> Pathway:
    # One paper per receiver and set of countries: a later one must not be lost because an earlier one is narrower.
    reach = "-".join(sorted(countries)).lower()
    return Pathway(
        id=PathwayId(f"{kind.value.replace('_', '-')}.{receiver.id}.{reach}"),
        kind=kind,
        exporter=tenant.entity.id,
        exporter_role=Role.CONTROLLER,
        importer=importer.id,
        importer_role=Role.PROCESSOR,
        countries=countries,
        personal_max=Personal.SENSITIVE,
        categories=ALL_CATEGORIES,
        valid_from_ms=0,
        valid_until_ms=FAR_MS,
        reference="generated",
        onward=frozenset(entity.id for entity in receiver.accessors),
        module=2 if kind is PathwayKind.EU_SCC else None,
    )


def facts_of(tenant: Tenant, edge: Edge) -> Facts:
    """Return what the law is told of a payload of `tenant` that declares nothing, at `edge`."""
    return gather(tenant, label(tenant, Labels(), edge))


@dataclass(frozen=True, slots=True)
class Court:
    """The live law of one edge over the pools of a fleet."""

    ground: Ground

    def may(self, facts: Facts, now_ms: int) -> frozenset[int]:
        """Return the pools that may see the payload, by index: the verdicts of the live code, its house's included."""
        verdicts = judge(self.ground, facts, now_ms)
        return frozenset(index for index, pool in enumerate(self.ground.fleet.pools) if verdicts[pool.id].allowed)


def court_of(law: Law, edge: Edge, fleet: Fleet, prices: Prices, settings: PlacementSettings, now_ms: int) -> Court:
    """Return the law compiled for one edge, with every duty that the edge's program can do."""
    table = RouteTable(law, edge.place, [pool.place for pool in fleet.pools], now_ms)
    ground = Ground(
        table=table,
        fleet=fleet,
        plan=Plan(edge.id, fleet, prices, settings.currency),
        settings=settings,
        revoked_pools=frozenset(),
        revoked_pathways=frozenset(),
        dischargers=DISCHARGERS.keys(),
    )
    return Court(ground)


def permitted_tenant(
    court: Court, tenant: Tenant, edge: Edge, wanted: Sequence[int], fallback: Sequence[int], now_ms: int
) -> tuple[Tenant, frozenset[int]]:
    """Return the tenant with papers for the pools `wanted`, and the pools that it may use; at least one.

    When none may be used, it gets papers for those of `fallback`, one after the other, until one may. Raises ValueError
    when none opens.
    """
    places = [pool.place for pool in court.ground.fleet.pools]
    signed: Collection[int] = wanted
    for more in ([], *([pool] for pool in fallback)):
        signed = [*signed, *more]
        found = with_papers(tenant, edge, [places[pool] for pool in signed]) if signed else tenant
        may = court.may(facts_of(found, edge), now_ms)
        if may:
            return found, may
    raise ValueError(f"no pool may serve {tenant.id}, whatever papers it holds")
