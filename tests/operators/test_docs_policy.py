"""`docs/policy.md` says what the code does: its files load, its tables are complete, its errors are the real ones."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestrator.evidence.duties import DISCLOSURE_HEADER, LABEL_HEADER
from orchestrator.files.domain_error import DomainError
from orchestrator.files.label_header import LENGTH_MAX, LabelHeaderError, parse_label_header
from orchestrator.files.packs import WORDS as RANK_WORDS
from orchestrator.files.polarity import check_polarity
from orchestrator.policy.counters import CounterKind
from orchestrator.policy.labels import RANK_AXES, SET_AXES
from orchestrator.policy.packs import MOVEMENT_SETS, RANKED, Effect, ObligationKind, Operator, Subject, Test
from orchestrator.policy.pathways import PathwayKind
from orchestrator.policy.places import Action, Leg, SinkKind
from orchestrator.policy.verdicts import HOUSE_RULES
from orchestrator.policy.vocabulary import WORDS
from tests.operators.desk import LAW, NOW, REQUESTS, ROOT, Json, explain, pool, run, said, small_pack, small_rule, write

PAGE = (ROOT / "docs" / "policy.md").read_text(encoding="utf-8")
BLOCKS = {
    block.splitlines()[0].removeprefix("# "): block for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
}
CODE = re.compile(r"`([^`]+)`")


def table(head: str) -> list[list[str]]:
    """Return the cells of the table with this head, row by row."""
    lines = PAGE.split(f"\n{head}\n", 1)[1].splitlines()
    rows: list[list[str]] = []
    for line in lines[1:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]])
    assert rows
    return rows


def named(rows: list[list[str]], column: int = 0) -> list[str]:
    """Return everything in one column that is set as code."""
    return [name for row in rows for name in CODE.findall(row[column])]


def examples() -> Iterator[tuple[str, str]]:
    """Yield each header of the page that is refused, with what it says."""
    for block in re.findall(r"```text\n(.*?)```", PAGE, re.DOTALL):
        for line in block.splitlines():
            header, _, rest = line.partition("  " if "  " in line else " personal: ")
            if ": expected " in line and not line.startswith("rules["):
                error = rest.strip() if "  " in line else f"personal: {rest}"
                yield header, error


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of the page, in their places."""
    made = tmp_path_factory.mktemp("page")
    for name, text in BLOCKS.items():
        if name != "request.yaml":
            write(made / name, text)
    return made


def test_the_files_of_the_page_are_a_whole_folder() -> None:
    assert set(BLOCKS) == {"fleet.yaml", "packs/se.yaml", "tenants/fjord.yaml", "request.yaml"}


def test_the_files_of_the_page_load_and_say_what_the_page_says(folder: Path, tmp_path: Path) -> None:
    ran = run("policy", "check", folder, "--at", NOW, "--json")
    assert ran.status == 0, ran.out
    found = ran.json()
    assert (found["errors"], found["packs"], found["rules"]) == ([], 1, 4)
    kinds = {(remark["kind"], remark["subject"]) for remark in found["remarks"]}
    # The page shows a pool that is read from China without a pack for it, and a rule without a confirmed source.
    assert kinds == {("no_law", "CN"), ("unconfirmed", "SE-DUTIES")}
    answer = explain(write(tmp_path / "r.yaml", BLOCKS["request.yaml"].replace("processed_in: []", "")), folder)
    assert said(pool(answer, "se-lulea"), "infer") == {"SE": ""}
    assert {duty["kind"] for duty in pool(answer, "se-lulea")["obligations"]} == {"notify", "retain"}
    # Clauses are held for it, an assessment is not.
    assert said(pool(answer, "se-remote"), "infer") == {"CN": "TG-NO-PACK", "SE": "SE-PAPERS"}
    assert answer["sinks"][0]["rules"] == ["TG-NO-GRANT"]


def test_the_exemption_of_the_page_lifts_its_rule_for_its_price(folder: Path, tmp_path: Path) -> None:
    text = BLOCKS["request.yaml"].replace("categories=(contact)", "categories=(work)")
    remote = pool(explain(write(tmp_path / "r.yaml", text), folder), "se-remote")
    assert said(remote, "infer") == {"CN": "TG-NO-PACK", "SE": ""}
    (sweden,) = (one for one in remote["movements"][0]["jurisdictions"] if one["jurisdiction"] == "SE")
    told = {f"{duty['kind']} {duty['argument']}" for duty in sweden["obligations"]}
    assert told == {"retain P3Y", "retain P1Y", "notify se-notice"}


def test_the_request_of_the_page_is_read_as_it_stands(folder: Path, tmp_path: Path) -> None:
    found = explain(write(tmp_path / "r.yaml", BLOCKS["request.yaml"]), folder)
    assert (found["edge"], found["tenant"], found["permitted"]) == ("edge-stockholm", "fjord", ["se-lulea"])
    assert found["facts"]["counters"][0]["count"] == 99999
    assert (found["status"], found["chosen"]) == (200, None), "without settings nothing is placed"


def test_every_word_of_the_vocabulary_is_in_the_table_with_its_standards() -> None:
    rows = table("| key | value | meaning | standards |")
    expected = [
        [
            f"`{word.key}`",
            f"`{word.value}`",
            word.meaning + (" *(sensitive)*" if word.sensitive else ""),
            "; ".join(f"{instrument}, {article}" for instrument, article in word.standards),
        ]
        for word in WORDS
    ]
    assert rows == expected


def test_the_axes_are_written_in_their_order() -> None:
    rows = {CODE.findall(row[0])[0]: row for row in table("| key | kind | values, from the least to the worst |")}
    assert list(rows) == [*RANK_AXES, *("categories", "origin", "located", "collected", "purpose", "asset")]
    assert set(rows) == {*RANK_AXES, *SET_AXES}
    for name, axis in RANK_AXES.items():
        assert rows[name][1:] == ["axis", " < ".join(value.word for value in axis)]


def test_the_rules_of_the_house_are_all_there() -> None:
    assert set(named(table("| house rule | refused because |"))) == set(HOUSE_RULES)


def test_the_tables_of_kinds_are_complete() -> None:
    assert set(named(table("| kind of pathway | under |"))) == {kind.value for kind in PathwayKind}
    counters = table("| counter | window |")
    assert named(counters) == [kind.value for kind in CounterKind]
    assert [row[1].startswith("calendar year in Asia/Shanghai") for row in counters] == [
        kind.calendar_year for kind in CounterKind
    ]
    duties = table("| obligation | argument | who does it, and how | record | answer |")
    assert named(duties) == [kind.value for kind in ObligationKind]
    told = " ".join(row[4] for row in duties)
    assert DISCLOSURE_HEADER in told
    assert LABEL_HEADER in told
    assert all(f"{kind.value}" in PAGE for kind in SinkKind)
    assert all(f"`{effect.value}`" in PAGE or effect.value in PAGE for effect in Effect)


SUBJECTS = table("| subject | what it is | in a grant, and in `unless` | in forbid, require, oblige |")


def allowed(subject: Subject, effect: Effect) -> set[str]:
    """Return the operators that the loader takes for a subject in a rule of this effect."""
    if subject in (Subject.ACTION, Subject.LEG):
        return {"in"}
    operators: tuple[Operator, ...]
    if subject is Subject.COUNTER:
        operators = (Operator.BELOW, Operator.AT_LEAST)
    elif subject in RANKED:
        operators = (Operator.AT_MOST, Operator.AT_LEAST)
    else:
        operators = (Operator.WITHIN, Operator.BEYOND, Operator.TOUCHES, Operator.AVOIDS)
    found = set()
    for operator in operators:
        try:
            test = Test(subject, operator, rank=1, counter=CounterKind.CN_PERSONS)
            check_polarity(test, effect, RANK_WORDS, ("when",))
        except DomainError:
            continue
        found.add(operator.value)
    return found


def test_every_subject_has_a_row_with_the_operators_that_the_loader_takes() -> None:
    assert sorted(named(SUBJECTS)) == sorted(subject.value for subject in Subject)
    four = {"within", "beyond", "touches", "avoids"}
    for row in SUBJECTS:
        subject = Subject(CODE.findall(row[0])[0])
        for column, effect in ((2, Effect.GRANT), (3, Effect.FORBID)):
            cell = row[column].partition(";")[0]
            told = four if cell == "any of the four" else set(CODE.findall(cell))
            assert told == allowed(subject, effect), subject
        exempt = "not in `unless`" not in row[2]
        assert exempt is (subject not in MOVEMENT_SETS and subject is not Subject.PROCESSED_IN)
    meanings = {CODE.findall(row[0])[0]: row[1] for row in SUBJECTS}
    assert CODE.findall(meanings["action"]) == [action.value for action in Action]
    assert CODE.findall(meanings["leg"]) == [leg.value for leg in Leg]


def test_the_headers_of_the_page_are_read_or_refused_as_it_says() -> None:
    refusals = list(examples())
    assert len(refusals) == 5
    for header, told in refusals:
        with pytest.raises(LabelHeaderError) as caught:
            parse_label_header(header)
        assert str(caught.value) == told
    assert f"at most {LENGTH_MAX:,} characters" in PAGE
    (block,) = re.findall(r"```text\n(personal=none, grade=general\n.*?)```", PAGE, re.DOTALL)
    for line in block.splitlines():
        parse_label_header(line.partition("   ")[0])


def test_the_counter_example_of_the_page_is_what_the_loader_says(tmp_path: Path) -> None:
    rule = small_rule("SG-X-1", "grant", "[{personal: {at_least: sensitive}}]")
    write(tmp_path / "packs" / "x.yaml", small_pack("x", "SG", rule))
    (error,) = run("policy", "check", tmp_path, "--at", NOW, "--json").json()["errors"]
    assert f"{error['field']}: {error['expected']}" in PAGE


def keys(found: Json, prefix: str = "") -> set[str]:
    return {f"{prefix}{key}" for key in found}


def test_the_fields_of_an_explanation_are_in_the_table() -> None:
    told: set[str] = set()
    for row in table("| field | what it says |"):
        first = ""
        for name in CODE.findall(row[0]):
            # `pools[].pool`, `.assurance`: the later ones stand beside the first.
            full = first.rpartition(".")[0] + name if name.startswith(".") else name
            first = first or full
            told.add(full)
    found = explain(REQUESTS / "outside-the-papers.yaml", LAW)
    assert keys(found) - {"labels", "pools", "sinks"} <= told
    assert keys(found["labels"], "labels.") - {"labels.mismatches"} <= told
    assert {"labels.mismatches[]", "pools[]", "sinks[]"} <= told
    lists = {"pools[].reasons", "pools[].obligations", "pools[].movements"}
    assert keys(found["pools"][0], "pools[].") - lists <= told
    assert {f"{name}[]" for name in lists} <= told
    assert {"decision", "outcome", "discharged", "replay"} <= told
    (row,) = (row for row in table("| field | what it says |") if row[0] == "`pools[].movements[]`")
    movement = found["pools"][0]["movements"][0]
    assert set(CODE.findall(row[1])) == set(movement)
    (row,) = (row for row in table("| field | what it says |") if "movements[].jurisdictions" in row[0])
    assert set(CODE.findall(row[1])) == set(movement["jurisdictions"][0])


def test_json_on_the_page_is_json_and_its_links_lead_somewhere() -> None:
    for block in re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL):
        assert json.loads(block)["error"]["code"] == "residency_blocked"
    for link in re.findall(r"\]\(([^)#]+)\)", PAGE + (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")):
        assert (ROOT / "docs" / link).exists(), link
    for path in ("examples/law", "examples/two-sides", "examples/requests", "docs/schemas"):
        assert path in PAGE
        assert (ROOT / path).is_dir()


def test_the_words_of_the_page_are_in_the_glossary() -> None:
    glossary = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    heads = " ".join(re.findall(r"^\| \*\*(.+?)\*\* \|", glossary, re.MULTILINE))
    for word in ("label", "mismatch", "sink", "pathway", "notice", "counter", "rule", "vector", "polarity", "shadow"):
        assert word in heads
    for word in ("obligation", "discharger", "horizon", "root", "exported bundle", "accessor"):
        assert word in heads
