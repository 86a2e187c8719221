"""Raising a label never enlarges what is allowed: for packs that the loader lets through, and for those we ship."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.counters import Counter, CounterKind
from orchestrator.policy.facts import Declared, Facts
from orchestrator.policy.ids import EntityId
from orchestrator.policy.jurisdictions import EEA, Jurisdiction
from orchestrator.policy.labels import Clean, Domestic, Effective, Grade, Personal
from orchestrator.policy.packs import Effect, Operator, Subject, Test
from orchestrator.policy.pathways import Pathway, PathwayKind, Role
from orchestrator.policy.permit import permit, permit_route
from orchestrator.policy.places import Action, Leg, Movement, Place
from orchestrator.policy.vocabulary import UNKNOWN
from tests.law import chances
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
    infer,
    labelled,
    open_pack,
    own,
    pack,
    packs_of,
    paper,
    place,
    plain,
    rule,
    shipped,
)
from tests.values import replace

ORIGINS = [frozenset(chosen) for size in range(1, 3) for chosen in combinations((SG, DE, CN, US), size)]
Point = tuple[Personal, Grade, Domestic, frozenset[Jurisdiction]]


@settings(max_examples=200, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.raises, chances.movements)
def test_no_loaded_pack_rewards_a_higher_label(
    packs: list[AdmittedPack], told: Facts, more: chances.Raise, movement: Movement
) -> None:
    law = Law(packs, FAR)
    if permit(law, more.of(told), movement, NOW_MS).allowed:
        assert permit(law, told, movement, NOW_MS).allowed


@settings(max_examples=200, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.single_raises, chances.movements)
def test_no_loaded_pack_rewards_one_step_up(
    packs: list[AdmittedPack], told: Facts, more: chances.Raise, movement: Movement
) -> None:
    law = Law(packs, FAR)
    if permit(law, more.of(told), movement, NOW_MS).allowed:
        assert permit(law, told, movement, NOW_MS).allowed


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.code_sets, chances.movements)
def test_where_a_text_was_processed_only_narrows(
    packs: list[AdmittedPack], told: Facts, more: frozenset[Jurisdiction], movement: Movement
) -> None:
    law = Law(packs, FAR)
    later = replace(told, processed_in=told.processed_in | more)
    if permit(law, later, movement, NOW_MS).allowed:
        assert permit(law, told, movement, NOW_MS).allowed


@settings(max_examples=100, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.raises, chances.simple_places, chances.simple_places)
def test_a_route_is_not_opened_by_a_higher_label(
    packs: list[AdmittedPack], told: Facts, more: chances.Raise, edge: Place, pool: Place
) -> None:
    law = Law(packs, FAR)
    if permit_route(law, more.of(told), edge, pool, NOW_MS).allowed:
        assert permit_route(law, told, edge, pool, NOW_MS).allowed


LOWEST = replace(
    facts(replace(chances.LOWEST, origin=at(SG))),
    counters=tuple(Counter(kind, 0, NOW_MS, NOW_MS + 1) for kind in CounterKind),
)
STEPS: list[tuple[str, Test, Facts]] = [
    (
        subject,
        Test(Subject(subject), Operator.AT_LEAST, rank=1),
        replace(LOWEST, label=replace(LOWEST.label, **{subject: value})),
    )
    for subject, value in (
        ("personal", Personal.PERSONAL),
        ("grade", Grade.GENERAL),
        ("domestic", Domestic.YES),
        ("clean", Clean.DEIDENTIFIED),
    )
]
STEPS += [
    (
        subject,
        Test(Subject(subject), Operator.TOUCHES, members=frozenset({member})),
        replace(LOWEST, label=replace(LOWEST.label, **{subject: LOWEST.label.origin | {member}})),
    )
    for subject, member in (("origin", DE), ("located", DE), ("collected", DE))
]
STEPS += [
    (
        subject,
        Test(Subject(subject), Operator.TOUCHES, members=frozenset({member})),
        replace(LOWEST, label=replace(LOWEST.label, **{subject: frozenset({raised})})),
    )
    for subject, member in (("categories", "health"), ("purpose", "finetune"), ("asset", "weights"))
    for raised in (member, UNKNOWN)
]
STEPS += [
    (
        "critical_infrastructure",
        Test(Subject.CRITICAL_INFRASTRUCTURE, Operator.AT_LEAST, rank=1),
        replace(LOWEST, critical_infrastructure=Declared.YES),
    ),
    (
        "processed_in",
        Test(Subject.PROCESSED_IN, Operator.TOUCHES, members=at(DE)),
        replace(LOWEST, processed_in=at(DE)),
    ),
    (
        "counter",
        Test(Subject.COUNTER, Operator.AT_LEAST, rank=1, counter=CounterKind.US_OMIC),
        replace(LOWEST, counters=tuple(replace(counter, count=1) for counter in LOWEST.counters)),
    ),
    (
        "unknown counter",
        Test(Subject.COUNTER, Operator.AT_LEAST, rank=1, counter=CounterKind.US_OMIC),
        replace(LOWEST, counters=()),
    ),
]
FALLING = {
    Operator.AT_LEAST: lambda test: replace(test, operator=Operator.AT_MOST, rank=test.rank - 1),
    Operator.TOUCHES: lambda test: replace(test, operator=Operator.AVOIDS),
}
HERE = infer(place("here", SG), place("there", SG))


@pytest.mark.parametrize(("axis", "rising", "raised"), STEPS)
def test_each_axis_closes_what_it_opened(axis: str, rising: Test, raised: Facts) -> None:
    """The positive control of the properties above: every axis can make the difference, in each kind of rule."""
    falling = FALLING[rising.operator](rising)
    if rising.subject is Subject.COUNTER:
        falling = replace(falling, operator=Operator.BELOW, rank=rising.rank)
    everywhere = (SG, DE)
    grant = Law(own(pack("g", everywhere, rule("G-1", Effect.GRANT, (falling,)))), FAR)
    forbid = Law(own(open_pack(*everywhere), pack("f", everywhere, rule("F-1", Effect.FORBID, (rising,)))), FAR)
    laws = [grant, forbid]
    if rising.subject is not Subject.PROCESSED_IN:
        lifted = rule("F-1", Effect.FORBID, unless=(falling,))
        laws.append(Law(own(open_pack(*everywhere), pack("f", everywhere, lifted)), FAR))
    for law in laws:
        assert permit(law, LOWEST, HERE, NOW_MS).allowed, axis
        assert not permit(law, raised, HERE, NOW_MS).allowed, axis


@pytest.mark.parametrize("axis", ["personal", "grade", "origin"])
def test_no_rule_opens_what_is_unknown(axis: str) -> None:
    worst = {"personal": Personal.UNKNOWN, "grade": Grade.UNKNOWN, "origin": frozenset({SG, UNKNOWN})}[axis]
    told = facts(replace(plain(SG), **{axis: worst}))
    assert not permit(Law(own(open_pack(SG)), FAR), told, HERE, NOW_MS).allowed


@settings(max_examples=150, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.movements)
def test_unknown_is_the_worst_of_each_axis_and_set(
    packs: list[AdmittedPack], told: Facts, movement: Movement
) -> None:
    law, label = Law(packs, FAR), told.label
    worst = [
        replace(told, label=replace(label, domestic=Domestic.UNKNOWN)),
        replace(told, label=replace(label, clean=Clean.UNKNOWN)),
        replace(told, critical_infrastructure=Declared.UNKNOWN),
        replace(told, counters=()),
        *(
            replace(told, label=replace(label, **{axis: getattr(label, axis) | {UNKNOWN}}))
            for axis in ("categories", "located", "collected", "purpose", "asset")
        ),
    ]
    if not permit(law, told, movement, NOW_MS).allowed:
        assert not any(permit(law, one, movement, NOW_MS).allowed for one in worst)


def steps_down(point: Point) -> list[Point]:
    """The labels that are one step lower on one axis, or without one origin."""
    personal, grade, domestic, origin = point
    found: list[Point] = []
    if personal:
        found.append((Personal(personal - 1), grade, domestic, origin))
    if grade:
        found.append((personal, Grade(grade - 1), domestic, origin))
    if domestic:
        found.append((personal, grade, Domestic(domestic - 1), origin))
    if len(origin) > 1:
        found.extend((personal, grade, domestic, origin - {one}) for one in origin)
    return found


def papers(importers: set[EntityId]) -> tuple[Pathway, ...]:
    """Every kind of pathway with every operator, so that requirements are met and the rest of the law shows."""
    countries = EEA | {SG, CN, US}
    return tuple(
        paper(kind, EntityId("tenant"), importer, countries) for kind in PathwayKind for importer in sorted(importers)
    )


def shipped_places() -> list[Place]:
    """The edges and a pool of the example, and a pool that stands on both sides."""
    world = shipped()
    guizhou = world.pools["cn-guizhou"]
    return [*world.edges.values(), guizhou, place("mixed", DE, CN, operator=guizhou.operator)]


def notices() -> tuple[tuple[str, str], ...]:
    """Every notice that some pack asks for."""
    owed = {
        duty.argument
        for side in ("overseas", "domestic")
        for one in packs_of(side)
        for law_rule in one.rules
        for duty in law_rule.obligations
    }
    return tuple((name, "1") for name in sorted(owed))


@pytest.mark.parametrize("holding", [False, True])
def test_no_shipped_pack_rewards_a_higher_label(holding: bool) -> None:
    law, places = shipped().law, shipped_places()
    held = papers({one.operator.id for one in places}) if holding else ()
    counters = tuple(Counter(kind, 0, NOW_MS, NOW_MS + 1) for kind in CounterKind)
    template = Facts(
        entity("tenant", SG), plain(SG), held, frozenset(), Role.CONTROLLER, Declared.NO, counters, notices()
    )
    points = list(product(list(Personal)[:3], list(Grade)[:4], Domestic, ORIGINS))
    told = {point: replace(template, label=labelled(*point, located=at(SG), collected=at(SG))) for point in points}
    allowed_count = 0
    for source, target in product(places, repeat=2):
        for action, leg in ((Action.INFER, Leg.EDGE_TO_POOL), (Action.RETURN, Leg.POOL_TO_EDGE)):
            movement = Movement(action, leg, source, target)
            allowed = {point for point in points if permit(law, told[point], movement, NOW_MS).allowed}
            allowed_count += len(allowed)
            for point in allowed:
                assert allowed.issuperset(steps_down(point)), (movement, point)
    assert allowed_count > 1000


shipped_counters = st.lists(
    st.builds(
        Counter,
        st.sampled_from(CounterKind),
        st.sampled_from([0, 1, 9_999, 10_000, 99_999, 100_000, 999_999, 1_000_000]),
        st.just(NOW_MS),
        st.just(NOW_MS + 1),
    ),
    max_size=3,
).map(tuple)


@settings(max_examples=200, deadline=None)
@given(
    chances.labels,
    st.one_of(chances.single_raises, chances.single_raises, chances.raises),
    shipped_counters,
    st.sampled_from(Declared),
    st.booleans(),
    st.data(),
)
def test_no_shipped_pack_rewards_any_step_up(
    label: Effective,
    more: chances.Raise,
    counted: tuple[Counter, ...],
    critical: Declared,
    holding: bool,
    data: st.DataObject,
) -> None:
    law, places = shipped().law, shipped_places()
    held = papers({one.operator.id for one in places}) if holding else ()
    told = Facts(entity("tenant", SG), label, held, frozenset(), Role.CONTROLLER, critical, counted, notices())
    raised = more.of(told)
    source, target = data.draw(st.sampled_from(places)), data.draw(st.sampled_from(places))
    movement = Movement(data.draw(st.sampled_from(Action)), data.draw(st.sampled_from(Leg)), source, target)
    if permit(law, raised, movement, NOW_MS).allowed:
        assert permit(law, told, movement, NOW_MS).allowed
    if permit_route(law, raised, source, target, NOW_MS).allowed:
        assert permit_route(law, told, source, target, NOW_MS).allowed
