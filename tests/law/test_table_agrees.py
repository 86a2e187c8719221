"""The compiled law says what the plain one says: of every pool, for any law, payload and time, however often asked."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy import table as compiled
from orchestrator.policy.bits import TestBits
from orchestrator.policy.bundle import AdmittedPack, Horizons, Law
from orchestrator.policy.counters import Counter, CounterKind, year_in_shanghai
from orchestrator.policy.facts import Declared, Facts, situation_of
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import (
    MOVEMENT_SETS,
    RISING,
    Effect,
    Obligation,
    ObligationKind,
    Operator,
    Subject,
    Test,
)
from orchestrator.policy.pathways import PathwayKind, Role
from orchestrator.policy.permit import permit_route
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.table import RouteTable, Tables
from orchestrator.policy.verdicts import FAULT
from tests.law import chances
from tests.law.test_raising_a_label import notices, papers, shipped_counters, shipped_places
from tests.law.worlds import (
    CN,
    DE,
    FAR,
    NOW_MS,
    SG,
    US,
    at,
    entity,
    facts,
    labelled,
    open_pack,
    own,
    pack,
    paper,
    place,
    plain,
    rule,
    shipped,
)
from tests.values import replace

pools_of = st.lists(chances.places, min_size=1, max_size=6)
horizons = st.sampled_from([FAR, FAR, Horizons(NOW_MS, NOW_MS + 2, NOW_MS + 3), Horizons(0, NOW_MS - 1, NOW_MS + 9)])
payload_tests = chances.any_tests_of(*(subject for subject in Subject if subject not in MOVEMENT_SETS))


def agrees(law: Law, told: Facts, edge: Place, pools: list[Place], made_ms: int, now_ms: int) -> None:
    """Hold a fresh table to `permit_route` at a time within its own, twice."""
    made = RouteTable(law, edge, pools, made_ms)
    verdicts = tuple(permit_route(law, told, edge, pool, now_ms) for pool in pools)
    expected = [verdict.allowed for verdict in verdicts]
    for _ in range(2):
        mask = made.allowed(told, now_ms)
        assert [bool(mask >> index & 1) for index in range(len(pools))] == expected
        assert mask >> len(pools) == 0
        assert made.verdicts(told, now_ms) == verdicts
    assert made.disagreements == 0


@settings(max_examples=200, deadline=None)
@given(chances.any_packs, horizons, chances.facts, chances.places, pools_of)
def test_the_table_is_the_law_for_laws_that_nobody_would_write(
    packs: list[AdmittedPack], until: Horizons, told: Facts, edge: Place, pools: list[Place]
) -> None:
    agrees(Law(packs, until), told, edge, pools, NOW_MS, NOW_MS)


@settings(max_examples=150, deadline=None)
@given(
    chances.loaded_packs, horizons, chances.facts, chances.simple_places, st.lists(chances.simple_places, max_size=6)
)
def test_the_table_is_the_law_for_laws_that_load(
    packs: list[AdmittedPack], until: Horizons, told: Facts, edge: Place, pools: list[Place]
) -> None:
    agrees(Law(packs, until), told, edge, pools, NOW_MS, NOW_MS)


@settings(max_examples=100, deadline=None)
@given(chances.any_packs, horizons, chances.facts, chances.places, pools_of, st.integers(-4, 4), st.integers(0, 6))
def test_a_table_holds_as_long_as_it_says(
    packs: list[AdmittedPack],
    until: Horizons,
    told: Facts,
    edge: Place,
    pools: list[Place],
    made_step_ms: int,
    step_ms: int,
) -> None:
    law, made_ms = Law(packs, until), NOW_MS + made_step_ms
    now_ms = made_ms + step_ms
    made = RouteTable(law, edge, pools, made_ms)
    if now_ms < made.valid_until_ms:
        agrees(law, told, edge, pools, made_ms, now_ms)


@settings(max_examples=60, deadline=None)
@given(chances.any_packs, horizons, chances.facts, chances.places, pools_of, st.integers(-3, 3))
def test_outside_of_its_time_a_table_denies_everything(
    packs: list[AdmittedPack], until: Horizons, told: Facts, edge: Place, pools: list[Place], step_ms: int
) -> None:
    law, made_ms = Law(packs, until), NOW_MS + step_ms
    made = RouteTable(law, edge, pools, made_ms)
    assert made_ms < made.valid_until_ms
    for now_ms in (made_ms - 1, made.valid_until_ms, made.valid_until_ms + 1, -(10**15)):
        assert made.allowed(told, now_ms) == 0
        assert not any(verdict.allowed for verdict in made.verdicts(told, now_ms))


def test_the_open_world_is_open_only_within_the_time_of_the_table() -> None:
    law = Law(own(open_pack(SG), pack("later", [SG], from_ms=NOW_MS + 10)), FAR)
    made = RouteTable(law, place("edge", SG), [place("pool", SG)] * 2, NOW_MS)
    assert (made.made_ms, made.valid_until_ms) == (NOW_MS, NOW_MS + 10)
    found = [made.allowed(facts(plain(SG)), NOW_MS + step) for step in (-1, 0, 9, 10)]
    assert found == [0, 0b11, 0b11, 0]
    told = [made.verdicts(facts(plain(SG)), NOW_MS + step)[0].allowed for step in (-1, 0, 9, 10)]
    assert told == [False, True, True, False]


several = st.lists(st.tuples(chances.facts, st.integers(0, 5)), min_size=2, max_size=6)


@settings(max_examples=80, deadline=None)
@given(chances.any_packs, chances.places, pools_of, several)
def test_what_a_table_remembers_of_other_payloads_and_times_changes_no_answer(
    packs: list[AdmittedPack], edge: Place, pools: list[Place], asked: list[tuple[Facts, int]]
) -> None:
    law = Law(packs, FAR)
    made = RouteTable(law, edge, pools, NOW_MS)
    for told, step_ms in [*asked, *asked]:
        now_ms = min(NOW_MS + step_ms, made.valid_until_ms - 1)
        # In any order of time: a second reading may be made with an earlier `now` that was cited.
        expected = tuple(permit_route(law, told, edge, pool, now_ms) for pool in pools)
        assert made.verdicts(told, now_ms) == expected
    assert made.disagreements == 0


@settings(max_examples=30, deadline=None)
@given(chances.loaded_packs, chances.places, pools_of, several)
def test_what_a_table_forgets_changes_no_answer(
    packs: list[AdmittedPack], edge: Place, pools: list[Place], asked: list[tuple[Facts, int]]
) -> None:
    law = Law(packs, FAR)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(compiled, "REMEMBERED_MAX", 2)
        made = RouteTable(law, edge, pools, NOW_MS)
        for told, _ in [*asked, *asked]:
            expected = tuple(permit_route(law, told, edge, pool, NOW_MS) for pool in pools)
            assert made.verdicts(told, NOW_MS) == expected
    assert made.disagreements == 0


def test_a_verdict_is_remembered_no_longer_than_it_may_be_relied_on() -> None:
    needs = rule("N-1", Effect.REQUIRE, pathways=(PathwayKind.EU_SCC,))
    law = Law(own(open_pack(SG), pack("n", [SG], needs)), FAR)
    edge, pool = place("edge", SG), place("pool", SG)
    held = tuple(
        paper(PathwayKind.EU_SCC, entity("tenant", SG).id, importer.operator.id, at(SG), Personal.NONE, NOW_MS + 5,
              NOW_MS + 9)
        for importer in (edge, pool)
    )  # fmt: skip
    told = replace(facts(plain(SG)), pathways=held)
    made = RouteTable(law, edge, [pool], NOW_MS)
    steps = (0, 4, 5, 8, 9, 100, 5, 0, 8, 9)
    assert [made.verdicts(told, NOW_MS + step)[0].allowed for step in steps] == [5 <= step < 9 for step in steps]
    assert made.disagreements == 0


def test_a_count_of_a_year_that_has_not_begun_says_nothing_until_it_does() -> None:
    begins_ms = year_in_shanghai(NOW_MS)[1]
    few = Test(Subject.COUNTER, Operator.BELOW, 5, counter=CounterKind.CN_PERSONS)
    law = Law(own(pack("n", [SG], rule("N-1", Effect.GRANT, (few,)))), FAR)
    count = Counter(CounterKind.CN_PERSONS, 1, begins_ms + 5, begins_ms + 10)
    told = replace(facts(plain(SG)), counters=(count,))
    edge, pool = place("edge", SG), place("pool", SG)
    made = RouteTable(law, edge, [pool], NOW_MS)
    assert permit_route(law, told, edge, pool, NOW_MS).valid_until_ms == begins_ms
    moments = (NOW_MS, begins_ms - 1, begins_ms, begins_ms + 9, begins_ms + 10)
    assert [made.verdicts(told, moment)[0].allowed for moment in moments] == [False, False, True, True, False]
    assert made.disagreements == 0


def test_a_difference_between_the_two_readings_is_a_refusal_and_counted() -> None:
    law = Law(own(open_pack(SG)), FAR)
    told, edge, pools = facts(plain(SG)), place("edge", SG), [place("one", SG), place("two", SG)]
    for wrong, allowed in ((0b00, [False, False]), (0b01, [True, False]), (0b10, [False, True])):
        made = RouteTable(law, edge, pools, NOW_MS)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(RouteTable, "allowed", lambda *_, wrong=wrong: wrong)
            verdicts = made.verdicts(told, NOW_MS)
        assert [verdict.allowed for verdict in verdicts] == allowed
        assert {verdict.rules for verdict in verdicts if not verdict.allowed} == {(FAULT,)}
        assert made.disagreements == allowed.count(False)
        assert [verdict.allowed for verdict in made.verdicts(told, NOW_MS)] == [True, True]
    closed = RouteTable(Law((), FAR), edge, pools, NOW_MS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(RouteTable, "allowed", lambda *_: 0b11)
        assert not any(verdict.allowed for verdict in closed.verdicts(told, NOW_MS))
    assert closed.disagreements == 2


@settings(max_examples=200, deadline=None)
@given(st.lists(payload_tests, max_size=8), chances.facts, chances.movements, chances.times)
def test_the_bits_are_the_tests(tests: list[Test], told: Facts, movement: Movement, now_ms: int) -> None:
    bits = TestBits(tests)
    true = bits.true(told, now_ms)
    situation = situation_of(told, movement, now_ms)
    assert bits.number.keys() == set(tests)
    for test, number in bits.number.items():
        assert bool(true >> number & 1) is test.holds(situation), test
        assert bool(bits.rising >> number & 1) is (test.operator in RISING)
    assert true >> len(bits.number) == 0


GRID_TESTS = [
    Test(subject, operator, rank, counter=counter)
    for subject in (Subject.PERSONAL, Subject.CRITICAL_INFRASTRUCTURE, Subject.COUNTER)
    for operator in Operator
    for rank in range(-1, 5)
    for counter in (None, CounterKind.CN_PERSONS, CounterKind.US_OMIC)
]


def test_the_bits_of_ranks_and_counts_are_the_tests_at_every_edge() -> None:
    bits = TestBits(GRID_TESTS)
    here = place("here", SG)
    counts: list[tuple[Counter, ...]] = [()]
    counts += [(Counter(CounterKind.CN_PERSONS, count, NOW_MS, NOW_MS + 1),) for count in range(7)]
    for personal, critical, counted in product(Personal, Declared, counts):
        label = labelled(personal, Grade.GENERAL, Domestic.NO, at(SG))
        told = replace(facts(label), critical_infrastructure=critical, counters=counted)
        for now_ms in (NOW_MS, NOW_MS + 1):
            true = bits.true(told, now_ms)
            situation = situation_of(told, Movement(*_INFER, here, here), now_ms)
            held = {test for test, number in bits.number.items() if true >> number & 1}
            assert held == {test for test in GRID_TESTS if test.holds(situation)}


_INFER = (Action.INFER, Leg.EDGE_TO_POOL)


@pytest.mark.parametrize("operator", [Operator.WITHIN, Operator.AVOIDS, Operator.TOUCHES, Operator.BEYOND, Operator.IN])
@pytest.mark.parametrize("effect", [Effect.GRANT, Effect.FORBID])
def test_where_the_answer_was_made_is_read_on_the_way_back(operator: Operator, effect: Effect) -> None:
    edge, pools = place("edge", SG), [place("sg", SG), place("cn", CN), place("both", SG, CN), place("us", US)]
    for members, brought in product((at(SG), at(CN), at(SG, CN), at()), (at(), at(SG), at(CN), at(DE))):
        reads = rule("R-1", effect, (Test(Subject.PROCESSED_IN, operator, members=frozenset(members)),))
        rules = [reads] if effect is Effect.GRANT else [reads, rule("R-2", Effect.GRANT)]
        law = Law(own(pack("p", chances.WORLD, *rules)), FAR)
        agrees(law, replace(facts(plain(SG)), processed_in=brought), edge, pools, NOW_MS, NOW_MS)


def test_without_pools_there_is_nothing_to_allow() -> None:
    made = RouteTable(Law(own(open_pack(SG)), FAR), place("edge", SG), [], NOW_MS)
    assert made.allowed(facts(plain(SG)), NOW_MS) == 0
    assert made.verdicts(facts(plain(SG)), NOW_MS) == ()


@settings(max_examples=200, deadline=None)
@given(
    chances.labels,
    shipped_counters,
    st.sampled_from(Declared),
    st.booleans(),
    st.booleans(),
    chances.code_sets,
    st.sampled_from([None, Role.CONTROLLER]),
    st.data(),
)
def test_the_table_is_the_law_for_the_shipped_packs(
    label: Effective,
    counted: tuple[Counter, ...],
    critical: Declared,
    holding: bool,
    given_notice: bool,
    processed: frozenset[Jurisdiction],
    role: Role | None,
    data: st.DataObject,
) -> None:
    places = shipped_places()
    held = papers({one.operator.id for one in places}) if holding else ()
    given_notices = notices() if given_notice else ()
    told = Facts(entity("tenant", SG), label, held, processed, role, critical, counted, given_notices)
    edge = data.draw(st.sampled_from(places))
    agrees(shipped().law, told, edge, [*places, *shipped().pools.values()], NOW_MS, NOW_MS)


def test_the_shipped_packs_are_open_and_closed_to_somebody() -> None:
    """The positive control of the property above."""
    places = shipped_places()
    made = RouteTable(shipped().law, places[0], places, NOW_MS)
    label = replace(plain(SG), located=at(SG), collected=at(SG))
    told = replace(facts(label), notices=notices())
    assert made.allowed(told, NOW_MS) > 0
    core = replace(told, label=replace(label, grade=Grade.CORE))
    assert made.allowed(core, NOW_MS) == 0


def test_payloads_that_no_test_tells_apart_are_told_apart_by_what_they_bring_and_hold() -> None:
    """What is remembered for one is not taken for another that differs in one of these alone."""
    owed = rule("O-1", Effect.OBLIGE, obligations=(Obligation(ObligationKind.NOTIFY, "told"),))
    needs = rule("N-1", Effect.REQUIRE, pathways=(PathwayKind.EU_SCC,))
    law = Law(own(open_pack(SG, CN), pack("d", [SG], owed, needs)), FAR)
    edge, pools = place("edge", SG), [place("one", SG), place("two", CN)]
    base = replace(facts(plain(SG)), notices=(("told", "1"),))
    named = [
        paper(PathwayKind.EU_SCC, base.tenant.id, importer.operator.id, at(SG, CN)) for importer in (edge, *pools)
    ]
    base = replace(base, pathways=tuple(named))
    others = [
        base,
        replace(base, notices=()),
        replace(base, notices=(("told", "2"), ("asked", "1"))),
        replace(base, pathways=()),
        replace(base, pathways=tuple(named[:2])),
        replace(base, pathways=(named[0], named[2])),
        replace(base, pathways=tuple(named[1:])),
        replace(base, role=None),
        replace(base, label=replace(base.label, origin=at(SG, DE))),
        replace(base, label=replace(base.label, located=at(DE))),
        replace(base, processed_in=at(DE)),
        replace(base, processed_in=at(CN)),
    ]
    answers = {tuple(permit_route(law, told, edge, pool, NOW_MS).allowed for pool in pools) for told in others}
    assert answers == set(product((True, False), repeat=2))
    for order in (others, others[::-1]):
        made = RouteTable(law, edge, pools, NOW_MS)
        for told in (*order, *order):
            allowed = [permit_route(law, told, edge, pool, NOW_MS).allowed for pool in pools]
            assert [verdict.allowed for verdict in made.verdicts(told, NOW_MS)] == allowed
        assert made.disagreements == 0


def test_routes_between_places_of_one_id_are_told_apart() -> None:
    law, tables, told = Law(own(open_pack(SG, CN)), FAR), Tables(), facts(plain(SG))
    edges = [place("edge", SG), place("edge", DE)]
    pools = [place("pool", CN), place("pool", US), place("pool", CN)]
    seen = set()
    # Once with another pool at each step, once with another edge.
    for edge, pool in [*product(edges, pools), *((edge, pool) for pool, edge in product(pools, edges))]:
        verdict = tables.permit_route(law, told, edge, pool, NOW_MS)
        assert verdict == permit_route(law, told, edge, pool, NOW_MS)
        seen.add(verdict.allowed)
    assert seen == {True, False}
