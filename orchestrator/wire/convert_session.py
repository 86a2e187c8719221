"""Frames of a session, between values and protobuf. Total both ways."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from orchestrator.engines.identity import Continuing
from orchestrator.evidence.remembered import REMEMBERED_MAX
from orchestrator.ledger.usage import EdgeCounts
from orchestrator.policy.ids import (
    AttemptId,
    DecisionId,
    Digest,
    EdgeId,
    KeyId,
    PoolId,
    ReplicaId,
    RequestId,
    SchedulerId,
    SessionId,
    is_attempt_id,
    is_decision_id,
    is_digest,
    is_request_id,
    is_session_id,
)
from orchestrator.wire import frames as f
from orchestrator.wire.convert_facts import (
    WireError,
    citation_in,
    citation_out,
    facts_of_bytes,
    facts_to_bytes,
    inputs_in,
    inputs_out,
    text,
)
from orchestrator.wire.convert_generation import (
    generation_in,
    generation_out,
    pool_counts_in,
    pool_counts_out,
    reason_in,
    resume_in,
)
from protos.tidegate.v1 import session_pb2 as pb
from protos.tidegate.v1 import usage_pb2

_EPOCH_MAX = (1 << 64) - 1
ATTEMPTS_READ_MAX = 2 * f.STREAMS_MAX
"""Attempt ids whose form was checked that are remembered: every frame of an answer names its attempt."""


def attempt_in(value: str) -> AttemptId:
    """Return an attempt id. Raises WireError."""
    if not is_attempt_id(value):
        raise WireError("attempt", "an id that starts with att_")
    return AttemptId(value)


_of_answer = lru_cache(maxsize=ATTEMPTS_READ_MAX)(attempt_in)
"""The same, where it is named again and again. An edge names an attempt twice: to remember it costs more."""


@lru_cache(maxsize=REMEMBERED_MAX)
def _maker_in(replica: str, identity: str, resume: str) -> tuple[ReplicaId, Continuing]:
    """Return who makes an answer, and what it could be continued by: a replica says the same with each answer."""
    if identity and not is_digest(identity):
        raise WireError("accepted.identity", "a digest or nothing")
    continuing = Continuing(Digest(identity) if identity else None, resume_in("accepted.resume", resume))
    return ReplicaId(text("accepted.replica", replica)), continuing


@lru_cache(maxsize=REMEMBERED_MAX)
def _way_in(pool: str, key_id: str) -> tuple[PoolId, KeyId]:
    """Return where an attempt goes, and whose key signed it: one edge names the same with each attempt at a pool."""
    return PoolId(text("open.pool", pool)), KeyId(text("open.key_id", key_id))


def _load_out(load: f.Load, into: pb.Load) -> None:
    into.number, into.pool = load.number, load.pool
    into.replicas, into.slots = load.replicas, load.slots
    into.running, into.waiting, into.waiting_max = load.running, load.waiting, load.waiting_max
    if load.queued_tokens is not None:
        into.queued_tokens = load.queued_tokens
    if load.kv_tokens is not None:
        into.kv_tokens = load.kv_tokens
    if load.kv_used_tokens is not None:
        into.kv_used_tokens = load.kv_used_tokens
    if load.openings is not None:
        into.openings = load.openings


def load_in(message: pb.Load) -> f.Load:
    """Return the load report of a message. Raises WireError."""
    return f.Load(
        message.number,
        PoolId(text("load.pool", message.pool)),
        message.replicas,
        message.slots,
        message.running,
        message.waiting,
        message.waiting_max,
        # Whether it was told is asked of a zero only.
        message.queued_tokens or (0 if message.HasField("queued_tokens") else None),
        message.kv_tokens or (0 if message.HasField("kv_tokens") else None),
        message.kv_used_tokens or (0 if message.HasField("kv_used_tokens") else None),
        message.openings or (0 if message.HasField("openings") else None),
    )


def _open_out(frame: f.Open, message: pb.EdgeFrame) -> None:
    into = message.open
    into.stream, into.attempt = frame.stream, frame.attempt
    into.decision, into.request = frame.decision, frame.request
    into.pool, into.facts = frame.pool, facts_to_bytes(frame.facts)
    generation_out(frame.generation, into.generation)
    citation_out(frame.citation, into.citation)
    into.key_id, into.facts_signature = frame.key_id, frame.signature
    into.credit_bytes, into.budget_ms = frame.credit_bytes, frame.budget_ms
    if frame.inputs is not None:
        inputs_out(frame.inputs, into.inputs)
    if frame.continues is not None:
        into.continues = frame.continues


def open_in(message: pb.Open) -> f.Open:
    """Return the attempt of a message. Raises WireError."""
    decision, request, stream, credit_bytes = message.decision, message.request, message.stream, message.credit_bytes
    if not is_decision_id(decision):
        raise WireError("open.decision", "an id that starts with dec_")
    if not is_request_id(request):
        raise WireError("open.request", "an id that starts with req_")
    if stream < 1:
        raise WireError("open.stream", "1 or more")
    if credit_bytes < f.CREDIT_BYTES_MIN:
        raise WireError("open.credit_bytes", f"{f.CREDIT_BYTES_MIN} or more")
    attempt = attempt_in(message.attempt)
    pool, key_id = _way_in(message.pool, message.key_id)
    return f.Open(
        stream,
        attempt,
        DecisionId(decision),
        RequestId(request),
        pool,
        generation_in(message.generation),
        facts_of_bytes(message.facts),
        citation_in(message.citation),
        key_id,
        message.facts_signature,
        credit_bytes,
        message.budget_ms,
        inputs_in(message.inputs, attempt) if message.HasField("inputs") else None,
        attempt_in(message.continues) if message.continues else None,
    )


def edge_frame_in(message: pb.EdgeFrame) -> f.EdgeFrame:
    """Return the frame of a message of the edge. Raises WireError, also on a kind that we do not know."""
    kind = message.WhichOneof("kind")
    if kind == "open":
        return open_in(message.open)
    if kind == "settle":
        return _settle_in(message.settle)
    if kind == "credit":
        return f.Credit(message.credit.stream, message.credit.bytes)
    if kind == "cancel":
        return f.Cancel(message.cancel.stream, attempt_in(message.cancel.attempt))
    if kind == "beat":
        return _beat_in(message.beat)
    if kind == "hello":
        return _hello_in(message.hello)
    raise WireError("frame", "a kind of this version")


def _credit_out(credit: f.Credit, message: pb.EdgeFrame) -> None:
    into = message.credit
    into.stream, into.bytes = credit.stream, credit.size_bytes


def _cancel_out(cancel: f.Cancel, message: pb.EdgeFrame) -> None:
    into = message.cancel
    into.stream, into.attempt = cancel.stream, cancel.attempt


def _draining_out(draining: f.Draining, message: pb.IntakeFrame) -> None:
    message.draining.grace_ms = draining.grace_ms


def _tokens_out(frame: f.Tokens, message: pb.IntakeFrame) -> None:
    into = message.tokens
    into.stream, into.attempt = frame.stream, frame.attempt
    into.first, into.count, into.text = frame.first, frame.count, frame.text
    if frame.ids:
        into.ids.extend(frame.ids)


def _accepted_out(frame: f.Accepted, message: pb.IntakeFrame) -> None:
    into, continuing = message.accepted, frame.continuing
    into.stream, into.attempt, into.replica = frame.stream, frame.attempt, frame.replica
    if continuing.identity:
        into.identity = continuing.identity
    into.resume = continuing.by._value_


def _done_out(frame: f.Done, message: pb.IntakeFrame) -> None:
    into = message.done
    into.stream, into.attempt, into.reason = frame.stream, frame.attempt, frame.reason
    pool_counts_out(frame.counts, into.counts)
    if frame.queued_us is not None:
        into.queued_us = frame.queued_us
    if frame.beside is not None:
        into.beside = frame.beside


def _refused_out(frame: f.Refused, message: pb.IntakeFrame) -> None:
    into = message.refused
    into.stream, into.attempt, into.code, into.detail = frame.stream, frame.attempt, frame.code, frame.detail
    into.param, into.retry_after_ms = frame.param or "", frame.retry_after_ms or 0
    into.rules.extend(frame.rules)


def _broken_out(frame: f.Broken, message: pb.IntakeFrame) -> None:
    into = message.broken
    into.stream, into.attempt, into.code, into.detail = frame.stream, frame.attempt, frame.code, frame.detail
    pool_counts_out(frame.counts, into.counts)


def intake_frame_in(message: pb.IntakeFrame) -> f.IntakeFrame:
    """Return the frame of a message of the intake. Raises WireError, also on a kind that we do not know."""
    match message.WhichOneof("kind"):
        case "tokens":
            t = message.tokens
            # A slice is a list, which becomes a tuple at once: of the field itself protobuf makes one number at a time.
            return f.Tokens(t.stream, _of_answer(t.attempt), t.first, t.count, t.text, tuple(t.ids[:]))
        case "accepted":
            a = message.accepted
            replica, continuing = _maker_in(a.replica, a.identity, a.resume)
            return f.Accepted(a.stream, _of_answer(a.attempt), replica, continuing)
        case "done":
            d = message.done
            reason = reason_in("done.reason", d.reason)
            # Whether it was told is asked of a zero only.
            queued_us = d.queued_us or (0 if d.HasField("queued_us") else None)
            beside = d.beside or (0 if d.HasField("beside") else None)
            return f.Done(d.stream, _of_answer(d.attempt), reason, pool_counts_in(d.counts), queued_us, beside)
        case "beat":
            return _beat_in(message.beat)
        case "load":
            return load_in(message.load)
        case "refused":
            r = message.refused
            rules = tuple(r.rules)
            retry_ms = r.retry_after_ms or None
            code = text("refused.code", r.code)
            return f.Refused(r.stream, _of_answer(r.attempt), code, r.detail, r.param or None, rules, retry_ms)
        case "broken":
            b = message.broken
            code = text("broken.code", b.code)
            return f.Broken(b.stream, _of_answer(b.attempt), code, b.detail, pool_counts_in(b.counts))
        case "welcome":
            return _welcome_in(message.welcome)
        case "draining":
            return f.Draining(message.draining.grace_ms)
        case _:
            raise WireError("frame", "a kind of this version")


def _hello_out(hello: f.Hello, message: pb.EdgeFrame) -> None:
    into = message.hello
    into.version_min, into.version_max = hello.version_min, hello.version_max
    into.edge, into.session, into.epoch = hello.edge, hello.session, hello.epoch
    into.now_ms, into.streams_max, into.continues = hello.now_ms, hello.streams_max, hello.continues
    for held in hello.held:
        into.held.add(
            stream=held.stream,
            attempt=held.attempt,
            accepted=held.accepted,
            next_token=held.next_token,
            received_bytes=held.received_bytes,
            limit_bytes=held.limit_bytes,
            cancelled=held.cancelled,
            ended=held.ended,
        )
    for one in hello.settled:
        counts = usage_pb2.EdgeCounts(received=one.counts.received, delivered=one.counts.delivered)
        into.settled.add(stream=one.stream, attempt=one.attempt, counts=counts)


def _hello_in(hello: pb.Hello) -> f.Hello:
    if not is_session_id(hello.session):
        raise WireError("hello.session", "an id that starts with ses_")
    if len(hello.held) > f.STREAMS_MAX:
        raise WireError("hello.held", f"at most {f.STREAMS_MAX} streams")
    if len(hello.settled) > f.SETTLES_MAX:
        raise WireError("hello.settled", f"at most {f.SETTLES_MAX} settlements")
    return f.Hello(
        hello.version_min,
        hello.version_max,
        EdgeId(text("hello.edge", hello.edge)),
        SessionId(hello.session),
        hello.epoch,
        hello.now_ms,
        hello.streams_max,
        hello.continues,
        tuple(
            f.Held(
                held.stream,
                attempt_in(held.attempt),
                held.accepted,
                held.next_token,
                held.received_bytes,
                held.limit_bytes,
                held.cancelled,
                held.ended,
            )
            for held in hello.held
        ),
        tuple(_settle_in(settle) for settle in hello.settled),
    )


def _welcome_out(welcome: f.Welcome, message: pb.IntakeFrame) -> None:
    into = message.welcome
    into.version, into.scheduler, into.instance = welcome.version, welcome.scheduler, welcome.instance
    into.now_ms, into.streams_max = welcome.now_ms, welcome.streams_max
    for load in welcome.loads:
        _load_out(load, into.loads.add())
    into.continued, into.last_stream = welcome.continued, welcome.last_stream
    into.gone.extend(welcome.gone)
    into.process, into.processes = welcome.process.index, welcome.process.count


def _welcome_in(welcome: pb.Welcome) -> f.Welcome:
    return f.Welcome(
        welcome.version,
        SchedulerId(text("welcome.scheduler", welcome.scheduler)),
        welcome.instance,
        welcome.now_ms,
        welcome.streams_max,
        tuple(load_in(load) for load in welcome.loads),
        welcome.continued,
        welcome.last_stream,
        tuple(welcome.gone),
        f.Process(welcome.process, max(1, welcome.processes)),
    )


def _settle_out(settle: f.Settle, message: pb.EdgeFrame) -> None:
    into = message.settle
    into.stream, into.attempt = settle.stream, settle.attempt
    counts = into.counts
    counts.received, counts.delivered = settle.counts.received, settle.counts.delivered


def _settle_in(settle: pb.Settle) -> f.Settle:
    counts = settle.counts
    told = EdgeCounts(counts.received, counts.delivered)
    return f.Settle(settle.stream, attempt_in(settle.attempt), told)


def _beat_out(beat: f.Beat, message: pb.EdgeFrame | pb.IntakeFrame) -> None:
    into = message.beat
    into.number, into.answers, into.settled = beat.number, beat.answers, beat.settled


def _beat_in(beat: pb.Beat) -> f.Beat:
    return f.Beat(beat.number, beat.answers, beat.settled)


_EDGE_OUT: dict[type, Callable[[Any, pb.EdgeFrame], None]] = {
    f.Open: _open_out,
    f.Settle: _settle_out,
    f.Credit: _credit_out,
    f.Cancel: _cancel_out,
    f.Beat: _beat_out,
    f.Hello: _hello_out,
}
_INTAKE_OUT: dict[type, Callable[[Any, pb.IntakeFrame], None]] = {
    f.Tokens: _tokens_out,
    f.Accepted: _accepted_out,
    f.Done: _done_out,
    f.Load: lambda load, message: _load_out(load, message.load),
    f.Beat: _beat_out,
    f.Refused: _refused_out,
    f.Broken: _broken_out,
    f.Draining: _draining_out,
    f.Welcome: _welcome_out,
}


def edge_batch_out(epoch: int, frames: Sequence[f.EdgeFrame]) -> pb.EdgeBatch:
    """Return one message for whatever was ready in this turn of the loop."""
    batch = pb.EdgeBatch(epoch=epoch)
    add = batch.frames.add
    for frame in frames:
        _EDGE_OUT[type(frame)](frame, add())
    return batch


def fits(frame: f.Open) -> bool:
    """Whether an attempt fits into one message. Written out for that: ask it only of one that is large."""
    return edge_batch_out(_EPOCH_MAX, [frame]).ByteSize() <= f.MESSAGE_BYTES_MAX


def intake_batch_out(epoch: int, frames: Sequence[f.IntakeFrame]) -> pb.IntakeBatch:
    """Return one message for whatever was ready in this turn of the loop."""
    batch = pb.IntakeBatch(epoch=epoch)
    add = batch.frames.add
    for frame in frames:
        _INTAKE_OUT[type(frame)](frame, add())
    return batch
