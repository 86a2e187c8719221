"""The queue of one pool and the choice of a replica, as a pure state machine: events in, instructions out.

Work is given to the replica with the most free slots for its size, never to one that is silent. The queue is bounded;
what does not fit is refused with a sentence. A replica that falls silent for long, or closes its stream, is gone, and
what ran there is broken: it may have begun.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from enum import Enum

from orchestrator.policy.ids import ModelId, PoolId, ReplicaId

SUSPECT_MS = 750
"""Silence after which a replica gets no new work."""
DEAD_MS = 2_500
"""Silence after which a replica is given up."""


@dataclass(frozen=True, slots=True)
class Assign:
    """Give this work to that replica."""

    work: int
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class Withdraw:
    """Tell that replica to stop this work."""

    work: int
    replica: ReplicaId


@dataclass(frozen=True, slots=True)
class Refuse:
    """This work was not started and will not be."""

    work: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Break:
    """This work may have begun, and is lost."""

    work: int
    code: str
    detail: str


@dataclass(frozen=True, slots=True)
class Expel:
    """Close the connection of that replica: it was given up."""

    replica: ReplicaId
    incarnation: str


Instruction = Assign | Withdraw | Refuse | Break | Expel


class ReplicaCondition(Enum):
    """How a replica is, for `status`."""

    UP = "up"
    SUSPECT = "suspect"
    DOWN = "down"


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

    def free(self) -> int:
        """Return how many slots are free."""
        return self.slots - len(self.work)


@dataclass(frozen=True, slots=True)
class _Waiting:
    work: int
    model: ModelId
    until_us: int


@dataclass(frozen=True, slots=True)
class PoolState:
    """What is reported of a pool."""

    replicas: int
    slots: int
    running: int
    waiting: int
    waiting_max: int


class Dispatcher:
    """Queue and replicas of one pool."""

    def __init__(self, pool: PoolId, waiting_max: int, dead_ms: int = DEAD_MS) -> None:
        self.pool = pool
        self.waiting_max = waiting_max
        self.starts: dict[ReplicaId, int] = {}
        """How often each replica came up, ever."""
        self._dead_ms = dead_ms
        self._replicas: dict[ReplicaId, Replica] = {}
        self._waiting: deque[_Waiting] = deque()  # bounded: waiting_max
        self._where: dict[int, ReplicaId] = {}

    def state(self) -> PoolState:
        """Return what is reported of this pool."""
        up = [replica for replica in self._replicas.values() if replica.healthy]
        return PoolState(
            len(up),
            sum(replica.slots for replica in up),
            sum(len(replica.work) for replica in up),
            len(self._waiting),
            self.waiting_max,
        )

    def replicas(self, now_us: int) -> list[tuple[Replica, ReplicaCondition]]:
        """Return every replica that is known, with its condition."""
        return [(replica, self._condition(replica, now_us)) for replica in self._replicas.values()]

    def joined(self, replica: Replica) -> list[Instruction]:
        """A replica dialled in. An older incarnation of it is gone."""
        out: list[Instruction] = []
        if replica.id in self._replicas:
            out += self.left(replica.id, self._replicas[replica.id].incarnation)
        self._replicas[replica.id] = replica
        self.starts[replica.id] = self.starts.get(replica.id, 0) + 1
        return out + self._assign(replica.heard_us)

    def left(self, replica_id: ReplicaId, incarnation: str) -> list[Instruction]:
        """A replica is gone. What ran there is broken."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.incarnation != incarnation:
            return []
        del self._replicas[replica_id]
        detail = "The replica that made the answer is gone."
        for work in replica.work:
            self._where.pop(work, None)
        return [Break(work, "engine_failed", detail) for work in sorted(replica.work)]

    def holder(self, work: int) -> ReplicaId | None:
        """Return the replica that was given `work` and has not ended it, or None."""
        return self._where.get(work)

    def beat(self, replica_id: ReplicaId, incarnation: str, healthy: bool | None, now_us: int) -> list[Instruction]:
        """A sign of life. `healthy` is None when it does not say how the engine is."""
        replica = self._replicas.get(replica_id)
        if replica is None or replica.incarnation != incarnation:
            return []
        replica.heard_us = now_us
        replica.healthy = replica.healthy if healthy is None else healthy
        return self._assign(now_us)

    def submit(self, work: int, model: ModelId, budget_ms: int, now_us: int) -> list[Instruction]:
        """New permitted work. It runs, waits, or is refused."""
        if not self._replicas:
            return [Refuse(work, "no_replica", f"The pool {self.pool} has no replica that is up.")]
        if all(replica.model != model for replica in self._replicas.values()):
            return [Refuse(work, "model_not_served", f"The pool {self.pool} does not serve this model now.")]
        self._waiting.append(_Waiting(work, model, now_us + budget_ms * 1000))
        out = self._assign(now_us)
        if len(self._waiting) > self.waiting_max:
            last = self._waiting.pop()
            out.append(Refuse(last.work, "engine_busy", f"The queue of pool {self.pool} is full."))
        return out

    def ended(self, work: int, now_us: int) -> list[Instruction]:
        """A replica ended this work, however. Its slot is free."""
        replica_id = self._where.pop(work, None)
        if replica_id is not None and replica_id in self._replicas:
            self._replicas[replica_id].work.discard(work)
        return self._assign(now_us)

    def cancel(self, work: int) -> list[Instruction]:
        """Nobody waits for this work any more. When it has not started, it is refused at once."""
        replica_id = self._where.get(work)
        if replica_id is not None:
            return [Withdraw(work, replica_id)]
        kept = [waiting for waiting in self._waiting if waiting.work != work]
        if len(kept) == len(self._waiting):
            return []
        self._waiting = deque(kept)  # bounded: waiting_max
        return [Refuse(work, "engine_busy", "Cancelled while it waited.")]

    def tick(self, now_us: int) -> list[Instruction]:
        """Time passed: give up the silent, and refuse what waited too long."""
        out: list[Instruction] = []
        for replica in list(self._replicas.values()):
            if replica.beats and now_us - replica.heard_us > self._dead_ms * 1000:
                out += self.left(replica.id, replica.incarnation)
                out.append(Expel(replica.id, replica.incarnation))
        late = [waiting for waiting in self._waiting if waiting.until_us <= now_us]
        if late:
            self._waiting = deque(w for w in self._waiting if w.until_us > now_us)  # bounded: waiting_max
            out += [Refuse(w.work, "engine_busy", f"No slot of pool {self.pool} was free in time.") for w in late]
        return out + self._assign(now_us)

    def _condition(self, replica: Replica, now_us: int) -> ReplicaCondition:
        if not replica.healthy:
            return ReplicaCondition.DOWN
        silent = replica.beats and now_us - replica.heard_us > SUSPECT_MS * 1000
        return ReplicaCondition.SUSPECT if silent else ReplicaCondition.UP

    def _assign(self, now_us: int) -> list[Instruction]:
        """Give waiting work to free replicas, first come first served per model."""
        if not self._waiting or all(replica.free() <= 0 for replica in self._replicas.values()):
            return []
        out: list[Instruction] = []
        kept: deque[_Waiting] = deque()  # bounded: waiting_max
        for waiting in self._waiting:
            replica = self._best(waiting.model, now_us)
            if replica is None:
                kept.append(waiting)
                continue
            replica.work.add(waiting.work)
            self._where[waiting.work] = replica.id
            out.append(Assign(waiting.work, replica.id))
        self._waiting = kept
        return out

    def _best(self, model: ModelId, now_us: int) -> Replica | None:
        fit = [
            replica
            for replica in self._replicas.values()
            if replica.model == model
            and replica.free() > 0
            and self._condition(replica, now_us) is ReplicaCondition.UP
        ]
        # The largest free share; ties by name, so that the choice can be replayed.
        return min(fit, key=lambda r: (len(r.work) * 1_000 // r.slots, r.id), default=None)
