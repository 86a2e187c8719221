"""A pack says what it seems to say, or is refused with the field that is wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from orchestrator.evidence.canonical import canonical_bytes
from orchestrator.files.fields import body_of
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.typed import fit
from orchestrator.policy.jurisdictions import EEA
from orchestrator.policy.labels import Effective, Personal
from orchestrator.policy.packs import Effect, Mode, Obligation, ObligationKind, Operator, Pack, Subject
from orchestrator.policy.pathways import PathwayKind
from tests.files.documents import CLOSED_VECTORS, DROP, OPEN_VECTORS, PACK, Path, broken, load, refusal, rule

FIRST: Path = ("rules", 0)

BAD: list[tuple[Path, object, str, str]] = [
    (("version",), 2, "version", "expected one of 1"),
    (("version",), DROP, "version", "missing"),
    (("revision",), 0, "revision", ">= 1"),
    (("author",), "me", "author", "expected one of the fields"),
    (("id",), "EU Test", "id", "a name"),
    (("title",), "", "title", "printable"),
    (("title",), "two\nlines", "title", "printable"),
    (("topic",), "Transfer", "topic", "a name"),
    (("jurisdictions",), [], "jurisdictions", "at least one"),
    (("jurisdictions",), ["EU"], "jurisdictions[0]", "group EEA"),
    (("jurisdictions",), ["DE", "de"], "jurisdictions[1]", "in capitals"),
    (("jurisdictions",), ["DE", "DE"], "jurisdictions[1]", "once"),
    (("effective_from",), "01.01.2026", "effective_from", "a date such as"),
    (("effective_from",), "2026-02-30", "effective_from", "a date such as"),
    (("effective_from",), "20260101", "effective_from", "a date such as"),
    (("effective_from",), 2026, "effective_from", "text"),
    (("effective_until",), "2026-01-01", "effective_until", "after effective_from"),
    (("effective_until",), None, "effective_until", "text"),
    (("mode",), "on", "mode", "enforce, shadow"),
    (("mode",), DROP, "mode", "missing"),
    (("rules",), [], "rules", "at least one rule"),
    (("rules", 4), rule("EU-1", "forbid"), "rules[4].id", "once"),
    ((*FIRST, "id"), "TG-NO-GRANT", "rules[0].id", "of the house"),
    ((*FIRST, "id"), "eu-1", "rules[0].id", "expected an id such as"),
    ((*FIRST, "id"), "EU-" + "1" * 70, "rules[0].id", "expected an id such as"),
    ((*FIRST, "effect"), "allow", "rules[0].effect", "grant, forbid, require, oblige"),
    ((*FIRST, "when"), [], "rules[0].when", "at least one test"),
    ((*FIRST, "when"), [{}], "rules[0].when[0]", "exactly one of personal, grade"),
    (
        (*FIRST, "when", 0),
        {"personal": {"at_most": "none"}, "grade": {"at_most": "general"}},
        "rules[0].when[0]",
        "exactly one",
    ),
    ((*FIRST, "when", 0), {"payload": {"contains": "x"}}, "rules[0].when[0].payload", "one of the fields"),
    ((*FIRST, "when", 0), {"personal": {"within": ["DE"]}}, "rules[0].when[0].personal.within", "at_most, at_least"),
    (
        (*FIRST, "when", 0),
        {"origin": {"at_most": "DE"}},
        "rules[0].when[0].origin.at_most",
        "within, beyond, touches, avoids",
    ),
    ((*FIRST, "when", 0), {"action": {"avoids": ["infer"]}}, "rules[0].when[0].action.avoids", "one of the fields in"),
    ((*FIRST, "when", 0), {"target": {"in": ["DE"]}}, "rules[0].when[0].target.in", "within, beyond, touches, avoids"),
    ((*FIRST, "when", 0), {"personal": {}}, "rules[0].when[0].personal", "exactly one of at_most, at_least"),
    (
        (*FIRST, "when", 0),
        {"personal": {"at_most": "none", "at_least": "none"}},
        "rules[0].when[0].personal",
        "exactly one of at_most, at_least",
    ),
    (
        (*FIRST, "when", 0),
        {"grade": {"at_most": "personal"}},
        "rules[0].when[0].grade.at_most",
        "public, general, important",
    ),
    ((*FIRST, "when", 0), {"domestic": {"at_most": False}}, "rules[0].when[0].domestic.at_most", "text"),
    ((*FIRST, "when", 0), {"target": {"within": []}}, "rules[0].when[0].target.within", "at least one"),
    ((*FIRST, "when", 0), {"target": {"within": ["EEA", "XX"]}}, "rules[0].when[0].target.within[1]", "ISO 3166"),
    ((*FIRST, "when", 0), {"action": {"in": []}}, "rules[0].when[0].action.in", "at least one action"),
    ((*FIRST, "when", 0), {"action": {"in": ["send"]}}, "rules[0].when[0].action.in[0]", "infer, return"),
    ((*FIRST, "sentence"), " ", "rules[0].sentence", "printable"),
    ((*FIRST, "sentence"), "x" * 601, "rules[0].sentence", "600"),
    ((*FIRST, "needs"), "a\tb", "rules[0].needs", "printable"),
    ((*FIRST, "source", "dated"), "2016", "rules[0].source.dated", "a date such as"),
    ((*FIRST, "source", "article"), "", "rules[0].source.article", "printable"),
    ((*FIRST, "source"), DROP, "rules[0].source", "missing"),
    ((*FIRST, "confidence"), "sure", "rules[0].confidence", "high, medium, low, unconfirmed"),
    ((*FIRST, "requires"), ["eu_scc"], "rules[0].requires", "not require"),
    (("rules", 3, "obligations"), [{"retain": "P6M"}], "rules[3].obligations", "neither oblige nor grant"),
    (("rules", 1, "requires"), [], "rules[1].requires", "at least one"),
    (("rules", 1, "requires"), ["eu_trust"], "rules[1].requires[0]", "eu_scc, eu_tia"),
    (("rules", 1, "requires"), ["eu_scc", "eu_scc"], "rules[1].requires[1]", "once"),
    (("rules", 2, "obligations"), [], "rules[2].obligations", "at least one"),
    (("rules", 2, "obligations", 0), {"tell": "P1D"}, "rules[2].obligations[0].tell", "one of the fields retain"),
    *(
        (("rules", 2, "obligations", 0, "retain"), text, "rules[2].obligations[0].retain", "ISO 8601")
        for text in ("", "P", "6M", "P0M", "P06M", "P6W", "PT6H", "P1M1Y", "P6.5M", "p6m", "P6M ")
    ),
    ((*FIRST, "vectors"), [], "rules[0].vectors", "at least one vector of rule EU-1 with expect: holds"),
    ((*FIRST, "vectors"), OPEN_VECTORS[:1], "rules[0].vectors", "rule EU-1 with expect: not"),
    ((*FIRST, "vectors", 0, "expect"), "yes", "rules[0].vectors[0].expect", "holds, not"),
    ((*FIRST, "vectors", 0, "from"), [], "rules[0].vectors[0].from", "at least one"),
    ((*FIRST, "vectors", 1, "target"), ["UK"], "rules[0].vectors[1].target[0]", "ISO 3166"),
    ((*FIRST, "vectors", 1, "label"), {"personal": "all"}, "rules[0].vectors[1].label.personal", "none, personal"),
    ((*FIRST, "vectors", 0, "label"), {}, "rules[0].vectors[0].expect", "rule EU-1 to hold for vector 0"),
    (("rules", 3, "vectors"), OPEN_VECTORS, "rules[3].vectors[0].expect", "rule EU-4 to hold for vector 0"),
    (
        ("rules", 3, "vectors"),
        [*CLOSED_VECTORS, {**CLOSED_VECTORS[0], "expect": "not"}],
        "rules[3].vectors[2].expect",
        "rule EU-4 to not hold for vector 2",
    ),
]


@pytest.mark.parametrize(("path", "value", "field", "expected"), BAD, ids=lambda part: str(part)[:60])
def test_a_bad_pack_is_refused_with_its_field(path: Path, value: object, field: str, expected: str) -> None:
    error = refusal(broken(PACK, path, value), PackDocument, pack_of)
    assert error.field == field
    assert expected in error.expected
    assert error.line > 0


POLARITY: list[tuple[str, dict[str, Any], str, str]] = [
    ("grant", {"personal": {"at_least": "personal"}}, "personal.at_least", "hold for personal=personal, unlike"),
    ("grant", {"grade": {"at_least": "public"}}, "grade.at_least", "at_most in a grant"),
    ("grant", {"origin": {"touches": ["DE"]}}, "origin.touches", "begin to hold when an origin of the list"),
    ("forbid", {"personal": {"at_most": "none"}}, "personal.at_most", "not hold for personal=personal, unlike"),
    ("forbid", {"domestic": {"at_most": "unknown"}}, "domestic.at_most", "at_least in a rule whose effect is forbid"),
    ("forbid", {"origin": {"within": ["DE"]}}, "origin.within", "cease to hold when an origin outside of the list"),
    ("require", {"origin": {"avoids": ["DE"]}}, "origin.avoids", "cease to hold when an origin of the list"),
    ("require", {"grade": {"at_most": "core"}}, "grade.at_most", "grade=unknown, unlike grade=core"),
    ("oblige", {"personal": {"at_most": "sensitive"}}, "personal.at_most", "personal=unknown, unlike"),
]


@pytest.mark.parametrize(("effect", "test", "field", "expected"), POLARITY, ids=lambda part: str(part)[:40])
def test_raising_a_label_must_not_help(effect: str, test: dict[str, Any], field: str, expected: str) -> None:
    index = ("grant", "require", "oblige", "forbid").index(effect)
    error = refusal(broken(PACK, ("rules", index, "when", 1), test), PackDocument, pack_of)
    assert error.field == f"rules[{index}].when[1].{field}"
    assert expected in error.expected


def test_a_refusal_names_the_line() -> None:
    document = broken(PACK, (*FIRST, "vectors", 1, "expect"), "holds")
    error = refusal(document, PackDocument, pack_of)
    assert str(error).startswith(f"file.yaml:{error.line}: rules[0].vectors")


def test_a_pack_arrives_whole() -> None:
    pack = load(PACK, PackDocument, pack_of)
    assert (pack.id, pack.version, pack.topic, pack.mode) == ("eu-test", 1, "transfer", Mode.ENFORCE)
    assert pack.jurisdictions == EEA
    assert pack.effective_from_ms == 1_767_225_600_000  # 2026-01-01T00:00:00Z
    assert pack.effective_until_ms == 1_798_761_600_000  # 2027-01-01T00:00:00Z
    assert [rule.effect for rule in pack.rules] == [Effect.GRANT, Effect.REQUIRE, Effect.OBLIGE, Effect.FORBID]
    assert pack.rules[1].pathways == (frozenset({PathwayKind.EU_SCC}),)
    assert pack.rules[2].obligations == (Obligation(ObligationKind.RETAIN, "P6M"),)
    assert pack.rules[0].source.dated == "2016-04-27"


def test_every_comparison_arrives() -> None:
    tests: list[dict[str, Any]] = [
        {"personal": {"at_most": "none"}},
        {"grade": {"at_most": "core"}},
        {"domestic": {"at_most": "no"}},
        {"origin": {"avoids": ["CN", "US"]}},
        {"source": {"touches": ["EEA"]}},
        {"target": {"within": ["CN"]}},
        {"action": {"in": ["infer", "return"]}},
    ]
    vector = {
        "label": {"personal": "none", "grade": "core", "domestic": "no", "origin": ["FR"]},
        "from": ["US", "IS"],
        "target": ["CN"],
        "action": "return",
        "expect": "holds",
    }
    vectors = [vector, {**vector, "action": "store", "expect": "not"}]
    document = broken(PACK, FIRST, rule("EU-1", "grant", when=tests, vectors=vectors))
    when = load(document, PackDocument, pack_of).rules[0].when
    *when, purpose, asset = when
    assert (purpose.members, asset.members) == ({"inference", "embedding"}, {"payload"}), "a grant says what it is for"
    assert [test.subject for test in when] == [Subject(next(iter(test))) for test in tests]
    assert [test.operator for test in when] == [
        *[Operator.AT_MOST] * 3,
        Operator.AVOIDS,
        Operator.TOUCHES,
        Operator.WITHIN,
        Operator.IN,
    ]
    assert [test.rank for test in when[:3]] == [0, 3, 0]
    assert when[3].members == {"CN", "US"}
    assert when[4].members == EEA


@pytest.mark.parametrize("text", ["P6M", "P3Y", "P30D", "P1Y6M", "P1Y2M3D"])
def test_durations_of_years_months_and_days_are_accepted(text: str) -> None:
    document = broken(PACK, ("rules", 2, "obligations", 0, "retain"), text)
    assert load(document, PackDocument, pack_of).rules[2].obligations[0].argument == text


def test_what_a_vector_leaves_out_is_unknown() -> None:
    vectors = [*CLOSED_VECTORS, {**CLOSED_VECTORS[0], "label": {}}]
    pack = load(broken(PACK, ("rules", 3, "vectors"), vectors), PackDocument, pack_of)
    assert pack.rules[3].when[0].rank == Personal.PERSONAL
    assert Effective().personal is Personal.UNKNOWN


def test_the_body_of_a_signed_section_has_the_shape_of_the_file() -> None:
    document = fit(copy.deepcopy(PACK), PackDocument)
    body = body_of(document)
    assert body == PACK
    assert fit(body, PackDocument) == document
    explicit = fit({**PACK, "revision": 1}, PackDocument)
    assert canonical_bytes(body_of(explicit)) == canonical_bytes(body)


def test_a_pack_is_a_value() -> None:
    first: Pack = load(PACK, PackDocument, pack_of)
    assert first == load(PACK, PackDocument, pack_of)
