"""The comparison counts fairly, is the same for the same seeds, breaks no law, and says what its results say."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.placement.__main__ import RESULTS, digest, fresh_cells, unpacked
from benchmarks.placement.fleets import FLEET_SEEDS
from benchmarks.placement.report import BEGIN, END, PAGE, told
from benchmarks.placement.study import CONFINED, PUBLISHED, TIDEGATE, Cell, Found, Scores, study
from benchmarks.placement.summary import (
    AIM,
    at_loads,
    dominances,
    own,
    published_violations,
    saving,
    sign_test,
)
from tests.values import replace

CELL = Cell(1, "azure", 0.5, 1, 300)
MODERATE = 0.5
"""Up to this load the cost aim is asserted."""


def score(
    router: str, cost: float, kept: float, p90: float = 500.0, mode: str = CONFINED, violations: int = 0
) -> Scores:
    return Scores(router, mode, cost, int(cost * 1e9), 100.0, p90, 900.0, 9_000.0, kept, 0.0, 1.0, violations, 3_000.0)


def cell(*scores: Scores, seed: int = 1, bound: float | None = 1.1) -> Found:
    return Found(replace(CELL, seed=seed), scores, bound, 1.0, 60.0, 8, 5)


def test_the_cheapest_rival_that_keeps_as_many_promises_is_the_measure() -> None:
    found = saving(
        cell(score(TIDEGATE, 0.8, 0.95), score("cheap", 0.5, 0.40), score("good", 1.0, 0.91), score("dear", 2.0, 1.0))
    )
    assert found.rival == "good"
    assert found.saved == pytest.approx(0.2)


def test_where_tidegate_misses_the_objective_the_bar_is_what_it_reached() -> None:
    scores = score(TIDEGATE, 0.9, 0.80), score("below", 0.5, 0.79), score("above", 1.0, 0.81)
    assert saving(cell(*scores)).rival == "above"


def test_a_cell_in_which_no_rival_keeps_as_many_promises_is_counted_apart() -> None:
    (row,) = at_loads([cell(score(TIDEGATE, 0.8, 0.95), score("worse", 0.5, 0.3))])
    assert (row.unmatched, row.saved_median, row.sign_p) == (1, None, None)


def test_rivals_as_published_are_no_measure_of_cost_but_their_violations_are_told() -> None:
    lawless = score("free", 0.1, 1.0, mode=PUBLISHED, violations=30)
    found = cell(score(TIDEGATE, 0.8, 0.95), score("free", 1.0, 1.0), lawless)
    assert saving(found).saved == pytest.approx(0.2)
    assert published_violations([found]) == {"free": (30, CELL.requests)}


@pytest.mark.parametrize(("cheaper", "dearer", "p"), [(50, 0, 2 / 2**50), (5, 5, 1.0), (8, 0, 2 / 256), (3, 1, 0.625)])
def test_the_sign_test_is_that_of_a_fair_coin(cheaper: int, dearer: int, p: float) -> None:
    assert sign_test(cheaper, dearer) == pytest.approx(p)
    assert sign_test(dearer, cheaper) == pytest.approx(p)


def test_a_rival_dominates_only_beyond_noise_and_on_both_counts() -> None:
    better = [cell(score(TIDEGATE, 1.0, 1.0, 900), score("r", 0.9 + n / 1e4, 1.0, 800 + n), seed=n) for n in range(4)]
    assert [one.rival for one in dominances(better)] == ["r"]
    slower = [cell(score(TIDEGATE, 1.0, 1.0, 900), score("r", 0.9, 1.0, 1_000 + n), seed=n) for n in range(4)]
    assert dominances(slower) == []
    noisy = [cell(score(TIDEGATE, 1.0, 1.0, 900), score("r", cost, 1.0, 800)) for cost in (0.2, 1.7)]
    assert dominances(noisy) == []


def test_the_same_cell_comes_out_the_same() -> None:
    first, second = (digest([study(CELL).to_json()]) for _ in range(2))
    assert first == second


def test_ten_fresh_fleets_see_no_violation(capsys: pytest.CaptureFixture[str]) -> None:
    for fresh in fresh_cells(10):
        found = study(replace(fresh, requests=300))
        mine = own(found)
        with capsys.disabled():
            print(f"\nfleet {fresh.fleet}: kept {mine.kept:.3f}, ${mine.cost_per_million:.4f} per million", end="")
        assert mine.violations == 0, f"fleet {fresh.fleet}"


@pytest.fixture(scope="module")
def committed() -> dict[str, Any]:
    return unpacked(RESULTS)


def test_the_committed_results_are_whole(committed: dict[str, Any]) -> None:
    assert committed["full"]
    assert committed["digest"] == digest(committed["cells"])
    assert {one["cell"]["fleet"] for one in committed["cells"]} >= set(FLEET_SEEDS)


def test_a_committed_cell_comes_out_again(committed: dict[str, Any]) -> None:
    recorded = committed["cells"][0]
    again = study(replace(Cell(**recorded["cell"]), bounded=False))
    for one, before in zip(again.scores, recorded["scores"], strict=True):
        assert (one.router, one.mode, one.violations) == (before["router"], before["mode"], before["violations"])
        # The last bit of a logarithm may differ between machines, and a choice between equals with it.
        assert one.cost_per_million == pytest.approx(before["cost_per_million"], rel=0.02)
        assert one.kept == pytest.approx(before["kept"], abs=0.02)


def test_the_committed_results_break_no_law_and_reach_the_cost_aim_up_to_moderate_load(
    committed: dict[str, Any],
) -> None:
    rows = [*committed["summary"]["fleets"], *committed["summary"]["workloads"]]
    assert all(one["violations"] == 0 for one in rows)
    for one in committed["summary"]["fleets"]:
        if one["load"] <= MODERATE:
            assert one["saved_median"] >= AIM, one
            assert one["sign_p"] < 0.001


def test_the_page_says_what_the_results_say(committed: dict[str, Any]) -> None:
    page = PAGE.read_text(encoding="utf-8")
    assert page.partition(BEGIN)[2].partition(END)[0].strip() == told(committed).strip()
