"""The one error catalogue: every code that is raised anywhere stands in it, and each says outright whether to retry."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest

from orchestrator.files.strict_json import RequestCode
from orchestrator.wire.catalogue import CATALOGUE, RETRY_AFTER_S, Cause, Entry, Problem, ProblemError, Retry

ROOT = Path(__file__).resolve().parents[2]
PRODUCT = ("orchestrator", "node_agent", "scheduler")
CODE = re.compile(r"[a-z]+(?:_[a-z]+)*\Z")
RAISED_BY = frozenset(
    (
        *("Problem", "RequestError", "Refused", "Broken", "Failed", "Refuse", "Break"),
        *("WorkRefused", "WorkFailed", "work_refused", "work_failed", "refused", "broken", "lost", "_close"),
    )
)
"""Calls whose first word in code form is a code of the catalogue."""
REPLAY = ROOT / "orchestrator" / "placement" / "replay"
"""A replay reaches nobody: what it refuses, it counts in words of placement."""
ENTRIES = sorted(CATALOGUE.values(), key=lambda entry: entry.code)


def sources() -> Iterator[tuple[Path, ast.Module]]:
    for room in PRODUCT:
        for path in sorted((ROOT / room).rglob("*.py")):
            if path.name != "catalogue.py" and REPLAY not in path.parents:
                yield path, ast.parse(path.read_text(encoding="utf-8"))


def words(node: ast.AST) -> list[str]:
    """Texts in code form that an argument can be: itself, or either arm of a choice."""
    arms = [node.body, node.orelse] if isinstance(node, ast.IfExp) else [node]
    texts = [arm.value for arm in arms if isinstance(arm, ast.Constant) and isinstance(arm.value, str)]
    return [text for text in texts if CODE.match(text)]


def raised() -> dict[str, str]:
    """Every code that the product raises, with one place where it does."""
    found: dict[str, str] = {}
    for path, tree in sources():
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            if name not in RAISED_BY:
                continue
            given = [*node.args, *(keyword.value for keyword in node.keywords if keyword.arg == "code")]
            codes = next((said for one in given if (said := words(one))), [])
            found |= {code: f"{path.relative_to(ROOT)}:{node.lineno}" for code in codes}
    return found


def test_every_code_that_is_raised_is_in_the_catalogue() -> None:
    found = raised()
    # The search itself is under test too: codes of every room are among what it finds.
    assert {"residency_blocked", "engine_busy", "context_length_exceeded", "slow_reader", "no_bundle"} <= found.keys()
    assert {code: place for code, place in found.items() if code not in CATALOGUE} == {}


def test_every_refusal_of_a_body_is_in_the_catalogue() -> None:
    assert set(get_args(RequestCode)) <= CATALOGUE.keys()


def test_no_entry_is_idle() -> None:
    said = {
        node.value
        for _, tree in sources()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    assert CATALOGUE.keys() - said == set()


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.code)
def test_an_entry_says_whether_a_retry_can_help(entry: Entry) -> None:
    headers = dict(Problem(entry.code).headers())
    assert headers["x-should-retry"] == ("false" if entry.retry is Retry.NEVER else "true")
    assert ("retry-after" in headers) == (entry.retry is not Retry.NEVER)
    if entry.cause is Cause.LAW and entry.http == 451:
        assert headers["x-should-retry"] == "false"
    if 400 <= entry.http < 500 and entry.http not in (429, 499):
        assert entry.retry is Retry.NEVER, "the same request would fail in the same way"


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.code)
def test_an_entry_reads_as_an_error_of_openai(entry: Entry) -> None:
    error = Problem(entry.code, param="model", rules=("EU-46",), needs="A contract.").openai("req_1")["error"]
    assert isinstance(error, dict)
    assert error["code"] == entry.code
    assert error["type"] == entry.kind.value
    assert error["param"] == "model"
    assert error["rules"] == ["EU-46"]
    assert error["request_id"] == "req_1"
    assert str(error["message"]).startswith(entry.sentence)
    assert "A contract." in str(error["message"])
    assert entry.sentence.endswith(".")


def test_only_the_law_answers_451() -> None:
    assert [entry.code for entry in ENTRIES if entry.http == 451] == ["residency_blocked"]


def test_a_budget_is_the_tenants_and_no_retry_helps() -> None:
    problem = Problem("budget_exceeded", needs="A lower max_tokens.")
    assert (problem.entry.http, problem.entry.cause) == (402, Cause.TENANT)
    assert problem.headers() == [("x-should-retry", "false")]
    error = problem.openai("req_1")["error"]
    assert isinstance(error, dict)
    assert (error["type"], error["code"]) == ("invalid_request_error", "budget_exceeded")
    assert [entry.code for entry in ENTRIES if entry.http == 402] == ["budget_exceeded"]


def test_a_code_of_a_newer_peer_is_an_internal_error() -> None:
    problem = Problem("a_code_of_next_year", "Something new.")
    assert problem.entry.code == "internal_error"
    assert dict(problem.headers()) == {"x-should-retry": "false"}


@pytest.mark.parametrize(("wait_ms", "seconds"), [(None, RETRY_AFTER_S), (1, 1), (1_000, 1), (1_001, 2), (0, 1)])
def test_a_client_waits_at_least_as_long_as_it_must(wait_ms: int | None, seconds: int) -> None:
    headers = dict(Problem("engine_busy", retry_after_ms=wait_ms).headers())
    assert headers["retry-after"] == str(seconds)


def test_the_exception_says_the_code_and_the_sentence() -> None:
    assert str(ProblemError(Problem("engine_busy"))) == f"engine_busy: {CATALOGUE['engine_busy'].sentence}"
