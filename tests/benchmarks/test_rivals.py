"""The rivals do what was published of them, on cases that are worked by hand."""

from __future__ import annotations

from collections import Counter
from random import Random

import pytest

from benchmarks.placement.rivals import RIVALS
from benchmarks.placement.rivals.balancer import NO_POOL, Balancer
from benchmarks.placement.rivals.cache_aware import CacheAware
from benchmarks.placement.rivals.llm_d import LlmD
from benchmarks.placement.rivals.simple import (
    CheapestRegion,
    ConsistentHash,
    LeastLoad,
    NearestRegion,
    PowerOfTwo,
    RoundRobin,
)
from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.fleet import Assurance, DatedPrice, Fleet, Pool, PoolCost
from orchestrator.placement.replay.router import Send
from orchestrator.placement.replay.world import SimRequest, World
from orchestrator.policy.ids import EdgeId, ModelId, PoolId, SideId
from tests.benchmarks import small_world as small
from tests.law.worlds import SG, place
from tests.values import replace

ANYWHERE = (1 << 20) - 1


def anywhere(request: SimRequest) -> int:
    """No law."""
    return ANYWHERE


def make(kind: type[Balancer], world: World, seed: int = 1) -> Balancer:
    """A rival as published, which knows no law."""
    return kind(world, anywhere, False, Random(seed))


def workers(choices: list[Send]) -> list[tuple[int, int | None]]:
    """Where requests went."""
    return [(choice.pool, choice.replica) for choice in choices]


def test_round_robin_takes_the_replicas_in_turn_whatever_the_edge() -> None:
    router = make(RoundRobin, small.world([2, 1], [[1, 1], [1, 1]]))
    choices = [small.place(router, small.request(at), edge=at % 2) for at in range(4)]
    assert workers(choices) == [(0, 0), (0, 1), (1, 0), (0, 0)]


def test_least_load_goes_where_fewest_are_in_flight_and_ends_count() -> None:
    router = make(LeastLoad, small.world([1, 1, 1]))
    small.load(router, Send(0, 0), 2)
    small.load(router, Send(1, 0), 1, 20_000)
    small.load(router, Send(2, 0), 3, 30_000)
    first = small.request(1)
    choice = small.place(router, first)
    assert choice == Send(1, 0)
    for number in (10_000, 10_001):
        ended = small.request(number)
        router.replied(ended, 0, small.reply(ended, Send(0, 0)), 0)
    assert small.place(router, small.request(2)) == Send(0, 0)


def test_power_of_two_never_takes_the_worst_and_takes_every_other() -> None:
    router = make(PowerOfTwo, small.world([4]))
    small.load(router, Send(0, 3), 5)
    picked = Counter(router.choose(small.request(at), 0, (), False, 0) for at in range(300))
    assert set(picked) == {Send(0, 0), Send(0, 1), Send(0, 2)}
    # Of the 6 pairs the three with the loaded one leave one choice; the others tie and the first drawn wins.
    assert min(picked.values()) > 60


def test_power_of_two_takes_the_only_replica() -> None:
    router = make(PowerOfTwo, small.world([1]))
    assert small.place(router, small.request()) == Send(0, 0)


def test_consistent_hash_moves_only_the_sessions_of_a_replica_that_leaves() -> None:
    router = make(ConsistentHash, small.world([1, 1, 1, 1]))
    before = {at: router.choose(small.request(at, session=at), 0, (), False, 0) for at in range(400)}
    router.reported(0, 2, small.report(up=False), 0)
    after = {at: router.choose(small.request(at, session=at), 0, (), False, 0) for at in range(400)}
    assert all(after[at] == where for at, where in before.items() if where != Send(2, 0))
    left = Counter(after.values())
    assert set(left) == {Send(0, 0), Send(1, 0), Send(3, 0)}
    # With 100 points each, no replica holds more than about its share and a half.
    assert max(Counter(before.values()).values()) < 150
    assert max(left.values()) < 200


def test_consistent_hash_keeps_a_session_where_it_is() -> None:
    router = make(ConsistentHash, small.world([3, 3], [[1, 1], [1, 1]]))
    wheres = {small.place(router, small.request(at, session=7), edge=at % 2) for at in range(10)}
    assert len(wheres) == 1


def test_nearest_region_is_by_round_trip_of_the_edge_and_skips_what_is_down() -> None:
    router = make(NearestRegion, small.world([1, 1, 1], [[30, 10, 20], [5, 10, 20]]))
    assert small.place(router, small.request(1), edge=0) == Send(1)
    assert small.place(router, small.request(2), edge=1) == Send(0)
    router.reported(0, 1, small.report(up=False), 0)
    assert small.place(router, small.request(3), edge=0) == Send(2)
    assert small.place(router, small.request(4), edge=1, tried=[0]) == Send(1), "the other edge heard of nothing"
    router.reported(0, 1, small.report(made_us=1), 1)
    assert small.place(router, small.request(5), edge=0) == Send(1)


def test_cheapest_region_blends_input_and_output_by_the_tokens_of_the_request() -> None:
    router = make(CheapestRegion, small.world([1, 1], costs=(small.cost(0, 10, 100), small.cost(1, 20, 40))))
    # 300 in and 100 out: 13,000 against 10,000. 3,000 in and 100 out: 40,000 against 64,000.
    assert small.place(router, small.request(1, prompt_tokens=300, expected_tokens=100)) == Send(1)
    assert small.place(router, small.request(2, prompt_tokens=3000, expected_tokens=100)) == Send(0)
    # No limit: 3 to 1, so 300 in and 100 out again.
    assert small.place(router, small.request(3, prompt_tokens=300)) == Send(1)


def test_cheapest_region_goes_by_the_price_of_the_moment() -> None:
    spot = DatedPrice(small.START_MS + 1000, small.START_MS + 2000, small.tokens(1, 1))
    router = make(CheapestRegion, small.world([1, 1], costs=(small.cost(0, 5, 5), small.cost(1, 9, 9, (spot,)))))
    chosen = [small.place(router, small.request(at), now_us=at * 500_000).pool for at in range(5)]
    assert chosen == [0, 0, 1, 1, 0]


def test_an_unknown_price_is_the_last_resort() -> None:
    router = make(CheapestRegion, small.world([1, 1], costs=(small.cost(1, 9, 9),)))
    assert small.place(router, small.request(1)) == Send(1)
    assert small.place(router, small.request(2), tried=[1]) == Send(0)


def test_prices_in_two_currencies_are_refused() -> None:
    yuan = PoolCost(PoolId("p1"), small.MODEL, TokenPrice(Currency("CNY"), 1, 1, 1), 0)
    with pytest.raises(ValueError, match="several currencies"):
        make(CheapestRegion, small.world([1, 1], costs=(small.cost(0, 1, 1), yuan)))


def test_behind_a_region_the_replica_with_fewest_running_or_waiting_takes_it() -> None:
    router = make(NearestRegion, small.world([3]))
    fresh = small.report(waiting=(0, 1, 0), running=(4, 0, 2))
    assert router.replica(small.request(), 0, fresh, 0) == 1


def test_cache_aware_goes_to_the_match_above_the_threshold_and_to_the_smallest_tree_below() -> None:
    router = make(CacheAware, small.world([1, 1, 1]))
    small.place(router, small.request(1, [1, 2, 3]))
    small.place(router, small.request(2, [11, 12]))
    small.place(router, small.request(3, [21, 22, 23, 24]))
    # Trees of 3, 2 and 4 blocks. Two of four blocks match: 0.5 is above 0.3.
    assert router.choose(small.request(4, [1, 2, 5, 6]), 0, (), False, 0) == Send(0, 0)
    assert router.choose(small.request(5, [21, 22, 5, 6]), 0, (), False, 0) == Send(2, 0)
    # One of four is below.
    assert router.choose(small.request(6, [1, 7, 8, 9]), 0, (), False, 0) == Send(1, 0)


def test_cache_aware_goes_to_the_shortest_queue_only_when_both_thresholds_are_passed() -> None:
    router = make(CacheAware, small.world([1, 1]))
    small.place(router, small.request(1, [1, 2, 3]))
    small.load(router, Send(0, 0), 63)
    assert router.choose(small.request(2, [1, 2, 3]), 0, (), False, 0) == Send(0, 0), "64 more are not more than 64"
    small.load(router, Send(0, 0), 1, 20_000)
    assert small.place(router, small.request(3, [1, 2, 3]), now_us=1) == Send(1, 0), "65 against 0"
    assert router.choose(small.request(4, [1, 2, 3]), 0, (), False, 2) == Send(1, 0)
    small.load(router, Send(0, 0), 135, 30_000)
    small.load(router, Send(1, 0), 133, 40_000)
    router.sent(small.request(5, [1, 2, 3]), 0, Send(0, 0), 2)
    # 201 against 134: 67 more, and not more than half as many again. The last that had the prefix was replica 0.
    assert router.choose(small.request(6, [1, 2, 3]), 0, (), False, 3) == Send(0, 0)


def test_cache_aware_is_one_balancer_for_all_edges_and_forgets_a_pool_that_went_down() -> None:
    router = make(CacheAware, small.world([1, 1], [[1, 1], [1, 1]]))
    small.place(router, small.request(1, [1, 2, 3]), edge=0)
    assert router.choose(small.request(2, [1, 2, 3]), 1, (), False, 0) == Send(0, 0)
    router.reported(1, 0, small.report(up=False, made_us=5), 5)
    router.reported(1, 0, small.report(made_us=6), 6)
    router.reported(0, 0, small.report(up=False, made_us=5), 7)  # the same news by the longer way
    small.place(router, small.request(3, [7]))
    assert router.choose(small.request(4, [1, 2, 3]), 0, (), False, 9) == Send(1, 0), "no match; the smaller tree"


def test_news_that_comes_late_by_a_longer_way_does_not_undo_newer_news() -> None:
    router = make(LeastLoad, small.world([1, 1], [[1, 1], [1, 1]]))
    router.reported(0, 0, small.report(up=False, made_us=20), 30)
    router.reported(1, 0, small.report(made_us=10), 40)
    assert {router.choose(small.request(), 0, (), False, 50) for _ in range(20)} == {Send(1, 0)}


def test_llm_d_scores_are_the_weighted_sums() -> None:
    router = make(LlmD, small.world([3]))
    assert isinstance(router, LlmD)
    for number, (replica, blocks) in enumerate([(1, [1, 9]), (2, [1, 2])]):
        router.sent(small.request(number, blocks), 0, Send(0, replica), 0)
    router.reported(0, 0, small.report(waiting=(0, 2, 4), kv_used=(100, 500, 0)), 0)
    scores = router.scores(small.request(5, [1, 2]), 0, 1, 0)
    # 3 * matched share + 2 * (4 - waiting) / 4 + 2 * (1 - used / 1000)
    assert scores == pytest.approx({0: 0 + 2 + 1.8, 1: 1.5 + 1 + 1, 2: 3 + 0 + 2})
    assert router.choose(small.request(5, [1, 2]), 0, (), False, 0) == Send(0, 2)
    assert router.choose(small.request(6, [7, 8]), 0, (), False, 0) == Send(0, 0)


def test_llm_d_gives_nothing_for_metrics_that_it_does_not_have() -> None:
    router = make(LlmD, small.world([1, 2]))
    assert isinstance(router, LlmD)
    router.sent(small.request(1, [1]), 0, Send(0, 0), 0)
    router.reported(0, 1, small.report(waiting=(3, 3)), 0)
    # Replicas of pool 1 wait alike: 1 each. Pool 0 has not reported: its prefix alone.
    assert router.scores(small.request(2, [1]), 0, 0b11, 0) == pytest.approx({0: 3, 1: 4, 2: 4})
    picked = {router.choose(small.request(at, [1]), 0, (), False, 0) for at in range(40)}
    assert picked == {Send(1, 0), Send(1, 1)}, "equals are drawn by chance"


def test_llm_d_remembers_as_many_blocks_as_the_engine_has_room_for() -> None:
    router = make(LlmD, small.world([1]))
    assert isinstance(router, LlmD)
    router.sent(small.request(1, range(8)), 0, Send(0, 0), 0)
    router.sent(small.request(2, range(20, 25)), 0, Send(0, 0), 1)
    assert router.index.size(0) == 10, "1,000 tokens in blocks of 100"
    assert router.index.depths(tuple(range(8)), 1, 1) == {0: 5}, "the leaves went first"
    assert router.index.depths(tuple(range(20, 25)), 1, 1) == {0: 5}


@pytest.mark.parametrize("name", RIVALS)
def test_no_rival_chooses_what_cannot_serve(name: str) -> None:
    other = ModelId("another")
    world = small.world([1, 1, 1, 1], models=[other, small.MODEL, small.MODEL, small.MODEL], home=(0, 0, 0, 0))
    short = replace(world.pools[1], context_tokens=150)
    router = RIVALS[name](replace(world, pools=(world.pools[0], short, *world.pools[2:])), anywhere, False, Random(1))
    router.reported(0, 2, small.report(up=False), 0)
    long = small.request(1, [1], prompt_tokens=100, expected_tokens=51)
    choices = [router.choose(long, 0, (), False, 0) for _ in range(20)]
    assert {choice.pool for choice in choices if isinstance(choice, Send)} == {3}
    assert router.choose(long, 0, [3], False, 0) == NO_POOL
    assert router.choose(small.request(2, model=ModelId("none")), 0, (), False, 0) == NO_POOL


@pytest.mark.parametrize("name", RIVALS)
def test_a_pool_that_an_edge_cannot_dial_is_nothing_to_it(name: str) -> None:
    pools = tuple(
        Pool(
            id=PoolId(f"p{at}"),
            side=SideId("one"),
            region="region",
            accelerator="gpu",
            place=place(f"p{at}", SG),
            assurance=Assurance.EDGE_ONLY,
            models=(),
            slots=4,
            engine="engine",
            reachable_from=frozenset({EdgeId(f"e{at}")}),
        )
        for at in range(2)
    )
    world = small.world([1, 1], [[1, 1], [1, 1]], fleet=Fleet(pools=pools), home=(0, 1))
    router = RIVALS[name](world, anywhere, False, Random(1))
    for edge in range(2):
        choices = [router.choose(small.request(at, edge=edge), edge, (), False, 0) for at in range(20)]
        assert {choice.pool for choice in choices if isinstance(choice, Send)} == {edge}
