"""What becomes of one request, for one log line and the metrics. No payload, key or header value."""

from __future__ import annotations

from collections.abc import Callable
from logging import DEBUG, INFO
from typing import Literal

from node_agent.front.tenants import Caller
from orchestrator.policy.ids import PoolId, RequestId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.names import FIRST_TOKEN_SECONDS, REFUSALS, REQUEST_SECONDS, REQUESTS, Event
from orchestrator.wire.catalogue import Problem

_ended = logger("node_agent.front").recurring(
    Event.REQUEST_ENDED,
    "request_id",
    ("tenant_id", "key_id", "pool", "outcome", "code", "http_status"),
    ("delivered_tokens", "duration_ms"),
)

Outcome = Literal["answered", "refused", "cut", "cancelled", "failed"]
"""How a request ended, in the words of the metrics."""


class Counters:
    """The series that visits are counted in."""

    __slots__ = ("first_token_seconds", "refusals", "requests", "seconds")

    def __init__(self, metrics: Metrics) -> None:
        self.requests = metrics.counter(REQUESTS)
        self.seconds = metrics.histogram(REQUEST_SECONDS)
        self.first_token_seconds = metrics.histogram(FIRST_TOKEN_SECONDS)
        self.refusals = metrics.counter(REFUSALS)


class Visit:
    """Follows one request."""

    __slots__ = (
        "_begun_s",
        "_clock_s",
        "_counters",
        "_told_first",
        "caller",
        "code",
        "delivered",
        "elsewhere",
        "outcome",
        "pool",
        "request",
    )

    def __init__(self, request: RequestId, counters: Counters, clock_s: Callable[[], float]) -> None:
        self.request = request
        self.caller: Caller | None = None
        self.pool: PoolId | None = None
        self.delivered = 0
        """Tokens that the tenant's connection took."""
        self.elsewhere = False
        """Whether another process of this edge serves it, and tells of it."""
        self.outcome: Outcome = "cancelled"
        self.code: str | None = None
        self._counters = counters
        self._clock_s = clock_s
        self._begun_s = clock_s()
        self._told_first = False

    def left_ms(self, total_ms: int) -> int:
        """Return what is left of the time that the whole may take."""
        left_ms = int(total_ms - (self._clock_s() - self._begun_s) * 1000)
        return left_ms if left_ms > 0 else 0

    def first_token(self) -> None:
        """Some of the answer is out. Only the first call counts."""
        if not self._told_first and self.pool is not None:
            self._told_first = True
            self._counters.first_token_seconds[self.pool].observe(self._clock_s() - self._begun_s)

    def complete(self) -> None:
        """The whole answer is out."""
        self.outcome = "answered"

    def broken(self, problem: Problem) -> None:
        """It was refused, or cut after the answer had begun."""
        self.outcome = "refused" if self.pool is None else "cut"
        self.code = problem.entry.code

    def failed(self) -> None:
        """Something is wrong on our side."""
        self.outcome = "failed"
        self.code = "internal_error"

    def end(self, status: int | None) -> None:
        """Tell of it, unless that is done elsewhere: nothing is counted twice."""
        if self.elsewhere:
            return
        took_s = self._clock_s() - self._begun_s
        counters, outcome, caller = self._counters, self.outcome, self.caller
        counters.requests[outcome].value += 1
        counters.seconds[outcome].observe(took_s)
        if self.code is not None:
            counters.refusals[self.code].value += 1
        # Anybody can be refused without a key, as often as they like: that fills no log.
        level, tenant, key = (DEBUG, None, None) if caller is None else (INFO, caller.tenant.id, caller.key_id)
        shared = (tenant, key, self.pool, outcome, self.code, status)
        _ended.tell(level, self.request, shared, self.delivered, round(took_s * 1000))
