"""`tidegate canary`: the two arms of a trial are told apart where the data says so, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from random import Random

import pytest

from orchestrator.files.traces import TraceLine, trace_head, trace_line
from orchestrator.placement.replay.arms import ENOUGH, Compared, Sample, Verdict, compare, t_95, welch
from tests.operators.desk import ROOT, Json, refused, run
from tests.values import replace

FIGURES = (
    "first_token_ms_mean",
    "first_token_ms_p90",
    "end_to_end_ms_mean",
    "end_to_end_ms_p90",
    "cost_per_million_tokens",
    "cached_share",
    "failed_share",
)
# Welch's test as worked out in "Welch's t-test", example 1, of Wikipedia: t = 2.46, 25.0 degrees of freedom.
BASE = (27.5, 21.0, 19.0, 23.6, 17.0, 17.9, 16.9, 20.1, 21.9, 22.6, 23.1, 19.6, 19.0, 21.7, 21.4)
OTHER = (27.1, 22.0, 20.8, 23.4, 23.4, 23.5, 25.8, 22.0, 24.8, 20.2, 21.9, 22.1, 22.9, 20.5, 24.4)


def sample(chance: Random, canary: bool, slower: float = 1.0, dearer: float = 1.0) -> Sample:
    """One request of a skewed kind."""
    failed = chance.random() < 0.05
    prompt, output = chance.randint(50, 5_000), chance.randint(1, 400)
    cached = chance.randint(0, prompt)
    first_us = int(slower * chance.lognormvariate(12, 0.8))
    cost_pico = int(dearer * ((prompt - cached) * 250_000 + output * 1_000_000))
    ends = (None, None) if failed else (first_us, first_us + output * 20_000)
    return Sample(canary, failed, not failed, prompt, cached, output, *ends, cost_pico)


def trial(chance: Random, count: int, slower: float = 1.0, dearer: float = 1.0) -> dict[str, Compared]:
    base = [sample(chance, False) for _ in range(count)]
    tried = [sample(chance, True, slower, dearer) for _ in range(count)]
    return {one.name: one for one in compare(base + tried)}


def test_the_interval_of_a_difference_of_means_is_welchs() -> None:
    found = welch(BASE, OTHER)
    assert found is not None
    middle, half = sum(found) / 2, (found[1] - found[0]) / 2
    assert middle == pytest.approx(2.1667, abs=1e-4)
    assert middle / (half / t_95(24)) == pytest.approx(2.46, abs=0.005)


@pytest.mark.parametrize(
    ("freedom", "expected"),
    [(1, 12.706), (1.9, 12.706), (10, 2.228), (30, 2.042), (40, 2.021), (120, 1.980), (1e9, 1.960)],
)
def test_quantiles_of_t_are_those_of_the_tables(freedom: float, expected: float) -> None:
    assert t_95(freedom) == pytest.approx(expected, abs=0.003)


@pytest.mark.parametrize(
    ("first", "second", "low", "high"),
    # Newcombe 1998, table II, method 10.
    [((48, 80), (56, 70), 0.0524, 0.3339), ((3, 10), (9, 10), 0.1705, 0.8090)],
)
def test_the_interval_of_failures_is_newcombes(
    first: tuple[int, int], second: tuple[int, int], low: float, high: float
) -> None:
    samples = [
        Sample(canary, number < failures, number >= failures, 1, 0, 1, None, None, None)
        for canary, (failures, of) in ((False, first), (True, second))
        for number in range(of)
    ]
    found = compare(samples)[-1]
    assert (found.name, found.low, found.high) == (
        "failed_share",
        pytest.approx(low, abs=5e-4),
        pytest.approx(high, abs=5e-4),
    )


def test_no_failure_seen_is_not_none_to_come() -> None:
    samples = [Sample(canary, False, True, 1, 0, 1, 1, 1, 1) for canary in (False, True) for _ in range(100)]
    found = compare(samples)[-1]
    assert found.low is not None
    assert found.high is not None
    assert found.low < -0.02 < 0.02 < found.high


def test_equal_arms_are_told_apart_about_one_time_in_twenty() -> None:
    chance = Random(7)
    wrong = dict.fromkeys(FIGURES, 0)
    for _ in range(300):
        for name, one in trial(chance, 120).items():
            wrong[name] += one.verdict is not Verdict.NOT_ENOUGH
    # 15 of 300 are expected; the bounds are three and a half standard deviations away. Skewed percentiles and small
    # shares are held by wider intervals.
    assert all(count <= 28 for count in wrong.values()), wrong
    assert all(wrong[name] >= 2 for name in FIGURES if name.endswith("mean")), wrong


@pytest.mark.parametrize(
    ("slower", "dearer", "verdicts"),
    [
        (0.6, 1.0, {"first_token_ms_mean": Verdict.BETTER, "first_token_ms_p90": Verdict.BETTER}),
        (1.8, 1.0, {"first_token_ms_mean": Verdict.WORSE, "first_token_ms_p90": Verdict.WORSE}),
        (1.0, 0.7, {"cost_per_million_tokens": Verdict.BETTER}),
        (1.0, 1.5, {"cost_per_million_tokens": Verdict.WORSE}),
    ],
)
def test_what_differs_is_told(slower: float, dearer: float, verdicts: dict[str, Verdict]) -> None:
    found = trial(Random(3), 600, slower, dearer)
    assert {name: one.verdict for name, one in found.items() if name in verdicts} == verdicts
    assert found["cached_share"].verdict is Verdict.NOT_ENOUGH


def test_ratios_are_of_sums_and_not_means_of_ratios() -> None:
    counts = ((100, 100), (900, 0))
    base = [Sample(False, False, True, prompt, cached, 0, 1, 1, prompt * 1000) for prompt, cached in counts]
    found = {one.name: one for one in compare([*base, *(replace(one, canary=True) for one in base)])}
    assert found["cached_share"].base.value == pytest.approx(0.1)
    # A thousand pico-units per token are 0.001 per million.
    assert found["cost_per_million_tokens"].base.value == pytest.approx(0.001)


def test_a_few_requests_are_not_enough_however_far_apart() -> None:
    few = ENOUGH - 1
    samples = [
        Sample(canary, False, True, 10, 0, 10, first_us + number, 10**6, 1)
        for canary, first_us in ((False, 10**6), (True, 10**3))
        for number in range(few)
    ]
    found = {one.name: one for one in compare(samples)}
    mean = found["first_token_ms_mean"]
    assert mean.high is not None
    assert mean.high < 0
    assert mean.verdict is Verdict.NOT_ENOUGH
    assert found["first_token_ms_p90"].low is None, "nothing can be said of a percentile that hardly any lies beyond"


@pytest.mark.parametrize("canary", [False, True])
def test_one_arm_alone_has_values_and_no_difference(canary: bool) -> None:
    found = compare([sample(Random(number), canary) for number in range(50)])
    for one in found:
        mine, other = (one.canary, one.base) if canary else (one.base, one.canary)
        assert mine.value is not None
        assert (other.count, other.value, one.difference, one.low) == (0, None, None, None)
        assert one.verdict is Verdict.NOT_ENOUGH


def recorded(folder: Path, *lines: TraceLine) -> Path:
    file = folder / "trace.jsonl"
    file.write_bytes(trace_head() + b"".join(map(trace_line, lines)))
    return file


LINE = TraceLine(0, 100, 10, outcome="complete", first_us=200_000, end_us=400_000, cost_pico="5", cached_tokens=40)


def canary(file: Path) -> Json:
    ran = run("canary", "--trace", file, "--json")
    assert ran.status == 0, ran.err
    return ran.json()


def test_outcomes_count_where_they_belong(tmp_path: Path) -> None:
    broken = replace_line(first_us=None, end_us=None)
    file = recorded(
        tmp_path,
        LINE,
        broken(outcome="broken"),
        broken(outcome="no_feasible_pool"),
        broken(outcome="cancelled"),
        broken(outcome="residency_blocked"),
        broken(outcome=None),
        replace_line()(outcome=None),
        replace_line()(canary=True),
    )
    found = canary(file)
    assert found["arms"] == {
        "base": {"requests": 7, "finished": 2, "failed": 2, "cancelled": 1, "refused_by_law": 1, "unknown": 1},
        "canary": {"requests": 1, "finished": 1, "failed": 0, "cancelled": 0, "refused_by_law": 0, "unknown": 0},
    }
    shares = {one["name"]: one["base"] for one in found["figures"]}
    assert shares["failed_share"] == {"requests": 4, "value": 0.5}
    assert shares["first_token_ms_mean"] == {"requests": 2, "value": 200.0}
    assert shares["cached_share"] == {"requests": 2, "value": 0.4}
    assert tuple(shares) == FIGURES
    assert all(one["verdict"] == "not enough data" for one in found["figures"])


def replace_line(**common: object) -> Callable[..., TraceLine]:
    def made(**changes: object) -> TraceLine:
        fields = {name: getattr(LINE, name) for name in LINE.__struct_fields__}
        return TraceLine(**{**fields, **common, **changes})  # type: ignore[arg-type]

    return made


def test_the_example_says_in_sentences_what_it_says_in_json() -> None:
    file = ROOT / "examples" / "replay" / "trace.jsonl"
    found = canary(file)
    told = {one["name"]: one for one in found["figures"]}
    assert told["first_token_ms_mean"]["verdict"] == "better"
    assert told["cost_per_million_tokens"]["verdict"] == "worse"
    assert told["cached_share"]["verdict"] == "not enough data"
    assert told["first_token_ms_mean"]["sentence"].startswith("first token, mean: better: ")
    assert " ms sooner (-" in told["first_token_ms_mean"]["sentence"]
    text = " ".join(run("canary", "--trace", file).out.split())
    for one in found["figures"]:
        assert one["sentence"] in text


def test_what_cannot_be_compared_is_one_sentence(tmp_path: Path) -> None:
    def told(content: bytes) -> str:
        file = tmp_path / "x.jsonl"
        file.write_bytes(content)
        return refused("canary", "--trace", file)

    assert told(b"").endswith('x.jsonl:1: expected {"v":1,"kind":"tidegate-trace"}')
    assert told(trace_head()).endswith("x.jsonl: expected at least one request")
    assert "x.jsonl: outcome: expected requests with what became of them" in told(
        trace_head() + trace_line(TraceLine(0, 1, 1))
    )
    line = trace_line(LINE).decode()
    assert "x.jsonl:2: cost_pico: expected" in told(trace_head() + line.replace('"5"', '"-5"').encode())
    assert "x.jsonl:2: first_us: expected" in told(trace_head() + line.replace("200000", "-1").encode())
    assert told(b"TIMESTAMP,ContextTokens,GeneratedTokens\n").endswith('expected {"v":1,"kind":"tidegate-trace"}')
    assert "missing: No such file" in refused("canary", "--trace", "missing")
