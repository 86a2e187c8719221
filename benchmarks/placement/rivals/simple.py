"""The plain balancers: those that every paper compares with, and two that operators build from DNS and a price list.

The first four are one balancer that all edges ask, as in the evaluation of SkyWalker (EuroSys'26, arXiv 2505.24095),
where RR, LL, CH and the SGLang router are a single balancer each. The last two choose a region and leave the replica
to the pool.
"""

from __future__ import annotations

from bisect import bisect_left
from hashlib import blake2b
from random import Random

from benchmarks.placement.rivals.balancer import Balancer
from orchestrator.placement.fleet import PoolCost
from orchestrator.placement.prices import tokens_at
from orchestrator.placement.replay.router import Choice, Send
from orchestrator.placement.replay.world import Permits, SimRequest, World
from orchestrator.policy.ids import ModelId

VIRTUAL_NODES = 100
"""Points of one replica on the ring. SkyServe's ring has 1,024 in all, which is about this at its 8 to 12 replicas
(skypilot-org/skypilot@sky/serve/load_balancing_policies.py, `ConsistentHashingPolicy`)."""
PROMPT_PER_ANSWER = 3
"""Prompt tokens per answer token that a blended price assumes where the caller set no limit: the usual 3 to 1."""
UNKNOWN_PRICE = 1 << 200


class RoundRobin(Balancer):
    """Each request to the next replica in turn (sglang@sgl-model-gateway/src/policies/round_robin.rs). Shared state."""

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Start at the first replica."""
        super().__init__(world, permits, confined, chance)
        self._turn = 0

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the replica whose turn it is among those that are left."""
        workers, _ = self.members(left)
        worker = workers[self._turn % len(workers)]
        self._turn += 1
        return self.sends[worker]


class LeastLoad(Balancer):
    """The replica with the fewest outstanding requests, as this balancer counts them. Shared state.

    SkyServe's default (skypilot-org/skypilot@sky/serve/load_balancing_policies.py, `LeastLoadPolicy`).
    """

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the least loaded replica."""
        workers, _ = self.members(left)
        return self.sends[self.least(workers, self.views[edge].outstanding)]


class PowerOfTwo(Balancer):
    """Of two replicas by chance, the one with fewer outstanding requests. Shared state.

    Mitzenmacher, IEEE TPDS 12(10), 2001; sglang@sgl-model-gateway/src/policies/power_of_two.rs; Ray Serve's default.
    """

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the better of two different replicas, or the only one."""
        workers, _ = self.members(left)
        if len(workers) == 1:
            return self.sends[workers[0]]
        at = int(self.chance.random() * len(workers))
        other = int(self.chance.random() * (len(workers) - 1))
        first, second = workers[at], workers[other + (other >= at)]
        outstanding = self.views[edge].outstanding
        return self.sends[second if outstanding[second] < outstanding[first] else first]


class ConsistentHash(Balancer):
    """The replica whose point on a ring follows the hash of the session. Shared state: the same ring everywhere.

    Karger et al., STOC'97; the `CH` of SkyWalker's evaluation, which hashes the user or the question.
    """

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Lay out one ring per model, of all of its replicas, up or not."""
        super().__init__(world, permits, confined, chance)
        points: dict[ModelId, list[tuple[int, int]]] = {}
        for worker, pool in enumerate(self.pool_of):
            ring = points.setdefault(world.pools[pool].model, [])
            names = (f"{pool}/{worker - self.first[pool]}/{point}" for point in range(VIRTUAL_NODES))
            ring.extend((_hash(name), worker) for name in names)
        self._rings: dict[ModelId, tuple[list[int], list[int]]] = {}
        """By model: the hashes in order, and the worker of each."""
        for model, ring in points.items():
            ring.sort()
            self._rings[model] = [point for point, _ in ring], [worker for _, worker in ring]

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the first replica after the session's hash that is left."""
        hashes, owners = self._rings[request.model]
        _, among = self.members(left)
        at = bisect_left(hashes, _hash(str(request.session)))
        while not among >> owners[at % len(owners)] & 1:
            at += 1
        return self.sends[owners[at % len(owners)]]


class NearestRegion(Balancer):
    """The pool with the shortest round trip that is up: what latency DNS and anycast give. State per edge."""

    one_per_edge = True

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Order the pools of each edge."""
        super().__init__(world, permits, confined, chance)
        self._order = tuple(
            tuple(pool for _, pool in sorted((link.rtt_us, pool) for pool, link in enumerate(links)))
            for links in world.links
        )

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the nearest pool."""
        return Send(next(pool for pool in self._order[edge] if left >> pool & 1))


class CheapestRegion(Balancer):
    """The pool with the lowest list price for this request at this time. State per edge: only who is up.

    A list price knows the prompt and the limit that the caller set, and neither cache nor load.
    """

    one_per_edge = True

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Look up the costs. Raises ValueError when they are in several currencies, which a list cannot compare."""
        super().__init__(world, permits, confined, chance)
        self._costs = tuple(world.prices.cost(pool.id, pool.model) for pool in world.pools)
        if len({cost.tokens.currency for cost in self._costs if cost is not None}) > 1:
            raise ValueError("prices in several currencies have no lowest")

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the cheapest pool; one without a known price only where there is no other."""
        now_ms = self.world.start_ms + now_us // 1000
        best, best_pico = -1, UNKNOWN_PRICE + 1
        for pool, cost in enumerate(self._costs):
            if left >> pool & 1:
                pico = UNKNOWN_PRICE if cost is None else list_price_pico(cost, request, now_ms)
                if pico < best_pico:
                    best, best_pico = pool, pico
        return Send(best)


def list_price_pico(cost: PoolCost, request: SimRequest, now_ms: int) -> int:
    """Return the price of a request in pico-units when nothing is cached: input and output price blended by tokens."""
    tokens = tokens_at(cost, now_ms)
    answer_tokens = request.expected_tokens or request.prompt_tokens // PROMPT_PER_ANSWER
    return request.prompt_tokens * tokens.input_pico + answer_tokens * tokens.output_pico


def _hash(name: str) -> int:
    return int.from_bytes(blake2b(name.encode(), digest_size=8).digest(), "big")
