"""The scenarios."""

from __future__ import annotations

from tests.chaos.scenario import Scenario, Step, kill, start
from tests.chaos.stand import engine_name

SCENARIOS = (
    Scenario(
        "replica-killed",
        "SIGKILL of one of a site's two engines, and its return",
        (Step(0.0, kill(engine_name("guizhou", 0)), fault=True), Step(2.0, start(engine_name("guizhou", 0)))),
        rounds=3,
    ),
)
