"""The worlds in which the law is asked: the shipped example, and small ones of our own."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from orchestrator.files.document import read_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.fleet import FleetDocument, fleet_of
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.tenants import TenantsDocument, tenants_of
from orchestrator.policy.bundle import AdmittedPack, Horizons, Law
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId, PackId, PathwayId, PlaceId, RuleId, SideId
from orchestrator.policy.jurisdictions import ASSIGNED, Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import (
    Confidence,
    Effect,
    Mode,
    Obligation,
    Operator,
    Pack,
    Rule,
    Source,
    Subject,
    Test,
)
from orchestrator.policy.pathways import ALL_CATEGORIES, INFERENCE_ONLY, Pathway, PathwayKind, Role
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import Verdict

NOW_MS = 1_790_000_000_000
"""In September 2026, when every shipped pack is in force."""
FAR = Horizons(1 << 60, 1 << 60, 1 << 60)
EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sides"
SOURCE = Source("A law", "Art. 1", "2026-01-01")
ALWAYS = (Test(Subject.ACTION, Operator.IN, members=frozenset(action.value for action in Action)),)
"""A condition that holds of every movement."""

SG, DE, FR, CN, US = (Jurisdiction(code) for code in ("SG", "DE", "FR", "CN", "US"))


def at(*codes: Jurisdiction) -> frozenset[Jurisdiction]:
    """A set of jurisdictions."""
    return frozenset(codes)


def entity(name: str, country: Jurisdiction) -> Entity:
    """A legal person without owners."""
    return Entity(EntityId(name), country)


def place(name: str, *soil: Jurisdiction, operator: Entity | None = None) -> Place:
    """A place that stands where it says, run by an entity of the first country unless another is given."""
    return Place(PlaceId(name), at(*soil), frozenset(), (), operator or entity(f"{name}-operator", soil[0]))


def infer(source: Place, target: Place) -> Movement:
    """A prompt on its way to a pool."""
    return Movement(Action.INFER, Leg.EDGE_TO_POOL, source, target)


def back(source: Place, target: Place) -> Movement:
    """An answer on its way to an edge."""
    return Movement(Action.RETURN, Leg.POOL_TO_EDGE, source, target)


def rule(
    name: str,
    effect: Effect,
    when: tuple[Test, ...] = ALWAYS,
    pathways: tuple[PathwayKind | frozenset[PathwayKind], ...] = (),
    obligations: tuple[Obligation, ...] = (),
    unless: tuple[Test, ...] = (),
    exemption: tuple[Obligation, ...] = (),
) -> Rule:
    """A rule that says nothing beyond its condition and effect. A single kind of pathway is the only way to meet it."""
    needed = tuple(frozenset({one}) if isinstance(one, PathwayKind) else one for one in pathways)
    return Rule(
        RuleId(name),
        effect,
        when,
        "A sentence.",
        "A need.",
        SOURCE,
        Confidence.HIGH,
        needed,
        obligations,
        unless,
        exemption,
    )


def pack(
    name: str,
    jurisdictions: Iterable[Jurisdiction],
    *rules: Rule,
    mode: Mode = Mode.ENFORCE,
    from_ms: int = 0,
    until_ms: int | None = None,
) -> Pack:
    """A pack with these rules."""
    return Pack(PackId(name), 1, "transfer", frozenset(jurisdictions), from_ms, until_ms, mode, rules)


def own(*packs: Pack) -> tuple[AdmittedPack, ...]:
    """Packs that were signed by the side whose law they are."""
    return tuple(AdmittedPack(one, one.jurisdictions) for one in packs)


def open_pack(*jurisdictions: Jurisdiction) -> Pack:
    """A pack that grants everything there."""
    return pack("open", jurisdictions, rule("OPEN-1", Effect.GRANT))


def labelled(
    personal: Personal, grade: Grade, domestic: Domestic, origin: frozenset[Jurisdiction], **more: frozenset[str]
) -> Effective:
    """The label of a prompt whose axes are these, of which everything else is known and harmless unless it is given."""
    sets = {
        "categories": frozenset[str](),
        "located": frozenset[str](),
        "collected": frozenset[str](),
        "purpose": INFERENCE_ONLY,
        "asset": frozenset({"payload"}),
    }
    return Effective(personal, grade, domestic, origin, Clean.RAW, **(sets | more))


def plain(*origin: Jurisdiction) -> Effective:
    """The label of an everyday payload about nobody."""
    return labelled(Personal.NONE, Grade.GENERAL, Domestic.NO, at(*origin))


def facts(label: Effective) -> Facts:
    """Facts of a tenant in Singapore without papers."""
    return Facts(entity("tenant", SG), label, role=Role.CONTROLLER, critical_infrastructure=Declared.NO)


def paper(
    kind: PathwayKind,
    exporter: EntityId,
    importer: EntityId,
    countries: frozenset[Jurisdiction],
    personal_max: Personal = Personal.SENSITIVE,
    valid_from_ms: int = 0,
    valid_until_ms: int = 1 << 50,
) -> Pathway:
    """A pathway from a controller to a processor, for inference, whatever the categories."""
    return Pathway(
        id=PathwayId(f"{kind.value}-{importer}"),
        kind=kind,
        exporter=exporter,
        exporter_role=Role.CONTROLLER,
        importer=importer,
        importer_role=Role.PROCESSOR,
        countries=countries,
        personal_max=personal_max,
        categories=ALL_CATEGORIES,
        valid_from_ms=valid_from_ms,
        valid_until_ms=valid_until_ms,
        reference="drawer",
    )


def essence(verdict: Verdict) -> tuple[object, ...]:
    """Everything that a verdict says, without the order in which its reasons were found."""
    return (
        verdict.allowed,
        verdict.rules,
        frozenset(verdict.reasons),
        verdict.obligations,
        verdict.valid_until_ms,
        verdict.shadow,
    )


def refusals(verdict: Verdict) -> set[tuple[str, str | None]]:
    """The rules that refuse, each with its jurisdiction."""
    return {(reason.rule, reason.jurisdiction) for reason in verdict.reasons}


@dataclass(frozen=True, slots=True)
class Shipped:
    """The example as it is shipped."""

    law: Law
    edges: dict[str, Place]
    pools: dict[str, Place]
    tenants: dict[str, Tenant]


@cache
def packs_of(side: str) -> tuple[Pack, ...]:
    """Every pack that a side of the example ships."""
    paths = sorted((EXAMPLE / side / "packs").glob("*.yaml"))
    return tuple(read_as(read_document(path), PackDocument, pack_of) for path in paths)


@cache
def shipped() -> Shipped:
    """Load the example: domestic signs for China, overseas for every other country."""
    grants = {"overseas": ASSIGNED - at(CN), "domestic": at(CN)}
    packs: list[AdmittedPack] = []
    edges: dict[str, Place] = {}
    pools: dict[str, Place] = {}
    for side, grants_for in grants.items():
        packs.extend(AdmittedPack(one, grants_for) for one in packs_of(side))
        document = read_document(EXAMPLE / side / "fleet.yaml").convert(FleetDocument)
        fleet = fleet_of(document, SideId(side))
        edges |= {edge.id: edge.place for edge in fleet.edges}
        pools |= {pool.id: pool.place for pool in fleet.pools}
    tenants: dict[str, Tenant] = {
        tenant.id: tenant
        for path in sorted((EXAMPLE / "overseas" / "tenants").glob("*.yaml"))
        for tenant in read_as(read_document(path), TenantsDocument, tenants_of)
    }
    return Shipped(Law(packs, FAR), edges, pools, tenants)
