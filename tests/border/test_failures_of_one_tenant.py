"""A tenant whose prompts make an engine fail is held off from it alone, and others are served there meanwhile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import cast

import pytest

from node_agent.border.decider import Asked
from node_agent.uplink.sending import Sendable
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.breaker import FAILURES_MAX, HOLD_MIN_US
from orchestrator.policy.ids import TenantId
from orchestrator.wire.catalogue import ProblemError
from orchestrator.wire.frames import Broken, Done, StreamFrame, Tokens
from tests.border.edge import Edge, breaks, refuses
from tests.border.example import Plan
from tests.border.test_what_an_edge_learns import GUIZHOU, SHANGHAI, refused, saying, ticking, view_of, with_settings
from tests.values import replace

Make = Callable[..., Edge]
POISON, HOLD_MS = "the word that breaks it", HOLD_MIN_US // 1000


def fails_at_poison(sendable: Sendable) -> Iterator[StreamFrame]:
    """Break an answer where the prompt asks for that, else complete it."""
    if POISON in sendable.generation.messages[0].text:
        yield Broken(1, sendable.attempt, "engine_failed", "x", PoolCounts())
        return
    yield Tokens(1, sendable.attempt, 0, 1, "x", (7,))
    yield Done(1, sendable.attempt, "stop", PoolCounts(10, 0, 1, 1), 0, 0)


def of(asked: Asked, tenant: str) -> Asked:
    return replace(asked, tenant=replace(asked.tenant, id=TenantId(tenant)))


def poisoned(edge: Edge, tenant: str = "acme-sg") -> Asked:
    return of(saying(edge, POISON), tenant)


def harmless(edge: Edge, tenant: str = "other-sg") -> Asked:
    return of(saying(edge, "Hello"), tenant)


def one_pool(edge: Edge) -> None:
    with_settings(edge, drains=frozenset({SHANGHAI}))


async def test_a_tenant_whose_prompts_fail_keeps_a_pool_from_itself_alone(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=cast(Plan, fails_at_poison))
    clock = ticking(edge)
    one_pool(edge)
    codes = []
    for _ in range(50):
        codes.append((await refused(edge, poisoned(edge))).problem.code)
        clock.wait_ms(200)
        assert (await edge.text(harmless(edge)))[0] == GUIZHOU
    assert codes[: FAILURES_MAX + 1] == ["engine_failed"] * FAILURES_MAX + ["no_feasible_pool"]
    assert codes.count("engine_failed") <= FAILURES_MAX + 4, "its trials come after twice the time each"


async def test_where_a_second_tenants_fail_too_nobody_is_sent_there(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=breaks("engine_failed"))
    clock = ticking(edge)
    for _ in range(FAILURES_MAX):
        await refused(edge, poisoned(edge))
        clock.wait_ms(1)
    await refused(edge, harmless(edge))
    clock.wait_ms(1)
    assert (await edge.text(harmless(edge, "third-sg")))[0] == SHANGHAI
    assert view_of(edge.records("decision")[-1])["held_off"]


async def test_a_tenant_that_wins_every_trial_does_not_keep_others_from_a_pool_that_is_well_again(
    make_edge: Make,
) -> None:
    edge = make_edge(cn_guizhou=breaks("engine_failed"))
    clock = ticking(edge)
    one_pool(edge)
    for asked in (poisoned(edge), poisoned(edge), harmless(edge)):
        await refused(edge, asked)
        clock.wait_ms(1)
    edge.routes.plans["cn-guizhou"] = cast(Plan, fails_at_poison)
    assert (await refused(edge, harmless(edge))).problem.code == "no_feasible_pool"
    clock.wait_ms(HOLD_MS)
    assert (await refused(edge, poisoned(edge))).problem.code == "engine_failed"
    assert (await edge.text(harmless(edge)))[0] == GUIZHOU


async def test_a_tenant_that_is_held_off_alone_is_told_so_and_what_helps(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=cast(Plan, fails_at_poison))
    clock = ticking(edge)
    one_pool(edge)
    for _ in range(FAILURES_MAX):
        await refused(edge, poisoned(edge))
        clock.wait_ms(1)
    problem = (await refused(edge, poisoned(edge))).problem
    assert (problem.code, problem.entry.http) == ("no_feasible_pool", 503)
    assert "1 held off for this tenant" in problem.text
    assert "down" not in problem.text
    assert "A request other than those" in problem.needs
    assert GUIZHOU not in problem.text + problem.needs
    # What is so for everybody is said as before.
    for tenant in ("second-sg", "third-sg"):
        await refused(edge, poisoned(edge, tenant))
        clock.wait_ms(1)
    for asked in (poisoned(edge), harmless(edge, "fourth-sg")):
        problem = (await refused(edge, asked)).problem
        assert "1 down" in problem.text
        assert not problem.needs


@pytest.mark.parametrize("code", ["engine_unreachable", "no_replica"])
async def test_a_pool_that_cannot_be_reached_is_held_off_for_all_by_attempts_of_one_tenant(
    make_edge: Make, code: str
) -> None:
    edge = make_edge(cn_guizhou=refuses(code))
    clock = ticking(edge)
    one_pool(edge)
    for _ in range(FAILURES_MAX):
        with pytest.raises(ProblemError):
            await edge.gate.ask(poisoned(edge))
        clock.wait_ms(400)
    assert (await refused(edge, harmless(edge))).problem.code == "no_feasible_pool"


async def test_a_session_that_is_lost_is_no_tenants_doing(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=breaks("session_lost"))
    clock = ticking(edge)
    one_pool(edge)
    for _ in range(FAILURES_MAX):
        await refused(edge, poisoned(edge))
        clock.wait_ms(1)
    assert (await refused(edge, harmless(edge))).problem.code == "no_feasible_pool"


@pytest.mark.parametrize("code", ["timeout_total", "slow_reader"])
async def test_what_a_tenant_brought_about_ends_a_trial_without_a_word_on_the_pool(make_edge: Make, code: str) -> None:
    edge = make_edge(cn_guizhou=breaks("session_lost"))
    clock = ticking(edge)
    one_pool(edge)
    for _ in range(FAILURES_MAX):
        await refused(edge, harmless(edge))
        clock.wait_ms(1)
    clock.wait_ms(HOLD_MS)
    edge.routes.plans["cn-guizhou"] = breaks(code)
    for _ in range(5):
        assert (await refused(edge, poisoned(edge))).problem.code == code
    edge.routes.plans["cn-guizhou"] = cast(Plan, fails_at_poison)
    assert (await edge.text(harmless(edge)))[0] == GUIZHOU
