"""`permit` answers whatever it is asked, the same way every time."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.bundle import FOREVER_MS, AdmittedPack, Horizons, Law
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.facts import Declared, Facts, situation_of
from orchestrator.policy.jurisdictions import ASSIGNED, Jurisdiction
from orchestrator.policy.labels import SET_AXES, UNKNOWN_SET, Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Effect, Mode, Obligation, ObligationKind, Operator, Rule, Subject, Test
from orchestrator.policy.pathways import PathwayKind, Role
from orchestrator.policy.permit import permit, permit_route, touched
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.table import RouteTable
from orchestrator.policy.verdicts import FAULT
from tests.law import chances
from tests.law.worlds import (
    CN,
    FAR,
    NOW_MS,
    SG,
    at,
    facts,
    infer,
    open_pack,
    own,
    pack,
    paper,
    place,
    plain,
    refusals,
    rule,
)
from tests.values import replace

wild_codes = st.frozensets(st.sampled_from(sorted(ASSIGNED)), max_size=4)
wild_places = st.builds(
    Place,
    st.just("anywhere"),
    wild_codes,
    wild_codes,
    st.lists(chances.entities, max_size=3).map(tuple),
    chances.entities,
)
wild_sets = st.one_of(wild_codes, st.just(UNKNOWN_SET), st.frozensets(st.text(max_size=3), max_size=2))
wild_labels = st.builds(
    Effective,
    st.sampled_from(Personal),
    st.sampled_from(Grade),
    st.sampled_from(Domestic),
    wild_codes,
    st.sampled_from(Clean),
    **{axis: wild_sets for axis in SET_AXES if axis != "origin"},
)
wild_times = st.one_of(st.integers(-(2**70), 2**70), chances.times)
wild_counters = st.builds(Counter, st.sampled_from(CounterKind), st.integers(-1, 2**70), wild_times, wild_times)
wild_facts = st.builds(
    Facts,
    tenant=chances.entities,
    label=wild_labels,
    pathways=st.lists(chances.pathways, max_size=4).map(tuple),
    processed_in=wild_codes,
    role=st.none() | st.sampled_from(Role),
    critical_infrastructure=st.sampled_from(Declared),
    counters=st.lists(st.one_of(wild_counters, chances.counters), max_size=3).map(tuple),
    notices=chances.notices,
)
wild_horizons = st.builds(Horizons, wild_times, wild_times, wild_times)


@settings(max_examples=150, deadline=None)
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
        assert verdict.valid_until_ms > now_ms or verdict.rules == (FAULT,) or now_ms >= FOREVER_MS
        assert verdict.obligations == ()


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.simple_places, chances.simple_places)
def test_a_route_is_allowed_only_where_both_ways_are(
    packs: list[AdmittedPack], told: Facts, edge: Place, pool: Place
) -> None:
    law = Law(packs, Horizons.from_issue(NOW_MS))
    route = permit_route(law, told, edge, pool, NOW_MS)
    there = permit(law, told, Movement(Action.INFER, Leg.EDGE_TO_POOL, edge, pool), NOW_MS)
    answer = replace(told, processed_in=told.processed_in | pool.soil())
    home = permit(law, answer, Movement(Action.RETURN, Leg.POOL_TO_EDGE, pool, edge), NOW_MS)
    assert route.allowed is (there.allowed and home.allowed)
    assert route.valid_until_ms == min(there.valid_until_ms, home.valid_until_ms)
    assert route.answers == (*there.answers, *home.answers)
    if route.allowed:
        assert set(route.obligations) == {*there.obligations, *home.obligations}
        assert set(route.rules) == {*there.rules, *home.rules}
    else:
        assert set(route.reasons) == {*there.reasons, *home.reasons}
        assert route.obligations == ()


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.movements)
def test_duties_are_those_of_every_grant_and_every_obligation_that_holds(
    packs: list[AdmittedPack], told: Facts, movement: Movement
) -> None:
    verdict = permit(Law(packs, FAR), told, movement, NOW_MS)
    if verdict.allowed:
        owed = set[Obligation]().union(*(_owed(packs, one, told, movement) for one in touched(told, movement)))
        assert set(verdict.obligations) == owed
        assert len(verdict.obligations) == len(owed)


def _owed(packs: list[AdmittedPack], jurisdiction: Jurisdiction, told: Facts, movement: Movement) -> set[Obligation]:
    """What one jurisdiction asks for, of a movement that it allows.

    Every obligation that holds; what each exemption costs that is relied on; and the conditions of its grants, unless
    one that holds is without.
    """
    situation = situation_of(told, movement, NOW_MS)
    held = {
        pathway.kind
        for pathway in told.pathways
        if pathway.covers_payload(told.tenant.id, told.role, told.label, NOW_MS)
        and pathway.covers_place(movement.target)
    }
    owed, conditions = set[Obligation](), list[tuple[Obligation, ...]]()
    for one in packs:
        if jurisdiction not in one.pack.jurisdictions or one.pack.mode is Mode.SHADOW or not one.pack.in_force(NOW_MS):
            continue
        for law_rule in one.pack.rules:
            spoken = all(test.holds(situation) for test in law_rule.when)
            exempt = bool(law_rule.unless) and all(test.holds(situation) for test in law_rule.unless)
            met = bool(law_rule.pathways) and all(any_of & held for any_of in law_rule.pathways)
            if spoken and not exempt and law_rule.effect is Effect.OBLIGE:
                owed |= set(law_rule.obligations)
            costs = law_rule.effect in (Effect.FORBID, Effect.OBLIGE) or (
                law_rule.effect is Effect.REQUIRE and not met
            )
            if spoken and exempt and costs:
                owed |= set(law_rule.exemption)
            if spoken and not exempt and law_rule.effect is Effect.GRANT and jurisdiction in one.grants_for:
                conditions.append(law_rule.obligations)
    return owed | {duty for condition in conditions for duty in condition if all(conditions)}


KEEP = Obligation(ObligationKind.RETAIN, "P6M")
PROVE = Obligation(ObligationKind.PROVE_NO_DOMESTIC_INPUT, "CN")
OVERSEAS = Test(Subject.ORIGIN, Operator.AVOIDS, members=at(CN))


@pytest.mark.parametrize(
    ("rules", "owed"),
    [
        ([rule("G-1", Effect.GRANT, obligations=(KEEP,))], {KEEP}),
        (
            [rule("G-1", Effect.GRANT, obligations=(KEEP,)), rule("G-2", Effect.GRANT, obligations=(PROVE,))],
            {KEEP, PROVE},
        ),
        ([rule("G-1", Effect.GRANT, obligations=(KEEP,)), rule("G-2", Effect.GRANT)], set()),
        ([rule("G-1", Effect.GRANT, obligations=(KEEP,)), rule("G-2", Effect.GRANT, ())], {KEEP}),
        ([rule("G-1", Effect.GRANT), rule("O-1", Effect.OBLIGE, obligations=(KEEP,))], {KEEP}),
        ([rule("G-1", Effect.GRANT), rule("O-1", Effect.OBLIGE, obligations=(KEEP,), unless=(OVERSEAS,))], set()),
        (
            [
                rule("G-1", Effect.GRANT),
                rule("O-1", Effect.OBLIGE, obligations=(KEEP,), unless=(OVERSEAS,), exemption=(PROVE,)),
            ],
            {PROVE},
        ),
        ([rule("G-1", Effect.GRANT), rule("F-1", Effect.FORBID, exemption=(PROVE,), unless=(OVERSEAS,))], {PROVE}),
        ([rule("G-1", Effect.GRANT), rule("R-1", Effect.REQUIRE, exemption=(PROVE,), unless=(OVERSEAS,))], {PROVE}),
        ([rule("G-1", Effect.GRANT), rule("F-1", Effect.FORBID, (), exemption=(PROVE,), unless=(OVERSEAS,))], set()),
    ],
)
def test_a_condition_and_an_exemption_are_paid_for_where_they_are_relied_on(
    rules: list[Rule], owed: set[Obligation]
) -> None:
    movement = infer(place("e", SG), place("p", SG))
    verdict = permit(Law(own(pack("p", [SG], *rules)), FAR), facts(plain(SG)), movement, NOW_MS)
    assert (verdict.allowed, set(verdict.obligations)) == (True, owed)


def test_an_exemption_costs_nothing_where_the_paper_is_held() -> None:
    edge, pool = place("e", SG), place("p", SG)
    needs = rule(
        "R-1", Effect.REQUIRE, pathways=(PathwayKind.SG_CONTRACT,), exemption=(PROVE,), unless=(OVERSEAS,)
    )
    law = Law(own(open_pack(SG), pack("p", [SG], needs)), FAR)
    told = facts(plain(SG))
    contract = paper(PathwayKind.SG_CONTRACT, told.tenant.id, pool.operator.id, at(SG))
    assert permit(law, told, infer(edge, pool), NOW_MS).obligations == (PROVE,)
    assert permit(law, replace(told, pathways=(contract,)), infer(edge, pool), NOW_MS).obligations == ()


def test_a_grant_is_lifted_by_nothing_that_opens() -> None:
    """No pack that loads has such a grant; one that has opens nothing where it is lifted, in either reading."""
    law = Law(own(pack("p", [SG], rule("G-1", Effect.GRANT, unless=(OVERSEAS,)))), FAR)
    edge, pool = place("e", SG), place("p", SG)
    assert not permit_route(law, facts(plain(SG)), edge, pool, NOW_MS).allowed
    assert RouteTable(law, edge, [pool], NOW_MS).allowed(facts(plain(SG)), NOW_MS) == 0


def test_the_duties_of_two_laws_and_of_both_ways_are_all_owed() -> None:
    assert _duties(SG, CN) == tuple(
        sorted(
            (
                Obligation(ObligationKind.RETAIN, "P3Y"),
                Obligation(ObligationKind.RETAIN, "P6M"),
                Obligation(ObligationKind.DISCLOSE, "ai"),
            ),
            key=lambda duty: (duty.kind.value, duty.argument),
        )
    )


def _duties(here: Jurisdiction, there: Jurisdiction) -> tuple[Obligation, ...]:
    """The duties of a route between places whose laws each ask for one, of which one is owed on the way back alone."""
    back_only = (Test(Subject.ACTION, Operator.IN, members=frozenset({"return"})),)
    keep, disclose = ObligationKind.RETAIN, ObligationKind.DISCLOSE
    packs = own(
        pack("a", [here], rule("A-1", Effect.GRANT, obligations=(Obligation(keep, "P6M"),))),
        pack("b1", [there], rule("B-1", Effect.GRANT)),
        pack("b2", [there], rule("B-2", Effect.OBLIGE, obligations=(Obligation(keep, "P3Y"),))),
        pack("b3", [there], rule("B-3", Effect.OBLIGE, back_only, obligations=(Obligation(disclose, "ai"),))),
    )
    verdict = permit_route(Law(packs, FAR), facts(plain(here)), place("e", here), place("p", there), NOW_MS)
    assert verdict.allowed
    return verdict.obligations


@pytest.mark.parametrize(
    ("given", "open_"),
    [((), False), (("told",), False), (("told", "asked"), True), (("asked", "told"), True), (("askeD",), False)],
)
def test_a_notice_that_is_owed_and_was_not_given_is_a_refusal(given: tuple[str, ...], open_: bool) -> None:
    owed = tuple(Obligation(ObligationKind.NOTIFY, name) for name in ("told", "asked"))
    law = Law([*own(open_pack(SG), pack("n", [SG], rule("N-1", Effect.OBLIGE, obligations=owed)))], FAR)
    told = replace(facts(plain(SG)), notices=tuple((name, "2026-01") for name in given))
    verdict = permit(law, told, infer(place("e", SG), place("p", SG)), NOW_MS)
    assert verdict.allowed is open_
    assert set(verdict.obligations) == (set(owed) if open_ else set())
    assert refusals(verdict) == (set() if open_ else {("N-1", SG)})
