"""Prompts of a wanted length that any small model answers at length. Pure."""

from __future__ import annotations

from random import Random

WORDS = ("sea", "tide", "rock", "lamp", "wind", "ship", "fog", "bell", "rope", "sand", "gull", "wave")
"""One token each in the vocabulary of SmolLM2."""
AROUND_TOKENS = 44
"""Tokens of a prompt besides its words: the template of SmolLM2, and what is asked. Engines say the exact number."""


def prompt_of(tokens: int, chance: Random | None = None) -> str:
    """Return a text that makes a prompt of about so many tokens.

    With chance, one begins like no other, so that no engine has its beginning in a cache.
    """
    places = range(max(1, tokens - AROUND_TOKENS))
    words = [WORDS[place % len(WORDS)] if chance is None else chance.choice(WORDS) for place in places]
    return f"Notes: {' '.join(words)}.\nWrite a very long story about a lighthouse keeper."
