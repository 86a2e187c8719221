"""Frames of a session, between values and protobuf. Total both ways."""

from __future__ import annotations

from orchestrator.engines.generation import FinishReason, Generation, Message, Resume, Role, Said, Sampling
from orchestrator.engines.identity import Continuing
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import (
    AttemptId,
    DecisionId,
    Digest,
    EdgeId,
    KeyId,
    ModelId,
    PoolId,
    ReplicaId,
    RequestId,
    SchedulerId,
    SessionId,
    is_digest,
    is_made,
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
    read,
    text,
)
from protos.tidegate.v1 import session_pb2 as pb
from protos.tidegate.v1 import usage_pb2

MESSAGES_MAX = 1_024
STOPS_MAX = 4


def generation_out(generation: Generation) -> pb.Generation:
    """Return the message of a generation."""
    sampling = generation.sampling
    return pb.Generation(
        model=generation.model,
        messages=[pb.ChatMessage(role=m.role.value, text=m.text) for m in generation.messages],
        sampling=pb.Sampling(
            temperature=sampling.temperature,
            top_p=sampling.top_p,
            seed=sampling.seed,
            stop=sampling.stop,
            max_tokens=sampling.max_tokens,
            ignore_eos=sampling.ignore_eos,
            min_tokens=sampling.min_tokens,
        ),
        said=None if generation.said is None else _said_out(generation.said),
    )


def generation_in(message: pb.Generation) -> Generation:
    """Return the generation of a message. Raises WireError."""
    if not 1 <= len(message.messages) <= MESSAGES_MAX:
        raise WireError("generation.messages", f"1 to {MESSAGES_MAX} messages")
    sampling = message.sampling
    # Written so that NaN, which compares false with everything, is refused.
    if not 0 <= sampling.temperature <= 2:
        raise WireError("generation.sampling.temperature", "0 to 2")
    if not 0 < sampling.top_p <= 1:
        raise WireError("generation.sampling.top_p", "above 0, at most 1")
    if len(sampling.stop) > STOPS_MAX:
        raise WireError("generation.sampling.stop", f"at most {STOPS_MAX} strings")
    if sampling.HasField("max_tokens") and sampling.max_tokens < 1:
        raise WireError("generation.sampling.max_tokens", "1 or more")
    if sampling.HasField("max_tokens") and sampling.min_tokens > sampling.max_tokens:
        raise WireError("generation.sampling.min_tokens", "at most max_tokens")
    messages = tuple(
        Message(read("generation.messages.role", "a known role", lambda m=m: Role(m.role)), m.text)  # type: ignore[misc]
        for m in message.messages
    )
    generation = Generation(
        ModelId(text("generation.model", message.model)),
        messages,
        Sampling(
            sampling.temperature,
            sampling.top_p,
            sampling.seed if sampling.HasField("seed") else None,
            tuple(sampling.stop),
            sampling.max_tokens if sampling.HasField("max_tokens") else None,
            sampling.ignore_eos,
            sampling.min_tokens,
        ),
        _said_in(message.said) if message.HasField("said") else None,
    )
    if generation.mixed:
        raise WireError("generation.messages", "a raw prompt alone, or none")
    return generation


def _said_out(said: Said) -> pb.Said:
    return pb.Said(by=said.by.value, identity=said.identity, tokens=said.tokens, text=said.text, ids=said.ids)


def _said_in(message: pb.Said) -> Said:
    by = read("said.by", "ids or text", lambda: Resume(message.by))
    if by is Resume.NONE:
        raise WireError("said.by", "ids or text")
    if not is_digest(message.identity):
        raise WireError("said.identity", "a digest")
    if len(message.ids) != (message.tokens if by is Resume.IDS else 0):
        raise WireError("said.ids", "every token where it is continued by ids, and none elsewhere")
    return Said(by, Digest(message.identity), message.tokens, message.text, tuple(message.ids))


def resume_in(field: str, value: str) -> Resume:
    """Return what an answer can be continued by; nothing said is none. Raises WireError."""
    return read(field, "none, text or ids", lambda: Resume(value or "none"))


def _accepted_in(message: pb.Accepted) -> f.Accepted:
    if message.identity and not is_digest(message.identity):
        raise WireError("accepted.identity", "a digest or nothing")
    identity = Digest(message.identity) if message.identity else None
    continuing = Continuing(identity, resume_in("accepted.resume", message.resume))
    replica = ReplicaId(text("accepted.replica", message.replica))
    return f.Accepted(message.stream, attempt_in(message.attempt), replica, continuing)


def pool_counts_out(counts: PoolCounts) -> usage_pb2.PoolCounts:
    """Return the message of a pool's counts."""
    return usage_pb2.PoolCounts(
        prompt=counts.prompt, cached=counts.cached, generated=counts.generated, sent=counts.sent
    )


def pool_counts_in(message: usage_pb2.PoolCounts) -> PoolCounts:
    """Return a pool's counts of a message."""
    return PoolCounts(message.prompt, message.cached, message.generated, message.sent)


def reason_in(field: str, value: str) -> str:
    """Return why an answer ended, a value of FinishReason. Raises WireError."""
    return read(field, "a known reason", lambda: FinishReason(value).value)


def attempt_in(value: str) -> AttemptId:
    """Return an attempt id. Raises WireError."""
    if not is_made(value, "att"):
        raise WireError("attempt", "an id that starts with att_")
    return AttemptId(value)


def load_out(load: f.Load) -> pb.Load:
    """Return the message of a load report."""
    return pb.Load(
        number=load.number,
        pool=load.pool,
        replicas=load.replicas,
        slots=load.slots,
        running=load.running,
        waiting=load.waiting,
        waiting_max=load.waiting_max,
        queued_tokens=load.queued_tokens,
        kv_tokens=load.kv_tokens,
        kv_used_tokens=load.kv_used_tokens,
        openings=load.openings,
    )


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


def open_out(frame: f.Open) -> pb.Open:
    """Return the message of an attempt."""
    return pb.Open(
        stream=frame.stream,
        attempt=frame.attempt,
        decision=frame.decision,
        request=frame.request,
        pool=frame.pool,
        generation=generation_out(frame.generation),
        facts=facts_to_bytes(frame.facts),
        citation=citation_out(frame.citation),
        key_id=frame.key_id,
        facts_signature=frame.signature,
        credit_bytes=frame.credit_bytes,
        budget_ms=frame.budget_ms,
        inputs=None if frame.inputs is None else inputs_out(frame.inputs),
        continues=frame.continues or "",
    )


def open_in(message: pb.Open) -> f.Open:
    """Return the attempt of a message. Raises WireError."""
    if not is_made(message.decision, "dec"):
        raise WireError("open.decision", "an id that starts with dec_")
    if not is_made(message.request, "req"):
        raise WireError("open.request", "an id that starts with req_")
    if message.stream < 1:
        raise WireError("open.stream", "1 or more")
    if message.credit_bytes < f.CREDIT_BYTES_MIN:
        raise WireError("open.credit_bytes", f"{f.CREDIT_BYTES_MIN} or more")
    attempt = attempt_in(message.attempt)
    return f.Open(
        message.stream,
        attempt,
        DecisionId(message.decision),
        RequestId(message.request),
        PoolId(text("open.pool", message.pool)),
        generation_in(message.generation),
        facts_of_bytes(message.facts),
        citation_in(message.citation),
        KeyId(text("open.key_id", message.key_id)),
        message.facts_signature,
        message.credit_bytes,
        message.budget_ms,
        inputs_in(message.inputs, attempt) if message.HasField("inputs") else None,
        attempt_in(message.continues) if message.continues else None,
    )


def edge_frame_out(frame: f.EdgeFrame) -> pb.EdgeFrame:
    """Return the message of a frame of the edge."""
    match frame:
        case f.Credit():
            return pb.EdgeFrame(credit=pb.Credit(stream=frame.stream, bytes=frame.size_bytes))
        case f.Open():
            return pb.EdgeFrame(open=open_out(frame))
        case f.Beat():
            return pb.EdgeFrame(beat=_beat_out(frame))
        case f.Cancel():
            return pb.EdgeFrame(cancel=pb.Cancel(stream=frame.stream, attempt=frame.attempt))
        case f.Settle():
            return pb.EdgeFrame(settle=_settle_out(frame))
        case f.Hello():
            return pb.EdgeFrame(hello=_hello_out(frame))


def edge_frame_in(message: pb.EdgeFrame) -> f.EdgeFrame:
    """Return the frame of a message of the edge. Raises WireError, also on a kind that we do not know."""
    kind = message.WhichOneof("kind")
    if kind == "credit":
        return f.Credit(message.credit.stream, message.credit.bytes)
    if kind == "open":
        return open_in(message.open)
    if kind == "beat":
        return _beat_in(message.beat)
    if kind == "cancel":
        return f.Cancel(message.cancel.stream, attempt_in(message.cancel.attempt))
    if kind == "settle":
        return _settle_in(message.settle)
    if kind == "hello":
        return _hello_in(message.hello)
    raise WireError("frame", "a kind of this version")


def intake_frame_out(frame: f.IntakeFrame) -> pb.IntakeFrame:
    """Return the message of a frame of the intake."""
    match frame:
        case f.Tokens():
            tokens = pb.Tokens(
                stream=frame.stream,
                attempt=frame.attempt,
                first=frame.first,
                count=frame.count,
                text=frame.text,
                ids=frame.ids,
            )
            return pb.IntakeFrame(tokens=tokens)
        case f.Accepted():
            accepted = pb.Accepted(
                stream=frame.stream,
                attempt=frame.attempt,
                replica=frame.replica,
                identity=frame.continuing.identity or "",
                resume=frame.continuing.by.value,
            )
            return pb.IntakeFrame(accepted=accepted)
        case f.Done():
            counts = pool_counts_out(frame.counts)
            done = pb.Done(
                stream=frame.stream,
                attempt=frame.attempt,
                reason=frame.reason,
                counts=counts,
                queued_us=frame.queued_us,
                beside=frame.beside,
            )
            return pb.IntakeFrame(done=done)
        case f.Beat():
            return pb.IntakeFrame(beat=_beat_out(frame))
        case f.Load():
            return pb.IntakeFrame(load=load_out(frame))
        case f.Refused():
            refused = pb.Refused(
                stream=frame.stream,
                attempt=frame.attempt,
                code=frame.code,
                detail=frame.detail,
                param=frame.param or "",
                rules=frame.rules,
                retry_after_ms=frame.retry_after_ms or 0,
            )
            return pb.IntakeFrame(refused=refused)
        case f.Broken():
            broken = pb.Broken(
                stream=frame.stream,
                attempt=frame.attempt,
                code=frame.code,
                detail=frame.detail,
                counts=pool_counts_out(frame.counts),
            )
            return pb.IntakeFrame(broken=broken)
        case f.Welcome():
            return pb.IntakeFrame(welcome=_welcome_out(frame))
        case f.Draining():
            return pb.IntakeFrame(draining=pb.Draining(grace_ms=frame.grace_ms))


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


def _hello_out(hello: f.Hello) -> pb.Hello:
    return pb.Hello(
        version_min=hello.version_min,
        version_max=hello.version_max,
        edge=hello.edge,
        session=hello.session,
        epoch=hello.epoch,
        now_ms=hello.now_ms,
        streams_max=hello.streams_max,
        continues=hello.continues,
        held=[
            pb.HeldStream(
                stream=held.stream,
                attempt=held.attempt,
                accepted=held.accepted,
                next_token=held.next_token,
                received_bytes=held.received_bytes,
                limit_bytes=held.limit_bytes,
                cancelled=held.cancelled,
                ended=held.ended,
            )
            for held in hello.held
        ],
        settled=[_settle_out(settle) for settle in hello.settled],
    )


def _hello_in(hello: pb.Hello) -> f.Hello:
    if not is_made(hello.session, "ses"):
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


def _welcome_out(welcome: f.Welcome) -> pb.Welcome:
    return pb.Welcome(
        version=welcome.version,
        scheduler=welcome.scheduler,
        instance=welcome.instance,
        now_ms=welcome.now_ms,
        streams_max=welcome.streams_max,
        loads=[load_out(load) for load in welcome.loads],
        continued=welcome.continued,
        last_stream=welcome.last_stream,
        gone=welcome.gone,
        process=welcome.process.index,
        processes=welcome.process.count,
    )


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


def _settle_out(settle: f.Settle) -> pb.Settle:
    counts = usage_pb2.EdgeCounts(received=settle.counts.received, delivered=settle.counts.delivered)
    return pb.Settle(stream=settle.stream, attempt=settle.attempt, counts=counts)


def _settle_in(settle: pb.Settle) -> f.Settle:
    counts = EdgeCounts(settle.counts.received, settle.counts.delivered)
    return f.Settle(settle.stream, attempt_in(settle.attempt), counts)


def _beat_out(beat: f.Beat) -> pb.Beat:
    return pb.Beat(number=beat.number, answers=beat.answers, settled=beat.settled)


def _beat_in(beat: pb.Beat) -> f.Beat:
    return f.Beat(beat.number, beat.answers, beat.settled)


def edge_batch_out(epoch: int, frames: list[f.EdgeFrame]) -> pb.EdgeBatch:
    """Return one message for whatever was ready in this turn of the loop."""
    return pb.EdgeBatch(epoch=epoch, frames=[edge_frame_out(frame) for frame in frames])


def intake_batch_out(epoch: int, frames: list[f.IntakeFrame]) -> pb.IntakeBatch:
    """Return one message for whatever was ready in this turn of the loop."""
    return pb.IntakeBatch(epoch=epoch, frames=[intake_frame_out(frame) for frame in frames])
