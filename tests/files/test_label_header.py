"""The header x-tidegate-labels declares exactly what it says, or is refused whole."""

from __future__ import annotations

import gc
import weakref

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.files.label_header import LENGTH_MAX, LabelHeaderError, parse_label_header
from orchestrator.policy.jurisdictions import ASSIGNED, Jurisdiction
from orchestrator.policy.labels import (
    CLEAN_WORDS,
    DOMESTIC_WORDS,
    GRADE_WORDS,
    PERSONAL_WORDS,
    Clean,
    Domestic,
    Grade,
    Labels,
    Personal,
)
from orchestrator.policy.vocabulary import UNKNOWN, Asset, Category, Purpose


class Asking:
    """Whoever reads a header."""

    def read(self, text: str) -> str:
        try:
            parse_label_header(text)
        except LabelHeaderError as error:
            return str(error)
        return ""


def test_a_refusal_keeps_nobody_who_asked() -> None:
    gc.collect()
    gc.disable()
    try:
        asking = Asking()
        gone = weakref.ref(asking)
        assert asking.read("grade")
        assert asking.read("=")
        del asking
        assert gone() is None, "only a search for cycles would find it"
    finally:
        gc.enable()


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
    ("origin=unknown", Labels(origin=origins("unknown"))),
    ("clean=raw", Labels(clean=Clean.RAW)),
    ("clean=anonymised", Labels(clean=Clean.ANONYMISED)),
    ("clean=unknown", Labels(clean=Clean.UNKNOWN)),
    ("categories=health", Labels(categories=frozenset({"health"}))),
    ("categories=(health contact)", Labels(categories=frozenset({"health", "contact"}))),
    ("categories=( health  sex_life health )", Labels(categories=frozenset({"health", "sex_life"}))),
    ("categories=()", Labels(categories=frozenset())),
    ("categories=unknown", Labels(categories=frozenset({UNKNOWN}))),
    ("categories=(contact unknown)", Labels(categories=frozenset({"contact", UNKNOWN}))),
    ('located="SG"', Labels(located=origins("SG"))),
    ('located=("SG" "DE")', Labels(located=origins("SG", "DE"))),
    ("located=unknown", Labels(located=origins("unknown"))),
    ("located=(unknown)", Labels(located=origins("unknown"))),
    ('collected=("NO" "SE")', Labels(collected=origins("NO", "SE"))),
    ("collected=unknown", Labels(collected=origins("unknown"))),
    ("purpose=inference", Labels(purpose=frozenset({"inference"}))),
    ("purpose=(embedding safety_review)", Labels(purpose=frozenset({"embedding", "safety_review"}))),
    ("purpose=unknown", Labels(purpose=frozenset({UNKNOWN}))),
    ("asset=payload", Labels(asset=frozenset({"payload"}))),
    ("asset=(weights training_code)", Labels(asset=frozenset({"weights", "training_code"}))),
    (
        'clean=tokenised, categories=(health), origin="DE", located="CH", collected="AT",purpose=embedding,asset=audit',
        Labels(
            origin=origins("DE"),
            clean=Clean.TOKENISED,
            categories=frozenset({"health"}),
            located=origins("CH"),
            collected=origins("AT"),
            purpose=frozenset({"embedding"}),
            asset=frozenset({"audit"}),
        ),
    ),
]

BAD = [
    ("clean=washed", "clean"),
    ("clean=Raw", "clean"),
    ('clean="raw"', "clean"),
    ("clean=(raw)", "clean"),
    ("clean", "clean"),
    ("clean=raw;q=1", "clean"),
    ("clean=raw, clean=anonymised", "clean"),
    ("categories=all", "categories"),
    ("categories=none", "categories"),
    ("categories=Health", "categories"),
    ('categories="health"', "categories"),
    ('categories=(health "contact")', "categories"),
    ("categories=(health 1)", "categories"),
    ("categories=(health;q=1)", "categories"),
    ("categories=(health);q=1", "categories"),
    ("categories=((health))", "categories"),
    ("categories=(health, contact)", "categories"),
    ("categories=health contact", "x-tidegate-labels"),
    ("categories", "categories"),
    ("categories=", "categories"),
    ("categories=(health), categories=()", "categories"),
    ("purpose=()", "purpose"),
    ("purpose=training", "purpose"),
    ('purpose="inference"', "purpose"),
    ("purpose=(inference ?1)", "purpose"),
    ("asset=()", "asset"),
    ("asset=gpu", "asset"),
    ('asset="payload"', "asset"),
    ("asset=payload, asset=weights", "asset"),
    *(
        (f"{key}={value}", key)
        for key in ("located", "collected")
        for value in (
            "SG",
            '"sg"',
            '"EEA"',
            '"XX"',
            '""',
            "()",
            "(SG)",
            '("SG" unknown)',
            '(unknown "SG")',
            "(unknown unknown)",
            '"unknown"',
            '("SG" ("DE"))',
            '("SG";q=1)',
            '"SG";q=1',
            "?1",
        )
    ),
    ('origin=("DE" unknown)', "origin"),
    ('origin="unknown"', "origin"),
    ('located="SG", located="DE"', "located"),
    ("location=SG", "location"),
    ("purposes=inference", "purposes"),
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


CODES = ("assigned ISO 3166-1 alpha-2 codes", '"DE"', UNKNOWN)
ALLOWED = {
    "personal": (*PERSONAL_WORDS,),
    "grade": (*GRADE_WORDS,),
    "domestic": (*DOMESTIC_WORDS,),
    "clean": (*CLEAN_WORDS,),
    "categories": (*(category.value for category in Category), UNKNOWN),
    "origin": CODES,
    "located": CODES,
    "collected": CODES,
    "purpose": (*(purpose.value for purpose in Purpose), UNKNOWN),
    "asset": (*(asset.value for asset in Asset), UNKNOWN),
}
"""What an error about each key must name."""


@pytest.mark.parametrize(("text", "labels"), GOOD)
def test_a_valid_header_declares_what_it_says(text: str, labels: Labels) -> None:
    assert parse_label_header(text) == labels


@pytest.mark.parametrize(("text", "key"), BAD)
def test_an_invalid_header_is_refused_with_its_key(text: str, key: str) -> None:
    with pytest.raises(LabelHeaderError) as caught:
        parse_label_header(text)
    error = caught.value
    assert (error.key, str(error)) == (key, f"{key}: expected {error.allowed}")
    assert all(word in error.allowed for word in ALLOWED.get(key, ())), "every allowed value is named"


def test_an_unknown_key_is_named_with_the_known_ones_and_cut() -> None:
    with pytest.raises(LabelHeaderError) as caught:
        parse_label_header("k" * 400 + "=1")
    assert caught.value.key == "k" * 64
    assert caught.value.allowed == "one of the keys " + ", ".join(ALLOWED)


@pytest.mark.parametrize("key", [*ALLOWED, "x"])
@pytest.mark.parametrize(
    "value",
    [
        "hunter2",
        '"hunter2"',
        '"hunter2',
        "(hunter2)",
        '("hunter2")',
        "(hunter2",
        '"DE";hunter2',
        "none;a=hunter2",
        "none hunter2",
        ":hunter2:",
        "1, 2=hunter2",
    ],
)
def test_a_refusal_repeats_no_value(key: str, value: str) -> None:
    with pytest.raises(LabelHeaderError) as caught:
        parse_label_header(f"{key}={value}")
    error = caught.value
    shown = f"{error}{error!r}{error.args}{error.allowed}{error.__cause__!r}{error.__context__!r}"
    assert "hunter2" not in shown


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(sorted(PERSONAL_WORDS)),
    st.sampled_from(sorted(GRADE_WORDS)),
    st.sampled_from(sorted(DOMESTIC_WORDS)),
    st.sampled_from(sorted(CLEAN_WORDS)),
    st.lists(st.lists(st.sampled_from(sorted(ASSIGNED)), min_size=1, max_size=9, unique=True), min_size=3, max_size=3),
    st.lists(st.sampled_from(ALLOWED["categories"]), unique=True, max_size=9),
    st.lists(st.sampled_from(ALLOWED["purpose"]), min_size=1, unique=True),
    st.lists(st.sampled_from(ALLOWED["asset"]), min_size=1, unique=True),
    st.permutations(range(10)),
)
def test_every_declaration_can_be_written_in_any_order(
    personal: str,
    grade: str,
    domestic: str,
    clean: str,
    places: list[list[Jurisdiction]],
    categories: list[str],
    purpose: list[str],
    asset: list[str],
    order: list[int],
) -> None:
    codes = [" ".join(f'"{code}"' for code in place) for place in places]
    members = [
        f"personal={personal}",
        f"grade={grade}",
        f"domestic={domestic}",
        f"clean={clean}",
        *(f"{key}=({listed})" for key, listed in zip(("origin", "located", "collected"), codes, strict=True)),
        f"categories=({' '.join(categories)})",
        f"purpose=({' '.join(purpose)})",
        f"asset=({' '.join(asset)})",
    ]
    origin, located, collected = (frozenset(place) for place in places)
    expected = Labels(
        PERSONAL_WORDS[personal],
        GRADE_WORDS[grade],
        DOMESTIC_WORDS[domestic],
        origin,
        CLEAN_WORDS[clean],
        frozenset(categories),
        located,
        collected,
        frozenset(purpose),
        frozenset(asset),
    )
    assert parse_label_header(", ".join(members[index] for index in order)) == expected


PIECES = st.sampled_from(
    [
        *'=,;()" \t@:%?*-.0',
        "personal",
        "grade",
        "domestic",
        "origin",
        "categories",
        "located",
        "purpose",
        "health",
        "unknown",
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
