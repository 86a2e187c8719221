"""`tidegate policy check`: every error of every file at once, then everything that is odd, each kind made to appear."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from orchestrator.evidence.duties import DISCHARGERS
from orchestrator.policy.bundle import Law
from orchestrator.policy.lint import Finding, lint
from orchestrator.policy.packs import Effect, ObligationKind, Operator, Subject, Test
from tests.law.worlds import FAR, SG, own, pack, rule
from tests.operators.desk import (
    LAW,
    NOW,
    NOW_MS,
    TWO_SIDES,
    change,
    copy_of,
    refused,
    run,
    small_pack,
    small_rule,
    write,
)

HERE = "[{target: {within: [SG]}}, {personal: {at_most: none}}]"
FORBID = "[{target: {within: [SG, CN]}}, {target_soil: {avoids: [CN]}}]"
SENDS = "[{target: {avoids: [CN]}}]"


def remarks(folder: Path, at: str = NOW) -> list[tuple[str, str]]:
    """Return kind and subject of everything that is odd."""
    ran = run("policy", "check", folder, "--at", at, "--json")
    assert ran.status == 0, ran.out
    return [(remark["kind"], remark["subject"]) for remark in ran.json()["remarks"]]


def test_the_examples_are_without_errors_and_warnings() -> None:
    for folder, packs in ((LAW, 4), (TWO_SIDES, 18)):
        ran = run("policy", "check", folder, "--at", NOW, "--strict", "--json")
        assert ran.status == 0
        found = ran.json()
        assert (found["errors"], found["packs"]) == ([], packs)
        assert not any(remark["warning"] for remark in found["remarks"])
        assert found["vectors"] > 2 * found["rules"]
    assert ("shadow", "desk-eea-next") in remarks(LAW)
    assert ("unconfirmed", "CN-D-CORE") in remarks(LAW)


def test_unconfirmed_rules_of_the_shipped_packs_are_shown_with_their_source() -> None:
    found = run("policy", "check", TWO_SIDES, "--at", NOW, "--json").json()["remarks"]
    (core,) = (remark for remark in found if remark["subject"] == "CN-DSL-CORE")
    assert core["kind"] == "unconfirmed"
    assert "Data Security Law" in core["sentence"]


def contradicted(folder: Path) -> None:
    rules = small_rule("SG-X-GRANT", "grant", HERE), small_rule("SG-X-NO", "forbid", "[{target: {within: [SG]}}]")
    write(folder / "packs" / "x.yaml", small_pack("x", "SG", *rules))


def redundant(folder: Path) -> None:
    rules = small_rule("SG-X-1", "grant", HERE), small_rule("SG-X-2", "grant", HERE)
    write(folder / "packs" / "x.yaml", small_pack("x", "SG", *rules))


def shadow(folder: Path) -> None:
    write(folder / "packs" / "x.yaml", small_pack("x", "SG", small_rule("SG-X-1", "forbid", SENDS), mode="shadow"))


def no_law(folder: Path) -> None:
    (folder / "packs" / "cn.yaml").unlink()


def no_grant(folder: Path) -> None:
    write(folder / "packs" / "cn.yaml", small_pack("x", "CN", small_rule("CN-X-1", "forbid", SENDS)))


def unconfirmed(folder: Path) -> None:
    change(folder / "packs" / "sg.yaml", "confidence: low", "confidence: unconfirmed")


def notice_missing(folder: Path) -> None:
    change(folder / "tenants" / "merlion.yaml", '    notices:\n      - {id: eea-13-cn, version: "2026-01"}\n', "")


def nothing(folder: Path) -> None:
    """Leave the folder as it is: the moment makes the finding."""


APPEAR: list[tuple[Finding, Callable[[Path], None], str, str]] = [
    (Finding.CONTRADICTED, contradicted, NOW, "SG-X-GRANT"),
    (Finding.REDUNDANT, redundant, NOW, "SG-X-2"),
    (Finding.UNCONFIRMED, unconfirmed, NOW, "SG-D-KEEP"),
    (Finding.NOT_IN_FORCE, nothing, "2026-05-31T23:59:59.999Z", "desk-eea-next"),
    (Finding.NOT_IN_FORCE, nothing, "2029-12-31T00:00:00Z", "desk-eea-next"),
    (Finding.SHADOW, shadow, NOW, "x"),
    (Finding.NO_LAW, no_law, NOW, "CN"),
    (Finding.NO_GRANT, no_grant, NOW, "CN"),
    (Finding.EXPIRING, nothing, "2029-04-02T00:00:00.001Z", "kontor-scc-river"),
    (Finding.EXPIRED, nothing, "2029-07-01T00:00:00Z", "kontor-scc-river"),
    (Finding.NOTICE_MISSING, notice_missing, NOW, "merlion"),
]
ELSEWHERE = {Finding.NEVER_TRUE, Finding.FOREIGN_GRANT, Finding.NO_DISCHARGER}
"""Kinds that have a test of their own below."""


@pytest.mark.parametrize(("kind", "make", "at", "subject"), APPEAR, ids=[one[0].value for one in APPEAR])
def test_each_kind_of_finding_appears(
    tmp_path: Path, kind: Finding, make: Callable[[Path], None], at: str, subject: str
) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    before = remarks(folder)
    assert (kind.value, subject) not in before
    make(folder)
    assert (kind.value, subject) in remarks(folder, at)


def test_every_kind_of_finding_is_made_to_appear() -> None:
    assert {kind for kind, *_ in APPEAR} | ELSEWHERE == set(Finding)


def test_a_pathway_is_shown_from_ninety_days_before_its_end() -> None:
    assert ("expiring", "kontor-scc-river") not in remarks(LAW, "2029-04-02T00:00:00Z")
    assert ("expiring", "kontor-scc-river") in remarks(LAW, "2029-06-30T23:59:59.999Z")
    assert ("expired", "kontor-scc-river") not in remarks(LAW, "2029-06-30T23:59:59.999Z")


def test_a_rule_whose_tests_exclude_each_other_is_shown() -> None:
    # A file cannot hold one: it has no vector for which it holds, and is refused for that.
    both = (
        Test(Subject.TARGET, Operator.WITHIN, members=frozenset({SG})),
        Test(Subject.TARGET, Operator.BEYOND, members=frozenset({SG})),
    )
    law = Law(own(pack("x", [SG], rule("X-1", Effect.FORBID, both), rule("X-2", Effect.GRANT))), FAR)
    found = lint(law, {}, (), DISCHARGERS.keys(), NOW_MS)
    assert [(one.kind, one.subject) for one in found] == [(Finding.NEVER_TRUE, "X-1")]


def test_a_grant_of_a_foreign_signer_is_shown(tmp_path: Path) -> None:
    both = copy_of(TWO_SIDES, tmp_path / "both")
    write(both / "domestic" / "packs" / "x.yaml", small_pack("x", "SG", small_rule("SG-X-1", "grant", HERE)))
    assert ("foreign_grant", "x") in remarks(both)


def test_a_duty_that_nothing_does_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ("no_discharger", "CN-D-LOGS") not in remarks(LAW)
    monkeypatch.delitem(DISCHARGERS, ObligationKind.RETAIN)
    assert ("no_discharger", "CN-D-LOGS") in remarks(LAW)


def test_strict_fails_for_warnings_alone(tmp_path: Path) -> None:
    at = ("--at", "2029-05-01")
    assert run("policy", "check", LAW, *at).status == 0
    assert run("policy", "check", LAW, *at, "--strict").status == 1
    folder = copy_of(LAW, tmp_path / "law")
    redundant(folder)
    assert run("policy", "check", folder, "--at", NOW, "--strict").status == 0


def broken(folder: Path) -> None:
    """Break seven files, each in one place."""
    change(folder / "packs" / "cn.yaml", "{cn_persons_year: 99999}", "{cn_persons_year: 100001}")
    change(folder / "packs" / "eea.yaml", "mode: enforce\n", "mode: enforced\n")
    write(folder / "packs" / "Wrong name.yml", "version: 1\n")
    change(folder / "packs" / "sg.yaml", "id: SG-D-GENERAL\n", "id: SG-D-GENERAL\n    note: more\n")
    change(folder / "fleet.yaml", "{id: tidegate-asia, country: SG}", "{id: tidegate-asia, country: UK}")
    change(folder / "tenants" / "kontor.yaml", "valid_until: 2029-07-01", "valid_until: 2025-07-01")
    change(folder / "side.yaml", "side: desk", "side: desk\nside: desk")


def test_every_error_of_every_file_is_listed_with_file_line_field_and_fix(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    broken(folder)
    ran = run("policy", "check", folder, "--at", NOW, "--json")
    assert ran.status == 2
    errors = ran.json()["errors"]
    told = {Path(error["file"]).name: (error["field"], error["expected"]) for error in errors}
    assert len(errors) == len(told) == 7
    field, expected = told["cn.yaml"]
    assert field == "rules[2].vectors[0].expect"
    assert "expected rule CN-D-05 to hold for vector 0" in expected
    assert told["eea.yaml"] == ("mode", "expected one of enforce, shadow")
    assert told["sg.yaml"][0] == "rules[0].note"
    assert told["fleet.yaml"][0] == "entities[0].country"
    assert told["kontor.yaml"] == ("tenants[0].pathways[0].valid_until", "expected a date after valid_from")
    assert "NAME.yaml" in told["Wrong name.yml"][1]
    assert "side" in told["side.yaml"][0]
    lines = {Path(error["file"]).name: error["line"] for error in errors}
    written = (folder / "packs" / "eea.yaml").read_text(encoding="utf-8").splitlines()
    assert written[lines["eea.yaml"] - 1] == "mode: enforced"
    text = run("policy", "check", folder, "--at", NOW)
    assert text.status == 2
    assert "7 files cannot be used" in text.out
    for name in told:
        assert name in text.out


def test_errors_of_both_sides_are_listed(tmp_path: Path) -> None:
    both = copy_of(TWO_SIDES, tmp_path / "both")
    for side in ("overseas", "domestic"):
        change(both / side / "settings.yaml", "slo_first_ms: 10000", "slo_first_ms: soon")
    errors = run("policy", "check", both, "--at", NOW, "--json").json()["errors"]
    assert [Path(error["file"]).parent.name for error in errors] == ["domestic", "overseas"]
    assert {error["field"] for error in errors} == {"slo_first_ms"}


def test_files_that_do_not_fit_together_are_an_error(tmp_path: Path) -> None:
    folder = copy_of(LAW, tmp_path / "law")
    write(folder / "packs" / "again.yaml", (folder / "packs" / "sg.yaml").read_text("utf-8"))
    ran = run("policy", "check", folder, "--at", NOW, "--json")
    assert ran.status == 2
    assert "two of pack desk-sg" in ran.json()["errors"][0]["expected"]


@pytest.mark.parametrize("path", ["missing", "README.md", "empty"])
def test_what_is_no_folder_of_declared_files_is_an_error(tmp_path: Path, path: str) -> None:
    (tmp_path / "empty").mkdir()
    write(tmp_path / "README.md", "# Nothing\n")
    ran = run("policy", "check", tmp_path / path, "--json")
    assert ran.status == 2
    assert len(ran.json()["errors"]) == 1


def test_the_options_are_checked() -> None:
    assert "--at: expected a time" in refused("policy", "check", LAW, "--at", "yesterday")
    assert run("policy", "check", LAW, "--side", "north", "--at", NOW).status == 2
