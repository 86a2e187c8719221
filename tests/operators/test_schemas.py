"""JSON Schemas: what is in the docs is what the types say, and every example is valid by its own."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from orchestrator.cli.law.schemas import SCHEMAS, schema_of, schema_text
from orchestrator.files.document import read_document
from tests.operators.desk import ROOT, Json, refused, run

FOLDER = ROOT / "docs" / "schemas"
EXAMPLES = sorted((ROOT / "examples").rglob("*.yaml"))
MODELINE = re.compile(r"# yaml-language-server: \$schema=(\S+)")


def kind_of(path: Path) -> str:
    """Return what kind of file an example is, by its place."""
    if path.parent.name == "replay":
        return "replay-fleet" if path.stem == "fleet" else "settings"
    folders = {"packs": "pack", "tenants": "tenants", "requests": "request"}
    return folders.get(path.parent.name, path.stem)


def objects(schema: Any) -> Iterator[Json]:
    """Yield every object schema within a schema."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for value in schema.values():
            yield from objects(value)
    elif isinstance(schema, list):
        for value in schema:
            yield from objects(value)


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_is_in_the_docs_is_generated(kind: str) -> None:
    assert (FOLDER / f"{kind}.schema.json").read_text(encoding="utf-8") == schema_text(kind)


def test_there_is_a_schema_for_each_kind_and_no_other() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{kind}.schema.json" for kind in SCHEMAS}


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_schema_is_one_and_refuses_unknown_fields(kind: str) -> None:
    schema = schema_of(kind)
    Draft202012Validator.check_schema(schema)
    records = [one for one in objects(schema) if "properties" in one]
    assert records
    assert all(one["additionalProperties"] is False for one in records)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_every_example_is_valid_and_names_its_schema(path: Path) -> None:
    kind = kind_of(path)
    errors = Draft202012Validator(schema_of(kind)).iter_errors(read_document(path).value)
    assert [f"{error.json_path}: {error.message}" for error in errors] == []
    first = path.read_text(encoding="utf-8").splitlines()[0]
    named = MODELINE.match(first)
    assert named is not None, "expected `# yaml-language-server: $schema=...` in the first line"
    assert os.path.normpath(path.parent / named[1]) == str(FOLDER / f"{kind}.schema.json")


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: str(path.relative_to(ROOT / "examples")))
def test_every_example_has_a_comment_for_people(path: Path) -> None:
    assert path.read_text(encoding="utf-8").splitlines()[1].startswith("# ")


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("side", {"version": 1, "side": "x", "jurisdictions": ["SG"], "more": 1}),
        ("side", {"version": 2, "side": "x", "jurisdictions": ["SG"]}),
        ("side", {"version": 1, "jurisdictions": ["SG"]}),
        ("side", {"version": 1, "side": "x", "jurisdictions": "SG"}),
        ("request", {"version": 1, "edge": "e", "tenant": "t", "counters": {"cn_persons": 1}}),
        ("request", {"version": 1, "edge": "e", "tenant": "t", "counters": {"cn_persons_year": -1}}),
        ("request", {"version": 1, "edge": "e", "tenant": "t", "capabilities": ["fly"]}),
        ("tenants", {"version": 1, "tenants": [{"id": "x"}]}),
        ("fleet", {"version": 1, "entities": [{"id": "x", "country": "SG", "owner": []}]}),
        ("revocations", {"version": 1, "tenants": [1]}),
    ],
)
def test_an_editor_sees_what_does_not_fit(kind: str, value: Json) -> None:
    assert not Draft202012Validator(schema_of(kind)).is_valid(value)


def test_the_command_prints_one_or_writes_all(tmp_path: Path) -> None:
    ran = run("policy", "schema", "pack")
    assert (ran.status, ran.out) == (0, schema_text("pack"))
    written = run("policy", "schema", "--out", tmp_path / "new" / "schemas")
    assert written.status == 0
    assert [Path(line).name for line in written.out.splitlines()] == [f"{kind}.schema.json" for kind in SCHEMAS]
    for kind in SCHEMAS:
        assert (tmp_path / "new" / "schemas" / f"{kind}.schema.json").read_text("utf-8") == schema_text(kind)


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    assert "expected one of bundle, fleet, pack" in refused("policy", "schema", "policy")
    (tmp_path / "file").write_text("", encoding="utf-8")
    assert refused("policy", "schema", "--out", tmp_path / "file" / "x").startswith("--out: ")
