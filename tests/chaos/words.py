"""The answer of the engines: token i is a function of the prompt and of i. Pure."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from enum import Enum

TOKEN_CHARS = 9
"""A space and eight hex digits."""

QUICK = "quick-"
"""How the tags of requests begin that are answered without the usual pace."""


class Verdict(Enum):
    """What a text is, beside the answer that it should be."""

    PREFIX = "prefix"
    """The first tokens of the answer, perhaps all of them, and nothing else."""
    REPEATED = "repeated"
    """A token stands there a second time."""
    WRONG = "wrong"
    """A token is missing, cut, or another one."""


@dataclass(frozen=True, slots=True)
class Read:
    """A text that was read, judged."""

    verdict: Verdict
    tokens: int
    """How many whole tokens it has, right or wrong."""


def token(prompt: str, index: int) -> str:
    """Return token `index` of the answer to `prompt`."""
    return f" {zlib.crc32(f'{index} {prompt}'.encode()):08x}"


def answer(prompt: str, count: int) -> str:
    """Return the first `count` tokens of the answer."""
    return "".join(token(prompt, index) for index in range(count))


def judge(prompt: str, text: str) -> Read:
    """Compare a text with the answer to `prompt`."""
    tokens = len(text) // TOKEN_CHARS
    if text == answer(prompt, tokens):
        return Read(Verdict.PREFIX, tokens)
    pieces = [text[at : at + TOKEN_CHARS] for at in range(0, len(text), TOKEN_CHARS)]
    verdict = Verdict.REPEATED if len(set(pieces)) < len(pieces) else Verdict.WRONG
    return Read(verdict, tokens)


def prompt_of(tag: str, kind: str) -> str:
    """Return a prompt that carries its request's tag and what kind of data it is declared to be."""
    return f"chaos {kind} {tag} chaos"


def tag_of(prompt: str) -> tuple[str, str] | None:
    """Return the kind and the tag of a prompt of ours, or None."""
    parts = prompt.split()
    return (parts[1], parts[2]) if len(parts) == 4 and parts[0] == parts[3] == "chaos" else None
