"""What every rival keeps: which replicas a request could go to, what is in flight there, and what pools last reported.

Replicas are numbered through all pools of the world, so that a set of them is the bits of an integer. A number is
called a worker here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.placement.rivals.prefix_tree import PrefixIndex
from orchestrator.placement.replay.router import Choice, Hold, Refuse, Send
from orchestrator.placement.replay.world import Permits, PoolReport, Reply, SimRequest, World
from orchestrator.policy.ids import EdgeId, ModelId

PROBE_US = 100_000
"""How often a balancer looks at its replicas (skypilot-org/skypilot@sky/serve/load_balancer.py,
`_IE_QUEUE_PROBE_INTERVAL`); given to every rival that publishes no shorter interval."""
CHARACTERS_PER_TOKEN = 4
"""What turns bounds that were published in characters into tokens (atoniolo76/gotoni@pkg/proxy estimates with it)."""
INDEX_ENTRIES_MAX = 1 << 20
"""Pairs of a block and a worker that one prefix index holds at most, whatever its publisher allows."""
MEMBERS_KEPT_MAX = 4096

NO_POOL = Refuse("no pool that is up serves this model")
HOLD = Hold()


@dataclass(slots=True)
class View:
    """What one balancer knows. Where the published system is one balancer, all edges share one view."""

    outstanding: list[int]
    """Attempts in flight, by worker: sent by this balancer and not ended."""
    up: int
    """Pools that last reported to be up, or have not reported yet, as bits."""
    reports: list[PoolReport | None]
    """The newest report of each pool."""


def bits_of(mask: int) -> list[int]:
    """Return the numbers of the bits that are set, ascending."""
    found = []
    while mask:
        low = mask & -mask
        found.append(low.bit_length() - 1)
        mask ^= low
    return found


class Balancer(ABC):
    """The ground of all rivals. A rival adds how it chooses, and what it learns besides.

    With `confined` False it is as published and knows no law. With True it sees only the pools that the law permits.
    In both it passes over pools that it cannot dial, that last reported to be down, whose context is too short for
    the prompt and the caller's limit (the engine would refuse), or that refused this request already.
    """

    report_us: int = PROBE_US
    loads_with_replies: bool = False
    one_per_edge: bool = False
    """Whether each edge has a balancer with state of its own; otherwise all edges ask the same one."""

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Start with every pool up and nothing in flight."""
        self.world = world
        self.permits = permits
        self.confined = confined
        self.chance = chance
        self.first = tuple(sum(pool.replicas for pool in world.pools[:at]) for at in range(len(world.pools)))
        """By pool: the worker that is its replica 0."""
        self.pool_of = tuple(at for at, pool in enumerate(world.pools) for _ in range(pool.replicas))
        self.sends = tuple(Send(pool, worker - self.first[pool]) for worker, pool in enumerate(self.pool_of))
        """By worker: the choice that names it."""
        edges = len(world.edges)
        self.views = tuple(self._fresh() for _ in range(edges)) if self.one_per_edge else (self._fresh(),) * edges
        self.attempts: dict[int, int] = {}
        """By request: the worker of its attempt in flight. Shrinks when attempts end."""
        self._serving: dict[ModelId, int] = {}
        for at, pool in enumerate(world.pools):
            self._serving[pool.model] = self._serving.get(pool.model, 0) | 1 << at
        self.dialled = tuple(self._dialled(EdgeId(edge)) for edge in world.edges)
        """By edge: the pools that it can reach at all, as bits."""
        self._contexts = sorted((pool.context_tokens, ~(1 << at)) for at, pool in enumerate(world.pools))
        self._members: dict[int, tuple[tuple[int, ...], int]] = {}

    def choose(self, request: SimRequest, edge: int, tried: Sequence[int], hopped: bool, now_us: int) -> Choice:
        """Give the pools that are left to `pick`, or refuse when there are none."""
        left = self.eligible(request, tried) & self.dialled[edge] & self.views[edge].up
        return self.pick(request, edge, left, now_us) if left else NO_POOL

    @abstractmethod
    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Choose among the pools in `left`, which are bits and at least one. The rule of the rival."""

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """Count the attempt as in flight at its replica, when one was named."""
        if choice.replica is not None:
            worker = self.first[choice.pool] + choice.replica
            self.attempts[request.number] = worker
            self.views[edge].outstanding[worker] += 1

    def first_token(  # noqa: B027 - most rivals learn nothing from it
        self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int
    ) -> None:
        """The answer began."""

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        """Count the attempt as ended."""
        worker = self.attempts.pop(request.number, None)
        if worker is not None:
            self.views[edge].outstanding[worker] -= 1

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        """Keep the report unless a newer one came by a shorter way."""
        view = self.views[edge]
        known = view.reports[pool]
        if known is not None and report.made_us < known.made_us:
            return
        view.reports[pool] = report
        bit = 1 << pool
        if report.up:
            view.up |= bit
        elif view.up & bit:
            view.up ^= bit
            self.lost(edge, pool)

    def lost(self, edge: int, pool: int) -> None:
        """The pool went down, as `edge` now knows: forget what was cached there."""
        index = self.prefixes(edge)
        if index is not None:
            for worker in self.members(1 << pool)[0]:
                index.clear(worker)

    def prefixes(self, edge: int) -> PrefixIndex | None:
        """Return the index by worker that the balancer of `edge` keeps, when it keeps one."""
        return None

    def replica(self, request: SimRequest, pool: int, report: PoolReport, now_us: int) -> int:
        """Return the replica with the fewest requests, running or waiting: the usual scheduler behind one address."""
        loads = [running + waiting for running, waiting in zip(report.running, report.waiting, strict=True)]
        return self.least(range(len(loads)), loads)

    def eligible(self, request: SimRequest, tried: Sequence[int]) -> int:
        """Return the pools that serve the model and have not refused, within the law when confined, as bits."""
        left = self._serving.get(request.model, 0)
        for pool in tried:
            left &= ~(1 << pool)
        needed_tokens = request.prompt_tokens + request.expected_tokens
        for context_tokens, without in self._contexts:
            if context_tokens >= needed_tokens:
                break
            left &= without
        return left & self.permits(request) if self.confined and left else left

    def members(self, pools: int) -> tuple[tuple[int, ...], int]:
        """Return the workers of these pools, in order and as bits."""
        known = self._members.get(pools)
        if known is None:
            workers = tuple(worker for worker, pool in enumerate(self.pool_of) if pools >> pool & 1)
            known = workers, sum(1 << worker for worker in workers)
            if len(self._members) >= MEMBERS_KEPT_MAX:
                self._members.clear()
            self._members[pools] = known
        return known

    def least(self, workers: Sequence[int], loads: Sequence[int]) -> int:
        """Return the worker with the least load; of several, one by chance, so that no place of the list wins."""
        lowest = min(map(loads.__getitem__, workers))
        tied = [worker for worker in workers if loads[worker] == lowest]
        return tied[0] if len(tied) == 1 else self.chance.choice(tied)

    def matched(self, request: SimRequest, depth: int) -> float:
        """Return which part of the prompt `depth` matched blocks are, 0 to 1."""
        if depth == 0:
            return 0.0
        if depth == len(request.blocks):
            return 1.0
        return min(1.0, depth * self.world.block_tokens / request.prompt_tokens)

    def index_capacity(self, tokens: int) -> int:
        """Return a published bound of one worker's prefixes in blocks, within the share of it in the whole index."""
        share = INDEX_ENTRIES_MAX // max(1, len(self.pool_of))
        return max(1, min(share, tokens // self.world.block_tokens))

    def _fresh(self) -> View:
        pools = len(self.world.pools)
        return View([0] * len(self.pool_of), (1 << pools) - 1, [None] * pools)

    def _dialled(self, edge: EdgeId) -> int:
        reached = 0
        for at, pool in enumerate(self.world.pools):
            declared = self.world.fleet.pool(pool.id)
            if declared is None or declared.reachable(edge):
                reached |= 1 << at
        return reached
