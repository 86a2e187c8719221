"""What one tenant takes at an edge is not taken from another, and each refusal says which limit it was."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node_agent.front.limits import Admission, Limits
from orchestrator.placement.shares import equal_share, may_hold
from orchestrator.policy.ids import TenantId
from orchestrator.wire.catalogue import CATALOGUE, Kind, Problem, ProblemError, Retry
from tests.front.room import LIMITS

ACME, BETA = TenantId("acme"), TenantId("beta")


def admission(requests_max: int, tenant_requests_max: int = 10_000) -> Admission:
    given: dict[str, Any] = {**LIMITS, "requests_max": requests_max, "tenant_requests_max": tenant_requests_max}
    return Admission(Limits(**given))


def fill(held: ExitStack, places: Admission, tenant: TenantId, most: int = 10_000) -> tuple[int, str]:
    """Take places until one is refused; return how many there were, and the code."""
    for number in range(most):
        try:
            places.take(tenant)
        except ProblemError as error:
            return number, error.problem.code
        held.callback(places.free, tenant)
    return most, ""


def test_one_tenant_alone_may_use_nearly_all_and_never_the_last_place() -> None:
    for places in (2, 3, 8, 64, 1_024):
        with ExitStack() as held:
            edge = admission(places)
            taken, code = fill(held, edge, ACME)
            assert places * 3 // 4 <= taken < places or (taken, places) == (1, 2)
            assert code == "tenant_share"
            assert fill(held, edge, BETA, 1) == (1, ""), "whoever comes finds room"


@given(st.integers(1, 70), st.lists(st.tuples(st.booleans(), st.sampled_from("aaaaaaaabcdefgh"))))
def test_a_place_is_given_exactly_where_the_rule_of_shares_gives_it(places: int, steps: list[tuple[bool, str]]) -> None:
    edge, held = admission(places), Counter[str]()
    for comes, name in steps:
        tenant, mine = TenantId(name), held[name]
        if comes:
            holders = sum(count > 0 for count in held.values()) + (mine == 0)
            large = mine >= equal_share(places, holders + 1)
            if may_hold(mine, held.total() + large, places, holders):
                edge.take(tenant)
                held[name] += 1
            else:
                with pytest.raises(ProblemError) as refused:
                    edge.take(tenant)
                assert refused.value.problem.code == ("tenant_share" if large else "overloaded")
        elif mine:
            edge.free(tenant)
            held[name] -= 1
        assert edge.running == held.total()


def test_its_own_limit_is_named_before_the_share() -> None:
    with ExitStack() as held:
        assert fill(held, admission(1_024, 5), ACME) == (5, "tenant_limit")


def test_an_edge_that_is_full_of_equals_tells_the_next_one_that_it_is_full() -> None:
    with ExitStack() as held:
        edge = admission(8)
        for number in range(8):
            assert fill(held, edge, TenantId(f"t{number}"), 1) == (1, "")
        assert fill(held, edge, TenantId("one more")) == (0, "overloaded")


@pytest.mark.parametrize("seed", range(10))
def test_whoever_holds_less_than_its_share_is_served_while_one_sends_ten_times_as_much(seed: int) -> None:
    random, edge = Random(seed), admission(64)
    running: list[tuple[TenantId, ExitStack]] = []
    others = [TenantId(f"t{number}") for number in range(4)]
    refused = 0
    for _ in range(5_000):
        tenant = random.choices([ACME, *others], [10, 1, 1, 1, 1])[0]
        place = ExitStack()
        turned_away = False
        try:
            edge.take(tenant)
            place.callback(edge.free, tenant)
            running.append((tenant, place))
        except ProblemError:
            turned_away = True
        if turned_away:
            assert tenant == ACME or sum(one == tenant for one, _ in running) >= 64 // 6
            refused += tenant == ACME
        # Theirs end as they come; the large one's pile up.
        for one in [each for each in running if random.random() < (0.004 if each[0] == ACME else 0.2)]:
            one[1].close()
            running.remove(one)
        assert edge.running == len(running) <= 64
    assert refused > 100


def test_every_refusal_that_a_client_retries_by_itself_says_when_and_every_other_that_it_should_not() -> None:
    for entry in CATALOGUE.values():
        headers = dict(Problem(entry.code).headers())
        if entry.retry is Retry.NEVER:
            assert headers == {"x-should-retry": "false"}, entry.code
        else:
            assert headers["x-should-retry"] == "true"
            assert int(headers["retry-after"]) >= 1
        if entry.http in (429, 503):
            assert entry.kind is (Kind.RATE_LIMIT if entry.http == 429 else Kind.UNAVAILABLE)
    never = {code for code, entry in CATALOGUE.items() if entry.http in (429, 503) and entry.retry is Retry.NEVER}
    assert never == {"policy_mismatch"}, "a bug, which no retry mends"
