"""When an engine is taken to be up, and that a busy one is not taken for a dead one."""

from __future__ import annotations

from orchestrator.engines.health import EngineHealth, Pulse

UP = EngineHealth(True, ("m",), "")
SILENT = EngineHealth(False, (), "the engine did not begin its reply in time")
NOBODY = EngineHealth(False, (), "no connection to the engine could be made", reachable=False)


def beating() -> Pulse:
    pulse = Pulse()
    pulse.probed(UP, 5, 900)
    assert pulse.up
    return pulse


def test_it_is_down_until_it_answers() -> None:
    pulse = Pulse()
    pulse.probed(SILENT, 900, 900)
    assert not pulse.up
    pulse.probed(UP, 5, 900)
    assert pulse.up


def test_one_missed_probe_is_no_death_and_two_are() -> None:
    pulse = beating()
    pulse.probed(SILENT, 900, 900)
    assert pulse.up
    pulse.probed(SILENT, 900, 900)
    assert not pulse.up


def test_one_that_speaks_lives_whatever_it_misses() -> None:
    pulse = beating()
    for _ in range(10):
        pulse.probed(SILENT, 900, 900)
        pulse.missed = 0
    assert pulse.up


def test_a_probe_that_we_were_late_for_says_nothing() -> None:
    pulse = beating()
    for _ in range(10):
        pulse.probed(SILENT, 2_000, 900)
    assert pulse.up


def test_one_that_nobody_listens_for_is_down_at_once() -> None:
    pulse = beating()
    pulse.probed(NOBODY, 1, 900)
    assert not pulse.up
