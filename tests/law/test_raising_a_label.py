"""Raising a label never enlarges what is allowed: for packs that the loader lets through, and for those we ship."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations, product

from hypothesis import given, settings

from orchestrator.policy.bundle import AdmittedPack, Law
from orchestrator.policy.ids import EntityId, PathwayId
from orchestrator.policy.jurisdictions import EEA, Jurisdiction
from orchestrator.policy.labels import Domestic, Effective, Grade, Personal
from orchestrator.policy.pathways import Pathway, PathwayKind
from orchestrator.policy.permit import Facts, permit
from orchestrator.policy.places import Action, Leg, Movement
from tests.law import chances
from tests.law.worlds import CN, DE, FAR, NOW_MS, SG, US, entity, place, shipped

ORIGINS = [frozenset(chosen) for size in range(1, 5) for chosen in combinations((SG, DE, CN, US), size)]
Point = tuple[Personal, Grade, Domestic, frozenset[Jurisdiction]]


@settings(max_examples=200, deadline=None)
@given(chances.loaded_packs, chances.facts, chances.labels, chances.movements)
def test_no_loaded_pack_rewards_a_higher_label(
    packs: list[AdmittedPack], told: Facts, more: Effective, movement: Movement
) -> None:
    law = Law(packs, FAR)
    raised = replace(told, label=told.label.join(more))
    if permit(law, raised, movement, NOW_MS).allowed:
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
        Pathway(
            PathwayId(f"{kind.value}-{importer}"),
            kind,
            EntityId("tenant"),
            importer,
            countries,
            Personal.SENSITIVE,
            0,
            1 << 60,
            "drawer",
        )
        for kind in PathwayKind
        for importer in sorted(importers)
    )


def test_no_shipped_pack_rewards_a_higher_label() -> None:
    world = shipped()
    mixed = place("mixed", DE, CN, operator=world.pools["cn-guizhou"].operator)
    places = [*world.edges.values(), world.pools["cn-guizhou"], mixed]
    held = papers({one.operator.id for one in places})
    allowed_count = 0
    for (source, target), action, pathways in product(
        product(places, repeat=2), (Action.INFER, Action.RETURN, Action.STORE), ((), held)
    ):
        movement = Movement(action, Leg.EDGE_TO_POOL, source, target)
        allowed = {
            point
            for point in product(Personal, Grade, Domestic, ORIGINS)
            if permit(world.law, Facts(entity("tenant", SG), Effective(*point), pathways), movement, NOW_MS).allowed
        }
        allowed_count += len(allowed)
        for point in allowed:
            assert allowed.issuperset(steps_down(point)), (movement, point)
    assert allowed_count > 1000
