"""`tidegate policy diff`: what another law newly allows and newly forbids, worst first, over classes and records."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.spool.records import RecordId, RecordKind
from orchestrator.spool.store import Spool
from tests.operators.desk import (
    LAW,
    NOW,
    REQUESTS,
    change,
    copy_of,
    refused,
    remove_rule,
    run,
    small_pack,
    small_rule,
    write,
)
from tests.operators.recorded import record_of

FORBID_HOME = small_pack("x", "SG", small_rule("SG-X-NO", "forbid", "[{target: {within: [SG]}}]"))


@pytest.fixture
def laws(tmp_path: Path) -> tuple[Path, Path]:
    """The same small law twice: Singapore and China, one edge, three pools."""
    folder = copy_of(LAW, tmp_path / "before")
    for name in ("eea.yaml", "eea-next.yaml"):
        (folder / "packs" / name).unlink()
    (folder / "tenants" / "kontor.yaml").unlink()
    fleet = (folder / "fleet.yaml").read_text(encoding="utf-8")
    fleet = _without(fleet, "  - id: edge-de\n", "pools:\n")
    ends = {"de-main": "  # The same soil", "de-remote": "  # A Chinese owner", "fr-loire": "  # China."}
    for pool, end in ends.items():
        fleet = _without(fleet, f"  - id: {pool}\n", end)
    write(folder / "fleet.yaml", fleet[: fleet.index("# Where something is kept")])
    prices = (folder / "prices.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
    write(folder / "prices.yaml", "".join(line for line in prices if not any(pool in line for pool in ends)))
    return folder, copy_of(folder, tmp_path / "after")


def _without(text: str, begin: str, end: str) -> str:
    start = text.index(begin)
    return text[:start] + text[text.index(end, start) :]


def diff(before: Path, after: Path, *more: object) -> tuple[int, dict[str, Any]]:
    ran = run("policy", "diff", before, after, "--at", NOW, "--json", *more)
    return ran.status, ran.json()


def test_the_same_law_changes_nothing(laws: tuple[Path, Path]) -> None:
    status, found = diff(*laws)
    assert (status, found["changes"], found["decisions"]) == (0, [], 0)
    assert found["classes"] > 1_000


def test_a_requirement_that_is_gone_newly_allows_the_worst_first(laws: tuple[Path, Path]) -> None:
    remove_rule(laws[1] / "packs" / "sg.yaml", "SG-D-26")
    status, found = diff(*laws)
    assert status == 1
    assert {change["change"] for change in found["changes"]} == {"newly_allowed"}
    # What stays in Singapore never needed it.
    assert {change["pool"] for change in found["changes"]} == {"cn-river", "sg-straits"}
    assert {change["tenant"] for change in found["changes"]} == {"", "merlion"}
    for change_ in found["changes"]:
        assert 0 < len(change_["examples"]) <= 20 <= change_["count"]
        assert all(example["rules"] == ["SG-D-26"] for example in change_["examples"])
        words = [example["payload"].split()[0] for example in change_["examples"]]
        assert words[0] == "personal=sensitive"
        assert words == sorted(words, reverse=True)
        assert not any("personal=none" in example["payload"] for example in change_["examples"])


def test_a_forbid_that_is_added_newly_forbids(laws: tuple[Path, Path]) -> None:
    write(laws[1] / "packs" / "x.yaml", FORBID_HOME)
    status, found = diff(*laws)
    assert status == 0
    assert {change["change"] for change in found["changes"]} == {"newly_forbidden"}
    # The way back to Singapore is forbidden for every pool; so every route that was open is closed.
    assert {change["pool"] for change in found["changes"]} == {"cn-river", "sg-harbour", "sg-straits"}
    assert {tuple(e["rules"]) for one in found["changes"] for e in one["examples"]} == {("SG-X-NO",)}


def test_what_is_newly_allowed_comes_before_what_is_newly_forbidden(laws: tuple[Path, Path]) -> None:
    remove_rule(laws[1] / "packs" / "sg.yaml", "SG-D-26")
    rule = small_rule("SG-X-NO", "forbid", "[{target: {within: [SG]}}, {action: {in: [infer]}}]")
    write(laws[1] / "packs" / "x.yaml", small_pack("x", "SG", rule))
    status, found = diff(*laws)
    kinds = [one["change"] for one in found["changes"]]
    assert status == 1
    assert set(kinds) == {"newly_allowed", "newly_forbidden"}
    assert kinds == sorted(kinds)
    text = run("policy", "diff", *laws, "--at", NOW).out
    assert text.index("newly allowed: ") < text.index("newly forbidden: ")
    assert "[SG-D-26]" in text


def test_a_paper_that_is_gone_newly_forbids_for_that_tenant_alone(laws: tuple[Path, Path]) -> None:
    change(laws[1] / "tenants" / "merlion.yaml", "importer: river-cloud", "importer: another-cloud")
    status, found = diff(*laws)
    assert status == 0
    assert {(one["change"], one["pool"], one["tenant"]) for one in found["changes"]} == {
        ("newly_forbidden", "cn-river", "merlion")
    }


def test_thresholds_are_told_apart(laws: tuple[Path, Path]) -> None:
    pack = laws[1] / "packs" / "cn.yaml"
    change(pack, "counter: {name: cn_persons_year, below: 100000}", "counter: {name: cn_persons_year, below: 100001}")
    text = pack.read_text(encoding="utf-8")
    write(pack, "".join(line for line in text.splitlines(keepends=True) if "cn_persons_year: 100000}" not in line))
    status, found = diff(*laws)
    assert status == 1
    words = {word for one in found["changes"] for e in one["examples"] for word in e["payload"].split() if "=" in word}
    assert "cn_persons_year=100000" in words
    assert not any(word.startswith("cn_persons_year=") and word != "cn_persons_year=100000" for word in words)


def test_recorded_decisions_are_judged_by_both(laws: tuple[Path, Path], tmp_path: Path) -> None:
    write(laws[1] / "packs" / "x.yaml", FORBID_HOME)
    request = write(tmp_path / "r.yaml", "version: 1\nedge: edge-sg\ntenant: merlion\nlabels: 'personal=none'\n")
    record = record_of(laws[0], request)
    told = record.to_bytes().decode()
    other = told.replace('"program":"edge"', '"program":"scheduler"')
    trace = write(tmp_path / "trace.jsonl", f'{told}\n{other}\n{{"kind":"usage"}}\n')
    status, found = diff(*laws, "--trace", trace)
    assert (status, found["decisions"]) == (0, 1)
    assert all(one["change"] == "newly_forbidden" for one in found["changes"])
    # The spool of an edge, and a file of its records, say the same.
    with Spool(tmp_path / "spool", capacity_bytes=4 << 20, segment_bytes=1 << 20) as spool:
        spool.append(RecordKind("decision"), RecordId(record.id), record.to_bytes(), durable=True)
    assert diff(*laws, "--trace", tmp_path / "spool") == (status, found)
    quiet = copy_of(laws[0], tmp_path / "quiet")
    same = diff(laws[0], quiet, "--trace", trace)[1]
    assert (same["decisions"], same["changes"]) == (1, [])


def test_a_record_alone_shows_what_changes_for_it(laws: tuple[Path, Path], tmp_path: Path) -> None:
    # `processed_in` varies in no class: only the record shows what the new rule would have stopped.
    rule = small_rule("SG-X-NO", "forbid", "[{processed_in: {touches: [CN]}}, {target: {within: [SG]}}]")
    old = "label: {personal: none, grade: general, origin: [SG]}, from: [SG], action: infer, target: [SG]"
    write(laws[1] / "packs" / "x.yaml", small_pack("x", "SG", rule.replace(old, f"{old}, processed_in: [CN]")))
    request = write(
        tmp_path / "r.yaml",
        "version: 1\nedge: edge-sg\ntenant: merlion\nlabels: 'personal=none'\nprocessed_in: [CN]\n",
    )
    record = record_of(laws[0], request)
    trace = write(tmp_path / "trace.jsonl", record.to_bytes().decode() + "\n")
    status, found = diff(*laws, "--trace", trace)
    assert status == 0
    by_record = [one for one in found["changes"] if any(record.id in e["payload"] for e in one["examples"])]
    assert {(one["pool"], one["tenant"], one["change"]) for one in by_record} >= {
        ("sg-harbour", "merlion", "newly_forbidden")
    }


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"{\n", ":1: expected one JSON record a line"),
        (b"[1]\n", ":1: expected one JSON record a line"),
        (b"\xff\xfe\n", "expected text in UTF-8"),
        (b'{"kind":"decision","program":"edge","id":"dec_1"}\n', "--trace: a record does not hold"),
        (b'{"kind":"decision","program":"edge","id":1,"edge":[],"tenant":2,"facts":[],"decided_ms":3}\n', "--trace: a"),
    ],
)
def test_a_trace_that_cannot_be_read_is_one_sentence(
    laws: tuple[Path, Path], tmp_path: Path, content: bytes, sentence: str
) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_bytes(content)
    ran = run("policy", "diff", *laws, "--at", NOW, "--trace", trace)
    assert (ran.status, ran.out) == (2, "")
    assert sentence in ran.err.splitlines()[-1]


def test_what_cannot_be_compared_is_one_sentence() -> None:
    assert "missing: No such file" in refused("policy", "diff", LAW, "missing")
    assert "is not strict JSON" in refused("policy", "diff", REQUESTS / "us-health.yaml", LAW)
    assert "--at: expected a time" in refused("policy", "diff", LAW, LAW, "--at", "now")
    assert "missing" in refused("policy", "diff", LAW, LAW, "--trace", "missing")
