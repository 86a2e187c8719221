"""The fleet generator: worlds of overseas edges and pools in many countries, by seed, under the law as it is shipped.

Round trips outside mainland China are measured, those into it are a model (`sites`). Prices follow list prices of GPUs.
Which pools may see which traffic is the verdict of the live law (`legal`). Everything else is drawn by the seed: which
sites, GPUs and replicas there are, who owns pools, which papers tenants hold, what they were promised, when a price
changes and which pools fail. The same seed is the same fleet.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from random import Random

from benchmarks.placement.legal import (
    Court,
    Traffic,
    court_of,
    facts_of,
    operator_of,
    permitted_tenant,
    place_of,
    shipped_law,
    tenant_of,
)
from benchmarks.placement.sites import (
    CARDS_DOMESTIC,
    CARDS_HOME,
    CARDS_OVERSEAS,
    DOMESTIC,
    EDGES_ALWAYS,
    EDGES_SOMETIMES,
    LEASED_SHARE,
    OVERSEAS,
    SITES,
    USD,
    Card,
    Offer,
    Site,
    carbon,
    internet_pico_per_byte,
    link_pico_per_byte,
    measured_link,
    modelled_link,
    offers,
    token_price,
)
from benchmarks.placement.traces import day_profile
from benchmarks.placement.workloads import CHAT, Mix, pool_rate, pool_sets, unloaded
from orchestrator.ledger.rating import TokenPrice, rate
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.fleet import (
    Assurance,
    DatedPrice,
    Edge,
    EdgeKey,
    Fleet,
    Pool,
    PoolCost,
    PrefixCache,
    Prices,
    ServedModel,
)
from orchestrator.placement.replay.world import Gpu, Kind, Link, Outage, Promise, SimPool, World
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.bundle import FOREVER_MS, Law
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, KeyId, ModelId, PoolId, SchedulerId, SideId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.places import Place
from orchestrator.policy.tenants import Tenant

FLEET_SEEDS = range(1000, 1050)
"""The fleets of the comparison."""

MODEL = ModelId("llama-3.1-8b-instruct")
PPM = 1_000_000
DAY_BEGINS_MS = int(datetime(2026, 11, 23, tzinfo=UTC).timestamp()) * 1000
"""Runs begin at some hour of this Monday."""
HOUR_MS = 3_600_000

PROMISED_PROMPT_TOKENS = 4_096
"""A promise can be kept for prompts up to this length, on an idle pool that is permitted."""
PROMISE_MARGIN = 1.5
"""With this much room."""
TOKEN_MARGIN = 1.25
FIRST_US = {
    Traffic.GENERAL: (2_000_000, 3_000_000),
    Traffic.BATCH: (10_000_000, 30_000_000),
    Traffic.PERSONAL: (2_000_000, 3_000_000),
    Traffic.SENSITIVE: (2_000_000, 3_000_000),
}
TOKEN_US = {
    Traffic.GENERAL: (60_000, 100_000),
    Traffic.BATCH: (150_000, 400_000),
    Traffic.PERSONAL: (60_000, 100_000),
    Traffic.SENSITIVE: (60_000, 100_000),
}
TRAFFIC_WEIGHTS = {
    Traffic.GENERAL: (0.42, 0.55),
    Traffic.BATCH: (0.10, 0.20),
    Traffic.PERSONAL: (0.20, 0.32),
    Traffic.SENSITIVE: (0.04, 0.10),
}
"""Of an edge's requests, before `_balanced`: assumed."""
CONFINED_MAX = 0.9
"""What may go only to some pools takes at most this share of what they can do, when the whole fleet is at its limit."""
PROFILES = ("m-mid", "m-small", "deepseek-r1")
VALUE_OF_TIME_PICO_PER_MS = 10_000
LATE_PRICE_PICO_PER_MS = 2_000_000
"""A second beyond the promise costs 0.0002 USD, about as much as a request: assumed."""


@dataclass(frozen=True, slots=True)
class PriceChange:
    """From some time on, a pool charges something else for tokens."""

    pool: int
    at_ppm: int
    """Share of the run that is over by then."""
    tokens: TokenPrice


@dataclass(frozen=True, slots=True)
class Failure:
    """A pool is gone between two shares of the run."""

    pool: int
    from_ppm: int
    until_ppm: int


@dataclass(frozen=True, slots=True)
class FleetCase:
    """A world, its traffic, and its law."""

    seed: int
    world: World
    """Without changes of price and outages: `lasting` puts them in."""
    mix: Mix
    law: Law
    tenants: tuple[Tenant, ...]
    """By kind: one contract that stands for all tenants of the kind."""
    facts: tuple[Facts, ...]
    """By kind: what the law is told of its payloads."""
    settings: PlacementSettings
    price_changes: tuple[PriceChange, ...]
    failures: tuple[Failure, ...]

    def lasting(self, duration_us: int) -> World:
        """Return the world of a run so long, with its outages and dated prices."""
        outages = tuple(
            Outage(one.pool, one.from_ppm * duration_us // PPM, one.until_ppm * duration_us // PPM)
            for one in self.failures
        )
        prices = _dated(self.world, self.changes(duration_us))
        return replace(self.world, outages=outages, prices=prices)

    def changes(self, duration_us: int) -> tuple[tuple[int, int, TokenPrice], ...]:
        """Return the changes of price of a run so long: (pool, microseconds from its start, price), in order."""
        return tuple((one.pool, one.at_ppm * duration_us // PPM, one.tokens) for one in self.price_changes)

    def court(self, edge: int) -> Court:
        """Return the live law at an edge, over the pools of the fleet in their order."""
        world = self.world
        return court_of(
            self.law, world.fleet.edges[edge], world.fleet, world.prices, self.settings, world.start_ms
        )

    def may_of(self, kind: int, now_ms: int | None = None) -> frozenset[int]:
        """Return the pools that the live law permits for a kind, at the start of the run or at another time."""
        return self.court(self.mix.edges[kind]).may(self.facts[kind], self.world.start_ms if now_ms is None else now_ms)


def fleet(seed: int) -> FleetCase:
    """Return the fleet with this seed."""
    chance = Random(seed)
    edge_sites = [SITES[name] for name in (*EDGES_ALWAYS, *chance.sample(EDGES_SOMETIMES, chance.randint(0, 2)))]
    plans = _plans(edge_sites, chance)
    start_ms = DAY_BEGINS_MS + chance.randrange(24) * HOUR_MS
    edges = tuple(_edge(site) for site in edge_sites)
    pools = tuple(plan.declared() for plan in plans)
    declared = Fleet(edges, pools)
    prices = Prices(tuple(_cost(plan, edge_sites, chance) for plan in plans))
    settings = _settings()
    law = shipped_law(start_ms)
    links = tuple(tuple(_link(edge, plan, chance) for plan in plans) for edge in edge_sites)
    contracts: list[_Contract] = []
    for number, (edge, site) in enumerate(zip(edges, edge_sites, strict=True)):
        court = court_of(law, edge, declared, prices, settings, start_ms)
        contracts += [_contract(number, edge, site, kind, court, links[number], chance) for kind in Traffic]
    sim_pools = tuple(plan.simulated() for plan in plans)
    kinds = tuple(_kind(contract, links[contract.edge], sim_pools, chance) for contract in contracts)
    world = World(
        edges=tuple(edge.id for edge in edges),
        edge_jurisdictions=tuple(Jurisdiction(site.country) for site in edge_sites),
        pools=sim_pools,
        links=links,
        kinds=kinds,
        prices=prices,
        fleet=declared,
        start_ms=start_ms,
        home=tuple(_nearest(links, pool) for pool in range(len(pools))),
    )
    return FleetCase(
        seed=seed,
        world=world,
        mix=_mix(world, contracts, edge_sites, chance),
        law=law,
        tenants=tuple(contract.tenant for contract in contracts),
        facts=tuple(contract.facts for contract in contracts),
        settings=settings,
        price_changes=_price_changes(world, chance),
        failures=_failures(world, chance),
    )


def _nearest(links: Sequence[Sequence[Link]], pool: int) -> int:
    """Return the edge from which `pool` is the shortest way."""
    return min(range(len(links)), key=lambda edge: links[edge][pool].rtt_us)


@dataclass(frozen=True, slots=True)
class _PoolPlan:
    """What the seed drew for one pool."""

    name: str
    site: Site
    offer: Offer
    replicas: int
    prefix_cache: bool
    leased: bool
    """Reached over leased lines; says something of mainland China only."""
    place: Place

    @property
    def card(self) -> Card:
        return self.offer.card

    def simulated(self) -> SimPool:
        """Return the pool as a replay sees it."""
        gpu = self.card.gpu(self.prefix_cache)
        return SimPool(
            id=PoolId(self.name),
            jurisdiction=Jurisdiction(self.site.country),
            region=self.site.name,
            model=MODEL,
            gpu=gpu,
            replicas=self.replicas,
            waiting_max=2 * gpu.slots,
            context_tokens=self.card.context_tokens,
        )

    def declared(self) -> Pool:
        """Return the pool as the bundle declares it."""
        gpu = self.card.gpu(self.prefix_cache)
        return Pool(
            id=PoolId(self.name),
            side=_side(self.site),
            region=self.site.name,
            accelerator=self.card.name.lower(),
            place=self.place,
            assurance=Assurance.TWO_PARTY,
            models=(_served(gpu, self.card),),
            slots=gpu.slots * self.replicas,
            scheduler=SchedulerId(self.name),
            intake=f"{self.name}.pools.example:8101",
            prefix_cache=PrefixCache.SHARED if self.prefix_cache else PrefixCache.NONE,
        )


def _served(gpu: Gpu, card: Card) -> ServedModel:
    return ServedModel(
        id=MODEL,
        context_tokens=card.context_tokens,
        capabilities=frozenset({Capability.CHAT, Capability.STREAM, Capability.SEED, Capability.STOP}),
        prefill_us_per_token=max(1, gpu.prefill_ns // 1000),
        decode_us_per_token=gpu.alone_decode_ns() // 1000,
        stream_us_per_token=gpu.stream_ns // 1000,
    )


def _side(site: Site) -> SideId:
    return SideId("domestic" if site.country == "CN" else "overseas")


def _plans(edge_sites: Sequence[Site], chance: Random) -> list[_PoolPlan]:
    """Draw 8 to 14 pools: two or three in mainland China, most edges with one beside them, and others.

    The others come first from countries that have none, so that there are six jurisdictions and more. One or two of
    them are owned, or looked into by staff, from the US or China: their soil alone does not say who reaches them.
    """
    domestic = chance.sample(DOMESTIC, chance.randint(2, 3))
    beside = [site.name for site in edge_sites if chance.random() < 0.75]
    total = chance.randint(max(8, len(domestic) + len(beside)), 14)
    more = chance.sample([name for name in OVERSEAS if name not in beside], total - len(domestic) - len(beside))
    names = [*domestic, *beside, *more]
    owned = set(chance.sample(more or beside, min(len(more or beside), chance.randint(1, 2))))
    # One pool of the domestic side may be kept for payloads whose inputs are to be proven: without a shared cache.
    alone = chance.choice(domestic) if chance.random() < 0.6 else None
    plans: list[_PoolPlan] = []
    for name in names:
        site = SITES[name]
        cards = CARDS_DOMESTIC if name in DOMESTIC else CARDS_HOME if name in beside else CARDS_OVERSEAS
        card = chance.choice(cards)
        offer = chance.choice([one for one in offers() if one.card.name == card])
        replicas = chance.randint(1, 2)
        foreign = chance.choice(("US", "CN")) if name in owned and site.country not in ("US", "CN") else None
        operator = operator_of(site.country, foreign if chance.random() < 0.5 else None)
        staff = [operator_of(foreign)] if foreign and not operator.owners else []
        pool = f"{name}-{card.lower()}"
        place = place_of(pool, site.country, operator, staff)
        plans.append(_PoolPlan(pool, site, offer, replicas, name != alone, chance.random() < LEASED_SHARE, place))
    return plans


def _edge(site: Site) -> Edge:
    name = f"edge-{site.name}"
    key = EdgeKey(KeyId(f"{name}-1"), hashlib.sha256(name.encode()).digest())
    return Edge(EdgeId(name), _side(site), site.name, place_of(name, site.country, operator_of(site.country)), (key,))


def _link(edge: Site, plan: _PoolPlan, chance: Random) -> Link:
    if plan.site.azure:
        return measured_link(edge, plan.site, chance)
    return modelled_link(edge, plan.site, plan.leased, chance)


def _cost(plan: _PoolPlan, edge_sites: Sequence[Site], chance: Random) -> PoolCost:
    return PoolCost(
        pool=PoolId(plan.name),
        model=MODEL,
        tokens=token_price(plan.offer, plan.site, chance),
        egress_pico_per_byte=internet_pico_per_byte(plan.offer.cloud, plan.site),
        links={EdgeId(f"edge-{edge.name}"): link_pico_per_byte(edge, plan.site) for edge in edge_sites},
        carbon=carbon(plan.card, plan.site),
    )


def _settings() -> PlacementSettings:
    return PlacementSettings(
        currency=USD,
        value_of_time_pico_per_ms=VALUE_OF_TIME_PICO_PER_MS,
        late_price_pico_per_ms=LATE_PRICE_PICO_PER_MS,
        slo_first_ms=2_500,
        slo_token_us=80_000,
        epsilon_ppm=5_000,
        unknown_rtt_ms=400,
        expected_output_tokens=256,
    )


@dataclass(frozen=True, slots=True)
class _Contract:
    """One kind of traffic at one edge, before it is promised anything."""

    name: str
    edge: int
    traffic: Traffic
    tenant: Tenant
    facts: Facts
    may: frozenset[int]


def _contract(
    number: int, edge: Edge, site: Site, traffic: Traffic, court: Court, links: Sequence[Link], chance: Random
) -> _Contract:
    """Return a kind, with papers by chance, and with as many as it takes to have a pool at all."""
    name = f"{site.name}.{traffic.value}"
    tenant = tenant_of(name, traffic, site.country, edge, MODEL)
    near = sorted(range(len(links)), key=lambda pool: links[pool].rtt_us)
    wanted: list[int] = []
    if traffic is Traffic.PERSONAL:
        wanted = chance.sample(near, chance.randint(1, 3))
    elif traffic is Traffic.SENSITIVE:
        wanted = chance.sample(near[: len(near) // 2], chance.randint(0, 1))
    tenant, may = permitted_tenant(court, tenant, edge, wanted, near, court.ground.table.made_ms)
    return _Contract(name, number, traffic, tenant, facts_of(tenant, edge), may)


def _kind(contract: _Contract, links: Sequence[Link], pools: Sequence[SimPool], chance: Random) -> Kind:
    """Return the kind with a promise that some permitted pool keeps while it is idle, with room to spare."""
    idle = [unloaded(pools[pool].gpu, links[pool], PROMISED_PROMPT_TOKENS) for pool in sorted(contract.may)]
    first_us, token_us = (chance.randint(*drawn[contract.traffic]) for drawn in (FIRST_US, TOKEN_US))
    # One pool must be able to keep both halves of it: the one that misses by the least.
    needed = [(one.first_us * PROMISE_MARGIN, one.token_us * TOKEN_MARGIN) for one in idle]
    first, token = min(needed, key=lambda one: max(one[0] / first_us, one[1] / token_us))
    promise = Promise(max(first_us, math.ceil(first)), max(token_us, math.ceil(token)))
    return Kind(contract.name, contract.may, promise, contract.facts.label.regulated())


def _mix(world: World, contracts: Sequence[_Contract], edge_sites: Sequence[Site], chance: Random) -> Mix:
    weights = [chance.uniform(0.5, 1.5) for _ in edge_sites]
    shares = [weights[one.edge] * chance.uniform(*TRAFFIC_WEIGHTS[one.traffic]) for one in contracts]
    return Mix(
        shares=_balanced(world, [share / sum(shares) for share in shares], contracts),
        edges=tuple(one.edge for one in contracts),
        tenants=tuple(chance.randint(2, 5) for _ in contracts),
        utc_minutes=tuple(site.utc_minutes for site in edge_sites),
        profile=day_profile(chance.choice(PROFILES)),
        limited_share=chance.uniform(0.4, 0.8),
    )


def _balanced(world: World, shares: Sequence[float], contracts: Sequence[_Contract]) -> tuple[float, ...]:
    """Return the shares, with less of what is confined to few pools where it would not fit there.

    Whatever set of pools, the kinds that may go nowhere else get at most CONFINED_MAX of what it can do at the rate
    that fills the fleet. What is taken from them goes to the general traffic of their edge. So the law makes places
    scarce, and never impossible.
    """
    found = list(shares)
    rates = [pool_rate(pool, CHAT) for pool in world.pools]
    masks = [sum(1 << pool for pool in kind.may) for kind in world.kinds]
    everything = (1 << len(rates)) - 1
    general = {one.edge: kind for kind, one in enumerate(contracts) if one.traffic is Traffic.GENERAL}
    for pools in sorted(pool_sets(masks) - {everything}, key=lambda one: (one.bit_count(), one)):
        confined = [kind for kind, mask in enumerate(masks) if not mask & ~pools and kind not in general.values()]
        share = sum(found[kind] for kind in confined)
        most = CONFINED_MAX * sum(rate for pool, rate in enumerate(rates) if pools >> pool & 1) / sum(rates)
        if share > most:
            for kind in confined:
                kept = found[kind] * most / share
                found[general[contracts[kind].edge]] += found[kind] - kept
                found[kind] = kept
    return tuple(found)


def _price_changes(world: World, chance: Random) -> tuple[PriceChange, ...]:
    """In the middle of the run the cheapest pool gets dearer; in half of the fleets another one gets cheaper."""
    by_price = sorted(range(len(world.pools)), key=lambda pool: _chat_pico(world.prices.costs[pool].tokens))
    changes = [PriceChange(by_price[0], PPM // 2, _times(world.prices.costs[by_price[0]].tokens, 2.5))]
    if chance.random() < 0.5:
        other = chance.choice(by_price[1:])
        at_ppm = chance.randint(550_000, 700_000)
        changes.append(PriceChange(other, at_ppm, _times(world.prices.costs[other].tokens, 0.4)))
    return tuple(changes)


def _chat_pico(price: TokenPrice) -> int:
    return rate(price, int(CHAT.prompt_tokens), 0, int(CHAT.output_tokens)).amount_pico


def _times(price: TokenPrice, factor: float) -> TokenPrice:
    input_pico, cached_pico, output_pico = (
        int(pico * factor) for pico in (price.input_pico, price.cached_pico, price.output_pico)
    )
    return TokenPrice(price.currency, input_pico, cached_pico, output_pico)


def _dated(world: World, changes: Sequence[tuple[int, int, TokenPrice]]) -> Prices:
    """Return the prices of the world with changes that begin so long after its start, for good."""
    costs = list(world.prices.costs)
    for pool, at_us, tokens in changes:
        dated = DatedPrice(world.start_ms + at_us // 1000, FOREVER_MS, tokens)
        costs[pool] = replace(costs[pool], dated=(*costs[pool].dated, dated))
    return replace(world.prices, costs=tuple(costs))


def _failures(world: World, chance: Random) -> tuple[Failure, ...]:
    """One or two pools fail for a while, where that leaves every kind a pool, if there is such a pool."""
    spare = [pool for pool in range(len(world.pools)) if all(kind.may != {pool} for kind in world.kinds)]
    failures: list[Failure] = []
    for begin_ppm in chance.sample((250_000, 600_000), chance.randint(1, 2)):
        from_ppm = begin_ppm + chance.randint(0, 100_000)
        pool = chance.choice(spare or range(len(world.pools)))
        failures.append(Failure(pool, from_ppm, from_ppm + chance.randint(50_000, 120_000)))
    return tuple(sorted(failures, key=lambda one: one.from_ppm))
