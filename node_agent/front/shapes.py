"""The objects of the OpenAI API that an edge answers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from node_agent.border.resume import Segment
from node_agent.front.sse import DONE, one_line
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, RequestId

OWNER = "tidegate"
TEXT, CHUNK = "text_completion", "chat.completion.chunk"
_REQUEST_CHARS = len("req_")
# The one choice of a chunk. It is the same in all of them but for the text and the reason.
_ROLE = (
    b',"choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},'
    b'"logprobs":null,"finish_reason":null}]'
)
_BEFORE = b',"choices":[{"index":0,"delta":{"content":'
_AFTER = b'},"logprobs":null,"finish_reason":null}]'
_END = b',"choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}]'
_RAW_BEFORE = b',"choices":[{"index":0,"text":'
_RAW_AFTER = b',"logprobs":null,"finish_reason":null}]'
_RAW_END = b',"choices":[{"index":0,"text":"","logprobs":null,"finish_reason":"%b"}]'
# A whole answer: the same in all of them but for these.
_USAGE = (
    b'{"prompt_tokens":%d,"completion_tokens":%d,"total_tokens":%d,"prompt_tokens_details":{"cached_tokens":%d}}%b}'
)
_WHOLE = (
    b'{"id":"chatcmpl-%b","object":"chat.completion","created":%d,"model":"%b","choices":[{"index":0,'
    b'"message":{"role":"assistant","content":%b,"refusal":null},"logprobs":null,"finish_reason":"%b"}],'
    b'"usage":' + _USAGE
)
_RAW_WHOLE = (
    b'{"id":"cmpl-%b","object":"text_completion","created":%d,"model":"%b","choices":[{"index":0,'
    b'"text":%b,"logprobs":null,"finish_reason":"%b"}],'
    b'"usage":' + _USAGE
)
_encode = msgspec.json.Encoder().encode
Usage = Mapping[str, object]
"""What one answer consumed, as the tenant is told."""
Ours = Mapping[str, object]
"""Fields beside those of the OpenAI API: empty, or one named `tidegate`."""
NOTHING: Ours = MappingProxyType({})
REASONS = frozenset({"stop", "length"})
"""Why an answer may have ended well."""


def usage_of(counts: PoolCounts, delivered: int) -> dict[str, object]:
    """Return the `usage` object: prompt and cached as the pool counted them, the rest as the edge delivered it."""
    prompt = counts.prompt
    return {
        "prompt_tokens": prompt,
        "completion_tokens": delivered,
        "total_tokens": prompt + delivered,
        "prompt_tokens_details": {"cached_tokens": counts.cached if counts.cached < prompt else prompt},
    }


def partial_usage(counts: PoolCounts, delivered: int) -> dict[str, object]:
    """Return the `usage` object of an answer that was cut: without the prompt where no pool counted it."""
    return usage_of(counts, delivered) if counts.prompt else {"completion_tokens": delivered}


class Answering(msgspec.Struct, frozen=True):
    """What every object of one answer says of it."""

    request: RequestId
    model: ModelId
    created_s: int
    raw: bool = False
    """Whether it continues a raw prompt: the older of the two shapes."""

    def whole(self, text: str, reason: str, counts: PoolCounts, delivered: int, ours: Ours) -> bytes:
        """Return the `chat.completion` or `text_completion` of a whole answer as it is sent: with `usage_of`."""
        prompt, cached = counts.prompt, counts.cached
        # No id, no name of a model and no reason needs an escape.
        return (_RAW_WHOLE if self.raw else _WHOLE) % (
            self.request[_REQUEST_CHARS:].encode(),
            self.created_s,
            self.model.encode(),
            _encode(text),
            reason.encode(),
            prompt,
            delivered,
            prompt + delivered,
            cached if cached < prompt else prompt,
            b"," + _encode(ours)[1:-1] if ours else b"",
        )

    def frame(self, kind: str) -> dict[str, object]:
        """Return the fields that every object of the answer begins with."""
        name = ("cmpl-" if self.raw else "chatcmpl-") + self.request[_REQUEST_CHARS:]
        return {"id": name, "object": kind, "created": self.created_s, "model": self.model}


def ours_of(segments: Sequence[Segment]) -> Ours:
    """Return what is told of an answer that went on elsewhere: each of its parts. Nothing of one that did not."""
    return {"tidegate": {"segments": [one.to_json() for one in segments]}} if segments[1:] else NOTHING


class Chunks:
    """The events of one streamed answer.

    `include_usage` is the tenant's wish for a last chunk with the usage, and `continuous` for the usage so far in
    every other chunk as well, which it has no meaning without. The prompt is counted by the pool and told with the
    end: until then its tokens are 0.
    """

    __slots__ = ("_after", "_before", "_continuous", "_end", "_include_usage", "_opening", "_raw")

    def __init__(self, answering: Answering, include_usage: bool, continuous: bool = False) -> None:
        self._raw = answering.raw
        self._include_usage = include_usage
        self._continuous = include_usage and continuous
        # What is the same in all events of the answer is made once. No id and no name of a model needs an escape.
        self._opening = b"data: " + _encode(answering.frame(TEXT if self._raw else CHUNK))[:-1]
        self._before = self._opening + (_RAW_BEFORE if self._raw else _BEFORE)
        self._end = b',"usage":null}\n\n' if include_usage else b"}\n\n"
        """How a chunk ends that tells no usage."""
        self._after = (_RAW_AFTER if self._raw else _AFTER) + (b"" if self._continuous else self._end)

    def role(self) -> bytes:
        """The first chunk: who speaks. A continuation has no speaker."""
        if self._raw:
            return b""
        return self._opening + _ROLE + (_told(_so_far(0)) if self._continuous else self._end)

    def text(self, text: str, delivered: int) -> bytes:
        """Some more of the answer, with which the tenant has `delivered` tokens."""
        data = _encode(text)
        if not text.isascii() and ("\u2028" in text or "\u2029" in text or "\x85" in text):
            data = one_line(data)  # hardly ever: these are what it looks for
        if not self._continuous:
            return self._before + data + self._after
        return self._before + data + self._after + _told(_so_far(delivered))

    def last(self, reason: str, usage: Usage, ours: Ours) -> bytes:
        """The end of a complete answer: why, the usage when it was asked for, and [DONE]. The last chunk has `ours`."""
        end = self._opening + (_RAW_END if self._raw else _END) % reason.encode()
        told = b"," + one_line(msgspec.json.encode(ours))[1:-1] if ours else b""
        if not self._include_usage:
            return end + told + b"}\n\n" + DONE
        counted = self._opening + b',"choices":[],"usage":' + msgspec.json.encode(usage) + told + b"}\n\n"
        return end + (_told(usage) if self._continuous else self._end) + counted + DONE


def _told(usage: Usage) -> bytes:
    """Return the end of a chunk that tells the usage so far."""
    return b',"usage":%b}\n\n' % msgspec.json.encode(usage)


def _so_far(delivered: int) -> dict[str, object]:
    """Return the `usage` object of an answer under way."""
    return {"prompt_tokens": 0, "completion_tokens": delivered, "total_tokens": delivered}


def model_object(model: ModelId) -> dict[str, object]:
    """Return the `model` object."""
    return {"id": model, "object": "model", "created": 0, "owned_by": OWNER}


def model_list(models: Iterable[ModelId]) -> dict[str, object]:
    """Return the `list` of models."""
    return {"object": "list", "data": [model_object(model) for model in models]}
