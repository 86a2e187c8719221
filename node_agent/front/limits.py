"""Limits of one edge towards its tenants, and the count of the requests that it is serving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from orchestrator.policy.ids import TenantId
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.deadlines import AS_SET, Waits


@dataclass(frozen=True, slots=True)
class Limits:
    """What one request, one tenant and all tenants together may take."""

    body_bytes_max: int
    body_timeout_ms: int
    """From the end of the headers to the last byte of the body."""
    max_tokens_max: int
    """The most tokens that a request may ask for."""
    requests_max: int
    """Requests in flight; one more is told 429."""
    tenant_requests_max: int
    budget_ms: int
    """The longest that a request may take, from its head to the last token."""
    write_timeout_ms: int = 30_000
    """The longest that one write may wait for a tenant who does not read."""
    keep_alive_ms: int = 10_000
    """A stream that is silent for this long gets a comment, for the proxies on its way."""
    answer_chars_max: int = 1 << 20
    """The longest answer that is held for a tenant who does not stream."""
    waits: Waits = AS_SET


class Admission:
    """Counts the requests in flight: their bodies and answers are the memory that tenants can take."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._by_tenant: Counter[TenantId] = Counter()
        self.running = 0
        """Requests in flight."""

    @contextmanager
    def one(self, tenant: TenantId) -> Iterator[None]:
        """Hold one place while a request is served. Raises ProblemError when there is none."""
        if self.running >= self._limits.requests_max:
            raise ProblemError(Problem("overloaded"))
        if self._by_tenant[tenant] >= self._limits.tenant_requests_max:
            raise ProblemError(Problem("overloaded", "This tenant has as many requests here as it may have."))
        self.running += 1
        self._by_tenant[tenant] += 1
        try:
            yield
        finally:
            self.running -= 1
            self._by_tenant[tenant] -= 1
            if not self._by_tenant[tenant]:
                del self._by_tenant[tenant]
