"""Limits of one edge towards its tenants, and the count of the requests that it is serving."""

from __future__ import annotations

import asyncio
from typing import Protocol

import msgspec

from orchestrator.placement.shares import IDLE_FACTOR, equal_share, may_hold
from orchestrator.policy.ids import TenantId
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.deadlines import AS_SET, Waits

LEND_S = 0.25
"""How long a request waits for a place that another process may lend: that takes some messages, each within 5 ms."""
WAITING_MAX = 1_024
"""Requests that wait so at once. One more is refused as if there were nothing to lend."""


class Limits(msgspec.Struct, frozen=True):
    """What one request, one tenant and all tenants together may take."""

    body_bytes_max: int
    body_timeout_ms: int
    """From the end of the headers to the last byte of the body."""
    max_tokens_max: int
    """The most tokens that a request may ask for."""
    requests_max: int
    """Requests in flight of all tenants; one more is told 503."""
    tenant_requests_max: int
    """Requests in flight of one tenant; one more is told 429."""
    budget_ms: int
    """The longest that a request may take, from its head to the last token."""
    write_timeout_ms: int = 30_000
    """The longest that one write may wait for a tenant who does not read."""
    keep_alive_ms: int = 10_000
    """A stream that is silent for this long gets a comment, for the proxies on its way."""
    answer_chars_max: int = 1 << 20
    """The longest answer that is held for a tenant who does not stream."""
    waits: Waits = AS_SET


class Places(Protocol):
    """The places of one of several processes of an edge, which change. None of these but `changed` waits."""

    def of_all(self) -> int:
        """Return how many requests of all tenants may be in flight here."""

    def of(self, tenant: TenantId) -> int:
        """Return how many of them may be of one tenant."""

    def uneven(self) -> int:
        """Return of how many limits this process leases more than its even share, or lends some of it."""

    def taken(self, tenant: TenantId) -> None:
        """A request has a place."""

    def freed(self, tenant: TenantId) -> None:
        """A request has left its place."""

    def short(self, tenant: TenantId | None) -> None:
        """A request found no place: of all, or of those of a tenant."""

    def lends(self, tenant: TenantId | None) -> bool:
        """Return whether others have places that this process might be lent: of all, or of those of a tenant."""

    async def changed(self) -> None:
        """Return when this process has more places than before, or fewer."""


class Admission:
    """Counts the requests in flight: their bodies and answers are the memory that tenants can take.

    A tenant may use what is idle. As the edge fills, one that holds more than its equal share is refused first, and the
    last place is never given to it: whoever comes with little finds room, whatever another tenant sends.
    """

    def __init__(self, limits: Limits, places: Places | None = None) -> None:
        """`places` are those of one of several processes; without them, those of `limits` are all here."""
        self._limits = limits
        self._places = places
        self._by_tenant: dict[TenantId, int] = {}
        self.running = 0
        """Requests in flight."""
        self._waiting = 0
        """Requests that wait for a place of another process."""

    def take(self, tenant: TenantId) -> None:
        """Take one place, until `free`, for a request. Raises ProblemError, with the limit that was reached."""
        by_tenant, limits, leased = self._by_tenant, self._limits, self._places
        held = by_tenant.get(tenant, 0)
        most, places = limits.tenant_requests_max, limits.requests_max
        if leased is not None:
            most, places = leased.of(tenant), leased.of_all()
        if held >= most:
            sentence = f"This tenant has {held} requests in flight here, as many as it may have."
            raise ProblemError(Problem("tenant_limit", sentence))
        if held >= IDLE_FACTOR * (places - self.running - 1):
            # Hardly ever: where less is held, enough is idle for anybody.
            self._check_share(held, places)
        self.running += 1
        by_tenant[tenant] = held + 1
        if leased is not None:
            leased.taken(tenant)

    async def borrow(self, tenant: TenantId, refused: ProblemError) -> bool:
        """Take a place that `take` has `refused` as soon as another process lends one. Returns whether one did."""
        leased = self._places
        if leased is None:
            return False
        short_of = _short_of(tenant, refused)
        leased.short(short_of)
        if not leased.lends(short_of) or self._waiting >= WAITING_MAX:
            return False
        self._waiting += 1
        try:
            async with asyncio.timeout(LEND_S):
                while True:
                    await leased.changed()
                    try:
                        self.take(tenant)
                    except ProblemError as error:
                        before, short_of = short_of, _short_of(tenant, error)
                        if short_of != before:
                            leased.short(short_of)
                    else:
                        return True
        except TimeoutError:
            return False
        finally:
            self._waiting -= 1

    def _check_share(self, held: int, places: int) -> None:
        """Raise ProblemError where one that holds so many of `places` may not have another."""
        holders = len(self._by_tenant) + (held == 0)
        large = held >= equal_share(places, holders + 1)
        if may_hold(held, self.running + large, places, holders):
            return
        if large:
            sentence = f"This edge is nearly full, and {held} requests of this tenant are in it."
            raise ProblemError(Problem("tenant_share", sentence))
        raise ProblemError(Problem("overloaded"))

    def free(self, tenant: TenantId) -> None:
        """A request of this tenant is over, and has left its place."""
        if self._places is not None:
            self._places.freed(tenant)
        self.running -= 1
        held = self._by_tenant[tenant] - 1
        if held:
            self._by_tenant[tenant] = held
        else:
            del self._by_tenant[tenant]


def _short_of(tenant: TenantId, refused: ProblemError) -> TenantId | None:
    """Return whose places there were too few of; None where it was those of all."""
    return tenant if refused.problem.code == "tenant_limit" else None
