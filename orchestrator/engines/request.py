"""What such an engine is asked for: the body of a request, or why there is none. Pure."""

from __future__ import annotations

import msgspec
from msgspec import UNSET, UnsetType

from orchestrator.engines.generation import Generation, Message, Refused, Resume, Role, Said, Sampling

# Engines differ in the seeds they take; every one takes 63 bits, and the same seed still gives the same draws.
_SEED_MASK = 2**63 - 1


class _StreamOptions(msgspec.Struct, frozen=True):
    include_usage: bool = True


_WITH_USAGE = _StreamOptions()
_ENCODER = msgspec.json.Encoder()


class _Body(msgspec.Struct, frozen=True):
    """Everything that is ever sent, in this order. What is not set is left out."""

    model: str
    prompt: str | UnsetType
    """A raw text to be continued, in place of a conversation."""
    messages: tuple[Message, ...] | UnsetType
    continue_final_message: bool | UnsetType
    add_generation_prompt: bool | UnsetType
    stream: bool
    stream_options: _StreamOptions
    temperature: float
    top_p: float
    seed: int | UnsetType
    stop: tuple[str, ...] | UnsetType
    max_tokens: int | UnsetType
    # No part of OpenAI's API: sent only where they are asked for, which is only where the pool declares them.
    ignore_eos: bool | UnsetType
    min_tokens: int | UnsetType


def body_of(generation: Generation, raw_prompt: str | None, served_model: str) -> bytes | None:
    """Returns the request body, or None when a text is not valid Unicode."""
    sampling, said = generation.sampling, generation.said
    most, first_token = sampling.max_tokens, 0 if said is None else said.tokens
    messages: tuple[Message, ...] | UnsetType = generation.messages
    prompt: str | UnsetType = UNSET
    goes_on = False
    if raw_prompt is not None:
        messages, prompt = UNSET, raw_prompt if said is None else raw_prompt + said.text
    elif said is not None and said.text:
        # As vLLM and SGLang take it: the last message is the beginning of the answer.
        messages, goes_on = (*generation.messages, Message(Role.ASSISTANT, said.text)), True
    # By position, in the order of the fields: finding the names would take as long again.
    body = _Body(
        served_model,
        prompt,
        messages,
        True if goes_on else UNSET,
        False if goes_on else UNSET,
        True,
        _WITH_USAGE,
        sampling.temperature,
        sampling.top_p,
        UNSET if sampling.seed is None else sampling.seed & _SEED_MASK,
        sampling.stop or UNSET,
        UNSET if most is None else most - first_token,
        sampling.ignore_eos or UNSET,
        sampling.min_tokens - first_token if sampling.min_tokens > first_token else UNSET,
    )
    try:
        return _ENCODER.encode(body)
    except UnicodeEncodeError:
        # The exception quotes the text, so it must go no further.
        return None


def refusal_of_said(said: Said, sampling: Sampling) -> Refused | None:
    """Return why such an engine cannot go on with an answer, or None."""
    most = sampling.max_tokens
    if said.by is not Resume.TEXT:
        return Refused("identity_mismatch", "such an engine goes on by text alone")
    if most is not None and said.tokens >= most:
        # One token must be asked for at least, and it would be one too many.
        return Refused("identity_mismatch", "the answer is as long as it may be, and its end cannot be asked for")
    return None
