"""The replica model fitted to measured steps, and predictions compared with what was measured. Pure.

The model is that of `orchestrator.placement.replay.world.Gpu`: a step takes
``step_ns + stream_ns * decoding + prefill_ns * prompt tokens taken in``. A stretch of steps is linear in the three, so
ordinary least squares finds them; the rows are divided by what was measured, so that a short stretch counts as much as
a long one. None is negative: where the best fit has one below zero, it is nought and the others are fitted again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from benchmarks.figures import median, percentile
from orchestrator.placement.replay.world import Gpu


@dataclass(frozen=True, slots=True)
class Sample:
    """A stretch of steps of one engine: what they did, and how long they took together."""

    name: str
    steps: int
    stream_steps: int
    """Streams that decode, summed over the steps."""
    prompt_tokens: int
    """Taken in, over all the steps."""
    took_ns: float


@dataclass(frozen=True, slots=True)
class Fitted:
    """The three parameters of the model, in nanoseconds."""

    step_ns: float
    stream_ns: float
    prefill_ns: float

    def predicted_ns(self, sample: Sample) -> float:
        """Return how long the model says that the stretch takes."""
        decoding_ns = self.step_ns * sample.steps + self.stream_ns * sample.stream_steps
        return decoding_ns + self.prefill_ns * sample.prompt_tokens

    def gpu(self, chunk_tokens: int, slots: int, kv_tokens: int) -> Gpu:
        """Return the replica model with these parameters, without a prefix cache."""
        return Gpu(
            step_ns=max(1, round(self.step_ns)),
            stream_ns=round(self.stream_ns),
            prefill_ns=round(self.prefill_ns),
            chunk_tokens=chunk_tokens,
            slots=slots,
            kv_tokens=kv_tokens,
            prefix_cache=False,
        )


@dataclass(frozen=True, slots=True)
class Residual:
    """One sample beside what the fitted model says of it."""

    sample: Sample
    predicted_ns: float

    @property
    def error(self) -> float:
        """How much longer the model says than it took, relative."""
        return self.predicted_ns / self.sample.took_ns - 1


def fitted(samples: Sequence[Sample]) -> Fitted:
    """Return the parameters that make the relative errors least in squares. Raises ValueError without samples."""
    if not samples or any(sample.took_ns <= 0 for sample in samples):
        raise ValueError("expected samples that took some time")
    took_ns = np.array([sample.took_ns for sample in samples])
    rows = np.array([(sample.steps, sample.stream_steps, sample.prompt_tokens) for sample in samples], dtype=float)
    rows /= took_ns[:, None]
    kept = [0, 1, 2]
    found = np.zeros(3)
    while kept:
        solved, *_ = np.linalg.lstsq(rows[:, kept], np.ones(len(samples)), rcond=None)
        if (solved >= 0).all():
            found[kept] = solved
            break
        kept.pop(int(solved.argmin()))
    return Fitted(*(float(value) for value in found))


def residuals(model: Fitted, samples: Sequence[Sample]) -> list[Residual]:
    """Return each sample beside its prediction."""
    return [Residual(sample, model.predicted_ns(sample)) for sample in samples]


def medians(samples: Sequence[Sample]) -> list[Sample]:
    """Return one sample for each name, in the order in which they came: the median time of its repeats.

    Raises ValueError when repeats of one name did not do the same.
    """
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.name, []).append(sample)
    for name, group in groups.items():
        if len({(one.steps, one.stream_steps, one.prompt_tokens) for one in group}) > 1:
            raise ValueError(f"{name}: the repeats did not do the same")
    return [replace(group[0], took_ns=median([one.took_ns for one in group])) for group in groups.values()]


@dataclass(frozen=True, slots=True)
class Compared:
    """Predictions of one time of many requests beside what was measured."""

    count: int
    measured_p50: float
    predicted_p50: float
    measured_p90: float
    predicted_p90: float
    error_mean: float
    """Mean over the requests of the absolute error, relative to what was measured."""
    error_median: float
    """The median of the same."""
    bias: float
    """How much more was predicted than measured, all together, relative."""
    correlation: float | None
    """Pearson's; None where one of the two does not vary."""


def compared(predicted: Sequence[float], measured: Sequence[float]) -> Compared:
    """Return how predictions stand to measurements, in their unit. Raises ValueError when there are none."""
    if len(predicted) != len(measured) or not measured or min(measured) <= 0:
        raise ValueError("expected one prediction for each measurement, all of them of some time")
    errors = [abs(one - other) / other for one, other in zip(predicted, measured, strict=True)]
    return Compared(
        count=len(measured),
        measured_p50=percentile(measured, 50),
        predicted_p50=percentile(predicted, 50),
        measured_p90=percentile(measured, 90),
        predicted_p90=percentile(predicted, 90),
        error_mean=sum(errors) / len(errors),
        error_median=median(errors),
        bias=sum(predicted) / sum(measured) - 1,
        correlation=correlation(predicted, measured),
    )


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Pearson's correlation, or None where one of the two does not vary."""
    if len(first) < 2 or min(first) == max(first) or min(second) == max(second):
        return None
    return float(np.corrcoef(np.array(first, dtype=float), np.array(second, dtype=float))[0, 1])


@dataclass(frozen=True, slots=True)
class Tick:
    """A moment in the life of an engine, by two clocks."""

    wall_ns: int
    cpu_ns: int
    """Processor time of the engine's thread."""
    busy: bool
    """Whether the engine has work from here to the next tick."""


def own_times(ticks: Sequence[Tick]) -> list[int]:
    """Return each tick on the engine's own clock, which stands still while somebody else has its core.

    Where it has work, the clock runs with the processor time of the engine's thread, else with the wall clock; the two
    are not read at quite the same moment, so it is held to the wall clock. The first tick is at 0.
    """
    found = [0] if ticks else []
    for before, after in pairwise(ticks):
        passed_ns = after.wall_ns - before.wall_ns
        if before.busy:
            passed_ns = max(0, min(passed_ns, after.cpu_ns - before.cpu_ns))
        found.append(found[-1] + passed_ns)
    return found


def core_share(ticks: Sequence[Tick]) -> float:
    """Return how much of a core the engine got while it had work; 1.0 where it never had."""
    pairs = [(before, after) for before, after in pairwise(ticks) if before.busy]
    wall_ns = sum(after.wall_ns - before.wall_ns for before, after in pairs)
    cpu_ns = sum(after.cpu_ns - before.cpu_ns for before, after in pairs)
    return min(1.0, cpu_ns / wall_ns) if wall_ns > 0 else 1.0


def slowed(gpu: Gpu, share: float) -> Gpu:
    """Return a replica that gets only a share of its core."""
    return replace(
        gpu,
        step_ns=round(gpu.step_ns / share),
        stream_ns=round(gpu.stream_ns / share),
        prefill_ns=round(gpu.prefill_ns / share),
    )
