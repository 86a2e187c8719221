"""The frames of a session between an edge and an intake, as values. `convert` turns them into protobuf and back."""

from __future__ import annotations

from typing import final

import msgspec

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

SESSION_VERSION = 2
SESSION_VERSION_MIN = 2
"""Version 1 could not reattach, and was never released."""

FRAME_BYTES = 64
"""Counted against credit for every frame of tokens, however short: a frame costs more to hold than its text."""
PIECE_BYTES_MAX = 1_024
"""Tokens that go out together or not at all; a longer delta of an engine is cut."""
CREDIT_BYTES_MIN = 4 * 1024
"""The least first credit. Below it a receiver that gives back in steps could wait for a piece that never fits."""
MESSAGE_BYTES_MAX = 8 * 1024 * 1024
"""Largest message either way. gRPC's own default is 4 MiB on receive and none on send."""
STREAMS_MAX = 4_096
"""Streams that one session holds at once."""
SETTLES_MAX = 32_768
"""Settlements that an edge holds until the intake says that it took them."""


def held_bytes(text: str, ids: tuple[int, ...]) -> int:
    """Return what a frame of tokens counts against credit. Both ends count with this."""
    return FRAME_BYTES + len(text.encode()) + (4 * len(ids) if ids else 0)


class Held(msgspec.Struct, frozen=True):
    """What the edge has of one stream with which it wants to go on."""

    stream: int
    attempt: AttemptId
    accepted: bool
    """Whether it was told who makes the answer."""
    next_token: int
    """Index of the first token that it does not have."""
    received_bytes: int
    """What the frames of tokens that it has counted against credit: a place that is exact where frames of text
    bring no token of their own."""
    limit_bytes: int
    """All credit that it ever gave, the first included."""
    cancelled: bool
    ended: bool
    """Whether it has the last frame; only its settlement is still to come."""


class Settle(msgspec.Struct, frozen=True):
    """The edge's last word on a stream: what it received and delivered."""

    stream: int
    attempt: AttemptId
    counts: EdgeCounts


class Hello(msgspec.Struct, frozen=True):
    """First frame of a transport, from the edge. `epoch` is new with every transport of the session."""

    version_min: int
    version_max: int
    edge: EdgeId
    session: SessionId
    epoch: int
    now_ms: int
    streams_max: int
    continues: bool = False
    """Whether the session has lived before, on a transport that is gone."""
    held: tuple[Held, ...] = ()
    """Its streams that are not settled."""
    settled: tuple[Settle, ...] = ()
    """Settlements that may have been lost with the old transport, in order."""


class Open(msgspec.Struct, frozen=True):
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


class Credit(msgspec.Struct, frozen=True):
    """More bytes that the edge is ready to hold for one stream."""

    stream: int
    size_bytes: int


class Cancel(msgspec.Struct, frozen=True):
    """The edge wants no more of this stream."""

    stream: int
    attempt: AttemptId


class Beat(msgspec.Struct, frozen=True):
    """A sign of life. `answers` is the number that is answered, or 0."""

    number: int
    answers: int = 0
    settled: int = 0
    """In an answer of the intake: how many settlements it took since the greeting."""


class Load(msgspec.Struct, frozen=True):
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


class Process(msgspec.Struct, frozen=True):
    """Which of the processes of an intake: they listen at one address, and each has sessions and slots of its own."""

    index: int = 0
    """From 0."""
    count: int = 1
    """How many there are."""


ALONE = Process()


class Welcome(msgspec.Struct, frozen=True):
    """First answer of the intake. `instance` is new with every start of it."""

    version: int
    scheduler: SchedulerId
    instance: str
    now_ms: int
    streams_max: int
    loads: tuple[Load, ...]
    continued: bool = False
    """Whether the intake knows the session and goes on with it. When not, the session is over."""
    last_stream: int = 0
    """The last stream that it was asked for; later ones were lost on their way and may be sent again."""
    gone: tuple[int, ...] = ()
    """Streams with which it cannot go on."""
    process: Process = ALONE
    """Which process of the intake answers."""


@final
class Accepted(msgspec.Struct, frozen=True):
    """The second permit allowed it and a replica has it."""

    stream: int
    attempt: AttemptId
    replica: ReplicaId
    continuing: Continuing = NOT_CONTINUED
    """What the model is, and what the replica could continue its answer by."""


@final
class Refused(msgspec.Struct, frozen=True):
    """Nothing was generated: `not_started`, free of charge."""

    stream: int
    attempt: AttemptId
    code: str
    detail: str
    param: str | None = None
    rules: tuple[str, ...] = ()
    retry_after_ms: int | None = None


@final
class Tokens(msgspec.Struct, frozen=True):
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


@final
class Done(msgspec.Struct, frozen=True):
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


@final
class Broken(msgspec.Struct, frozen=True):
    """The answer was cut after it may have begun."""

    stream: int
    attempt: AttemptId
    code: str
    detail: str
    counts: PoolCounts


class Draining(msgspec.Struct, frozen=True):
    """The intake takes no new work; running answers have this long."""

    grace_ms: int


EdgeFrame = Hello | Open | Credit | Cancel | Settle | Beat
IntakeFrame = Welcome | Accepted | Refused | Tokens | Done | Broken | Load | Beat | Draining
StreamFrame = Accepted | Refused | Tokens | Done | Broken
"""What an intake says of one stream."""
