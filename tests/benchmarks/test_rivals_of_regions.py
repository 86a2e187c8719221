"""The rivals that span regions do what was published of them; and none, when confined, leaves the law."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.placement.rivals import RIVALS
from benchmarks.placement.rivals.balancer import HOLD, NO_POOL
from benchmarks.placement.rivals.dynamo import Dynamo
from benchmarks.placement.rivals.gorgo import PUBLISHED_US_PER_TOKEN, Gorgo, PrefillRate
from benchmarks.placement.rivals.prefix_tree import PrefixIndex
from benchmarks.placement.rivals.skywalker import SkyWalker
from orchestrator.placement.replay.router import Choice, Forward, Hold, Router, Send
from orchestrator.placement.replay.world import SimRequest, World
from orchestrator.policy.ids import ModelId
from tests.benchmarks import small_world as small

THREE_REGIONS = [[1, 50, 90], [50, 1, 60], [90, 60, 1]]


def anywhere(request: SimRequest) -> int:
    """No law."""
    return (1 << 20) - 1


def skywalker(replicas: list[int], home: tuple[int, ...] = (0, 1, 2), world: World | None = None) -> SkyWalker:
    """One balancer in each of three regions, as published."""
    return SkyWalker(world or small.world(replicas, THREE_REGIONS, home=home), anywhere, False, Random(1))


def probe(router: SkyWalker, waiting: dict[int, list[int]], now_us: int) -> None:
    """A round of probes of replicas, then one in which every balancer looks at the others."""
    for at_us in (now_us, now_us + 100_000):
        for edge in range(3):
            for pool, lines in waiting.items():
                router.reported(edge, pool, small.report(waiting=lines, made_us=at_us), at_us)


def test_skywalker_never_pushes_to_a_replica_where_somebody_waits() -> None:
    router = skywalker([3, 1, 1])
    small.place(router, small.request(1, [1, 2]))
    probe(router, {0: [1, 0, 2], 1: [0], 2: [0]}, 100_000)
    choices = {small.place(router, small.request(at, [1, 2]), now_us=200_000 + at) for at in range(10)}
    assert choices == {Send(0, 1)}, "not even where the prefix is; and blindly until the next probe"
    probe(router, {0: [0, 1, 2]}, 400_000)
    assert small.place(router, small.request(30, [9]), now_us=500_000) == Send(0, 0)


def test_skywalker_works_off_its_line_at_the_published_pace() -> None:
    router = skywalker([1, 1, 1])
    asked = [router.choose(small.request(at), 0, (), False, 500_000 + at) for at in range(11)]
    assert asked == [Send(0, 0)] * 10 + [HOLD], "ten between two probes"
    assert router.choose(small.request(10), 0, (), False, 509_999) == HOLD
    assert router.choose(small.request(10), 0, (), False, 510_000) == Send(0, 0)
    assert router.choose(small.request(11), 0, (), False, 510_001) == HOLD
    assert router.choose(small.request(12, edge=1), 1, (), False, 510_001) == Send(1, 0), "each region by itself"


def test_skywalker_follows_the_prefix_above_a_half_and_the_load_below() -> None:
    router = skywalker([2, 1, 1])
    first = small.place(router, small.request(1, [1, 2, 3, 4]))
    other = Send(0, 1 - (first.replica or 0))
    assert router.choose(small.request(2, [1, 2, 3, 9]), 0, (), False, 0) == first, "3 of 4"
    assert router.choose(small.request(3, [1, 2, 8, 9]), 0, (), False, 0) == other, "2 of 4 are not more than half"
    assert router.choose(small.request(4, [1, 2, 3, 9], prompt_tokens=310), 0, (), False, 0) == first


def test_skywalker_hands_on_once_when_its_own_are_busy_and_then_waits() -> None:
    router = skywalker([1, 1, 1])
    probe(router, {0: [1], 1: [1], 2: [0]}, 0)
    asked = small.request(1, [1, 2])
    assert router.choose(asked, 0, (), False, 200_000) == Forward(2), "nearer region 1 has no available replica"
    assert router.choose(asked, 2, (), True, 290_000) == Send(2, 0)
    assert router.choose(asked, 0, (), True, 290_000) == HOLD, "one hop at most"
    probe(router, {0: [1], 1: [1], 2: [1]}, 300_000)
    assert router.choose(small.request(2), 0, (), False, 500_000) == HOLD


def test_skywalker_hands_nothing_to_a_region_that_has_a_line() -> None:
    router = skywalker([1, 1, 1])
    probe(router, {0: [1], 1: [1], 2: [1]}, 0)
    waits = small.request(1, edge=2)
    assert router.choose(waits, 2, (), False, 200_000) == HOLD
    router.reported(2, 2, small.report(waiting=[0], made_us=200_001), 200_001)
    router.reported(0, 0, small.report(waiting=[1], made_us=210_000), 210_000)
    assert router.choose(small.request(2), 0, (), False, 210_000) == HOLD, "a replica is free there, and one waits"
    assert small.place(router, waits, edge=2, now_us=210_001) == Send(2, 0)
    assert router.choose(small.request(3), 0, (), False, 210_002) == HOLD, "it has not looked again"
    router.reported(0, 0, small.report(waiting=[1], made_us=310_000), 310_000)
    assert router.choose(small.request(4), 0, (), False, 310_000) == Forward(2)


def test_skywalker_hands_a_prefix_to_where_it_went_and_else_to_where_least_went() -> None:
    router = skywalker([1, 1, 1])
    probe(router, {0: [1], 1: [0], 2: [0]}, 0)
    first = small.request(1, [1, 2])
    to = router.choose(first, 0, (), False, 200_000)
    assert isinstance(to, Forward)
    assert router.choose(small.request(2, [1, 2, 3]), 0, (), False, 200_000) == to, "2 of 3"
    assert router.choose(small.request(3, [7]), 0, (), False, 200_000) == Forward(3 - to.edge)
    sent = small.place(router, first, edge=to.edge, now_us=200_000, hopped=True)
    router.replied(first, to.edge, small.reply(first, sent), 300_000)
    assert router.choose(small.request(4, [8]), 0, (), False, 300_000) in (Forward(1), Forward(2)), "one each"
    assert router.regions[0].handed == [0, 1, 2] or router.regions[0].handed == [0, 2, 1]


def test_skywalker_confined_hands_on_only_to_where_a_permitted_pool_is() -> None:
    router = SkyWalker(small.world([1, 1, 1], THREE_REGIONS, home=(0, 1, 2)), lambda _: 0b101, True, Random(1))
    probe(router, {0: [1], 1: [0], 2: [0]}, 0)
    assert {router.choose(small.request(at), 0, (), False, 200_000) for at in range(9)} == {Forward(2)}
    assert router.choose(small.request(30), 0, [2], False, 200_000) == HOLD, "that one refused it"


def test_skywalker_without_replicas_of_its_own_hands_on_and_with_none_anywhere_refuses() -> None:
    router = skywalker([1, 1], home=(1, 1), world=small.world([1, 1], [[9, 9], [1, 1], [5, 5]], home=(1, 1)))
    assert router.choose(small.request(1), 0, (), False, 0) == Forward(1)
    assert router.choose(small.request(2), 1, [0, 1], False, 0) == NO_POOL
    for pool in (0, 1):
        router.reported(0, pool, small.report(up=False), 0)
    assert router.choose(small.request(3), 0, (), False, 0) == NO_POOL


def test_skywalker_lets_nothing_wait_where_it_can_never_be_served() -> None:
    router = skywalker([1, 1, 1])
    probe(router, {0: [1], 1: [1], 2: [1]}, 0)
    for edge in (1, 2):
        assert router.choose(small.request(edge, edge=edge), edge, (), False, 200_000) == HOLD
    refused = small.request(3)
    assert router.choose(refused, 0, [0, 1], False, 210_000) == Forward(2), "into the line there"
    assert router.choose(refused, 2, [0, 1], True, 210_000) == HOLD
    assert router.choose(refused, 2, [0, 1, 2], True, 220_000) == NO_POOL
    assert router.regions[0].handed == [0, 0, 0]


def test_skywalker_takes_the_nearest_edge_of_a_pool_for_its_home_when_the_world_does_not_say() -> None:
    router = skywalker([], world=small.world([1, 1, 1], THREE_REGIONS))
    assert [region.local for region in router.regions] == [0b001, 0b010, 0b100]


def gorgo(world: World) -> Gorgo:
    """GORGO as published."""
    return Gorgo(world, anywhere, False, Random(1))


def test_gorgo_adds_round_trip_prefill_and_half_of_what_is_in_flight() -> None:
    router = gorgo(small.world([1, 1], [[1000, 30_000]]))
    busy = small.request(1, [1, 2, 3], prompt_tokens=260)
    router.sent(busy, 0, Send(0, 0), 0)
    asked = small.request(2, [1, 2, 9, 8])
    costs = router.costs(asked, 0, 0b11, 0)
    assert costs == pytest.approx({0: 1000 + 93.8 * (400 + 130), 1: 30_000 + 93.8 * 400})
    router.first_token(busy, 0, 0, 0, 10)
    costs = router.costs(asked, 0, 0b11, 10)
    assert costs == pytest.approx({0: 1000 + 93.8 * (200 + 130), 1: 30_000 + 93.8 * 400}), "now it is cached"
    assert router.choose(asked, 0, (), False, 10) == Send(0, 0)
    router.replied(busy, 0, small.reply(busy, Send(0, 0)), 20)
    assert router.costs(asked, 0, 0b11, 20)[0] == pytest.approx(1000 + 93.8 * 200)


def test_gorgo_goes_far_for_a_prefix_only_when_it_is_worth_the_round_trip() -> None:
    router = gorgo(small.world([1, 1], [[1000, 21_000]]))
    router.first_token(small.request(1, range(3)), 0, 1, 0, 0)
    # 20 ms are 213 uncached tokens at 0.0938 ms.
    assert router.choose(small.request(2, [0, 1, 7]), 0, (), False, 0) == Send(0, 0), "200 tokens saved"
    assert router.choose(small.request(3, [0, 1, 2]), 0, (), False, 0) == Send(1, 0), "300 tokens saved"


def test_gorgo_learns_the_rate_of_each_pool_from_answers() -> None:
    router = gorgo(small.world([1, 1]))
    for number in range(20):
        asked = small.request(number, prompt_tokens=100 + 10 * number)
        sent = Send(0, 0)
        router.sent(asked, 0, sent, 0)
        queued_us = 900 * number
        first_us = 1000 + queued_us + 5000 + 250 * asked.prompt_tokens  # round trip, queue, overhead, 0.25 ms a token
        router.replied(asked, 0, small.reply(asked, sent, first_us=first_us, queued_us=queued_us), first_us)
    assert router.rates[0].us_per_token == pytest.approx(250)
    assert router.rates[1].us_per_token == PUBLISHED_US_PER_TOKEN


def test_a_rate_is_the_slope_through_the_last_87_answers() -> None:
    rate = PrefillRate()
    for at in range(15):
        rate.learn(at, 1000 * at)
    assert rate.us_per_token == PUBLISHED_US_PER_TOKEN, "too few to tell"
    for at in range(87):
        rate.learn(at, 40 * at + 5)
    assert rate.us_per_token == pytest.approx(40), "the first fifteen are out of the window"
    for at in range(87):
        rate.learn(at, -at)
    assert rate.us_per_token > 0, "a prompt never takes less time for being longer"


def test_gorgo_waits_when_no_replica_has_a_slot_or_room_in_its_cache() -> None:
    router = gorgo(small.world([1, 1], [[1000, 2000]]))
    for number in range(4):
        assert small.place(router, small.request(number)) == Send(0, 0)
    assert small.place(router, small.request(4)) == Send(1, 0), "four slots are taken"
    router.reported(0, 1, small.report(kv_used=[950]), 0)
    assert router.choose(small.request(5), 0, (), False, 0) == HOLD
    router.reported(0, 1, small.report(kv_used=[949], made_us=1), 1)
    assert router.choose(small.request(5), 0, (), False, 0) == Send(1, 0)


def test_gorgo_averages_the_round_trip_of_each_edge() -> None:
    router = gorgo(small.world([1], [[1000], [1000]]))
    router.reported(0, 0, small.report(made_us=0), 1000)  # half a round trip of 2 ms
    assert router.rtt_us == [[pytest.approx(1300)], [1000]]


def dynamo() -> Dynamo:
    """Dynamo's router with one replica at each of two pools and two edges."""
    return Dynamo(small.world([1, 1], [[1, 1], [1, 1]]), anywhere, False, Random(1))


def test_dynamo_costs_are_blocks_of_prefill_and_blocks_that_are_active() -> None:
    router = dynamo()
    busy = small.request(1, [1, 2, 3])
    router.sent(busy, 0, Send(0, 0), 0)
    asked = small.request(2, [1, 2, 4], prompt_tokens=250)
    # Prefill: 3 in flight and 2.5 of its own less 2 that overlap. Active: 3 there and 1 that is not shared.
    assert router.costs(asked, 1, 0b11, 0) == pytest.approx({0: 3.5 + 4, 1: 2.5 + 3})
    assert router.choose(asked, 1, (), False, 0) == Send(1, 0)
    same = small.request(3, [1, 2, 3], prompt_tokens=250)
    assert router.costs(same, 1, 0b01, 0) == pytest.approx({0: 3 + 3}), "its last block is partial: no credit for more"
    router.first_token(busy, 0, 0, 0, 10)
    assert router.costs(asked, 1, 0b11, 10) == pytest.approx({0: 0.5 + 4, 1: 2.5 + 3})
    router.replied(busy, 0, small.reply(busy, Send(0, 0)), 20)
    assert router.costs(asked, 1, 0b11, 20) == pytest.approx({0: 0.5 + 3, 1: 2.5 + 3})


def test_dynamo_counts_a_shared_block_until_the_last_request_with_it_ends() -> None:
    router = dynamo()
    first, second = small.request(1, [1, 2]), small.request(2, [1, 3])
    router.sent(first, 0, Send(0, 0), 0)
    router.sent(second, 1, Send(0, 0), 0)
    assert router.active.sizes == [3, 0]
    assert router.prefill_tokens == [300, 0], "its first block was predicted to be cached"
    router.replied(first, 0, small.reply(first, Send(0, 0)), 1)
    assert router.active.sizes == [2, 0]
    router.replied(second, 1, small.reply(second, Send(0, 0), first_us=None, broken=True), 2)
    assert router.active.sizes == [0, 0]
    assert router.prefill_tokens == [0, 0]
    assert router.active.holders == {}


def test_dynamo_believes_in_a_prefix_for_two_minutes() -> None:
    router = dynamo()
    router.sent(small.request(1, [1, 2]), 0, Send(0, 0), 0)
    router.sent(small.request(2, [1]), 0, Send(0, 0), 60_000_000)
    assert router.index.depths((1, 2), 1, 119_999_999) == {0: 2}
    assert router.index.depths((1, 2), 1, 120_000_000) == {0: 1}
    assert router.index.depths((1, 2), 1, 180_000_000) == {}
    assert router.index.size(0) == 0


def test_dynamo_waits_while_every_worker_has_sixteen_chunks_in_prefill() -> None:
    router = dynamo()
    first = small.request(1, range(9))
    for number, pool in ((1, 0), (2, 1)):
        # 900 tokens against 16 chunks of 50.
        router.sent(small.request(number, [number * 100 + at for at in range(9)]), 0, Send(pool, 0), 0)
    assert router.choose(small.request(3, [1]), 0, (), False, 0) == HOLD
    router.first_token(first, 0, 0, 0, 1)
    assert isinstance(router.choose(small.request(3, [1]), 0, (), False, 0), Send)


BLOCKS = st.lists(st.integers(0, 3), max_size=5)


def chained(letters: list[int]) -> tuple[int, ...]:
    """Hashes of blocks, each covering all before it: equal where the letters up to there are."""
    return tuple(hash(tuple(letters[: at + 1])) for at in range(len(letters)))


@given(st.lists(st.tuples(BLOCKS, st.integers(0, 2)), max_size=30), BLOCKS, st.integers(1, 6))
def test_the_index_agrees_with_a_list_and_keeps_to_its_bound(
    inserted: list[tuple[list[int], int]], asked: list[int], capacity: int
) -> None:
    index = PrefixIndex([capacity, 1000, 1000])
    kept: list[set[int]] = [set(), set(), set()]
    for at, (letters, worker) in enumerate(inserted):
        index.insert(chained(letters), worker, at)
        kept[worker] |= set(chained(letters))
        assert index.size(0) <= capacity
    exact: dict[int, int] = {}
    for worker in (1, 2):
        depth = next((at for at, block in enumerate(chained(asked)) if block not in kept[worker]), len(asked))
        if depth:
            exact[worker] = depth
    found = index.depths(chained(asked), 0b111, 0)
    assert {worker: depth for worker, depth in found.items() if worker} == exact
    deepest, holders = index.deepest(chained(asked), 0b110, 0)
    assert deepest == max(exact.values(), default=0)
    assert holders == sum(1 << worker for worker, depth in exact.items() if depth == deepest)
    index.clear(1)
    assert index.size(1) == 0
    assert 1 not in index.depths(chained(asked), 0b111, 0)


@st.composite
def worlds(draw: st.DrawFn) -> World:
    """A few pools of one or two models, and one to three edges."""
    pools = draw(st.integers(1, 4))
    edges = draw(st.integers(1, 3))
    rtts = st.lists(st.integers(1, 100_000), min_size=pools, max_size=pools)
    return small.world(
        replicas=draw(st.lists(st.integers(1, 3), min_size=pools, max_size=pools)),
        rtts_us=draw(st.lists(rtts, min_size=edges, max_size=edges)),
        models=draw(st.lists(st.sampled_from([small.MODEL, ModelId("b-model")]), min_size=pools, max_size=pools)),
        home=tuple(draw(st.lists(st.integers(0, edges - 1), min_size=pools, max_size=pools))),
        costs=tuple(small.cost(at, draw(st.integers(1, 9)), 1) for at in range(draw(st.integers(0, pools)))),
    )


def settle(router: Router, world: World, asked: SimRequest, tried: list[int], now_us: int) -> tuple[int, Choice]:
    """Ask where it stands, and once more where it was handed to."""
    choice = router.choose(asked, asked.edge, tried, False, now_us)
    if not isinstance(choice, Forward):
        return asked.edge, choice
    assert choice.edge in set(range(len(world.edges))) - {asked.edge}
    again = router.choose(asked, choice.edge, tried, True, now_us)
    assert not isinstance(again, Forward), "one hop at most"
    return choice.edge, again


@pytest.mark.parametrize("name", RIVALS)
@settings(max_examples=40)
@given(worlds(), st.data())
def test_a_confined_rival_never_sends_outside_the_law(name: str, world: World, data: st.DataObject) -> None:
    law: dict[int, int] = {}
    router = RIVALS[name](world, lambda asked: law[asked.number], True, Random(data.draw(st.integers(0, 9))))
    pools = len(world.pools)
    flying: list[tuple[SimRequest, int, Send]] = []
    for number in range(data.draw(st.integers(1, 8))):
        now_us = number * 60_000
        law[number] = data.draw(st.integers(0, (1 << pools) - 1))
        blocks = data.draw(BLOCKS)
        asked = small.request(number, chained(blocks), session=number % 3, edge=number % len(world.edges))
        down: set[tuple[int, int]] = set()
        for pool in range(pools):
            lines = [data.draw(st.integers(0, 1)) for _ in range(world.pools[pool].replicas)]
            up = data.draw(st.integers(0, 4)) > 0
            for edge in range(len(world.edges)):
                router.reported(edge, pool, small.report(waiting=lines, made_us=now_us, up=up), now_us + 1)
                down |= set() if up else {(edge, pool)}
        tried: list[int] = []
        for _ in range(3):
            edge, choice = settle(router, world, asked, tried, now_us + 2)
            if not isinstance(choice, Send):
                assert choice == NO_POOL or isinstance(choice, Hold)
                break
            assert law[number] >> choice.pool & 1
            assert world.pools[choice.pool].model == asked.model
            assert choice.pool not in tried
            assert (edge, choice.pool) not in down
            assert choice.replica is None or 0 <= choice.replica < world.pools[choice.pool].replicas
            router.sent(asked, edge, choice, now_us + 2)
            if data.draw(st.booleans()):
                flying.append((asked, edge, choice))
                break
            router.replied(asked, edge, small.reply(asked, choice, refused=True, first_us=None), now_us + 3)
            tried.append(choice.pool)
        if len(flying) > 2:
            ended, edge, choice = flying.pop(0)
            router.first_token(ended, edge, choice.pool, choice.replica or 0, now_us + 4)
            router.replied(ended, edge, small.reply(ended, choice), now_us + 5)


@given(worlds(), st.integers(0, 9))
def test_a_rival_that_knows_no_law_asks_for_none(world: World, seed: int) -> None:
    def no_law(asked: SimRequest) -> int:
        raise AssertionError("as published, it knows no law")

    for make in RIVALS.values():
        router = make(world, no_law, False, Random(seed))
        settle(router, world, small.request(1, [1, 2]), [], 0)
