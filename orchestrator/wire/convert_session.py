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
    Fields,
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

ATTEMPTS_READ_MAX = 2 * f.STREAMS_MAX
"""Attempt ids whose form was checked that are remembered: every frame of a stream names its attempt."""

Kinds = dict[type, tuple[str, Callable[[Any], Fields]]]


@lru_cache(maxsize=ATTEMPTS_READ_MAX)
def attempt_in(value: str) -> AttemptId:
    """Return an attempt id. Raises WireError."""
    if not is_attempt_id(value):
        raise WireError("attempt", "an id that starts with att_")
    return AttemptId(value)


@lru_cache(maxsize=REMEMBERED_MAX)
def _continuing_in(identity: str, resume: str) -> Continuing:
    """Every replica of a model says the same of it with each answer."""
    if identity and not is_digest(identity):
        raise WireError("accepted.identity", "a digest or nothing")
    return Continuing(Digest(identity) if identity else None, resume_in("accepted.resume", resume))


def _accepted_in(message: pb.Accepted) -> f.Accepted:
    continuing = _continuing_in(message.identity, message.resume)
    replica = ReplicaId(text("accepted.replica", message.replica))
    return f.Accepted(message.stream, attempt_in(message.attempt), replica, continuing)


def load_out(load: f.Load) -> Fields:
    """Return the fields of a load report."""
    return {
        "number": load.number,
        "pool": load.pool,
        "replicas": load.replicas,
        "slots": load.slots,
        "running": load.running,
        "waiting": load.waiting,
        "waiting_max": load.waiting_max,
        "queued_tokens": load.queued_tokens,
        "kv_tokens": load.kv_tokens,
        "kv_used_tokens": load.kv_used_tokens,
        "openings": load.openings,
    }


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
        message.queued_tokens if message.HasField("queued_tokens") else None,
        message.kv_tokens if message.HasField("kv_tokens") else None,
        message.kv_used_tokens if message.HasField("kv_used_tokens") else None,
        message.openings if message.HasField("openings") else None,
    )


def open_out(frame: f.Open) -> Fields:
    """Return the fields of an attempt."""
    return {
        "stream": frame.stream,
        "attempt": frame.attempt,
        "decision": frame.decision,
        "request": frame.request,
        "pool": frame.pool,
        "generation": generation_out(frame.generation),
        "facts": facts_to_bytes(frame.facts),
        "citation": citation_out(frame.citation),
        "key_id": frame.key_id,
        "facts_signature": frame.signature,
        "credit_bytes": frame.credit_bytes,
        "budget_ms": frame.budget_ms,
        "inputs": None if frame.inputs is None else inputs_out(frame.inputs),
        "continues": frame.continues or "",
    }


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
    return f.Open(
        stream,
        attempt,
        DecisionId(decision),
        RequestId(request),
        PoolId(text("open.pool", message.pool)),
        generation_in(message.generation),
        facts_of_bytes(message.facts),
        citation_in(message.citation),
        KeyId(text("open.key_id", message.key_id)),
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


def _credit_out(credit: f.Credit) -> Fields:
    return {"stream": credit.stream, "bytes": credit.size_bytes}


def _cancel_out(cancel: f.Cancel) -> Fields:
    return {"stream": cancel.stream, "attempt": cancel.attempt}


def _draining_out(draining: f.Draining) -> Fields:
    return {"grace_ms": draining.grace_ms}


def _tokens_out(frame: f.Tokens) -> Fields:
    return {
        "stream": frame.stream,
        "attempt": frame.attempt,
        "first": frame.first,
        "count": frame.count,
        "text": frame.text,
        "ids": frame.ids,
    }


def _accepted_out(frame: f.Accepted) -> Fields:
    return {
        "stream": frame.stream,
        "attempt": frame.attempt,
        "replica": frame.replica,
        "identity": frame.continuing.identity or "",
        "resume": frame.continuing.by.value,
    }


def _done_out(frame: f.Done) -> Fields:
    return {
        "stream": frame.stream,
        "attempt": frame.attempt,
        "reason": frame.reason,
        "counts": pool_counts_out(frame.counts),
        "queued_us": frame.queued_us,
        "beside": frame.beside,
    }


def _refused_out(frame: f.Refused) -> Fields:
    return {
        "stream": frame.stream,
        "attempt": frame.attempt,
        "code": frame.code,
        "detail": frame.detail,
        "param": frame.param or "",
        "rules": frame.rules,
        "retry_after_ms": frame.retry_after_ms or 0,
    }


def _broken_out(frame: f.Broken) -> Fields:
    return {
        "stream": frame.stream,
        "attempt": frame.attempt,
        "code": frame.code,
        "detail": frame.detail,
        "counts": pool_counts_out(frame.counts),
    }


def intake_frame_in(message: pb.IntakeFrame) -> f.IntakeFrame:
    """Return the frame of a message of the intake. Raises WireError, also on a kind that we do not know."""
    match message.WhichOneof("kind"):
        case "tokens":
            t = message.tokens
            return f.Tokens(t.stream, attempt_in(t.attempt), t.first, t.count, t.text, tuple(t.ids))
        case "accepted":
            return _accepted_in(message.accepted)
        case "done":
            d = message.done
            reason = reason_in("done.reason", d.reason)
            queued_us = d.queued_us if d.HasField("queued_us") else None
            beside = d.beside if d.HasField("beside") else None
            return f.Done(d.stream, attempt_in(d.attempt), reason, pool_counts_in(d.counts), queued_us, beside)
        case "beat":
            return _beat_in(message.beat)
        case "load":
            return load_in(message.load)
        case "refused":
            r = message.refused
            rules = tuple(r.rules)
            retry_ms = r.retry_after_ms or None
            code = text("refused.code", r.code)
            return f.Refused(r.stream, attempt_in(r.attempt), code, r.detail, r.param or None, rules, retry_ms)
        case "broken":
            b = message.broken
            code = text("broken.code", b.code)
            return f.Broken(b.stream, attempt_in(b.attempt), code, b.detail, pool_counts_in(b.counts))
        case "welcome":
            return _welcome_in(message.welcome)
        case "draining":
            return f.Draining(message.draining.grace_ms)
        case _:
            raise WireError("frame", "a kind of this version")


def _hello_out(hello: f.Hello) -> Fields:
    return {
        "version_min": hello.version_min,
        "version_max": hello.version_max,
        "edge": hello.edge,
        "session": hello.session,
        "epoch": hello.epoch,
        "now_ms": hello.now_ms,
        "streams_max": hello.streams_max,
        "continues": hello.continues,
        "held": [
            {
                "stream": held.stream,
                "attempt": held.attempt,
                "accepted": held.accepted,
                "next_token": held.next_token,
                "received_bytes": held.received_bytes,
                "limit_bytes": held.limit_bytes,
                "cancelled": held.cancelled,
                "ended": held.ended,
            }
            for held in hello.held
        ],
        "settled": [_settle_out(settle) for settle in hello.settled],
    }


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


def _welcome_out(welcome: f.Welcome) -> Fields:
    return {
        "version": welcome.version,
        "scheduler": welcome.scheduler,
        "instance": welcome.instance,
        "now_ms": welcome.now_ms,
        "streams_max": welcome.streams_max,
        "loads": [load_out(load) for load in welcome.loads],
        "continued": welcome.continued,
        "last_stream": welcome.last_stream,
        "gone": welcome.gone,
        "process": welcome.process.index,
        "processes": welcome.process.count,
    }


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


def _settle_out(settle: f.Settle) -> Fields:
    counts = {"received": settle.counts.received, "delivered": settle.counts.delivered}
    return {"stream": settle.stream, "attempt": settle.attempt, "counts": counts}


def _settle_in(settle: pb.Settle) -> f.Settle:
    counts = EdgeCounts(settle.counts.received, settle.counts.delivered)
    return f.Settle(settle.stream, attempt_in(settle.attempt), counts)


def _beat_out(beat: f.Beat) -> Fields:
    return {"number": beat.number, "answers": beat.answers, "settled": beat.settled}


def _beat_in(beat: pb.Beat) -> f.Beat:
    return f.Beat(beat.number, beat.answers, beat.settled)


_EDGE_OUT: Kinds = {
    f.Open: ("open", open_out),
    f.Settle: ("settle", _settle_out),
    f.Credit: ("credit", _credit_out),
    f.Cancel: ("cancel", _cancel_out),
    f.Beat: ("beat", _beat_out),
    f.Hello: ("hello", _hello_out),
}
_INTAKE_OUT: Kinds = {
    f.Tokens: ("tokens", _tokens_out),
    f.Accepted: ("accepted", _accepted_out),
    f.Done: ("done", _done_out),
    f.Load: ("load", load_out),
    f.Beat: ("beat", _beat_out),
    f.Refused: ("refused", _refused_out),
    f.Broken: ("broken", _broken_out),
    f.Draining: ("draining", _draining_out),
    f.Welcome: ("welcome", _welcome_out),
}


def edge_batch_out(epoch: int, frames: Sequence[f.EdgeFrame]) -> pb.EdgeBatch:
    """Return one message for whatever was ready in this turn of the loop."""
    return pb.EdgeBatch(epoch=epoch, frames=_frames_out(_EDGE_OUT, frames))


def intake_batch_out(epoch: int, frames: Sequence[f.IntakeFrame]) -> pb.IntakeBatch:
    """Return one message for whatever was ready in this turn of the loop."""
    return pb.IntakeBatch(epoch=epoch, frames=_frames_out(_INTAKE_OUT, frames))


def _frames_out(kinds: Kinds, frames: Sequence[object]) -> Any:
    # The stubs of a message do not know that fields will do.
    return [{kinds[type(frame)][0]: kinds[type(frame)][1](frame)} for frame in frames]
