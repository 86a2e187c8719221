"""The clairvoyant bound: exact where it can be worked by hand, and never above a run that happened."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.placement.bound import Program, bound
from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement import fleet
from orchestrator.placement.fleet import DatedPrice, Fleet, PoolCost, Prices
from orchestrator.placement.replay.account import keeps
from orchestrator.placement.replay.outcome import Bill, Run
from orchestrator.placement.replay.router import Choice, Forward, Hold, Refuse, Router, Send
from orchestrator.placement.replay.run import run
from orchestrator.placement.replay.tidegate import biller
from orchestrator.placement.replay.world import (
    Gpu,
    Kind,
    Link,
    Outage,
    Permits,
    PoolReport,
    Promise,
    Reply,
    SimPool,
    SimRequest,
    World,
)
from orchestrator.policy.ids import ModelId, PoolId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction
from tests.values import replace

MODEL = ModelId("m")
START_MS = 1_000_000
BLOCK_TOKENS = 10
SLOW = Gpu(step_ns=10_000_000, stream_ns=0, prefill_ns=1_000_000, chunk_tokens=100, slots=1, kv_tokens=10_000)
"""A prompt of 100 tokens takes 110 ms: 100 for its tokens, and the step that takes them in."""


def pool(name: str, gpu: Gpu = SLOW, replicas: int = 1, model: ModelId = MODEL, context_tokens: int = 1000) -> SimPool:
    return SimPool(PoolId(name), Jurisdiction("DE"), "r", model, gpu, replicas, 100, context_tokens)


def world(*pools: SimPool, rtts_us: Sequence[int] = (), first_us: int = 10**9, outages: Sequence[Outage] = ()) -> World:
    return World(
        edges=("e",),
        edge_jurisdictions=(Jurisdiction("DE"),),
        pools=pools,
        links=(tuple(Link(rtt_us, 0, 10**9) for rtt_us in rtts_us or (0,) * len(pools)),),
        kinds=(Kind("k", frozenset(range(len(pools))), Promise(first_us, 10**9)),),
        prices=Prices(),
        fleet=Fleet(),
        start_ms=START_MS,
        outages=tuple(outages),
        block_tokens=BLOCK_TOKENS,
    )


def request(
    number: int, at_us: int = 0, prompt: int = 100, output: int = 1, blocks: Sequence[int] = (), model: ModelId = MODEL
) -> SimRequest:
    return SimRequest(number, at_us, 0, TenantId("t"), model, 0, prompt, output, 0, tuple(blocks), number, 0)


def anywhere(_: SimRequest) -> int:
    return -1


@dataclass(frozen=True)
class Tariff:
    """Pico-units per token and byte of one pool, and until when (wall ms) prices are so."""

    input_pico: int
    cached_pico: int = 0
    output_pico: int = 0
    byte_pico: int = 0


def billed(*tariffs: Tariff, later: Sequence[Tariff] = (), from_ms: int = 10**15) -> Bill:
    """The bill at these tariffs by pool, and at the later ones from `from_ms` on."""

    def bill(one: SimRequest, at: int, cached: int, output: int, now_ms: int, up_bytes: int, down_bytes: int) -> int:
        tariff = later[at] if later and now_ms >= from_ms else tariffs[at]
        tokens = (one.prompt_tokens - cached) * tariff.input_pico + cached * tariff.cached_pico
        return tokens + output * tariff.output_pico + (up_bytes + down_bytes) * tariff.byte_pico

    return bill


CHEAP_AND_DEAR = billed(Tariff(1), Tariff(3))
TEN = [request(number) for number in range(10)]


def test_with_one_pool_it_is_the_bill_to_the_last_pico() -> None:
    requests = [request(0, prompt=70, output=5), request(1, 40_000_000, prompt=30, output=2)]
    requests = [replace(one, upload_bytes=11) for one in requests]
    found = bound(world(pool("a")), requests, anywhere, billed(Tariff(7, 1, 13, 2)))
    assert found.cost_pico == found.free_pico == 100 * 7 + 7 * 13 + (22 + 7 * 4) * 2
    assert (found.capacity_bound, found.feasible, found.unplaceable) == (False, True, 0)
    assert found.assigned == pytest.approx((2.0,))
    assert found.cost_promised_pico is None


def test_the_leading_blocks_of_an_earlier_request_are_cached_and_those_after_a_gap_are_not() -> None:
    requests = [
        request(1, 5, prompt=35, blocks=(1, 2, 9, 4)),
        request(0, 0, prompt=35, blocks=(1, 2, 3, 4)),
        request(2, 9, prompt=35, blocks=(1, 2, 3, 4)),
    ]
    found = bound(world(pool("a")), requests, anywhere, billed(Tariff(100, 1)))
    assert found.cost_pico == 35 * 100 + (15 * 100 + 20 * 1) + (5 * 100 + 30 * 1), "the fourth block is not whole"


def test_an_engine_without_prefix_cache_pays_for_every_token() -> None:
    requests = [request(0, 0, 20, blocks=(1, 2)), request(1, 1, 20, blocks=(1, 2))]
    bill = billed(Tariff(100, 1))
    assert bound(world(pool("a", replace(SLOW, prefix_cache=False))), requests, anywhere, bill).cost_pico == 4000
    assert bound(world(pool("a")), requests, anywhere, bill).cost_pico == 2020


def test_another_model_shares_no_blocks() -> None:
    other = ModelId("n")
    both = world(pool("a"), pool("b", model=other))
    requests = [request(0, 0, 20, blocks=(1, 2)), request(1, 1, 20, blocks=(1, 2), model=other)]
    found = bound(both, requests, anywhere, billed(Tariff(100, 1), Tariff(100, 1)))
    assert found.cost_pico == 4000
    assert found.assigned == pytest.approx((1.0, 1.0))


@pytest.mark.parametrize(("slack_us", "cheap"), [(1_100_000, 10), (550_000, 5), (275_000, 2.5), (0, 0)])
def test_what_the_cheap_pool_cannot_finish_in_time_goes_to_the_dear_one(slack_us: int, cheap: float) -> None:
    two = world(pool("a"), pool("b", replicas=10_000_000))
    found = bound(two, TEN, anywhere, CHEAP_AND_DEAR, slack_us=slack_us)
    assert found.assigned == pytest.approx((cheap, 10 - cheap), abs=1e-4)
    assert found.cost_pico == pytest.approx(100 * cheap + 300 * (10 - cheap), rel=1e-4)
    assert found.free_pico == 1000
    assert found.capacity_bound == (cheap < 10)


def test_a_second_replica_doubles_what_a_pool_takes() -> None:
    two = world(pool("a", replicas=2), pool("b", replicas=10))
    assert bound(two, TEN, anywhere, CHEAP_AND_DEAR, slack_us=440_000).cost_pico == pytest.approx(8 * 100 + 2 * 300)


def test_a_token_takes_its_share_of_a_step_of_the_full_batch() -> None:
    gpu = Gpu(step_ns=8_000_000, stream_ns=1_000_000, prefill_ns=0, chunk_tokens=10**9, slots=4, kv_tokens=10_000)
    requests = [request(number, prompt=0, output=101) for number in range(10)]
    two = world(pool("a", gpu), pool("b", gpu, replicas=10))
    bill = billed(Tariff(0, 0, 1), Tariff(0, 0, 3))
    # 100 tokens after the first, (8 / 4 + 1) ms each: two answers in 600 ms.
    found = bound(two, requests, anywhere, bill, slack_us=600_000)
    assert found.cost_pico == pytest.approx(2 * 101 + 8 * 303)


def test_an_outage_takes_its_time_from_the_pool_and_overlapping_ones_take_it_once() -> None:
    outages = [Outage(0, 100_000, 300_000), Outage(0, 200_000, 320_000), Outage(0, 250_000, 260_000), Outage(1, 0, 1)]
    two = world(pool("a"), pool("b", replicas=10), outages=outages)
    found = bound(two, TEN, anywhere, CHEAP_AND_DEAR, slack_us=550_000)
    assert found.cost_pico == pytest.approx(3 * 100 + 7 * 300), "330 ms are left of 550"


def test_a_pool_that_is_gone_throughout_is_not_used() -> None:
    two = world(pool("a"), pool("b", replicas=10), outages=[Outage(0, 0, 10**9)])
    found = bound(two, TEN, anywhere, CHEAP_AND_DEAR, slack_us=550_000)
    assert found.cost_pico == pytest.approx(3000)
    assert found.assigned == pytest.approx((0.0, 10.0), abs=1e-6)


def test_a_forbidden_pool_is_never_used() -> None:
    two = world(pool("a"), pool("b"))
    found = bound(two, TEN, lambda one: 0b10 if one.number < 4 else 0b11, CHEAP_AND_DEAR)
    assert found.cost_pico == 4 * 300 + 6 * 100
    assert found.assigned == pytest.approx((6.0, 4.0))


def test_requests_that_no_pool_can_take_are_counted_and_in_no_figure() -> None:
    long = [request(0, prompt=998, output=2), request(1, prompt=998, output=3)]
    requests = [*long, request(2, model=ModelId("unknown")), request(3)]
    found = bound(world(pool("a")), requests, lambda one: int(one.number != 3), billed(Tariff(1)))
    assert (found.cost_pico, found.unplaceable) == (998, 3)


def test_without_requests_it_is_zero() -> None:
    found = bound(world(pool("a")), [], anywhere, billed(Tariff(1)), promised_ppm=1)
    assert (found.cost_pico, found.cost_promised_pico, found.feasible, found.assigned) == (0, 0, True, (0.0,))


def test_when_nothing_can_be_finished_in_time_it_says_so_and_falls_back_on_the_cheapest_pools() -> None:
    found = bound(world(pool("a")), TEN, anywhere, billed(Tariff(1)), slack_us=1_000_000, promised_ppm=0)
    assert (found.feasible, found.capacity_bound, found.cost_pico, found.free_pico) == (False, True, 1000, 1000)
    assert found.cost_promised_pico is None


@pytest.mark.parametrize(("patience_us", "cost"), [(None, 200), (3_000_000, 200), (1_999_000, 500), (0, 500)])
def test_a_lower_price_counts_only_while_the_request_may_still_run(patience_us: int | None, cost: int) -> None:
    bill = billed(Tariff(5), later=[Tariff(2)], from_ms=START_MS + 2000)
    one = [request(0)]
    many = world(pool("a", replicas=10_000_000))
    changes = [START_MS + 2000]
    assert bound(many, one, anywhere, bill, patience_us=patience_us, changes_ms=changes).cost_pico == cost
    assert bound(many, [request(0, 2_000_000)], anywhere, bill, changes_ms=changes).cost_pico == 200


def test_the_prices_of_the_world_say_when_they_change() -> None:
    def price(pico: int) -> TokenPrice:
        return TokenPrice(Currency("USD"), pico, pico, pico)

    # The run starts at 00:16:40 UTC. From 00:17 to 00:18 a tariff holds, from 1,060 s on a dated price.
    tariffs = (fleet.Tariff(17, 18, price(3)),)
    dated = (DatedPrice(1_060_000, 1_070_000, price(2)),)
    priced = replace(world(pool("a")), prices=Prices((PoolCost(PoolId("a"), MODEL, price(5), 0, tariffs, dated),)))
    costs = {
        patience_us: bound(priced, [request(0)], anywhere, biller(priced), patience_us=patience_us).cost_pico
        for patience_us in (19_999_000, 20_000_000, 59_999_000, 60_000_000)
    }
    assert list(costs.values()) == [505, 303, 303, 202]


def test_an_overtaken_request_may_have_the_block_of_a_later_one_when_the_price_changes_between_them() -> None:
    # The first is billed when it arrives and the second, which brings the block, when input is cheap: 21 + 1040.
    bill = billed(Tariff(100, 1, 1), later=[Tariff(2, 1, 1000)], from_ms=START_MS + 10)
    requests = [request(0, 0, 20, blocks=(1, 2)), request(1, 20_000, 20, blocks=(1, 2))]
    many = world(pool("a", replicas=100))
    changes = [START_MS + 10]
    assert bound(many, requests, anywhere, bill, changes_ms=changes).cost_pico == 21 + 1020
    # With too little patience for that, the first brings it.
    found = bound(many, requests, anywhere, bill, changes_ms=changes, patience_us=9_000)
    assert found.cost_pico == 2001 + 1020


def test_a_burst_may_not_be_put_off_for_longer_than_patience() -> None:
    two = world(pool("a"), pool("b", replicas=100))
    requests = [*TEN, request(10, 10_000_000)]
    figures = {
        width_us: bound(two, requests, anywhere, CHEAP_AND_DEAR, patience_us=550_000, window_us=width_us).cost_pico
        for width_us in (10_000_000, 550_000, 275_000, 27_500)
    }
    # In windows of w, all of the burst must be done by the first end of a window after w + 550 ms.
    assert figures[10_000_000] == figures[550_000] == 1100
    assert figures[275_000] == pytest.approx(7.5 * 100 + 2.5 * 300 + 100)
    assert figures[27_500] == pytest.approx(5.25 * 100 + 4.75 * 300 + 100)
    assert bound(two, requests, anywhere, CHEAP_AND_DEAR).cost_pico == 1100


def test_work_cannot_be_done_before_it_arrives() -> None:
    two = world(pool("a"), pool("b", replicas=10))
    late = [replace(one, at_us=10_000_000) for one in TEN]
    found = bound(two, [request(10), *late], anywhere, CHEAP_AND_DEAR, slack_us=550_000, window_us=1_000_000)
    assert found.cost_pico == pytest.approx(100 + 5 * 100 + 5 * 300)


@pytest.mark.parametrize(("promised_ppm", "near"), [(1_000_000, 10), (500_000, 5), (450_001, 5), (0, 0)])
def test_the_promise_is_kept_for_its_share_by_pools_that_are_near_enough(promised_ppm: int, near: int) -> None:
    two = world(pool("far", replicas=10), pool("near", replicas=10), rtts_us=(90_002, 90_000), first_us=200_000)
    found = bound(two, TEN, anywhere, CHEAP_AND_DEAR, promised_ppm=promised_ppm)
    assert found.cost_promised_pico == pytest.approx(near * 300 + (10 - near) * 100)
    assert found.cost_pico == 1000


def test_the_way_by_another_edge_may_keep_a_promise() -> None:
    links = ((Link(100_000, 0, 1), Link(20_000, 0, 1)), (Link(20_000, 0, 1), Link(20_000, 0, 1)))
    two = replace(world(pool("a"), pool("b", context_tokens=1), first_us=169_999), edges=("e", "f"), links=links)
    # 100 ms to pool a straight; by edge f, half of 20 + 20 ms there, half back, and 20 ms beyond: with prefill 170.
    assert bound(two, TEN[:1], anywhere, billed(Tariff(1)), promised_ppm=1_000_000).cost_promised_pico is None
    kept = replace(two, kinds=(replace(two.kinds[0], promise=Promise(170_000, 1)),))
    assert bound(kept, TEN[:1], anywhere, billed(Tariff(1)), promised_ppm=1_000_000).cost_promised_pico == 100


def test_a_promise_that_no_pool_can_keep_has_no_figure() -> None:
    assert bound(world(pool("a")), TEN, anywhere, billed(Tariff(1)), promised_ppm=1).cost_promised_pico == 1000
    far = world(pool("a"), rtts_us=(10,), first_us=110_009)
    assert bound(far, TEN, anywhere, billed(Tariff(1)), promised_ppm=1).cost_promised_pico is None


def test_a_cached_prompt_keeps_a_promise_that_a_new_one_breaks() -> None:
    two = world(pool("slow"), pool("fast", replace(SLOW, prefill_ns=1000)), first_us=50_000)
    blocks = tuple(range(10))
    requests = [request(0, blocks=blocks), request(1, 9_000_000, blocks=blocks)]
    found = bound(two, requests, anywhere, billed(Tariff(1, 1), Tariff(3, 3)), promised_ppm=1_000_000)
    assert found.cost_promised_pico == pytest.approx(300 + 100)


def test_a_prompt_that_another_brings_while_it_is_on_its_way_may_keep_its_promise() -> None:
    two_edges = replace(
        world(pool("a"), first_us=170_000), edges=("far", "near"), links=((Link(90_000, 0, 1),), (Link(0, 0, 1),))
    )
    blocks = tuple(range(10))
    requests = [request(0, blocks=blocks), replace(request(1, 1, blocks=blocks), edge=1)]
    bill = billed(Tariff(1, 1))
    assert bound(two_edges, requests, anywhere, bill, promised_ppm=1_000_000).cost_promised_pico == 200
    assert bound(two_edges, requests[:1], anywhere, bill, promised_ppm=1_000_000).cost_promised_pico is None


def test_of_a_run_that_lost_requests_those_that_it_finished_are_bounded_and_all_fill_the_caches() -> None:
    requests = [request(0, 0, 20, blocks=(1, 2)), request(1, 1, 20, blocks=(1, 2))]
    found = bound(world(pool("a")), requests, anywhere, billed(Tariff(100, 1)), finished={1})
    assert (found.cost_pico, found.unplaceable) == (20, 0)
    assert found.assigned == pytest.approx((1.0,))


# For the properties: replays that happened, by a router that knows nothing.


class Chancer(Router):
    """Sends to any permitted pool and replica, holds and forwards, all at random."""

    report_us = 10_000
    loads_with_replies = False

    def __init__(self, case: Case, chance: random.Random) -> None:
        self.case = case
        self.chance = chance

    def choose(self, request: SimRequest, edge: int, tried: Sequence[int], hopped: bool, now_us: int) -> Choice:
        drawn = self.chance.random()
        if drawn < 0.1:
            return Hold()
        if drawn < 0.25 and not hopped:
            return Forward(1 - edge)
        if drawn < 0.27:
            return Refuse("chance")
        pools = self.case.world.pools
        chosen = self.chance.choice([at for at in range(len(pools)) if self.case.permits(request) >> at & 1])
        replica = self.chance.randrange(pools[chosen].replicas)
        return Send(chosen, replica if self.chance.random() < 0.5 else None)

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        pass

    def first_token(self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int) -> None:
        pass

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        pass

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        pass

    def replica(self, request: SimRequest, pool: int, report: PoolReport, now_us: int) -> int:
        return self.chance.randrange(self.case.world.pools[pool].replicas)


@dataclass(frozen=True)
class Case:
    """A world, its traffic and its prices."""

    world: World
    requests: list[SimRequest]
    permits: Permits
    bill: Bill
    change_ms: int


def drawn(chance: random.Random) -> Case:
    """A small world that is busy for some tenths of a second."""
    gpus = [
        Gpu(
            step_ns=chance.randint(0, 8_000_000),
            stream_ns=chance.randint(0, 1_000_000),
            prefill_ns=chance.randint(0, 400_000),
            chunk_tokens=chance.randint(4, 40),
            slots=chance.randint(1, 4),
            kv_tokens=10**6,
            prefix_cache=chance.random() < 0.8,
        )
        for _ in range(chance.randint(1, 3))
    ]
    outages = [Outage(chance.randrange(len(gpus)), from_us, from_us + 100_000) for from_us in (50_000, 120_000)]
    rows = [tuple(Link(chance.randint(2, 40_000), chance.choice((0, 5_000)), 10**6) for _ in gpus) for _ in range(2)]
    small = replace(
        world(
            *(pool(str(number), gpu, chance.randint(1, 2)) for number, gpu in enumerate(gpus)),
            first_us=chance.randint(5_000, 150_000),
            outages=outages[: chance.choice((0, 0, 1, 2))],
        ),
        edges=("e", "f"),
        edge_jurisdictions=(Jurisdiction("DE"),) * 2,
        links=tuple(rows),
        home=tuple(chance.randrange(2) for _ in gpus) if chance.random() < 0.5 else (),
    )
    requests: list[SimRequest] = []
    for number in range(chance.randint(1, 10)):
        like = chance.choice(requests).blocks if requests and chance.random() < 0.7 else ()
        shared = like[: chance.randint(0, len(like))]
        blocks = shared + tuple(chance.getrandbits(60) for _ in range(chance.randint(0 if shared else 1, 4)))
        prompt = len(blocks) * BLOCK_TOKENS
        one = request(number, chance.randint(0, 200_000), prompt, chance.randint(1, 12), blocks)
        requests.append(replace(one, edge=chance.randrange(2), upload_bytes=4 * prompt))
    tariffs = [[_tariff(chance) for _ in gpus] for _ in range(2)]
    change_ms = START_MS + chance.randint(0, 300)
    masks = [chance.randrange(1, 1 << len(gpus)) for _ in requests]
    bill = billed(*tariffs[0], later=tariffs[1], from_ms=change_ms)
    return Case(small, requests, lambda one: masks[one.number], bill, change_ms)


def _tariff(chance: random.Random) -> Tariff:
    cached_pico = chance.randint(0, 100)
    return Tariff(cached_pico + chance.randint(0, 900), cached_pico, chance.randint(0, 2000), chance.randint(0, 20))


def happened(case: Case, chance: random.Random) -> Run:
    """Replay the case."""
    by_arrival = sorted(case.requests, key=lambda one: one.at_us)
    return run(case.world, by_arrival, case.permits, Chancer(case, chance), chance, bill=case.bill)


@settings(max_examples=150, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(5_000, 200_000), st.booleans(), st.booleans())
def test_no_run_that_happened_costs_less(seed: int, window_us: int, hurried: bool, changes: bool) -> None:
    chance = random.Random(seed)
    case = drawn(chance)
    if not changes:
        case = replace(case, bill=billed(*(_tariff(chance) for _ in case.world.pools)))
    outcomes = happened(case, chance).outcomes
    cost_pico = sum(one.cost_pico for one in outcomes)
    waits_us = {one.number: one.end_us for one in outcomes if one.end_us is not None}
    kept = sum(one.finished and keeps(case.world, one) for one in outcomes)
    found = bound(
        case.world,
        case.requests,
        case.permits,
        case.bill,
        patience_us=max(waits_us.values(), default=0) if hurried else None,
        window_us=window_us,
        changes_ms=[case.change_ms] if changes else [],
        promised_ppm=kept * 1_000_000 // max(1, len(waits_us)),
        finished=waits_us.keys(),
    )
    assert found.feasible
    assert found.unplaceable == 0
    assert found.free_pico <= found.cost_pico <= cost_pico
    assert found.cost_promised_pico is not None
    assert found.cost_pico * (1 - 1e-8) <= found.cost_promised_pico <= cost_pico


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 1 << 32), st.integers(0, 200_000))
def test_more_replicas_more_permits_and_more_time_never_cost_more(seed: int, slack_us: int) -> None:
    chance = random.Random(seed)
    case = drawn(chance)
    pools = case.world.pools
    grown = chance.randrange(len(pools))
    larger = replace(
        case.world,
        pools=tuple(replace(one, replicas=one.replicas + (number == grown)) for number, one in enumerate(pools)),
    )
    before = bound(case.world, case.requests, case.permits, case.bill, slack_us=slack_us)
    wider = [
        bound(larger, case.requests, case.permits, case.bill, slack_us=slack_us),
        bound(case.world, case.requests, anywhere, case.bill, slack_us=slack_us),
        bound(case.world, case.requests, case.permits, case.bill, slack_us=slack_us + 50_000),
    ]
    for found in wider:
        if before.feasible:
            assert found.feasible
            assert found.cost_pico <= before.cost_pico * (1 + 1e-8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(-1e6, 1e6) | st.just(float("nan")), min_size=3, max_size=3))
def test_any_multipliers_prove_a_bound(multipliers: list[float]) -> None:
    # Minimise x + 3 y with x + y = 1 and 0.1 <= x <= 0.25: the optimum is 2.5.
    program = Program(
        cost=np.array([1.0, 3.0]),
        limit=np.array([1.0, 1.0]),
        row=np.array([0, 0, 1, 2]),
        column=np.array([0, 1, 0, 0]),
        value=np.array([1.0, 1.0, 1.0, 1.0]),
        lower=np.array([1.0, -np.inf, 0.1]),
        upper=np.array([1.0, 0.25, np.inf]),
    )
    assert program.proved(np.array(multipliers)) <= 2.5
    assert program.proved(np.array([3.0, -2.0, 0.0])) == pytest.approx(2.5)
    solved = program.solved()
    assert solved is not None
    assert solved[0] == pytest.approx(2.5)
    assert solved[1] == pytest.approx([0.25, 0.75])
