"""How long answers and prompts are: learned from replies, by tenant and model, and by model and script."""

from __future__ import annotations

from enum import StrEnum
from typing import TypeVar

from orchestrator.policy.ids import ModelId, TenantId

COUNTS_MAX = 20
SHARE = 1 / COUNTS_MAX
"""Weight of one reply in a mean, once so many are in; before that the mean is the plain one."""
KEYS_MAX = 16_384
DECLARED_CHARS_PER_TOKEN = 4.0
CHARS_PER_TOKEN_MIN = 0.2
CHARS_PER_TOKEN_MAX = 32.0
TEMPLATE_TOKENS_MAX = 1_000
OUTPUT_TOKENS_MAX = 10**6
"""Beyond these a count is broken, not a text dense or long: the word of one pool counts at all others."""
ASCII_MAX = 0x80
CJK_FROM = 0x2E80


class Script(StrEnum):
    """Which kind of writing a prompt mostly is: tokens are of other lengths in each."""

    ASCII = "ascii"
    CJK = "cjk"
    OTHER = "other"


Key = TypeVar("Key")
Value = TypeVar("Value")

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


class Lengths:
    """Expected output tokens by tenant and model, and characters per prompt token by model and script.

    What was learned longest ago goes first when there is too much of it.
    """

    def __init__(self) -> None:
        # Means, and how many replies are in them. Bounded: KEYS_MAX.
        self._output: dict[tuple[TenantId, ModelId], tuple[float, int]] = {}
        # Characters and tokens: the ratio of two means, not a mean of ratios, which short prompts, template mostly,
        # would dominate.
        self._prompt: dict[tuple[ModelId, Script], tuple[float, float, int]] = {}

    def output_tokens(self, tenant: TenantId, model: ModelId, unknown: int, most: int | None) -> int:
        """Return how long an answer is expected to be: `unknown` until one was seen, and never beyond `most`."""
        found = self._output.get((tenant, model))
        expected = unknown if found is None else round(found[0])
        if most is not None and most < expected:
            expected = most
        return expected if expected > 1 else 1

    def prompt_tokens(self, model: ModelId, script: Script, chars: int) -> int:
        """Return how many tokens `chars` characters probably are; at least 1."""
        found = self._prompt.get((model, script))
        if found is None:
            return 1 + int(chars / DECLARED_CHARS_PER_TOKEN)
        mean_chars, mean_tokens, _ = found
        per_token = mean_chars / mean_tokens
        if per_token < CHARS_PER_TOKEN_MIN:
            per_token = CHARS_PER_TOKEN_MIN
        elif per_token > CHARS_PER_TOKEN_MAX:
            per_token = CHARS_PER_TOKEN_MAX
        return 1 + int(chars / per_token)

    def learn_output(self, tenant: TenantId, model: ModelId, output_tokens: int) -> None:
        """A complete answer was this long."""
        key = (tenant, model)
        value = output_tokens if output_tokens < OUTPUT_TOKENS_MAX else OUTPUT_TOKENS_MAX
        # Taken out and put back: the order of the dictionary is the order of learning.
        found = self._output.pop(key, None)
        if found is None:
            _make_room(self._output)
            self._output[key] = (value, 1)
            return
        mean, count = found
        count += 1
        self._output[key] = (mean + (value - mean) * (1 / count if count < COUNTS_MAX else SHARE), count)

    def learn_prompt(self, model: ModelId, script: Script, chars: int, prompt_tokens: int) -> None:
        """The pool counted the tokens of a prompt. What its template adds counts with it."""
        if chars <= 0 or prompt_tokens <= 0:
            return
        key = (model, script)
        most = int(chars / CHARS_PER_TOKEN_MIN) + TEMPLATE_TOKENS_MAX
        tokens = prompt_tokens if prompt_tokens < most else most
        found = self._prompt.pop(key, None)
        if found is None:
            _make_room(self._prompt)
            self._prompt[key] = (chars, tokens, 1)
            return
        mean_chars, mean_tokens, count = found
        count += 1
        share = 1 / count if count < COUNTS_MAX else SHARE
        self._prompt[key] = (
            mean_chars + (chars - mean_chars) * share,
            mean_tokens + (tokens - mean_tokens) * share,
            count,
        )


def _make_room(learned: dict[Key, Value]) -> None:
    """Forget what was learned longest ago where there is no room for one more."""
    if len(learned) >= KEYS_MAX:
        del learned[next(iter(learned))]
