"""From files to a replay: the world, its requests, and the law that the live permit is asked.

Where no bundle is given, the law is what the fleet file's classes say (`may`), put as verdicts, so that placement meets
the same kind of answer. With a bundle, its packs decide, by tenant and labels, at the virtual time of each request.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from random import Random

from orchestrator.bundles.assemble import Bundle
from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.files.label_header import LabelHeaderError, parse_label_header
from orchestrator.files.replay_fleet import ReplayClass, ReplayFleet, ReplayPool
from orchestrator.files.traces import BYTES_PER_TOKEN, TraceRow
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.decide import Ground, gather, judge, label
from orchestrator.placement.fleet import (
    Assurance,
    DatedPrice,
    Edge,
    Fleet,
    Pool,
    PoolCost,
    PrefixCache,
    Prices,
    ServedModel,
)
from orchestrator.placement.plan import Plan
from orchestrator.placement.prices import NEVER_MS
from orchestrator.placement.replay.tidegate import Judge
from orchestrator.placement.replay.world import Kind, Link, Outage, SimPool, SimRequest, World
from orchestrator.placement.settings import PlacementSettings
from orchestrator.policy.bundle import Horizons, Law
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import EdgeId, EntityId, ModelId, PlaceId, PoolId, RuleId, SchedulerId, SideId, TenantId
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels
from orchestrator.policy.places import Place
from orchestrator.policy.table import RouteTable
from orchestrator.policy.tenants import Tenant
from orchestrator.policy.verdicts import Reason, Verdict

SIDE = SideId("replay")
NOWHERE = Link(0, 0, 1)
"""Of a pool that an edge does not reach: never travelled."""
REISSUED_MS = 3_600_000
"""Control issues manifests anew; a replay takes the law as issued in the hour of the request."""
FOREVER_MS = 1 << 50


@dataclass(frozen=True, slots=True)
class Scene:
    """Everything that a run needs besides settings and chance."""

    world: World
    requests: tuple[SimRequest, ...]
    judge: Judge
    permits: Callable[[SimRequest], int]


@dataclass(frozen=True, slots=True)
class _Asked:
    """What tells two requests apart before the law."""

    edge: int
    traffic: int
    """Index of its class."""
    tenant: str
    labels: str | None


class SceneError(Exception):
    """A trace, a fleet and a bundle do not fit together. Its text is a sentence."""


def scene(
    fleet: ReplayFleet,
    rows: Sequence[TraceRow],
    settings: PlacementSettings,
    bundle: Bundle | None,
    seed: int,
) -> Scene:
    """Return the world and its requests for one seed. Raises SceneError."""
    if settings.currency != fleet.currency:
        raise SceneError(f"settings: expected the currency of the fleet, {fleet.currency}")
    declared = _declared(fleet, bundle)
    drawn = _Drawing(fleet, Random(seed))  # noqa: S311 - a replay is repeated by its seed
    asked: dict[_Asked, int] = {}
    requests: list[SimRequest] = []
    for number, row in enumerate(rows):
        edge, traffic = drawn.of(row)
        tenant = row.tenant or fleet.classes[traffic].tenant or f"tenant-{fleet.classes[traffic].id}"
        kind = asked.setdefault(_Asked(edge, traffic, tenant, row.labels), len(asked))
        requests.append(
            SimRequest(
                number=number,
                at_us=row.at_us,
                edge=edge,
                tenant=TenantId(tenant),
                model=drawn.model(row),
                kind=kind,
                prompt_tokens=max(1, row.prompt_tokens),
                output_tokens=max(1, row.output_tokens),
                expected_tokens=row.max_tokens or 0,
                blocks=row.blocks,
                session=number if row.session is None else row.session,
                upload_bytes=row.prompt_tokens * BYTES_PER_TOKEN if row.upload_bytes is None else row.upload_bytes,
            )
        )
    prices = _prices(fleet)
    judging: Judge
    if bundle is None:
        judging = _matrix(fleet, list(asked))
    else:
        judging = _Live(fleet, declared, prices, settings, bundle, list(asked)).verdicts
    kinds = tuple(_kind(fleet, one, settings, bundle) for one in asked)
    world = _world(fleet, declared, prices, kinds)
    return Scene(world, tuple(requests), judging, _permits(world, judging))


def _permits(world: World, judging: Judge) -> Callable[[SimRequest], int]:
    def permits(request: SimRequest) -> int:
        verdicts = judging(request, request.edge, world.start_ms + request.at_us // 1000)
        return sum(1 << number for number, pool in enumerate(world.pools) if verdicts[pool.id].allowed)

    return permits


class _Drawing:
    """Gives a request an edge, a class and a model where its trace names none. A session keeps what it was given."""

    def __init__(self, fleet: ReplayFleet, chance: Random) -> None:
        self._fleet = fleet
        self._chance = chance
        self._edges = {edge.id: number for number, edge in enumerate(fleet.edges)}
        self._classes = {one.id: number for number, one in enumerate(fleet.classes)}
        self._models = sorted({pool.model for pool in fleet.pools})
        self._sessions: dict[int, tuple[int, int]] = {}

    def of(self, row: TraceRow) -> tuple[int, int]:
        """Return (edge, class). Raises SceneError."""
        known = None if row.session is None else self._sessions.get(row.session)
        edge = traffic = None
        if row.edge is not None:
            edge = self._edges.get(EdgeId(row.edge))
            if edge is None:
                raise SceneError(f"trace: expected an edge of the fleet file: {', '.join(self._edges)}")
        if row.traffic is not None:
            traffic = self._classes.get(row.traffic)
            if traffic is None:
                raise SceneError(f"trace: expected a class of the fleet file: {', '.join(self._classes)}")
        if known is not None:
            return (known[0] if edge is None else edge), (known[1] if traffic is None else traffic)
        if edge is None:
            edge = self._draw([one.share for one in self._fleet.edges], "edges")
        if traffic is None:
            here = self._fleet.edges[edge].id
            traffic = self._draw(
                [one.share if here in one.edges else 0 for one in self._fleet.classes], f"classes at {here}"
            )
        if row.session is not None:
            self._sessions[row.session] = (edge, traffic)
        return edge, traffic

    def model(self, row: TraceRow) -> ModelId:
        """Return the model. A trace that names one which no pool serves is another system's: ours takes its place."""
        if row.model in self._models:
            return ModelId(row.model)
        if len(self._models) == 1 or row.model is None:
            return self._models[0]
        raise SceneError(f"trace: expected a model of the fleet file: {', '.join(self._models)}")

    def _draw(self, shares: Sequence[int], what: str) -> int:
        if not any(shares):
            raise SceneError(f"fleet: expected a share above 0 among the {what}")
        return self._chance.choices(range(len(shares)), shares)[0]


def _kind(fleet: ReplayFleet, asked: _Asked, settings: PlacementSettings, bundle: Bundle | None) -> Kind:
    traffic = fleet.classes[asked.traffic]
    first_ms, token_us = settings.slo_first_ms, settings.slo_token_us
    tenant = None if bundle is None else next((one for one in bundle.tenants if one.id == asked.tenant), None)
    if tenant is not None and tenant.service is not None:
        worth = settings.worth(tenant.service)
        first_ms, token_us = worth.slo_first_us // 1000, worth.slo_token_us
    may = frozenset(number for number, pool in enumerate(fleet.pools) if pool.id in traffic.may)
    return Kind(traffic.id, may, traffic.promise(first_ms, token_us), traffic.regulated)


def _matrix(fleet: ReplayFleet, asked: Sequence[_Asked]) -> Judge:
    """Put the `may` of each class as verdicts."""
    said = [_verdicts(fleet, fleet.classes[one.traffic]) for one in asked]
    return lambda request, _edge, _now_ms: said[request.kind]


def _verdicts(fleet: ReplayFleet, traffic: ReplayClass) -> Mapping[PoolId, Verdict]:
    rule = RuleId(f"fleet:{traffic.id}")
    allow = Verdict(True, (rule,), (), (), FOREVER_MS)
    reason = Reason(rule, None, f"The class {traffic.id} may not go there.", "The pool in `may` of the class.")
    deny = Verdict(False, (rule,), (reason,), (), FOREVER_MS)
    return {pool.id: allow if pool.id in traffic.may else deny for pool in fleet.pools}


class _Live:
    """The packs of a bundle, asked as an edge asks them."""

    def __init__(
        self,
        fleet: ReplayFleet,
        declared: Fleet,
        prices: Prices,
        settings: PlacementSettings,
        bundle: Bundle,
        asked: Sequence[_Asked],
    ) -> None:
        self._declared = declared
        self._prices = prices
        self._settings = settings
        self._bundle = bundle
        self._facts = [self._facts_of(fleet, one) for one in asked]
        self._edges = [one.edge for one in asked]
        self._grounds: dict[tuple[int, int], Ground] = {}
        self._said: dict[int, tuple[int, int, Mapping[PoolId, Verdict]]] = {}

    def verdicts(self, request: SimRequest, _edge: int, now_ms: int) -> Mapping[PoolId, Verdict]:
        """Return the verdicts, asked again when one of them is no longer to be relied on."""
        known = self._said.get(request.kind)
        if known is not None and known[0] <= now_ms < known[1]:
            return known[2]
        hour = now_ms // REISSUED_MS
        verdicts = judge(self._ground(self._edges[request.kind], hour), self._facts[request.kind], now_ms)
        until_ms = min((one.valid_until_ms for one in verdicts.values()), default=now_ms)
        until_ms = min(until_ms, (hour + 1) * REISSUED_MS)
        self._said[request.kind] = (now_ms, until_ms, verdicts)
        return verdicts

    def _ground(self, edge: int, hour: int) -> Ground:
        found = self._grounds.get((edge, hour))
        if found is None:
            bundle, here, issued_ms = self._bundle, self._declared.edges[edge], hour * REISSUED_MS
            law = Law(bundle.law.packs, Horizons.from_issue(issued_ms))
            places = [pool.place for pool in self._declared.pools]
            found = self._grounds[(edge, hour)] = Ground(
                RouteTable(law, here.place, places, issued_ms),
                self._declared,
                Plan(here.id, self._declared, self._prices, self._settings.currency),
                self._settings,
                bundle.revoked.pools,
                bundle.revoked.pathways,
                DISCHARGERS.keys(),
            )
        return found

    def _facts_of(self, fleet: ReplayFleet, asked: _Asked) -> Facts:
        tenant = self._tenant(asked.tenant)
        labels = fleet.classes[asked.traffic].labels or Labels()
        if asked.labels is not None:
            try:
                labels = parse_label_header(asked.labels)
            except LabelHeaderError as refusal:
                raise SceneError(f"trace: labels: {refusal}") from None
        return gather(tenant, label(tenant, labels, self._declared.edges[asked.edge]))

    def _tenant(self, name: str) -> Tenant:
        found = next((one for one in self._bundle.tenants if one.id == name), None)
        if found is None:
            known = ", ".join(sorted(one.id for one in self._bundle.tenants)) or "none"
            raise SceneError(f"class or trace: tenant: expected a tenant of the bundle, which has {known}")
        return found


def _declared(fleet: ReplayFleet, bundle: Bundle | None) -> Fleet:
    """Return the fleet as it would be declared. Places come from the bundle where it has the same id."""
    known = Fleet() if bundle is None else bundle.fleet
    edges = tuple(
        Edge(one.id, SIDE, "region", _place(one.id, one.jurisdiction, known.edge(one.id)), ()) for one in fleet.edges
    )
    pools = tuple(_pool(fleet, one, known.pool(one.id)) for one in fleet.pools)
    return Fleet(edges, pools)


def _pool(fleet: ReplayFleet, pool: ReplayPool, known: Pool | None) -> Pool:
    reached = frozenset(edge.id for edge in fleet.edges if (edge.id, pool.id) in fleet.links)
    everywhere = len(reached) == len(fleet.edges)
    gpu = pool.gpu
    served = ServedModel(
        pool.model,
        pool.context_tokens,
        frozenset(),
        max(1, gpu.prefill_ns // 1000),
        max(1, gpu.alone_decode_ns() // 1000),
        gpu.stream_ns // 1000,
    )
    return Pool(
        id=pool.id,
        side=SIDE,
        region=pool.region,
        accelerator="gpu",
        place=_place(pool.id, pool.jurisdiction, known),
        assurance=Assurance.TWO_PARTY if everywhere else Assurance.EDGE_ONLY,
        models=(served,),
        slots=gpu.slots * pool.replicas,
        scheduler=SchedulerId(pool.id) if everywhere else None,
        reachable_from=reached,
        prefix_cache=PrefixCache.SHARED if gpu.prefix_cache else PrefixCache.NONE,
    )


def _place(name: str, jurisdiction: Jurisdiction, known: Edge | Pool | None) -> Place:
    if known is not None:
        return known.place
    soil = frozenset({jurisdiction})
    operator = Entity(EntityId(f"operator-{jurisdiction.lower()}"), jurisdiction)
    return Place(PlaceId(name), soil, soil, (operator,), operator)


def _prices(fleet: ReplayFleet) -> Prices:
    costs = {pool.id: pool.cost for pool in fleet.pools}
    for change in fleet.price_changes:
        from_ms = fleet.start_ms + change.at_us // 1000
        costs[change.pool] = _changed(costs[change.pool], from_ms, change.tokens)
    return Prices(tuple(costs.values()))


def _changed(cost: PoolCost, from_ms: int, tokens: TokenPrice) -> PoolCost:
    return replace(cost, dated=(*cost.dated, DatedPrice(from_ms, NEVER_MS, tokens)))


def _world(fleet: ReplayFleet, declared: Fleet, prices: Prices, kinds: tuple[Kind, ...]) -> World:
    links = tuple(
        tuple(fleet.links.get((edge.id, pool.id), NOWHERE) for pool in fleet.pools) for edge in fleet.edges
    )
    numbers = {pool.id: number for number, pool in enumerate(fleet.pools)}
    return World(
        edges=tuple(edge.id for edge in fleet.edges),
        edge_jurisdictions=tuple(edge.jurisdiction for edge in fleet.edges),
        pools=tuple(
            SimPool(
                pool.id,
                pool.jurisdiction,
                pool.region,
                pool.model,
                pool.gpu,
                pool.replicas,
                pool.waiting_max,
                pool.context_tokens,
            )
            for pool in fleet.pools
        ),
        links=links,
        kinds=kinds,
        prices=prices,
        fleet=declared,
        start_ms=fleet.start_ms,
        outages=tuple(Outage(numbers[pool], from_us, until_us) for pool, from_us, until_us in fleet.outages),
        block_tokens=fleet.block_tokens,
        home=tuple(
            min(range(len(fleet.edges)), key=lambda edge: (links[edge][number] is NOWHERE, links[edge][number].rtt_us))
            for number in range(len(fleet.pools))
        ),
    )
