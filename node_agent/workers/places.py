"""How many requests one of several processes may serve now: what it leases of the edge's limits."""

from __future__ import annotations

from node_agent.watch.shares import ALL_REQUESTS, TENANT_REQUESTS
from orchestrator.policy.ids import TenantId
from orchestrator.watch.holding import Holding


class LeasedPlaces:
    """The places of one process, for all tenants and for each."""

    def __init__(self, holding: Holding) -> None:
        self._holding = holding

    def of_all(self) -> int:
        """Return how many requests of all tenants may be in flight here."""
        return self._holding.amount(ALL_REQUESTS)

    def of(self, tenant: TenantId) -> int:
        """Return how many of them may be of one tenant."""
        return self._holding.amount(_name(tenant))

    def uneven(self) -> int:
        """Return of how many limits this process leases more than its even share, or lends some of it."""
        return self._holding.uneven()

    def taken(self, tenant: TenantId) -> None:
        """A request has a place."""
        self._holding.taken(ALL_REQUESTS)
        self._holding.taken(_name(tenant))

    def freed(self, tenant: TenantId) -> None:
        """A request has left its place."""
        self._holding.freed(ALL_REQUESTS)
        self._holding.freed(_name(tenant))

    def short(self, tenant: TenantId | None) -> None:
        """A request found no place: of all, or of those of a tenant."""
        self._holding.refused(ALL_REQUESTS if tenant is None else _name(tenant))

    def lends(self, tenant: TenantId | None) -> bool:
        """Return whether others have places that this process might be lent: of all, or of those of a tenant."""
        return self._holding.lends(ALL_REQUESTS if tenant is None else _name(tenant))

    async def changed(self) -> None:
        """Return when this process has more places than before, or fewer."""
        await self._holding.changed()


def _name(tenant: TenantId) -> str:
    return f"{TENANT_REQUESTS}/{tenant}"
