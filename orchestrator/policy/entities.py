"""Entities: the legal persons behind tenants, edges, pools and accessors."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.ids import EntityId
from orchestrator.policy.jurisdictions import Jurisdiction

OWNER_SHARE_PERCENT = 50
"""Owners of one country count from this share on, taken together: 28 CFR 202.211 and OFAC's 50 % rule."""


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
        """Return the countries whose owners together hold a share that counts. Indirect owners must be listed."""
        held: dict[Jurisdiction, int] = {}
        for owner in self.owners:
            held[owner.country] = held.get(owner.country, 0) + owner.share_percent
        return frozenset(country for country, share in held.items() if share >= OWNER_SHARE_PERCENT)
