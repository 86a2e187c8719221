"""Canonical bytes: one spelling per value, commitments that no two lists share, durations that never end early."""

from __future__ import annotations

import hmac
import json
from collections import OrderedDict

import pytest
import rfc8785
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.canonical import (
    INTEGER_MAX,
    JsonValue,
    canonical_bytes,
    commit,
    written,
    written_part,
)
from orchestrator.evidence.records import DAY_MS, retain_until_ms
from orchestrator.placement.capabilities import Capability
from orchestrator.policy.ids import KeyId

KEY = b"k" * 32
KEY_ID = KeyId("abcdef")

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-INTEGER_MAX, INTEGER_MAX) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"b": 1, "a": 2}, b'{"a":2,"b":1}'),
        # RFC 8785 section 3.2.3: names are sorted by their UTF-16 code units.
        ({"\u20ac": 1, "\r": 2, "1": 3, "\U0001f602": 4}, '{"\\r":2,"1":3,"€":1,"😂":4}'.encode()),
        ({"a": 'quote " back \\ line \n'}, b'{"a":"quote \\" back \\\\ line \\n"}'),
        ({"a": [True, False, None, -5]}, b'{"a":[true,false,null,-5]}'),
    ],
)
def test_the_spelling_is_that_of_rfc_8785(value: dict[str, object], expected: bytes) -> None:
    assert canonical_bytes(value) == expected  # type: ignore[arg-type]


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_reading_and_writing_again_gives_the_same_bytes(value: dict[str, object]) -> None:
    data = canonical_bytes(value)  # type: ignore[arg-type]
    assert canonical_bytes(json.loads(data)) == data


@given(st.dictionaries(st.text(), VALUES, max_size=5))
def test_every_value_is_spelled_as_the_reference_spells_it(value: dict[str, object]) -> None:
    assert canonical_bytes(value) == rfc8785.dumps(value)  # type: ignore[arg-type]


@given(st.dictionaries(st.text(), VALUES, max_size=5), st.dictionaries(st.text(), VALUES, max_size=3))
def test_a_part_that_was_written_before_its_whole_is_spelled_as_in_it(
    part: dict[str, JsonValue], rest: dict[str, JsonValue]
) -> None:
    assert written({**rest, "part": written_part(part)}) == canonical_bytes({**rest, "part": part})


@given(st.frozensets(st.text()), st.frozensets(st.sampled_from(Capability)))
def test_a_set_is_written_as_its_sorted_words(words: frozenset[str], needs: frozenset[Capability]) -> None:
    spelled: dict[str, JsonValue] = {"needs": [str(need) for need in sorted(needs)], "words": [*sorted(words)]}
    assert written({"words": words, "needs": needs}) == canonical_bytes(spelled)


def test_every_character_is_spelled_as_the_reference_spells_it() -> None:
    everything = "".join(chr(code) for code in range(0x11000) if not 0xD800 <= code < 0xE000)
    assert canonical_bytes({"a": everything}) == rfc8785.dumps({"a": everything})


def test_a_name_beyond_ascii_deep_inside_is_sorted_by_its_utf_16_units() -> None:
    value: dict[str, JsonValue] = {"a": [{"b": {"\U0001f602": 1, "\ufb33": 2}}]}
    assert canonical_bytes(value) == '{"a":[{"b":{"😂":1,"\ufb33":2}}]}'.encode()


class _Word(str):
    __slots__ = ()


@pytest.mark.parametrize("value", [_Word("word"), (1, "two"), OrderedDict({"b": 1, "a": _Word("c")})])
def test_kin_of_the_plain_types_are_spelled_as_they_are(value: object) -> None:
    assert canonical_bytes({"a": value}) == rfc8785.dumps({"a": value})  # type: ignore[dict-item]


@pytest.mark.parametrize("value", [1.5, float("nan"), INTEGER_MAX + 1, -INTEGER_MAX - 1, b"bytes", {1: "key"}])
def test_what_two_machines_could_spell_differently_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match=r"canonical|2\^53"):
        canonical_bytes({"a": [value]})  # type: ignore[list-item]


@given(st.lists(st.binary(max_size=6), max_size=4))
def test_a_commitment_is_the_hmac_of_its_parts_each_with_its_length(parts: list[bytes]) -> None:
    mac = hmac.new(KEY, digestmod="sha256")
    for part in parts:
        mac.update(len(part).to_bytes(8, "big"))
        mac.update(part)
    assert commit(KEY, KEY_ID, tuple(parts)) == f"hmac-sha256:{KEY_ID}:{mac.hexdigest()}"


@given(st.lists(st.binary(max_size=6), max_size=4), st.lists(st.binary(max_size=6), max_size=4))
def test_two_lists_of_parts_share_no_commitment(one: list[bytes], other: list[bytes]) -> None:
    same = commit(KEY, KEY_ID, tuple(one)) == commit(KEY, KEY_ID, tuple(other))
    assert same == (one == other)


def test_a_commitment_says_nothing_without_its_key() -> None:
    assert commit(KEY, KEY_ID, (b"yes",)) != commit(b"x" * 32, KEY_ID, (b"yes",))
    assert commit(KEY, KEY_ID, (b"yes",)).startswith("hmac-sha256:abcdef:")


@pytest.mark.parametrize(
    ("retention", "days"), [((), 0), (("P6M",), 186), (("P3Y", "P6M"), 1098), (("P10D",), 10), (("P2W",), 14)]
)
def test_a_record_is_kept_at_least_as_long_as_promised(retention: tuple[str, ...], days: int) -> None:
    assert retain_until_ms(retention, 1_000) == (1_000 + days * DAY_MS if days else 0)


@pytest.mark.parametrize("text", ["6M", "P6", "PT6M", "P1.5Y", "P-1D", ""])
def test_a_duration_that_cannot_be_read_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="ISO 8601"):
        retain_until_ms((text,), 0)
