"""`permit` answers whatever it is asked, the same way every time."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.bundle import AdmittedPack, Horizons, Law
from orchestrator.policy.jurisdictions import ASSIGNED
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.permit import Facts, permit, permit_route
from orchestrator.policy.places import Action, Leg, Movement, Place
from tests.law import chances
from tests.law.worlds import NOW_MS

wild_codes = st.frozensets(st.sampled_from(sorted(ASSIGNED)), max_size=4)
wild_places = st.builds(
    Place,
    st.just("anywhere"),
    wild_codes,
    wild_codes,
    st.lists(chances.entities, max_size=3).map(tuple),
    chances.entities,
)
wild_labels = st.builds(
    Effective, st.sampled_from(Personal), st.sampled_from(Grade), st.sampled_from(Domestic), wild_codes
)
wild_facts = st.builds(
    Facts, chances.entities, wild_labels, st.lists(chances.pathways, max_size=4).map(tuple), wild_codes
)
wild_times = st.one_of(st.integers(-(2**70), 2**70), chances.times)
wild_horizons = st.builds(Horizons, wild_times, wild_times, wild_times)


@settings(max_examples=200, deadline=None)
@given(
    chances.any_packs,
    wild_horizons,
    wild_facts,
    st.builds(Movement, st.sampled_from(Action), st.sampled_from(Leg), wild_places, wild_places),
    wild_times,
)
def test_permit_never_raises_and_never_wavers(
    packs: list[AdmittedPack], horizons: Horizons, told: Facts, movement: Movement, now_ms: int
) -> None:
    law = Law(packs, horizons)
    verdict = permit(law, told, movement, now_ms)
    assert verdict == permit(law, told, movement, now_ms)
    assert verdict.allowed is not bool(verdict.reasons)
    assert list(verdict.rules) == sorted(set(verdict.rules))
    if verdict.allowed:
        assert verdict.rules
        assert now_ms < verdict.valid_until_ms
    else:
        assert set(verdict.rules) == {reason.rule for reason in verdict.reasons}
        assert verdict.obligations == ()


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.simple_places, chances.simple_places)
def test_a_route_is_allowed_only_where_both_ways_are(
    packs: list[AdmittedPack], told: Facts, edge: Place, pool: Place
) -> None:
    law = Law(packs, Horizons.from_issue(NOW_MS))
    route = permit_route(law, told, edge, pool, NOW_MS)
    there = permit(law, told, Movement(Action.INFER, Leg.EDGE_TO_POOL, edge, pool), NOW_MS)
    home = permit(law, told, Movement(Action.RETURN, Leg.POOL_TO_EDGE, pool, edge), NOW_MS)
    if route.allowed:
        assert there.allowed
        assert home.allowed
        assert route.valid_until_ms == min(there.valid_until_ms, home.valid_until_ms)
        assert set(route.obligations) == {*there.obligations, *home.obligations}
    else:
        assert route.reasons
