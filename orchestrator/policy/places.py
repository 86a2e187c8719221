"""Places, where a payload can be, and movements between them (DESIGN section 1)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.policy.entities import Entity
from orchestrator.policy.ids import PlaceId
from orchestrator.policy.jurisdictions import Jurisdiction


class Action(Enum):
    """What a movement is for."""

    INFER = "infer"
    RETURN = "return"
    STORE = "store"
    REUSE = "reuse"
    EXPORT = "export"


class Leg(Enum):
    """From what kind of place to what kind of place."""

    SUBJECT_TO_EDGE = "subject-edge"
    EDGE_TO_POOL = "edge-pool"
    POOL_TO_EDGE = "pool-edge"
    EDGE_TO_SUBJECT = "edge-subject"
    ARTEFACT_TO_EDGE = "artefact-edge"
    TO_SINK = "sink"


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

    def soil(self) -> frozenset[Jurisdiction]:
        """Return the jurisdictions of the ground it stands on."""
        return self.infers | self.stores

    def reach(self) -> frozenset[Jurisdiction]:
        """Return every jurisdiction of the place: soil, access, operator, and owners of 50 % and more."""
        found = set(self.soil())
        for entity in (self.operator, *self.accessors):
            found.add(entity.country)
            found |= entity.owner_countries()
        return frozenset(found)


@dataclass(frozen=True, slots=True)
class Movement:
    """(action, leg, from-place, to-place)."""

    action: Action
    leg: Leg
    source: Place
    target: Place

    def crosses_border(self) -> bool:
        """Whether any jurisdiction of the receiving place is not among the sender's."""
        return not self.target.reach() <= self.source.reach()
