"""What comes of one attempt over a session and waits for its tenant. Thin I/O: one task takes, the session puts.

A stream is on the path of every token, and there is one for every answer that runs: so it is one small object, and a
frame that has come is handed on by one call.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from node_agent.alarm import Timer
from node_agent.uplink.sending import Tally, overdue
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import AttemptId
from orchestrator.wire.deadlines import Deadlines
from orchestrator.wire.frames import FRAME_BYTES, Accepted, Broken, StreamFrame, Tokens
from orchestrator.wire.session_edge import Deliver, EdgeSession, Instruction

CREDIT_BYTES = 64 * 1024
"""What the edge is ready to hold of one answer."""
FRAMES_MAX = CREDIT_BYTES // FRAME_BYTES + 8
"""Frames of one stream that wait for the tenant: as many as credit lets in, and those that cost none."""


class Stream:
    """One attempt that left by a session."""

    __slots__ = (
        "_act",
        "_among",
        "_attempt",
        "_closed",
        "_deadlines",
        "_ended",
        "_frames",
        "_given_bytes",
        "_given_count",
        "_loop",
        "_machine",
        "_number",
        "_tally",
        "_timer",
        "_waiter",
    )

    def __init__(
        self,
        number: int,
        attempt: AttemptId,
        tally: Tally,
        deadlines: Deadlines,
        machine: EdgeSession,
        act: Callable[[list[Instruction]], None],
        among: dict[AttemptId, Stream],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`act` carries out what `machine` asks for; `among` is where the session finds its streams."""
        self._number = number
        self._attempt = attempt
        self._tally = tally
        self._machine = machine
        self._act = act
        self._among = among
        self._loop = loop
        self._deadlines = deadlines
        self._timer = Timer(loop, self._wake)
        self._waiter: asyncio.Future[None] | None = None
        self._frames: list[Deliver] = []  # bounded: FRAMES_MAX
        self._given_count = self._given_bytes = 0
        """Of the tokens that the tenant has not shown to have taken."""
        self._ended = self._closed = False
        among[attempt] = self

    def put(self, told: Deliver) -> None:
        """Let a frame wait, after those that were put before."""
        frame = told.frame
        if type(frame) is Tokens:
            self._tally.received += frame.count
        if len(self._frames) >= FRAMES_MAX:
            told = self._flooded(told)
        self._frames.append(told)
        if self._waiter is not None:
            self._wake()

    async def next(self, now_us: int) -> StreamFrame | None:
        """See `Sending`. One task awaits it at a time."""
        if self._ended:
            return None
        if self._given_bytes:
            self._tally.delivered += self._given_count
            credit = self._machine.consumed(self._number, self._given_bytes)
            self._given_bytes = 0
            if credit:
                self._act(credit)
        frames, left_us = self._frames, self._deadlines.left_us(now_us)
        if left_us and not frames:
            self._waiter = waiter = self._loop.create_future()
            self._timer.within(left_us / 1_000_000)
            await waiter
            if self._closed:
                return None  # it was closed meanwhile
        # Also where frames are ready: an answer that never ends is ended.
        if not left_us or not frames:
            await self.close()
            return overdue(self._attempt, self._deadlines)
        told = frames.pop(0)
        frame = told.frame
        if type(frame) is Tokens:
            self._deadlines.begun = True
            size_bytes = told.size_bytes
            if frames and type(frames[0].frame) is Tokens:
                frame, size_bytes = _gathered(frame, size_bytes, frames)
            self._given_count, self._given_bytes = frame.count, size_bytes
        elif type(frame) is not Accepted:
            self._ended = True
        return frame

    async def close(self) -> None:
        """See `Sending`."""
        if self._closed:
            return
        ended, self._ended, self._closed = self._ended, True, True
        self._timer.off()
        self._wake()
        if not ended:
            self._act(self._machine.cancel(self._number))
        self._act(self._machine.settle(self._number, self._tally.counts()))
        self._among.pop(self._attempt, None)

    def _wake(self) -> None:
        """Something came, or the time for it is over: whoever waits looks."""
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    def _flooded(self, told: Deliver) -> Deliver:
        """Return the end of a stream that has more frames than any.

        Credit bounds the tokens; only frames that cost none, sent again and again, come here. Everything that waits is
        dropped, so that the tenant gets a prefix and never a gap.
        """
        self._frames.clear()
        detail = "The pool sent more frames than a stream has."
        return Deliver(told.stream, Broken(told.stream, self._attempt, "protocol_violation", detail, PoolCounts()))


def _gathered(first: Tokens, size_bytes: int, waiting: list[Deliver]) -> tuple[Tokens, int]:
    """Return tokens that came together as one frame, with what they count against credit, and take them."""
    texts, ids, count = [first.text], list(first.ids), first.count
    while waiting and type(frame := waiting[0].frame) is Tokens:
        size_bytes += waiting.pop(0).size_bytes
        texts.append(frame.text)
        ids += frame.ids
        count += frame.count
    return Tokens(first.stream, first.attempt, first.first, count, "".join(texts), tuple(ids)), size_bytes
