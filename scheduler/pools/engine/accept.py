"""What an engine refuses before it looks at the text: another model, sampling outside its bounds. Pure."""

from __future__ import annotations

from orchestrator.engines.generation import Generation, ModelId, Refused, Resume, Sampling
from scheduler.pools.engine.sampling import SEED_MASK

STOP_STRINGS_MAX = 4
STOP_CHARS_MAX = 1024
"""Bounds the text that is held back; a longer stop string is refused."""
TEMPERATURE_MAX = 2.0


def refusal_of(generation: Generation, served: ModelId) -> Refused | None:
    """Why the engine that serves `served` refuses this generation, or None when nothing is wrong so far."""
    if generation.model != served:
        return Refused("model_not_served", "This engine serves another model.", "model")
    if not generation.messages:
        return Refused("bad_generation", "A conversation has at least one message.", "messages")
    if generation.mixed:
        return Refused("bad_generation", "A raw prompt stands alone.", "messages")
    if generation.said is not None and generation.said.by is not Resume.IDS:
        return Refused("identity_mismatch", "This engine goes on with an answer by its tokens alone.")
    return _sampling_refusal(generation.sampling)


def _sampling_refusal(sampling: Sampling) -> Refused | None:
    # Written so that NaN, which compares false with everything, is refused.
    if not 0 <= sampling.temperature <= TEMPERATURE_MAX:
        return Refused("bad_generation", f"temperature is from 0 to {TEMPERATURE_MAX:g}.", "temperature")
    if not 0 < sampling.top_p <= 1:
        return Refused("bad_generation", "top_p is above 0 and at most 1.", "top_p")
    if sampling.seed is not None and not 0 <= sampling.seed <= SEED_MASK:
        return Refused("bad_generation", "seed is a 64-bit unsigned number.", "seed")
    if sampling.max_tokens is not None and sampling.max_tokens < 1:
        return Refused("bad_generation", "max_tokens is at least 1.", "max_tokens")
    if sampling.min_tokens < 0 or (sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens):
        return Refused("bad_generation", "min_tokens is from 0 to max_tokens.", "min_tokens")
    if len(sampling.stop) > STOP_STRINGS_MAX:
        return Refused("bad_generation", f"At most {STOP_STRINGS_MAX} stop strings are taken.", "stop")
    if not all(1 <= len(stop) <= STOP_CHARS_MAX for stop in sampling.stop):
        return Refused("bad_generation", f"A stop string has 1 to {STOP_CHARS_MAX} characters.", "stop")
    return None
