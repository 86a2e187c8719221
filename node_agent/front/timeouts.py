"""How long one request may take: the edge's bounds, lowered by what its tenant declared and by the request's header."""

from __future__ import annotations

import re
import time

import msgspec

from node_agent.front.http import TIMEOUT_HEADER, Head
from node_agent.front.limits import Limits
from orchestrator.policy.tenants import Service, Tenant
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.deadlines import Waits

_MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}\Z", re.ASCII)


class AllowedTime(msgspec.Struct, frozen=True):
    """The bounds of one request, which began when this was made."""

    until_us: int
    """Monotonic: when it is over, complete or not."""
    waits: Waits

    def left_ms(self) -> int:
        """Return what is left of the whole."""
        return max(0, self.until_us - _now_us()) // 1000


def allowed_time(head: Head, tenant: Tenant, limits: Limits) -> AllowedTime:
    """Return how long a request may take from now on. Raises ProblemError when its header is not a number of ms.

    A tenant and a request can only lower what the edge allows.
    """
    service = tenant.service or Service()
    total_ms = _least(limits.budget_ms, service.timeout_ms, _asked_ms(head))
    first_ms = _least(limits.waits.first_token_ms, service.first_token_timeout_ms)
    between_ms = _least(limits.waits.between_tokens_ms, service.between_tokens_timeout_ms)
    return AllowedTime(_now_us() + total_ms * 1000, Waits(first_ms, between_ms))


def _asked_ms(head: Head) -> int | None:
    given = head.all(TIMEOUT_HEADER)
    if not given:
        return None
    if len(given) > 1 or _MILLISECONDS.match(given[0]) is None:
        sentence = "Expected one whole number of milliseconds, from 1 to 999999999."
        raise ProblemError(Problem("invalid_header", f"{TIMEOUT_HEADER}: {sentence}", TIMEOUT_HEADER))
    return int(given[0])


def _least(most: int, *lower: int | None) -> int:
    return min([most, *(one for one in lower if one is not None)])


def _now_us() -> int:
    return time.monotonic_ns() // 1000
