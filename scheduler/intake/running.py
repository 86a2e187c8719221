"""What a site knows of one attempt while it lives there."""

from __future__ import annotations

import msgspec

from orchestrator.ledger.usage import Counted, EdgeCounts, Outcome, PoolCounts
from orchestrator.policy.ids import EdgeId
from orchestrator.wire.frames import Open
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.grants import Grants
from scheduler.intake.ports import SessionPort


class SitePool(msgspec.Struct, frozen=True, eq=False):
    """One pool of a site."""

    dispatcher: Dispatcher
    grants: Grants[SessionPort]


class Running(msgspec.Struct, eq=False):
    """One attempt, from its start until both its work has ended and its edge has settled."""

    port: SessionPort
    opened: Open
    edge: EdgeId
    work: int
    until_us: int
    """When its time is over."""
    pool: SitePool | None
    """None where the site does not have it."""
    prompt_chars: int = 0
    """Of all its texts, once it was permitted or refused."""
    arriving: bool = True
    """Whether it is not in the queue yet."""
    accepted: bool = False
    prompt: int = 0
    cached: int = 0
    generated: int = 0
    outcome: Outcome | None = None
    """Set when the work has ended."""
    counted: Counted = Counted.IDS
    settled: bool = False
    edge_counts: EdgeCounts | None = None
    sent: int = 0
    stopped: bool = False
    late: bool = False
    """Whether its time is over, and its replica told to stop."""

    def counts(self) -> PoolCounts:
        """What the pool counted so far. What was sent, the session knows."""
        return PoolCounts(self.prompt, self.cached, self.generated)
