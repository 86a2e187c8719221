"""Which token comes next. Pure: every draw is a function of (seed, position), never of who else is in the batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

SEED_MASK = (1 << 64) - 1


@dataclass(frozen=True, slots=True)
class Drawing:
    """How one answer's tokens are drawn, with nothing left open."""

    temperature: float
    """0 is greedy."""
    top_p: float
    seed: int
    """64-bit unsigned."""
    ends_from: int | None = 0
    """How many tokens the answer has before one that ends it may be drawn; None where none ever is."""


def may_end(ends_from: int | None, generated: int) -> bool:
    """Whether the token after `generated` tokens of an answer may be one that ends it."""
    return ends_from is not None and generated >= ends_from


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) keyed by (seed, position), the same on every machine."""
    raw = np.random.Philox(key=np.array([seed, position], dtype=np.uint64)).random_raw()
    return float(int(raw) >> 11) * 2.0**-53


def next_token(
    logits: npt.NDArray[np.float32], drawing: Drawing, position: int, barred: Sequence[int] = ()
) -> int:
    """The token for `position`, counted from the first token of the prompt, so that a resumed answer draws alike.

    The `barred` tokens are never drawn: the others share their likelihood. Raises FloatingPointError when the model
    gave no finite logit: an answer made of that would be noise.
    """
    if barred:
        logits = logits.copy()
        logits[list(barred)] = -np.inf
    best = int(np.argmax(logits))
    if not np.isfinite(logits[best]):
        raise FloatingPointError("the model's logits are not finite")
    if drawing.temperature == 0:
        return best
    weights = np.exp((logits.astype(np.float64) - float(logits[best])) / drawing.temperature)
    if drawing.top_p < 1:
        weights = _nucleus(weights, drawing.top_p)
    # Summed in the order of token ids, not of likelihood: two tokens whose logits are equal up to rounding would swap
    # places between batches, and with them every token that lies between.
    mass = np.cumsum(weights)
    chosen = int(np.searchsorted(mass, uniform(drawing.seed, position) * float(mass[-1]), side="right"))
    return chosen if chosen < len(weights) and weights[chosen] > 0 else best


def _nucleus(weights: npt.NDArray[np.float64], top_p: float) -> npt.NDArray[np.float64]:
    """Zero all but the fewest most likely tokens whose share is at least `top_p`; at least one stays."""
    total = float(weights.sum())
    # Tokens of less than this weight hold less than 1 - top_p together, so none of them is needed; sorting the few
    # others takes a tenth of the time.
    candidates = np.flatnonzero(weights >= (1 - top_p) / len(weights) * total)
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    share = np.cumsum(weights[order]) / total
    kept = order[: int(np.searchsorted(share, top_p, side="left")) + 1]
    nucleus = np.zeros_like(weights)
    nucleus[kept] = weights[kept]
    return nucleus
