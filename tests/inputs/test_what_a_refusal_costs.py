"""To say what is wrong with a body costs about as much as to read a good one of its size. Work is counted, not time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import count
from json import JSONDecoder
from types import FrameType

import pytest

from orchestrator.files import strict_json
from orchestrator.files.chat import ChatLimits, load_chat_request
from orchestrator.files.strict_json import RequestError

LIMITS = ChatLimits(1_000_000)
TOOL = '{"type":"function","function":{"name":"f","parameters":{"a":[%s]}}}'
TOOLS = ",".join([TOOL % ",".join(["1"] * 200)] * 128)
OBJECTS, NUMBERS = 128 * 3 + 2, 128 * 200
MESSAGE = '{"role":"user","content":"hello"}'


def body_of(more: str, tools: str = TOOLS) -> bytes:
    return f'{{"model":"m","messages":[{MESSAGE}],"tools":[{tools}]{more}}}'.encode()


def work_of(act: Callable[[], object]) -> tuple[int, str | None]:
    """How many calls of functions it takes, and which field is told."""
    calls, param = count(), None

    def note(_frame: FrameType, event: str, _what: object) -> None:
        if event in ("call", "c_call"):
            next(calls)

    sys.setprofile(note)
    try:
        act()
    except RequestError as refusal:
        param = refusal.param
    finally:
        sys.setprofile(None)
    return next(calls), param


@pytest.mark.parametrize(
    ("more", "param"),
    [
        (',"model":"n"', "model"),
        (',"top_p":1e999', "top_p"),
        (',"top_p":1e0000000999', "top_p"),
        (',"top_p":NaN', "top_p"),
        (',"top_p":-Infinity', "top_p"),
        (',"user":"\\u0000"', "user"),
        (',"user":"a","user":"b"', "user"),
    ],
)
def test_nothing_is_called_for_each_number_of_a_body_that_is_refused(more: str, param: str) -> None:
    body = body_of(more)
    calls, told = work_of(lambda: load_chat_request(body, LIMITS))
    assert told == param
    assert calls < 20 * OBJECTS < NUMBERS


def test_a_body_that_is_refused_is_parsed_once_by_the_parser_that_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[int] = []
    parse = strict_json._parse

    def noting(text: str, decoder: JSONDecoder) -> object:
        parsed.append(len(text))
        return parse(text, decoder)

    monkeypatch.setattr(strict_json, "_parse", noting)
    for more in (',"model":"n"', ',"top_p":1e999', f',"seed":{10**30}', ',"user":"\\ud800"'):
        parsed.clear()
        body = body_of(more)
        with pytest.raises(RequestError):
            load_chat_request(body, LIMITS)
        assert parsed == [len(body)]


@pytest.mark.parametrize(
    "number",
    ["18446744073709551616", "-9223372036854775809", "1" * 5_000, "1" * 400 + ".0", "1e309", "9E+999", "-1e400"],
)
@pytest.mark.parametrize("many", [0, 5_000])
def test_a_number_that_is_too_large_is_found_among_many(number: str, many: int) -> None:
    lists = ",".join(TOOL % ",".join(["1"] * 200) for _ in range(many // 200))
    with pytest.raises(RequestError) as refused:
        load_chat_request(body_of(f',"seed":{number}', lists), LIMITS)
    assert (refused.value.code, refused.value.param) == ("invalid_value", "seed")
