"""How long a peer has been silent, as far as we could hear it.

A loop that is late heard nothing because it did not listen: what one of our own ticks came too late is taken off. So a
starved machine does not take its own pause for the death of everybody else.
"""

from __future__ import annotations

TICKS_FORGIVEN = 2
"""A tick that comes later than so many of its intervals was late; what lies beyond is our own silence."""

FUTILE_MAX = 8
"""Transports in a row that may be lost with nothing answered: what cannot be sent would end each one that tries."""


class Silence:
    """The silence of one peer. `tick_us` is how often `ticked` is called when all is well."""

    __slots__ = ("_span_us", "_ticked_us", "heard_us")

    def __init__(self, tick_us: int) -> None:
        self.heard_us = 0
        """When it was last heard, moved on by our own lateness. Set directly: it is set with every frame."""
        self._span_us = TICKS_FORGIVEN * tick_us
        self._ticked_us = 0

    def begun(self, now_us: int) -> None:
        """From now on it may be heard."""
        self.heard_us = self._ticked_us = now_us

    def ticked(self, now_us: int) -> int:
        """Our own tick came. Returns by how much it was late, and forgives the peer so much."""
        late_us = self._late_us(now_us)
        self._ticked_us = now_us
        self.heard_us = min(now_us, self.heard_us + late_us)
        return late_us

    def silent_us(self, now_us: int) -> int:
        """Return for how long it could be heard and was not."""
        return max(0, now_us - self.heard_us - self._late_us(now_us))

    def _late_us(self, now_us: int) -> int:
        return max(0, now_us - self._ticked_us - self._span_us)


class Patience:
    """How long a transport that was lost is tried to be replaced, before what it carried is given up."""

    __slots__ = ("_futile", "_since_us", "_try_us")

    def __init__(self, try_us: int) -> None:
        self._try_us = try_us
        self._since_us = 0
        self._futile = 0
        """How many transports in a row were lost before anything of ours was answered on them."""

    def lost(self, now_us: int) -> None:
        """A transport is gone. It gives new time, unless it is one more of many that carried nothing."""
        self._futile += 1
        if self._futile <= FUTILE_MAX:
            self._since_us = now_us

    def answered(self) -> None:
        """The peer answered what was said on this transport."""
        self._futile = 0

    def late(self, late_us: int) -> None:
        """This process was late by so much, which is no fault of the peer."""
        self._since_us += late_us

    def over(self, now_us: int) -> bool:
        """Whether it is not tried any more."""
        return now_us - self._since_us > self._try_us
