"""The board gives what the specification gives: the same choice, the same runner-up, the same whole numbers."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.board import PERMITS_MAX_BYTES, Board, Picked
from orchestrator.placement.columns import (
    CLOCK_MAX_US,
    DECODE_MAX_NS,
    OUTPUT_MAX,
    PREFILL_MAX_NS,
    PROMPT_MAX,
    REPLICAS_MAX,
    SERVICE_MAX_US,
    STREAMS_MAX,
    TOKENS_MAX,
    UPLOAD_MAX_BYTES,
    mean_late_us_each,
)
from orchestrator.placement.fleet import Carbon, Fleet, PoolCost, Prices
from orchestrator.placement.lateness import mean_late_us
from orchestrator.placement.pick import Drop
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings
from orchestrator.placement.speed import QUEUE_MAX_PPM, SPREAD_MAX_PPM, TIME_MAX_US, Speed
from orchestrator.policy.ids import PoolId
from orchestrator.policy.tenants import Service
from tests.placement.board_world import (
    Asked,
    World,
    check,
    drawn_asked,
    drawn_settings,
    drawn_view,
    drawn_world,
    expected,
)
from tests.placement.test_choice import EDGE, MODEL, REQUEST, SETTINGS, USD, pool
from tests.values import replace

SEEDS = st.integers(0, 2**64 - 1)


@settings(max_examples=300)
@given(SEEDS, st.integers(1, 40))
def test_the_board_chooses_as_the_specification_does(seed: int, size: int) -> None:
    world = drawn_world(seed, size)
    board = world.board()
    side = drawn_settings(world)
    for _ in range(4):
        check(world, board, drawn_asked(world, side))
    assert (board.fallbacks, board.beyond()) == (0, ())


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 12))
def test_a_board_that_was_kept_up_to_date_is_as_good_as_a_new_one(seed: int, size: int) -> None:
    world = drawn_world(seed, size)
    board = world.board()
    for _ in range(12):
        index = world.chance.randrange(size)
        world.views[index] = drawn_view(world.chance, world.plan.pools[index].id)
        world.heard_us[index] = world.chance.randint(0, 10**9)
        board.write(index, world.views[index], world.heard_us[index])
        check(world, board, drawn_asked(world, drawn_settings(world)))


def corner_view(chance: Random, name: PoolId) -> PoolView:
    """Every number is the least or the greatest that the board takes."""
    unseen_tokens, running = chance.choice((0, 10**9)), chance.choice((0, 1, STREAMS_MAX // 2))
    load = PoolLoad(
        replicas=chance.choice((1, REPLICAS_MAX)),
        slots=chance.choice((1, 2, 1 << 61)),
        running=running,
        waiting=chance.choice((0, STREAMS_MAX // 4)),
        waiting_max=1 << 62,
        age_ms=0,
        queued_tokens=chance.choice((None, 0, TOKENS_MAX - 10**9)),
        kv_tokens=chance.choice((None, 0, TOKENS_MAX)),
        kv_used_tokens=chance.choice((None, 0, TOKENS_MAX // 2 - 10**9)),
    )
    speed = Speed(
        chance.choice((0, PREFILL_MAX_NS)),
        chance.choice((0, DECODE_MAX_NS)),
        chance.choice((0, 10**6)),
        chance.choice((0, TIME_MAX_US)),
        chance.choice((None, 0, SERVICE_MAX_US)),
        chance.choice((0, 1, SPREAD_MAX_PPM)),
        chance.choice((0, QUEUE_MAX_PPM)),
    )
    return PoolView(
        name,
        True,
        chance.choice((None, 0, 10**18)),
        chance.choice((None, load, load, load)),
        chance.choice((0, STREAMS_MAX)),
        chance.choice((0, STREAMS_MAX // 4)),
        unseen_tokens,
        chance.choice((None, 1, 1 << 61)),
        speed=speed,
    )


def corner_asked(world: World) -> Asked:
    chance, size = world.chance, len(world.views)
    side = PlacementSettings(
        USD,
        chance.choice((0, 1, 10**9)),
        chance.choice((0, 1, 10**9)),
        slo_first_ms=chance.choice((0, 10**9, 10**14)),
        slo_token_us=chance.choice((0, 1, 10**12)),
        epsilon_ppm=chance.choice((0, 10**6)),
        unknown_rtt_ms=chance.choice((0, 10**9)),
        expected_output_tokens=1,
        carbon_pico_per_gram=chance.choice((0, 10**8)),
        unknown_bytes_per_s=chance.choice((1, 10**11)),
        age_spread_ppm=chance.choice((0, 2_000)),
    )
    prompt, output = chance.choice((0, 1, PROMPT_MAX)), chance.choice((0, 1, OUTPUT_MAX))
    request = PlacementRequest(MODEL, frozenset(), prompt, output, chance.choice((0, UPLOAD_MAX_BYTES)))
    cached = {number: chance.choice((0, 1, PROMPT_MAX)) for number in chance.sample(range(size), size // 2)}
    now_us = chance.choice((0, CLOCK_MAX_US))
    return Asked(request, side, (1 << size) - 1, cached, 0, now_us, chance.getrandbits(64))


def corner_world(seed: int, size: int) -> World:
    chance = Random(seed)
    pools = tuple(pool(f"pool-{number:03}") for number in range(size))
    prices = [
        PoolCost(
            one.id,
            MODEL,
            TokenPrice(USD, chance.choice((0, 10**11)), chance.choice((0, 10**11)), chance.choice((0, 10**12))),
            chance.choice((0, 10**5)),
            carbon=chance.choice((None, Carbon(1_000, 10**6, 10**7))),
        )
        for one in pools
    ]
    plan = Plan(EDGE, Fleet(pools=pools), Prices(tuple(prices)), USD)
    views: list[PoolView | None] = [corner_view(chance, one.id) for one in pools]
    return World(chance, plan, views, [chance.choice((0, CLOCK_MAX_US)) for _ in pools])


@settings(max_examples=300)
@given(SEEDS, st.integers(1, 20))
def test_nothing_overflows_at_the_bounds(seed: int, size: int) -> None:
    world = corner_world(seed, size)
    board = world.board()
    for _ in range(4):
        check(world, board, corner_asked(world))
    assert (board.fallbacks, board.beyond()) == (0, ())


@settings(max_examples=60)
@given(SEEDS, st.integers(1, 12))
def test_what_lies_beyond_the_bounds_is_worked_out_by_the_specification(seed: int, size: int) -> None:
    world = corner_world(seed, size)
    chance = world.chance
    wild = chance.sample(range(size), chance.randint(1, size))
    for index in wild:
        view = world.views[index]
        assert view is not None
        load = PoolLoad(1, 4, 1 << 32, 1 << 32, 1 << 40, 0, kv_tokens=1 << 70, kv_used_tokens=1 << 72)
        speed = Speed(1 << 66, 1 << 66, 1 << 66, 1 << 66, 1 << 66, 1 << 40, 1 << 40)
        world.views[index] = chance.choice(
            (replace(view, load=load), replace(view, speed=speed), replace(view, bytes_per_s=1 << 70, load=None))
        )
    board = world.board()
    asked = corner_asked(world)
    check(world, board, asked)
    assert set(board.beyond()) == set(wild)
    longer = replace(asked.request, prompt_tokens=1 << 40, output_tokens=1 << 40)
    check(world, board, replace(asked, request=longer))
    assert board.fallbacks > 0
    for index in wild:
        world.views[index] = chance.choice((None, drawn_view(chance, world.plan.pools[index].id)))
        board.write(index, world.views[index], world.heard_us[index])
    check(world, board, asked)
    assert board.beyond() == ()


@pytest.mark.parametrize("input_pico", [1 << 70, 1 << 61, 1 << 55])
def test_a_price_that_is_no_price_of_this_world_is_added_up_all_the_same(input_pico: int) -> None:
    world = drawn_world(7, 9)
    dear = TokenPrice(USD, input_pico, 1, 1)
    prices = Prices(tuple(PoolCost(one.id, MODEL, dear, 1) for one in world.plan.pools))
    world.plan = Plan(EDGE, Fleet(pools=world.plan.pools), prices, USD)
    board, asked = world.board(), drawn_asked(world, replace(SETTINGS, value_of_time_pico_per_ms=1))
    check(world, board, replace(asked, request=replace(REQUEST, prompt_tokens=900), mask=511))
    assert board.fallbacks > 0


def alone(view: PoolView, request: PlacementRequest, side: PlacementSettings, cached: int = 0) -> dict[Drop, int]:
    """Place a request in a fleet of one pool with this view, in both ways."""
    only = pool("only")
    cost = PoolCost(only.id, MODEL, TokenPrice(USD, 400_000, 40_000, 900_000), 80)
    plan = Plan(EDGE, Fleet(pools=(only,)), Prices((cost,)), USD)
    world = World(Random(1), plan, [replace(view, pool=only.id)], [0])
    asked = Asked(request, side, 1, {0: cached}, 0, 5_000, 0)
    board = world.board()
    check(world, board, asked)
    world.write(board)
    check(world, board, asked)
    return expected(world, asked)[1]


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_what_is_just_enough_and_what_is_not_are_told_apart(off: int) -> None:
    view = PoolView(PoolId("only"), True, 9_000, PoolLoad(1, 4, 3, 0, 8, 0), 3)
    capped = replace(SETTINGS, caps={PoolId("only"): 3 + off})
    assert alone(view, REQUEST, capped) == ({} if off > 0 else {Drop.CAPPED: 1})
    billed = replace(REQUEST, bill_pico=1_000, cached_rebate_pico=10, service=Service(budget_pico=900 + off))
    assert alone(view, billed, SETTINGS, cached=10) == ({Drop.BUDGET: 1} if off < 0 else {})
    billed = replace(REQUEST, bill_pico=900, cached_rebate_pico=-10, service=Service(budget_pico=1_000 + off))
    assert alone(view, billed, SETTINGS, cached=10) == ({Drop.BUDGET: 1} if off < 0 else {})
    full = replace(view, load=PoolLoad(1, 4, 4, 8 + off, 8, 0))
    assert alone(full, REQUEST, SETTINGS) == ({} if off < 0 else {Drop.FULL: 1})
    open_ = replace(view, load=PoolLoad(1, 4, 4, 0, 8, 0, openings=2 + off), unseen=2)
    assert alone(open_, REQUEST, SETTINGS) == ({} if off > 0 else {Drop.NO_OPENING: 1})
    limited = replace(REQUEST, max_tokens=2_048 + off)
    assert alone(view, limited, SETTINGS) == ({} if off < 0 else {Drop.CONTEXT: 1})
    need = REQUEST.prompt_tokens + REQUEST.output_tokens
    for ended in (0, 1, 2):
        # Three streams of 100 tokens: as many must end as free what is short.
        load = PoolLoad(1, 4, 3, 0, 8, 0, kv_tokens=300 + need - 100 * ended + off, kv_used_tokens=300)
        assert alone(replace(view, load=load), REQUEST, SETTINGS) == {}


@pytest.mark.parametrize("off", [-1, 0, 1])
def test_a_prompt_that_just_fits_is_not_doubtful(off: int) -> None:
    served = pool("any").models[0]
    pools, costs = [], []
    for name, context_tokens, pico in (("a-large", 4_096, 900), ("b-just", 2_048, 1), ("c-small", 1_000, 0)):
        pools.append(pool(name, models=(replace(served, context_tokens=context_tokens),)))
        costs.append(PoolCost(PoolId(name), MODEL, TokenPrice(USD, pico, pico, pico), 1))
    plan = Plan(EDGE, Fleet(pools=tuple(pools)), Prices(tuple(costs)), USD)
    views: list[PoolView | None] = [PoolView(one.id, True, 9_000, PoolLoad(1, 4, 0, 0, 8, 0), 0) for one in pools]
    world = World(Random(1), plan, views, [0, 0, 0])
    asked = Asked(replace(REQUEST, prompt_tokens=2_048 + off), replace(SETTINGS, epsilon_ppm=0), 7, {}, 0, 0, 0)
    assert check(world, world.board(), asked).index == (0 if off > 0 else 1)


LATE_US = st.one_of(
    st.integers(0, 20), st.integers(0, 10 * TIME_MAX_US), st.sampled_from((0, 1, TIME_MAX_US, 10 * TIME_MAX_US))
)
SPREAD_US = st.one_of(st.integers(0, 20), st.integers(0, 2 * TIME_MAX_US), st.just(2 * TIME_MAX_US))


@settings(max_examples=300)
@given(st.lists(st.tuples(LATE_US, SPREAD_US, st.one_of(LATE_US, st.just(1 << 47))), min_size=1, max_size=40))
def test_the_lateness_of_arrays_is_that_of_numbers(cases: list[tuple[int, int, int]]) -> None:
    # Each once more where the table begins and ends, and beside it.
    for mean, spread, _ in list(cases):
        cases += [(mean, spread, max(0, mean + side * 4 * spread + off)) for side in (-1, 1) for off in (-1, 0, 1)]
    mean_us, spread_us, slo_us = (np.array(column, np.int64) for column in zip(*cases, strict=True))
    work = [np.zeros(len(cases), np.int64) for _ in range(4)]
    found = mean_late_us_each(mean_us, spread_us, slo_us, work)
    assert found.tolist() == [mean_late_us(*case) for case in cases]


def test_a_permit_is_a_number_or_an_array_and_neither_is_remembered_without_end() -> None:
    world = drawn_world(3, 40)
    board, asked = world.board(), drawn_asked(world, SETTINGS)
    picks = []
    for mask in range(PERMITS_MAX_BYTES // 40 + 9):
        if mask % 5_000 == 0:
            picks.append(check(world, board, replace(asked, mask=mask)))
        else:
            board.choose(asked.request, mask, SETTINGS, SETTINGS.worth(None), {}, 0, 0, 0)
    bits = np.array([asked.mask >> number & 1 for number in range(40)], np.bool_)
    worth = SETTINGS.worth(asked.request.service)
    told = (SETTINGS, worth, asked.cached, asked.now_ms, asked.now_us, asked.chance)
    assert board.choose(asked.request, bits, *told) == board.choose(asked.request, asked.mask, *told)
    assert len(picks) > 1
    with pytest.raises(OverflowError):
        board.choose(asked.request, 1 << 40, *told)


def test_a_fleet_without_a_pool_has_no_choice() -> None:
    board = Board(Plan(EDGE, Fleet(), Prices(), USD), MODEL, 0)
    request = PlacementRequest(MODEL, frozenset(), 10, 10, 10)
    nobody: dict[int, int] = {}
    told = (request, 0, SETTINGS, SETTINGS.worth(None), nobody, 0)
    assert board.choose(*told, 0, 0) == Picked(None, None, 0, 0)
    assert board.drops(*told) == {}
    assert len(board) == 0
