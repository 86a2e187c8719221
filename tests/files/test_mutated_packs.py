"""A pack that was changed in any one place is refused with an error, or says what the change says. It never crashes."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.files.document import Document, FileError, load_document
from orchestrator.files.domain_error import read_as
from orchestrator.files.fields import LabelsDocument
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.policy.packs import Pack
from tests.files.documents import DROP, broken, load, refusal
from tests.files.whole_pack import WHOLE, load_text, refused

EXAMPLE = Path(__file__).parents[2] / "examples" / "two-sides"
SHIPPED = sorted(EXAMPLE.rglob("packs/*.yaml"))
TREE: dict[str, Any] = dict(load_document(WHOLE, "whole.yaml").value)
SAME = load_text(WHOLE)
OPTIONAL = {
    "revision",
    "effective_until",
    "lists",
    "unless",
    "needs",
    "requires",
    "obligations",
    "target_access",
    "leg",
    "processed_in",
    "counters",
    "critical_infrastructure",
}
LABEL_KEYS = {*LabelsDocument.__struct_fields__}
"""May be left out of the label of a vector, though the vector may then come out otherwise."""


At = tuple[str | int, ...]


def nodes(value: object, path: At = ()) -> Iterator[tuple[At, object]]:
    yield path, value
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from nodes(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from nodes(inner, (*path, index))


NODES = list(nodes(TREE))
FIELDS = [path for path, _ in NODES if path and isinstance(path[-1], str)]
MAPPINGS = [path for path, value in NODES if isinstance(value, dict)]
SCALARS = [(path, value) for path, value in NODES if not isinstance(value, dict | list)]
LINES = WHOLE.splitlines()
KEYED = [number for number, line in enumerate(LINES) if ":" in line and "{" not in line.partition(":")[0]]


def spelt(path: At) -> str:
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path).lstrip(".")


def result(document: dict[str, Any]) -> Pack | FileError:
    """Load a pack, without the detour through its text: anything but a FileError that is raised fails the test."""
    try:
        return read_as(Document("file.yaml", document, {}), PackDocument, pack_of)
    except FileError as error:
        return error


def is_sound(error: FileError) -> bool:
    """Whether a refusal names a place, and says what was expected there."""
    named = str(error).startswith(f"file.yaml:1: {error.field}: ") and bool(error.field)
    return named and error.expected.startswith("expected ")


@pytest.mark.parametrize("path", FIELDS, ids=spelt)
def test_a_field_that_is_dropped_is_missed(path: At) -> None:
    found = result(broken(TREE, path, DROP))
    in_vector = "vectors" in path
    if path[-1] in OPTIONAL or (in_vector and path[-2] in ("label", "counters")):
        # What may be left out says something: the pack is another one, or at least a vector is another case.
        assert is_sound(found) if isinstance(found, FileError) else found != SAME or in_vector
        return
    assert isinstance(found, FileError), "a field that must be there was not missed"
    assert is_sound(found)
    assert found.field.startswith(spelt(path[:-1]))


@pytest.mark.parametrize("path", MAPPINGS, ids=lambda path: spelt(path) or "pack")
def test_an_unknown_field_is_refused_wherever_it_stands(path: At) -> None:
    error = refusal(broken(TREE, (*path, "surprise"), 1), PackDocument, pack_of)
    assert error.field == spelt((*path, "surprise")) or (path[-1] == "counters" and error.field == spelt(path))


@pytest.mark.parametrize("number", KEYED, ids=lambda number: f"line {number + 1}")
def test_a_key_that_is_written_twice_is_refused_with_both_lines(number: int) -> None:
    """The second one may say the same: which of the two was meant is still anyone's guess."""
    line = LINES[number]
    key = line.lstrip("- ").partition(":")[0]
    lead = " " * (len(line) - len(line.lstrip("- ")))
    text = "\n".join([*LINES[: number + 1], f"{lead}{key}: 1", *LINES[number + 1 :]]) + "\n"
    if not line.partition(":")[2].strip():
        # The value of this key stands on the lines below: the repeat goes before it.
        first = f"{line.partition(':')[0]}: 1"
        text = "\n".join([*LINES[:number], first, f"{lead}{line.lstrip('- ')}", *LINES[number + 1 :]])
    error = refused(text)
    assert error.expected == f"expected one such key, but line {number + 1} has it already"
    assert error.line == number + 2
    assert error.field.rpartition(".")[2] == key


MARKS = [("&here ", "no anchor"), ("!!str ", "no tag"), ("!custom ", "no tag"), ("*here #", "no alias")]


@pytest.mark.parametrize(("mark", "expected"), MARKS, ids=[mark for mark, _ in MARKS])
def test_anchors_aliases_and_tags_are_refused_at_every_value(mark: str, expected: str) -> None:
    for number in KEYED:
        key, _, value = LINES[number].partition(": ")
        if value:
            text = "\n".join([*LINES[:number], f"{key}: {mark}{value}", *LINES[number + 1 :]]) + "\n"
            error = refused(text)
            assert expected in error.expected
            assert error.line == number + 1


OTHERS: list[object] = [
    *(None, True, False, 7, -1),
    *("", " ", "no", "unknown", "Ünknown", "x" * 700),
    *([], {}, [None], [[]], {"a": {}}),
]


@pytest.mark.parametrize("other", OTHERS, ids=lambda other: repr(other)[:20])
def test_another_type_or_word_in_any_place_is_refused_or_says_something_else(other: object) -> None:
    for path, value in NODES:
        if path and value != other:
            found = result(broken(TREE, path, other))
            assert is_sound(found) if isinstance(found, FileError) else found != SAME or says_nothing_of_the_law(path)


def says_nothing_of_the_law(path: At) -> bool:
    """Whether a field is for people or for the loader alone, so that the pack stays the same without it."""
    return path[0] == "title" or path[-1] == "dated" or "vectors" in path


def test_every_expectation_of_a_vector_is_checked() -> None:
    for path, value in SCALARS:
        if path[-1] == "expect":
            other = "not" if value == "holds" else "holds"
            error = refusal(broken(TREE, path, other), PackDocument, pack_of)
            assert error.field in (spelt(path), spelt(path[:-2]))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.name)
def test_every_expectation_of_a_shipped_vector_is_checked(file: Path) -> None:
    document = dict(load_document(file.read_text(), file.name).value)
    paths = [path for path, _ in nodes(document) if path[-1:] == ("expect",)]
    assert paths
    for path in paths:
        rule = {**document, "rules": [copy.deepcopy(document["rules"][path[1]])]}  # type: ignore[index]
        vector = rule["rules"][0]["vectors"][path[3]]
        vector["expect"] = "not" if vector["expect"] == "holds" else "holds"
        error = refusal(rule, PackDocument, pack_of)
        assert error.field in (f"rules[0].vectors[{path[3]}].expect", "rules[0].vectors")


TEXTS = [WHOLE, *(file.read_text() for file in SHIPPED)]
TOKENS = st.sampled_from(
    [
        *"-:{}[],&*!|>%@`\"'#?\n ",
        "\n  - ",
        "no",
        "NO",
        "~",
        "null",
        "<<: {}",
        "!!python/object/apply:os.system [id]",
        "&a ",
        "*a",
        "0x10",
        "1e9",
        ".inf",
        "99999999999999999999",
        "\t",
        "\x00",
        "\u202e",
        "at_least",
        "beyond",
        "unless:",
        "any_of",
        "expect: not",
        "personal: {at_most: unknown}",
        "---\n",
        "é",
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_text_that_is_broken_anywhere_is_refused_or_read_but_never_crashes(data: st.DataObject) -> None:
    text = data.draw(st.sampled_from(TEXTS))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        cut = data.draw(st.sampled_from([0, 0, 1, 2, 5, 40]))
        text = text[:at] + data.draw(st.just("") | TOKENS) + text[at + cut :]
    try:
        pack = read_as(load_document(text, "packs/xx.yaml"), PackDocument, pack_of)
    except FileError as error:
        told = str(error)
    else:
        told = ""
        assert pack.rules
    assert not told or told.startswith("packs/xx.yaml")


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_values_that_change_places_are_refused_or_read_but_never_crash(data: st.DataObject) -> None:
    """Whole parts of one pack in the place of others: the right shapes with the wrong meaning."""
    document = copy.deepcopy(TREE)
    for _ in range(data.draw(st.integers(1, 3))):
        target = data.draw(st.sampled_from([path for path, _ in nodes(document) if path]))
        document = broken(document, target, copy.deepcopy(data.draw(st.sampled_from([value for _, value in NODES]))))
    found = result(document)
    assert is_sound(found) if isinstance(found, FileError) else found.rules


def test_a_pack_of_many_rules_is_bounded() -> None:
    rule = TREE["rules"][3]
    many = [{**copy.deepcopy(rule), "id": f"XX-{number}"} for number in range(501)]
    error = refusal({**TREE, "rules": many}, PackDocument, pack_of)
    assert error.field == "rules"
    assert "500" in error.expected
    assert len(load({**TREE, "rules": many[:500]}, PackDocument, pack_of).rules) == 500


def test_the_writer_of_these_tests_changes_nothing_by_itself() -> None:
    assert load(TREE, PackDocument, pack_of) == SAME
    assert yaml.safe_load(WHOLE)["id"] == "xx-whole"
