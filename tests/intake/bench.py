"""One attempt before the second permit: what it is, what it cites, and what is newest; a test changes any of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.revocations import Revoked
from orchestrator.evidence.citation import Citation
from orchestrator.evidence.inputs import InputManifest
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, PathwayId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective, Personal
from orchestrator.policy.pathways import ALL_CATEGORIES, Pathway, PathwayKind, Role
from orchestrator.policy.permit import permit_route
from orchestrator.wire.frames import Open
from scheduler.intake.second_permit import Ask, Check, second_permit
from tests.bundles.sides import NOW_MS
from tests.intake.small_house import DOMESTIC, EDGE, MILD, OVERSEAS, POOL_OPERATOR, TENANT, House, citation, opened
from tests.values import replace

CN, SG = Jurisdiction("CN"), Jurisdiction("SG")
ROUTE = frozenset({CN, SG})
PERSONAL = replace(MILD, personal=Personal.PERSONAL)


def pathway(name: str, importer: EntityId = POOL_OPERATOR, kind: PathwayKind = PathwayKind.CN_SCC) -> Pathway:
    return Pathway(
        id=PathwayId(name),
        kind=kind,
        exporter=TENANT.id,
        exporter_role=Role.CONTROLLER,
        importer=importer,
        importer_role=Role.PROCESSOR,
        countries=ROUTE,
        personal_max=Personal.PERSONAL,
        categories=ALL_CATEGORIES,
        valid_from_ms=NOW_MS - 1,
        valid_until_ms=NOW_MS + 10_000,
        reference="drawer",
    )


def told(label: Effective = MILD, *held: Pathway) -> Facts:
    """What the law is told of the tenant, which handles its own data."""
    return Facts(TENANT, label, held, role=Role.CONTROLLER)


@dataclass
class Bench:
    """One attempt about to be judged: what it is, what it cites, and what is newest."""

    house: House
    cited: Bundle | None
    newest: Bundle | None
    open: Open
    edge: EdgeId = EDGE
    now_ms: int = NOW_MS

    def judge(self, ask: Ask = permit_route) -> Check:
        return second_permit(self.open, self.edge, self.cited, self.newest, self.now_ms, ask)

    def cite(self, change: Callable[[Citation], Citation]) -> None:
        """Sign the attempt again, over another citation."""
        self.open = opened(self.open.facts, change(self.open.citation))

    def renew(self, revoked: Revoked | None = None) -> None:
        """The pool's side gets newer law."""
        self.newest = self.house.bundle(DOMESTIC, {} if revoked is None else {DOMESTIC: revoked})


def bench(house: House | None = None, facts: Facts | None = None, inputs: InputManifest | None = None) -> Bench:
    made = House() if house is None else house
    cited, newest = made.bundle(OVERSEAS), made.bundle(DOMESTIC)
    return Bench(made, cited, newest, opened(facts or told(), citation(cited), inputs=inputs))
