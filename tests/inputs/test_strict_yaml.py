"""The YAML of packs, fleets and settings: what is understood, what is refused, and what the refusal says."""

from __future__ import annotations

import time
from decimal import Decimal
from enum import Enum
from pathlib import Path

import msgspec
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.files.document import (
    DEPTH_MAX,
    NODES_MAX,
    SIZE_BYTES_MAX,
    FileError,
    load_document,
    plain_scalar,
    read_document,
)
from orchestrator.files.typed import require_strict


class Effect(Enum):
    GRANT = "grant"
    FORBID = "forbid"
    REQUIRE = "require"
    OBLIGE = "oblige"


class HasCountry(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="country"):
    country: str


class HasGrade(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag_field="kind", tag="grade"):
    at_least: int


class Rule(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    effect: Effect
    when: HasCountry | HasGrade | None = None
    share: Decimal = Decimal(0)
    by_country: dict[str, list[HasCountry | HasGrade]] = {}


class Pack(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    rules: list[Rule]
    name: str = ""


class Lenient(msgspec.Struct):
    a: int = 0


class Outer(msgspec.Struct, forbid_unknown_fields=True):
    inner: dict[str, list[Lenient | None]] = {}


def refusal(text: str) -> str:
    with pytest.raises(FileError) as caught:
        load_document(text, "packs/cn.yaml").convert(Pack)
    return str(caught.value)


def test_a_good_pack_becomes_typed_values() -> None:
    text = """
rules:
  - effect: grant
    when: {kind: country, country: NO}
    share: "0.05"
  - effect: forbid
    by_country: {SG: [{kind: grade, at_least: 2}]}
name: no
"""
    pack = load_document(text, "x").convert(Pack)
    assert pack.rules[0] == Rule(Effect.GRANT, HasCountry("NO"), Decimal("0.05"))
    assert pack.rules[1].by_country == {"SG": [HasGrade(2)]}
    assert pack.name == "no"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("true", True),
        ("False", False),
        ("null", None),
        ("~", None),
        ("", None),
        ("0", 0),
        ("-12", -12),
        ("+7", 7),
        ("0x1F", 31),
        ("0o17", 15),
        ("18446744073709551615", 2**64 - 1),
        # What YAML 1.1 would have read as something else.
        ("no", "no"),
        ("NO", "NO"),
        ("off", "off"),
        ("y", "y"),
        ("1_000", "1_000"),
        ("12:30", "12:30"),
        ("2026-11-01", "2026-11-01"),
        ("1.2.3", "1.2.3"),
        ("tRUE", "tRUE"),
        ("-", "-"),
        ("0b11", "0b11"),
    ],
)
def test_plain_scalars_follow_yaml_1_2_core(text: str, value: object) -> None:
    got = plain_scalar(text)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize("text", ["1.5", "1e3", ".5", "1.", "-0.0", ".inf", "-.INF", ".nan"])
def test_floats_are_refused_with_the_way_to_write_them(text: str) -> None:
    assert refusal(f"rules: []\nname: {text}") == "packs/cn.yaml:2: name: write it as a quoted decimal"


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "rules:\n  - effect: allow",
            "packs/cn.yaml:2: rules[0].effect: expected one of grant, forbid, require, oblige",
        ),
        ("rules:\n  - effect: 1", "packs/cn.yaml:2: rules[0].effect: expected one of grant, forbid, require, oblige"),
        ("rules:\n  - effect: grant\n    wen: 1", "packs/cn.yaml:3: rules[0].wen: expected one of the fields"),
        ("rules:\n  - {}", "packs/cn.yaml:2: rules[0].effect: expected this field, which is missing"),
        ("name: a", "packs/cn.yaml:1: rules: expected this field, which is missing"),
        ("rules: {}", "packs/cn.yaml:1: rules: expected a list, got a mapping"),
        (
            "rules:\n- effect: grant\n  when: {kind: x}",
            "packs/cn.yaml:3: rules[0].when.kind: expected one of country, ",
        ),
        (
            "rules:\n- effect: grant\n  by_country:\n    SG: []\n    a b:\n      - kind: grade\n        at_least: x",
            'packs/cn.yaml:7: rules[0].by_country["a b"][0].at_least: expected a whole number, got text',
        ),
        ("rules: []\nname: 5", "packs/cn.yaml:2: name: expected text, got a whole number"),
        ("", "packs/cn.yaml:1: expected a mapping of fields, but the file is empty"),
        ("# only a comment", "packs/cn.yaml:1: expected a mapping of fields, but the file is empty"),
        ("- a", "packs/cn.yaml:1: expected a mapping of fields"),
        ("text", "packs/cn.yaml:1: expected a mapping of fields"),
        ("rules: []\nrules: []", "packs/cn.yaml:2: rules: expected one such key, but line 1 has it already"),
        ("rules: []\n'rules': []", "packs/cn.yaml:2: rules: expected one such key, but line 1 has it already"),
        ("rules: &a []", "packs/cn.yaml:1: rules: expected no anchor"),
        ("rules: *a", "packs/cn.yaml:1: rules: expected no alias"),
        ("name: !!str 1", "packs/cn.yaml:1: name: expected no tag"),
        ("name: ! 1", "packs/cn.yaml:1: name: expected no tag"),
        ("name: !!python/object/apply:os.system [echo]", "packs/cn.yaml:1: name: expected no tag"),
        ("<<: {a: 1}", "packs/cn.yaml:1: expected no merge key"),
        ("a: 1\n---\nb: 2", "packs/cn.yaml:2: expected one document"),
        ("%YAML 1.1\n---\na: 1", "packs/cn.yaml:1: expected no % directive"),
        ("? [a]\n: 1", "packs/cn.yaml:1: expected a text key"),
        ("true: 1", "packs/cn.yaml:1: expected a text key: quote it"),
        ("1: 1", "packs/cn.yaml:1: expected a text key: quote it"),
        ("~: 1", "packs/cn.yaml:1: expected a text key: quote it"),
        ("name: 007", "packs/cn.yaml:1: name: expected a number without leading zeros"),
        ("name: " + "9" * 6000, "packs/cn.yaml:1: name: expected a whole number of at most 64 bits"),
        ("name: 0x" + "f" * 17, "packs/cn.yaml:1: name: expected a whole number of at most 64 bits"),
        ("a: 1\nname: [1", "packs/cn.yaml:"),
        ("\tname: a", "packs/cn.yaml:1: expected well-formed YAML"),
        ('name: "\\ud800"', "packs/cn.yaml:1: expected well-formed YAML"),
        ('name: "\\0"', "packs/cn.yaml:1: name: expected no character U+0000"),
        ("a: 1\nname: a\u202eb", "packs/cn.yaml:2: expected no character U+202E"),
        ("\ufeffname: a", "packs/cn.yaml:1: expected no character U+FEFF"),
        ("name: a\x00", "packs/cn.yaml:1: expected no character U+0000"),
        ("name: a\rrules: []", "packs/cn.yaml:1: expected no character U+000D"),
        ("x" * 200 + ": 1", "packs/cn.yaml:1: expected a key of at most 128 characters"),
    ],
)
def test_a_refusal_is_one_sentence_with_file_line_field_and_fix(text: str, sentence: str) -> None:
    said = refusal(text)
    assert said.startswith(sentence)
    assert "\n" not in said


def test_a_refusal_never_repeats_a_value() -> None:
    for text in ("rules:\n  - effect: canary7141", "name: [canary7141]", "rules: canary7141", "a: *canary7141"):
        assert "canary7141" not in refusal(text)


@pytest.mark.parametrize("opening", ["[", "{a: ", "- "])
def test_deep_nesting_is_refused_without_recursion(opening: str) -> None:
    started_s = time.monotonic()
    assert f"at most {DEPTH_MAX} levels" in refusal("rules: \n  " + opening * 40_000)
    assert time.monotonic() - started_s < 5


def test_size_and_number_of_values_are_bounded(tmp_path: Path) -> None:
    assert f"at most {SIZE_BYTES_MAX} bytes" in refusal("name: " + "x" * SIZE_BYTES_MAX)
    assert f"at most {SIZE_BYTES_MAX} bytes" in refusal("name: " + "字" * (SIZE_BYTES_MAX // 3))
    assert f"at most {NODES_MAX} values" in refusal("rules: [" + "1," * (NODES_MAX + 1) + "]")
    big = tmp_path / "big.yaml"
    big.write_bytes(b"#" * (SIZE_BYTES_MAX + 1))
    with pytest.raises(FileError, match="at most"):
        read_document(big)


def test_a_file_that_cannot_be_read_is_one_sentence_too(tmp_path: Path) -> None:
    with pytest.raises(FileError, match=r"missing.yaml: expected a readable file \(No such file or directory\)"):
        read_document(tmp_path / "missing.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"a: 1\nb: \xe9")
    with pytest.raises(FileError, match=r"latin:2: expected text in UTF-8"):
        read_document(tmp_path / "latin.yaml", "latin")


def test_a_loader_can_point_at_a_field_after_conversion() -> None:
    document = load_document("rules:\n  - effect: grant\n  - effect: forbid\n", "packs/cn.yaml")
    error = document.error(("rules", 1, "effect"), "expected no forbid here")
    assert str(error) == "packs/cn.yaml:3: rules[1].effect: expected no forbid here"
    assert document.line_of(("rules", 1, "absent", 0)) == 3
    assert document.line_of(("nowhere",)) == 1


def test_types_that_drop_unknown_fields_are_refused_as_a_mistake_of_the_program() -> None:
    with pytest.raises(TypeError, match="forbid_unknown_fields"):
        load_document("inner: {}", "x").convert(Outer)
    require_strict(Pack)


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.text(st.characters(codec="utf-8", categories=("L", "N", "P", "Zs")), max_size=12),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text("abcxyz_NO", min_size=1, max_size=6), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.text("abc_", min_size=1, max_size=5), PLAIN, max_size=4))
def test_what_a_careful_writer_writes_is_read_back_unchanged(value: dict[str, object]) -> None:
    # JSON is the careful writer: its strings are all quoted, so nothing depends on the reading of plain scalars.
    text = msgspec.json.encode(value).decode()
    assert load_document(text, "x").value == value


@settings(max_examples=150, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=200) | st.binary(max_size=200).map(lambda b: b.decode("latin-1")))
def test_any_text_is_loaded_or_refused_with_a_file_error(text: str) -> None:
    sentence = ""
    try:
        load_document(text, "x")
    except FileError as failure:
        sentence = str(failure)
    assert "\n" not in sentence


def test_the_subset_is_needed_because_the_plain_loader_would_not_refuse() -> None:
    """Positive control: the same texts mean something else to a common YAML loader."""
    assert yaml.safe_load("a: 1\na: 2") == {"a": 2}
    assert yaml.safe_load("country: NO") == {"country": False}
    assert yaml.safe_load("a: 1.10") == {"a": 1.1}
