"""One replica: continuous batching with chunked prefill, computed from change to change instead of token by token.

The batch works in steps (`Gpu`). Each step gives one token to every stream that decodes and takes in one chunk of the
prompt in hand, so between two changes all steps are alike, and one jump covers them all. A jump ends at the step in
which the first stream ends, or the prompt is taken in, or a newcomer may enter: as in an engine, everything changes
between steps only. Counting steps, each stream ends at a step that is known when it begins to decode, so a heap orders
the ends and every event costs O(log n). Inside, times are whole nanoseconds: nothing is rounded but what is told.

Prompts are taken in one at a time, first come first served, and a request enters the batch when its prompt is begun
(vLLM's scheduler does so once a chunk fills the step's budget): when a slot is free and memory is. The first token
comes out of the step that takes in the last of the prompt. A request that arrives between steps waits for the next.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from heapq import heappop, heappush

from orchestrator.placement.replay.memory import Holding, Memory
from orchestrator.placement.replay.world import Gpu, PoolReport, SimRequest

NEVER_US = 1 << 62
"""The next event of whoever has none."""


@dataclass(slots=True, eq=False)
class Attempt:
    """One send of a request to one pool, and what became of it there. -1 is a time or a replica that is not yet."""

    request: SimRequest
    edge: int
    """The edge that sent it."""
    pool: int
    asked: int
    """The replica that its sender named, or -1."""
    sent_us: int
    replica: int = -1
    reached_us: int = -1
    """When it reached the pool."""
    begun_us: int = -1
    """When its prompt was begun, which is when it entered the batch."""
    first_us: int = -1
    """When its first token left the pool."""
    shown_us: int = -1
    """When its first token reaches the edge."""
    ended_us: int = -1
    """When its last token left the pool, or it was refused or cut."""
    cached_tokens: int = 0
    output_tokens: int = 0
    counted_tokens: int = 0
    """Uncached prompt tokens as counted on arrival at the replica."""
    together: int = 0
    refused: bool = False
    broken: bool = False
    holding: Holding | None = None
    report: PoolReport | None = None
    """How its pool was when it ended, where its router wants that with each reply."""


class Replica:
    """One replica of a pool. The loop calls `advance` at `next_us`, and whenever else it likes up to then."""

    __slots__ = (
        "_begun_ns",
        "_chunk_tokens",
        "_decoding",
        "_end_ns",
        "_gpu",
        "_left_tokens",
        "_line",
        "_line_tokens",
        "_number",
        "_present_max",
        "_span",
        "_step_ns",
        "_steps",
        "_taking",
        "armed_us",
        "index",
        "memory",
        "next_us",
        "pool",
        "present",
        "running",
    )

    def __init__(self, pool: int, index: int, gpu: Gpu, block_tokens: int, waiting_max: int) -> None:
        """Start idle and empty. It holds at most `gpu.slots` running and `waiting_max` beyond them."""
        self.pool = pool
        self.index = index
        self.memory = Memory(gpu, block_tokens)
        self.next_us = NEVER_US
        """When something happens here by itself."""
        self.armed_us = NEVER_US
        """For the loop: the time at which it will call."""
        self.running = 0
        """Streams in the batch, the one whose prompt is being taken in included."""
        self.present = 0
        """Running and waiting."""
        self._gpu = gpu
        self._present_max = gpu.slots + waiting_max
        self._line: deque[Attempt] = deque()  # bounded: by _present_max, on arrival
        self._line_tokens = 0
        self._decoding: list[tuple[int, int, Attempt]] = []
        """Heap of (step at which it ends, number, stream)."""
        self._number = 0
        self._taking: Attempt | None = None
        self._left_tokens = 0
        """Of the prompt in hand, at the beginning of the jump."""
        self._chunk_tokens = gpu.chunk_tokens
        self._steps = 0
        """Steps done, at the beginning of the jump."""
        self._begun_ns = 0
        """When the jump begins."""
        self._span = 0
        """Steps of the jump; 0 while idle."""
        self._step_ns = 0
        """Time of each step of the jump but the last, which may take in less."""
        self._end_ns = 0
        """When the jump ends, or the last one ended."""

    @property
    def waiting(self) -> int:
        """Requests that wait to enter the batch."""
        return self.present - self.running

    def queued_tokens(self, now_us: int) -> int:
        """Return the uncached prompt tokens not yet taken in; of those that wait, as counted on arrival."""
        if self._taking is None:
            return self._line_tokens
        return self._line_tokens + self._left_tokens - self._steps_gone(now_us) * self._chunk_tokens

    def submit(self, attempt: Attempt, now_us: int) -> bool:
        """Take a request in line; False when the line is full or it can never fit in memory."""
        request, memory = attempt.request, self.memory
        if self.present >= self._present_max or request.prompt_tokens + request.output_tokens > memory.room_tokens:
            return False
        attempt.replica = self.index
        attempt.counted_tokens = request.prompt_tokens - memory.cached_tokens(request)
        self._line.append(attempt)
        self._line_tokens += attempt.counted_tokens
        self.present += 1
        if self._taking is None and len(self._line) == 1 and self.running < self._gpu.slots:
            self._welcome(now_us * 1000)
        return True

    def advance(self, now_us: int) -> tuple[list[Attempt], list[Attempt]]:
        """Do what is due; return the streams whose first token came out, and those that ended."""
        firsts: list[Attempt] = []
        ends: list[Attempt] = []
        while self.next_us <= now_us:
            self._finish_jump(firsts, ends)
            self._plan(self._end_ns)
        return firsts, ends

    def break_all(self, now_us: int) -> list[Attempt]:
        """The replica is gone: return what was there, marked refused if it waited and broken if it ran. Back cold."""
        gone = self._steps_gone(now_us)
        steps = self._steps + gone
        for end_step, _, attempt in self._decoding:
            attempt.output_tokens = attempt.request.output_tokens - max(0, end_step - steps)
        cut = [attempt for _, _, attempt in sorted(self._decoding, key=lambda stream: stream[1])]
        if self._taking is not None:
            cut.append(self._taking)
        for attempt in cut:
            attempt.broken = True
        for attempt in self._line:
            attempt.refused = True
        cut.extend(self._line)
        for attempt in cut:
            attempt.holding = None
            attempt.ended_us = now_us
        self._line.clear()
        self._decoding.clear()
        self._taking = None
        self._line_tokens = self._left_tokens = self.running = self.present = self._span = 0
        self._end_ns = now_us * 1000
        self.next_us = NEVER_US
        self.memory.clear()
        return cut

    def _steps_gone(self, now_us: int) -> int:
        """Return the whole steps of the jump that are done; the last one is told by `advance` only."""
        gone_ns = now_us * 1000 - self._begun_ns
        if not self._span or gone_ns <= 0:
            return 0
        return min(gone_ns // self._step_ns, self._span - 1)

    def _welcome(self, now_ns: int) -> None:
        """End the jump at the next step, where a newcomer may enter. No prompt is in hand: all its steps are alike.

        Whoever comes in the microsecond in which a step begins is in time for it.
        """
        if not self._span:
            self._plan(self._end_ns if now_ns - self._end_ns < 1000 else now_ns)
            return
        steps = -((self._begun_ns + 999 - now_ns) // self._step_ns)
        if steps <= 0:
            self._plan(self._begun_ns)
        elif steps < self._span:
            self._span = steps
            self._end_ns = self._begun_ns + steps * self._step_ns
            self.next_us = -(-self._end_ns // 1000)

    def _finish_jump(self, firsts: list[Attempt], ends: list[Attempt]) -> None:
        """Count the steps of the jump, and give out what they made."""
        now_us = self.next_us
        steps = self._steps = self._steps + self._span
        decoding = self._decoding
        together = len(decoding) - 1
        while decoding and decoding[0][0] <= steps:
            self._end(heappop(decoding)[2], now_us, together, ends)
        attempt = self._taking
        if attempt is None:
            return
        self._left_tokens -= self._span * self._chunk_tokens
        if self._left_tokens > 0:
            return
        self._left_tokens = 0
        self._taking = None
        attempt.first_us = now_us
        firsts.append(attempt)
        if attempt.holding is not None:
            self.memory.keep(attempt.holding)
        more = attempt.request.output_tokens - 1
        if more > 0:
            self._number += 1
            heappush(decoding, (steps + more, self._number, attempt))
        else:
            self._end(attempt, now_us, together + 1, ends)

    def _end(self, attempt: Attempt, now_us: int, together: int, ends: list[Attempt]) -> None:
        attempt.ended_us = now_us
        attempt.output_tokens = attempt.request.output_tokens
        attempt.together = together
        if attempt.holding is not None:
            self.memory.release(attempt.holding)
            attempt.holding = None
        self.running -= 1
        self.present -= 1
        ends.append(attempt)

    def _plan(self, at_ns: int) -> None:
        """Between two steps: let the head of the line in if it may, and plan the next jump."""
        gpu, decoding = self._gpu, self._decoding
        if self._taking is None and self._line and self.running < gpu.slots:
            self._let_in(at_ns)
        step_ns = gpu.step_ns + gpu.stream_ns * len(decoding)
        span = decoding[0][0] - self._steps if decoding else 0
        if self._taking is not None:
            chunk, left = self._chunk_tokens, self._left_tokens
            chunks = -(-left // chunk)
            last_ns = step_ns + gpu.prefill_ns * (left - (chunks - 1) * chunk)
            step_ns += gpu.prefill_ns * chunk
            if span and span < chunks:
                last_ns = step_ns
            else:
                span = chunks
        elif span:
            last_ns = step_ns
        else:
            self._span = 0
            self.next_us = NEVER_US
            return
        self._span, self._step_ns, self._begun_ns = span, step_ns, at_ns
        self._end_ns = at_ns + (span - 1) * step_ns + last_ns
        self.next_us = -(-self._end_ns // 1000)

    def _let_in(self, at_ns: int) -> None:
        """Let the head of the line into the batch if memory has room: when the batch is empty at the latest."""
        attempt = self._line[0]
        holding = self.memory.admit(attempt.request)
        if holding is None:
            return
        self._line.popleft()
        self._line_tokens -= attempt.counted_tokens
        attempt.holding = holding
        attempt.begun_us = -(-at_ns // 1000)
        attempt.cached_tokens = holding.cached_tokens
        self._left_tokens = max(1, attempt.request.prompt_tokens - holding.cached_tokens)
        self._taking = attempt
        self.running += 1
