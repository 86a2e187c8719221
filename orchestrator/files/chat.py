"""The body of POST /v1/chat/completions as a `ChatRequest`, or a refusal that names the field.

What is not understood is refused and never forwarded. A field has one of three fates: it becomes part of the
generation; it holds its neutral value and is dropped; or it asks for a capability, which is written down so that
placement can answer "no pool offers" instead of an engine guessing. No field can name an upstream, a template or a
route.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Final, Literal, Protocol, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestrator.engines.generation import Generation, Message, ModelId, Role, Sampling
from orchestrator.files.strict_json import DEPTH_MAX, VALUES_MAX, RequestCode, RequestError, parse_strict
from orchestrator.files.typed import FieldPath, Misfit, MisfitKind, fit, require_strict, spell
from orchestrator.placement.capabilities import Capability

MESSAGES_MAX: Final = 1024
PARTS_MAX: Final = 256
STOPS_MAX: Final = 4
STOP_CHARS_MAX: Final = 64
TOOLS_MAX: Final = 128
BIASES_MAX: Final = 1024

CARRIED: Final = frozenset(
    {
        Capability.CHAT,
        Capability.COMPLETIONS,
        Capability.STREAM,
        Capability.SEED,
        Capability.STOP,
        Capability.IGNORE_EOS,
        Capability.MIN_TOKENS,
    }
)
"""The capabilities that a `Generation` can express. A request that needs another one must not be sent to any engine."""

_CARRIED_FIELDS: Final = frozenset(
    {
        *("model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature"),
        *("top_p", "seed", "stop", "user", "safety_identifier", "ignore_eos", "min_tokens"),
    }
)
"""Nearly all chat bodies have no others. Another one holds its neutral value, or asks for something."""
_PLAIN = frozenset({Capability.CHAT})
_STREAMED = _PLAIN | {Capability.STREAM}

T = TypeVar("T")

_TOP_P_LEAST = 1e-6
"""What stands for a `top_p` of 0, which OpenAI's document allows and engines refuse: the most likely token alone."""
_SEED_SPACE = 2**64
_MODEL_NAME = r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}"
_MODEL = re.compile(_MODEL_NAME + r"\Z")
_ROLES = {
    "system": Role.SYSTEM,
    "developer": Role.SYSTEM,
    "user": Role.USER,
    "assistant": Role.ASSISTANT,
    # The answer of a tool asks for `tools`, which no generation carries: the role only counts characters.
    "tool": Role.USER,
}
_CODES: dict[MisfitKind, RequestCode] = {
    MisfitKind.UNKNOWN_FIELD: "unknown_field",
    MisfitKind.MISSING_FIELD: "missing_field",
    MisfitKind.TYPE: "invalid_type",
    MisfitKind.VALUE: "invalid_value",
}


@dataclass(frozen=True, slots=True)
class ChatLimits:
    """What an edge accepts in one request."""

    max_tokens_max: int
    """The most tokens that a request may ask for."""
    messages_max: int = MESSAGES_MAX
    depth_max: int = DEPTH_MAX
    """Levels of arrays and objects."""
    values_max: int = VALUES_MAX
    """Values of a whole body: each bracket that opens and each comma outside of strings counts as one."""


class ChatRequest(msgspec.Struct, frozen=True):
    """One accepted request, of a conversation or of a raw prompt. Its repr holds no text of the tenant."""

    generation: Generation
    stream: bool
    include_usage: bool
    """Whether the tenant wants the usage chunk at the end of a stream."""
    capabilities: frozenset[Capability]
    """What the request needs of a pool."""
    continuous_usage: bool = False
    """Whether every other chunk tells the usage so far as well; only where `include_usage` is true."""

    @property
    def prompt_chars(self) -> int:
        """Characters of all message texts."""
        return sum(len(message.text) for message in self.generation.messages)

    @property
    def carried(self) -> bool:
        """Whether the generation holds the whole request. When false it must not be sent, whatever a pool declares."""
        return self.capabilities <= CARRIED

    def __repr__(self) -> str:
        needs = ",".join(sorted(capability.value for capability in self.capabilities))
        return f"ChatRequest(prompt_chars={self.prompt_chars}, stream={self.stream}, capabilities={needs})"


class Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An object of a body that refuses what it does not name."""


class _TextPart(Strict, frozen=True, tag_field="type", tag="text"):
    text: str


class _ImagePart(Strict, frozen=True, tag_field="type", tag="image_url"):
    image_url: dict[str, object]


class _AudioPart(Strict, frozen=True, tag_field="type", tag="input_audio"):
    input_audio: dict[str, object]


_Parts = Annotated[list[_TextPart | _ImagePart | _AudioPart], Meta(min_length=1, max_length=PARTS_MAX)]


class _Message(Strict, frozen=True):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | _Parts | UnsetType | None = UNSET
    tool_calls: list[dict[str, object]] | None = None
    tool_call_id: str | None = None
    # Clients replay an assistant's message as they got it: these are neutral when empty.
    name: str | None = None
    refusal: str | None = None
    annotations: list[object] | None = None
    audio: dict[str, object] | None = None
    function_call: dict[str, object] | None = None


class StreamOptions(Strict, frozen=True):
    """What a tenant wants of a stream."""

    include_usage: bool | None = None
    # vLLM's: every chunk tells the usage so far. As there, it has an effect only beside include_usage.
    continuous_usage_stats: bool | None = None
    include_obfuscation: bool | None = None

    @property
    def continuous(self) -> bool:
        """Whether every chunk tells the usage so far."""
        return bool(self.include_usage and self.continuous_usage_stats)


class _TextFormat(Strict, frozen=True, tag_field="type", tag="text"):
    pass


class _JsonObjectFormat(Strict, frozen=True, tag_field="type", tag="json_object"):
    pass


class _JsonSchemaFormat(Strict, frozen=True, tag_field="type", tag="json_schema"):
    json_schema: dict[str, object]


# What these two say beyond the type is checked by hand, in better words; the document tells it.
ModelName = Annotated[ModelId, Meta(extra_json_schema={"pattern": f"^{_MODEL_NAME}$"})]
Most = Annotated[int, Meta(extra_json_schema={"minimum": 1})]
Fewest = Annotated[int, Meta(extra_json_schema={"minimum": 0})]
_Stop = Annotated[str, Meta(extra_json_schema={"minLength": 1, "maxLength": STOP_CHARS_MAX})]
Stops = _Stop | Annotated[list[_Stop], Meta(extra_json_schema={"maxItems": STOPS_MAX})]
Penalty = Annotated[float, Meta(ge=-2, le=2)]
Opaque = Annotated[str, Meta(max_length=256)]
Temperature = Annotated[float, Meta(ge=0, le=2)]
TopP = Annotated[float, Meta(ge=0, le=1)]
Biases = Annotated[dict[str, Annotated[float, Meta(ge=-100, le=100)]], Meta(max_length=BIASES_MAX)]


class Sampled(Protocol):
    """What both bodies say of how tokens are drawn."""

    @property
    def temperature(self) -> float | None:
        """0 to 2."""

    @property
    def top_p(self) -> float | None:
        """Above 0, at most 1."""

    @property
    def seed(self) -> int | None:
        """Any integer."""

    @property
    def ignore_eos(self) -> bool | None:
        """Whether the model never ends the answer."""

    @property
    def min_tokens(self) -> int | None:
        """How many tokens the answer has before the model may end it."""


class ChatBody(Strict, frozen=True):
    """The fields of a chat completion. What is not here is refused."""

    model: ModelName
    messages: Annotated[list[_Message], Meta(extra_json_schema={"minItems": 1, "maxItems": MESSAGES_MAX})]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    max_tokens: Most | None = None
    max_completion_tokens: Most | None = None
    temperature: Temperature | None = None
    top_p: TopP | None = None
    seed: int | None = None
    stop: Stops | None = None
    # Accepted and never forwarded.
    user: Opaque | None = None
    safety_identifier: Opaque | None = None
    prompt_cache_key: Opaque | None = None
    prompt_cache_retention: Opaque | None = None
    # Neutral values only.
    n: int | None = None
    store: bool | None = None
    metadata: dict[str, object] | None = None
    service_tier: str | None = None
    reasoning_effort: str | None = None
    verbosity: str | None = None
    prediction: dict[str, object] | None = None
    # Anything but the neutral value asks for a capability.
    tools: Annotated[list[dict[str, object]], Meta(max_length=TOOLS_MAX)] | None = None
    tool_choice: str | dict[str, object] | None = None
    parallel_tool_calls: bool | None = None
    response_format: _TextFormat | _JsonObjectFormat | _JsonSchemaFormat | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    frequency_penalty: Penalty | None = None
    presence_penalty: Penalty | None = None
    logit_bias: Biases | None = None
    # vLLM's.
    ignore_eos: bool | None = None
    min_tokens: Fewest | None = None
    modalities: list[str] | None = None
    audio: dict[str, object] | None = None


require_strict(ChatBody)


def load_chat_request(body: bytes, limits: ChatLimits) -> ChatRequest:
    """The request of one chat completion. Raises RequestError, which names the field and repeats no content.

    A negative seed means its two's complement in 64 bits: the engines count seeds from 0 to 2**64 - 1. The text parts
    of one message are joined by a line end. `user`, `safety_identifier` and the hints about prompt
    caches end here.
    """
    value = parse_strict(body, depth_max=limits.depth_max, values_max=limits.values_max)
    given = value["messages"] if type(value) is dict and "messages" in value else None
    if type(given) is list and not 1 <= len(given) <= limits.messages_max:
        raise _bad_count(given, limits)
    request = typed(value, ChatBody)
    needs: list[Capability] = []
    if type(value) is not dict or not _CARRIED_FIELDS.issuperset(value):
        _check_neutral(request)
        _add_needs(request, needs)
    messages: list[Message] = []
    for message in request.messages:
        messages.append(_message(message, len(messages), needs))
    stream, options = request.stream is True, request.stream_options
    check_named(request.model, stream, options)
    stops = () if request.stop is None else stops_of(request.stop)
    most = request.max_tokens
    if request.max_completion_tokens is not None or (most is not None and not 1 <= most <= limits.max_tokens_max):
        most = most_tokens(most, request.max_completion_tokens, limits)
    sampling = sampling_of(request, stops, most, limits, needs)
    endpoint = _STREAMED if stream else _PLAIN
    return ChatRequest(
        Generation(request.model, tuple(messages), sampling),
        stream,
        options is not None and options.include_usage is True,
        endpoint.union(needs) if needs else endpoint,
        options is not None and options.continuous,
    )


def _bad_count(messages: list[object], limits: ChatLimits) -> RequestError:
    if not messages:
        return RequestError("invalid_value", "expected at least one message", "messages")
    return RequestError("too_many_messages", f"expected at most {limits.messages_max} messages", "messages")


def typed(value: object, type_: type[T]) -> T:
    """Return the fields of a body, of a type that `require_strict` takes. Raises RequestError."""
    try:
        return msgspec.convert(value, type_)
    except msgspec.ValidationError:
        pass  # its words repeat values
    try:
        return fit(value, type_)
    except Misfit as misfit:
        path, code, expected = misfit.path, _CODES[misfit.kind], misfit.expected
    if code == "unknown_field":
        expected = "this field is not supported"
    raise RequestError(code, expected, spell(path) or None)


def check_named(model: str, stream: bool | None, options: StreamOptions | None) -> None:
    """Refuse a name that no model can have, and options of a stream where there is none. Raises RequestError."""
    if not _MODEL.match(model):
        raise RequestError("invalid_value", "expected the name of a model", "model")
    if options is not None and not stream:
        raise RequestError("invalid_value", "expected it only together with stream: true", "stream_options")
    if options is not None and options.include_obfuscation:
        raise unsupported(("stream_options", "include_obfuscation"), "expected false")


def unsupported(path: FieldPath, expected: str) -> RequestError:
    """Return the refusal of a value that no engine here could honour."""
    return RequestError("unsupported_value", expected, spell(path))


def _check_neutral(request: ChatBody) -> None:
    """Refuses what no capability names and no engine here could honour."""
    if request.n not in (None, 1):
        raise unsupported(("n",), "expected 1: one request has one answer")
    if request.store:
        raise unsupported(("store",), "expected false: answers are not stored")
    if request.metadata:
        raise unsupported(("metadata",), "expected no metadata: it would be kept nowhere")
    if request.service_tier not in (None, "auto", "default"):
        raise unsupported(("service_tier",), "expected auto or default")
    if request.reasoning_effort not in (None, "none"):
        raise unsupported(("reasoning_effort",), "expected none or null")
    if request.verbosity not in (None, "medium"):
        raise unsupported(("verbosity",), "expected medium or null")
    if request.prediction:
        raise unsupported(("prediction",), "expected null")
    if request.modalities and set(request.modalities) - {"text", "audio"}:
        raise unsupported(("modalities",), "expected text or audio")
    chosen = request.tool_choice
    if chosen is not None and isinstance(chosen, str) and chosen not in ("none", "auto", "required"):
        raise RequestError("invalid_value", "expected one of none, auto, required, or an object", "tool_choice")


def _message(message: _Message, index: int, needs: list[Capability]) -> Message:
    """Return a message as an engine gets it, and add to `needs` what it asks for. Raises RequestError."""
    if message.name is not None or message.refusal or message.annotations or message.audio or message.function_call:
        raise _unsupported_field(message, index)
    if message.role == "tool" or message.tool_calls or message.tool_call_id is not None:
        needs.append(Capability.TOOLS)
    content = message.content
    if isinstance(content, str):
        return Message(_ROLES[message.role], content)
    path: FieldPath = ("messages", index)
    if content is UNSET or content is None:
        if message.role == "assistant" and message.tool_calls:
            return Message(Role.ASSISTANT, "")
        if content is UNSET:
            raise RequestError("missing_field", "expected this field, which is missing", spell((*path, "content")))
        raise RequestError("invalid_type", "expected text or a list of parts", spell((*path, "content")))
    needs += _part_needs(content)
    text = "\n".join(part.text for part in content if isinstance(part, _TextPart))
    return Message(_ROLES[message.role], text)


def _unsupported_field(message: _Message, index: int) -> RequestError:
    """Return the refusal of a message that says what no engine here is told."""
    path: FieldPath = ("messages", index)
    if message.name is not None:
        return unsupported((*path, "name"), "expected no name: no engine here tells names apart")
    field = next(f for f in ("refusal", "annotations", "audio", "function_call") if getattr(message, f))
    return unsupported((*path, field), "expected null")


def stops_of(given: str | list[str]) -> tuple[str, ...]:
    """Return the strings that end an answer. Raises RequestError."""
    stops = (given,) if isinstance(given, str) else tuple(given)
    if len(stops) > STOPS_MAX:
        raise RequestError("invalid_value", f"expected at most {STOPS_MAX} strings", "stop")
    for index, stop in enumerate(stops):
        if not 1 <= len(stop) <= STOP_CHARS_MAX:
            path: FieldPath = ("stop",) if isinstance(given, str) else ("stop", index)
            raise RequestError("invalid_value", f"expected 1 to {STOP_CHARS_MAX} characters", spell(path))
    return stops


def most_tokens(max_tokens: int | None, max_completion_tokens: int | None, limits: ChatLimits) -> int | None:
    """Return how many tokens are asked for, under either name. Raises RequestError."""
    for name, value in (("max_tokens", max_tokens), ("max_completion_tokens", max_completion_tokens)):
        if value is not None and not 1 <= value <= limits.max_tokens_max:
            raise RequestError("invalid_value", f"expected 1 to {limits.max_tokens_max}", name)
    if max_tokens is None or max_completion_tokens is None:
        return max_completion_tokens if max_tokens is None else max_tokens
    if max_tokens != max_completion_tokens:
        raise RequestError("invalid_value", "expected the same number as max_completion_tokens", "max_tokens")
    return max_tokens


def _fewest_tokens(asked: int, most: int | None, limits: ChatLimits) -> int:
    """Return how many tokens the answer must have: no more than it may."""
    bound, why = (limits.max_tokens_max, "") if most is None else (most, ": no more than max_tokens")
    if not 0 <= asked <= bound:
        raise RequestError("invalid_value", f"expected 0 to {bound}{why}", "min_tokens")
    return asked


def sampling_of(
    request: Sampled, stops: tuple[str, ...], most: int | None, limits: ChatLimits, needs: list[Capability]
) -> Sampling:
    """Return how tokens are drawn, and add to `needs` what that asks for. Raises RequestError."""
    temperature, top_p, seed, fewest = request.temperature, request.top_p, request.seed, request.min_tokens
    sampling = Sampling(
        # Adding zero turns -0.0 into 0.0, so that equal requests have equal bytes.
        1.0 if temperature is None else temperature + 0.0,
        1.0 if top_p is None else max(top_p, _TOP_P_LEAST),
        None if seed is None else seed % _SEED_SPACE,
        stops,
        most,
        request.ignore_eos is True,
        0 if fewest is None else _fewest_tokens(fewest, most, limits),
    )
    if seed is not None:
        needs.append(Capability.SEED)
    if stops:
        needs.append(Capability.STOP)
    if sampling.ignore_eos:
        needs.append(Capability.IGNORE_EOS)
    if fewest:
        needs.append(Capability.MIN_TOKENS)
    return sampling


def _add_needs(request: ChatBody, needs: list[Capability]) -> None:
    """Add to `needs` what the fields besides the messages ask for."""
    chosen = request.tool_choice
    if request.tools or (chosen is not None and (chosen == "required" or isinstance(chosen, dict))):
        needs.append(Capability.TOOLS)
    if request.response_format is not None:
        if isinstance(request.response_format, _JsonObjectFormat):
            needs.append(Capability.JSON_OBJECT)
        elif isinstance(request.response_format, _JsonSchemaFormat):
            needs.append(Capability.JSON_SCHEMA)
    if request.logprobs or request.top_logprobs:
        needs.append(Capability.LOGPROBS)
    if request.frequency_penalty or request.presence_penalty:
        needs.append(Capability.PENALTIES)
    if request.logit_bias:
        needs.append(Capability.LOGIT_BIAS)
    if request.audio or "audio" in (request.modalities or ()):
        needs.append(Capability.AUDIO)


def _part_needs(parts: list[_TextPart | _ImagePart | _AudioPart]) -> list[Capability]:
    needs: list[Capability] = []
    for part in parts:
        if isinstance(part, _ImagePart):
            needs.append(Capability.VISION)
        elif isinstance(part, _AudioPart):
            needs.append(Capability.AUDIO)
    return needs
