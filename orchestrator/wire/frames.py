"""The frames of a session between an edge and an intake, as values. `convert` turns them into protobuf and back."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.engines.generation import Generation
from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.evidence.citation import Citation
from orchestrator.evidence.inputs import InputManifest
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import (
    AttemptId,
    DecisionId,
    EdgeId,
    KeyId,
    PoolId,
    ReplicaId,
    RequestId,
    SchedulerId,
    SessionId,
)

SESSION_VERSION = 1
SESSION_VERSION_MIN = 1

FRAME_BYTES = 64
"""Counted against credit for every frame of tokens, however short: a frame costs more to hold than its text."""
PIECE_BYTES_MAX = 1_024
"""Tokens that go out together or not at all; a longer delta of an engine is cut."""
CREDIT_BYTES_MIN = 4 * 1024
"""The least first credit. Below it a receiver that gives back in steps could wait for a piece that never fits."""


def held_bytes(text: str, ids: tuple[int, ...]) -> int:
    """Return what a frame of tokens counts against credit. Both ends count with this."""
    return FRAME_BYTES + len(text.encode()) + 4 * len(ids)


@dataclass(frozen=True, slots=True)
class Hello:
    """First frame of a session, from the edge."""

    version_min: int
    version_max: int
    edge: EdgeId
    session: SessionId
    epoch: int
    now_ms: int
    streams_max: int


@dataclass(frozen=True, slots=True)
class Open:
    """A permitted attempt. Holds the payload; its repr does not, because `Generation`'s does not."""

    stream: int
    attempt: AttemptId
    decision: DecisionId
    request: RequestId
    pool: PoolId
    generation: Generation
    facts: Facts
    citation: Citation
    key_id: KeyId
    signature: bytes
    credit_bytes: int
    budget_ms: int
    inputs: InputManifest | None = None
    """What went in, where the law wants it proven. The signature covers its digest."""
    continues: AttemptId | None = None
    """The attempt that was cut, where this one takes its place."""


@dataclass(frozen=True, slots=True)
class Credit:
    """More bytes that the edge is ready to hold for one stream."""

    stream: int
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Cancel:
    """The edge wants no more of this stream."""

    stream: int
    attempt: AttemptId


@dataclass(frozen=True, slots=True)
class Settle:
    """The edge's last word on a stream: what it received and delivered."""

    stream: int
    attempt: AttemptId
    counts: EdgeCounts


@dataclass(frozen=True, slots=True)
class Beat:
    """A sign of life. `answers` is the number that is answered, or 0."""

    number: int
    answers: int = 0


@dataclass(frozen=True, slots=True)
class Load:
    """State of one pool. Numbered, so that an old report never replaces a newer one."""

    number: int
    pool: PoolId
    replicas: int
    slots: int
    running: int
    waiting: int
    waiting_max: int
    queued_tokens: int | None = None
    """Prompt tokens that are accepted and not yet taken in; None is unknown, as below."""
    kv_tokens: int | None = None
    kv_used_tokens: int | None = None
    openings: int | None = None
    """Attempts that the receiving edge may start before the next report; None where none are granted."""


@dataclass(frozen=True, slots=True)
class Welcome:
    """First answer of the intake."""

    version: int
    scheduler: SchedulerId
    instance: str
    now_ms: int
    streams_max: int
    loads: tuple[Load, ...]


@dataclass(frozen=True, slots=True)
class Accepted:
    """The second permit allowed it and a replica has it."""

    stream: int
    attempt: AttemptId
    replica: ReplicaId
    continuing: Continuing = NOT_CONTINUED
    """What the model is, and what the replica could continue its answer by."""


@dataclass(frozen=True, slots=True)
class Refused:
    """Nothing was generated: `not_started`, free of charge."""

    stream: int
    attempt: AttemptId
    code: str
    detail: str
    param: str | None = None
    rules: tuple[str, ...] = ()
    retry_after_ms: int | None = None


@dataclass(frozen=True, slots=True)
class Tokens:
    """Some more of the answer. Payload: its repr holds no text."""

    stream: int
    attempt: AttemptId
    first: int
    """Index of the first token of this frame in the answer."""
    count: int
    text: str
    ids: tuple[int, ...]

    def __repr__(self) -> str:
        return f"Tokens(stream={self.stream}, first={self.first}, count={self.count})"


@dataclass(frozen=True, slots=True)
class Done:
    """The answer is complete, or was cancelled as asked."""

    stream: int
    attempt: AttemptId
    reason: str
    """A value of `engines.generation.FinishReason`."""
    counts: PoolCounts
    queued_us: int | None = None
    """How long it waited at the pool before its prompt was taken in; None where nobody knows."""
    beside: int | None = None
    """Streams that decoded beside it in its replica; None where nobody knows."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The answer was cut after it may have begun."""

    stream: int
    attempt: AttemptId
    code: str
    detail: str
    counts: PoolCounts


@dataclass(frozen=True, slots=True)
class Draining:
    """The intake takes no new work; running answers have this long."""

    grace_ms: int


EdgeFrame = Hello | Open | Credit | Cancel | Settle | Beat
IntakeFrame = Welcome | Accepted | Refused | Tokens | Done | Broken | Load | Beat | Draining
StreamFrame = Accepted | Refused | Tokens | Done | Broken
"""What an intake says of one stream."""
