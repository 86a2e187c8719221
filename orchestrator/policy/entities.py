"""Entities: the legal persons behind tenants, edges, pools and accessors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    indirect: frozenset[Jurisdiction] = frozenset()
    """Countries that count because they own an owner that counts; `with_indirect_owners` finds them."""

    def owner_countries(self) -> frozenset[Jurisdiction]:
        """Return the countries whose owners together hold a share that counts, directly or through an owner."""
        return self.indirect | self.direct_owner_countries()

    def direct_owner_countries(self) -> frozenset[Jurisdiction]:
        """Return the countries whose direct owners together hold a share that counts."""
        held: dict[Jurisdiction, int] = {}
        for owner in self.owners:
            held[owner.country] = held.get(owner.country, 0) + owner.share_percent
        return frozenset(country for country, share in held.items() if share >= OWNER_SHARE_PERCENT)


def with_indirect_owners(entities: Mapping[EntityId, Entity]) -> dict[EntityId, Entity]:
    """Return the entities with the countries that own them through owners among these.

    Who holds half of an entity and more passes on who holds half of itself and more, at any depth: 28 CFR 202.211
    counts indirect owners, and OFAC's 50 % rule cascades. Owners that are not among these are known by their country
    alone.
    """
    found: dict[EntityId, Entity] = {}
    for name, entity in entities.items():
        indirect: set[Jurisdiction] = set()
        seen = {name}
        pending = [entity]
        while pending:
            for owner in pending.pop().owners:
                parent = entities.get(owner.entity)
                if parent is None or owner.share_percent < OWNER_SHARE_PERCENT or parent.id in seen:
                    continue
                seen.add(parent.id)
                indirect |= parent.direct_owner_countries()
                pending.append(parent)
        found[name] = replace(entity, indirect=frozenset(indirect))
    return found
