"""Effective = (declared, else attested, else unknown), raised by floor and detection; origins are only ever added."""

from __future__ import annotations

from dataclasses import fields

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.labels import (
    RANK_AXES,
    SET_AXES,
    UNKNOWN_SET,
    Clean,
    Domestic,
    Effective,
    Grade,
    Labels,
    LabelSources,
    Personal,
    at_inference,
)
from orchestrator.policy.packs import Subject
from orchestrator.policy.vocabulary import SENSITIVE, UNKNOWN, Category
from tests.law import chances
from tests.law.worlds import CN, DE, FR, SG, at

said = st.builds(
    Labels,
    personal=st.none() | st.sampled_from(Personal),
    grade=st.none() | st.sampled_from(Grade),
    domestic=st.none() | st.sampled_from(Domestic),
    origin=chances.code_sets,
    clean=st.none() | st.sampled_from(Clean),
    categories=st.none() | st.frozensets(st.sampled_from(["contact", "health", UNKNOWN]), max_size=2),
    located=st.none() | chances.sets_of(Subject.LOCATED),
    collected=st.none() | chances.sets_of(Subject.COLLECTED),
    purpose=st.none() | chances.sets_of(Subject.PURPOSE),
    asset=st.none() | chances.sets_of(Subject.ASSET),
)
sources = st.builds(LabelSources, said, said, said, said, chances.code_sets)


@pytest.mark.parametrize(
    ("voices", "effective"),
    [
        (LabelSources(), Effective()),
        (LabelSources(soil=at(SG)), Effective(origin=at(SG))),
        (
            LabelSources(attested=Labels(Personal.NONE, Grade.GENERAL, Domestic.NO, at(DE)), soil=at(SG)),
            Effective(Personal.NONE, Grade.GENERAL, Domestic.NO, at(DE, SG)),
        ),
        (
            LabelSources(
                declared=Labels(personal=Personal.NONE, origin=at(FR)),
                attested=Labels(Personal.SENSITIVE, Grade.GENERAL, origin=at(DE)),
                soil=at(SG),
            ),
            Effective(Personal.NONE, Grade.GENERAL, Domestic.UNKNOWN, at(DE, FR, SG)),
        ),
        (
            LabelSources(declared=Labels(personal=Personal.UNKNOWN), attested=Labels(personal=Personal.NONE)),
            Effective(personal=Personal.UNKNOWN),
        ),
        (
            LabelSources(
                declared=Labels(Personal.NONE, Grade.PUBLIC, Domestic.NO),
                floor=Labels(personal=Personal.PERSONAL, grade=Grade.PUBLIC),
                detected=Labels(grade=Grade.IMPORTANT, origin=at(CN)),
            ),
            Effective(Personal.PERSONAL, Grade.IMPORTANT, Domestic.NO, at(CN)),
        ),
        (
            LabelSources(detected=Labels(Personal.NONE, Grade.PUBLIC, Domestic.NO)),
            Effective(),
        ),
    ],
)
def test_the_effective_label(voices: LabelSources, effective: Effective) -> None:
    assert voices.effective() == effective


@settings(max_examples=150, deadline=None)
@given(sources)
def test_the_first_voice_speaks_and_the_others_only_raise(voices: LabelSources) -> None:
    effective = voices.effective()
    first = (voices.declared, voices.attested)
    for axis, values in RANK_AXES.items():
        spoken = [getattr(voice, axis) for voice in first]
        value = next((value for value in spoken if value is not None), max(values))
        raised = [getattr(voice, axis) for voice in (voices.floor, voices.detected)]
        least = max([value, *(more for more in raised if more is not None)])
        found = getattr(effective, axis)
        assert found >= least if axis == "personal" else found == least
        assert isinstance(found, values)
    for axis in SET_AXES:
        if axis == "origin":
            continue
        members = next((m for m in (getattr(voice, axis) for voice in first) if m is not None), UNKNOWN_SET)
        more = [getattr(voice, axis) or frozenset() for voice in (voices.floor, voices.detected)]
        assert getattr(effective, axis) == members.union(*more)


@settings(max_examples=150, deadline=None)
@given(sources)
def test_a_category_that_counts_raises_personal(voices: LabelSources) -> None:
    effective = voices.effective()
    heard = effective.categories
    if voices.declared.categories is None and voices.attested.categories is None:
        heard = heard - UNKNOWN_SET  # nobody said so
    if heard & SENSITIVE:
        assert effective.personal >= Personal.SENSITIVE
    elif heard - UNKNOWN_SET:
        assert effective.personal >= Personal.PERSONAL
    axis = [voices.declared.personal, voices.attested.personal]
    spoken = next((value for value in axis if value is not None), Personal.UNKNOWN)
    if effective.personal > spoken:
        raised = [voices.floor.personal or 0, voices.detected.personal or 0]
        assert effective.personal in raised or effective.categories


@pytest.mark.parametrize("category", Category)
def test_a_category_says_whether_a_payload_is_sensitive(category: Category) -> None:
    said_so = Labels(Personal.NONE, Grade.PUBLIC, categories=frozenset({category.value}))
    sensitive = category.value in SENSITIVE
    expected = Personal.SENSITIVE if sensitive else Personal.PERSONAL
    assert LabelSources(declared=said_so).effective().personal is expected
    contract = LabelSources(declared=Labels(Personal.NONE), attested=Labels(categories=said_so.categories))
    assert contract.effective().personal is expected


def test_an_inference_endpoint_says_what_it_is_for_unless_the_header_does() -> None:
    silent = at_inference(Labels())
    assert (silent.purpose, silent.asset) == (frozenset({"inference"}), frozenset({"payload"}))
    said_so = Labels(purpose=frozenset({"finetune"}), asset=frozenset({"weights"}))
    assert at_inference(said_so) == said_so


@settings(max_examples=150, deadline=None)
@given(sources)
def test_no_voice_takes_an_origin_away(voices: LabelSources) -> None:
    every = (voices.declared, voices.attested, voices.floor, voices.detected)
    assert voices.effective().origin == voices.soil.union(*(voice.origin for voice in every))


@settings(max_examples=100, deadline=None)
@given(chances.labels, chances.labels, chances.labels)
def test_joining_is_a_least_upper_bound(one: Effective, two: Effective, three: Effective) -> None:
    assert one.join(one) == one
    assert one.join(two) == two.join(one)
    assert one.join(two).join(three) == one.join(two.join(three))
    joined = one.join(two)
    for axis, values in RANK_AXES.items():
        assert getattr(joined, axis) is max(getattr(one, axis), getattr(two, axis))
        assert isinstance(getattr(joined, axis), values)
    for axis in SET_AXES:
        assert getattr(joined, axis) == getattr(one, axis) | getattr(two, axis)
    assert {*RANK_AXES, *SET_AXES} == {field.name for field in fields(Effective)} == {f.name for f in fields(Labels)}


def test_regulated_is_personal_or_above_general_or_unknown() -> None:
    free = {
        (personal, grade)
        for personal in Personal
        for grade in Grade
        if not Effective(personal, grade, Domestic.UNKNOWN).regulated()
    }
    assert free == {(Personal.NONE, Grade.PUBLIC), (Personal.NONE, Grade.GENERAL)}
