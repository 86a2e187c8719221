"""Entities: the legal persons behind tenants, edges, pools and accessors."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.ids import EntityId
from orchestrator.policy.jurisdictions import Jurisdiction

OWNER_SHARE_PERCENT = 50
"""An owner counts from this share on: the 50 % rule of 28 CFR 202.211 and of OFAC."""


@dataclass(frozen=True, slots=True)
class Owner:
    """Who holds a share of an entity."""

    entity: EntityId
    country: Jurisdiction
    share_percent: int
    """1 to 100."""


@dataclass(frozen=True, slots=True)
class Entity:
    """A legal person."""

    id: EntityId
    country: Jurisdiction
    owners: tuple[Owner, ...] = ()

    def owner_countries(self) -> frozenset[Jurisdiction]:
        """Return the countries of the owners that count."""
        return frozenset(owner.country for owner in self.owners if owner.share_percent >= OWNER_SHARE_PERCENT)
