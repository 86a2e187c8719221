"""The body of a completion of a raw prompt: what becomes of each field, and which refusal each bad one gets."""

from __future__ import annotations

import json
from typing import Any

import pytest

from orchestrator.engines.generation import Message, Role, Sampling
from orchestrator.files.chat import ChatLimits, ChatRequest
from orchestrator.files.completion import CompletionBody, load_completion_request
from orchestrator.files.strict_json import RequestError
from orchestrator.placement.capabilities import Capability

LIMITS = ChatLimits(max_tokens_max=4096)
PROMPT = "canary5531 once upon a time"
ABSENT = object()


def body(**fields: object) -> bytes:
    whole = {"model": "smollm2", "prompt": PROMPT, **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not ABSENT}).encode()


def load(**fields: object) -> ChatRequest:
    return load_completion_request(body(**fields), LIMITS)


BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"model": ABSENT}, "missing_field", "model"),
    ({"model": "a b"}, "invalid_value", "model"),
    ({"prompt": ABSENT}, "missing_field", "prompt"),
    ({"prompt": None}, "invalid_type", "prompt"),
    ({"prompt": ""}, "invalid_value", "prompt"),
    ({"prompt": []}, "invalid_value", "prompt"),
    ({"prompt": [""]}, "invalid_value", "prompt[0]"),
    ({"prompt": ["a", "b"]}, "unsupported_value", "prompt"),
    ({"prompt": [1, 2]}, "unsupported_value", "prompt"),
    ({"prompt": [1]}, "unsupported_value", "prompt"),
    ({"prompt": [[1, 2]]}, "unsupported_value", "prompt"),
    ({"prompt": [[]]}, "invalid_type", "prompt[0]"),
    ({"prompt": [True]}, "invalid_type", "prompt[0]"),
    ({"prompt": {"a": 1}}, "invalid_type", "prompt"),
    ({"prompt": "a\x00b"}, "invalid_value", "prompt"),
    ({"prompt": "\ud800"}, "invalid_value", "prompt"),
    ({"messages": []}, "unknown_field", "messages"),
    ({"api_base": "http://evil.example"}, "unknown_field", "api_base"),
    ({"prompt_embeds": "x"}, "unknown_field", "prompt_embeds"),
    ({"guided_regex": "(a+)+"}, "unknown_field", "guided_regex"),
    ({"n": 2}, "unsupported_value", "n"),
    ({"best_of": 2}, "unsupported_value", "best_of"),
    ({"echo": True}, "unsupported_value", "echo"),
    ({"suffix": "x"}, "unsupported_value", "suffix"),
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": 4097}, "invalid_value", "max_tokens"),
    ({"max_completion_tokens": 4}, "unknown_field", "max_completion_tokens"),
    ({"temperature": 2.1}, "invalid_value", "temperature"),
    ({"top_p": -0.1}, "invalid_value", "top_p"),
    ({"stop": list("abcde")}, "invalid_value", "stop"),
    ({"logprobs": 21}, "invalid_value", "logprobs"),
    ({"logprobs": True}, "invalid_type", "logprobs"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "unsupported_value",
        "stream_options.include_obfuscation",
    ),
    ({"user": "u" * 257}, "invalid_value", "user"),
    ({"ignore_eos": 1}, "invalid_type", "ignore_eos"),
    ({"min_tokens": True}, "invalid_type", "min_tokens"),
    # Sixteen are asked for where nothing is said.
    ({"min_tokens": 17}, "invalid_value", "min_tokens"),
    ({"max_tokens": 4, "min_tokens": 5}, "invalid_value", "min_tokens"),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD)
def test_what_is_not_understood_is_refused_by_field(fields: dict[str, Any], code: str, param: str) -> None:
    with pytest.raises(RequestError) as found:
        load(**fields)
    assert (found.value.code, found.value.param) == (code, param)
    assert "canary5531" not in str(found.value)


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([1, 2], "token ids are not supported"),
        ([5], "token ids are not supported"),
        ([[1], [2]], "token ids are not supported"),
        ([PROMPT, PROMPT], "several prompts in one request are not supported"),
    ],
)
def test_prompts_of_another_kind_are_told_apart(prompt: object, words: str) -> None:
    with pytest.raises(RequestError) as found:
        load(prompt=prompt)
    assert words in found.value.message
    assert "canary5531" not in str(found.value)


@pytest.mark.parametrize("prompt", [PROMPT, [PROMPT]])
def test_a_prompt_travels_as_it_is(prompt: object) -> None:
    request = load(prompt=prompt)
    assert request.generation.messages == (Message(Role.PROMPT, PROMPT),)
    assert request.generation.raw_prompt == PROMPT
    assert (request.prompt_chars, request.stream, request.include_usage) == (len(PROMPT), False, False)
    assert "canary5531" not in repr(request)


def test_every_field_that_counts_arrives() -> None:
    request = load(
        max_tokens=7,
        temperature=0,
        top_p=0.5,
        seed=-1,
        stop="x",
        stream=True,
        stream_options={"include_usage": True},
        user="u",
        ignore_eos=True,
        min_tokens=6,
    )
    assert request.generation.sampling == Sampling(0.0, 0.5, 2**64 - 1, ("x",), 7, True, 6)
    assert (request.stream, request.include_usage) == (True, True)
    assert request.capabilities == {
        Capability.COMPLETIONS,
        Capability.STREAM,
        Capability.SEED,
        Capability.STOP,
        Capability.IGNORE_EOS,
        Capability.MIN_TOKENS,
    }
    assert request.carried


def test_neutral_values_ask_for_nothing() -> None:
    plain = load()
    assert plain.generation.sampling == Sampling(max_tokens=16)
    neutral = load(
        n=1,
        best_of=1,
        echo=False,
        suffix="",
        frequency_penalty=0,
        presence_penalty=0.0,
        logit_bias={},
        logprobs=None,
        ignore_eos=False,
        min_tokens=0,
    )
    assert neutral == plain
    assert plain.capabilities == {Capability.COMPLETIONS}


@pytest.mark.parametrize(
    ("fields", "capability"),
    [
        ({"logprobs": 0}, Capability.LOGPROBS),
        ({"frequency_penalty": 1}, Capability.PENALTIES),
        ({"presence_penalty": -1}, Capability.PENALTIES),
        ({"logit_bias": {"5": 1}}, Capability.LOGIT_BIAS),
    ],
)
def test_what_no_generation_carries_is_never_sent(fields: dict[str, Any], capability: Capability) -> None:
    request = load(**fields)
    assert capability in request.capabilities
    assert not request.carried


def test_every_field_of_the_body_has_a_test() -> None:
    tested = {name for fields, _, _ in BAD for name in fields} | {
        "seed", "stream", "frequency_penalty", "presence_penalty", "logit_bias"
    }
    assert set(CompletionBody.__struct_fields__) <= tested
