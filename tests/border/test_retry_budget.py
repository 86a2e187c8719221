"""Second attempts are a fifth of what is under way: a pool that refuses is not buried under what it refused."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest

from node_agent.border.gate import Gate
from node_agent.border.retries import COUNTS_FOR_US, LEAST, SHARE_PERCENT, RetryBudget, Spent
from orchestrator.wire.catalogue import ProblemError
from tests.border.edge import Edge, refuses
from tests.bundles.sides import NOW_MS
from tests.values import replace

Make = Callable[..., Edge]


@pytest.mark.parametrize("seed", range(20))
def test_second_attempts_are_never_more_than_their_share_of_what_is_under_way(seed: int) -> None:
    random, budget, now_us = Random(seed), RetryBudget(), 0
    under_way: list[Spent] = []
    refused = 0
    for _ in range(3_000):
        now_us += random.randint(0, 20_000)
        again = random.random() < 0.6
        if not again or budget.may_retry(now_us):
            under_way.append(budget.sent(again, now_us))
            second = sum(one.again for one in under_way)
            # What ended within the last second counts too, so of what is under way it may be the share or less.
            recent = len(under_way) - second + budget._count(False, now_us)
            assert second <= max(LEAST, recent * SHARE_PERCENT // 100)
        else:
            refused += 1
        for ended in [one for one in under_way if random.random() < 0.05]:
            budget.ended(ended, now_us)
            budget.ended(ended, now_us)
        under_way = [one for one in under_way if not one.over]
    assert refused > 100
    for one in under_way:
        budget.ended(one, now_us)
    assert budget.may_retry(now_us + COUNTS_FOR_US)
    assert [budget._count(kind, now_us + 2 * COUNTS_FOR_US) for kind in (False, True)] == [0, 0]


async def storm(edge: Edge, requests: int) -> int:
    """Ask at one instant, and return how many attempts left in all."""
    for _ in range(requests):
        with pytest.raises(ProblemError):
            await edge.gate.ask(edge.asked("acme-sg"))
    return len(edge.routes.sent)


async def test_when_every_pool_refuses_few_requests_are_placed_again(make_edge: Make) -> None:
    busy = {name: refuses("engine_busy") for name in ("cn_guizhou", "cn_shanghai", "eu_frankfurt")}
    edge = make_edge(**busy)
    assert await storm(edge, 50) <= 50 * 1.2
    edge.gate = Gate(edge.name, replace(edge.gate._hands, now_ns=lambda: (NOW_MS * 1000 + COUNTS_FOR_US) * 1000))
    before = len(edge.routes.sent)
    assert await storm(edge, 1) - before > 1, "one alone may always try again"


async def test_what_no_load_brought_about_is_placed_again_however_often(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=refuses("draining"))
    pools = {(await edge.text(edge.asked("acme-sg")))[0] for _ in range(20)}
    assert pools == {"cn-shanghai"}
    assert len(edge.routes.sent) == 40


async def test_a_request_whose_time_is_over_is_not_sent(make_edge: Make) -> None:
    edge = make_edge()
    with pytest.raises(ProblemError) as found:
        await edge.gate.ask(replace(edge.asked("acme-sg"), budget_ms=0))
    assert (found.value.problem.code, found.value.problem.entry.http) == ("timeout_total", 504)
    assert edge.routes.sent == []
    assert edge.records("decision") == []


async def test_an_attempt_after_another_has_only_the_time_that_is_left(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=refuses("engine_busy"))
    now_us = [NOW_MS * 1000]
    edge.gate = Gate(edge.name, replace(edge.gate._hands, now_ns=lambda: now_us[0] * 1000))

    def passes(_: object) -> None:
        now_us[0] += 300_000

    edge.routes.on_send = passes
    assert (await edge.text(edge.asked("acme-sg")))[0] == "cn-shanghai"
    assert [sendable.budget_ms for _, sendable in edge.routes.sent] == [60_000, 59_700]
