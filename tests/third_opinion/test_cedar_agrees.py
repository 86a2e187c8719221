"""Cedar, with a translation of its own, says of the shipped law what `permit` says, and names the same rules."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.policy.jurisdictions import Jurisdiction
from tests.third_opinion.chances import cases_of
from tests.third_opinion.conftest import Report
from tests.third_opinion.opinion import agree, compare
from tests.third_opinion.plans import plan_of, shipped_jurisdictions
from tests.third_opinion.shipped import JURISDICTIONS, cedar_of, ours_of, shipped_law

EXAMPLES = 300


def test_there_is_a_jurisdiction_for_each_set_of_shipped_packs() -> None:
    assert shipped_jurisdictions(shipped_law()) == JURISDICTIONS


@pytest.mark.parametrize("jurisdiction", JURISDICTIONS)
def test_every_distinguishable_situation_is_judged_alike(jurisdiction: Jurisdiction, report: Report) -> None:
    plan = plan_of(shipped_law(), jurisdiction)
    cedar = cedar_of(jurisdiction)
    tally = compare(cedar, ours_of(jurisdiction), plan.cases)
    report.add(plan, tally.allowed)
    assert tally.differences[:1] == []
    assert tally.asked == len(plan.cases) > 0
    # Not a comparison of nothing with nothing: both answers come up, and every rule decides something.
    assert 0 < tally.allowed < tally.asked
    assert tally.fired >= cedar.translation.rules


@pytest.mark.parametrize("jurisdiction", JURISDICTIONS)
def test_situations_by_chance_are_judged_alike(jurisdiction: Jurisdiction) -> None:
    cedar, ours = cedar_of(jurisdiction), ours_of(jurisdiction)

    @settings(max_examples=EXAMPLES, suppress_health_check=[HealthCheck.too_slow])
    @given(st.data())
    def judged_alike(data: st.DataObject) -> None:
        case = data.draw(situations)
        theirs, own = cedar.ask([case])[0], ours.ask(case)
        assert agree(theirs, own), (theirs, own)

    situations = cases_of(shipped_law(), jurisdiction)
    judged_alike()
