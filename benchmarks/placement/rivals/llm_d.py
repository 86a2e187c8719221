"""The default profile of llm-d's endpoint picker."""

from __future__ import annotations

from random import Random

from benchmarks.placement.rivals.balancer import Balancer
from benchmarks.placement.rivals.prefix_tree import PrefixIndex
from orchestrator.placement.replay.router import Choice, Send
from orchestrator.placement.replay.world import Permits, SimRequest, World

PREFIX_WEIGHT = 3
QUEUE_WEIGHT = 2
KV_WEIGHT = 2
"""llm-d/llm-d-router@config/charts/routerlib/templates/_config.yaml, `default-plugins.yaml`."""
SCRAPE_US = 50_000
"""Default of `--refresh-metrics-interval`, llm-d/llm-d-router@docs/operations.md."""
PREFIX_TOKENS_MAX = 131_072
"""Longest prefix that is matched (pkg/epp/framework/plugins/requestcontrol/dataproducer/approximateprefix/types.go)."""


class LlmD(Balancer):
    """Weighted scores of every replica, and the highest wins. One picker: all edges share it.

    llm-d/llm-d-router@pkg/epp/framework/plugins/scheduling: ``3 * prefix + 2 * queue + 2 * kv``, each 0 to 1, where
    prefix = matched blocks / all blocks (scorer/prefix, `prefixLengthWeight` 0), queue = (max - q) / (max - min) of
    the waiting requests, 1 when they are equal (scorer/queuedepth), and kv = 1 - usage (scorer/kvcacheutilization).
    A replica that has not reported scores neither queue nor kv, and is outside of max and min. The picker takes the
    highest score, by chance among equals (picker/maxscore).

    The prefixes are the approximate producer's: learnt from what was sent, least recently used out, and as many blocks
    per replica as the engine has room for (`autoTune`). Left out: flow control and its saturation limits, which are
    off unless asked for, and the experimental latency predictor.
    """

    report_us = SCRAPE_US

    def __init__(self, world: World, permits: Permits, confined: bool, chance: Random) -> None:
        """Start with no metrics and an empty index."""
        super().__init__(world, permits, confined, chance)
        room = [world.pools[pool].gpu.kv_tokens for pool in self.pool_of]
        self.index = PrefixIndex([self.index_capacity(tokens) for tokens in room])
        self._blocks_max = max(1, PREFIX_TOKENS_MAX // world.block_tokens)

    def pick(self, request: SimRequest, edge: int, left: int, now_us: int) -> Choice:
        """Return a replica with the highest score."""
        scores = self.scores(request, edge, left, now_us)
        highest = max(scores.values())
        best = [worker for worker, score in scores.items() if score == highest]
        return self.sends[best[0] if len(best) == 1 else self.chance.choice(best)]

    def scores(self, request: SimRequest, edge: int, left: int, now_us: int) -> dict[int, float]:
        """Return the weighted sum of the scores, by worker of the pools in `left`."""
        workers, among = self.members(left)
        blocks = request.blocks[: self._blocks_max]
        matched = self.index.depths(blocks, among, now_us)
        per_block = PREFIX_WEIGHT / len(blocks) if blocks else 0.0
        scores = {worker: matched.get(worker, 0) * per_block for worker in workers}
        reports = self.views[edge].reports
        measured: list[tuple[int, int]] = []
        for worker in workers:
            pool = self.pool_of[worker]
            report = reports[pool]
            if report is not None:
                at = worker - self.first[pool]
                measured.append((worker, report.waiting[at]))
                scores[worker] += KV_WEIGHT * (1 - report.kv_used[at] / self.world.pools[pool].gpu.kv_tokens)
        if measured:
            queues = [waiting for _, waiting in measured]
            longest = max(queues)
            spread = longest - min(queues)
            for worker, waiting in measured:
                scores[worker] += QUEUE_WEIGHT * ((longest - waiting) / spread if spread else 1.0)
        return scores

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """Count it, and learn where the prompt went (the producer's `PreRequest`)."""
        super().sent(request, edge, choice, now_us)
        if choice.replica is not None:
            worker = self.first[choice.pool] + choice.replica
            self.index.insert(request.blocks[: self._blocks_max], worker, now_us)

    def prefixes(self, edge: int) -> PrefixIndex:
        """Return what was learnt of prefixes."""
        return self.index
