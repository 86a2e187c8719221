"""A refusal carries the explanation that operators see, without what is not the tenant's to see."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from node_agent.border.problems import problem_of
from orchestrator.placement.pick import Candidate, Drop, Placement
from orchestrator.placement.requests import PlacementRequest
from orchestrator.policy.ids import ModelId
from orchestrator.policy.permit import deny
from orchestrator.policy.verdicts import REVOKED
from orchestrator.wire.catalogue import Problem, ProblemError
from tests.border.edge import GERMAN, Edge, refuses

Ways = Callable[..., Edge]


async def refused(edge: Edge, **without: Any) -> Problem:
    if without:
        edge.current = edge.example.bundle(**without)
    with pytest.raises(ProblemError) as caught:
        await edge.gate.ask(edge.asked("rhein-gmbh", GERMAN))
    return caught.value.problem


async def test_each_refusing_law_is_named_with_its_rule_and_what_would_be_needed(make_edge: Ways) -> None:
    problem = await refused(make_edge("edge-frankfurt"), without_pool="eu-frankfurt")
    error = problem.openai("req_1")["error"]
    assert isinstance(error, dict)
    assert (problem.entry.http, error["code"]) == (451, "residency_blocked")
    told = error["explanation"]
    assert {(one["jurisdiction"], one["rule"]) for one in told} == {
        ("DE", "EU-46"),
        ("DE", "EU-RA"),
        ("DE", "EU-13-CN"),
    }
    assert all(one["sentence"] and one["needs"] for one in told)
    assert sorted(error["rules"]) == sorted({one["rule"] for one in told})


async def test_no_pool_operator_or_price_is_told(make_edge: Ways) -> None:
    edge = make_edge("edge-frankfurt", eu_frankfurt=refuses("engine_busy"))
    blocked = await refused(edge, without_pool="eu-frankfurt")
    edge = make_edge("edge-frankfurt")
    edge.routes.down = frozenset({"eu-frankfurt"})
    infeasible = await refused(edge)
    assert (blocked.entry.http, infeasible.entry.http) == (451, 503)
    assert infeasible.explanation, "why the others were closed is told as well"
    for problem in (blocked, infeasible):
        text = json.dumps(problem.openai("req_1"))
        for word in ("guizhou", "shanghai", "frankfurt", "tidegate-", "pico", "USD", "slots"):
            assert word not in text, word


async def test_a_revoked_pool_is_not_named(make_edge: Ways) -> None:
    edge = make_edge()
    assert edge.current is not None
    pool = edge.current.fleet.pools[0]
    verdict = deny(REVOKED, f"The pool {pool.id} is revoked.", "A revocation list without it.", 0)
    placement = Placement(None, (Candidate(pool, verdict, Drop.NOT_PERMITTED, None),))
    problem = problem_of(placement, PlacementRequest(ModelId("m"), frozenset(), 1, 1, 1))
    assert pool.id not in json.dumps(problem.openai("req_1"))
