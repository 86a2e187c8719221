"""The stages of a decision that are timed are those of a request that is allowed, on both sides."""

from __future__ import annotations

import time

import pytest

from benchmarks import decision
from scheduler.intake.second_permit import Check


@pytest.fixture(scope="module")
def now_ms() -> int:
    return int(time.time() * 1000)


@pytest.fixture(scope="module")
def world(now_ms: int) -> decision.World:
    return decision.build_world(now_ms)


@pytest.mark.parametrize("turns", [1, 20])
def test_every_stage_does_what_it_is_named_for(world: decision.World, now_ms: int, turns: int) -> None:
    stages = {stage.name: stage for stage in decision.stages(world, decision.body_of(turns, 10), now_ms)}
    for stage in stages.values():
        assert stage.run() is not None, stage.name
    assert stages["check a signature"].run() is True
    assert isinstance(stages["sign, alone"].run(), list)
    check = stages["second permit, its signature known"].run()
    assert isinstance(check, Check)
    assert (check.problem, check.alarm) == (None, None)
    assert {done.obligation.kind.value for done in check.discharged} == {"retain"}
    answers = {str(stages[name].run()) for name in stages if name.startswith("permit, 3 pools")}
    assert len(answers) == 1, "what is remembered is what the law says"


def test_a_signature_is_over_what_went_in(world: decision.World, now_ms: int) -> None:
    first, other = (
        {stage.name: stage for stage in decision.stages(world, decision.body_of(turns, 10), now_ms)} for turns in (1, 2)
    )
    assert first["sign, alone"].run() != other["sign, alone"].run()


def test_the_costs_of_each_program_are_added_up() -> None:
    found = {
        "body_bytes": {"short": 10},
        "stages": [
            {"stage": "a", "where": decision.EDGE_STAGE, "short_us": 1.5},
            {"stage": "b", "where": decision.EDGE_STAGE, "short_us": 2.0},
            {"stage": "c", "where": decision.SITE_STAGE, "short_us": 4.0},
            {"stage": "floor", "where": decision.BESIDE, "short_us": 9.0},
        ],
    }
    lines = decision.rendered(found).splitlines()
    assert [line.split()[-1] for line in lines if "in all" in line] == ["3.5", "4.0"]
