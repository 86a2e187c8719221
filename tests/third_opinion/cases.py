"""One situation that a law may be asked about, told twice: as Cedar's request, and as the facts and movement of ours.

A `Case` is plain data. Its two tellings share nothing but the values, so that a slip in one of them shows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Final

from orchestrator.policy.bundle import FOREVER_MS
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId, PathwayId, PlaceId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Subject
from orchestrator.policy.pathways import ALL_CATEGORIES, Pathway, PathwayKind, Role
from orchestrator.policy.places import Action, Leg, Movement, Place
from tests.values import replace

NOW_MS: Final = 1_790_000_000_000
"""In September 2026, when every shipped pack is in force."""
TENANT: Final = Entity(EntityId("tenant"), Jurisdiction("SG"))
SPOILS: Final = ("expired", "exporter", "importer", "country", "onward")
"""What may be wrong with a paper that is there and opens nothing."""


@dataclass(frozen=True, slots=True)
class Site:
    """Where one end of a movement is: every jurisdiction that reaches into it, and the ground among them."""

    reach: frozenset[str]
    soil: frozenset[str]


@dataclass(frozen=True, slots=True)
class Case:
    """One payload, one movement, and what the tenant holds and has told its subjects."""

    target: Site
    source: Site
    origin: frozenset[str]
    personal: Personal = Personal.NONE
    grade: Grade = Grade.GENERAL
    domestic: Domestic = Domestic.NO
    clean: Clean = Clean.RAW
    critical_infrastructure: Declared = Declared.NO
    categories: frozenset[str] = frozenset()
    located: frozenset[str] = frozenset()
    collected: frozenset[str] = frozenset()
    purpose: frozenset[str] = frozenset({"inference"})
    asset: frozenset[str] = frozenset({"payload"})
    processed_in: frozenset[str] = frozenset()
    movement: tuple[Action, Leg] = (Action.INFER, Leg.EDGE_TO_POOL)
    counts: tuple[tuple[CounterKind, int], ...] = ()
    """A count that is missing is unknown."""
    held: frozenset[PathwayKind] = frozenset()
    spoilt: tuple[tuple[PathwayKind, str], ...] = ()
    """Papers that are there and open nothing: Cedar is not told of them."""
    notices: frozenset[str] = frozenset()
    now_ms: int = NOW_MS

    def touching(self, jurisdiction: Jurisdiction) -> Case:
        """Return the case with this jurisdiction among those whose law is asked: by where the text was made."""
        ends = self.target.reach | self.source.reach
        if jurisdiction in self.origin | self.located | self.processed_in | ends:
            return self
        return replace(self, processed_in=self.processed_in | {jurisdiction})


@cache
def set_text(members: frozenset[str]) -> str:
    """Return a set as JSON."""
    return json.dumps(sorted(members))


@cache
def _kinds_text(kinds: frozenset[PathwayKind]) -> str:
    return json.dumps(sorted(kind.value for kind in kinds))


TOLD: Final[Mapping[str, Callable[[Case], str]]] = {
    Subject.PERSONAL.value: lambda case: str(int(case.personal)),
    Subject.GRADE.value: lambda case: str(int(case.grade)),
    Subject.DOMESTIC.value: lambda case: str(int(case.domestic)),
    Subject.CLEAN.value: lambda case: str(int(case.clean)),
    Subject.CRITICAL_INFRASTRUCTURE.value: lambda case: str(int(case.critical_infrastructure)),
    Subject.CATEGORIES.value: lambda case: set_text(case.categories),
    Subject.ORIGIN.value: lambda case: set_text(case.origin),
    Subject.LOCATED.value: lambda case: set_text(case.located),
    Subject.COLLECTED.value: lambda case: set_text(case.collected),
    Subject.PURPOSE.value: lambda case: set_text(case.purpose),
    Subject.ASSET.value: lambda case: set_text(case.asset),
    Subject.PROCESSED_IN.value: lambda case: set_text(case.processed_in),
    Subject.TARGET.value: lambda case: set_text(case.target.reach),
    Subject.TARGET_SOIL.value: lambda case: set_text(case.target.soil),
    Subject.SOURCE.value: lambda case: set_text(case.source.reach),
    Subject.SOURCE_SOIL.value: lambda case: set_text(case.source.soil),
    Subject.LEG.value: lambda case: json.dumps(case.movement[1].value),
    "pathways": lambda case: _kinds_text(case.held),
    "notices": lambda case: set_text(case.notices),
    "now_ms": lambda case: str(case.now_ms),
}
"""How each attribute of a context is read off a case, as JSON."""


def context_text(case: Case, attributes: tuple[str, ...], counters: tuple[CounterKind, ...]) -> str:
    """Return the context of Cedar's request, as JSON. There is no null in Cedar: a count says whether it is known."""
    parts = [f'"{name}":{TOLD[name](case)}' for name in attributes]
    if counters:
        counts = dict(case.counts)
        for kind in counters:
            known, value = kind in counts, counts.get(kind, 0)
            parts.append(f'"{kind.value}":{{"known":{"true" if known else "false"},"value":{value}}}')
    return "{" + ",".join(parts) + "}"


@cache
def place_of(name: str, site: Site) -> Place:
    """Return a place on that ground, which staff from every other jurisdiction of its reach can read."""
    soil = frozenset(Jurisdiction(code) for code in site.soil)
    operator = Entity(EntityId(f"{name}-operator"), Jurisdiction(min(site.soil or site.reach)))
    readers = tuple(
        Entity(EntityId(f"{name}-{code.lower()}"), Jurisdiction(code)) for code in sorted(site.reach - site.soil)
    )
    return Place(PlaceId(name), infers=soil, stores=frozenset(), accessors=readers, operator=operator)


def movement_of(case: Case) -> Movement:
    """Return the movement of the case as ours."""
    action, leg = case.movement
    return Movement(action, leg, place_of("source", case.source), place_of("target", case.target))


def facts_of(case: Case) -> Facts:
    """Return what the law of ours is told of the payload and its tenant."""
    label = Effective(
        personal=case.personal,
        grade=case.grade,
        domestic=case.domestic,
        origin=_codes(case.origin),
        clean=case.clean,
        categories=case.categories,
        located=_codes(case.located),
        collected=_codes(case.collected),
        purpose=case.purpose,
        asset=case.asset,
    )
    target = place_of("target", case.target)
    papers = [_paper(kind, target, case) for kind in case.held]
    papers += [_spoilt(_paper(kind, target, case), how, case.now_ms) for kind, how in case.spoilt]
    return Facts(
        tenant=TENANT,
        label=label,
        pathways=tuple(papers),
        processed_in=_codes(case.processed_in),
        role=Role.CONTROLLER,
        critical_infrastructure=case.critical_infrastructure,
        counters=tuple(Counter(kind, count, case.now_ms, FOREVER_MS) for kind, count in case.counts),
        notices=tuple((name, "1") for name in case.notices),
    )


def _codes(members: frozenset[str]) -> frozenset[Jurisdiction]:
    return frozenset(Jurisdiction(member) for member in members)


def _paper(kind: PathwayKind, target: Place, case: Case) -> Pathway:
    """A paper that opens exactly this movement of this payload."""
    return Pathway(
        id=PathwayId(kind.value),
        kind=kind,
        exporter=TENANT.id,
        exporter_role=Role.CONTROLLER,
        importer=target.operator.id,
        importer_role=Role.PROCESSOR,
        countries=target.reach(),
        personal_max=Personal.SENSITIVE,
        categories=ALL_CATEGORIES,
        valid_from_ms=case.now_ms,
        valid_until_ms=case.now_ms + 1,
        reference="drawer",
        purposes=case.purpose,
        onward=frozenset(EntityId(name) for name in target.recipients()),
    )


def _spoilt(paper: Pathway, how: str, now_ms: int) -> Pathway:
    if how == "expired":
        return replace(paper, valid_from_ms=0, valid_until_ms=now_ms)
    if how == "exporter":
        return replace(paper, exporter=EntityId("another-tenant"))
    if how == "importer":
        return replace(paper, importer=EntityId("another-operator"))
    if how == "country":
        return replace(paper, countries=paper.countries - {min(paper.countries)})
    if how == "onward":
        return replace(paper, importer=EntityId("another-operator"), onward=frozenset({paper.importer}))
    raise ValueError(how)
