"""How long one request may take: the edge's bounds, lowered by what its tenant declared and by the request's header."""

from __future__ import annotations

import re

from node_agent.front.framing import Head
from node_agent.front.http import TIMEOUT_HEADER
from node_agent.front.limits import Limits
from orchestrator.policy.tenants import Tenant
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.deadlines import Waits

_MILLISECONDS = re.compile(r"[1-9][0-9]{0,8}\Z", re.ASCII)


def allowed_time(head: Head, tenant: Tenant, limits: Limits) -> tuple[int, Waits]:
    """Return how many ms a request may take from its head to its end, complete or not, and what it may wait in it.

    A tenant and a request can only lower what the edge allows. Raises ProblemError when its header is not a number of
    ms.
    """
    total_ms, waits, service = limits.budget_ms, limits.waits, tenant.service
    if service is not None:
        total_ms = _least(total_ms, service.timeout_ms)
        first_ms = _least(waits.first_token_ms, service.first_token_timeout_ms)
        waits = Waits(first_ms, _least(waits.between_tokens_ms, service.between_tokens_timeout_ms))
    if TIMEOUT_HEADER in head.once or TIMEOUT_HEADER in head.repeated:
        total_ms = _least(total_ms, _asked_ms(head))
    return total_ms, waits


def _asked_ms(head: Head) -> int:
    given = head.once.get(TIMEOUT_HEADER)
    if given is None or _MILLISECONDS.match(given) is None:
        sentence = "Expected one whole number of milliseconds, from 1 to 999999999."
        raise ProblemError(Problem("invalid_header", f"{TIMEOUT_HEADER}: {sentence}", TIMEOUT_HEADER))
    return int(given)


def _least(most: int, lower: int | None) -> int:
    return most if lower is None or lower > most else lower
