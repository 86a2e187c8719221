"""One exported file: written from what a program holds, explained from on another machine, refused when changed."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.formats import SectionKind
from orchestrator.bundles.revocations import Revoked
from orchestrator.cli.law.schemas import schema_of
from orchestrator.cli.publish import REVOCATIONS, load_directory
from orchestrator.evidence.canonical import canonical_bytes
from orchestrator.policy.ids import PathwayId, digest_of
from orchestrator.spool.records import RecordId, RecordKind
from orchestrator.spool.store import Spool
from tests.bundles.sides import File, Side, holdings_in, issue, make_side, revoke, take
from tests.operators.desk import (
    LAW,
    NOW,
    NOW_MS,
    REQUESTS,
    Json,
    change,
    explain,
    pool,
    refused,
    run,
    verdicts,
    write,
)
from tests.operators.recorded import record_of

PAPERS = REQUESTS / "nothing-declared.yaml"


class Program:
    """An edge's folder and settings: two manifests of the desk, a revocation list, a spool."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        files: list[File] = [
            (SectionKind(file.kind), file.name, json.loads(file.document))
            for file in load_directory(LAW)
            if file.kind != REVOCATIONS
        ]
        self.side: Side = make_side("desk", ("SG", "EEA", "CN"), files)
        holdings = holdings_in(folder / "data" / "bundles", self.side)
        holdings.take_list(revoke(self.side, 1, Revoked(pathways=frozenset({PathwayId("merlion-contract-straits")}))))
        for number in (1, 2):
            take(holdings, issue(self.side, number, issued_ms=NOW_MS, revocations=1), now_ms=NOW_MS)
        held = holdings.bundle(self.side.name)
        assert held is not None
        self.bundle: Bundle = held
        self.roots = write(folder / "roots.yaml", f"roots:\n  - {self.root(self.side)}\n")
        data = folder / "data"
        settings = f"side: desk\ndata_dir: {data}\nroots:\n  - {self.root(self.side)}\nid: edge-sg\n"
        self.config = write(folder / "edge.yaml", settings)

    @staticmethod
    def root(side: Side) -> str:
        key = base64.b64encode(side.root.public_key).decode()
        return f'{{side: {side.name}, public_key: "{key}", jurisdictions: [SG, EEA, CN]}}'

    def export(self, *more: object) -> Path:
        out = self.folder / "bundle.json"
        ran = run("bundle", "export", "--config", self.config, "--out", out, *more)
        assert ran.status == 0, ran.err
        return out

    def record(self, request: Path = PAPERS) -> Json:
        """Decide as the edge would, put the record into the spool, and return it."""
        record = record_of(self.bundle, request)
        with Spool(self.folder / "data" / "spool", capacity_bytes=4 << 20, segment_bytes=1 << 20) as spool:
            spool.append(RecordKind("decision"), RecordId(record.id), record.to_bytes(), durable=True)
        found: Json = json.loads(record.to_bytes())
        return found


@pytest.fixture
def program(tmp_path: Path) -> Program:
    return Program(tmp_path)


def test_an_exported_bundle_explains_like_the_folder(program: Program) -> None:
    file = program.export()
    found = explain(PAPERS, file, "--roots", program.roots)
    assert found["bundle"]["side"] == "desk"
    assert (found["bundle"]["manifest"], found["bundle"]["digest"]) == (2, program.bundle.digest)
    folder = explain(PAPERS, LAW)
    for part in ("labels", "facts", "permitted", "status", "chosen", "sinks"):
        assert found[part] == folder[part]
    assert verdicts(found) == verdicts(folder)
    threshold = REQUESTS / "at-the-threshold.yaml"
    assert verdicts(explain(threshold, file))["sg-straits"] == "SG-D-26", "the revocations came along"
    Draft202012Validator(schema_of("bundle")).validate(json.loads(file.read_bytes()))


def test_the_command_says_what_it_wrote(program: Program) -> None:
    ran = run("bundle", "export", "--config", program.config, "--out", program.folder / "b.json")
    assert (ran.status, ran.out) == (0, f"manifest 2 of desk {program.bundle.digest}\n")
    assert (program.folder / "b.json").stat().st_mode & 0o077 == 0, "it holds what tenants agreed"
    older = explain(PAPERS, program.export("--number", 1))
    assert older["bundle"]["manifest"] == 1
    assert explain(PAPERS, program.export("--side", "desk"))["bundle"]["manifest"] == 2


def test_exporting_writes_nothing_but_the_file(program: Program) -> None:
    before = sorted(str(path) for path in (program.folder / "data").rglob("*"))
    program.export()
    assert sorted(str(path) for path in (program.folder / "data").rglob("*")) == before


def test_check_table_and_diff_read_an_exported_bundle(program: Program) -> None:
    file = program.export()
    checked = run("policy", "check", file, "--at", NOW, "--json").json()
    assert (checked["errors"], checked["packs"]) == ([], 4)
    assert (
        run("policy", "table", file, "--at", NOW, "--json").json()
        == run("policy", "table", LAW, "--at", NOW, "--json").json()
    )
    ran = run("policy", "diff", file, LAW, "--at", NOW, "--json")
    assert (ran.status, ran.json()["changes"]) == (0, [])


def test_without_pinned_roots_a_reader_is_told(program: Program) -> None:
    words = ("explain", "--request", PAPERS, "--bundle", program.export(), "--at", NOW, "--json")
    assert "pin your own with --roots" in run(*words).err
    assert run(*words, "--roots", program.roots).err == ""


def test_horizons_of_the_manifest_hold_in_the_export(program: Program) -> None:
    file = program.export()
    # Issued at NOW: regulated payloads for 24 hours, everything for 7 days.
    day = explain(PAPERS, file, at="2026-11-23T23:59:59.999Z")
    over = explain(PAPERS, file, at="2026-11-24T00:00:00Z")
    assert (verdicts(day)["de-main"], verdicts(over)["de-main"]) == ("", "TG-REGULATED-EXPIRED")
    asked = "version: 1\nedge: edge-de\ntenant: kontor\nlabels: 'personal=none, categories=()'\n"
    general = write(program.folder / "r.yaml", asked)
    week = explain(general, file, at="2026-11-29T23:59:59.999Z")
    gone = explain(general, file, at="2026-11-30T00:00:00Z")
    assert (verdicts(week)["de-main"], verdicts(gone)["de-main"]) == ("", "TG-EXPIRED")
    assert pool(week, "de-main")["valid_until_ms"] == gone["at_ms"]


def _body(form: Json, change_: Callable[[Json], None]) -> None:
    """Change the manifest's body, and make its digest fit."""
    body = json.loads(form["manifest"]["body"])
    change_(body)
    text = canonical_bytes(body).decode()
    form["manifest"] |= {"body": text, "digest": digest_of(text.encode())}


def _section(form: Json) -> None:
    digest = next(d for d, text in form["sections"].items() if "SG-D-26" in text)
    form["sections"][digest] = form["sections"][digest].replace("SG-D-26", "SG-D-27")


def _section_gone(form: Json) -> None:
    form["sections"].pop(next(iter(form["sections"])))


def _signature(form: Json) -> None:
    raw = bytearray(base64.b64decode(form["manifest"]["signature"]))
    raw[0] ^= 1
    form["manifest"]["signature"] = base64.b64encode(raw).decode()


def _set(path: tuple[str, ...], value: Any) -> Callable[[Json], None]:
    def change_(form: Json) -> None:
        here: Any = form
        for step in path[:-1]:
            here = here[int(step)] if isinstance(here, list) else here[step]
        here[path[-1]] = value

    return change_


TAMPERED: list[tuple[Callable[[Json], None], str]] = [
    (_section, "is not what the manifest names"),
    (_section_gone, "is not there"),
    (_signature, "signature"),
    (lambda form: _body(form, lambda body: body.update(number=3)), "signature"),
    (_set(("manifest", "number"), 3), "Manifest"),
    (_set(("manifest", "side"), "other"), "other"),
    (_set(("manifest", "digest"), "sha256:" + "0" * 64), "does not have its digest"),
    (_set(("manifest", "signature"), "?"), "signature"),
    (_set(("revocations", "0", "number"), 2), "evocation list"),
    (_set(("roots",), []), "no pinned root"),
    (_set(("roots", "0", "jurisdictions"), ["SG"]), "soil"),
    (_set(("roots", "0", "public_key"), "eHg="), "a root that is none"),
    (_set(("v",), 2), "no exported bundle of version 1"),
    (_set(("kind",), "tidegate-backup"), "no exported bundle of version 1"),
    (_set(("more",), 1), "does not have its shape"),
]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A whole file, for tests that change a copy."""
    return Program(tmp_path_factory.mktemp("program")).export().read_bytes()


@pytest.mark.parametrize(("tamper", "sentence"), TAMPERED)
def test_a_file_that_was_changed_is_refused(
    exported: bytes, tmp_path: Path, tamper: Callable[[Json], None], sentence: str
) -> None:
    form = json.loads(exported)
    tamper(form)
    file = tmp_path / "bundle.json"
    file.write_bytes(canonical_bytes(form))
    told = refused("explain", "--request", PAPERS, "--bundle", file, "--at", NOW)
    assert told.startswith(f"{file}: ")
    assert sentence in told


def test_a_file_without_the_revocations_of_its_manifest_is_refused(exported: bytes, tmp_path: Path) -> None:
    # The manifest names list 1. Without it the paper that it takes back would open a pool again.
    form = json.loads(exported)
    assert json.loads(form["manifest"]["body"])["revocations"] == 1
    form["revocations"] = []
    file = tmp_path / "bundle.json"
    file.write_bytes(canonical_bytes(form))
    assert "evocation list 1" in refused("explain", "--request", PAPERS, "--bundle", file, "--at", NOW)


@pytest.mark.parametrize("content", [b"", b"{}", b"[]", b'{"v":1,"v":1}', b"\xff", b"null"])
def test_a_file_that_is_no_bundle_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "bundle.json"
    file.write_bytes(content)
    assert "The exported bundle" in refused("explain", "--request", PAPERS, "--bundle", file, "--at", NOW)


def test_a_truncated_file_is_refused(exported: bytes, tmp_path: Path) -> None:
    file = tmp_path / "bundle.json"
    file.write_bytes(exported[:-1])
    assert "strict JSON" in refused("explain", "--request", PAPERS, "--bundle", file, "--at", NOW)


def test_pinned_roots_refuse_what_another_signed(program: Program, tmp_path: Path) -> None:
    other = Program(tmp_path / "other")
    file = other.export()
    assert explain(PAPERS, file)["bundle"]["side"] == "desk", "by its own roots it is whole"
    sentence = refused("explain", "--request", PAPERS, "--bundle", file, "--roots", program.roots, "--at", NOW)
    assert "root" in sentence


def test_a_pinned_root_may_grant_less_than_the_file_says(program: Program) -> None:
    file = program.export()
    roots = change(program.roots, "jurisdictions: [SG, EEA, CN]", "jurisdictions: [SG, EEA]")
    sentence = refused("explain", "--request", PAPERS, "--bundle", file, "--roots", roots, "--at", NOW)
    assert "soil that its root does not name: CN" in sentence


def test_what_cannot_be_exported_is_one_sentence(program: Program, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "b.json")
    export = ("bundle", "export", "--config", program.config, *out)
    assert "--number: expected a manifest of desk that is kept: 1, 2" in refused(*export, "--number", 9)
    assert "--side: expected a side with a pinned root: desk" in refused(*export, "--side", "nowhere")
    assert "No such file" in refused("bundle", "export", "--config", program.config, "--out", tmp_path / "no" / "b")
    assert "missing.yaml" in refused("bundle", "export", "--config", tmp_path / "missing.yaml", *out)
    for field, text in (
        ("side", "data_dir: .\nroots: []\n"),
        ("data_dir", "side: desk\nroots: []\n"),
        ("data_dir", "side: desk\ndata_dir: missing\nroots: []\n"),
        ("roots", f"side: desk\ndata_dir: {tmp_path}\n"),
        ("roots", f"side: desk\ndata_dir: {tmp_path}\nroots: [1]\n"),
        ("roots", f"side: desk\ndata_dir: {tmp_path}\nroots: [{{side: x, public_key: '', jurisdictions: [SG]}}]\n"),
    ):
        config = write(tmp_path / "bad.yaml", text)
        assert field in refused("bundle", "export", "--config", config, *out)


def test_a_recorded_decision_is_made_again_bit_for_bit(program: Program) -> None:
    record = program.record()
    ran = run("explain", record["id"], "--config", program.config, "--json")
    assert ran.status == 0, ran.err
    found = ran.json()
    assert found["replay"] == {"identical": True, "recorded": record["pool"]}
    assert (found["decision"], found["chosen"], found["at_ms"]) == (record["id"], record["pool"], record["decided_ms"])
    assert found["discharged"] == record["discharged"] != []
    assert found["labels"]["declared"] == record["labels"]["declared"]
    assert verdicts(found) == verdicts(explain(PAPERS, LAW))
    file = program.export()
    assert run("explain", record["id"], "--config", program.config, "--bundle", file, "--json").json() == found
    assert "made again: identical" in run("explain", record["id"], "--config", program.config).out


def test_a_decision_of_any_process_of_an_edge_is_found(program: Program) -> None:
    data = program.folder / "data"
    record = program.record()
    for kept in ("spool", "bundles"):
        (data / "worker-1").mkdir(exist_ok=True)
        (data / kept).rename(data / "worker-1" / kept)
        (data / kept).mkdir()
    # The first process has decided nothing yet, and holds no bundle.
    assert "made again: identical" in run("explain", record["id"], "--config", program.config).out
    chosen = record["placement"]["chosen"]
    ran = run("whatif", "--config", program.config, "--drain", chosen, "--json")
    assert ran.status == 0, ran.err
    asked = ran.json()["requests"]
    assert [(one["name"], one["before"]["pool"]) for one in asked] == [(record["id"], chosen)]


def test_a_record_that_was_changed_does_not_come_out_the_same(program: Program) -> None:
    record = program.record()
    record["id"] = record["id"][:-1] + ("0" if record["id"][-1] != "0" else "1")
    record["placement"]["candidates"][0]["verdict"]["rules"] = []
    with Spool(program.folder / "data" / "spool", capacity_bytes=4 << 20, segment_bytes=1 << 20) as spool:
        spool.append(RecordKind("decision"), RecordId(record["id"]), canonical_bytes(record), durable=True)
    ran = run("explain", record["id"], "--config", program.config, "--json")
    assert ran.json()["replay"]["identical"] is False
    assert "made again: DIFFERENT" in run("explain", record["id"], "--config", program.config).out


def test_a_decision_that_cannot_be_made_again_is_one_sentence(program: Program) -> None:
    record = program.record()
    config = ("--config", program.config)
    assert "expected a decision that the edge's spool holds" in refused("explain", "dec_" + "0" * 32, *config)
    older = program.export("--number", 1)
    sentence = refused("explain", record["id"], *config, "--bundle", older)
    assert "expected the bundle that it cites: manifest 2 of desk" in sentence
    assert "expected the bundle that it cites" in refused("explain", record["id"], *config, "--bundle", LAW)
    for file in (program.folder / "data" / "bundles" / "manifests" / "desk").iterdir():
        file.unlink()
    assert "manifest 2 of desk is no longer kept here" in refused("explain", record["id"], *config)
