"""Fleets as an edge sees them, drawn by a seed, and what the specification makes of a request there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from random import Random

from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.board import Board, Picked
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import Carbon, DatedPrice, Fleet, Pool, PoolCost, Prices, ServedModel, Tariff
from orchestrator.placement.pick import Drop, place
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import Canary, Change, PlacementSettings
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import EdgeId, ModelId, PoolId
from orchestrator.policy.tenants import Service
from tests.placement.test_choice import ALLOW, DENY, EDGE, MODEL, USD, pool
from tests.values import replace

EUR = Currency("EUR")
HOUR_MS = 3_600_000
REVISIONS = (None, "r1", "r2")
NEEDS = tuple(Capability)[:6]


@dataclass
class World:
    """A fleet as an edge sees it, drawn by a seed: every field is sometimes unknown, nothing, usual, or great."""

    chance: Random
    plan: Plan
    views: list[PoolView | None]
    heard_us: list[int]
    """By pool, as the views."""

    def board(self) -> Board:
        found = Board(self.plan, MODEL, 0)
        self.write(found)
        return found

    def write(self, board: Board) -> None:
        order = list(range(len(self.views)))
        self.chance.shuffle(order)
        for index in order:
            board.write(index, self.views[index], self.heard_us[index])

    def aged(self, cached: Mapping[int, int], now_us: int) -> dict[PoolId, PoolView]:
        """What a decision at `now_us` is told, as `Sight.view` makes it."""
        found: dict[PoolId, PoolView] = {}
        for index, view in enumerate(self.views):
            if view is not None:
                load = view.load
                if load is not None:
                    load = replace(load, age_ms=max(0, now_us - self.heard_us[index]) // 1000)
                found[view.pool] = replace(view, load=load, cached_tokens=cached.get(index, 0))
        return found


@dataclass(frozen=True)
class Asked:
    """One decision."""

    request: PlacementRequest
    settings: PlacementSettings
    mask: int
    cached: dict[int, int]
    now_ms: int
    now_us: int
    chance: int


def some(chance: Random, *values: int) -> int:
    """One of the values, or a number of any size up to it."""
    most = chance.choice(values)
    return chance.choice((most, chance.randint(0, most), chance.randint(0, min(most, 9))))


def maybe(chance: Random, *values: int) -> int | None:
    return None if chance.random() < 0.3 else some(chance, *values)


def drawn_pool(chance: Random, name: str) -> Pool:
    served = ServedModel(
        MODEL,
        chance.choice((1_000, 1_000, 4_096, 10**9)),
        frozenset(chance.sample(NEEDS, chance.choice((3, 6, 6)))),
        some(chance, 40, 10**5),
        some(chance, 9_000, 10**6),
        maybe(chance, 900),
        chance.choice(REVISIONS),
    )
    models = () if chance.random() < 0.1 else (replace(served, id=ModelId("another")), served)
    found = pool(name, models=models, slots=some(chance, 4, 512, 10**9))
    if chance.random() < 0.2:
        reachable = frozenset({EDGE if chance.random() < 0.5 else EdgeId("another")})
        found = replace(found, scheduler=None, intake=None, engine="engine", reachable_from=reachable)
    return found


def drawn_tokens(chance: Random) -> TokenPrice:
    currency = EUR if chance.random() < 0.1 else USD
    return TokenPrice(currency, some(chance, 400_000), some(chance, 90_000), some(chance, 900_000, 10**9))


def drawn_cost(chance: Random, name: PoolId) -> PoolCost:
    now = drawn_tokens(chance)
    carbon = Carbon(some(chance, 900), some(chance, 10**6), some(chance, 10**7)) if chance.random() < 0.4 else None
    tariffs = (Tariff(60, 180, drawn_tokens(chance)),) if chance.random() < 0.4 else ()
    dated = (DatedPrice(2 * HOUR_MS, 5 * HOUR_MS, drawn_tokens(chance)),) if chance.random() < 0.3 else ()
    return PoolCost(name, MODEL, now, some(chance, 90, 10**4), tariffs, dated, {EDGE: some(chance, 50)}, carbon)


def drawn_view(chance: Random, name: PoolId) -> PoolView | None:
    if chance.random() < 0.08:
        return None
    load = None
    if chance.random() < 0.8:
        load = PoolLoad(
            replicas=chance.choice((0, 1, 1, 2, 2, 4, 16, 300)),
            slots=some(chance, 8, 64, 512),
            running=some(chance, 8, 64, 600),
            waiting=some(chance, 0, 3, 200),
            waiting_max=chance.choice((0, 8, 64, 500)),
            age_ms=77,
            queued_tokens=maybe(chance, 9_000, 10**6),
            kv_tokens=maybe(chance, 10**5, 10**6),
            kv_used_tokens=maybe(chance, 10**5, 10**6),
            openings=maybe(chance, 1, 9, 99),
        )
    speed = None
    if chance.random() < 0.5:
        speed = Speed(
            some(chance, 40_000, 10**8),
            some(chance, 9_000_000, 10**9),
            some(chance, 900_000),
            some(chance, 10_000, 10**8),
            maybe(chance, 10**5, 10**8),
            some(chance, 50_000, 300_000, 2_000_000),
            some(chance, 250_000, 1_000_000, 8_000_000),
        )
    return PoolView(
        name,
        up=chance.random() < 0.95,
        rtt_us=maybe(chance, 9_000, 300_000, 10**11),
        load=load,
        own_in_flight=some(chance, 4, 40),
        unseen=some(chance, 0, 4, 20),
        unseen_tokens=some(chance, 0, 900, 10**5),
        bytes_per_s=maybe(chance, 10, 10**7, 10**11),
        cached_tokens=5,
        speed=speed,
        held_off=chance.random() < 0.05,
    )


def drawn_world(seed: int, size: int) -> World:
    chance = Random(seed)
    pools = tuple(drawn_pool(chance, f"pool-{number:03}") for number in range(size))
    costs = tuple(drawn_cost(chance, one.id) for one in pools if chance.random() < 0.93)
    # Pools that are alike cost alike: several are within epsilon, and some tie.
    if costs and chance.random() < 0.5:
        costs = tuple(replace(costs[0], pool=one.pool) for one in costs)
    plan = Plan(EDGE, Fleet(pools=pools), Prices(costs), USD)
    views = [drawn_view(chance, one.id) for one in pools]
    alike = views[0]
    if alike is not None and chance.random() < 0.3:
        same = [replace(alike, pool=one.id) for one in pools]
        views = [chance.choice((one, one, view)) for one, view in zip(same, views, strict=True)]
    return World(chance, plan, views, [chance.randint(0, 10**8) for _ in pools])


def drawn_settings(world: World) -> PlacementSettings:
    chance = world.chance
    names = [one.id for one in world.plan.pools]
    change = Change(some(chance, 10**6), maybe(chance, 10**6), maybe(chance, 900), maybe(chance, 10**5), 0)
    return PlacementSettings(
        USD,
        value_of_time_pico_per_ms=some(chance, 10_000, 10**7, 10**9),
        late_price_pico_per_ms=some(chance, 20_000, 10**7, 10**9),
        slo_first_ms=some(chance, 1_000, 10**9),
        slo_token_us=some(chance, 50_000, 10**12),
        epsilon_ppm=chance.choice((0, 20_000, 300_000, 1_000_000)),
        unknown_rtt_ms=some(chance, 400, 10**9),
        expected_output_tokens=128,
        drains=frozenset(name for name in names if chance.random() < 0.1),
        caps={name: chance.randint(0, 6) for name in names if chance.random() < 0.2},
        carbon_pico_per_gram=chance.choice((0, 0, 10**5, 10**8)),
        unknown_bytes_per_s=some(chance, 10**7) + 1,
        age_spread_ppm=chance.choice((0, 50_000, 1_000_000)),
        canary=chance.choice((None, Canary(500_000, change))),
    )


def drawn_asked(world: World, side: PlacementSettings) -> Asked:
    chance, names = world.chance, [one.id for one in world.plan.pools]
    prompt = some(chance, 100, 2_000, 10**5, 10**7)
    service = None
    if chance.random() < 0.4:
        promised = maybe(chance, 10**6), maybe(chance, 10**6), maybe(chance, 900), maybe(chance, 10**5)
        service = Service(*promised, budget_pico=maybe(chance, 10**9))
    request = PlacementRequest(
        MODEL,
        frozenset(chance.sample(NEEDS, chance.choice((0, 1, 2)))),
        prompt,
        some(chance, 100, 4_000, 400_000),
        some(chance, 1_000, 10**7, 10**12),
        tried=frozenset(chance.sample([*names, PoolId("gone")], min(len(names), chance.choice((0, 0, 2))))),
        max_tokens=maybe(chance, 500, 4_096, 10**9),
        revision=chance.choice((None, None, *REVISIONS)),
        service=service,
        bill_pico=maybe(chance, 10**9),
        cached_rebate_pico=chance.randint(-10, 10**6),
        entitled=chance.random() < 0.95,
        canary=chance.random() < 0.3,
    )
    mask = sum(1 << number for number in range(len(names)) if chance.random() < 0.9)
    held = chance.sample(range(len(names)), chance.randint(0, min(8, len(names))))
    cached = {number: some(chance, prompt, 2 * prompt + 1) for number in held}
    now_ms, now_us = chance.randint(0, 6 * HOUR_MS), chance.randint(0, 10**9)
    return Asked(request, side, mask, cached, now_ms, now_us, chance.getrandbits(64))


def expected(world: World, asked: Asked) -> tuple[Picked, dict[Drop, int], list[int | None]]:
    """What the specification says: the choice, the reasons, and J of every pool that is a candidate."""
    verdicts = {one.id: ALLOW if asked.mask >> number & 1 else DENY for number, one in enumerate(world.plan.pools)}
    views = world.aged(asked.cached, asked.now_us)
    placement = place(asked.request, world.plan, verdicts, views, asked.settings, asked.now_ms, asked.chance)
    number = {one.id: at for at, one in enumerate(world.plan.pools)}
    drops = dict(Counter(one.drop for one in placement.candidates if one.drop is not None))
    totals = [None if one.terms is None else one.terms.total_pico for one in placement.candidates]
    chosen, second = placement.chosen, placement.runner_up()
    if chosen is None or chosen.terms is None:
        return Picked(None, None, 0, 0), drops, totals
    index, total = number[chosen.pool.id], chosen.terms.total_pico
    if second is None or second.terms is None:
        return Picked(index, None, total, 0), drops, totals
    gap = second.terms.total_pico - total
    return Picked(index, number[second.pool.id], total, gap), drops, totals


def check(world: World, board: Board, asked: Asked) -> Picked:
    picked, drops, totals = expected(world, asked)
    side = asked.settings.arm(asked.request.canary)
    worth = side.worth(asked.request.service)
    told = (asked.request, asked.mask, side, worth, asked.cached, asked.now_ms)
    assert board.choose(*told, asked.now_us, asked.chance) == picked
    assert board.drops(*told) == drops
    found = board.totals_pico(asked.request, side, worth, asked.cached, asked.now_ms, asked.now_us)
    for one, total in zip(found, totals, strict=True):
        assert total is None or one == total
    return picked
