"""A generation, what came of it and its counts, between values and protobuf: as sessions and replicas tell them."""

from __future__ import annotations

from orchestrator.engines.generation import FinishReason, Generation, Message, Resume, Role, Said, Sampling
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import Digest, ModelId, is_digest
from orchestrator.wire.convert_facts import WireError, text
from protos.tidegate.v1 import session_pb2 as pb
from protos.tidegate.v1 import usage_pb2

MESSAGES_MAX = 1_024
STOPS_MAX = 4
_COUNT_MAX = (1 << 32) - 1
_ROLES = {role.value: role for role in Role}
_RESUMES = {by.value: by for by in Resume}
_REASONS = frozenset(reason.value for reason in FinishReason)


def generation_out(generation: Generation, into: pb.Generation) -> None:
    """Fill the message of a generation."""
    into.model = generation.model
    add = into.messages.add
    for turn in generation.messages:
        message = add()
        # Of an enumeration `value` is a property in Python, and a conversation has many turns.
        message.role, message.text = turn.role._value_, turn.text
    sampling, told = generation.sampling, into.sampling
    told.temperature, told.top_p = sampling.temperature, sampling.top_p
    if sampling.seed is not None:
        told.seed = sampling.seed
    if sampling.stop:
        told.stop.extend(sampling.stop)
    if sampling.max_tokens is not None:
        told.max_tokens = sampling.max_tokens
    # On the wire these are absent when they say nothing.
    if sampling.ignore_eos:
        told.ignore_eos = True
    if sampling.min_tokens:
        told.min_tokens = sampling.min_tokens
    if generation.said is not None:
        _said_out(generation.said, into.said)


def generation_in(message: pb.Generation) -> Generation:
    """Return the generation of a message. Raises WireError."""
    # Each field is read once: protobuf makes a new value for every reading.
    turns, sampling = message.messages, message.sampling
    if not 1 <= len(turns) <= MESSAGES_MAX:
        raise WireError("generation.messages", f"1 to {MESSAGES_MAX} messages")
    temperature, top_p, stop, min_tokens = sampling.temperature, sampling.top_p, sampling.stop, sampling.min_tokens
    # Written so that NaN, which compares false with everything, is refused.
    if not 0 <= temperature <= 2:
        raise WireError("generation.sampling.temperature", "0 to 2")
    if not 0 < top_p <= 1:
        raise WireError("generation.sampling.top_p", "above 0, at most 1")
    stops = len(stop)
    if stops > STOPS_MAX:
        raise WireError("generation.sampling.stop", f"at most {STOPS_MAX} strings")
    # Whether it was told is asked of a zero only.
    max_tokens = sampling.max_tokens or (0 if sampling.HasField("max_tokens") else None)
    if max_tokens is not None and max_tokens < 1:
        raise WireError("generation.sampling.max_tokens", "1 or more")
    if max_tokens is not None and min_tokens > max_tokens:
        raise WireError("generation.sampling.min_tokens", "at most max_tokens")
    messages: list[Message] = []
    for turn in turns:
        role = _ROLES.get(turn.role)
        if role is None:
            raise WireError("generation.messages.role", "a known role")
        messages.append(Message(role, turn.text))
    seed = sampling.seed or (0 if sampling.HasField("seed") else None)
    generation = Generation(
        ModelId(text("generation.model", message.model)),
        tuple(messages),
        Sampling(
            temperature, top_p, seed, tuple(stop) if stops else (), max_tokens, sampling.ignore_eos, min_tokens
        ),
        _said_in(message.said) if message.HasField("said") else None,
    )
    if generation.mixed:
        raise WireError("generation.messages", "a raw prompt alone, or none")
    return generation


def _said_out(said: Said, into: pb.Said) -> None:
    into.by, into.identity = said.by.value, said.identity
    into.tokens, into.text = said.tokens, said.text
    into.ids.extend(said.ids)


def _said_in(message: pb.Said) -> Said:
    by = _RESUMES.get(message.by)
    if by is None or by is Resume.NONE:
        raise WireError("said.by", "ids or text")
    if not is_digest(message.identity):
        raise WireError("said.identity", "a digest")
    if len(message.ids) != (message.tokens if by is Resume.IDS else 0):
        raise WireError("said.ids", "every token where it is continued by ids, and none elsewhere")
    return Said(by, Digest(message.identity), message.tokens, message.text, tuple(message.ids))


def resume_in(field: str, value: str) -> Resume:
    """Return what an answer can be continued by; nothing said is none. Raises WireError."""
    by = _RESUMES.get(value or "none")
    if by is None:
        raise WireError(field, "none, text or ids")
    return by


def pool_counts_out(counts: PoolCounts, into: usage_pb2.PoolCounts) -> None:
    """Fill the message of a pool's counts. One that the wire cannot carry is told as the most that it can."""
    try:
        into.prompt, into.generated, into.sent = counts.prompt, counts.generated, counts.sent
        if counts.cached:
            into.cached = counts.cached
    except ValueError:
        # Whoever made such a count, all other answers of the session would end with it.
        most = [min(count, _COUNT_MAX) for count in (counts.prompt, counts.generated, counts.sent, counts.cached)]
        into.prompt, into.generated, into.sent, into.cached = most


def pool_counts_in(message: usage_pb2.PoolCounts) -> PoolCounts:
    """Return a pool's counts of a message."""
    return PoolCounts(message.prompt, message.cached, message.generated, message.sent)


def reason_in(field: str, value: str) -> str:
    """Return why an answer ended, a value of FinishReason. Raises WireError."""
    if value not in _REASONS:
        raise WireError(field, "a known reason")
    return value
