"""What the law is told of a payload and its tenant. Everything is resolved: no tenant section is read later."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.entities import Entity
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective, Rank
from orchestrator.policy.packs import Situation, Subject
from orchestrator.policy.pathways import Pathway, Role
from orchestrator.policy.places import Action, Leg, Movement


class Declared(Rank):
    """What a tenant says of itself. `unknown` is the worst."""

    NO = 0
    YES = 1
    UNKNOWN = 2


@dataclass(frozen=True, slots=True)
class Facts:
    """What the law is told."""

    tenant: Entity
    label: Effective
    pathways: tuple[Pathway, ...] = ()
    processed_in: frozenset[Jurisdiction] = frozenset()
    """Jurisdictions of the places that produced a text, for an output."""
    role: Role | None = None
    """In which role the tenant handles its data; without one no pathway opens anything."""
    critical_infrastructure: Declared = Declared.UNKNOWN
    """Whether the tenant operates critical information infrastructure."""
    counters: tuple[Counter, ...] = ()
    notices: tuple[tuple[str, str], ...] = ()
    """(name, version) of each notice that the tenant has given its subjects."""
    ranks: Mapping[Subject, int] = field(init=False, repr=False, compare=False, default_factory=dict)
    """What conditions read of these facts on ordered axes, whatever the movement."""
    sets: Mapping[Subject, frozenset[str]] = field(init=False, repr=False, compare=False, default_factory=dict)
    """The same of sets."""
    hashed: int = field(init=False, repr=False, compare=False, default=0)
    """Worked out once: tables of the law are asked by facts."""

    def __post_init__(self) -> None:
        label = self.label
        ranks: dict[Subject, int] = {
            Subject.PERSONAL: label.personal,
            Subject.GRADE: label.grade,
            Subject.DOMESTIC: label.domestic,
            Subject.CLEAN: label.clean,
            Subject.CRITICAL_INFRASTRUCTURE: self.critical_infrastructure,
        }
        sets: dict[Subject, frozenset[str]] = {
            Subject.CATEGORIES: label.categories,
            Subject.ORIGIN: label.origin,
            Subject.LOCATED: label.located,
            Subject.COLLECTED: label.collected,
            Subject.PURPOSE: label.purpose,
            Subject.ASSET: label.asset,
            Subject.PROCESSED_IN: self.processed_in,
        }
        object.__setattr__(self, "ranks", ranks)
        object.__setattr__(self, "sets", sets)
        told = (self.tenant, label, self.pathways, self.processed_in, self.role, self.critical_infrastructure)
        object.__setattr__(self, "hashed", hash((told, self.counters, self.notices)))

    def __hash__(self) -> int:
        return self.hashed

    def counts(self, now_ms: int) -> dict[CounterKind, int]:
        """Return the counts that hold at `now_ms`; of two of one kind, the greater."""
        found: dict[CounterKind, int] = {}
        for counter in self.counters:
            if counter.holds(now_ms):
                found[counter.kind] = max(counter.count, found.get(counter.kind, 0))
        return found

    def notice(self, name: str) -> str | None:
        """Return the version of a notice that was given, or None."""
        return next((version for given, version in self.notices if given == name), None)


ACTION_SETS = {action: frozenset({action.value}) for action in Action}
LEG_SETS = {leg: frozenset({leg.value}) for leg in Leg}


def situation_of(
    facts: Facts, movement: Movement, now_ms: int, processed_in: frozenset[Jurisdiction] | None = None
) -> Situation:
    """Return what a condition may read of these facts and this movement.

    `processed_in` stands in for that of the facts, where a movement is of what was made from the payload.
    """
    source, target = movement.source, movement.target
    sets: dict[Subject, frozenset[str]] = {
        **facts.sets,
        Subject.TARGET: target.reach(),
        Subject.TARGET_SOIL: target.soil(),
        Subject.SOURCE: source.reach(),
        Subject.SOURCE_SOIL: source.soil(),
        Subject.ACTION: ACTION_SETS[movement.action],
        Subject.LEG: LEG_SETS[movement.leg],
    }
    if processed_in is not None:
        sets[Subject.PROCESSED_IN] = processed_in
    return Situation(facts.ranks, sets, facts.counts(now_ms) if facts.counters else {})
