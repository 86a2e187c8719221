"""An approximate prefix tree over block hashes: which worker was sent which prefix, and so may still have it cached.

A block's hash covers all blocks before it, so that the tree needs no nodes: the path of a prompt is the list of its
hashes, and each hash knows the workers that hold it as bits. Bounded per worker, least recently used leaf out first
(sglang@sgl-model-gateway/src/policies/tree.rs), or by age (dynamo@lib/kv-router, the indexer without events).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence

NEVER_US = 1 << 62


def depths(holders: Mapping[int, int], blocks: Sequence[int], among: int) -> dict[int, int]:
    """Return how many leading blocks each worker in the bits of `among` holds. One that holds none is left out."""
    found: dict[int, int] = {}
    left = among
    depth = 0
    for block in blocks:
        held = holders.get(block, 0) & left
        if held != left:
            if depth:
                _note(found, left ^ held, depth)
            left = held
            if not left:
                return found
        depth += 1
    if depth:
        _note(found, left, depth)
    return found


def _note(found: dict[int, int], workers: int, depth: int) -> None:
    while workers:
        low = workers & -workers
        found[low.bit_length() - 1] = depth
        workers ^= low


class PrefixIndex:
    """The prefixes of every worker. All times are the caller's."""

    def __init__(self, capacities: Sequence[int], ttl_us: int | None = None) -> None:
        """Hold at most `capacities` blocks, by worker; with `ttl_us`, each for so long after it was last inserted."""
        self._capacities = tuple(capacities)
        self._ttl_us = ttl_us
        self._due_us = NEVER_US
        """No entry expires before this."""
        self._holders: dict[int, int] = {}
        self._touched: tuple[OrderedDict[int, int], ...] = tuple(OrderedDict() for _ in self._capacities)
        """By worker: when each block was last inserted, oldest first."""

    def insert(self, blocks: Sequence[int], worker: int, now_us: int) -> None:
        """Note that `worker` was sent this prompt."""
        touched = self._touched[worker]
        bit = 1 << worker
        holders = self._holders
        # The leaf is touched before its root, so that the oldest entry is always a leaf.
        for block in reversed(blocks):
            if block in touched:
                touched.move_to_end(block)
            else:
                holders[block] = holders.get(block, 0) | bit
            touched[block] = now_us
        excess = len(touched) - self._capacities[worker]
        for _ in range(excess):
            self._drop_oldest(worker)
        if self._ttl_us is not None:
            self._due_us = min(self._due_us, now_us + self._ttl_us)

    def deepest(self, blocks: Sequence[int], among: int, now_us: int) -> tuple[int, int]:
        """Return the most leading blocks that any worker in `among` holds, and the workers that hold them, as bits."""
        self._expire(now_us)
        holders = self._holders
        left = among
        depth = 0
        for block in blocks:
            held = holders.get(block, 0) & left
            if not held:
                break
            left = held
            depth += 1
        return depth, left if depth else 0

    def depths(self, blocks: Sequence[int], among: int, now_us: int) -> dict[int, int]:
        """Return how many leading blocks each worker in `among` holds. One that holds none is left out."""
        self._expire(now_us)
        return depths(self._holders, blocks, among)

    def size(self, worker: int) -> int:
        """Return how many blocks `worker` holds."""
        return len(self._touched[worker])

    def touched_us(self, block: int, worker: int) -> int:
        """Return when `block` was last inserted for `worker`, which holds it."""
        return self._touched[worker][block]

    def clear(self, worker: int) -> None:
        """Forget all prefixes of a worker that went away."""
        while self._touched[worker]:
            self._drop_oldest(worker)

    def _drop_oldest(self, worker: int) -> None:
        block, _ = self._touched[worker].popitem(last=False)
        rest = self._holders[block] & ~(1 << worker)
        if rest:
            self._holders[block] = rest
        else:
            del self._holders[block]

    def _expire(self, now_us: int) -> None:
        if self._ttl_us is None or now_us < self._due_us:
            return
        due_us = NEVER_US
        for worker, touched in enumerate(self._touched):
            while touched:
                oldest_us = next(iter(touched.values()))
                if oldest_us + self._ttl_us > now_us:
                    due_us = min(due_us, oldest_us + self._ttl_us)
                    break
                self._drop_oldest(worker)
        self._due_us = due_us
