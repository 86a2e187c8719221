"""The body of POST /v1/completions as a `ChatRequest` with a raw prompt, or a refusal that names the field.

One prompt as text. The rules are those of `chat`: what is not understood is refused and never forwarded.
"""

from __future__ import annotations

from typing import Annotated, Final

from msgspec import Meta

from orchestrator.engines.generation import Generation, Message, Role
from orchestrator.files.chat import (
    Biases,
    ChatLimits,
    ChatRequest,
    Fewest,
    ModelName,
    Most,
    Opaque,
    Penalty,
    Stops,
    StreamOptions,
    Strict,
    Temperature,
    TopP,
    check_named,
    most_tokens,
    sampling_of,
    stops_of,
    typed,
    unsupported,
)
from orchestrator.files.strict_json import parse_strict
from orchestrator.files.typed import require_strict
from orchestrator.placement.capabilities import Capability

TOKENS_UNASKED: Final = 16
"""How many tokens a request without `max_tokens` gets, as OpenAI has it."""

_PLAIN = frozenset({Capability.COMPLETIONS})
_STREAMED = _PLAIN | {Capability.STREAM}

_Prompt = Annotated[str, Meta(min_length=1)]


class CompletionBody(Strict, frozen=True):
    """The fields of a completion. What is not here is refused."""

    model: ModelName
    prompt: _Prompt | Annotated[list[_Prompt], Meta(min_length=1, max_length=1)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Most | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: int | None = None
    stop: Stops | None = None
    # Accepted and never forwarded.
    user: Opaque | None = None
    # Neutral values only.
    n: int | None = None
    best_of: int | None = None
    echo: bool | None = None
    suffix: str | None = None
    # Anything but the neutral value asks for a capability.
    logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    # vLLM's.
    ignore_eos: bool | None = None
    min_tokens: Fewest | None = None


require_strict(CompletionBody)


def load_completion_request(body: bytes, limits: ChatLimits) -> ChatRequest:
    """The request of one completion. Raises RequestError, which names the field and repeats no content."""
    value = parse_strict(body, depth_max=limits.depth_max, values_max=limits.values_max)
    _check_prompt(value)
    request = typed(value, CompletionBody)
    _check_neutral(request)
    check_named(request.model, request.stream, request.stream_options)
    stops = () if request.stop is None else stops_of(request.stop)
    most = most_tokens(request.max_tokens, None, limits)
    if most is None:
        most = min(TOKENS_UNASKED, limits.max_tokens_max)
    needs = _needs(request)
    sampling = sampling_of(request, stops, most, limits, needs)
    endpoint = _STREAMED if request.stream else _PLAIN
    prompt = request.prompt if isinstance(request.prompt, str) else request.prompt[0]
    return ChatRequest(
        generation=Generation(request.model, (Message(Role.PROMPT, prompt),), sampling),
        stream=bool(request.stream),
        include_usage=request.stream_options is not None and bool(request.stream_options.include_usage),
        capabilities=endpoint.union(needs),
        continuous_usage=request.stream_options is not None and request.stream_options.continuous,
    )


def _check_prompt(value: object) -> None:
    """Refuse in words of their own the prompts that OpenAI takes and no pool here does."""
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, list):
        return
    if any(_is_token_ids(item) for item in (prompt, *prompt)):
        raise unsupported(("prompt",), "expected text: token ids are not supported")
    if len(prompt) > 1:
        raise unsupported(("prompt",), "expected one text: several prompts in one request are not supported")


def _is_token_ids(value: object) -> bool:
    return isinstance(value, list) and any(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _check_neutral(request: CompletionBody) -> None:
    """Refuses what no capability names and no engine here could honour."""
    for name in ("n", "best_of"):
        if getattr(request, name) not in (None, 1):
            raise unsupported((name,), "expected 1: one request has one answer")
    if request.echo:
        raise unsupported(("echo",), "expected false: the prompt is not sent back")
    if request.suffix:
        raise unsupported(("suffix",), "expected no suffix: text is continued at its end alone")


def _needs(request: CompletionBody) -> list[Capability]:
    needs: list[Capability] = []
    if request.logprobs is not None:
        needs.append(Capability.LOGPROBS)
    if request.frequency_penalty or request.presence_penalty:
        needs.append(Capability.PENALTIES)
    if request.logit_bias:
        needs.append(Capability.LOGIT_BIAS)
    return needs
