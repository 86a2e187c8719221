"""Dynamo's KV router: the least work in blocks."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from benchmarks.placement.rivals.balancer import HOLD, INDEX_ENTRIES_MAX, Balancer
from benchmarks.placement.rivals.prefix_tree import PrefixIndex, depths
from orchestrator.placement.replay.router import Choice, Send
from orchestrator.placement.replay.world import Permits, Reply, SimRequest, World

OVERLAP_SCORE_CREDIT = 1.0
PREFILL_LOAD_SCALE = 1.0
DECODE_ACTIVE_REQUEST_WEIGHT = 0.0
QUEUE_THRESHOLD = 16.0
"""Share of `max_num_batched_tokens` in prefill from which a worker is busy. All four are the defaults of
ai-dynamo/dynamo@lib/kv-router/src/scheduling/config.rs; so is temperature 0: the least cost wins, ties by chance."""
TTL_US = 120_000_000
"""How long a block counts as cached when engines publish no events (the same file, `router_ttl_secs`)."""


class ActiveBlocks:
    """Blocks of the requests in flight, by worker: shared ones once (lib/kv-router/src/sequences/single.rs)."""

    def __init__(self, workers: int) -> None:
        """Start with none."""
        self.holders: dict[int, int] = {}
        """By block: the workers where it is active, as bits."""
        self.sizes = [0] * workers
        """By worker: how many different blocks are active there."""
        self._counts: list[dict[int, int]] = [{} for _ in range(workers)]

    def add(self, worker: int, blocks: tuple[int, ...]) -> None:
        """A request with these blocks begins."""
        counts, holders = self._counts[worker], self.holders
        bit = 1 << worker
        for block in blocks:
            count = counts.get(block, 0)
            counts[block] = count + 1
            if not count:
                holders[block] = holders.get(block, 0) | bit
        self.sizes[worker] = len(counts)

    def free(self, worker: int, blocks: tuple[int, ...]) -> None:
        """A request with these blocks ended."""
        counts, holders = self._counts[worker], self.holders
        bit = 1 << worker
        for block in blocks:
            count = counts[block]
            if count > 1:
                counts[block] = count - 1
                continue
            del counts[block]
            rest = holders[block] ^ bit
            if rest:
                holders[block] = rest
            else:
                del holders[block]
        self.sizes[worker] = len(counts)


@dataclass(slots=True)
class Prefill:
    """A prompt in flight: what it still counts as prefill there."""

    worker: int
    uncached_tokens: int


class Dynamo(Balancer):
    """The least cost in KV blocks (ai-dynamo/dynamo@lib/kv-router/src/scheduling/selector/default.rs)::

        cost = prefill_load_scale * max(0, active prefill + prompt - overlap_score_credit * overlap)
               + active blocks + blocks of the prompt that are not active there
               + decode_active_request_weight * active requests

    Active blocks are those of requests in flight, freed when they end; active prefill is their uncached prompt tokens,
    freed at the first token; both are the router's own count, shared by all edges as `router_replica_sync` does.
    A request waits at the router while every worker has more than 16 times `chunk_tokens` in prefill.

    Engines publish no cache events here, so that the index is the approximate one: it learns each decision as it is
    made, and each entry lives for 120 s. All edges share it, as events would make it; by itself replica sync does not.
    Host and disk tiers, taints and the decay of credit (default 0) are left out. Liveness comes in 100 ms, not with a
    lease of 15 s.
    """

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Start with nothing active and nothing cached."""
        super().__init__(world, permits, confined, chance)
        workers = len(self.pool_of)
        capacity = self.index_capacity(INDEX_ENTRIES_MAX * world.block_tokens)
        self.index = PrefixIndex([capacity] * workers, TTL_US)
        self.active = ActiveBlocks(workers)
        self.prefill_tokens = [0] * workers
        self._prefills: dict[int, Prefill] = {}
        """By request. Shrinks at first tokens and ends."""
        self._busy_tokens = tuple(QUEUE_THRESHOLD * world.pools[pool].gpu.chunk_tokens for pool in self.pool_of)

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return a replica of least cost, or wait while all are busy."""
        workers, _ = self.members(left)
        prefill_tokens, busy_tokens = self.prefill_tokens, self._busy_tokens
        if all(prefill_tokens[worker] > busy_tokens[worker] for worker in workers):
            return HOLD
        costs = self.costs(request, edge, left, now_us)
        least = min(costs.values())
        best = [worker for worker, cost in costs.items() if cost == least]
        return self.sends[best[0] if len(best) == 1 else self.chance.choice(best)]

    def costs(self, request: SimRequest, edge: int, left: int, now_us: int) -> dict[int, float]:
        """Return the cost in blocks, by worker of the pools in `left`."""
        workers, among = self.members(left)
        overlaps = self.index.depths(request.blocks, among, now_us)
        shared = depths(self.active.holders, request.blocks, among)
        block_tokens = self.world.block_tokens
        prompt_blocks = request.prompt_tokens / block_tokens
        incoming = len(request.blocks)
        outstanding = self.views[edge].outstanding
        prefill_tokens, sizes = self.prefill_tokens, self.active.sizes
        costs = {}
        for worker in workers:
            # The last block may be partial: what overlaps is never more than the prompt, and no cost below 0.
            own = prompt_blocks - OVERLAP_SCORE_CREDIT * overlaps.get(worker, 0)
            prefill = prefill_tokens[worker] / block_tokens + (own if own > 0 else 0.0)
            decode = sizes[worker] + incoming - shared.get(worker, 0)
            costs[worker] = PREFILL_LOAD_SCALE * prefill + decode + DECODE_ACTIVE_REQUEST_WEIGHT * outstanding[worker]
        return costs

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """Count its blocks and its prefill, and predict that they will be cached."""
        super().sent(request, edge, choice, now_us)
        if choice.replica is None:
            return
        worker = self.first[choice.pool] + choice.replica
        depth = self.index.depths(request.blocks, 1 << worker, now_us).get(worker, 0)
        uncached = request.prompt_tokens - min(request.prompt_tokens, depth * self.world.block_tokens)
        self._prefills[request.number] = Prefill(worker, uncached)
        self.prefill_tokens[worker] += uncached
        self.active.add(worker, request.blocks)
        self.index.insert(request.blocks, worker, now_us)

    def first_token(self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int) -> None:
        """The prefill is done."""
        self._end_prefill(request.number)

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        """Free its blocks."""
        worker = self.attempts.get(request.number)
        super().replied(request, edge, reply, now_us)
        if worker is not None:
            self._end_prefill(request.number)
            self.active.free(worker, request.blocks)

    def prefixes(self, edge: int) -> PrefixIndex:
        """Return what was learnt of prefixes."""
        return self.index

    def _end_prefill(self, number: int) -> None:
        prefill = self._prefills.pop(number, None)
        if prefill is not None:
            self.prefill_tokens[prefill.worker] -= prefill.uncached_tokens
