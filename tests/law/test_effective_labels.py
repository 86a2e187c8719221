"""Effective = (declared, else attested, else unknown), raised by floor and detection; origins are only ever added."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.labels import Domestic, Effective, Grade, Labels, LabelSources, Personal
from tests.law import chances
from tests.law.worlds import CN, DE, FR, SG, at

said = st.builds(
    Labels,
    st.none() | st.sampled_from(Personal),
    st.none() | st.sampled_from(Grade),
    st.none() | st.sampled_from(Domestic),
    chances.code_sets,
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
    for axis, worst in (("personal", Personal.UNKNOWN), ("grade", Grade.UNKNOWN), ("domestic", Domestic.UNKNOWN)):
        first = [getattr(voice, axis) for voice in (voices.declared, voices.attested)]
        spoken = next((value for value in first if value is not None), worst)
        raised = [getattr(voice, axis) for voice in (voices.floor, voices.detected)]
        assert getattr(effective, axis) == max([spoken, *(value for value in raised if value is not None)])
        assert isinstance(getattr(effective, axis), type(worst))


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
    assert (joined.personal, joined.grade, joined.domestic) == (
        max(one.personal, two.personal),
        max(one.grade, two.grade),
        max(one.domestic, two.domestic),
    )
    assert joined.origin == one.origin | two.origin
    assert isinstance(joined.personal, Personal)


def test_regulated_is_personal_or_above_general_or_unknown() -> None:
    free = {
        (personal, grade)
        for personal in Personal
        for grade in Grade
        if not Effective(personal, grade, Domestic.UNKNOWN).regulated()
    }
    assert free == {(Personal.NONE, Grade.PUBLIC), (Personal.NONE, Grade.GENERAL)}
