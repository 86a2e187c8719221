"""Frames between a replica and its intake, between values and protobuf. Total both ways."""

from __future__ import annotations

import msgspec

from orchestrator.engines.generation import Generation, Resume
from orchestrator.engines.identity import Identity
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId, is_name
from orchestrator.wire.convert_facts import WireError, text
from orchestrator.wire.convert_generation import (
    generation_in,
    generation_out,
    pool_counts_in,
    pool_counts_out,
    reason_in,
    resume_in,
)
from protos.tidegate.v1 import replica_pb2 as pb

REPLICA_VERSION = 1
SLOTS_MAX = 4_096


class ReplicaHello(msgspec.Struct, frozen=True):
    """First frame of a replica."""

    version: int
    replica: ReplicaId
    pool: PoolId
    incarnation: str
    model: ModelId
    slots: int
    context_tokens: int
    identity: Identity
    token: str
    node_labels: dict[str, str]
    resume: Resume = Resume.NONE
    """What it continues an answer by."""

    def __repr__(self) -> str:
        return f"ReplicaHello({self.replica}, {self.incarnation})"


class WorkStarted(msgspec.Struct, frozen=True):
    """The prompt was counted."""

    work: int
    prompt_tokens: int


class WorkTokens(msgspec.Struct, frozen=True):
    """Tokens were made. Payload: its repr holds no text."""

    work: int
    text: str
    ids: tuple[int, ...]
    count: int

    def __repr__(self) -> str:
        return f"WorkTokens(work={self.work}, count={self.count})"


class WorkFinished(msgspec.Struct, frozen=True):
    """The answer is complete, or was stopped as asked."""

    work: int
    reason: str
    counts: PoolCounts


class WorkRefused(msgspec.Struct, frozen=True):
    """The engine did no work."""

    work: int
    code: str
    detail: str
    param: str | None


class WorkFailed(msgspec.Struct, frozen=True):
    """The engine failed after it may have begun."""

    work: int
    code: str
    detail: str


class ReplicaBeat(msgspec.Struct, frozen=True):
    """A sign of life: the engine's step counter, and whether the engine is well."""

    step: int
    running: int
    waiting: int
    healthy: bool
    queued_tokens: int | None = None
    """Prompt tokens that wait; None is unknown, as below."""
    kv_tokens: int | None = None
    kv_used_tokens: int | None = None


class WorkAssign(msgspec.Struct, frozen=True):
    """Run this."""

    work: int
    generation: Generation


class WorkCancel(msgspec.Struct, frozen=True):
    """Stop that."""

    work: int


class ReplicaWelcome(msgspec.Struct, frozen=True):
    """The intake took the replica in."""

    version: int
    scheduler: str


ReplicaFrame = ReplicaHello | WorkStarted | WorkTokens | WorkFinished | WorkRefused | WorkFailed | ReplicaBeat
WorkFrame = WorkAssign | WorkCancel | ReplicaWelcome


def replica_frame_out(frame: ReplicaFrame) -> pb.ReplicaFrame:
    """Return the message of a frame of a replica."""
    match frame:
        case WorkTokens():
            tokens = pb.WorkTokens(work=frame.work, text=frame.text, ids=frame.ids, count=frame.count)
            return pb.ReplicaFrame(tokens=tokens)
        case ReplicaBeat():
            beat = pb.ReplicaBeat(
                step=frame.step,
                running=frame.running,
                waiting=frame.waiting,
                healthy=frame.healthy,
                queued_tokens=frame.queued_tokens,
                kv_tokens=frame.kv_tokens,
                kv_used_tokens=frame.kv_used_tokens,
            )
            return pb.ReplicaFrame(beat=beat)
        case WorkStarted():
            return pb.ReplicaFrame(started=pb.WorkStarted(work=frame.work, prompt_tokens=frame.prompt_tokens))
        case WorkFinished():
            finished = pb.WorkFinished(work=frame.work, reason=frame.reason)
            pool_counts_out(frame.counts, finished.counts)
            return pb.ReplicaFrame(finished=finished)
        case WorkRefused():
            refused = pb.WorkRefused(
                work=frame.work, code=frame.code, detail=frame.detail, param=frame.param or ""
            )
            return pb.ReplicaFrame(refused=refused)
        case WorkFailed():
            return pb.ReplicaFrame(failed=pb.WorkFailed(work=frame.work, code=frame.code, detail=frame.detail))
        case ReplicaHello():
            return pb.ReplicaFrame(hello=_hello_out(frame))


def replica_frame_in(message: pb.ReplicaFrame) -> ReplicaFrame:
    """Return the frame of a message of a replica. Raises WireError, also on a kind that we do not know."""
    match message.WhichOneof("kind"):
        case "tokens":
            t = message.tokens
            return WorkTokens(t.work, t.text, tuple(t.ids), t.count)
        case "beat":
            b = message.beat
            queued = b.queued_tokens if b.HasField("queued_tokens") else None
            kv_tokens = b.kv_tokens if b.HasField("kv_tokens") else None
            kv_used = b.kv_used_tokens if b.HasField("kv_used_tokens") else None
            return ReplicaBeat(b.step, b.running, b.waiting, b.healthy, queued, kv_tokens, kv_used)
        case "started":
            return WorkStarted(message.started.work, message.started.prompt_tokens)
        case "finished":
            f = message.finished
            return WorkFinished(f.work, reason_in("finished.reason", f.reason), pool_counts_in(f.counts))
        case "refused":
            r = message.refused
            return WorkRefused(r.work, text("refused.code", r.code), r.detail, r.param or None)
        case "failed":
            failed = message.failed
            return WorkFailed(failed.work, text("failed.code", failed.code), failed.detail)
        case "hello":
            return _hello_in(message.hello)
        case _:
            raise WireError("frame", "a kind of this version")


def work_frame_out(frame: WorkFrame) -> pb.WorkFrame:
    """Return the message of a frame to a replica."""
    match frame:
        case WorkAssign():
            message = pb.WorkFrame()
            message.assign.work = frame.work
            generation_out(frame.generation, message.assign.generation)
            return message
        case WorkCancel():
            return pb.WorkFrame(cancel=pb.WorkCancel(work=frame.work))
        case ReplicaWelcome():
            return pb.WorkFrame(welcome=pb.ReplicaWelcome(version=frame.version, scheduler=frame.scheduler))


def work_frame_in(message: pb.WorkFrame) -> WorkFrame:
    """Return the frame of a message to a replica. Raises WireError, also on a kind that we do not know."""
    match message.WhichOneof("kind"):
        case "assign":
            return WorkAssign(message.assign.work, generation_in(message.assign.generation))
        case "cancel":
            return WorkCancel(message.cancel.work)
        case "welcome":
            return ReplicaWelcome(message.welcome.version, message.welcome.scheduler)
        case _:
            raise WireError("frame", "a kind of this version")


def _hello_out(frame: ReplicaHello) -> pb.ReplicaHello:
    identity = frame.identity
    return pb.ReplicaHello(
        version=frame.version,
        replica=frame.replica,
        pool=frame.pool,
        incarnation=frame.incarnation,
        model=frame.model,
        slots=frame.slots,
        context_tokens=frame.context_tokens,
        identity=pb.ModelIdentity(
            weights_sha256=identity.weights_sha256,
            tokenizer_sha256=identity.tokenizer_sha256,
            template_sha256=identity.template_sha256,
            engine_family=identity.engine_family,
            quantisation=identity.quantisation,
        ),
        token=frame.token,
        node_labels=frame.node_labels,
        resume=frame.resume.value,
    )


def _hello_in(message: pb.ReplicaHello) -> ReplicaHello:
    if not is_name(message.replica):
        raise WireError("hello.replica", "a name")
    if not 1 <= message.slots <= SLOTS_MAX:
        raise WireError("hello.slots", f"1 to {SLOTS_MAX}")
    identity = message.identity
    return ReplicaHello(
        message.version,
        ReplicaId(message.replica),
        PoolId(text("hello.pool", message.pool)),
        text("hello.incarnation", message.incarnation),
        ModelId(text("hello.model", message.model)),
        message.slots,
        message.context_tokens,
        Identity(
            identity.weights_sha256,
            identity.tokenizer_sha256,
            identity.template_sha256,
            identity.engine_family,
            identity.quantisation,
        ),
        message.token,
        dict(message.node_labels),
        resume_in("hello.resume", message.resume),
    )
