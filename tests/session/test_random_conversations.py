"""Both machines against each other, through every fault that a border has: what they promise holds in every world."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.session.simulation import Simulation

SEEDS = 320
BLOCK = 40


@pytest.mark.parametrize("first", range(0, SEEDS, BLOCK))
def test_every_promise_holds_in_every_world(first: int) -> None:
    for seed in range(first, first + BLOCK):
        Simulation(seed).run()


def test_the_worlds_meet_every_kind_of_end() -> None:
    met: Counter[str] = Counter()
    for seed in range(SEEDS, SEEDS + 2 * BLOCK):
        met += Simulation(seed).run()
    wanted = {
        "edge done",
        "edge session_lost",
        "edge slow_reader",
        "edge engine_busy",
        "edge engine_failed",
        "edge draining",
        "edge closed session_lost",
        "intake closed session_lost",
        "stop cancelled",
        "stop slow_reader",
        "stop session_lost",
        "old epoch",
        "dead stream",
        "other attempt",
        "edge policy_stale",
    }
    assert wanted <= met.keys(), wanted - met.keys()


def test_one_seed_is_one_world() -> None:
    assert Simulation(7).run() == Simulation(7).run()
