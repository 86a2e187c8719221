"""A speed is learned from noisy replies, whatever they are, and never taken for what no GPU does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.evidence.canonical import INTEGER_MAX
from orchestrator.placement.speed import (
    FADE,
    FADED_MIN,
    FAR,
    FORGET,
    RATE_MIN_NS,
    SPREAD_MAX_PPM,
    SPREAD_MIN_PPM,
    WHOLE_SQUARES_US,
    Measured,
    Speed,
    SpeedLearner,
    _Guess,
    _Line,
)
from tests.values import replace

DECLARED = Speed(prefill_ns=100_000, decode_ns=20_000_000, stream_ns=1_000_000)
HUGE = st.integers(0, 1 << 70)


@dataclass(frozen=True)
class Gpu:
    """What a pool really takes. Noise is relative, of mean nought."""

    fixed_us: int = 30_000
    prefill_ns: int = 260_000
    decode_ns: int = 9_000_000
    stream_ns: int = 400_000
    noise: float = 0.05

    def first_us(self, tokens: int) -> int:
        return self.fixed_us + tokens * self.prefill_ns // 1000

    def token_ns(self, beside: int) -> int:
        return self.decode_ns + self.stream_ns * beside

    def replies(
        self, count: int, seed: int = 1, tokens: int | None = None, beside: int | None = None
    ) -> Iterator[Measured]:
        random = Random(seed)
        for _ in range(count):
            prompt = random.randrange(100, 6_000) if tokens is None else tokens
            company = random.randrange(12) if beside is None else beside
            output = random.randrange(50, 400)
            besides_us = random.randrange(300_000)
            engine_us = int(self.first_us(prompt) * random.gauss(1, self.noise))
            decode_us = int(self.token_ns(company) * (output - 1) / 1000 * random.gauss(1, self.noise))
            expected_us = self.first_us(prompt) + besides_us
            yield measured(engine_us, besides_us, expected_us, prompt, decode_us, output, company)


def measured(
    engine_us: int = 200_000,
    besides_us: int = 0,
    expected_us: int = 200_000,
    tokens: int = 1_000,
    decode_us: int | None = 990_000,
    output: int = 100,
    beside: int = 0,
) -> Measured:
    return Measured(engine_us + besides_us, besides_us, expected_us, None, 0, tokens, decode_us, output, beside)


def learned(*replies: Iterator[Measured], declared: Speed = DECLARED) -> SpeedLearner:
    learner = SpeedLearner(declared)
    for some in replies:
        for reply in some:
            learner.learn(reply)
    return learner


def first_us(speed: Speed, tokens: int) -> int:
    return speed.fixed_us + tokens * speed.prefill_ns // 1000


def token_ns(speed: Speed, beside: int) -> int:
    return speed.decode_ns + speed.stream_ns * beside


def agrees(speed: Speed, gpu: Gpu, within: float) -> None:
    for tokens in (500, 2_000, 6_000):
        assert first_us(speed, tokens) == pytest.approx(gpu.first_us(tokens), rel=within)
    for beside in (0, 5, 11):
        assert token_ns(speed, beside) == pytest.approx(gpu.token_ns(beside), rel=within)


@pytest.mark.parametrize("seed", range(8))
def test_noisy_replies_teach_the_true_rates_within_a_few_percent(seed: int) -> None:
    gpu = Gpu()
    speed = learned(gpu.replies(200, seed)).believed
    agrees(speed, gpu, 0.06)
    assert speed.prefill_ns == pytest.approx(gpu.prefill_ns, rel=0.06)
    assert speed.decode_ns == pytest.approx(gpu.decode_ns, rel=0.06)
    assert speed.samples == 200


@pytest.mark.parametrize("off", [1 / 16, 1 / 4, 4, 16])
def test_a_declaration_that_is_far_off_is_left_after_some_replies(off: float) -> None:
    gpu = Gpu(
        0, int(DECLARED.prefill_ns * off), int(DECLARED.decode_ns * off), int(DECLARED.stream_ns * off), noise=0.02
    )
    agrees(learned(gpu.replies(60)).believed, gpu, 0.1)


def test_before_any_reply_the_declaration_is_believed() -> None:
    assert SpeedLearner(DECLARED).believed == DECLARED


def test_the_same_replies_teach_the_same() -> None:
    assert learned(Gpu().replies(50)).believed == learned(Gpu().replies(50)).believed


def test_what_lies_on_the_way_is_not_the_engines() -> None:
    far = [measured(engine_us=200_000, besides_us=900_000, expected_us=1_100_000) for _ in range(50)]
    near = [measured(engine_us=200_000, besides_us=1_000, expected_us=201_000) for _ in range(50)]
    assert first_us(learned(iter(far)).believed, 1_000) == first_us(learned(iter(near)).believed, 1_000)


@given(
    st.builds(Measured, HUGE, HUGE, HUGE, st.none() | HUGE, HUGE, HUGE, st.none() | HUGE, HUGE, HUGE),
    st.integers(1, 60),
    st.sampled_from([DECLARED, Speed(0, 0, 0), Speed(1, 1, 0), Speed(10**12, 10**12, 10**12)]),
)
def test_a_learned_rate_stays_within_reach_of_the_declared_one(seen: Measured, times: int, declared: Speed) -> None:
    speed = learned(iter([seen] * times), declared=declared).believed
    for rate, of in ((speed.prefill_ns, declared.prefill_ns), (speed.decode_ns, declared.decode_ns)):
        assert max(1, of // FAR) <= rate <= max(of, RATE_MIN_NS) * FAR
    assert 0 <= speed.stream_ns <= max(declared.stream_ns, declared.decode_ns, RATE_MIN_NS) * FAR
    assert SPREAD_MIN_PPM <= speed.spread_ppm <= SPREAD_MAX_PPM
    for name in Speed.__struct_fields__:
        value = getattr(speed, name)
        assert value is None or (isinstance(value, int) and 0 <= value <= INTEGER_MAX), "a record can hold it"


@given(st.lists(st.builds(Measured, *[HUGE] * 3, st.none(), *[HUGE] * 5), max_size=40))
def test_no_replies_break_the_arithmetic(replies: list[Measured]) -> None:
    assert learned(iter(replies)).believed.samples == len(replies)


def test_a_declared_rate_of_nothing_can_be_learned() -> None:
    gpu = Gpu(0, 20_000, 15_000, 1_000, noise=0.0)
    agrees(learned(gpu.replies(100), declared=Speed(0, 0, 0)).believed, gpu, 0.05)


@pytest.mark.parametrize("after", [1, 5, 100])
@pytest.mark.parametrize("factor", [10, 1_000, 10**6])
def test_one_outlier_does_not_wreck_it(after: int, factor: int) -> None:
    gpu = Gpu(noise=0.0)
    learner = learned(gpu.replies(after))
    before = learner.believed
    (worst,) = Gpu(noise=0.0).replies(1, seed=9)
    late = replace(worst, first_us=worst.first_us * factor, decode_us=(worst.decode_us or 0) * factor)
    learner.learn(late)
    most = 4 if after < 100 else 1.35
    for tokens in (500, 6_000):
        assert first_us(learner.believed, tokens) <= most * max(first_us(before, tokens), gpu.first_us(tokens))
    for beside in (0, 11):
        assert token_ns(learner.believed, beside) <= most * max(token_ns(before, beside), gpu.token_ns(beside))
    for reply in gpu.replies(60, seed=10):
        learner.learn(reply)
    agrees(learner.believed, gpu, 0.08)


@pytest.mark.parametrize(("tokens", "beside"), [(1_000, 0), (1_000, 7), (12, 3), (60_000, 0)])
def test_prompts_of_one_length_and_constant_company_do_not_blow_up(tokens: int, beside: int) -> None:
    gpu = Gpu()
    learner = learned(gpu.replies(3_000, tokens=tokens, beside=beside))
    speed = learner.believed
    assert first_us(speed, tokens) == pytest.approx(gpu.first_us(tokens), rel=0.05)
    assert token_ns(speed, beside) == pytest.approx(gpu.token_ns(beside), rel=0.05)
    assert 0 <= speed.fixed_us <= 1.1 * gpu.first_us(tokens)
    assert speed.prefill_ns <= 1.1 * gpu.first_us(tokens) * 1000 / tokens
    for reply in gpu.replies(100, seed=3):
        learner.learn(reply)
    agrees(learner.believed, gpu, 0.1)


@pytest.mark.parametrize("factor", [0.2, 0.5, 2, 6])
def test_an_old_speed_is_forgotten_after_it_changed(factor: float) -> None:
    was = Gpu()
    now = Gpu(int(was.fixed_us * factor), int(was.prefill_ns * factor), int(was.decode_ns * factor),
              int(was.stream_ns * factor))  # fmt: skip
    agrees(learned(was.replies(300), now.replies(200, seed=4)).believed, now, 0.1)


def test_the_spread_follows_how_far_expectations_were_off() -> None:
    sure = learned(Gpu(noise=0.02).replies(300)).believed.spread_ppm
    unsure = learned(Gpu(noise=0.4).replies(300)).believed.spread_ppm
    assert SPREAD_MIN_PPM <= sure < 80_000
    assert 250_000 < unsure < 500_000


def test_how_long_a_slot_is_held_is_the_mean_of_those_seen() -> None:
    held = [measured(engine_us=100_000, decode_us=decode_us) for decode_us in (400_000, 500_000, 600_000)]
    assert learned(iter(held)).believed.service_us == 600_000
    stall = measured(engine_us=100_000, decode_us=10**9)
    many = [measured(engine_us=100_000, decode_us=500_000)] * 100
    assert learned(iter([*many, stall])).believed.service_us == pytest.approx(600_000, rel=0.1)


def test_an_answer_that_its_reader_held_up_teaches_the_first_token_alone() -> None:
    learner = learned(iter([measured()] * 20))
    before = learner.believed
    for _ in range(20):
        learner.learn(measured(engine_us=400_000, decode_us=None))
    after = learner.believed
    assert (after.decode_ns, after.stream_ns) == (before.decode_ns, before.stream_ns)
    assert after.service_us == before.service_us
    assert first_us(after, 1_000) > 1.3 * first_us(before, 1_000)


def test_one_token_says_nothing_of_the_time_per_token() -> None:
    speed = learned(iter([measured(decode_us=0, output=1)] * 30)).believed
    assert (speed.decode_ns, speed.stream_ns) == (DECLARED.decode_ns, DECLARED.stream_ns)


def test_a_wait_that_reports_foretell_badly_is_learned() -> None:
    told = replace(measured(), told_us=200_000, queued_us=600_000)
    assert learned(iter([told] * 200)).believed.queue_ppm == pytest.approx(2_600_000, rel=0.03)
    assert learned(iter([measured()] * 200)).believed.queue_ppm == DECLARED.queue_ppm


def test_other_declared_rates_are_another_speed() -> None:
    learner = SpeedLearner(DECLARED)
    assert learner.rates == SpeedLearner(replace(DECLARED, stream_ns=7)).rates, "slots may come and go"
    assert learner.rates != SpeedLearner(replace(DECLARED, prefill_ns=7)).rates


@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0, 1_000)), min_size=1, max_size=8),
    st.tuples(st.floats(0, 50), st.floats(50, 100)),
    st.tuples(st.floats(0, 20), st.floats(20, 40)),
)
def test_a_line_is_the_best_within_its_bounds(
    samples: list[tuple[float, float]], a: tuple[float, float], b: tuple[float, float]
) -> None:
    line = _Line(_Guess(50.0, 1.0, *a), _Guess(20.0, 1.0, *b))
    for x, y in samples:
        line.learn(x, y, 1_000.0)
    faded = max(FADED_MIN, FADE ** len(samples))
    weights = [FORGET**age for age in reversed(range(len(samples)))]

    def loss(at_a: float, at_b: float) -> float:
        guessed = faded * ((at_a - 50.0) ** 2 + (at_b - 20.0) ** 2)
        return guessed + sum(w * (at_a + at_b * x - y) ** 2 for w, (x, y) in zip(weights, samples, strict=True))

    assert a[0] <= line.a <= a[1]
    assert b[0] <= line.b <= b[1]
    least = loss(line.a, line.b)
    steps = [step / 16 for step in range(17)]
    others = [loss(a[0] + p * (a[1] - a[0]), b[0] + q * (b[1] - b[0])) for p in steps for q in steps]
    assert least <= min(others) * (1 + 1e-6) + 1e-6


@given(st.integers(-WHOLE_SQUARES_US, WHOLE_SQUARES_US))
def test_squares_of_usual_figures_are_the_same_as_whole_numbers(figure: int) -> None:
    assert float(figure * figure) == float(figure) ** 2
    assert int(float(figure * figure)) == figure * figure
