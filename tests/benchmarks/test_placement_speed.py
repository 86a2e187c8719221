"""What the benchmark of placement times is a decision that is made, and made as the specification makes it."""

from __future__ import annotations

import pytest

from benchmarks import big_fleet, placement_speed
from benchmarks.big_fleet import Scene
from benchmarks.law import EXAMPLE, NOW_MS
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.policy.bundle import Law
from orchestrator.policy.permit import permit_route


@pytest.fixture(scope="module")
def law() -> Law:
    return read_lawbook(EXAMPLE, NOW_MS).bundle.law


@pytest.fixture(scope="module")
def scene(law: Law) -> Scene:
    return big_fleet.scene(24, 40, law)


def test_every_tenant_is_placed_where_the_law_lets_it(scene: Scene, law: Law) -> None:
    pools = scene.plan.pools
    for number, caller in enumerate(scene.callers):
        pick = scene.decide(caller, number << 48 | number)
        assert pick.index is not None
        for chosen in (pick.index, pick.runner_up):
            if chosen is not None:
                assert permit_route(law, caller.facts, scene.table.edge, pools[chosen].place, NOW_MS).allowed
    assert len({caller.facts.label for caller in scene.callers}) > 10
    assert scene.board.fallbacks == 0
    assert scene.board.beyond() == ()


def test_what_is_timed_apart_is_what_is_timed_together(scene: Scene) -> None:
    expected = 0
    for number, caller in enumerate(scene.callers):
        ready = scene.ready(caller, scene.permit(caller), number)
        assert scene.choose(ready) == scene.decide(caller, number)
        expected += len(ready.cached)
    assert expected > len(scene.callers), "prefixes are expected at pools"


def test_the_specification_beside_it_chooses_the_same(scene: Scene) -> None:
    # Reports age with the clock of the decision; here all are as old as they were written.
    for index, view in enumerate(scene.views):
        scene.board.write(index, view, big_fleet.NOW_US)
    for number, caller in enumerate(scene.callers):
        ready = scene.ready(caller, scene.permit(caller), number << 48)
        ready.cached.clear()
        placement, pick = scene.place(ready), scene.choose(ready)
        assert placement.chosen is not None
        assert placement.chosen.terms is not None
        assert pick.index is not None
        assert placement.chosen.pool.id == scene.plan.pools[pick.index].id
        assert placement.chosen.terms.total_pico == pick.total_pico


def test_a_change_of_the_bundle_is_seen_whole_or_not_at_all(law: Law) -> None:
    found = placement_speed.change(big_fleet.scene(60, 20, law))
    assert found["neither"] == 0
    assert found["changed"] is True


def test_every_size_has_its_figures() -> None:
    found = placement_speed.measure(pools=(3, 20), tenants=(1, 4), decisions=12)
    speed = found["speed"]
    assert isinstance(speed, list)
    assert [(row["pools"], row["tenants"]) for row in speed] == [(3, 1), (3, 4), (20, 1), (20, 4)]
    assert all(row["placed_share"] == 1 and row["fallbacks"] == 0 for row in speed)
    memory = found["memory"]
    assert isinstance(memory, list)
    assert all(row["board_bytes_per_pool"] > 0 and row["bytes_per_tenant"] > 0 for row in memory)
    told = placement_speed.rendered(found)
    assert told.count("\n20 ") == 5, "each table has a row for each size"
