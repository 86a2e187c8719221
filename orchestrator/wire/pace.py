"""When the next message of one direction of a session leaves. Pure: time is a parameter.

A message costs both ends about a tenth of a millisecond of processor time, however little is in it. So what nobody
waits for rides with the next message, for a moment at most; and where messages follow each other fast, what is ready
leaves together. A session that is not busy is never held up: a burst is free.
"""

from __future__ import annotations

from enum import IntEnum

MESSAGE_US = 1_000
"""In the long run there are no more messages than one in so long."""
BURST = 8
"""So many leave at once before that counts."""
GATHER_US = 4_000
"""Later tokens of a stream leave so long after the message before, or at once when that is longer ago."""
RIDE_US = 10_000
"""For so long, at most, a frame that nobody waits for waits for a message to ride with."""


class Haste(IntEnum):
    """How soon a frame has to leave."""

    NOW = 0
    """Somebody waits for it: a request, a first token, an end, a cancel."""
    GATHER = 1
    """Tokens of a stream that has begun: what is made within a moment leaves together."""
    RIDE = 2
    """Nobody waits for it: a credit, a settlement, a report."""


# A member costs several times as much by way of its enumeration.
_NOW, _GATHER = Haste.NOW, Haste.GATHER


class Pace:
    """The pace of one direction of one transport."""

    __slots__ = ("_due_us", "_left_us")

    def __init__(self) -> None:
        self._left_us = 0
        """When the last message left."""
        self._due_us = 0
        """When the last message would have left at an even pace."""

    def at_us(self, haste: Haste, now_us: int) -> int:
        """Return when a frame of such haste, which is ready now, is to leave: never before one of more that is older.

        The generic cell rate algorithm (ITU-T I.371): early by no more than a burst.
        """
        paced_us = self._due_us - (BURST - 1) * MESSAGE_US
        if paced_us < now_us:
            paced_us = now_us
        if haste is _NOW:
            return paced_us
        if haste is _GATHER:
            return max(paced_us, self._left_us + GATHER_US)
        return max(paced_us, now_us + RIDE_US)

    def left(self, now_us: int) -> None:
        """A message leaves now."""
        self._left_us = now_us
        self._due_us = (now_us if self._due_us < now_us else self._due_us) + MESSAGE_US
