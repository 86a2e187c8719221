"""Laws made by chance: whatever the grammar can say, Cedar reads it as we do."""

from __future__ import annotations

from random import Random

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from orchestrator.policy.bundle import AdmittedPack, Horizons, Law
from orchestrator.policy.ids import PackId, RuleId
from orchestrator.policy.labels import Personal
from orchestrator.policy.packs import HOME, Confidence, Effect, Mode, Operator, Pack, Rule, Source, Subject, Test
from orchestrator.policy.places import Action
from tests.third_opinion.cases import Case, Site
from tests.third_opinion.chances import SG, law_by_chance, shaken
from tests.third_opinion.opinion import Cedar, Ours, compare
from tests.third_opinion.plans import near_cases
from tests.third_opinion.translate import translate

FAR = Horizons(1 << 60, 1 << 60, 1 << 60)
ALWAYS = Test(Subject.ACTION, Operator.IN, members=frozenset(action.value for action in Action))


# One draw alone: of many, most examples would be alike.
@settings(max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, (1 << 20) - 1))
def test_a_law_made_by_chance_is_read_alike(seed: int) -> None:
    chance = Random(seed)
    law = law_by_chance(chance)
    cases = [shaken(chance, case) for case in near_cases(law, SG, 40, seed)]
    tally = compare(Cedar(translate(law, SG)), Ours(law, SG), cases)
    assert tally.asked == len(cases) > 0
    assert tally.differences[:1] == []


def test_home_in_an_exemption_is_the_jurisdiction_that_is_asked() -> None:
    """A rule that spares data from elsewhere must not spare the data of the country whose law it is."""
    elsewhere = Test(Subject.ORIGIN, Operator.AVOIDS, members=frozenset({HOME}))
    grant = _rule("R-1", Effect.GRANT, ())
    forbid = _rule("R-2", Effect.FORBID, (elsewhere,))
    pack = Pack(PackId("p"), 1, "topic", frozenset({SG}), 0, None, Mode.ENFORCE, (grant, forbid))
    law = Law([AdmittedPack(pack, frozenset({SG}))], FAR)
    site = Site(frozenset({"SG"}), frozenset({"SG"}))
    of_home = Case(site, site, frozenset({"SG"}), personal=Personal.PERSONAL)
    of_elsewhere = Case(site, site, frozenset({"DE"}), personal=Personal.PERSONAL)
    assert [one.allowed for one in Cedar(translate(law, SG)).ask([of_home, of_elsewhere])] == [False, True]
    assert [Ours(law, SG).ask(one).allowed for one in (of_home, of_elsewhere)] == [False, True]


def _rule(name: str, effect: Effect, unless: tuple[Test, ...]) -> Rule:
    source = Source("A law", "Art. 1", "2026-01-01")
    return Rule(RuleId(name), effect, (ALWAYS,), "A sentence.", "", source, Confidence.HIGH, unless=unless)
