"""Where no retry can help, the tenant is told what to change; where one can, no more of the operators than before."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.border.problems import problem_of
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import Pool
from orchestrator.placement.pick import Candidate, Drop, Placement
from orchestrator.wire.catalogue import Problem, Retry
from tests.placement.test_choice import ALLOW, DENY, REQUEST, choose, pool
from tests.values import replace

ASKED = replace(REQUEST, revision="r-7", max_tokens=4_096)
LASTING = {
    Drop.ENTITLEMENT: ("model_not_found", 404, "model"),
    Drop.MODEL: ("model_not_found", 404, "model"),
    Drop.REVISION: ("model_not_found", 404, "model"),
    Drop.CAPABILITY: ("capability_not_offered", 400, None),
    Drop.CONTEXT: ("context_length_exceeded", 400, "max_tokens"),
    Drop.BUDGET: ("budget_exceeded", 402, None),
}
PASSING = [drop for drop in Drop if drop not in LASTING and drop is not Drop.NOT_PERMITTED]


def dropped(drops: Iterable[Drop], **changes: Any) -> Placement:
    """A placement that chose nothing, of one pool for each reason."""
    made = [(pool(f"pool-{number}", **changes), drop) for number, drop in enumerate(drops)]
    verdict = {drop: DENY if drop is Drop.NOT_PERMITTED else ALLOW for drop in Drop}
    return Placement(None, tuple(Candidate(one, verdict[drop], drop, None) for one, drop in made))


def told(*drops: Drop) -> Problem:
    return problem_of(dropped(drops), ASKED)


@pytest.mark.parametrize("drop", LASTING)
@pytest.mark.parametrize("beside", [(), (Drop.NOT_PERMITTED,), (Drop.NOT_REACHABLE,)])
def test_a_reason_that_lasts_has_a_code_of_its_own_and_no_retry(drop: Drop, beside: tuple[Drop, ...]) -> None:
    problem = told(drop, *beside)
    assert (problem.code, problem.entry.http, problem.param) == LASTING[drop]
    assert problem.entry.code == problem.code, "it is in the catalogue"
    assert problem.headers() == [("x-should-retry", "false")]


def test_the_sentences_say_what_to_change() -> None:
    assert told(Drop.MODEL).text == "No permitted pool serves the model 'demo'."
    assert told(Drop.MODEL, Drop.NOT_REACHABLE).text == "No permitted pool in reach serves the model 'demo'."
    assert "revision 'r-7' of the model 'demo'" in told(Drop.REVISION).text
    assert "4096 tokens" in told(Drop.CONTEXT).text
    assert "max_tokens" in told(Drop.CONTEXT).needs
    assert "budget" in told(Drop.BUDGET).needs


def test_a_model_of_another_tenant_is_told_as_one_that_is_not_here() -> None:
    assert told(Drop.ENTITLEMENT) == Problem("model_not_found", param="model")


@pytest.mark.parametrize(
    ("drops", "code"),
    [
        ((Drop.MODEL, Drop.REVISION), "model_not_found"),
        ((Drop.MODEL, Drop.REVISION, Drop.CAPABILITY), "capability_not_offered"),
        ((Drop.CAPABILITY, Drop.CONTEXT), "context_length_exceeded"),
        ((Drop.CONTEXT, Drop.MODEL, Drop.BUDGET), "budget_exceeded"),
    ],
)
def test_of_several_the_one_of_the_pool_that_came_furthest_is_told(drops: tuple[Drop, ...], code: str) -> None:
    assert told(*drops).code == told(*reversed(drops)).code == code


@pytest.mark.parametrize("drop", PASSING)
def test_while_one_pool_may_take_it_later_a_retry_may_help(drop: Drop) -> None:
    for beside in ((), *((lasting,) for lasting in LASTING if drop is not Drop.NOT_REACHABLE)):
        problem = told(drop, *beside)
        assert (problem.code, problem.entry.http) == ("no_feasible_pool", 503)
        assert problem.entry.retry is Retry.LATER


def offers(name: str, *capabilities: Capability) -> Pool:
    found = pool(name)
    return replace(found, models=(replace(found.models[0], capabilities=frozenset(capabilities)),))


def lacking(*pools: Pool) -> str:
    needs = frozenset({Capability.CHAT, Capability.TOOLS, Capability.JSON_SCHEMA})
    candidates = tuple(Candidate(one, ALLOW, Drop.CAPABILITY, None) for one in pools)
    return problem_of(Placement(None, candidates), replace(REQUEST, capabilities=needs)).text


def test_what_no_pool_offers_is_named_and_where_none_offers_all_that_is_said() -> None:
    chat, tools, schema = Capability.CHAT, Capability.TOOLS, Capability.JSON_SCHEMA
    assert lacking(offers("a", chat)) == "No permitted pool offers: json_schema, tools."
    assert lacking(offers("a", chat, tools), offers("b", chat)) == "No permitted pool offers: json_schema."
    scattered = lacking(offers("a", chat, tools), offers("b", chat, schema))
    assert scattered == "No permitted pool offers all of: chat, json_schema, tools."


@pytest.mark.parametrize(
    ("hidden", "said"), [(Drop.BREAKER, Drop.DOWN), (Drop.CAPPED, Drop.FULL), (Drop.NO_OPENING, Drop.FULL)]
)
def test_how_operators_share_their_room_is_not_told(hidden: Drop, said: Drop) -> None:
    assert told(hidden, Drop.DRAINED) == told(said, Drop.DRAINED)
    assert f"(2 {said.value})" in told(hidden, said).text


@given(st.lists(st.sampled_from(list(Drop)), min_size=1, max_size=8))
def test_whatever_the_reasons_no_pool_and_no_room_is_named(drops: list[Drop]) -> None:
    text = json.dumps(told(*drops).openai("req_1"))
    for word in ("pool-", "region", "breaker", "capped", "opening", "slots", "pico", "USD"):
        assert word not in text


def test_the_reasons_of_a_real_placement_reach_the_tenant() -> None:
    short = choose(request=replace(REQUEST, max_tokens=2_048))
    assert problem_of(short, replace(REQUEST, max_tokens=2_048)).code == "context_length_exceeded"
    other = replace(REQUEST, revision="r-7")
    assert problem_of(choose(request=other), other).code == "model_not_found"
    stranger = replace(REQUEST, entitled=False)
    assert problem_of(choose(request=stranger), stranger).code == "model_not_found"
