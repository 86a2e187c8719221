"""One replica of a pool, as its queue sees it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.policy.ids import ModelId, ReplicaId
from scheduler.intake.choice import Asked


class ReplicaCondition(Enum):
    """How a replica is, for `status`."""

    UP = "up"
    SUSPECT = "suspect"
    OUTLIER = "outlier"
    """Far worse than its siblings: it gets one trial at a time."""
    DOWN = "down"


@dataclass(frozen=True, slots=True)
class Told:
    """What a replica says of itself in a beat, or its engine on its page. None is unknown, and unknown is not zero."""

    queued_tokens: int | None = None
    """Prompt tokens that are accepted and not yet taken in."""
    kv_tokens: int | None = None
    """Tokens whose keys and values fit."""
    kv_used_tokens: int | None = None
    others_running: int = 0
    """Requests in the engine's batch that are not ours: it may be shared."""
    others_waiting: int = 0
    siblings_slots: int = 0
    """So many of these others may be work of sibling processes in slots that are theirs: they take none of ours."""


@dataclass(slots=True)
class Replica:
    """One engine serving one model, as the queue sees it."""

    id: ReplicaId
    incarnation: str
    model: ModelId
    slots: int
    heard_us: int
    healthy: bool = True
    beats: bool = True
    """Whether it beats; an engine reached by probes does not, and is never silent."""
    work: set[int] = field(default_factory=set)
    told: Told = Told()
    out: bool = False
    """Whether it is an outlier among its siblings, so that its free slots are none."""
    continuing: Continuing = NOT_CONTINUED
    """What its model is, and what it continues an answer by."""

    def fits(self, asked: Asked) -> bool:
        """Whether it can do this work at all: its model and, of an answer that goes on, its very identity."""
        return self.model == asked.model and (asked.needs is None or asked.needs == self.continuing)

    def taken(self) -> int:
        """Return how many slots are taken, by ours and by what others have in the engine."""
        told = self.told
        others = max(0, told.others_running + told.others_waiting - told.siblings_slots)
        return min(self.slots, len(self.work) + others)

    def free(self) -> int:
        """Return how many slots are free."""
        return self.slots - self.taken()
