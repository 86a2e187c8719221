"""What the head of an engine's HTTP reply means, and its body where it is not a stream. Pure.

The engine's own words never reach a detail: they may quote the prompt. Only counts are taken over.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from orchestrator.engines.generation import Failed, Refused

# What engines call a prompt that does not fit: llama.cpp by type, OpenAI by code, vLLM by param.
_CONTEXT_TYPES = ("exceed_context_size_error",)
_CONTEXT_CODES = ("context_length_exceeded", "exceed_context_size_error")
_CONTEXT_PARAMS = ("input_tokens",)
# Older vLLM and SGLang say it only in words.
_CONTEXT_PHRASES = ("maximum context length", "longer than the model's context length")

Headers = Mapping[bytes, tuple[bytes, ...]]
"""Every value, by name in lower case."""


class _Error(msgspec.Struct, frozen=True):
    message: object = None
    type: object = None
    param: object = None
    code: object = None
    n_prompt_tokens: object = None
    n_ctx: object = None


class _ErrorReply(msgspec.Struct, frozen=True):
    error: _Error


_WRAPPED = msgspec.json.Decoder(_ErrorReply)
_BARE = msgspec.json.Decoder(_Error)


def outcome_of_reply(status: int, body: bytes) -> Refused | Failed:
    """Returns what a reply other than 200 means for a generation. `body` is read only for status 400."""
    if status == 400:
        return _outcome_of_bad_request(body)
    if status in (401, 403):
        return Failed("engine_protocol", "the engine refused our key")
    if status == 404:
        return Refused("model_not_served", "the engine does not serve this model", param="model")
    if status in (429, 503):
        return Refused("engine_busy", "the engine takes no more work now")
    if 400 <= status < 500:
        return Refused("bad_generation", f"the engine refused the generation with status {status}")
    if 500 <= status < 600:
        return Failed("engine_failed", f"the engine failed with status {status}")
    if 300 <= status < 400:
        return Failed("engine_protocol", "the engine answered with a redirect, and redirects are never followed")
    return Failed("engine_protocol", f"the engine answered with status {status}")


def outcome_of_head(status: int, headers: Headers) -> Refused | Failed | None:
    """Returns None when a stream follows that can be read, else what the reply means without its body."""
    if status != 200:
        return outcome_of_reply(status, b"")
    if not is_plain(headers):
        return Failed("engine_protocol", "the engine compressed its answer unasked")
    if not _is_stream(headers.get(b"content-type", ())):
        return Failed("engine_protocol", "the engine did not stream its answer")
    return None


def failure_of_head(status: int, headers: Headers) -> Failed | None:
    """Returns None when a document follows that can be read."""
    if status == 503:
        return Failed("engine_failed", "the engine takes no work now")
    if status != 200:
        outcome = outcome_of_reply(status, b"")
        return outcome if isinstance(outcome, Failed) else Failed("engine_protocol", outcome.detail)
    if not is_plain(headers):
        return Failed("engine_protocol", "the engine compressed its reply unasked")
    return None


def is_plain(headers: Headers) -> bool:
    """Whether a body is sent as it is."""
    encodings = headers.get(b"content-encoding", ())
    return all(_token(encoding) in ("", "identity") for encoding in encodings)


def _is_stream(content_types: tuple[bytes, ...]) -> bool:
    """Whether these headers say that a stream of events follows."""
    return len(content_types) == 1 and _token(content_types[0].partition(b";")[0]) == "text/event-stream"


def _token(value: bytes) -> str:
    return value.decode("latin-1").strip().lower()


def _outcome_of_bad_request(body: bytes) -> Refused:
    error = _error_of(body)
    if error is None or not _is_context_error(error):
        return Refused("bad_generation", "the engine refused the generation with status 400")
    counts = ""
    if _is_count(error.n_prompt_tokens) and _is_count(error.n_ctx):
        counts = f": it has {error.n_prompt_tokens} tokens, and the context holds {error.n_ctx}"
    return Refused("context_length_exceeded", f"the prompt does not fit into the model's context{counts}", "messages")


def _error_of(body: bytes) -> _Error | None:
    for decoder in (_WRAPPED, _BARE):
        try:
            reply = decoder.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        return reply.error if isinstance(reply, _ErrorReply) else reply
    return None


def _is_context_error(error: _Error) -> bool:
    return (
        error.type in _CONTEXT_TYPES
        or error.code in _CONTEXT_CODES
        or error.param in _CONTEXT_PARAMS
        or (isinstance(error.message, str) and any(phrase in error.message for phrase in _CONTEXT_PHRASES))
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**53
