"""The objects of the OpenAI API that an edge answers with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType

import msgspec

from node_agent.border.resume import Segment
from node_agent.front.sse import DONE, event, json_line
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, RequestId

OWNER = "tidegate"
TEXT = "text_completion"
_TEXT_PLACE, _CHAT_PLACE = b'"text":@', b'"content":@'
_USAGE_PLACE = b'"usage":@'
"""Where the text and the usage go, written as no string of JSON can be."""
Ours = Mapping[str, object]
"""Fields beside those of the OpenAI API: empty, or one named `tidegate`."""
NOTHING: Ours = MappingProxyType({})
REASONS = frozenset({"stop", "length"})
"""Why an answer may have ended well."""


class Usage(msgspec.Struct, frozen=True):
    """What one answer consumed, as the tenant is told."""

    prompt: int
    cached: int
    delivered: int

    @staticmethod
    def of(counts: PoolCounts, delivered: int) -> Usage:
        """Prompt and cached as the pool counted them, the rest as the edge delivered it."""
        return Usage(counts.prompt, counts.cached if counts.cached < counts.prompt else counts.prompt, delivered)

    def partial(self) -> dict[str, object]:
        """Return the `usage` object of an answer that was cut: without the prompt where no pool counted it."""
        return self.to_json() if self.prompt else {"completion_tokens": self.delivered}

    def to_json(self) -> dict[str, object]:
        """Return the `usage` object."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.delivered,
            "total_tokens": self.prompt + self.delivered,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Answering(msgspec.Struct, frozen=True):
    """What every object of one answer says of it."""

    request: RequestId
    model: ModelId
    created_s: int
    raw: bool = False
    """Whether it continues a raw prompt: the older of the two shapes."""

    def completion(self, text: str, reason: str, usage: Usage, ours: Ours) -> dict[str, object]:
        """Return the `chat.completion` or `text_completion` of a whole answer."""
        if self.raw:
            return {**self.frame(TEXT), "choices": [text_choice(text, reason)], "usage": usage.to_json(), **ours}
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": reason}
        return {**self.frame("chat.completion"), "choices": [choice], "usage": usage.to_json(), **ours}

    def frame(self, kind: str) -> dict[str, object]:
        """Return the fields that every object of the answer begins with."""
        name = ("cmpl-" if self.raw else "chatcmpl-") + self.request.removeprefix("req_")
        return {"id": name, "object": kind, "created": self.created_s, "model": self.model}


def ours_of(segments: Sequence[Segment]) -> Ours:
    """Return what is told of an answer that went on elsewhere: each of its parts. Nothing of one that did not."""
    return {"tidegate": {"segments": [one.to_json() for one in segments]}} if len(segments) > 1 else NOTHING


class Chunks:
    """The events of one streamed answer.

    `include_usage` is the tenant's wish for a last chunk with the usage, and `continuous` for the usage so far in
    every other chunk as well, which it has no meaning without. The prompt is counted by the pool and told with the
    end: until then its tokens are 0.
    """

    __slots__ = ("_after", "_answering", "_before", "_between", "_continuous", "_include_usage")

    def __init__(self, answering: Answering, include_usage: bool, continuous: bool = False) -> None:
        self._answering = answering
        self._include_usage = include_usage
        self._continuous = include_usage and continuous
        # All events with text differ in their text alone, and in the usage so far where that is told.
        place = _TEXT_PLACE if answering.raw else _CHAT_PLACE
        usage = msgspec.Raw(b"@") if self._continuous else None
        before, self._after = self._chunk({"content": msgspec.Raw(b"@")}, None, usage).split(place)
        self._before = before + place[:-1]
        self._between = b""
        if self._continuous:
            self._between, self._after = self._after.split(_USAGE_PLACE)
            self._between += _USAGE_PLACE[:-1]

    def role(self) -> bytes:
        """The first chunk: who speaks. A continuation has no speaker."""
        if self._answering.raw:
            return b""
        usage = _so_far(0) if self._continuous else None
        return self._chunk({"role": "assistant", "content": "", "refusal": None}, None, usage)

    def text(self, text: str, delivered: int) -> bytes:
        """Some more of the answer, with which the tenant has `delivered` tokens."""
        if not self._continuous:
            return self._before + json_line(text) + self._after
        return self._before + json_line(text) + self._between + msgspec.json.encode(_so_far(delivered)) + self._after

    def last(self, reason: str, usage: Usage, ours: Ours) -> bytes:
        """The end of a complete answer: why, the usage when it was asked for, and [DONE]. The last chunk has `ours`."""
        if not self._include_usage:
            return self._chunk({}, reason, ours=ours) + DONE
        frame = self._answering.frame(TEXT if self._answering.raw else "chat.completion.chunk")
        told = event({**frame, "choices": [], "usage": usage.to_json(), **ours})
        return self._chunk({}, reason, usage.to_json() if self._continuous else None) + told + DONE

    def _chunk(
        self, delta: dict[str, object], reason: str | None, usage: object = None, ours: Ours = NOTHING
    ) -> bytes:
        if self._answering.raw:
            chunk = {**self._answering.frame(TEXT), "choices": [text_choice(delta.get("content", ""), reason)], **ours}
        else:
            choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
            chunk = {**self._answering.frame("chat.completion.chunk"), "choices": [choice], **ours}
        if self._include_usage:
            chunk["usage"] = usage
        return event(chunk)


def _so_far(delivered: int) -> dict[str, int]:
    """Return the `usage` object of an answer under way."""
    return {"prompt_tokens": 0, "completion_tokens": delivered, "total_tokens": delivered}


def text_choice(text: object, reason: str | None) -> dict[str, object]:
    """Return the one choice of a `text_completion`, which is the same whole and in a stream."""
    return {"index": 0, "text": text, "logprobs": None, "finish_reason": reason}


def model_object(model: ModelId) -> dict[str, object]:
    """Return the `model` object."""
    return {"id": model, "object": "model", "created": 0, "owned_by": OWNER}


def model_list(models: Iterable[ModelId]) -> dict[str, object]:
    """Return the `list` of models."""
    return {"object": "list", "data": [model_object(model) for model in models]}
