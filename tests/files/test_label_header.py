"""The header x-tidegate-labels declares exactly what it says, or is refused whole."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.files.label_header import LENGTH_MAX, LabelHeaderError, parse_label_header
from orchestrator.policy.jurisdictions import ASSIGNED, Jurisdiction
from orchestrator.policy.labels import DOMESTIC_WORDS, GRADE_WORDS, PERSONAL_WORDS, Domestic, Grade, Labels, Personal


def origins(*codes: str) -> frozenset[Jurisdiction]:
    return frozenset(Jurisdiction(code) for code in codes)


GOOD = [
    ("", Labels()),
    ("personal=none", Labels(personal=Personal.NONE)),
    ("personal=unknown", Labels(personal=Personal.UNKNOWN)),
    ("grade=general", Labels(grade=Grade.GENERAL)),
    ("domestic=no", Labels(domestic=Domestic.NO)),
    ("  personal=none ,\tgrade=public  ", Labels(personal=Personal.NONE, grade=Grade.PUBLIC)),
    ("grade=personal", Labels(personal=Personal.PERSONAL)),
    ("grade=personal, personal=none", Labels(personal=Personal.PERSONAL)),
    ("personal=sensitive, grade=personal", Labels(personal=Personal.SENSITIVE)),
    ("personal=unknown, grade=personal", Labels(personal=Personal.UNKNOWN)),
    ('origin="DE"', Labels(origin=origins("DE"))),
    ('origin=("DE" "FR")', Labels(origin=origins("DE", "FR"))),
    ('origin=( "DE"  "FR" )', Labels(origin=origins("DE", "FR"))),
    (
        'personal=none, grade=general, domestic=no, origin="SG"',
        Labels(Personal.NONE, Grade.GENERAL, Domestic.NO, origins("SG")),
    ),
]

BAD = [
    ("purpose=inference", "purpose"),
    ("personal=none, tenant=acme", "tenant"),
    ("personal=private", "personal"),
    ("personal=None", "personal"),
    ("personal=NONE", "personal"),
    ('personal="none"', "personal"),
    ("personal=(none)", "personal"),
    ("personal=1", "personal"),
    ("personal=?1", "personal"),
    ("personal=:bm9uZQ==:", "personal"),
    ('personal=%"none"', "personal"),
    ("personal=@0", "personal"),
    ("personal", "personal"),
    ("personal=", "personal"),
    ("personal=none;q=1", "personal"),
    ("personal;q=1", "personal"),
    ("personal=personal, personal=none", "personal"),
    ("grade=sensitive", "grade"),
    ("grade=general, grade=public", "grade"),
    ("domestic=false", "domestic"),
    ("domestic=?0", "domestic"),
    ("origin=DE", "origin"),
    ('origin="de"', "origin"),
    ('origin="EEA"', "origin"),
    ('origin="UK"', "origin"),
    ('origin=""', "origin"),
    ('origin="DE FR"', "origin"),
    ('origin="DE,FR"', "origin"),
    ("origin=()", "origin"),
    ("origin=(DE)", "origin"),
    ('origin=("DE" 1)', "origin"),
    ('origin=("DE";q=1)', "origin"),
    ('origin=("DE");q=1', "origin"),
    ('origin=(("DE"))', "origin"),
    ('origin=("DE"', "origin"),
    ('origin="DE', "origin"),
    ('origin="DE", origin="FR"', "origin"),
    ("personal=none;a;a", "x-tidegate-labels"),
    ("Personal=none", "x-tidegate-labels"),
    ("personal=none,", "x-tidegate-labels"),
    (",personal=none", "x-tidegate-labels"),
    ("personal=none; grade=general", "personal"),
    ("personal=none grade=general", "x-tidegate-labels"),
    ("personal: none", "x-tidegate-labels"),
    ('{"personal": "none"}', "x-tidegate-labels"),
    ("personal=none\r\nx-admin: 1", "x-tidegate-labels"),
    ("personal=none\x00", "x-tidegate-labels"),
    ("personal=nöne", "x-tidegate-labels"),
    ("\ufeffpersonal=none", "x-tidegate-labels"),
    ("personal=none" + " " * LENGTH_MAX, "x-tidegate-labels"),
]


@pytest.mark.parametrize(("text", "labels"), GOOD)
def test_a_valid_header_declares_what_it_says(text: str, labels: Labels) -> None:
    assert parse_label_header(text) == labels


@pytest.mark.parametrize(("text", "key"), BAD)
def test_an_invalid_header_is_refused_with_its_key(text: str, key: str) -> None:
    with pytest.raises(LabelHeaderError) as caught:
        parse_label_header(text)
    error = caught.value
    assert (error.key, str(error)) == (key, f"{key}: expected {error.allowed}")
    allowed = {"personal": "sensitive", "grade": "important", "domestic": "yes", "origin": "ISO 3166"}
    if key in allowed:
        assert allowed[key] in error.allowed


def test_an_unknown_key_is_named_with_the_known_ones_and_cut() -> None:
    with pytest.raises(LabelHeaderError) as caught:
        parse_label_header("k" * 400 + "=1")
    assert caught.value.key == "k" * 64
    assert caught.value.allowed == "one of the keys personal, grade, domestic, origin"


def test_a_refusal_repeats_no_value() -> None:
    for text in ('personal="hunter2"', "personal=hunter2", 'origin="hunter2"', "personal=none hunter2", 'x="hunter2'):
        with pytest.raises(LabelHeaderError) as caught:
            parse_label_header(text)
        error = caught.value
        assert "hunter2" not in f"{error}{error.__cause__}{error.__context__}"


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(PERSONAL_WORDS)),
    st.sampled_from(sorted(GRADE_WORDS)),
    st.sampled_from(sorted(DOMESTIC_WORDS)),
    st.lists(st.sampled_from(sorted(ASSIGNED)), min_size=1, max_size=20, unique=True),
    st.permutations(range(4)),
)
def test_every_declaration_can_be_written_in_any_order(
    personal: str, grade: str, domestic: str, origin: list[Jurisdiction], order: list[int]
) -> None:
    codes = " ".join(f'"{code}"' for code in origin)
    members = [f"personal={personal}", f"grade={grade}", f"domestic={domestic}", f"origin=({codes})"]
    expected = Labels(PERSONAL_WORDS[personal], GRADE_WORDS[grade], DOMESTIC_WORDS[domestic], frozenset(origin))
    assert parse_label_header(", ".join(members[index] for index in order)) == expected


PIECES = st.sampled_from(
    [
        *'=,;()" \t@:%?*-.0',
        "personal",
        "grade",
        "domestic",
        "origin",
        "none",
        "no",
        '"DE"',
        "@-99999999999999",
        '%"%ff"',
    ]
)


@settings(max_examples=300, deadline=None)
@given(st.one_of(st.text(max_size=60), st.lists(PIECES, max_size=20).map("".join)))
@example("personal=@999999999999999")
@example('origin="\\')
def test_any_text_is_parsed_or_refused_with_the_one_error(text: str) -> None:
    try:
        labels = parse_label_header(text)
    except LabelHeaderError:
        return
    assert isinstance(labels, Labels)
