"""Events of one answer whose chunks differ in nothing but their text, read together. Pure.

Engines write every token as the same object with another text in it. Of 100 tokens that come 20 at a time, decoding
each object costs an intake twice as much as this does: 72 us, and 35 us; where they come one by one, 205 us and 157 us.

What is read is what decoding each chunk by itself gives, whatever the bytes:

* The text of one chunk is found by a guess, and proved: with another text in its place, the chunk must decode to that.
  So what stands before it opens the very string that is the text, and nothing else of the chunk depends on it.
* As many bytes as stand before and after it are cut off from every chunk. Where the parts with these bytes put round
  each are the stream again, it is nothing but these bytes round each part.
* The parts are decoded as one list of strings, with a line feed behind each. JSON has none inside of a string: so no
  string reaches from one part into the next, and each part is one string at least. Where there are as many strings as
  parts, each is one, and holds no end of a line: every event is these bytes round its part. The decoder takes nothing
  that is not UTF-8.
* Where each part of a body is to be one event, as engines frame them, the parts are cut out of these, and the same is
  proved. One event that came alone, as most do where an engine is waited for, takes less: what lies between
  these bytes is decoded as one string, with the quotes that end the one and begin the other. There is nothing behind
  that string, and no end of a line inside of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from operator import itemgetter

import msgspec

from orchestrator.engines.sse import BETWEEN, DATA, DATA_BYTES, END_BYTES, EVENT_END

LEARNS_FIRST = 6
"""So many chunks come before it pays to learn what they are like, which costs as much as decoding five."""
LEARNS_AGAIN = 16
"""So many more before that is tried again: of an engine whose chunks are never alike, it costs a few of a hundred."""
_ENDING = 3
"""So many chunks may end an answer: its reason, its usage, and the word that it is done."""
_TEXT = re.compile(rb'"content": ?"([^"\\]*+(?:\\.[^"\\]*+)*+)')
_TEXTS = msgspec.json.Decoder(list[str])
_QUOTED = msgspec.json.Decoder(str)


class Alike:
    """What is the same in the chunks of an answer: the bytes before the text, and those after it."""

    __slots__ = ("_between", "_closing", "_middle_of", "_opening", "_part_of", "_quoted", "_two_bytes")

    def __init__(self, before: bytes, after: bytes) -> None:
        self._opening = opening = DATA + before
        self._closing = closing = after + EVENT_END
        self._between = closing + opening
        self._part_of = itemgetter(slice(len(before), -len(after)))
        """Of a chunk."""
        self._middle_of = itemgetter(slice(len(opening), -len(closing)))
        """Of an event."""
        # The last of the opening and the first of the closing are the quotes round the text, as `alike_of` proved.
        self._quoted = slice(len(opening) - 1, 1 - len(closing))
        self._two_bytes = 2 * len(self._between)
        """No two events have fewer."""

    def texts_of(self, parts: list[bytes], line_bytes_max: int) -> list[str] | None:
        """Return the texts of the events that `parts` are, one each; None where one is, or may be, another.

        As engines frame what they send, so that nothing of it is to be sought for.
        """
        opening, closing = self._opening, self._closing
        if not parts[0].startswith(opening) or not parts[-1].endswith(closing):
            return None
        data = b"".join(parts)
        middles: list[bytes] = [*map(self._middle_of, parts)]
        # No line is longer than all of them together.
        if len(data) > line_bytes_max or opening + self._between.join(middles) + closing != data:
            return None
        return _decoded(middles)

    def text(self, data: bytes, line_bytes_max: int) -> str | None:
        """Return the text of one event that is alike; None where it is, or may be, another, or more than one."""
        if len(data) > line_bytes_max or len(data) >= self._two_bytes:
            return None
        if not data.startswith(self._opening) or not data.endswith(self._closing):
            return None
        try:
            return _QUOTED.decode(data[self._quoted])
        except (msgspec.DecodeError, UnicodeDecodeError):
            return None

    def texts(self, data: bytes, line_bytes_max: int) -> tuple[int, int, list[str]] | None:
        """Return (where the first event that is alike begins, where the last one ends, the texts of all between).

        `data` ends with the end of an event. Its first event may be another, for it tells a role, and so may the last
        few. None where one between is, or may be, another as well.
        """
        opening, closing = self._opening, self._closing
        begin, end, others = 0, len(data), 0
        if not data.startswith(opening):
            begin = data.find(EVENT_END) + END_BYTES
        while not data.endswith(closing, begin, end):
            end = data.rfind(EVENT_END, begin, end - END_BYTES) + END_BYTES
            others += 1
            if others > _ENDING or end <= begin:
                return None
        chunks = data[begin + DATA_BYTES : end - END_BYTES].split(BETWEEN)
        # To split at all that is between would be plainer, and takes longer: it is too long to be sought for.
        parts: list[bytes] = [*map(self._part_of, chunks)]
        if opening + self._between.join(parts) + closing != data[begin:end]:
            return None
        # No line is longer than all of them together.
        if end > line_bytes_max and max(map(len, chunks)) + DATA_BYTES > line_bytes_max:
            return None
        texts = _decoded(parts)
        return None if texts is None else (begin, end, texts)


def _decoded(parts: list[bytes]) -> list[str] | None:
    """Return the text that each of `parts` is inside of its quotes; None where one is not one text."""
    try:
        texts = _TEXTS.decode(b'["' + b'"\n,"'.join(parts) + b'"]')
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    return texts if len(texts) == len(parts) else None


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
