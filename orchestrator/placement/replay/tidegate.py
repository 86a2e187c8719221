"""Tidegate's own router in a replay: the live permit, sight, cost and pick, fed by the replay's events.

One `Sight` for each edge, as edges have; one for each pool's replicas, as schedulers have. Nothing here decides: it
carries events in and choices out, as the edge's gate and a scheduler's queue do.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec

from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.cost import Spot, cost
from orchestrator.placement.lengths import Lengths
from orchestrator.placement.openings import Demand, share_openings
from orchestrator.placement.pick import Candidate, Placement, place
from orchestrator.placement.plan import Plan
from orchestrator.placement.prices import egress_at, tokens_at
from orchestrator.placement.replay.router import Choice, Refuse, Send
from orchestrator.placement.replay.world import PoolReport, Reply, SimRequest, World
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings, in_canary
from orchestrator.placement.sight import End, Ending, Flight, Sight
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import EdgeId, FlowId, PoolId
from orchestrator.policy.tenants import Service
from orchestrator.policy.verdicts import Verdict

REPORT_US = 250_000
"""Pools report to an edge this often while it has requests there."""
SHARED_US = 50_000
"""A sharing of openings stands for this long, as an intake's does for a while."""
CHANCE_BITS = 64
FREE = TokenPrice(Currency("USD"), 0, 0, 0)
"""Replicas of one pool charge alike: only time tells them apart."""

Judge = Callable[[SimRequest, int, int], Mapping[PoolId, Verdict]]
"""The live law: (request, edge, wall time in ms) to a verdict for every pool."""


class Tidegate:
    """The router."""

    report_us = REPORT_US
    loads_with_replies = True

    def __init__(
        self,
        world: World,
        judge: Judge,
        settings: PlacementSettings,
        chance: Callable[[], float],
        on_decision: Callable[[SimRequest, int, Placement], None] | None = None,
    ) -> None:
        self.refusals: Counter[str] = Counter()
        """Pools that were dropped where nothing was chosen, by reason."""
        self.rules: Counter[str] = Counter()
        """Requests that the law refused everywhere, by rule."""
        self._world = world
        self._judge = judge
        self._settings = settings
        self._chance = chance
        self._on_decision = on_decision
        self._edges = [
            _Edge(EdgeId(name), Plan(EdgeId(name), world.fleet, world.prices, settings.currency))
            for name in world.edges
        ]
        self._sites = [_Site(world, number) for number in range(len(world.pools))]
        self._number = {pool.id: number for number, pool in enumerate(world.pools)}
        self._services = [
            Service(slo_first_ms=kind.promise.first_us // 1000, slo_token_us=kind.promise.token_us)
            for kind in world.kinds
        ]
        self._placed: dict[int, tuple[Candidate, PlacementRequest, int]] = {}  # bounded: one for each edge's choice

    def choose(self, request: SimRequest, edge: int, tried: Sequence[int], hopped: bool, now_us: int) -> Choice:
        """Label, permit, place: as `decide` does."""
        world, here = self._world, self._edges[edge]
        now_ms = world.start_ms + now_us // 1000
        verdicts = self._judge(request, edge, now_ms)
        chance = int(self._chance() * (1 << CHANCE_BITS))
        prompt = request.prompt_tokens
        most = request.expected_tokens or None
        expected = here.sight.expect(request.blocks, world.block_tokens, prompt, now_us)
        views: dict[PoolId, PoolView] = {}
        for pool in world.pools:
            if verdicts[pool.id].allowed:
                cached = expected.get(pool.id, (0, 0))[0]
                views[pool.id] = here.view(pool.id, request, now_us, cached)
        shape = PlacementRequest(
            request.model,
            frozenset(),
            prompt,
            here.lengths.output_tokens(
                request.tenant, request.model, self._settings.expected_output_tokens, most
            ),
            request.upload_bytes,
            frozenset(world.pools[number].id for number in tried),
            max_tokens=most,
            service=self._services[request.kind],
            canary=in_canary(self._settings, chance),
        )
        placement = place(shape, here.plan, verdicts, views, self._settings, now_ms, chance)
        if self._on_decision is not None:
            self._on_decision(request, edge, placement)
        chosen = placement.chosen
        if chosen is None:
            return self._refused(placement)
        self._placed[edge] = (chosen, shape, expected.get(chosen.pool.id, (0, 0))[1])
        return Send(self._number[chosen.pool.id])

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """The attempt left the edge."""
        chosen, shape, before = self._placed.pop(edge)
        if chosen.terms is None or chosen.spot is None:
            raise ValueError("a chosen candidate has its terms")
        here = self._edges[edge]
        here.flights[request.number] = here.sight.sent(
            chosen.pool.id,
            request.model,
            chosen.spot.speed,
            chosen.terms,
            shape.prompt_tokens,
            now_us,
            request.blocks,
            before,
            FlowId(request.tenant),
        )
        self._sites[choice.pool].sent(edge)

    def first_token(self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int) -> None:
        """The first token reached the edge."""
        here = self._edges[edge]
        if request.number in here.flights:
            here.sight.first_token(here.flights[request.number], now_us)

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        """The attempt ended."""
        here = self._edges[edge]
        # What breaks here breaks by an outage, never by what was asked.
        end = End.REFUSED if reply.refused else End.UNREACHED if reply.broken else End.COMPLETE
        ending = Ending(
            end, reply.prompt_tokens, reply.cached_tokens, reply.output_tokens, reply.queued_us, reply.together
        )
        flight = here.flights.pop(request.number, None)
        if flight is not None:
            here.sight.ended(flight, ending, now_us)
        if end is End.COMPLETE:
            here.lengths.learn_output(request.tenant, request.model, reply.output_tokens)
        self._sites[reply.pool].ended(edge, request, reply, now_us)

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        """A report reached the edge."""
        world, here = self._world, self._edges[edge]
        declared = world.pools[pool]
        if report.number <= here.heard.get(pool, -1):
            return  # an older report never replaces a newer one
        here.heard[pool] = report.number
        link = world.links[edge][pool]
        load = self._sites[pool].load(report, edge) if report.up else None
        here.told[declared.id] = _Told(report.up, link.rtt_us + link.jitter_us, link.bytes_per_s, load, now_us)

    def replica(self, request: SimRequest, pool: int, report: PoolReport, now_us: int) -> int:
        """The scheduler's choice: the same cost over replicas."""
        return self._sites[pool].choose(request, report, now_us)

    def _refused(self, placement: Placement) -> Refuse:
        permitted = placement.permitted()
        if not permitted:
            rules = {rule for candidate in placement.candidates for rule in candidate.verdict.rules}
            self.rules.update(rules)
            return Refuse("not_permitted")
        drops = Counter(candidate.drop.value for candidate in permitted if candidate.drop is not None)
        self.refusals.update(drops)
        return Refuse(min(drops, key=lambda drop: (-drops[drop], drop)))


class _Told(msgspec.Struct, frozen=True):
    """What the way to a pool says: its last report, and what was measured of the way."""

    up: bool = True
    rtt_us: int | None = None
    bytes_per_s: int | None = None
    load: PoolLoad | None = None
    heard_us: int = 0


class _Edge:
    """What one edge knows."""

    def __init__(self, name: EdgeId, plan: Plan) -> None:
        self.name = name
        self.plan = plan
        self.sight = Sight()
        self.lengths = Lengths()
        self.told: dict[PoolId, _Told] = {}
        self.heard: dict[int, int] = {}
        """Number of the last report, by pool."""
        self.flights: dict[int, Flight] = {}  # bounded: by the attempts in flight

    def view(self, pool: PoolId, request: SimRequest, now_us: int, cached: int) -> PoolView:
        """Return what is known of a pool now."""
        told, flow = self.told.get(pool, _Told()), FlowId(request.tenant)
        load, heard_us = told.load, told.heard_us
        return self.sight.view(
            pool, request.model, now_us, told.up, told.rtt_us, load, heard_us, cached, told.bytes_per_s, flow
        )


class _Site:
    """What the scheduler of one pool knows: who of its edges is busy, and how its replicas are."""

    def __init__(self, world: World, number: int) -> None:
        pool = world.pools[number]
        self._pool = pool
        self._in_flight = [0] * len(world.edges)
        self._recent = [0] * len(world.edges)
        self._shared: tuple[int, dict[str, int]] = (-SHARED_US, {})
        gpu = pool.gpu
        self._spot = Spot(FREE, 0, None, gpu.slots, Speed(gpu.prefill_ns, gpu.step_ns + gpu.stream_ns, gpu.stream_ns))
        self._names = [PoolId(f"{pool.id}/{replica}") for replica in range(pool.replicas)]
        self._sight = Sight()
        self._block_tokens = world.block_tokens
        self._worth = PlacementSettings(FREE.currency, 1_000_000, 0, 1, 1, 0, 0, 1).worth(None)

    def sent(self, edge: int) -> None:
        self._in_flight[edge] += 1
        self._recent[edge] += 1

    def ended(self, edge: int, request: SimRequest, reply: Reply, now_us: int) -> None:
        self._in_flight[edge] -= 1

    def load(self, report: PoolReport, edge: int) -> PoolLoad:
        """Return the report as one edge hears it, with its share of the openings."""
        pool, gpu = self._pool, self._pool.gpu
        slots = gpu.slots * pool.replicas
        running, waiting = sum(report.running), sum(report.waiting) + report.line
        if report.made_us - self._shared[0] >= SHARED_US:
            room = max(0, slots - running) + max(0, pool.waiting_max - waiting)
            demands = [
                Demand(str(one), self._in_flight[one], self._recent[one]) for one in range(len(self._in_flight))
            ]
            self._shared = (report.made_us, share_openings(room, demands, report.number))
            self._recent = [0] * len(self._recent)
        return PoolLoad(
            pool.replicas,
            slots,
            running,
            waiting,
            pool.waiting_max,
            0,
            sum(report.queued_tokens),
            gpu.kv_tokens * pool.replicas,
            sum(report.kv_used),
            self._shared[1].get(str(edge), 0),
        )

    def choose(self, request: SimRequest, report: PoolReport, now_us: int) -> int:
        """Return the replica with the least cost; of equals, the first."""
        gpu = self._pool.gpu
        held = self._sight.index.expect(request.blocks, now_us)
        shape = PlacementRequest(request.model, frozenset(), request.prompt_tokens, 1, 0)
        best, least = 0, None
        for number, name in enumerate(self._names):
            blocks = held.get(name, 0)
            cached = min(blocks * self._block_tokens, request.prompt_tokens - 1)
            load = PoolLoad(
                1,
                gpu.slots,
                report.running[number],
                report.waiting[number],
                0,
                0,
                report.queued_tokens[number],
                gpu.kv_tokens,
                report.kv_used[number],
            )
            terms = cost(shape, self._spot, PoolView(name, True, 0, load, 0, cached_tokens=cached), self._worth)
            if least is None or terms.total_pico < least:
                best, least = number, terms.total_pico
        self._sight.index.insert(self._names[best], request.blocks, now_us)
        return best


def biller(world: World) -> Callable[[SimRequest, int, int, int, int, int, int], int]:
    """Return what the operator pays for an attempt: (request, pool, cached, output, wall ms, bytes up, bytes down)."""
    costs = {(one.pool, one.model): one for one in world.prices.costs}
    edges = [EdgeId(name) for name in world.edges]

    def bill(request: SimRequest, pool: int, cached: int, output: int, now_ms: int, up: int, down: int) -> int:
        found = costs[(world.pools[pool].id, request.model)]
        price = tokens_at(found, now_ms)
        tokens = (request.prompt_tokens - cached) * price.input_pico + cached * price.cached_pico
        return tokens + output * price.output_pico + (up + down) * egress_at(found, edges[request.edge])

    return bill


