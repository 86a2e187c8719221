"""Pathways: a recorded legal basis between two named entities, with countries and validity.

A pathway opens only what it names. One signed with operator A never opens operator B's pool.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from orchestrator.policy.ids import EntityId, PathwayId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Personal
from orchestrator.policy.places import Movement


class PathwayKind(Enum):
    """The legal bases that a pack may ask for."""

    EU_SCC = "eu_scc"
    EU_TIA = "eu_tia"
    SG_CONTRACT = "sg_contract"
    CN_SCC = "cn_scc"
    CN_CERTIFICATION = "cn_certification"
    CN_ASSESSMENT = "cn_assessment"


@dataclass(frozen=True, slots=True)
class Pathway:
    """What a tenant holds."""

    id: PathwayId
    kind: PathwayKind
    exporter: EntityId
    importer: EntityId
    countries: frozenset[Jurisdiction]
    """Where the importer may have the data: soil, access and ownership of the place."""
    personal_max: Personal
    """The most personal payload that it covers; never `unknown`."""
    valid_from_ms: int
    valid_until_ms: int
    """First millisecond at which it no longer holds."""
    reference: str
    """Where the paper lies."""

    def covers(self, movement: Movement, exporter: EntityId, personal: Personal, now_ms: int) -> bool:
        """Whether this pathway is a basis for that movement at that time."""
        return (
            self.exporter == exporter
            and self.importer == movement.target.operator.id
            and movement.target.reach() <= self.countries
            and personal <= self.personal_max
            and personal is not Personal.UNKNOWN
            and self.valid_from_ms <= now_ms < self.valid_until_ms
        )
