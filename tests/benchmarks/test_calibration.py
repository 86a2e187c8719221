"""The calibration: the fit, the clocks, the comparison, and the simulator beside a real engine."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.client import Timed
from benchmarks.placement.calibration import engine, live, page
from benchmarks.placement.calibration.fit import (
    Fitted,
    Sample,
    Tick,
    compared,
    core_share,
    fitted,
    medians,
    own_times,
    residuals,
    slowed,
)
from benchmarks.placement.calibration.published import PUBLISHED
from benchmarks.placement.calibration.simulated import Ask, answers, capacity_per_s, closed, drawn
from benchmarks.placement.sites import CARDS
from orchestrator.engines.generation import ModelId
from orchestrator.placement.replay.world import Gpu
from scheduler.pools.engine.batch import PREFILL_CHUNK_TOKENS
from scheduler.pools.engine.loop import Engine
from tests.engine.answers import WAIT_S, Hold, ask, generation
from tests.engine.tiny_model import build_tiny_model

MS = 1_000_000
GPU = Gpu(10 * MS, 2 * MS, MS, chunk_tokens=32, slots=4, kv_tokens=8_192, prefix_cache=False)
"""10 ms a step, 2 ms a stream, 1 ms a prompt token."""
KINDS = (("prompt", 8, 0, 256), ("short", 2, 0, 50), ("one", 1, 1, 0), ("four", 1, 4, 0), ("both", 8, 24, 256))

rates = st.floats(1e3, 1e9)


def samples(model: Fitted) -> list[Sample]:
    """What an engine that is exactly the model would be measured at."""
    bare = [Sample(*kind, took_ns=1) for kind in KINDS]
    return [Sample(*kind, took_ns=model.predicted_ns(one)) for kind, one in zip(KINDS, bare, strict=True)]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A prepared model of a few thousand weights."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def serving(tiny: Path) -> Iterator[Engine]:
    """An engine of three slots on it."""
    found = Engine(
        tiny, slots=3, context_tokens=512, waiting_max=8, threads=1, entropy=itertools.count(1).__next__
    )
    found.start(timeout_s=60)
    yield found
    assert found.stop(deadline_s=0)


@given(step=rates, stream=rates, prefill=rates)
def test_parameters_that_made_the_times_are_found_again(step: float, stream: float, prefill: float) -> None:
    model = fitted(samples(Fitted(step, stream, prefill)))
    assert (model.step_ns, model.stream_ns, model.prefill_ns) == pytest.approx((step, stream, prefill), rel=1e-3)


def test_residuals_of_an_exact_fit_are_nought_and_of_a_slow_sample_are_negative() -> None:
    exact = samples(Fitted(10 * MS, 2 * MS, MS))
    assert all(abs(one.error) < 1e-9 for one in residuals(fitted(exact), exact))
    slow = Sample("slow", 1, 1, 0, took_ns=24 * MS)
    (only,) = residuals(Fitted(10 * MS, 2 * MS, MS), [slow])
    assert only.error == pytest.approx(-0.5)


@given(st.lists(st.floats(0.5, 2.0), min_size=len(KINDS), max_size=len(KINDS)))
def test_no_parameter_is_ever_negative(noise: list[float]) -> None:
    noisy = [
        Sample(one.name, one.steps, one.stream_steps, one.prompt_tokens, one.took_ns * factor)
        for one, factor in zip(samples(Fitted(10 * MS, 2 * MS, MS)), noise, strict=True)
    ]
    model = fitted(noisy)
    assert min(model.step_ns, model.stream_ns, model.prefill_ns) >= 0


def test_a_stream_that_would_make_steps_shorter_counts_as_none() -> None:
    model = fitted([Sample("one", 1, 1, 0, 20 * MS), Sample("four", 1, 4, 0, 14 * MS)])
    assert model.stream_ns == 0
    assert 14 * MS < model.step_ns < 20 * MS


def test_short_stretches_count_as_much_as_long_ones() -> None:
    short, long = Sample("short", 1, 0, 0, 10 * MS), Sample("long", 1_000, 0, 0, 30_000 * MS)
    # Errors in absolute terms would follow the long one: 30 ms.
    assert fitted([short, long]).step_ns < 20 * MS


def test_without_samples_nothing_is_fitted() -> None:
    with pytest.raises(ValueError, match="samples"):
        fitted([])


def test_repeats_become_their_median_and_must_have_done_the_same() -> None:
    repeats = [Sample("one", 1, 1, 0, took * MS) for took in (12, 90, 11)]
    assert medians([*repeats, Sample("two", 2, 0, 0, 5)]) == [
        Sample("one", 1, 1, 0, 12 * MS),
        Sample("two", 2, 0, 0, 5),
    ]
    with pytest.raises(ValueError, match="one"):
        medians([*repeats, Sample("one", 2, 1, 0, MS)])


def test_the_own_clock_stands_still_while_another_has_the_core() -> None:
    # Idle for 10, at work for 30 of which it had the core for 12, idle for 5.
    ticks = [Tick(100, 7, False), Tick(110, 7, True), Tick(140, 19, False), Tick(145, 20, True)]
    assert own_times(ticks) == [0, 10, 22, 27]
    assert core_share(ticks) == pytest.approx(12 / 30)
    assert own_times([]) == []
    assert core_share([]) == 1.0


@given(st.lists(st.tuples(st.integers(0, 1000), st.floats(0, 1.1), st.booleans()), max_size=30))
def test_the_own_clock_never_goes_back_and_never_runs_ahead(parts: list[tuple[int, float, bool]]) -> None:
    ticks = [Tick(0, 0, False)]
    for passed, share, busy in parts:
        last = ticks[-1]
        ticks.append(Tick(last.wall_ns + passed, last.cpu_ns + int(passed * share), busy))
    times = own_times(ticks)
    assert times == sorted(times)
    assert all(own <= tick.wall_ns for own, tick in zip(times, ticks, strict=True))
    assert 0 <= core_share(ticks) <= 1


def test_a_replica_with_half_a_core_takes_twice_as_long() -> None:
    asks = [Ask(0, 100, 20), Ask(0, 300, 5)]
    whole, half = answers(GPU, asks, 4), answers(slowed(GPU, 0.5), asks, 4)
    assert [(one.first_us, one.end_us) for one in half] == [(2 * one.first_us, 2 * one.end_us) for one in whole]


def test_predictions_that_are_right_have_no_error() -> None:
    one = compared([1.0, 2.0, 4.0], [1.0, 2.0, 4.0])
    assert (one.error_mean, one.error_median, one.bias) == (0, 0, 0)
    assert one.correlation == pytest.approx(1)
    assert (one.measured_p50, one.predicted_p50, one.measured_p90) == (2, 2, 4)


def test_predictions_that_are_half_are_off_by_a_half_and_still_correlate() -> None:
    one = compared([1.0, 2.0, 4.0], [2.0, 4.0, 8.0])
    assert (one.error_mean, one.bias) == (0.5, -0.5)
    assert one.correlation == pytest.approx(1)
    assert compared([4.0, 1.0], [1.0, 4.0]).correlation == pytest.approx(-1)
    assert compared([1.0, 1.0], [1.0, 4.0]).correlation is None


def test_nothing_measured_is_nothing_to_compare() -> None:
    for predicted, measured in (([], []), ([1.0], [0.0]), ([1.0], [1.0, 2.0])):
        with pytest.raises(ValueError, match="measurement"):
            compared(predicted, measured)


def test_a_request_alone_takes_what_the_model_says() -> None:
    # Two steps take in 40 tokens, and each of nine more tokens takes a step with one stream.
    (alone,) = answers(GPU, [Ask(5_000, 40, 10)], 4)
    assert alone.first_us == 2 * 10_000 + 40 * 1_000
    assert alone.end_us == alone.first_us + 9 * 12_000


def test_answers_come_in_the_order_in_which_they_were_asked_for() -> None:
    asks = [Ask(90_000, 32, 2), Ask(0, 64, 30)]
    late, early = answers(GPU, asks, 4)
    assert early.end_us > 29 * 12_000
    assert late.end_us < early.end_us


def test_a_request_that_finds_no_place_is_an_error() -> None:
    with pytest.raises(ValueError, match="not answered"):
        answers(GPU, [Ask(0, 32, 200)] * 6, 1)


def test_capacity_is_the_rate_of_a_replica_that_always_has_work() -> None:
    alone = closed(GPU, 1, 64, 20)
    one_at_a_time = Gpu(GPU.step_ns, GPU.stream_ns, GPU.prefill_ns, 32, 1, 8_192, prefix_cache=False)
    assert capacity_per_s(one_at_a_time, [Ask(0, 64, 20)] * 10) * 20 == pytest.approx(alone.tokens_per_s, rel=0.01)
    assert capacity_per_s(GPU, [Ask(0, 64, 20)] * 40) > capacity_per_s(one_at_a_time, [Ask(0, 64, 20)] * 40)


def test_a_closed_loop_of_one_alternates_prompt_and_answer() -> None:
    one = closed(GPU, 1, 64, 20)
    assert one.first_ms == pytest.approx(2 * 10 + 64)
    assert one.token_ms == pytest.approx(12)
    assert one.tokens_per_s == pytest.approx(20 / (0.084 + 19 * 0.012))


def test_more_streams_make_more_tokens_and_each_of_them_later() -> None:
    one, four = closed(GPU, 1, 64, 20), closed(GPU, 4, 64, 20)
    assert one.tokens_per_s < four.tokens_per_s < 4 * one.tokens_per_s
    assert four.token_ms > one.token_ms
    with pytest.raises(ValueError, match="do not fit"):
        closed(GPU, 5, 64, 20)


@given(seed=st.integers(0, 1 << 32), count=st.integers(1, 50))
def test_a_drawn_load_is_within_its_bounds_in_order_and_the_same_by_seed(seed: int, count: int) -> None:
    load = drawn(Random(seed), count, 2.0, (48, 1_500), (8, 96))
    assert load == drawn(Random(seed), count, 2.0, (48, 1_500), (8, 96))
    assert [one.at_us for one in load] == sorted(one.at_us for one in load)
    assert all(48 <= one.prompt_tokens <= 1_500 and 8 <= one.output_tokens <= 96 for one in load)


def test_loads_come_at_their_rate() -> None:
    load = drawn(Random(3), 4_000, 2.0, (48, 1_500), (8, 96))
    assert load[-1].at_us / 1e6 == pytest.approx(2_000, rel=0.05)


def test_every_published_figure_is_of_a_card_and_says_where_it_stands() -> None:
    for one in PUBLISHED:
        assert one.card in CARDS
        assert one.source
        assert one.value > 0
    assert {one.source for one in PUBLISHED if not one.parameter} > {"AccelMark, suite A", "AccelMark, suite D"}


def test_the_model_is_within_a_factor_of_two_of_what_was_published_of_short_contexts() -> None:
    for one in PUBLISHED:
        if "after 28,650" not in one.what:
            assert 0.5 < one.predicted() / one.value < 2, (one.card, one.what)


def record(client_request: str | None, pool: str | None, first_us: int) -> dict[str, Any]:
    """A decision record, as far as it is read here."""
    terms = {"first_us": first_us, "time_us": first_us + 5}
    candidates = [{"pool": "near", "terms": None}, {"pool": "far", "terms": terms}]
    asked = {"prompt_tokens": 40, "output_tokens": 9}
    return {"client_request": client_request, "pool": pool, "placement": {"candidates": candidates}, "asked": asked}


def test_what_was_expected_is_read_from_the_chosen_candidate_of_the_last_attempt() -> None:
    found = live.expected_of(
        [record("a", "far", 10), record("a", "far", 20), record(None, "far", 1), record("b", None, 1)]
    )
    assert found == {"a": live.Expected(20, 25, 40, 9)}


def test_measurements_and_expectations_meet_by_request() -> None:
    timed = [(1, Timed(3_000, 9_000, 9_500, 4)), (2, Timed(1_000, 2_000, 2_500, 2))]
    expected = {live.own_id(number): live.Expected(number, 9, 1, 1) for number in (1, 0)}
    assert [(one.number, one.expected.first_us, one.first_us, one.last_us) for one in live.joined(timed, expected)] == [
        (0, 0, 3, 9),
        (1, 1, 1, 2),
    ]
    with pytest.raises(live.LiveError, match="request 1"):
        live.joined(timed, {live.own_id(0): live.Expected(1, 1, 1, 1)})


def test_what_the_edge_learns_shows_part_by_part() -> None:
    lived = [
        live.Lived(number, 1, live.Expected(2_000 if number < 10 else 1_000, 4_000, 9, 9), 1_000, 4_000, 9)
        for number in range(60)
    ]
    rows = live.learned(lived)
    assert [(name, first.count, first.error_mean) for name, first, _ in rows] == [
        ("1 to 10", 10, 1.0),
        ("11 to 30", 20, 0.0),
        ("31 to 60", 30, 0.0),
    ]
    assert all(whole.error_mean == 0 for _, _, whole in rows)
    assert sum(size for _ in range(live.CYCLES) for size in live.WAVES) == len(lived)


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    before = f"head\n{page.BEGIN}\nold\n{page.END}\ntail\n"
    after = page.placed(before, "new")
    assert after == f"head\n{page.BEGIN}\n\nnew\n\n{page.END}\ntail\n"
    assert page.placed(after, "new") == after
    with pytest.raises(ValueError, match="marks"):
        page.placed("no marks", "new")
    assert page.BEGIN in page.PAGE.read_text(encoding="utf-8")


def test_every_table_has_words_and_as_many_cells_as_columns() -> None:
    model = Fitted(10 * MS, 2 * MS, MS)
    measured = samples(model)
    one = compared([1.0, 2.0], [1.5, 2.0])
    tables = [
        *page.fit_tables({name: (model, residuals(model, measured)) for name in ("all", "some")}),
        *page.replay_tables([page.Row(0.3, "own", "all", 0.9, one, one)]),
        page.published_table(),
        page.live_table([("1 to 2", one, one)]),
    ]
    for table in tables:
        assert all(len(row) == len(table.columns) for row in table.rows), table.title
    told = page.told("before", tables)
    assert all(table.title in told and page.WORDS[table.title] in told for table in tables)
    assert set(page.WORDS) == {table.title for table in tables}


def test_the_engine_ends_answers_in_the_order_that_the_simulator_says(serving: Engine) -> None:
    # The first holds the engine still until all the others are there: then only steps count, not how fast they are.
    outputs = (300, 12, 60, 110, 30, 100)
    ended: list[int] = []
    hold = Hold()

    def watched(number: int) -> Callable[[int], None]:
        def on_delta(deltas: int) -> None:
            if number == 0:
                hold(deltas)
            if deltas == outputs[number]:
                ended.append(number)

        return on_delta

    found = [ask(serving, generation("hello", max_tokens=outputs[0]), watched(0))]
    hold.wait_reached()
    for number in range(1, len(outputs)):
        found.append(ask(serving, generation("hello", max_tokens=outputs[number]), watched(number)))
    # The reader works in order: once it does this, it has read every prompt.
    serving._reader.submit(bool).result(timeout=WAIT_S)
    hold.release()
    counts = [answer.wait().finished for answer in found]
    three = Gpu(10 * MS, 2 * MS, MS, PREFILL_CHUNK_TOKENS, slots=3, kv_tokens=3 * 512, prefix_cache=False)
    said = answers(three, [Ask(0, one.prompt_tokens, one.completion_tokens) for one in counts], 8)
    assert [one.completion_tokens for one in counts] == list(outputs)
    assert ended == sorted(range(len(said)), key=lambda number: said[number].end_us)


def test_a_load_is_played_on_both_clocks_and_predicted_request_by_request(serving: Engine) -> None:
    bench = engine.Bench(serving, ModelId("tiny"))
    load = [Ask(0, 48, 20), Ask(1_000, 48, 5), Ask(20_000, 52, 9), Ask(21_000, 48, 1)]
    run = engine.played(bench, load)
    for seen in (run.wall, run.own):
        assert [one.output_tokens for one in seen.asks] == [20, 5, 9, 1]
        assert all(0 < one.first_us <= one.end_us for one in seen.answers)
        assert [one.at_us for one in seen.asks] == sorted(one.at_us for one in seen.asks)
    assert [one.prompt_tokens for one in run.own.asks] == [one.prompt_tokens for one in run.wall.asks]
    assert all(own.end_us <= wall.end_us for own, wall in zip(run.own.answers, run.wall.answers, strict=True))
    assert 0 < run.share <= 1
    assert len(answers(GPU, run.own.asks, 8)) == len(load)


def test_probes_measure_what_they_say(serving: Engine) -> None:
    bench = engine.Bench(serving, ModelId("tiny"))
    alone = engine.probe_prefill(bench, 64)
    assert alone.stream_steps == 0
    assert alone.steps == engine.chunks_of(alone.prompt_tokens) > 1
    beside = engine.probe_decode(bench, 2, 48)
    assert (beside.steps, beside.stream_steps, beside.prompt_tokens) == (1, 2, 0)
    mixed = engine.probe_mix(bench, 1, 64)
    assert mixed.steps == engine.chunks_of(mixed.prompt_tokens) == mixed.stream_steps
    assert min(alone.took_ns, beside.took_ns, mixed.took_ns) > 0
