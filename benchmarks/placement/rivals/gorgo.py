"""GORGO: round trip, prefill and queue added up in milliseconds."""

from __future__ import annotations

from collections import deque
from random import Random

from benchmarks.placement.rivals.balancer import HOLD, INDEX_ENTRIES_MAX, Balancer
from benchmarks.placement.rivals.prefix_tree import PrefixIndex
from orchestrator.placement.replay.router import Choice, Send
from orchestrator.placement.replay.world import Permits, PoolReport, Reply, SimRequest, World

PUBLISHED_US_PER_TOKEN = 93.8
"""0.0938 ms per uncached prompt token: arXiv 2602.11688v1, a regression over 87 requests on A100."""
REGRESSION_SAMPLES = 87
REGRESSION_SAMPLES_MIN = 16
"""Version 2 of the paper fits after every 16 requests."""
RUNNING_FACTOR = 0.5
"""What a token of a request in flight costs of one that is still to come (gotoni@pkg/proxy, `RunningCostFactor`)."""
RTT_ALPHA = 0.3
"""Weight of the newest round trip in the moving average (gotoni@pkg/proxy, `LatencyEWMAAlpha`)."""
CACHE_FULL = 0.95
"""Share of its cache in use from which a replica takes nothing (gotoni@pkg/proxy, `GPUCacheThreshold`)."""


class PrefillRate:
    """Microseconds per uncached prompt token of one pool: the slope of a line through its latest answers."""

    def __init__(self) -> None:
        """Start at the published rate."""
        self._samples: deque[tuple[int, int]] = deque(maxlen=REGRESSION_SAMPLES)
        self._x = self._y = self._xx = self._xy = 0
        self.us_per_token = PUBLISHED_US_PER_TOKEN

    def learn(self, uncached_tokens: int, took_us: int) -> None:
        """Take in how long a prefill took. Whole numbers, so that what leaves the window leaves no rounding behind."""
        if len(self._samples) == REGRESSION_SAMPLES:
            self._count(*self._samples[0], -1)
        self._samples.append((uncached_tokens, took_us))
        self._count(uncached_tokens, took_us, 1)
        samples = len(self._samples)
        spread = samples * self._xx - self._x * self._x
        if samples >= REGRESSION_SAMPLES_MIN and spread > 0:
            slope = (samples * self._xy - self._x * self._y) / spread
            if slope > 0:
                self.us_per_token = slope

    def _count(self, x: int, y: int, sign: int) -> None:
        self._x += sign * x
        self._y += sign * y
        self._xx += sign * x * x
        self._xy += sign * x * y


class Gorgo(Balancer):
    """The least sum of round trip, own prefill, and prefill in flight. One central proxy: all edges share its state.

    GORGO-proxy of arXiv 2602.11688v1 (atoniolo76/gotoni@pkg/proxy/proxy.go, `selectServer`)::

        cost = rtt + rate * (prompt tokens - matched tokens) + rate * 0.5 * prompt tokens in flight there

    Capacity gating is on, as by default: a replica with as many requests in flight as it has slots, or with 95 % of
    its cache in use, takes none; when all are so, the proxy keeps the request in its line. Nothing then queues at
    engines, so that the source's term for it is 0. The tree learns a prompt when the answer begins.

    The rate is learnt, by pool, by the paper's regression over the last 87 answers (time to the first token less round
    trip and the queueing that the pool reports), from the published 0.0938 ms on: one rate for all would be wrong for
    every GPU but theirs. Round trips are averaged from the age of reports, which are half of one, by edge.
    """

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Start with declared round trips, the published rate, and an empty tree."""
        super().__init__(world, permits, confined, chance)
        self.rtt_us = [[float(link.rtt_us) for link in links] for links in world.links]
        self.rates = [PrefillRate() for _ in world.pools]
        self.running_tokens = [0] * len(self.pool_of)
        self.tree = PrefixIndex([self.index_capacity(INDEX_ENTRIES_MAX * world.block_tokens)] * len(self.pool_of))
        self._full = 0
        """Workers that last reported a full cache, as bits."""

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the replica of least cost, or wait when none has room."""
        costs = self.costs(request, edge, left, now_us)
        return self.sends[min(costs, key=costs.__getitem__)] if costs else HOLD

    def costs(self, request: SimRequest, edge: int, left: int, now_us: int) -> dict[int, float]:
        """Return the cost in microseconds, by worker with room in the pools in `left`."""
        workers, among = self.members(left)
        matched = self.tree.depths(request.blocks, among, now_us)
        outstanding = self.views[edge].outstanding
        costs = {}
        for worker in workers:
            pool = self.pool_of[worker]
            if outstanding[worker] >= self.world.pools[pool].gpu.slots or self._full >> worker & 1:
                continue
            cached = min(request.prompt_tokens, matched.get(worker, 0) * self.world.block_tokens)
            tokens = request.prompt_tokens - cached + RUNNING_FACTOR * self.running_tokens[worker]
            costs[worker] = self.rtt_us[edge][pool] + self.rates[pool].us_per_token * tokens
        return costs

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """Count it and its tokens."""
        super().sent(request, edge, choice, now_us)
        if choice.replica is not None:
            self.running_tokens[self.first[choice.pool] + choice.replica] += request.prompt_tokens

    def first_token(self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int) -> None:
        """Learn where the prompt is cached now."""
        self.tree.insert(request.blocks, self.first[pool] + replica, now_us)

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        """Count it as ended, and learn how fast the pool took the prompt in."""
        worker = self.attempts.get(request.number)
        super().replied(request, edge, reply, now_us)
        if worker is None:
            return
        self.running_tokens[worker] -= request.prompt_tokens
        if reply.first_us is not None:
            took_us = reply.first_us - reply.sent_us - round(self.rtt_us[edge][reply.pool]) - reply.queued_us
            self.rates[reply.pool].learn(reply.prompt_tokens - reply.cached_tokens, took_us)

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        """Average the round trip, and note which replicas have a full cache."""
        super().reported(edge, pool, report, now_us)
        self.rtt_us[edge][pool] += RTT_ALPHA * (2 * (now_us - report.made_us) - self.rtt_us[edge][pool])
        if self.views[edge].reports[pool] is report:
            room_tokens = CACHE_FULL * self.world.pools[pool].gpu.kv_tokens
            for worker, used in zip(self.members(1 << pool)[0], report.kv_used, strict=True):
                self._full = self._full & ~(1 << worker) | (used >= room_tokens) << worker

    def prefixes(self, edge: int) -> PrefixIndex:
        """Return what was learnt of prefixes."""
        return self.tree
