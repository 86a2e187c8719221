"""SkyWalker: one balancer per region, selective pushing, and one hop to another region when the own one is full."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random

from benchmarks.placement.rivals.balancer import (
    CHARACTERS_PER_TOKEN,
    HOLD,
    INDEX_ENTRIES_MAX,
    NO_POOL,
    PROBE_US,
    Balancer,
    bits_of,
)
from benchmarks.placement.rivals.prefix_tree import PrefixIndex
from orchestrator.placement.replay.router import Choice, Forward, Hold, Send
from orchestrator.placement.replay.world import Permits, PoolReport, Reply, SimRequest, World

CACHE_THRESHOLD = 0.5
TREE_CHARACTERS_MAX = 1 << 24
"""skypilot-org/skypilot@sky/serve/load_balancing_policies.py, `PrefixTreeConfig`."""
DISPATCH_US = 10_000
"""The line is worked off one request at a time, with so long between (`_QUEUE_PROCESSOR_SLEEP_TIME`)."""
DISPATCH_BURST = PROBE_US // DISPATCH_US
"""Requests that may go at once, when none went for a while: as many as the source lets go between two probes."""
LINE_SILENT_US = 100_000
"""A request that waits is asked about every 10 ms. After so long without being asked about, it left."""


@dataclass(slots=True)
class Region:
    """What the balancer of one edge knows."""

    local: int
    """The pools that are its own, as bits."""
    available: int
    """Workers of its own that had nobody waiting at the last probe, as bits."""
    tree: PrefixIndex
    """Prefixes by worker, of what it pushed to its own replicas."""
    far_tree: PrefixIndex
    """Prefixes by edge, of what it handed to other balancers."""
    handed: list[int]
    """Requests that it handed to each other edge and that have not ended."""
    seen: list[int]
    """By edge: the workers that were available there when it last looked, as bits; 0 while that edge had a line."""
    probed_us: int = -PROBE_US
    """When it last looked at the other balancers: on need, and no oftener than it probes replicas."""
    ready_us: int = -DISPATCH_BURST * DISPATCH_US
    """When the next request may go."""
    waits: int | None = None
    """The request at the head of its line."""
    waits_us: int = 0
    """When it was last asked about."""


class SkyWalker(Balancer):
    """Push only to a replica whose line is empty; the own region first; at most one hop. State per edge.

    EuroSys'26, arXiv 2505.24095, and skypilot-org/skypilot@sky/serve/load_balancer.py, `_queue_processor`, pushing
    across balancers, in the branch of the paper:

    1. among the local replicas with no waiting request at the last probe (100 ms), the one with the longest matching
       prefix when more than half of the prompt matches, else the one with the fewest requests in flight;
    2. when there is none and the request did not come from another balancer, the same choice among the other balancers
       whose own line is empty and that have an available replica, by a tree of what was handed to each;
    3. else it waits, and is asked about again.

    Between two probes it pushes blindly, but for the pace of its line, 10 ms a request; here ten may go at once after a
    lull, since a replay does not ask every 10 ms sharp. The switch for an imbalance test before the tree (32, 1.0001)
    is off, as by default. Kinder than the source: a region without replicas that could serve a request hands it on,
    into a line if need be (the source answers 503), and what a balancer asks of another travels in no time. The hop
    itself, from edge to edge, is judged by no law here, confined or not; confined means that it goes only where a
    permitted pool is.
    """

    one_per_edge = True

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Start with every replica available."""
        super().__init__(world, permits, confined, chance)
        edges = len(world.edges)
        local = [0] * edges
        for pool, edge in enumerate(world.home or _nearest(world)):
            local[edge] |= 1 << pool
        capacity = self.index_capacity(TREE_CHARACTERS_MAX // CHARACTERS_PER_TOKEN)
        far_capacity = min(INDEX_ENTRIES_MAX, capacity * max(1, len(self.pool_of)))
        free = [self.members(pools)[1] for pools in local]
        self.regions = tuple(
            Region(
                local[edge],
                free[edge],
                PrefixIndex([capacity] * len(self.pool_of)),
                PrefixIndex([far_capacity // edges] * edges),
                [0] * edges,
                list(free),
            )
            for edge in range(edges)
        )
        self._hops: dict[int, tuple[int, int]] = {}
        """By request: from which edge to which it was handed. Shrinks when the request ends."""

    def choose(self, request: SimRequest, edge: int, tried: Sequence[int], hopped: bool, now_us: int) -> Choice:
        """Push it to a local replica, hand it on, or let it wait."""
        region = self.regions[edge]
        left = self.eligible(request, tried)
        choice = self._choose(request, edge, left, hopped, now_us)
        if isinstance(choice, Hold):
            region.waits, region.waits_us = request.number, now_us
            return choice
        if region.waits == request.number:
            region.waits = None
        if choice is NO_POOL:
            self._ended(request.number)
        else:
            region.ready_us = max(region.ready_us, now_us - (DISPATCH_BURST - 1) * DISPATCH_US) + DISPATCH_US
        return choice

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Push it to one of the available replicas of the local pools in `left`, or let it wait."""
        region = self.regions[edge]
        free = self.members(left)[1] & region.available
        if not free:
            return HOLD
        return self.sends[self._by_prefix(request, region.tree, free, self.views[edge].outstanding, now_us)]

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """Count it, and learn where the prompt went."""
        super().sent(request, edge, choice, now_us)
        if choice.replica is not None:
            self.regions[edge].tree.insert(request.blocks, self.first[choice.pool] + choice.replica, now_us)

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        """Count it as ended, here and at the edge that handed it over."""
        super().replied(request, edge, reply, now_us)
        self._ended(request.number)

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        """Probe the replicas of an own pool."""
        super().reported(edge, pool, report, now_us)
        region = self.regions[edge]
        if region.local >> pool & 1 and self.views[edge].reports[pool] is report:
            workers, mask = self.members(1 << pool)
            region.available &= ~mask
            if report.up:
                for worker, waiting in zip(workers, report.waiting, strict=True):
                    region.available |= (waiting == 0) << worker

    def prefixes(self, edge: int) -> PrefixIndex:
        """Return what was learnt of prefixes."""
        return self.regions[edge].tree

    def _choose(self, request: SimRequest, edge: int, left: int, hopped: bool, now_us: int) -> Choice:
        region = self.regions[edge]
        left &= self.views[edge].up
        if left and now_us < region.ready_us:
            return HOLD
        own = left & region.local & self.dialled[edge]
        choice = self.pick(request, edge, own, now_us) if own else NO_POOL
        if hopped or isinstance(choice, Send):
            return choice
        if now_us - region.probed_us >= PROBE_US:
            region.probed_us = now_us
            region.seen = [0 if self._has_line(other, now_us) else other.available for other in self.regions]
        others = lined = 0
        for at, other in enumerate(self.regions):
            there = self.members(left & other.local & self.dialled[at])[1] if at != edge else 0
            others |= (region.seen[at] & there != 0) << at
            lined |= (there != 0) << at
        # What no replica of its own can serve would wait for ever behind others that do, so it waits in their line.
        others = others or (0 if own else lined)
        if not others:
            return choice
        to = self._by_prefix(request, region.far_tree, others, region.handed, now_us)
        region.far_tree.insert(request.blocks, to, now_us)
        region.handed[to] += 1
        self._ended(request.number)
        self._hops[request.number] = edge, to
        return Forward(to)

    def _by_prefix(self, request: SimRequest, tree: PrefixIndex, among: int, loads: Sequence[int], now_us: int) -> int:
        """Return the least loaded of those with the longest match when it is long enough, else of all in `among`."""
        depth, holders = tree.deepest(request.blocks, among, now_us)
        long_enough = self.matched(request, depth) > CACHE_THRESHOLD
        return self.least(bits_of(holders if long_enough else among), loads)

    def _ended(self, number: int) -> None:
        hop = self._hops.pop(number, None)
        if hop is not None:
            self.regions[hop[0]].handed[hop[1]] -= 1

    @staticmethod
    def _has_line(region: Region, now_us: int) -> bool:
        return region.waits is not None and now_us - region.waits_us <= LINE_SILENT_US


def _nearest(world: World) -> tuple[int, ...]:
    """Return the nearest edge of each pool, for a world that does not say."""
    edges = range(len(world.edges))
    return tuple(min((world.links[edge][at].rtt_us, edge) for edge in edges)[1] for at in range(len(world.pools)))
