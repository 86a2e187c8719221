"""One attempt on its way: what leaves, what is counted of it, and what comes back, each frame in its time."""

from __future__ import annotations

from typing import Protocol

import msgspec

from orchestrator.engines.generation import Generation
from orchestrator.evidence.citation import Citation
from orchestrator.evidence.inputs import InputManifest
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import AttemptId, DecisionId, KeyId, PoolId, RequestId
from orchestrator.wire.deadlines import AS_SET, Deadlines, Waits
from orchestrator.wire.frames import Broken, Refused, StreamFrame


class Tally(msgspec.Struct):
    """What the edge counts of one attempt, as it happens."""

    received: int = 0
    delivered: int = 0
    beyond: int = 0
    """Of these, what was more than the answer may have: the tenant has its text for nothing."""

    def counts(self) -> EdgeCounts:
        """Return the counts as they stand. What came beyond the answer is delivered to nobody's account."""
        within = self.delivered - self.beyond
        return EdgeCounts(self.received, within if within > 0 else 0)


class Sendable(msgspec.Struct, frozen=True):
    """A permitted, recorded and signed attempt, ready to leave."""

    attempt: AttemptId
    decision: DecisionId
    request: RequestId
    pool: PoolId
    generation: Generation
    facts: Facts
    citation: Citation
    key_id: KeyId
    signature: bytes
    budget_ms: int
    """What is left of the request's time. Whoever works for it further on stops when it is over."""
    inputs: InputManifest | None = None
    waits: Waits = AS_SET
    continues: AttemptId | None = None
    """The attempt that was cut, where this one takes its place."""


class Sending(Protocol):
    """An attempt that has left. Whoever holds it closes it, however it ends: nothing else stops the work."""

    async def next(self, now_us: int) -> StreamFrame | None:
        """Return the next frame, and None after the terminal one. `now_us` is when it is asked for.

        Tokens count as delivered once the frame after them is asked for. Where the attempt's time is over the work is
        stopped, and the terminal frame says which bound it was. After a call that was cancelled there is only `close`.
        """

    async def close(self) -> None:
        """Nobody wants more of it: what has not ended is cancelled. Done twice, it counts once."""


class Unsent:
    """An attempt that found no way out."""

    def __init__(self, attempt: AttemptId, detail: str, code: str = "engine_unreachable") -> None:
        self._refused: Refused | None = Refused(0, attempt, code, detail)

    async def next(self, now_us: int) -> StreamFrame | None:
        """Return why, once."""
        refused, self._refused = self._refused, None
        return refused

    async def close(self) -> None:
        """There is nothing to stop."""


def overdue(attempt: AttemptId, deadlines: Deadlines) -> Broken:
    """Return the end of an attempt whose time is over."""
    code, sentence = deadlines.over()
    return Broken(0, attempt, code, sentence, PoolCounts())
