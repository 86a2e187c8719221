"""What comes of one attempt over a session and waits for its tenant. Thin I/O: one task takes, the session puts.

A stream is on the path of every token, and there is one for every answer that runs: so it is one small object, and a
frame that has come is handed on by one call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from node_agent.uplink.sending import Tally, overdue
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import AttemptId
from orchestrator.wire.deadlines import Deadlines
from orchestrator.wire.frames import FRAME_BYTES, Accepted, Broken, StreamFrame, Tokens
from orchestrator.wire.session_edge import CREDIT_STEP_BYTES, Deliver, EdgeSession, Instruction

NEVER_US = 1 << 62
CREDIT_BYTES = 64 * 1024
"""What the edge is ready to hold of one answer."""
FRAMES_MAX = CREDIT_BYTES // FRAME_BYTES + 8
"""Of the frames of one stream that wait for the tenant. Credit lets in no more tokens; other frames cost none."""
AHEAD_US = 5_000_000
"""The timer is set no further ahead. Of two waits the second often may not be as long as the first: while both may be
longer than this, the timer stays as it is."""
APART_US = 5_000
"""It rings no sooner after it rang, however many waits end one after the other: it looks at every stream."""


class Streams:
    """The streams of one link by their attempt, and one timer for all that wait: one for each costs more than its wait.

    Stream numbers begin again with every session, and an old stream may still be read out; attempts are never the same.
    """

    __slots__ = ("_handle", "by_attempt", "rings_us")

    def __init__(self) -> None:
        self.by_attempt: dict[AttemptId, Stream] = {}
        self.rings_us = NEVER_US
        """When it looks for waits that are over. One that is over sooner calls `ring_by`."""
        self._handle: asyncio.Handle | None = None

    def ring_by(self, until_us: int, now_us: int) -> None:
        """A wait begins that is over sooner than the timer rings."""
        if self._handle is not None:
            self._handle.cancel()
        self.rings_us = min(until_us, now_us + AHEAD_US)
        loop = asyncio.get_running_loop()
        self._handle = loop.call_later((self.rings_us - now_us) / 1_000_000, self._ring)

    def off(self) -> None:
        """Nothing waits any more."""
        if self._handle is not None:
            self._handle.cancel()
        self._handle, self.rings_us = None, NEVER_US

    def _ring(self) -> None:
        self._handle, self.rings_us = None, NEVER_US
        now_us, next_us = time.monotonic_ns() // 1000, NEVER_US
        for stream in self.by_attempt.values():
            next_us = min(next_us, stream.looked_at(now_us))
        if next_us < NEVER_US:
            self.ring_by(max(next_us, now_us + APART_US), now_us)


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
        "_taken_bytes",
        "_tally",
        "_until_us",
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
        among: Streams,
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """`act` carries out what `machine` asks for; `among` are the streams of its link, of which it is one."""
        self._number = number
        self._attempt = attempt
        self._tally = tally
        self._machine = machine
        self._act = act
        self._among = among
        self._loop = loop
        self._deadlines = deadlines
        self._waiter: asyncio.Future[None] | None = None
        """What its task awaits."""
        self._until_us = 0
        """When the last wait that began is over."""
        self._frames: list[Deliver] = []  # bounded: by credit, and FRAMES_MAX
        self._given_count = self._given_bytes = 0
        """Of the tokens that the tenant has not shown to have taken."""
        self._taken_bytes = 0
        """Of those that it has taken, and the machine was not told of."""
        self._ended = self._closed = False
        among.by_attempt[attempt] = self

    def put(self, told: Deliver) -> None:
        """Let a frame wait, after those that were put before."""
        frame, waiter = told.frame, self._waiter
        if type(frame) is Tokens:
            self._tally.received += frame.count  # credit bounds these
        elif len(self._frames) >= FRAMES_MAX:
            told = self._flooded(told)
            frame = told.frame
        self._frames.append(told)
        # That it was accepted is told with what comes next: it changes nothing for a tenant, and waking costs.
        if waiter is not None and type(frame) is not Accepted:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def next(self, now_us: int) -> StreamFrame | None:
        """See `Sending`. One task awaits it at a time."""
        if self._ended:
            return None
        if self._given_bytes:
            self._tally.delivered += self._given_count
            self._taken_bytes += self._given_bytes
            self._given_bytes = 0
            if self._taken_bytes >= CREDIT_STEP_BYTES:
                # For less it gives no credit: a call for each frame would be for nothing.
                self._act(self._machine.consumed(self._number, self._taken_bytes))
                self._taken_bytes = 0
        frames, left_us = self._frames, self._deadlines.left_us(now_us)
        if left_us and not frames:
            self._waiter = waiter = self._loop.create_future()
            self._until_us = until_us = now_us + left_us
            if until_us < self._among.rings_us:
                self._among.ring_by(until_us, now_us)
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
        if self._waiter is not None:
            self._wake(self._waiter)
        machine, number, tally = self._machine, self._number, self._tally
        told = None if ended else machine.cancel(number)
        settled = machine.settle(number, tally.counts())
        self._act(told + settled if told else settled)
        self._among.by_attempt.pop(self._attempt, None)

    def looked_at(self, now_us: int) -> int:
        """Wake whoever waits if its time is over. Returns when it will be; `NEVER_US` where nobody waits any more."""
        if self._waiter is None:
            return NEVER_US
        if now_us < self._until_us:
            return self._until_us
        self._wake(self._waiter)
        return NEVER_US

    def _wake(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = None
        if not waiter.done():  # its task may have been cancelled
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
