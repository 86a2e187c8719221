"""The text of an answer does not depend on how it was cut into tokens."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scheduler.pools.engine.detokenise import AnswerText, byte_alphabet, token_table
from scheduler.pools.engine.loop import Engine
from scheduler.pools.engine.prompt import Prompter
from tests.engine.answers import ask, generation

PIECES = st.lists(st.binary(max_size=5), max_size=25)
# Few letters, so that stop strings occur, overlap and begin inside each other.
LETTERS = st.text(alphabet="ab🦊é", max_size=30)
STOPS = st.lists(st.text(alphabet="ab🦊é", min_size=1, max_size=5), max_size=4)


def _emitted(pieces: list[bytes], stop: list[str]) -> tuple[str, bool]:
    answer = AnswerText(pieces, stop)
    text = "".join(answer.push(token_id) for token_id in range(len(pieces)))
    return text + answer.rest(), answer.stopped


def _cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(data) + 1) for place in places), len(data)]
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def _before_first_stop(text: str, stop: list[str]) -> str:
    """The specification: go on until a stop string stands complete at the end; cut where the longest such begins."""
    for end in range(1, len(text) + 1):
        complete = [len(one) for one in stop if text[:end].endswith(one)]
        if complete:
            return text[: end - max(complete)]
    return text


@given(LETTERS, STOPS, st.lists(st.integers(0, 200), max_size=20))
def test_any_cut_into_tokens_emits_the_same_text(text: str, stop: list[str], places: list[int]) -> None:
    emitted, stopped = _emitted(_cut(text.encode(), places), stop)
    assert emitted == _before_first_stop(text, stop)
    assert stopped == any(one in text for one in stop)


@given(PIECES)
def test_any_bytes_emit_the_same_text_as_at_once(pieces: list[bytes]) -> None:
    assert _emitted(pieces, []) == _emitted([b"".join(pieces)], [])


@given(PIECES, STOPS)
def test_emitted_text_is_never_taken_back(pieces: list[bytes], stop: list[str]) -> None:
    answer = AnswerText(pieces, stop)
    emitted = ""
    for token_id in range(len(pieces)):
        emitted += answer.push(token_id)
        whole, _ = _emitted(pieces[: token_id + 1], stop)
        assert whole.startswith(emitted)


def test_incomplete_character_is_held_back() -> None:
    fox = "🦊".encode()
    answer = AnswerText([fox[:1], fox[1:3], fox[3:]], [])
    assert [answer.push(0), answer.push(1), answer.push(2)] == ["", "", "🦊"]


def test_incomplete_character_at_the_end_is_no_text() -> None:
    answer = AnswerText([b"a\xf0\x9f"], [])
    assert answer.push(0) + answer.rest() == "a"


def test_nothing_is_let_through_after_a_stop_string() -> None:
    answer = AnswerText([b"one st", b"op two", b"three"], ["stop"])
    assert [answer.push(0), answer.push(1), answer.push(2), answer.rest()] == ["one ", "", "", ""]


def test_text_that_only_began_like_a_stop_string_is_let_through() -> None:
    answer = AnswerText([b"aab", b"ac"], ["aabaa"])
    assert [answer.push(0), answer.push(1)] == ["", "aabac"]


def test_byte_alphabet_is_one_character_for_each_byte() -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert byte_alphabet()["Ġ"] == ord(" ")


def test_vocabulary_that_is_not_byte_level_is_refused() -> None:
    with pytest.raises(ValueError, match="byte-level"):
        token_table({"▁the": 0}, {}, set())


def test_control_tokens_are_no_text() -> None:
    table = token_table({"a": 0, "<|im_end|>": 1}, {1: "<|im_end|>", 2: "<tool>"}, {1})
    assert table == (b"a", b"", b"<tool>")


def test_streamed_text_is_that_of_the_tokens(engine: Engine, tiny_model: Path) -> None:
    # A random model at a high temperature writes bytes that are rarely UTF-8.
    answer = ask(engine, generation(temperature=2.0, seed=5, max_tokens=150)).wait()
    table = Prompter(tiny_model, 256).token_table
    assert any(delta.text == "" for delta in answer.all_deltas), "some character must have been held back"
    assert answer.text == _emitted([b"".join(table[token_id] for token_id in answer.token_ids)], [])[0]
