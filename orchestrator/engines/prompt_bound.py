"""How many tokens a prompt can have at most, by the size of the JSON that it stands in. Pure.

A tokenizer that knows every byte makes no more tokens of a text than it has bytes of UTF-8, and JSON makes no text
shorter. The JSON of each message is 28 bytes at least beside its text; templates lay some ten tokens round one at most.
"""

from __future__ import annotations

TEMPLATE_TOKENS = 4_096
"""What a chat template may say by itself, before all messages. Four times the longest that is known: the default system
prompt of Devstral has some 950 tokens, of Command R7B 600, of Mistral Small 3.1 170, of Qwen 2.5 and Llama 3 25."""
RAW_TOKENS = 16
"""What is laid round a raw prompt: the word for its beginning, and a space."""
NORMALISED_TIMES = 11
"""Some tokenizers bring a text into a normal form first. NFKC makes up to so many bytes of one (U+FDFA), and NFC, as of
Qwen's, up to 3 (U+1D160); ASCII stays as it is. Who sends such a prompt must not make an honest engine a liar."""


def believed_tokens(size_bytes: int, *, raw: bool) -> int:
    """Return how many tokens of a prompt are billed at most whose JSON has `size_bytes`."""
    return size_bytes + (RAW_TOKENS if raw else TEMPLATE_TOKENS)


def possible_tokens(body: bytes, *, raw: bool) -> int:
    """Return how many tokens an engine can make of the prompt in a request's `body` at all."""
    most = len(body) if body.isascii() else len(body) * NORMALISED_TIMES
    return believed_tokens(most, raw=raw)
