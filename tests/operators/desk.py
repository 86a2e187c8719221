"""An operator's desk: commands that are run in this process, and copies of the examples that a test may change."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from typer.testing import CliRunner

from orchestrator.cli.main import app

ROOT = Path(__file__).parents[2]
LAW = ROOT / "examples" / "law"
TWO_SIDES = ROOT / "examples" / "two-sides"
REQUESTS = ROOT / "examples" / "requests"
NOW = "2026-11-23T00:00:00Z"
"""When every pack of the examples is in force."""
NOW_MS = 1_795_392_000_000

Json = dict[str, Any]


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str = field(repr=False)

    def json(self) -> Json:
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


def run(*words: object) -> Ran:
    """Run `tidegate` with these words. An error that is no exit fails the test."""
    result = CliRunner().invoke(app, [str(word) for word in words], env={"COLUMNS": "200"})
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return Ran(result.exit_code, result.stdout, result.stderr)


def refused(*words: object) -> str:
    """Run a command that cannot do what is asked, and return its one sentence."""
    ran = run(*words)
    assert (ran.status, ran.out) == (2, "")
    lines = ran.err.splitlines()
    assert len(lines) == 1, ran.err
    return lines[0]


def explain(request: Path, bundle: Path, *more: object, at: str = NOW) -> Json:
    """Return the explanation of a request. Those of the examples as they are, are asked for once."""
    if bundle in (LAW, TWO_SIDES) and request.parent == REQUESTS and not more:
        return _explain_example(request, bundle, at)
    return _explain(request, bundle, more, at)


@cache
def _explain_example(request: Path, bundle: Path, at: str) -> Json:
    return _explain(request, bundle, (), at)


def _explain(request: Path, bundle: Path, more: tuple[object, ...], at: str) -> Json:
    ran = run("explain", "--request", request, "--bundle", bundle, "--at", at, "--json", *more)
    assert ran.status == 0, ran.err
    return ran.json()


def pool(found: Json, name: str) -> Json:
    """Return one pool of an explanation."""
    (one,) = (entry for entry in found["pools"] if entry["pool"] == name)
    assert isinstance(one, dict)
    return one


def verdicts(found: Json) -> dict[str, str]:
    """Return, by pool, the rules that refuse; nothing where it is allowed."""
    return {one["pool"]: "" if one["allowed"] else " ".join(one["rules"]) for one in found["pools"]}


def said(one: Json, action: str) -> dict[str, str]:
    """Return, by jurisdiction, the rules that refuse one movement of a pool; nothing where it allows."""
    (movement,) = (movement for movement in one["movements"] if movement["action"] == action)
    return {
        answer["jurisdiction"]: " ".join(sorted(reason["rule"] for reason in answer["reasons"]))
        for answer in movement["jurisdictions"]
    }


def copy_of(folder: Path, target: Path) -> Path:
    """Return a copy of a folder."""
    shutil.copytree(folder, target)
    return target


def change(file: Path, old: str, new: str) -> Path:
    """Change a text that is there once."""
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{text.count(old)} times in {file.name}"
    file.write_text(text.replace(old, new), encoding="utf-8")
    return file


def write(file: Path, text: str) -> Path:
    """Write a file, with its folder."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text, encoding="utf-8")
    return file


def small_pack(name: str, jurisdictions: str, *rules: str, mode: str = "enforce") -> str:
    """A pack of rules that were made with `small_rule`."""
    head = f"version: 1\nid: {name}\ntitle: A pack\ntopic: test\njurisdictions: [{jurisdictions}]\n"
    return head + f"effective_from: 2026-01-01\nmode: {mode}\nrules:\n" + "".join(rules)


def small_rule(name: str, effect: str, when: str, more: str = "", needs: str = "A need.") -> str:
    """A rule whose vectors are data of SG on its way to SG (holds) and to CN (does not)."""
    vector = "label: {personal: none, grade: general, origin: [SG]}, from: [SG], action: infer"
    return f"""\
  - id: {name}
    effect: {effect}
    when: {when}
    sentence: "A sentence of {name}."
    needs: "{needs}"
    source: {{instrument: A law, article: Art. 1, dated: 2026-01-01}}
    confidence: high
{more}    vectors:
      - {{{vector}, target: [SG], expect: holds}}
      - {{{vector}, target: [CN], expect: not}}
"""


def remove_rule(file: Path, name: str) -> Path:
    """Take one rule out of a pack."""
    text = file.read_text(encoding="utf-8")
    begin = text.index(f"  - id: {name}\n")
    end = text.find("\n  - id: ", begin + 1)
    file.write_text(text[:begin] + ("" if end < 0 else text[end + 1 :]), encoding="utf-8")
    return file
