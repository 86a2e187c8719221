"""The cache-aware policy of the SGLang and vLLM routers."""

from __future__ import annotations

from random import Random

from benchmarks.placement.rivals.balancer import CHARACTERS_PER_TOKEN, Balancer, bits_of
from benchmarks.placement.rivals.prefix_tree import PrefixIndex
from orchestrator.placement.replay.router import Choice, Send
from orchestrator.placement.replay.world import Permits, SimRequest, World

CACHE_THRESHOLD = 0.3
BALANCE_ABS_THRESHOLD = 64
BALANCE_REL_THRESHOLD = 1.5
"""Defaults of the launcher (sgl-project/sglang@sgl-model-gateway/bindings/python/src/sglang_router/router_args.py).
The Rust struct and vllm-project/router have 0.5, 32 and 1.1."""
TREE_CHARACTERS_MAX = 1 << 26
"""Of one worker: the launcher's default `max_tree_size`."""


class CacheAware(Balancer):
    """A threshold between affinity and balance. One balancer: all edges share counts and tree.

    sgl-project/sglang@sgl-model-gateway/src/policies/cache_aware.rs, and the same file of vllm-project/router:
    when ``max - min > abs`` and ``max > rel * min`` of the outstanding requests, the shortest queue; else the worker
    with the longest matching prefix when more than `CACHE_THRESHOLD` of the prompt matches; else the worker with the
    smallest tree. The tree learns the prompt when it is sent, in either mode.

    Kinder than the source in three places: it matches only workers that may be chosen (the source falls back to the
    first healthy one), it hears of a pool that is down in 100 ms (health checks there run every 60 s), and it evicts
    at each insertion (every 60 s there). As documented, not as in late versions, where the smallest tree became the
    shortest queue.
    """

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Start with empty trees."""
        super().__init__(world, permits, confined, chance)
        capacity = self.index_capacity(TREE_CHARACTERS_MAX // CHARACTERS_PER_TOKEN)
        self.tree = PrefixIndex([capacity] * len(self.pool_of))

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return the shortest queue, the best match, or the smallest tree."""
        workers, among = self.members(left)
        outstanding = self.views[edge].outstanding
        loads = [outstanding[worker] for worker in workers]
        least, most = min(loads), max(loads)
        if most - least > BALANCE_ABS_THRESHOLD and most > BALANCE_REL_THRESHOLD * least:
            return self.sends[workers[loads.index(least)]]
        depth, holders = self.tree.deepest(request.blocks, among, now_us)
        if self.matched(request, depth) > CACHE_THRESHOLD:
            return self.sends[self._latest(request.blocks[depth - 1], holders)]
        return self.sends[min(workers, key=self.tree.size)]

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """Count it, and learn where the prompt went."""
        super().sent(request, edge, choice, now_us)
        if choice.replica is not None:
            self.tree.insert(request.blocks, self.first[choice.pool] + choice.replica, now_us)

    def prefixes(self, edge: int) -> PrefixIndex:
        """Return what was learnt of prefixes."""
        return self.tree

    def _latest(self, block: int, holders: int) -> int:
        """Return the worker that had this block last: the node's cached tenant (tree.rs, `last_tenant`)."""
        return max(bits_of(holders), key=lambda worker: self.tree.touched_us(block, worker))
