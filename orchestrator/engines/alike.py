"""Chunks of one answer that differ in nothing but their text, read together. Pure.

Engines write every token as the same object with another text in it. Of 100 tokens that come 20 at a time, decoding
each object cost an intake twice as much as this does: 90 us, and 42 us.

What is read is what decoding each chunk by itself gives, whatever the bytes:

* The text of one chunk is found by a guess, and proved: with another text in its place, the chunk must decode to that.
  So what stands before it opens the very string that is the text, and nothing else of the chunk depends on it.
* As many bytes as stand before and after it are cut off from every chunk. Where the parts with these bytes put round
  each are the chunks again, every chunk is these bytes round its part.
* The parts are decoded as one list of strings, with a line feed behind each. No chunk holds one, and JSON has none
  inside of a string: so no string reaches from one part into the next, and where there are as many strings as parts,
  none was two.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import msgspec

TOGETHER_MIN = 6
"""Of fewer chunks, one by one costs no more."""
_ENDING = 3
"""So many chunks may end an answer: its reason, its usage, and the word that it is done."""
_TEXT = re.compile(rb'"content": ?"([^"\\]*+(?:\\.[^"\\]*+)*+)')
_TEXTS = msgspec.json.Decoder(list[str])


class Alike:
    """What is the same in the chunks of an answer: the bytes before the text, and those after it."""

    __slots__ = ("_after", "_before", "_begin", "_between", "_end")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._before = before
        self._after = after
        self._between = after + b"\n" + before
        self._begin, self._end = len(before), -len(after)

    def texts(self, chunks: Sequence[bytes]) -> tuple[int, int, list[str]] | None:
        """Return (the place of the first chunk that is alike, of the first after these, the texts of all between).

        There are `TOGETHER_MIN` chunks at least, of valid UTF-8 without a line feed. The first may be another, for it
        tells a role, and so may the last few. None where one between is, or may be, another as well.
        """
        first, last = 0 if chunks[0].startswith(self._before) else 1, len(chunks)
        for chunk in reversed(chunks[-_ENDING:]):
            if chunk.endswith(self._after):
                break
            last -= 1
        chunks = chunks[first:last]
        begin, end = self._begin, self._end
        parts = [chunk[begin:end] for chunk in chunks]
        if self._before + self._between.join(parts) + self._after != b"\n".join(chunks):
            return None
        try:
            texts = _TEXTS.decode(b'["' + b'"\n,"'.join(parts) + b'"]')
        except msgspec.DecodeError:
            return None
        return (first, last, texts) if len(texts) == last - first else None


def alike_of(chunk: bytes, text_of: Callable[[bytes], str | None]) -> Alike | None:
    """Return what the chunks like this one have in common, or None where that cannot be told.

    `text_of` decodes a chunk: it returns the text of one that is nothing but a text, and None for every other.
    """
    guess, text = _TEXT.search(chunk), text_of(chunk)
    if guess is None or text is None:
        return None
    before, after = chunk[: guess.start(1)], chunk[guess.end(1) :]
    # Any other text would do. It is no JSON outside of a string.
    other = "?" if text != "?" else "!"
    return Alike(before, after) if text_of(before + other.encode() + after) == other else None
