"""The GPUs of the comparison against published measurements: each predicted by the model, by the same workload. Pure.

Only what somebody published of one of these cards with a model of this class in 16 bits. Two kinds stand apart: a
figure that a parameter of `benchmarks.placement.sites` was taken from shows what the model makes of it, and proves
nothing; the others were looked up after the parameters were fixed, and no parameter was changed for them.

AccelMark (github.com/FreedomIntelligence/AccelMark, `results/verified`, commit 3ae358a, April 2026, CC BY 4.0): vLLM
0.7.3, one card, BF16. Suite A: Llama 3 8B, prompts of about 280 tokens in the median; *interactive* is one request at a
time, *sustained* is 8 at a time for half an hour, answers of about 350 tokens by its own counts. Suite D: Llama 3.1 8B,
prompts of about 28,650 tokens in the median, answers of 256.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from benchmarks.placement.calibration.simulated import closed
from benchmarks.placement.sites import CARDS
from orchestrator.placement.replay.world import Gpu

ACCELMARK = "AccelMark"
SUITE_A = (280, 350)
"""Tokens of a prompt and of an answer."""
SUITE_D = (28_650, 256)
TOGETHER = 8

Predict = Callable[[Gpu], float]


@dataclass(frozen=True, slots=True)
class Published:
    """One published figure, and how the model predicts it."""

    card: str
    """In `CARDS`."""
    what: str
    unit: str
    value: float
    source: str
    parameter: bool
    """Whether a parameter of the card was taken from it."""
    predict: Predict

    def predicted(self) -> float:
        """Return what the model makes of the same workload."""
        return self.predict(CARDS[self.card].gpu(prefix_cache=False))


def first_ms(prompt_tokens: int) -> Predict:
    """Predict the time to the first token of a request that is alone."""
    return lambda gpu: closed(gpu, 1, prompt_tokens, 2).first_ms


def token_ms(prompt_tokens: int, output_tokens: int) -> Predict:
    """Predict the time per token of a request that is alone."""
    return lambda gpu: closed(gpu, 1, prompt_tokens, output_tokens).token_ms


def stream_per_s(prompt_tokens: int, output_tokens: int) -> Predict:
    """Predict the tokens per second of a stream that is alone, once it decodes."""
    return lambda gpu: 1000 / closed(gpu, 1, prompt_tokens, output_tokens).token_ms


def tokens_per_s(streams: int, prompt_tokens: int, output_tokens: int) -> Predict:
    """Predict the answer tokens per second of so many at a time."""
    return lambda gpu: closed(gpu, streams, prompt_tokens, output_tokens).tokens_per_s


def gain(streams: int, prompt_tokens: int, output_tokens: int) -> Predict:
    """Predict how many times the throughput of one at a time so many reach."""

    def predict(gpu: Gpu) -> float:
        together, alone = (closed(gpu, count, prompt_tokens, output_tokens) for count in (streams, 1))
        return together.tokens_per_s / alone.tokens_per_s

    return predict


def prefill_slope_ms(short_tokens: int, long_tokens: int) -> Predict:
    """Predict the time to the first token that one more prompt token costs."""

    def predict(gpu: Gpu) -> float:
        short, long = (closed(gpu, 1, tokens, 2).first_ms for tokens in (short_tokens, long_tokens))
        return (long - short) / (long_tokens - short_tokens)

    return predict


def _accelmark(card: str, suite: str, what: str, unit: str, value: float, predict: Predict) -> Published:
    return Published(card, what, unit, value, f"{ACCELMARK}, suite {suite}", False, predict)


def _suite_a(card: str, first: float, token: float, rate: float) -> tuple[Published, ...]:
    prompt, output = SUITE_A
    return (
        _accelmark(card, "A", "first token, 280 tokens", "ms", first, first_ms(prompt)),
        _accelmark(card, "A", "per token, alone", "ms", token, token_ms(prompt, output)),
        _accelmark(card, "A", "8 at a time", "tokens/s", rate, tokens_per_s(TOGETHER, prompt, output)),
    )


def _suite_d(card: str, first: float, token: float) -> tuple[Published, ...]:
    prompt, output = SUITE_D
    return (
        _accelmark(card, "D", "first token, 28,650 tokens", "ms", first, first_ms(prompt)),
        _accelmark(card, "D", "per token, alone, after 28,650", "ms", token, token_ms(prompt, output)),
    )


_SKYWALKER = "SkyWalker (EuroSys'26)"
_GORGO = "GORGO (arXiv 2602.11688), card not named"
_MUSGRAVE = "johnmusgrave.com, vLLM 0.23"

PUBLISHED: tuple[Published, ...] = (
    Published("L4", "prefill of 512 tokens", "ms", 300, _SKYWALKER, True, first_ms(512)),
    Published("A100-80GB", "one more prompt token", "ms", 0.0938, _GORGO, True, prefill_slope_ms(1_024, 8_192)),
    Published("A100-40GB", "one stream, 1,024 in", "tokens/s", 75, _MUSGRAVE, True, stream_per_s(1_024, 128)),
    Published("A100-40GB", "8 at a time against 1, 1,024 in", "x", 6.6, _MUSGRAVE, False, gain(TOGETHER, 1_024, 128)),
    *_suite_a("H100", 20.08, 7.74, 907.1),
    *_suite_a("A100-80GB", 46.45, 13.19, 551.9),
    *_suite_a("A100-40GB", 39.8, 14.27, 484.0),
    *_suite_a("A800", 37.83, 12.43, 546.4),
    *_suite_a("L4", 161.63, 61.2, 116.6),
    *_suite_d("H100", 1076.72, 11.88),
    *_suite_d("A100-80GB", 2838.69, 30.57),
    *_suite_d("A100-40GB", 2822.72, 17.96),
    *_suite_d("A800", 2805.35, 16.06),
    # An H20-3e has the arithmetic of an H20 and faster memory, so only its prefill can be compared.
    _accelmark("H20", "D (H20-3e)", "first token, 28,650 tokens", "ms", 4654.9, first_ms(SUITE_D[0])),
)
