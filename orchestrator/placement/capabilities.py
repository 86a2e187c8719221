"""Capabilities: the closed vocabulary of what a request may need and a pool may offer."""

from __future__ import annotations

from enum import StrEnum


class Capability(StrEnum):
    """One thing that an engine can do. An unsupported one is "no pool offers", not an unknown field."""

    # A word that is hashed as one, in C: an Enum would call Python for each member of each request.
    CHAT = "chat"
    STREAM = "stream"
    SEED = "seed"
    STOP = "stop"
    TOOLS = "tools"
    JSON_OBJECT = "json_object"
    JSON_SCHEMA = "json_schema"
    LOGPROBS = "logprobs"
    PENALTIES = "penalties"
    LOGIT_BIAS = "logit_bias"
    VISION = "vision"
    AUDIO = "audio"
    EMBEDDINGS = "embeddings"
    COMPLETIONS = "completions"
    IGNORE_EOS = "ignore_eos"
    """An answer that the model does not end."""
    MIN_TOKENS = "min_tokens"
    """An answer that the model does not end before it has so many tokens."""
    RESUME_IDS = "resume_ids"
    RESUME_TEXT = "resume_text"


def parse_capability(text: str) -> Capability:
    """Return the capability, or raise ValueError naming the closed vocabulary."""
    try:
        return Capability(text)
    except ValueError:
        allowed = ", ".join(capability.value for capability in Capability)
        raise ValueError(f"expected one of {allowed}") from None
