"""Keys and values of one replica: what running streams hold, and prefixes that are kept for the next prompt.

Counts tokens, not bytes, and knows three things that may fill the room:

* blocks in use: whole blocks of prompts, shared by every running stream whose prompt begins with them;
* what a stream holds for itself: the rest of its prompt and its answer;
* idle blocks: in use by nobody, least recently used out as soon as somebody needs the room.

As in vLLM and SGLang, whole blocks alone are shared. What differs from them, and why:

* a stream reserves its whole answer when it is admitted, as if its length were known; engines take the room token by
  token and throw a stream out when there is none. So nothing is thrown out here, and a full replica admits a bit later;
* the answer's own blocks are not kept: a trace names the blocks of prompts only;
* a block that two prompts brought in at once is counted once.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from orchestrator.placement.replay.world import Gpu, SimRequest


@dataclass(slots=True)
class Holding:
    """What one running stream holds."""

    request: SimRequest
    blocks: int
    """Leading blocks of its prompt that it holds in common."""
    own_tokens: int
    cached_tokens: int
    """Prompt tokens that were there when it was admitted and need no work."""


class Memory:
    """The keys and values of one replica. `used_tokens` never exceeds the room, with idle blocks or without."""

    __slots__ = ("_block_tokens", "_idle", "_users", "room_tokens", "used_tokens")

    def __init__(self, gpu: Gpu, block_tokens: int) -> None:
        """Start empty. Without a prefix cache no block is ever kept."""
        self.room_tokens = gpu.kv_tokens
        self.used_tokens = 0
        """Held by running streams; shared blocks count once."""
        self._block_tokens = block_tokens if gpu.prefix_cache else 0
        self._users: dict[int, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def idle_tokens(self) -> int:
        """Tokens of blocks that are kept and in use by nobody."""
        return len(self._idle) * self._block_tokens

    def _spared(self, request: SimRequest, blocks: int) -> int:
        return max(0, min(blocks * self._block_tokens, request.prompt_tokens - 1))

    def found(self, request: SimRequest) -> int:
        """Return how many leading whole blocks of the prompt are here now."""
        if not self._block_tokens:
            return 0
        users, idle, count = self._users, self._idle, 0
        for block in request.blocks[: request.prompt_tokens // self._block_tokens]:
            if block not in users and block not in idle:
                break
            count += 1
        return count

    def cached_tokens(self, request: SimRequest) -> int:
        """Return the prompt tokens that need no work now: all but the last at most, which must be computed anyway."""
        return self._spared(request, self.found(request))

    def admit(self, request: SimRequest) -> Holding | None:
        """Hold what is here of its prompt, and reserve room for the rest and its answer; None when that cannot be."""
        users, idle, block_tokens = self._users, self._idle, self._block_tokens
        found = self.found(request)
        own_tokens = request.prompt_tokens + request.output_tokens - found * block_tokens
        shared = request.blocks[:found]
        woken = sum([block in idle for block in shared])
        used_tokens = self.used_tokens + own_tokens + woken * block_tokens
        if used_tokens > self.room_tokens:
            return None
        for block in shared:
            if block in users:
                users[block] += 1
            else:
                del idle[block]
                users[block] = 1
        self.used_tokens = used_tokens
        while idle and used_tokens + len(idle) * block_tokens > self.room_tokens:
            idle.popitem(last=False)
        return Holding(request, found, own_tokens, self._spared(request, found))

    def keep(self, holding: Holding) -> None:
        """The prompt has been taken in: from now on its whole blocks are there for others, and it holds them."""
        block_tokens = self._block_tokens
        if not block_tokens:
            return
        users, idle, request = self._users, self._idle, holding.request
        brought = request.blocks[holding.blocks : request.prompt_tokens // block_tokens]
        for block in brought:
            if block in users:
                users[block] += 1
                self.used_tokens -= block_tokens
            else:
                idle.pop(block, None)
                users[block] = 1
        holding.own_tokens -= len(brought) * block_tokens
        holding.blocks += len(brought)

    def release(self, holding: Holding) -> None:
        """The stream is over: its blocks are idle if nobody else uses them, the last ones first to go."""
        users, idle, block_tokens = self._users, self._idle, self._block_tokens
        idled = 0
        for block in reversed(holding.request.blocks[: holding.blocks]):
            if users[block] > 1:
                users[block] -= 1
            else:
                del users[block]
                idle[block] = None
                idled += 1
        self.used_tokens -= holding.own_tokens + idled * block_tokens

    def clear(self) -> None:
        """Forget everything, as after a restart."""
        self.used_tokens = 0
        self._users.clear()
        self._idle.clear()
