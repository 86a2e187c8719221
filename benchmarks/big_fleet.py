"""A big fleet, an edge before it and its tenants, drawn by a seed: what the benchmark of placement decides about.

Pools stand in the fifteen countries of the law's benchmark and serve one model. Tenants differ in label, promise,
length of answers and prefix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.law import NOW_MS, SOILS, facts
from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.board import Board, Picked
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import Assurance, Fleet, Pool, PoolCost, Prices, ServedModel
from orchestrator.placement.lengths import Lengths
from orchestrator.placement.pick import Placement, place
from orchestrator.placement.plan import Plan
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings, Worth
from orchestrator.placement.sight import Sight
from orchestrator.placement.speed import Speed
from orchestrator.policy.bundle import Law
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, ModelId, PlaceId, PoolId, SchedulerId, SideId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Personal
from orchestrator.policy.places import Place
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Service
from orchestrator.policy.verdicts import Verdict

MODEL = ModelId("a-model")
EDGE = EdgeId("edge")
USD = Currency("USD")
NOW_US = 900_000_000
NEEDS = frozenset({Capability.CHAT, Capability.STREAM})
BLOCK_TOKENS = 256
BLOCKS = 6
HOLDERS = 3
"""Pools that were sent a tenant's prefix lately."""
SETTINGS = PlacementSettings(USD, 10_000, 20_000, 1_500, 60_000, 20_000, 400, 256)
ALLOWED = Verdict(True, (), (), (), 1 << 62)
REFUSED = Verdict(False, (), (), (), 0)


@dataclass(frozen=True, slots=True)
class Caller:
    """One tenant, as its requests are placed."""

    id: TenantId
    facts: Facts
    service: Service
    prompt_tokens: int
    upload_bytes: int
    max_tokens: int | None
    blocks: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Ready:
    """A request of a caller with everything that the choice is told."""

    request: PlacementRequest
    permitted: int
    worth: Worth
    cached: dict[int, int]
    chance: int


@dataclass
class Scene:
    """An edge with a fleet and tenants."""

    plan: Plan
    board: Board
    views: list[PoolView]
    table: RouteTable
    sight: Sight
    lengths: Lengths
    callers: list[Caller]
    chance: Random

    def permit(self, caller: Caller) -> int:
        """Return a bit for each pool that the law allows; remembered for its kind of label."""
        return self.table.allowed(caller.facts, NOW_MS)

    def expect(self, caller: Caller) -> tuple[int, dict[int, int]]:
        """Return the output tokens that are expected, and who holds how many tokens of the prompt."""
        expected = SETTINGS.expected_output_tokens
        output = self.lengths.output_tokens(caller.id, MODEL, expected, caller.max_tokens)
        held = self.sight.expect(caller.blocks, BLOCK_TOKENS, caller.prompt_tokens, NOW_US)
        index = self.board.index
        return output, {at: tokens for pool, (tokens, _) in held.items() if (at := index(pool)) is not None}

    def ready(self, caller: Caller, permitted: int, chance: int) -> Ready:
        """Return a request of `caller`, shaped."""
        output, cached = self.expect(caller)
        request = PlacementRequest(
            MODEL,
            NEEDS,
            caller.prompt_tokens,
            output,
            caller.upload_bytes,
            max_tokens=caller.max_tokens,
            service=caller.service,
        )
        return Ready(request, permitted, SETTINGS.worth(caller.service), cached, chance)

    def choose(self, ready: Ready) -> Picked:
        """Choose by the board."""
        return self.board.choose(
            ready.request, ready.permitted, SETTINGS, ready.worth, ready.cached, NOW_MS, NOW_US, ready.chance
        )

    def decide(self, caller: Caller, chance: int) -> Picked:
        """Permit, expect and choose: all that depends on the request."""
        return self.choose(self.ready(caller, self.permit(caller), chance))

    def place(self, ready: Ready) -> Placement:
        """Choose by the specification, which also gives the account of every pool."""
        bits = ready.permitted
        pools = self.plan.pools
        verdicts = {pool.id: ALLOWED if bits >> number & 1 else REFUSED for number, pool in enumerate(pools)}
        views = {view.pool: view for view in self.views}
        return place(ready.request, self.plan, verdicts, views, SETTINGS, NOW_MS, ready.chance)


def fleet(count: int, chance: Random) -> tuple[Pool, ...]:
    """Return pools in as many countries as there are, all serving one model."""
    return tuple(_pool(number, chance) for number in range(count))


def prices(pools: Sequence[Pool], chance: Random) -> Prices:
    """Return what each charges."""
    return Prices(tuple(_cost(pool.id, chance) for pool in pools))


def views_of(pools: Sequence[Pool], chance: Random) -> list[PoolView]:
    """Return a busy fleet: measured, heard and learned."""
    return [_view(pool.id, chance) for pool in pools]


def board_of(plan: Plan, views: Sequence[PoolView]) -> Board:
    """Return a board with every row written."""
    board = Board(plan, MODEL, NOW_MS)
    write(board, views, 0, len(views))
    return board


def write(board: Board, views: Sequence[PoolView], first: int, end: int) -> None:
    """Write some rows, each heard a while ago."""
    for number in range(first, min(end, len(views))):
        board.write(number, views[number], NOW_US - 1_000 * (number % 997))


def callers(count: int, route_table: RouteTable, chance: Random, first: int = 0) -> list[Caller]:
    """Return tenants, numbered from `first`, of every kind that may be placed, each with its promise and prefix.

    Payloads without personal data may go anywhere; personal ones of Singapore stay there, and others stay out.
    """
    kinds = [facts(soil, personal) for personal in (Personal.NONE, Personal.PERSONAL) for soil in SOILS]
    kinds = [kind for kind in kinds if route_table.allowed(kind, NOW_MS)]
    return [
        Caller(
            TenantId(f"tenant-{number}"),
            kinds[number % len(kinds)],
            Service(slo_first_ms=chance.randint(300, 3_000), slo_token_us=chance.randint(20_000, 90_000)),
            chance.randint(200, 6_000),
            chance.randint(1_000, 40_000),
            chance.choice((None, 256, 1_024)),
            tuple(chance.getrandbits(64) for _ in range(BLOCKS)),
        )
        for number in range(first, first + count)
    ]


_PICO_PER_TOKEN = ((10_000, 90_000), (100_000, 400_000), (400_000, 2_000_000))


def scene(pools_count: int, tenants: int, law: Law, seed: int = 7) -> Scene:
    """Build an edge in Singapore."""
    chance = Random(seed)
    pools = fleet(pools_count, chance)
    plan = Plan(EDGE, Fleet(pools=pools), prices(pools, chance), USD)
    views = views_of(plan.pools, chance)
    route_table = RouteTable(law, _place("edge", "SG"), [pool.place for pool in plan.pools], NOW_MS)
    found = Scene(plan, board_of(plan, views), views, route_table, Sight(), Lengths(), [], chance)
    know(found, callers(tenants, route_table, chance))
    return found


def know(found: Scene, some: Sequence[Caller]) -> None:
    """Let an edge learn what it keeps of each tenant: how long its answers are, who holds its prefix, its class."""
    for caller in some:
        found.lengths.learn_output(caller.id, MODEL, found.chance.randint(20, 900))
        for pool in found.chance.choices(found.plan.pools, k=HOLDERS):
            found.sight.index.insert(pool.id, caller.blocks, NOW_US)
        found.permit(caller)
    found.callers.extend(some)


def _pool(number: int, chance: Random) -> Pool:
    name = f"pool-{number:05}"
    served = ServedModel(
        MODEL,
        chance.choice((8_192, 32_768)),
        NEEDS | ({Capability.TOOLS} if chance.random() < 0.5 else frozenset()),
        chance.randint(20, 90),
        chance.randint(8_000, 30_000),
        chance.randint(100, 600),
    )
    return Pool(
        id=PoolId(name),
        side=SideId("side"),
        region="region",
        accelerator="gpu",
        place=_place(name, SOILS[number % len(SOILS)]),
        assurance=Assurance.TWO_PARTY,
        models=(served,),
        slots=64,
        scheduler=SchedulerId(name),
        intake="127.0.0.1:1",
    )


def _cost(pool: PoolId, chance: Random) -> PoolCost:
    cached, fresh, output = (chance.randint(*range_) for range_ in _PICO_PER_TOKEN)
    tokens = TokenPrice(USD, fresh, cached, output)
    return PoolCost(pool, MODEL, tokens, chance.randint(10, 90))


def _view(pool: PoolId, chance: Random) -> PoolView:
    replicas = chance.choice((1, 2, 4))
    slots, room = 64 * replicas, 300_000 * replicas
    running = chance.randint(0, slots)
    waiting = chance.randint(0, 30) if running == slots else 0
    queued = chance.randint(0, 9_000) if waiting else 0
    used = chance.randint(0, room)
    load = PoolLoad(replicas, slots, running, waiting, 64, 0, queued, room, used, chance.randint(3, 20))
    speed = Speed(
        chance.randint(20_000, 90_000),
        chance.randint(8_000_000, 30_000_000),
        chance.randint(100_000, 600_000),
        chance.randint(3_000, 30_000),
        chance.randint(1_000_000, 20_000_000),
        chance.randint(100_000, 600_000),
        chance.randint(300_000, 3_000_000),
        50,
    )
    rate = chance.randint(1_000_000, 100_000_000)
    unseen = chance.randint(0, 2)
    return PoolView(
        pool, True, chance.randint(5_000, 300_000), load, unseen + 3, unseen, 500 * unseen, rate, speed=speed
    )


def _place(name: str, soil: str) -> Place:
    country = Jurisdiction(soil)
    operator = Entity(EntityId(f"{name}-operator"), country)
    return Place(PlaceId(name), frozenset({country}), frozenset(), (), operator)
