"""Whatever cannot be explained ends with status 2 and one sentence that names the field, or the option, and the fix."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.operators.desk import (
    LAW,
    NOW,
    REQUESTS,
    TWO_SIDES,
    change,
    copy_of,
    explain,
    pool,
    refused,
    said,
    verdicts,
    write,
)

GENERAL = REQUESTS / "general-from-singapore.yaml"
GERMAN = REQUESTS / "german-personal.yaml"
PAPERS = REQUESTS / "nothing-declared.yaml"
WHOLE = """\
version: 1
edge: edge-sg
tenant: merlion
labels: 'personal=none, grade=general'
model: demo
counters: {cn_persons_year: 5}
processed_in: [CN]
prompt_tokens: 100
capabilities: [chat]
"""

BAD_REQUESTS = [
    ("edge: edge-sg", "edge: nowhere", "edge: expected an edge of the bundle's fleet; it has edge-de, edge-sg"),
    ("edge: edge-sg", "edge: edge-de", "edge: expected one that serves merlion: edge-sg"),
    ("edge: edge-sg", "edge: Edge", "r.yaml:2: edge: expected a name of lower-case letters"),
    ("edge: edge-sg\n", "", "r.yaml:1: edge: expected this field, which is missing"),
    ("merlion", "nobody", "tenant: expected a tenant of the bundle that is not revoked; it has kontor, merlion"),
    ("tenant: merlion\n", "", "tenant: expected this field, which is missing"),
    ("version: 1", "version: 2", "r.yaml:1: version: expected"),
    ("version: 1\n", "", "version: expected this field, which is missing"),
    ("personal=none", "personal=low", "r.yaml:4: labels: personal: expected none or personal or sensitive or unknown"),
    ("grade=general", 'origin="UK"', "labels: origin: expected assigned ISO 3166-1 alpha-2 codes"),
    ("grade=general", "secrecy=high", "labels: secrecy: expected one of the keys personal"),
    ("grade=general", "personal=none", "labels: personal: expected it only once"),
    ("'personal=none, grade=general'", "[a]", "labels: expected text"),
    ("model: demo", "model: ../x", "model: expected the name of a model"),
    ("model: demo", "models: demo", "r.yaml:5: models: expected one of the fields version, edge"),
    ("cn_persons_year: 5", "cn_persons: 5", "counters"),
    ("cn_persons_year: 5", "cn_persons_year: -1", "counters"),
    ("cn_persons_year: 5", "cn_persons_year: many", "counters.cn_persons_year: expected a whole number"),
    ("cn_persons_year: 5", 'cn_persons_year: "5"', "counters.cn_persons_year: expected a whole number"),
    ("[CN]", "[ZZ]", "processed_in[0]: expected an assigned ISO 3166-1 alpha-2 code"),
    ("[CN]", "[CN, CN]", "processed_in[1]: expected it once"),
    ("prompt_tokens: 100", "prompt_tokens: 0", "prompt_tokens: expected"),
    ("prompt_tokens: 100", "prompt_tokens: 1.5", "write it as a quoted decimal"),
    ("capabilities: [chat]", "capabilities: [fly]", "capabilities[0]: expected one of chat, stream"),
    ("model: demo", "edge: edge-sg", "edge"),
    ("model: demo", "model: &a demo", "r.yaml:5"),
    ("model: demo", "model: !!str demo", "r.yaml:5"),
]


@pytest.mark.parametrize(("old", "new", "sentence"), BAD_REQUESTS)
def test_a_request_that_cannot_be_read_names_its_field(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    file = change(write(tmp_path / "r.yaml", WHOLE), old, new)
    assert sentence in refused("explain", "--request", file, "--bundle", LAW, "--at", NOW)


def test_the_request_that_is_broken_above_is_whole(tmp_path: Path) -> None:
    found = explain(write(tmp_path / "r.yaml", WHOLE), LAW)
    assert (found["status"], found["facts"]["processed_in"]) == (200, ["CN"])


def test_a_revoked_tenant_is_not_known(tmp_path: Path) -> None:
    bundle = copy_of(LAW, tmp_path / "law")
    change(bundle / "revocations.yaml", "version: 1\n", "version: 1\ntenants: [kontor]\n")
    sentence = refused("explain", "--request", PAPERS, "--bundle", bundle, "--at", NOW)
    assert sentence.startswith("tenant: expected a tenant of the bundle that is not revoked")


def test_a_revoked_pool_is_refused_by_the_house(tmp_path: Path) -> None:
    bundle = copy_of(LAW, tmp_path / "law")
    change(bundle / "revocations.yaml", "version: 1\n", "version: 1\npools: [de-main]\n")
    found = explain(PAPERS, bundle)
    assert verdicts(found)["de-main"] == "TG-REVOKED"
    assert found["permitted"] == ["cn-river", "de-remote", "fr-loire"]


OPTIONS: list[tuple[tuple[object, ...], str]] = [
    ((), "expected --request FILE with --bundle PATH, or the id of a decision with --config FILE"),
    (("--request", GENERAL), "expected --request FILE with --bundle PATH"),
    (("--bundle", LAW), "expected --request FILE with --bundle PATH"),
    (("dec_1", "--request", GENERAL, "--bundle", LAW), "expected --request FILE with --bundle PATH"),
    (("dec_1",), "expected --config FILE: the settings of the edge that decided"),
    (("dec_1", "--config", "missing.yaml"), "missing.yaml: expected a readable file"),
    (("dec_1", "--config", GENERAL), "side: expected this field, as an edge's settings have it"),
    (("--request", "missing.yaml", "--bundle", LAW), "missing.yaml: expected a readable file"),
    (("--request", LAW, "--bundle", LAW), "expected a readable file"),
    (("--request", GENERAL, "--bundle", "missing"), "missing: No such file or directory"),
    (("--request", GENERAL, "--bundle", GENERAL), "The exported bundle is not strict JSON"),
    (("--request", GENERAL, "--bundle", REQUESTS), "expected packs, a fleet and tenants, or folders of sides"),
    (("--request", GENERAL, "--bundle", LAW, "--at", "soon"), "--at: expected a time of ISO 8601"),
    (("--request", GENERAL, "--bundle", LAW, "--at", "2026-02-29"), "--at: expected a time of ISO 8601"),
    (("--request", GENERAL, "--bundle", LAW, "--at", "9999-01-01"), "--at: expected a year between 1970 and 9997"),
    (("--request", GENERAL, "--bundle", LAW, "--at", "1969-12-31"), "--at: expected a year between 1970 and 9997"),
    (("--request", GENERAL, "--bundle", TWO_SIDES, "--side", "north"), "expected the folder of side north"),
    (("--request", GENERAL, "--bundle", TWO_SIDES, "--side", "domestic"), "it has none"),
    (("--request", GENERAL, "--bundle", LAW, "--roots", GENERAL), "roots: expected a list of roots"),
    (("--request", GENERAL, "--bundle", LAW, "--roots", "missing.yaml"), "missing.yaml: expected a readable file"),
]


@pytest.mark.parametrize(("words", "sentence"), OPTIONS)
def test_what_is_wrong_with_the_command_is_one_sentence(words: tuple[object, ...], sentence: str) -> None:
    assert sentence in refused("explain", *words)


@pytest.mark.parametrize(
    "roots",
    [
        "roots: {}",
        "roots: [{side: desk}]",
        "roots: [{side: desk, public_key: eHg=, jurisdictions: [SG]}]",
        "roots: [{side: desk, public_key: '?', jurisdictions: [SG]}]",
        "roots: [{side: Desk, public_key: LejwUW7ylHIdHRRRkddFdksbsPCxEsZUochwKt8j2Vc=, jurisdictions: [SG]}]",
        "roots: [{side: desk, public_key: LejwUW7ylHIdHRRRkddFdksbsPCxEsZUochwKt8j2Vc=, jurisdictions: [ZZ]}]",
    ],
)
def test_a_file_of_roots_that_are_none_is_refused(tmp_path: Path, roots: str) -> None:
    file = write(tmp_path / "roots.yaml", roots + "\n")
    assert "roots" in refused("explain", "--request", PAPERS, "--bundle", LAW, "--roots", file)


def test_a_broken_file_of_the_folder_is_named_with_its_line(tmp_path: Path) -> None:
    bundle = copy_of(LAW, tmp_path / "law")
    change(bundle / "packs" / "cn.yaml", "effective_from: 2026-01-01", "effective_from: 2026-13-01")
    sentence = refused("explain", "--request", PAPERS, "--bundle", bundle, "--at", NOW)
    assert "packs/cn.yaml:8: effective_from: expected a date" in sentence


def test_the_folder_of_one_side_knows_that_side_alone(tmp_path: Path) -> None:
    found = explain(GERMAN, TWO_SIDES / "overseas")
    assert found["bundle"]["side"] == "overseas"
    assert verdicts(found) == {"eu-frankfurt": ""}
    assert not any(pack["id"].startswith("cn-") for pack in found["bundle"]["packs"])


def test_a_folder_without_a_side_file_takes_its_name_and_grants_everywhere(tmp_path: Path) -> None:
    bundle = copy_of(LAW, tmp_path / "harbour")
    (bundle / "side.yaml").unlink()
    found = explain(PAPERS, bundle)
    assert found["bundle"]["side"] == "harbour"
    assert verdicts(found) == verdicts(explain(PAPERS, LAW))


def test_of_two_sides_with_tenants_one_must_be_chosen(tmp_path: Path) -> None:
    both = copy_of(TWO_SIDES, tmp_path / "both")
    (both / "domestic" / "tenants").mkdir()
    text = (LAW / "tenants" / "merlion.yaml").read_text(encoding="utf-8")
    write(both / "domestic" / "tenants" / "merlion.yaml", text)
    sentence = refused("explain", "--request", GENERAL, "--bundle", both, "--at", NOW)
    assert "expected one side with tenants, or --side: domestic, overseas have some" in sentence
    found = explain(GENERAL, both, "--side", "overseas")
    assert verdicts(found) == {"cn-guizhou": "", "cn-shanghai": "", "eu-frankfurt": ""}


def test_two_folders_of_one_side_are_refused(tmp_path: Path) -> None:
    both = copy_of(TWO_SIDES, tmp_path / "both")
    shutil.copytree(both / "domestic", both / "domestic-2")
    sentence = refused("explain", "--request", GENERAL, "--bundle", both, "--at", NOW)
    assert "expected sides with different names" in sentence


HOSTILE = """\
version: 1
id: hostile
title: What the other side would like
topic: transfer
jurisdictions: [EEA]
effective_from: 2026-01-01
mode: enforce
rules:
  - id: HOSTILE-1
    effect: grant
    when: [{personal: {at_most: sensitive}}, {grade: {at_most: general}}]
    sentence: Everything of the EEA may go to China.
    source: {instrument: None, article: None, dated: 2026-01-01}
    confidence: high
    vectors:
      - {label: {personal: sensitive, grade: general}, from: [DE], target: [CN], action: infer, expect: holds}
      - {label: {}, from: [DE], target: [CN], action: infer, expect: not}
"""


def test_the_other_side_cannot_grant_under_this_law_and_can_forbid(tmp_path: Path) -> None:
    both = copy_of(TWO_SIDES, tmp_path / "both")
    hostile = write(both / "domestic" / "packs" / "hostile.yaml", HOSTILE)
    assert verdicts(explain(GERMAN, both)) == verdicts(explain(GERMAN, TWO_SIDES))
    (both / "overseas" / "packs" / "eu.yaml").unlink()
    alone = explain(GERMAN, both)
    assert said(pool(alone, "cn-guizhou"), "infer")["DE"] == "TG-NO-GRANT"
    assert verdicts(alone)["eu-frankfurt"] == "TG-NO-GRANT"
    shutil.copy(TWO_SIDES / "overseas" / "packs" / "eu.yaml", both / "overseas" / "packs" / "eu.yaml")
    text = HOSTILE.replace("effect: grant", "effect: forbid").replace("at_most: sensitive", "at_least: personal")
    text = text.replace(", {grade: {at_most: general}}", "").replace("label: {}", "label: {personal: none}")
    write(hostile, text)
    assert verdicts(explain(GERMAN, both))["eu-frankfurt"] == "HOSTILE-1"


def test_a_side_cannot_put_a_pool_on_soil_that_its_root_does_not_name(tmp_path: Path) -> None:
    both = copy_of(TWO_SIDES, tmp_path / "both")
    fleet = both / "domestic" / "fleet.yaml"
    text = fleet.read_text(encoding="utf-8")
    fleet.write_text(text.replace("infers: [CN]", "infers: [DE]", 1), encoding="utf-8")
    sentence = refused("explain", "--request", GERMAN, "--bundle", both, "--at", NOW)
    assert "puts pool cn-guizhou on soil that its root does not name: DE" in sentence
