"""Places, where a payload can be, and movements between them (DESIGN section 1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import PlaceId
from orchestrator.policy.jurisdictions import Jurisdiction


class Action(Enum):
    """What a movement is for."""

    __hash__ = object.__hash__  # members are single objects; Enum would hash their names in Python

    INFER = "infer"
    RETURN = "return"
    STORE = "store"
    REUSE = "reuse"
    EXPORT = "export"


class Leg(Enum):
    """From what kind of place to what kind of place."""

    __hash__ = object.__hash__

    SUBJECT_TO_EDGE = "subject-edge"
    EDGE_TO_POOL = "edge-pool"
    POOL_TO_EDGE = "pool-edge"
    EDGE_TO_SUBJECT = "edge-subject"
    ARTEFACT_TO_EDGE = "artefact-edge"
    TO_SINK = "sink"


class SinkKind(Enum):
    """What a sink keeps, and so what a movement to it is."""

    LOG = "log"
    TRACE = "trace"
    RESULTS = "results"
    CACHE = "cache"
    ARTEFACTS = "artefacts"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a payload can be: soil, access and ownership each bring their law."""

    id: PlaceId
    infers: frozenset[Jurisdiction]
    """Jurisdictions on whose soil it is processed."""
    stores: frozenset[Jurisdiction]
    """Jurisdictions on whose soil it is kept, if only for moments."""
    accessors: tuple[Entity, ...]
    """Entities whose staff can reach plaintext."""
    operator: Entity
    _soil: frozenset[Jurisdiction] = field(init=False, repr=False, compare=False, default=frozenset())
    _reach: frozenset[Jurisdiction] = field(init=False, repr=False, compare=False, default=frozenset())
    reached: tuple[Jurisdiction, ...] = field(init=False, repr=False, compare=False, default=())
    """What `reach` returns, sorted: how a record tells it."""
    _recipients: frozenset[str] = field(init=False, repr=False, compare=False, default=frozenset())

    def __post_init__(self) -> None:
        soil = self.infers | self.stores
        found = set(soil)
        for entity in (self.operator, *self.accessors):
            found.add(entity.country)
            found |= entity.owner_countries()
        object.__setattr__(self, "_soil", soil)
        object.__setattr__(self, "_reach", frozenset(found))
        object.__setattr__(self, "reached", tuple(sorted(found)))
        recipients = frozenset(entity.id for entity in (self.operator, *self.accessors))
        object.__setattr__(self, "_recipients", recipients)

    def soil(self) -> frozenset[Jurisdiction]:
        """Return the jurisdictions of the ground it stands on."""
        return self._soil

    def reach(self) -> frozenset[Jurisdiction]:
        """Return every jurisdiction of the place: soil, access, operator, and owners of 50 % and more."""
        return self._reach

    def recipients(self) -> frozenset[str]:
        """Return the ids of everyone who receives what arrives there: operator and accessors."""
        return self._recipients


@dataclass(frozen=True, slots=True)
class Movement:
    """(action, leg, from-place, to-place)."""

    action: Action
    leg: Leg
    source: Place
    target: Place
