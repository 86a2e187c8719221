"""A site that cannot record its decision has done nothing: another, with a spool of its own, may take the request."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.policy.ids import SchedulerId
from orchestrator.spool.records import FullReason, RecordKind, SpoolFull
from orchestrator.wire.catalogue import Problem, ProblemError
from orchestrator.wire.frames import Refused
from tests.border.edge import Edge
from tests.border.example import Plan
from tests.values import replace

Make = Callable[..., Edge]
CODES = ["evidence_share", "evidence_unavailable"]


def full(code: str) -> Plan:
    return lambda sendable: [Refused(1, sendable.attempt, code, "", retry_after_ms=30_000)]


async def refused(edge: Edge) -> Problem:
    with pytest.raises(ProblemError) as found:
        await edge.gate.ask(edge.asked("acme-sg"))
    return found.value.problem


@pytest.mark.parametrize("code", CODES)
async def test_another_permitted_site_takes_what_one_cannot_record(make_edge: Make, code: str) -> None:
    edge = make_edge(cn_guizhou=full(code))
    assert await edge.text(edge.asked("acme-sg")) == ("cn-shanghai", "S")
    decisions, usage = edge.records("decision"), edge.records("usage")
    assert [record["pool"] for record in decisions] == ["cn-guizhou", "cn-shanghai"]
    assert [record["attempt"] for record in decisions] == [record["attempt"] for record in usage]
    assert [record["outcome"] for record in usage] == ["refused", "complete"]


@pytest.mark.parametrize("code", CODES)
async def test_where_no_site_is_left_the_reason_is_told(make_edge: Make, code: str) -> None:
    edge = make_edge(cn_guizhou=full(code), cn_shanghai=full(code))
    problem = await refused(edge)
    assert (problem.code, problem.entry.http) == (code, 429 if code == "evidence_share" else 503)
    assert {("retry-after", "30"), ("x-should-retry", "true")} <= set(problem.headers())
    assert [pool for pool, _ in edge.routes.sent] == ["cn-guizhou", "cn-shanghai"]
    assert [record["outcome"] for record in edge.records("usage")] == ["refused", "refused"]


async def test_a_pool_of_the_same_site_is_not_asked_since_it_has_the_same_spool(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=full("evidence_share"))
    assert edge.current is not None
    fleet = edge.current.fleet
    pools = tuple(replace(one, scheduler=SchedulerId("guizhou")) if one.scheduler else one for one in fleet.pools)
    edge.current = replace(edge.current, fleet=replace(fleet, pools=pools))
    assert (await refused(edge)).code == "evidence_share"
    assert [pool for pool, _ in edge.routes.sent] == ["cn-guizhou"]


async def test_sites_that_are_full_cost_no_more_attempts_than_the_budget_has(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=full("evidence_share"), cn_shanghai=full("evidence_share"))
    for _ in range(50):
        assert (await refused(edge)).code == "evidence_share"
    assert len(edge.routes.sent) <= 50 * 1.2


async def test_an_edge_whose_own_spool_is_full_asks_no_site(make_edge: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    edge = make_edge(cn_guizhou=full("evidence_share"))
    append = edge.spool.append_async
    taken = 0

    def takes_one_decision(kind: RecordKind, *rest: object, **more: object) -> object:
        nonlocal taken
        taken += kind == "decision"
        if kind == "decision" and taken > 1:
            raise SpoolFull(kind, FullReason.CAPACITY)
        return append(kind, *rest, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(edge.spool, "append_async", takes_one_decision)
    assert (await refused(edge)).code == "evidence_unavailable"
    assert (len(edge.routes.sent), taken) == (1, 2), "the second try has no record, so there is none, and no third"
