"""How long answers and prompts are: learned from replies, by tenant and model, and by model and script."""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum
from typing import Generic, TypeVar

from orchestrator.policy.ids import ModelId, TenantId

Key = TypeVar("Key", bound=Hashable)

SHARE = 0.05
"""Weight of one reply in a mean, once twenty are in; before that the mean is the plain one."""
KEYS_MAX = 16_384
DECLARED_CHARS_PER_TOKEN = 4.0
CHARS_PER_TOKEN_MIN = 0.2
CHARS_PER_TOKEN_MAX = 32.0
TEMPLATE_TOKENS_MAX = 1_000
OUTPUT_TOKENS_MAX = 10**6
"""Beyond these a count is broken, not a text dense or long: the word of one pool counts at all others."""
ASCII_MAX = 0x80
CJK_FROM = 0x2E80


class Script(Enum):
    """Which kind of writing a prompt mostly is: tokens are of other lengths in each."""

    ASCII = "ascii"
    CJK = "cjk"
    OTHER = "other"


SAMPLE_CHARS = 512


def script_of(text: str) -> Script:
    """Return the script of most of a sample of `text`."""
    sample = text[:SAMPLE_CHARS]
    if sample.isascii():
        return Script.ASCII
    wide = sum(1 for char in sample if ord(char) >= CJK_FROM)
    plain = sum(1 for char in sample if ord(char) < ASCII_MAX)
    if wide * 2 >= len(sample) or wide > plain:
        return Script.CJK
    return Script.ASCII if plain * 10 >= len(sample) * 9 else Script.OTHER


class _Means(Generic[Key]):
    """A mean per key. The key that was learned longest ago goes first when there are too many."""

    def __init__(self) -> None:
        self._means: dict[Key, tuple[float, int]] = {}  # bounded: KEYS_MAX

    def get(self, key: Key) -> float | None:
        known = self._means.get(key)
        return None if known is None else known[0]

    def learn(self, key: Key, value: float) -> None:
        mean, count = self._means.pop(key, (value, 0))
        count += 1
        self._means[key] = (mean + (value - mean) * max(SHARE, 1 / count), count)
        if len(self._means) > KEYS_MAX:
            del self._means[next(iter(self._means))]


class Lengths:
    """Expected output tokens by tenant and model, and characters per prompt token by model and script."""

    def __init__(self) -> None:
        self._output: _Means[tuple[TenantId, ModelId]] = _Means()
        # The ratio of two means, not a mean of ratios: short prompts, which are template mostly, would dominate that.
        self._chars: _Means[tuple[ModelId, Script]] = _Means()
        self._tokens: _Means[tuple[ModelId, Script]] = _Means()

    def output_tokens(self, tenant: TenantId, model: ModelId, unknown: int, most: int | None) -> int:
        """Return how long an answer is expected to be: `unknown` until one was seen, and never beyond `most`."""
        mean = self._output.get((tenant, model))
        expected = unknown if mean is None else max(1, round(mean))
        return expected if most is None else max(1, min(expected, most))

    def prompt_tokens(self, model: ModelId, script: Script, chars: int) -> int:
        """Return how many tokens `chars` characters probably are; at least 1."""
        mean_chars, mean_tokens = self._chars.get((model, script)), self._tokens.get((model, script))
        if mean_chars is None or mean_tokens is None:
            return 1 + int(chars / DECLARED_CHARS_PER_TOKEN)
        return 1 + int(chars / max(CHARS_PER_TOKEN_MIN, min(mean_chars / mean_tokens, CHARS_PER_TOKEN_MAX)))

    def learn_output(self, tenant: TenantId, model: ModelId, output_tokens: int) -> None:
        """A complete answer was this long."""
        self._output.learn((tenant, model), min(output_tokens, OUTPUT_TOKENS_MAX))

    def learn_prompt(self, model: ModelId, script: Script, chars: int, prompt_tokens: int) -> None:
        """The pool counted the tokens of a prompt. What its template adds counts with it."""
        if chars > 0 and prompt_tokens > 0:
            most = int(chars / CHARS_PER_TOKEN_MIN) + TEMPLATE_TOKENS_MAX
            self._chars.learn((model, script), chars)
            self._tokens.learn((model, script), min(prompt_tokens, most))
