"""From token ids to the text of an answer. Pure: how the text was cut into tokens never shows in what is emitted.

Two things are held back: an incomplete UTF-8 sequence, and the head of what may become a stop string.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence, Set


def byte_alphabet() -> dict[str, int]:
    """The characters by which byte-level vocabularies write bytes (GPT-2's table): printable ones stand for themselves,
    the others for 256 onwards in their order."""
    printable = {*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAC + 1), *range(0xAE, 0xFF + 1)}
    others = [byte for byte in range(256) if byte not in printable]
    alphabet = {chr(byte): byte for byte in printable}
    alphabet.update({chr(256 + index): byte for index, byte in enumerate(others)})
    return alphabet


def token_table(vocabulary: Mapping[str, int], added: Mapping[int, str], control: Set[int]) -> tuple[bytes, ...]:
    """The bytes of each token id. Control tokens are empty: they are never text. Ids nobody names are empty too.

    `vocabulary` is byte-level; `added` holds the added tokens, which are written as plain text.
    Raises ValueError when the vocabulary is not byte-level.
    """
    alphabet = byte_alphabet()
    table = [b""] * (1 + max((*vocabulary.values(), *added)))
    for token, token_id in vocabulary.items():
        if token_id in added:
            continue
        try:
            table[token_id] = bytes(alphabet[character] for character in token)
        except KeyError:
            raise ValueError(f"the vocabulary is not byte-level: token {token_id} holds another character") from None
    for token_id, content in added.items():
        table[token_id] = b"" if token_id in control else content.encode()
    return tuple(table)


class StopFilter:
    """Lets text through up to the first stop string, which it swallows with everything behind it.

    The first is the one that is complete first; of several complete at once, the one that began first.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = tuple(stop)
        self._held = ""
        self.stopped = False
        """Whether a stop string was met; nothing is let through any more."""

    def push(self, text: str) -> str:
        """Take some more text; returns what is surely part of the answer."""
        if self.stopped:
            return ""
        pending = self._held + text
        found = [(start + len(stop), start) for stop in self._stop if (start := pending.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return pending[: min(found)[1]]
        held = self._head_length(pending)
        self._held = pending[len(pending) - held :]
        return pending[: len(pending) - held]

    def rest(self) -> str:
        """What was held back, when no more text will come."""
        held, self._held = self._held, ""
        return held

    def _head_length(self, text: str) -> int:
        """The length of the longest end of `text` that a stop string begins with."""
        longest = min(len(text), max((len(stop) - 1 for stop in self._stop), default=0))
        for length in range(longest, 0, -1):
            tail = text[-length:]
            if any(stop.startswith(tail) for stop in self._stop):
                return length
        return 0


class AnswerText:
    """The text of one answer, token by token."""

    def __init__(self, table: Sequence[bytes], stop: Sequence[str]) -> None:
        self._table = table
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._filter = StopFilter(stop)

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._filter.stopped

    def knows(self, token_id: int) -> bool:
        """Whether the vocabulary has such a token."""
        return token_id < len(self._table)

    def push(self, token_id: int) -> str:
        """Take one token; returns the text that is complete and surely part of the answer. May be empty.

        Bytes that cannot be UTF-8 become U+FFFD.
        """
        data = self._table[token_id] if token_id < len(self._table) else b""
        return self._filter.push(self._utf8.decode(data))

    def rest(self) -> str:
        """The held-back text, once the last token is known. A character that was never completed is not text."""
        return self._filter.rest()
