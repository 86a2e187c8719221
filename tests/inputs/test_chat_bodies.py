"""The body of a chat completion: what becomes of each field, and which refusal each bad one gets."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.engines.generation import Message, Role, Sampling
from orchestrator.files.chat import CARRIED, ChatLimits, ChatRequest, load_chat_request
from orchestrator.files.strict_json import RequestError
from orchestrator.placement.capabilities import Capability

LIMITS = ChatLimits(max_tokens_max=4096)
USER = {"role": "user", "content": "canary5531 hello"}
ABSENT = object()
C = Capability


def body(**fields: object) -> bytes:
    whole = {"model": "smollm2", "messages": [USER], **fields}
    return json.dumps({name: value for name, value in whole.items() if value is not ABSENT}).encode()


def load(**fields: object) -> ChatRequest:
    return load_chat_request(body(**fields), LIMITS)


def message(**fields: object) -> dict[str, object]:
    whole = {**USER, **fields}
    return {name: value for name, value in whole.items() if value is not ABSENT}


def part(**fields: object) -> list[dict[str, object]]:
    return [message(content=[{"type": "text", "text": "a"}, fields])]


BAD: list[tuple[dict[str, Any], str, str | None]] = [
    # Missing, empty and of the wrong type.
    ({"model": ABSENT}, "missing_field", "model"),
    ({"model": 3}, "invalid_type", "model"),
    ({"model": None}, "invalid_type", "model"),
    ({"model": ""}, "invalid_value", "model"),
    ({"model": "a b"}, "invalid_value", "model"),
    ({"model": "a\nb"}, "invalid_value", "model"),
    ({"model": "http://x\x1b[31m"}, "invalid_value", "model"),
    ({"model": "m" * 129}, "invalid_value", "model"),
    ({"ignore_eos": 1}, "invalid_type", "ignore_eos"),
    ({"ignore_eos": "true"}, "invalid_type", "ignore_eos"),
    ({"min_tokens": True}, "invalid_type", "min_tokens"),
    ({"min_tokens": 1.5}, "invalid_type", "min_tokens"),
    ({"min_tokens": "1"}, "invalid_type", "min_tokens"),
    ({"messages": ABSENT}, "missing_field", "messages"),
    ({"messages": None}, "invalid_type", "messages"),
    ({"messages": "hi"}, "invalid_type", "messages"),
    ({"messages": {}}, "invalid_type", "messages"),
    ({"messages": []}, "invalid_value", "messages"),
    ({"messages": [USER] * 1025}, "too_many_messages", "messages"),
    ({"messages": [USER, 3]}, "invalid_type", "messages[1]"),
    ({"messages": [USER, None]}, "invalid_type", "messages[1]"),
    ({"messages": [message(role=ABSENT)]}, "missing_field", "messages[0].role"),
    ({"messages": [message(role="root")]}, "invalid_value", "messages[0].role"),
    ({"messages": [message(role=None)]}, "invalid_type", "messages[0].role"),
    ({"messages": [message(role="function")]}, "invalid_value", "messages[0].role"),
    ({"messages": [USER, USER, message(content=5)]}, "invalid_type", "messages[2].content"),
    ({"messages": [message(content=None)]}, "invalid_type", "messages[0].content"),
    ({"messages": [message(content=ABSENT)]}, "missing_field", "messages[0].content"),
    ({"messages": [message(content=[])]}, "invalid_value", "messages[0].content"),
    ({"messages": [message(content=[{"type": "text", "text": "a"}] * 257)]}, "invalid_value", "messages[0].content"),
    ({"messages": [message(content=["a"])]}, "invalid_type", "messages[0].content[0]"),
    ({"messages": part(type="video")}, "invalid_value", "messages[0].content[1].type"),
    ({"messages": part(text="a")}, "missing_field", "messages[0].content[1].type"),
    ({"messages": part(type="text")}, "missing_field", "messages[0].content[1].text"),
    (
        {"messages": part(type="text", text="a", cache_control={})},
        "unknown_field",
        "messages[0].content[1].cache_control",
    ),
    (
        {"messages": part(type="image_url", image_url="http://169.254.169.254/")},
        "invalid_type",
        "messages[0].content[1].image_url",
    ),
    ({"messages": [message(content="a\x00b")]}, "invalid_value", "messages[0].content"),
    ({"messages": [message(content="\ud800")]}, "invalid_value", "messages[0].content"),
    ({"messages": [message(name="alice")]}, "unsupported_value", "messages[0].name"),
    ({"messages": [message(prefix=True)]}, "unknown_field", "messages[0].prefix"),
    (
        {"messages": [message(role="assistant", function_call={"name": "f"})]},
        "unsupported_value",
        "messages[0].function_call",
    ),
    ({"stream": "true"}, "invalid_type", "stream"),
    ({"stream": 1}, "invalid_type", "stream"),
    ({"stream_options": {"include_usage": True}}, "invalid_value", "stream_options"),
    ({"stream": True, "stream_options": {"include_usage": 1}}, "invalid_type", "stream_options.include_usage"),
    (
        {"stream": True, "stream_options": {"continuous_usage_stats": 1}},
        "invalid_type",
        "stream_options.continuous_usage_stats",
    ),
    (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "unsupported_value",
        "stream_options.include_obfuscation",
    ),
    # Numbers.
    ({"max_tokens": 0}, "invalid_value", "max_tokens"),
    ({"max_tokens": -1}, "invalid_value", "max_tokens"),
    ({"max_tokens": 4097}, "invalid_value", "max_tokens"),
    ({"max_tokens": 10**9}, "invalid_value", "max_tokens"),
    ({"max_tokens": 10**30}, "invalid_value", "max_tokens"),
    ({"max_tokens": 1.5}, "invalid_type", "max_tokens"),
    ({"max_tokens": "9"}, "invalid_type", "max_tokens"),
    ({"max_tokens": True}, "invalid_type", "max_tokens"),
    ({"max_completion_tokens": 0}, "invalid_value", "max_completion_tokens"),
    ({"max_tokens": 5, "max_completion_tokens": 6}, "invalid_value", "max_tokens"),
    ({"temperature": -0.1}, "invalid_value", "temperature"),
    ({"temperature": 2.1}, "invalid_value", "temperature"),
    ({"temperature": "1"}, "invalid_type", "temperature"),
    ({"temperature": True}, "invalid_type", "temperature"),
    ({"temperature": float("nan")}, "invalid_value", "temperature"),
    ({"temperature": float("inf")}, "invalid_value", "temperature"),
    ({"top_p": -0.1}, "invalid_value", "top_p"),
    ({"top_p": 1.1}, "invalid_value", "top_p"),
    ({"seed": 2**64}, "invalid_value", "seed"),
    ({"seed": -(2**63) - 1}, "invalid_value", "seed"),
    ({"seed": 1.5}, "invalid_type", "seed"),
    ({"n": 2}, "unsupported_value", "n"),
    ({"n": 0}, "unsupported_value", "n"),
    ({"n": 10**6}, "unsupported_value", "n"),
    ({"frequency_penalty": 3}, "invalid_value", "frequency_penalty"),
    ({"presence_penalty": "a"}, "invalid_type", "presence_penalty"),
    ({"top_logprobs": 21}, "invalid_value", "top_logprobs"),
    ({"top_logprobs": -1}, "invalid_value", "top_logprobs"),
    ({"logit_bias": {"50256": 101}}, "invalid_value", 'logit_bias["50256"]'),
    ({"logit_bias": {"50256": "a"}}, "invalid_type", 'logit_bias["50256"]'),
    ({"logit_bias": {str(i): 1 for i in range(5000)}}, "invalid_value", "logit_bias"),
    # Strings and lists.
    ({"stop": ""}, "invalid_value", "stop"),
    ({"stop": ["a", ""]}, "invalid_value", "stop[1]"),
    ({"stop": ["x" * 65]}, "invalid_value", "stop[0]"),
    ({"stop": ["a"] * 5}, "invalid_value", "stop"),
    ({"stop": ["a"] * 10_000}, "invalid_value", "stop"),
    ({"stop": ["a"] * 100_000}, "too_many_values", None),
    ({"stop": [3]}, "invalid_type", "stop[0]"),
    ({"stop": 3}, "invalid_type", "stop"),
    ({"user": "x" * 257}, "invalid_value", "user"),
    ({"user": 3}, "invalid_type", "user"),
    ({"metadata": {"a": "b"}}, "unsupported_value", "metadata"),
    ({"store": True}, "unsupported_value", "store"),
    ({"service_tier": "priority"}, "unsupported_value", "service_tier"),
    ({"reasoning_effort": "high"}, "unsupported_value", "reasoning_effort"),
    ({"modalities": ["text", "smell"]}, "unsupported_value", "modalities"),
    ({"prediction": {"type": "content"}}, "unsupported_value", "prediction"),
    ({"tools": [{}] * 129}, "invalid_value", "tools"),
    ({"tools": "all"}, "invalid_type", "tools"),
    ({"tool_choice": "maybe"}, "invalid_value", "tool_choice"),
    ({"parallel_tool_calls": "yes"}, "invalid_type", "parallel_tool_calls"),
    ({"response_format": "json"}, "invalid_type", "response_format"),
    ({"response_format": {"type": "grammar"}}, "invalid_value", "response_format.type"),
    ({"response_format": {"type": "json_schema"}}, "missing_field", "response_format.json_schema"),
    ({"response_format": {"type": "json_object", "x": 1}}, "unknown_field", "response_format.x"),
    # A name that imitates the place of an error of the converter.
    ({"x` - at `$.messages": 1}, "unknown_field", '["x` - at `$.messages"]'),
    ({"x\u202e\n": 1}, "unknown_field", '["x??"]'),
    ({"x" * 500: 1}, "unknown_field", '["' + "x" * 64 + '"]'),
]


@pytest.mark.parametrize(("fields", "code", "param"), BAD)
def test_each_bad_field_has_its_code_and_its_path(fields: dict[str, Any], code: str, param: str | None) -> None:
    with pytest.raises(RequestError) as caught:
        load(**fields)
    assert (caught.value.code, caught.value.param) == (code, param)
    assert "canary5531" not in str(caught.value)


SMUGGLED = (
    "api_base base_url custom_host api_key chat_template chat_template_kwargs prompt_embeds best_of echo "
    "min_new_tokens guided_json guided_regex guided_grammar guided_choice extra_body extra_headers functions "
    "function_call "
    "web_search_options add_generation_prompt continue_final_message top_k min_p repetition_penalty length_penalty "
    "stop_token_ids include_stop_str_in_output skip_special_tokens bad_words logits_processors prompt prompt_ids "
    "mm_processor_kwargs kv_transfer_params structured_outputs priority cache_salt documents timeout fallbacks "
    "previous_response_id session_id tenant route upstream"
).split()


@pytest.mark.parametrize("name", SMUGGLED)
def test_fields_that_smuggle_or_change_the_meaning_are_unknown(name: str) -> None:
    for value in (None, "http://canary.invalid/", {"a": 1}, 1):
        with pytest.raises(RequestError) as caught:
            load(**{name: value})
        assert (caught.value.code, caught.value.param) == ("unknown_field", name)


@pytest.mark.parametrize("whole", [b"[]", b"3", b'"a"', b"null"])
def test_a_body_that_is_no_object_is_refused(whole: bytes) -> None:
    with pytest.raises(RequestError) as caught:
        load_chat_request(whole, LIMITS)
    assert (caught.value.code, caught.value.param) == ("invalid_type", None)


def test_a_plain_request_becomes_a_generation() -> None:
    request = load(messages=[{"role": "developer", "content": "s"}, USER, {"role": "assistant", "content": ""}])
    assert [m.role for m in request.generation.messages] == [Role.SYSTEM, Role.USER, Role.ASSISTANT]
    assert request.generation.sampling == Sampling()
    assert request.generation.model == "smollm2"
    assert request.capabilities == {C.CHAT}
    assert (request.stream, request.include_usage, request.prompt_chars) == (False, False, 17)
    assert request.carried


def test_text_parts_are_joined_by_a_line_end() -> None:
    request = load(messages=[message(content=[{"type": "text", "text": "a"}, {"type": "text", "text": "b"}])])
    assert request.generation.messages == (Message(Role.USER, "a\nb"),)


def test_sampling_is_carried_over() -> None:
    request = load(
        stream=True,
        stream_options={"include_usage": True},
        temperature=0,
        top_p=0.5,
        seed=7,
        stop="END",
        max_completion_tokens=4096,
    )
    assert request.generation.sampling == Sampling(0.0, 0.5, 7, ("END",), 4096)
    assert request.capabilities == {C.CHAT, C.STREAM, C.SEED, C.STOP}
    assert request.include_usage
    assert request.carried


@pytest.mark.parametrize(
    ("options", "continuous"),
    [
        ({"include_usage": True, "continuous_usage_stats": True}, True),
        ({"include_usage": True, "continuous_usage_stats": False}, False),
        ({"include_usage": True, "continuous_usage_stats": None}, False),
        ({"include_usage": False, "continuous_usage_stats": True}, False),
        ({"continuous_usage_stats": True}, False),
    ],
)
def test_usage_so_far_is_a_wish_beside_usage_alone(options: dict[str, object], continuous: bool) -> None:
    assert load(stream=True, stream_options=options).continuous_usage is continuous


def test_where_an_answer_may_end_is_carried_and_asks_for_what_a_pool_declares() -> None:
    request = load(ignore_eos=True, min_tokens=5, max_tokens=5)
    assert request.generation.sampling == Sampling(max_tokens=5, ignore_eos=True, min_tokens=5)
    assert request.capabilities == {C.CHAT, C.IGNORE_EOS, C.MIN_TOKENS}
    assert request.carried
    assert load(ignore_eos=True).capabilities == {C.CHAT, C.IGNORE_EOS}
    assert load(min_tokens=4096).capabilities == {C.CHAT, C.MIN_TOKENS}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"max_tokens": 4, "min_tokens": 5}, "expected 0 to 4: no more than max_tokens"),
        ({"max_completion_tokens": 4, "min_tokens": 5}, "expected 0 to 4: no more than max_tokens"),
        ({"min_tokens": 4097}, "expected 0 to 4096"),
        ({"min_tokens": -1}, "expected 0 to 4096"),
    ],
)
def test_the_fewest_tokens_are_no_more_than_the_most(fields: dict[str, object], words: str) -> None:
    with pytest.raises(RequestError) as caught:
        load(**fields)
    assert (caught.value.code, caught.value.param, caught.value.message) == ("invalid_value", "min_tokens", words)


def test_both_token_bounds_may_be_given_when_they_agree() -> None:
    assert load(max_tokens=5, max_completion_tokens=5).generation.sampling.max_tokens == 5
    assert load(max_tokens=5).generation.sampling.max_tokens == 5


def test_equal_requests_give_equal_generations() -> None:
    assert str(load(temperature=-0.0).generation.sampling.temperature) == "0.0"
    assert load(top_p=0) == load(top_p=-0.0) == load(top_p=1e-300)
    assert 0 < load(top_p=0).generation.sampling.top_p < 1e-5, "engines refuse the 0 that OpenAI's document allows"
    assert load(temperature=None, top_p=None, seed=None, stop=None) == load(stop=[])


@settings(max_examples=100, deadline=None)
@given(st.integers(-(2**63), 2**64 - 1))
def test_a_negative_seed_is_its_twos_complement(seed: int) -> None:
    got = load(seed=seed).generation.sampling.seed
    assert got is not None
    assert 0 <= got < 2**64
    assert got == seed if seed >= 0 else got - 2**64 == seed


NEUTRAL: list[dict[str, object]] = [
    {"n": 1},
    {"user": "u" * 256},
    {"safety_identifier": "x"},
    {"prompt_cache_key": "k" * 256},
    {"prompt_cache_retention": "24h"},
    {"store": False},
    {"metadata": {}},
    {"service_tier": "auto"},
    {"service_tier": "default"},
    {"reasoning_effort": "none"},
    {"modalities": ["text"]},
    {"tools": []},
    {"tool_choice": "none"},
    {"tool_choice": "auto"},
    {"parallel_tool_calls": False},
    {"response_format": {"type": "text"}},
    {"logprobs": False, "top_logprobs": 0},
    {"frequency_penalty": 0, "presence_penalty": 0.0},
    {"logit_bias": {}},
    {"verbosity": "medium"},
    {"ignore_eos": False},
    {"min_tokens": 0},
]


@pytest.mark.parametrize("fields", NEUTRAL)
def test_neutral_values_change_nothing(fields: dict[str, object]) -> None:
    assert load(**fields) == load()
    assert load(**dict.fromkeys(fields)) == load()


NEEDS: list[tuple[dict[str, Any], Capability]] = [
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, C.TOOLS),
    ({"tool_choice": "required"}, C.TOOLS),
    ({"tool_choice": {"type": "function", "function": {"name": "f"}}}, C.TOOLS),
    ({"messages": [USER, {"role": "tool", "tool_call_id": "c", "content": "1"}]}, C.TOOLS),
    ({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [{}]}]}, C.TOOLS),
    ({"messages": [USER, {"role": "tool", "content": "1"}]}, C.TOOLS),
    ({"messages": [message(tool_call_id="c")]}, C.TOOLS),
    ({"response_format": {"type": "json_object"}}, C.JSON_OBJECT),
    ({"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}}, C.JSON_SCHEMA),
    ({"logprobs": True}, C.LOGPROBS),
    ({"top_logprobs": 3}, C.LOGPROBS),
    ({"frequency_penalty": 0.5}, C.PENALTIES),
    ({"presence_penalty": -2}, C.PENALTIES),
    ({"logit_bias": {"50256": -100}}, C.LOGIT_BIAS),
    ({"modalities": ["text", "audio"]}, C.AUDIO),
    ({"audio": {"voice": "x"}}, C.AUDIO),
    ({"messages": part(type="image_url", image_url={"url": "http://169.254.169.254/"})}, C.VISION),
    ({"messages": part(type="input_audio", input_audio={"data": "", "format": "wav"})}, C.AUDIO),
]


@pytest.mark.parametrize(("fields", "capability"), NEEDS)
def test_what_no_generation_carries_is_required_and_marks_the_request_as_not_carried(
    fields: dict[str, Any], capability: Capability
) -> None:
    request = load(**fields)
    assert request.capabilities == {C.CHAT, capability}
    assert not request.carried
    assert capability not in CARRIED


def test_an_assistants_message_may_be_replayed_as_it_was_received() -> None:
    replayed: dict[str, object] = {
        "role": "assistant",
        "content": "a",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "function_call": None,
        "tool_calls": None,
    }
    assert load(messages=[USER, replayed]).generation.messages[1] == Message(Role.ASSISTANT, "a")


def test_the_repr_of_a_request_holds_no_text_of_the_tenant() -> None:
    request = load(stop="canary5531")
    assert "canary5531" not in f"{request!r} {request} {request.generation.messages!r}"
    assert "canary5531" in request.generation.messages[0].text


def test_the_bounds_are_those_of_the_edge() -> None:
    tight = ChatLimits(max_tokens_max=8, messages_max=2, depth_max=3)
    load_chat_request(body(max_tokens=8, messages=[USER] * 2), tight)
    for fields, code in (({"max_tokens": 9}, "invalid_value"), ({"messages": [USER] * 3}, "too_many_messages")):
        with pytest.raises(RequestError) as caught:
            load_chat_request(body(**fields), tight)
        assert caught.value.code == code
    with pytest.raises(RequestError) as caught:
        load_chat_request(body(tools=[{"a": [1]}]), tight)
    assert caught.value.code == "too_deep"
    with pytest.raises(RequestError) as caught:
        load_chat_request(body(tools=[{"a": 1}] * 64), ChatLimits(max_tokens_max=8, values_max=100))
    assert caught.value.code == "too_many_values"


def test_a_long_text_is_no_list_of_values() -> None:
    text = '{"a": [1, 2, "x\\\\"], "b": {}}, ' * 20_000
    assert load(messages=[{"role": "user", "content": text}]).generation.messages[0].text == text


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["type", "text", "role", "content", "a"]), inner, max_size=3)
    ),
    max_leaves=6,
)
NAMES = st.sampled_from(
    [
        "model",
        "messages",
        "stream",
        "stream_options",
        "stop",
        "seed",
        "tools",
        "logit_bias",
        "temperature",
        "max_tokens",
        "n",
        "response_format",
        "audio",
        "zz",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(NAMES, VALUES, max_size=5), st.booleans())
def test_any_object_is_accepted_or_refused_with_a_request_error(fields: dict[str, object], complete: bool) -> None:
    try:
        request = load(**fields) if complete else load_chat_request(json.dumps(fields).encode(), LIMITS)
    except RequestError:
        return
    assert C.CHAT in request.capabilities


def test_a_large_request_is_read_in_a_few_milliseconds() -> None:
    large = body(messages=[message(content="hello world " * 100)] * 1000)
    started_s = time.process_time()
    load_chat_request(large, LIMITS)
    assert time.process_time() - started_s < 0.5
