"""Traces, generated workloads, and the traffic that a world gets of them."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import cache
from itertools import combinations, pairwise
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.placement.traces import (
    FLAT,
    MOONCAKE_BATCH_US,
    RATE_MODELS,
    DayProfile,
    TraceRow,
    azure_conversation,
    block_reuse,
    day_profile,
    mixed,
    mooncake,
    warp,
)
from benchmarks.placement.workloads import (
    AgentShape,
    Mix,
    Shape,
    TreeShape,
    capacity,
    longest,
    pool_rate,
    requests_of,
    shape_of,
    tool_use,
    tree_of_thought,
)
from orchestrator.placement.fleet import Fleet, Prices
from orchestrator.placement.replay.world import BLOCK_TOKENS, Gpu, Kind, Link, Promise, SimPool, SimRequest, World
from orchestrator.policy.ids import ModelId, PoolId
from orchestrator.policy.jurisdictions import Jurisdiction

GPU = Gpu(
    step_ns=10_000_000,
    stream_ns=100_000,
    prefill_ns=50_000,
    chunk_tokens=1_000,
    slots=20,
    kv_tokens=100_000,
    prefix_cache=True,
)
SHAPE = Shape(1_000, 100)


@cache
def conversations() -> tuple[TraceRow, ...]:
    return mooncake(1)


@cache
def azure() -> tuple[TraceRow, ...]:
    return azure_conversation()


def world(replicas: Sequence[int], may: Sequence[frozenset[int]], context_tokens: int = 32_768) -> World:
    """A world with one edge, pools alike but for their replicas, and kinds that may use some of them."""
    pools = tuple(
        SimPool(
            PoolId(f"pool-{number}"), Jurisdiction("DE"), "here", ModelId("m"), GPU, count, 10, context_tokens
        )
        for number, count in enumerate(replicas)
    )
    kinds = tuple(Kind(f"kind-{number}", pools, Promise(2_000_000, 80_000)) for number, pools in enumerate(may))
    link = Link(1_000, 0, 10_000_000)
    return World(
        edges=("edge",),
        edge_jurisdictions=(Jurisdiction("DE"),),
        pools=pools,
        links=((link,) * len(pools),),
        kinds=kinds,
        prices=Prices(),
        fleet=Fleet(),
        start_ms=0,
    )


def mix(
    shares: Sequence[float], edges: Sequence[int] = (), profile: DayProfile = FLAT, utc: Sequence[int] = (0,)
) -> Mix:
    return Mix(
        shares=tuple(shares),
        edges=tuple(edges or [0] * len(shares)),
        tenants=(3,) * len(shares),
        utc_minutes=tuple(utc),
        profile=profile,
        limited_share=0.5,
    )


EVERYWHERE = world([4, 4], [frozenset({0, 1}), frozenset({0, 1})])
EVEN = mix([0.7, 0.3])


def test_mooncake_repeats_as_many_blocks_as_others_count() -> None:
    reuse = block_reuse(conversations())
    assert (reuse.references, reuse.unique, reuse.repeats) == (288_500, 182_790, 105_710)
    assert round(reuse.share * 100, 2) == 36.64


def test_mooncake_arrivals_are_spread_inside_their_batches() -> None:
    rows = conversations()
    assert len(rows) == 12_031
    assert all(one.at_us <= other.at_us for one, other in pairwise(rows))
    within = Counter(row.at_us % MOONCAKE_BATCH_US * 10 // MOONCAKE_BATCH_US for row in rows)
    assert max(within.values()) < 1.2 * min(within.values())
    assert mooncake(1) == rows
    assert mooncake(2) != rows


def test_a_mooncake_session_is_a_conversation_that_grows() -> None:
    by_session: dict[int, list[TraceRow]] = defaultdict(list)
    for row in conversations():
        by_session[row.session].append(row)
    assert len(by_session) == 7_373
    repeated = [rows for rows in by_session.values() if len(rows) > 1]
    assert all(row.blocks[:2] == rows[0].blocks[:2] for rows in repeated for row in rows)


def test_every_prompt_has_a_hash_for_each_of_its_blocks() -> None:
    for row in conversations():
        assert len(row.blocks) == -(-row.prompt_tokens // BLOCK_TOKENS)


def test_the_azure_trace_is_read_to_its_last_line() -> None:
    rows = azure()
    assert len(rows) == 19_366
    assert round(shape_of(rows).prompt_tokens) == 1_155
    assert round(shape_of(rows).output_tokens) == 211
    assert rows[0].at_us == 0
    assert 3_501 < rows[-1].at_us / 1e6 < 3_503
    assert not any(row.blocks for row in rows)


@pytest.mark.parametrize(("model", "swing"), [("m-large", 1.45), ("m-small", 2.21), ("deepseek-r1", 4.91)])
def test_a_day_swings_as_servegen_measured_and_is_quietest_at_four(model: str, swing: float) -> None:
    profile = day_profile(model)
    assert round(profile.swing, 2) == swing
    assert profile.rates.index(min(profile.rates)) == 4
    assert sum(profile.rates) / len(profile.rates) == pytest.approx(1)
    assert profile.at(30) == profile.at(30 + 1_440) == profile.rates[0]


def test_a_model_without_rates_is_named() -> None:
    with pytest.raises(ValueError, match=RATE_MODELS[0]):
        day_profile("m-huge")


@given(
    st.lists(st.floats(0, 1), min_size=1, max_size=50).map(sorted),
    st.lists(st.floats(0, 10), min_size=1, max_size=12).filter(lambda rates: max(rates) > 0.01),
)
def test_a_change_of_time_keeps_the_order_and_the_run(shares: list[float], rates: list[float]) -> None:
    moments = warp(shares, lambda share: rates[min(int(share * len(rates)), len(rates) - 1)])
    assert all(0 <= moment <= 1 for moment in moments)
    assert all(one <= other + 1e-12 for one, other in pairwise(moments))


def test_a_change_of_time_sends_as_the_rate_says() -> None:
    moments = warp([number / 1_000 for number in range(1_000)], lambda share: 3.0 if share < 0.5 else 1.0)
    assert sum(moment < 0.5 for moment in moments) == pytest.approx(750, abs=3)


@pytest.mark.parametrize(("branch", "nodes"), [(2, 15), (4, 85)])
def test_a_tree_has_as_many_requests_as_in_skywalker(branch: int, nodes: int) -> None:
    shape = TreeShape(branch)
    rows = tree_of_thought(shape, 20, 60_000_000, 3)
    assert shape.nodes == nodes
    assert set(Counter(row.session for row in rows).values()) == {nodes}
    assert tree_of_thought(shape, 20, 60_000_000, 3) == rows
    assert tree_of_thought(shape, 20, 60_000_000, 4) != rows


def test_a_child_of_a_tree_begins_with_its_parents_prompt() -> None:
    rows = tree_of_thought(TreeShape(2), 1, 0, 5)
    root = rows[0]
    full = root.prompt_tokens // BLOCK_TOKENS
    for row in rows[1:]:
        assert row.at_us > root.at_us
        assert row.prompt_tokens > root.prompt_tokens
        assert row.blocks[:full] == root.blocks[:full]
        assert row.blocks[full] != root.blocks[full]


def test_trees_repeat_about_as_much_as_skywalkers_best_policy_finds() -> None:
    assert 0.84 < repeated_tokens(tree_of_thought(TreeShape(2), 100, 60_000_000, 1)) < 0.92
    assert 0.84 < repeated_tokens(tree_of_thought(TreeShape(4), 30, 60_000_000, 1)) < 0.92


def repeated_tokens(rows: Sequence[TraceRow]) -> float:
    """The share of prompt tokens in leading blocks that were seen before."""
    seen: set[int] = set()
    repeats = 0
    for row in rows:
        run = next((at for at, block in enumerate(row.blocks) if block not in seen), len(row.blocks))
        repeats += min(run * BLOCK_TOKENS, row.prompt_tokens)
        seen.update(row.blocks)
    return repeats / sum(row.prompt_tokens for row in rows)


def test_an_agents_context_only_grows() -> None:
    by_session: dict[int, list[TraceRow]] = defaultdict(list)
    shape = AgentShape()
    for row in tool_use(shape, 50, 60_000_000, 7):
        by_session[row.session].append(row)
    assert len(by_session) == 50
    for rows in by_session.values():
        assert shape.steps[0] <= len(rows) <= shape.steps[1]
        for one, other in pairwise(rows):
            full = one.prompt_tokens // BLOCK_TOKENS
            assert other.prompt_tokens >= one.prompt_tokens + one.output_tokens
            assert other.blocks[:full] == one.blocks[:full]
    first = {rows[0].blocks[: shape.prefix_tokens[0] // BLOCK_TOKENS] for rows in by_session.values()}
    assert len(first) == shape.prefixes


def test_what_a_pool_can_do_is_what_its_steps_allow() -> None:
    # 50 ms of prefill, and of 100 tokens 0.1 ms each and a twentieth of a step of 10 ms: 50 + 10 + 50 ms.
    pool = world([3], []).pools[0]
    assert pool_rate(pool, SHAPE) == pytest.approx(3 / 0.110)
    # A prompt of 8,000 tokens takes eight steps, more than its part of the steps for ten tokens.
    assert pool_rate(pool, Shape(8_000, 10)) == pytest.approx(3 / (0.400 + 0.001 + 0.080))
    # Memory holds only ten streams of 10,000 tokens.
    assert pool_rate(pool, Shape(1_000, 9_000)) == pytest.approx(3 / (0.050 + 0.900 + 9.0))


def test_capacity_is_held_down_by_what_may_go_to_few_pools_only() -> None:
    confined = world([1, 9], [frozenset({0}), frozenset({0, 1})])
    one = pool_rate(confined.pools[0], SHAPE)
    assert capacity(confined, SHAPE) == pytest.approx(10 * one)
    assert capacity(confined, SHAPE, [0.05, 0.95]) == pytest.approx(10 * one)
    assert capacity(confined, SHAPE, [0.5, 0.5]) == pytest.approx(2 * one)


@given(st.data())
def test_capacity_is_that_of_the_scarcest_set_of_kinds(data: st.DataObject) -> None:
    pools = data.draw(st.integers(1, 5))
    replicas = data.draw(st.lists(st.integers(1, 6), min_size=pools, max_size=pools))
    some = st.frozensets(st.integers(0, pools - 1), min_size=1)
    may = data.draw(st.lists(some, min_size=1, max_size=5))
    weights = data.draw(st.lists(st.integers(1, 9), min_size=len(may), max_size=len(may)))
    shares = [weight / sum(weights) for weight in weights]
    found = world(replicas, may)
    rates = [pool_rate(pool, SHAPE) for pool in found.pools]
    # The other side of Hall's theorem: of every set of kinds, what they send must fit where any of them may go.
    scarcest = min(
        sum(rates[pool] for pool in frozenset().union(*(may[kind] for kind in kinds)))
        / sum(shares[kind] for kind in kinds)
        for size in range(1, len(may) + 1)
        for kinds in combinations(range(len(may)), size)
    )
    assert capacity(found, SHAPE, shares) == pytest.approx(min(scarcest, sum(rates)))


@pytest.mark.parametrize("load", [0.4, 0.9])
def test_requests_arrive_at_the_load_that_was_asked_for(load: float) -> None:
    rows = azure()[:4_000]
    requests = requests_of(EVERYWHERE, rows, EVEN, load, 1)
    rate = len(requests) / (requests[-1].at_us / 1e6)
    assert rate == pytest.approx(load * capacity(EVERYWHERE, shape_of(rows), EVEN.shares), rel=0.02)
    assert [request.number for request in requests] == list(range(len(rows)))
    assert all(one.at_us <= other.at_us for one, other in pairwise(requests))


def test_sessions_that_keep_their_gaps_arrive_at_that_load_too() -> None:
    rows = tree_of_thought(TreeShape(2), 800, 60_000_000, 1)
    requests = requests_of(EVERYWHERE, rows, EVEN, 0.8, 1, keep_gaps=True)
    rate = len(requests) / (requests[-1].at_us / 1e6)
    assert rate == pytest.approx(0.8 * capacity(EVERYWHERE, shape_of(rows), EVEN.shares), rel=0.1)
    gaps: dict[int, list[int]] = defaultdict(list)
    for request in requests:
        gaps[request.session].append(request.at_us)
    # From the first level to the last there are three answers of four to eight seconds.
    whole = [max(times) - min(times) for times in gaps.values() if len(times) == 15]
    assert len(whole) > 100
    assert all(12_000_000 <= gap <= 24_000_001 for gap in whole)


def test_sessions_longer_than_the_run_are_refused() -> None:
    rows = tree_of_thought(TreeShape(2), 2, 1_000_000, 1)
    with pytest.raises(ValueError, match="more rows"):
        requests_of(EVERYWHERE, rows, EVEN, 0.9, 1, keep_gaps=True)


def test_the_same_seed_is_the_same_traffic() -> None:
    rows = conversations()[:500]
    assert requests_of(EVERYWHERE, rows, EVEN, 0.5, 1) == requests_of(EVERYWHERE, rows, EVEN, 0.5, 1)
    assert requests_of(EVERYWHERE, rows, EVEN, 0.5, 1) != requests_of(EVERYWHERE, rows, EVEN, 0.5, 2)


def test_tenants_share_no_prefix_and_each_shares_its_own() -> None:
    requests = requests_of(EVERYWHERE, conversations(), EVEN, 0.5, 1, count=3_000)
    owners: dict[int, set[str]] = defaultdict(set)
    tenants: dict[int, set[str]] = defaultdict(set)
    for request in requests:
        tenants[request.session].add(request.tenant)
        for block in request.blocks:
            owners[block].add(request.tenant)
    assert all(len(found) == 1 for found in owners.values())
    assert all(len(found) == 1 for found in tenants.values())
    assert {request.tenant for request in requests} == {f"kind-{kind}-{n}" for kind in (0, 1) for n in (0, 1, 2)}
    assert sum(len(request.blocks) for request in requests) > 1.2 * len(owners)


def test_kinds_get_their_shares() -> None:
    requests = requests_of(EVERYWHERE, azure(), EVEN, 0.5, 1, count=8_000)
    found = Counter(request.kind for request in requests)
    assert found[0] / len(requests) == pytest.approx(0.7, abs=0.02)


def test_an_edge_is_busy_in_its_own_day() -> None:
    day = DayProfile((0.2,) * 12 + (1.8,) * 12)
    apart = mix([0.5, 0.5], [0, 1], day, (0, 720))
    even = [TraceRow(number * 1_000, 1_000, 100, (), number) for number in range(8_000)]
    requests = requests_of(EVERYWHERE, even, apart, 0.5, 1)
    half = requests[-1].at_us / 2
    early = Counter(request.edge for request in requests if request.at_us < half)
    late = Counter(request.edge for request in requests if request.at_us >= half)
    assert early[1] > 5 * early[0]
    assert late[0] > 5 * late[1]
    # What one sends less, the other sends more: together they are even.
    assert early.total() == pytest.approx(late.total(), rel=0.01)


def test_prompts_that_some_pool_cannot_take_are_dropped_not_cut() -> None:
    small = world([4], [frozenset({0})], context_tokens=8_192)
    assert longest(small) == 8_192
    rows = conversations()[:2_000]
    requests = requests_of(small, rows, mix([1.0]), 0.5, 1)
    fitting = [row for row in rows if row.prompt_tokens + row.output_tokens <= 8_192]
    assert [request.prompt_tokens for request in requests] == [row.prompt_tokens for row in fitting]
    with pytest.raises(ValueError, match="no rows"):
        requests_of(small, [row for row in rows if row not in fitting], mix([1.0]), 0.5, 1)


def test_a_caller_that_limits_its_answer_allows_at_least_what_it_gets() -> None:
    requests = requests_of(EVERYWHERE, azure(), EVEN, 0.5, 1, count=4_000)
    limited = [request for request in requests if request.expected_tokens]
    assert len(limited) / len(requests) == pytest.approx(0.5, abs=0.03)
    assert all(request.expected_tokens >= request.output_tokens for request in limited)
    assert all(request.upload_bytes == 4 * request.prompt_tokens for request in requests)


def test_windows_side_by_side_play_the_same_rows_at_the_same_load() -> None:
    rows = conversations()[:2_000]
    one, four = (requests_of(EVERYWHERE, rows, EVEN, 0.5, 1, lanes=lanes) for lanes in (1, 4))
    assert sorted(r.prompt_tokens for r in one) == sorted(r.prompt_tokens for r in four)
    assert four[-1].at_us == pytest.approx(one[-1].at_us, rel=0.01)
    # Turns of a conversation are four times as far apart, apart from those that fall into two windows.
    assert median_gap(four) > 2 * median_gap(one)


def median_gap(requests: Sequence[SimRequest]) -> int:
    """The median time between a request and the one before it in its session."""
    last: dict[int, int] = {}
    gaps: list[int] = []
    for request in requests:
        if request.session in last:
            gaps.append(request.at_us - last[request.session])
        last[request.session] = request.at_us
    return sorted(gaps)[len(gaps) // 2]


def test_mixed_numbers_are_64_bits_and_differ() -> None:
    chance = Random(1)
    values = [(chance.getrandbits(40), chance.getrandbits(10)) for _ in range(5_000)]
    found = {mixed(*one) for one in values}
    assert len(found) == len(set(values))
    assert all(0 <= one < 1 << 64 for one in found)
