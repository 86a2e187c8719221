"""Drawn schedules: the seed says everything, and whatever breaks is whole at the end."""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from tests.chaos.client import Ending, Mode, Plan, Told
from tests.chaos.complaints import complaint
from tests.chaos.declared import EDGES, GENERAL, SITES
from tests.chaos.drawn import FAULTS_MIN, PROGRAMS, SCHEDULERS, Schedule, Verb, drawn
from tests.chaos.evidence import Findings, Seen, billed
from tests.chaos.proxy import HEALTHY
from tests.chaos.unforeseen import scenario_of

SEEDS = st.integers(min_value=0, max_value=2**63)
COUNTS = st.integers(min_value=1, max_value=2)
PROCESSES = {f"{name}/{index}" for name in (*EDGES, *SCHEDULERS) for index in range(2)}
ROUND_S = 40.0
FROZEN_S_MAX = 12.0


def broken_at_the_end(schedule: Schedule) -> set[str]:
    """Return what the moves of a schedule leave broken, by a model of what each does."""
    broken: set[str] = set()
    for move in schedule.moves:
        match move.verb:
            case Verb.KILL:
                broken = (broken | {f"dead {move.target}"}) - {f"frozen {move.target}"}
            case Verb.BEGIN:
                broken.discard(f"dead {move.target}")
            case Verb.FREEZE_ONE:
                broken.add(f"frozen {move.target}")
            case Verb.THAW_ONE:
                broken.discard(f"frozen {move.target}")
            case Verb.REPLACE:
                broken -= {f"dead {move.target}", f"frozen {move.target}"}
            case Verb.FREEZE:
                broken.add(f"frozen {move.target}")
            case Verb.THAW:
                broken.discard(f"frozen {move.target}")
            case Verb.LINK if move.toxics != HEALTHY:
                broken.add(f"link {move.target}")
            case Verb.LINK:
                broken.discard(f"link {move.target}")
            case Verb.DRAIN:
                broken.add(f"drained {move.target}")
            case Verb.UNDRAIN:
                broken.discard(f"drained {move.target}")
            case Verb.SMALL_DISK:
                broken.add(f"disk {move.target}")
            case Verb.LARGE_DISK:
                broken.discard(f"disk {move.target}")
            case Verb.STARVE:
                broken.add("starved")
            case Verb.FEED:
                broken.discard("starved")
            case Verb.RESET | Verb.CLOSE | Verb.PUBLISH | Verb.KILL_ONE:
                pass
    return broken


@given(SEEDS, COUNTS)
def test_the_same_seed_is_the_same_schedule(seed: int, processes: int) -> None:
    assert drawn(seed, processes) == drawn(seed, processes)
    assert drawn(seed, processes).text() == drawn(seed, processes).text()


@given(SEEDS, COUNTS)
def test_every_schedule_ends_whole_and_in_time(seed: int, processes: int) -> None:
    schedule = drawn(seed, processes)
    assert broken_at_the_end(schedule) == set()
    assert [move.at_s for move in schedule.moves] == sorted(move.at_s for move in schedule.moves)
    assert schedule.moves[-1].at_s < ROUND_S


@given(SEEDS, COUNTS)
def test_a_schedule_names_only_what_is_on_the_stand(seed: int, processes: int) -> None:
    for move in drawn(seed, processes).moves:
        match move.verb:
            case Verb.KILL | Verb.BEGIN | Verb.FREEZE | Verb.THAW | Verb.REPLACE:
                assert move.target in PROGRAMS
            case Verb.LINK | Verb.RESET | Verb.CLOSE | Verb.DRAIN | Verb.UNDRAIN:
                assert move.target in SITES
            case Verb.SMALL_DISK | Verb.LARGE_DISK:
                assert move.target in EDGES
            case Verb.KILL_ONE | Verb.FREEZE_ONE | Verb.THAW_ONE:
                assert move.target in PROCESSES
            case Verb.PUBLISH | Verb.STARVE:
                assert int(move.target) > 0
            case Verb.FEED:
                assert move.target == ""


@given(SEEDS, COUNTS)
def test_an_edge_on_a_small_disk_has_no_other_fault(seed: int, processes: int) -> None:
    moves = drawn(seed, processes).moves
    small = {move.target for move in moves if move.verb is Verb.SMALL_DISK}
    hit = {move.target for move in moves if move.verb in (Verb.KILL, Verb.FREEZE, Verb.REPLACE)}
    assert not small & hit
    assert len(small) <= 1


@given(SEEDS, COUNTS)
def test_nothing_stands_still_for_longer_than_is_judged(seed: int, processes: int) -> None:
    frozen: dict[str, float] = {}
    for move in drawn(seed, processes).moves:
        if move.verb is Verb.FREEZE:
            frozen.setdefault(move.target, move.at_s)
        elif move.verb in (Verb.THAW, Verb.KILL) and move.target in frozen:
            assert move.at_s - frozen.pop(move.target) < FROZEN_S_MAX


@given(SEEDS, COUNTS)
def test_a_schedule_is_a_scenario_of_as_many_steps_and_prints_them(seed: int, processes: int) -> None:
    schedule = drawn(seed, processes)
    scenario = scenario_of(schedule)
    assert [step.at_s for step in scenario.steps] == [move.at_s for move in schedule.moves]
    assert scenario.about.count("\n") == len(schedule.moves)
    assert scenario.recovers


def test_seeds_draw_every_verb_and_faults_that_overlap() -> None:
    schedules = [drawn(seed, 1 + seed % 2) for seed in range(400)]
    assert {move.verb for schedule in schedules for move in schedule.moves} == set(Verb)
    assert {move.target for schedule in schedules for move in schedule.moves} >= {*PROGRAMS, *SITES}
    assert len({schedule.text() for schedule in schedules}) == len(schedules)
    assert all(sum(move.fault for move in one.moves) >= 1 for one in schedules)
    assert FAULTS_MIN > 1


def test_a_log_tells_of_failed_tasks_and_tracebacks_and_of_nothing_else() -> None:
    def line(**fields: str) -> str:
        return json.dumps({"time": "2026-11-26T08:00:00.000+00:00", "level": "error", "logger": "front", **fields})

    assert complaint("") is None
    assert complaint("side: stand") is None
    assert complaint(line(event="request_ended")) is None
    assert complaint(line(event="library_log", where="a.py:1")) is not None
    assert complaint("I1126 08:34:44.487964 28077 chttp2_transport.cc:1403] Got goaway: Error code: 2") is None
    assert complaint("E1126 08:34:44.487964 28077 server.cc:1] it failed") is not None
    assert complaint("Traceback (most recent call last):") is not None
    said = complaint(line(event="task_failed", exception="KeyError", where="a.py:1 f"))
    assert said == "08:00:00.000 task_failed front KeyError a.py:1 f"


def test_a_tenant_who_hung_up_on_an_edge_that_is_then_killed_is_told_and_not_judged() -> None:
    plan = Plan("t-1", EDGES[0], "http://127.0.0.1:1", "key", "calm", GENERAL, None, Mode.STREAM, 10)
    told = Told(plan, 5.0, Ending.CANCELLED, request="req_1", received=3, ended_s=6.0)
    usage = {"request": "req_1", "attempt": "att_1", "outcome": "lost", "counts": {}}
    for outcome, lost, misbilled in (("lost", 1, 0), ("cancelled", 0, 1)):
        found = Findings()
        billed(Seen([], [{**usage, "outcome": outcome}], [], [], []), found, [told])
        assert (found.lost, found.misbilled) == (lost, misbilled)
