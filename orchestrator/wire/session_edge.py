"""The edge's end of a session, as a pure state machine: events in, instructions out.

It holds no socket and no clock. The caller feeds frames, wishes and the time, and carries out what comes back in order.
Promises: a stream number is never used twice; a frame reaches only the attempt it names; tokens arrive without gap or
repeat, or the stream is broken; after one terminal event a stream gets no other.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from enum import Enum

from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, EdgeId, PoolId, SessionId
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    SESSION_VERSION,
    SESSION_VERSION_MIN,
    Beat,
    Broken,
    Cancel,
    Credit,
    Done,
    Draining,
    EdgeFrame,
    Hello,
    IntakeFrame,
    Load,
    Open,
    Refused,
    Settle,
    StreamFrame,
    Tokens,
    Welcome,
    held_bytes,
)

STREAMS_MAX = 4_096
"""Streams that one session holds at once."""
HELLO_DEADLINE_MS = 5_000
BEAT_BUSY_MS = 250
BEAT_IDLE_MS = 5_000
SUSPECT_BUSY_MS = 750
"""Silence, beyond the round trip, after which a busy session gets no new work."""
DEAD_BUSY_MS = 2_500
DEAD_IDLE_MS = 15_000
CREDIT_STEP_BYTES = 8 * 1024
"""Consumed bytes are given back in steps, not one by one. A step is never more than half of the first credit."""
BEATS_MAX = 64
"""Beats without an answer that are remembered; an older one is no longer measured."""
RTT_SAMPLES = 8
"""The round trip is the least of the last beats: what lies above it is somebody's queue, not distance."""


class State(Enum):
    """Where a session stands."""

    GREETING = "greeting"
    LIVE = "live"
    DRAINING = "draining"
    CLOSED = "closed"


@dataclass(frozen=True, slots=True)
class Send:
    """Put this frame on the wire."""

    frame: EdgeFrame


@dataclass(frozen=True, slots=True)
class Deliver:
    """Hand this frame to the request that waits for `stream`."""

    stream: int
    frame: StreamFrame


@dataclass(frozen=True, slots=True)
class Close:
    """Close the transport; the session is over."""

    reason: str


Instruction = Send | Deliver | Close


@dataclass(slots=True)
class _Stream:
    attempt: AttemptId
    credit_bytes: int
    """What the intake may still send."""
    step_bytes: int
    next_token: int = 0
    owed_bytes: int = 0
    """Consumed, not yet given back as credit."""
    ended: bool = False


class EdgeSession:
    """One session towards one intake. `epoch` tells it from every other session between the two."""

    def __init__(self, edge: EdgeId, session: SessionId, epoch: int) -> None:
        self.edge = edge
        self.session = session
        self.epoch = epoch
        self.state = State.GREETING
        self.welcome: Welcome | None = None
        self.loads: dict[PoolId, Load] = {}
        self.rtt_us: int | None = None
        self.skew_ms: int | None = None
        self.dead_frames = 0
        self._streams: dict[int, _Stream] = {}
        self._last_stream = 0
        self._beats: dict[int, int] = {}
        self._samples_us: deque[int] = deque(maxlen=RTT_SAMPLES)
        self._last_beat = 0
        self._last_beat_us = 0
        self._last_heard_us = 0

    def connected(self, now_us: int, wall_ms: int) -> list[Instruction]:
        """The transport is open: greet. `now_us` is monotonic, `wall_ms` is the clock that is compared."""
        self._last_beat_us = self._last_heard_us = now_us
        hello = Hello(
            SESSION_VERSION_MIN, SESSION_VERSION, self.edge, self.session, self.epoch, wall_ms, STREAMS_MAX
        )
        self._beats[0] = now_us
        return [Send(hello)]

    def accepts_work(self, now_us: int) -> bool:
        """Whether a new attempt may be opened: live, not suspect, and with a free stream."""
        if self.state is not State.LIVE or len(self._streams) >= self._streams_max():
            return False
        silent_us = now_us - self._last_heard_us
        limit_ms = SUSPECT_BUSY_MS + (self.rtt_us or 0) // 1000
        return not self._streams or silent_us <= limit_ms * 1000

    def streams(self) -> int:
        """Return how many streams are not settled."""
        return len(self._streams)

    def next_stream(self) -> int:
        """Return the number that the next `open` must carry."""
        return self._last_stream + 1

    def open(self, attempt: Open, now_us: int) -> list[Instruction]:
        """Send a permitted attempt. Raises ValueError when its number is not the next one, or its credit too small."""
        if attempt.stream != self.next_stream():
            raise ValueError("a stream number is used once, in order")
        if attempt.credit_bytes < CREDIT_BYTES_MIN:
            raise ValueError(f"a stream starts with at least {CREDIT_BYTES_MIN} bytes of credit")
        self._last_stream = attempt.stream
        if not self._streams:
            # An idle session was silent by right; suspicion counts from the first work on.
            self._last_heard_us = max(self._last_heard_us, now_us)
        step_bytes = min(CREDIT_STEP_BYTES, attempt.credit_bytes // 2)
        self._streams[attempt.stream] = _Stream(attempt.attempt, attempt.credit_bytes, step_bytes)
        return [Send(attempt)]

    def received(self, epoch: int, frame: IntakeFrame, now_us: int, wall_ms: int) -> list[Instruction]:
        """A frame arrived. Frames of another epoch, a dead stream or another attempt are dropped and counted."""
        if self.state is State.CLOSED or epoch != self.epoch:
            self.dead_frames += 1
            return []
        self._last_heard_us = now_us
        if isinstance(frame, Welcome):
            return self._greeted(frame, now_us, wall_ms)
        if self.state is State.GREETING:
            return self._close("protocol_violation")
        if isinstance(frame, Load):
            held = self.loads.get(frame.pool)
            if held is None or frame.number > held.number:
                self.loads[frame.pool] = frame
            return []
        if isinstance(frame, Beat):
            return self._beaten(frame, now_us)
        if isinstance(frame, Draining):
            self.state = State.DRAINING
            return []
        return self._streamed(frame)

    def consumed(self, stream: int, size_bytes: int) -> list[Instruction]:
        """The tenant took `size_bytes` (see `held_bytes`) of the stream: give credit back, in steps."""
        found = self._streams.get(stream)
        if found is None or found.ended:
            return []
        found.owed_bytes += size_bytes
        if found.owed_bytes < found.step_bytes:
            return []
        owed, found.owed_bytes = found.owed_bytes, 0
        found.credit_bytes += owed
        return [Send(Credit(stream, owed))]

    def cancel(self, stream: int) -> list[Instruction]:
        """The tenant is gone, or wants no more."""
        found = self._streams.get(stream)
        if found is None or found.ended:
            return []
        return [Send(Cancel(stream, found.attempt))]

    def settle(self, stream: int, counts: EdgeCounts) -> list[Instruction]:
        """Say what was received and delivered; the number is dead from here on."""
        found = self._streams.pop(stream, None)
        if found is None or self.state is State.CLOSED:
            return []
        return [Send(Settle(stream, found.attempt, counts))]

    def tick(self, now_us: int) -> list[Instruction]:
        """Time passed: beat, and judge silence. Call it at least every 100 ms."""
        if self.state is State.CLOSED:
            return []
        silent_ms = (now_us - self._last_heard_us) // 1000
        if self.state is State.GREETING:
            return self._close("session_lost") if silent_ms > HELLO_DEADLINE_MS else []
        busy = bool(self._streams)
        limit_ms = (DEAD_BUSY_MS if busy else DEAD_IDLE_MS) + 2 * (self.rtt_us or 0) // 1000
        if silent_ms > limit_ms:
            return self._close("session_lost")
        if now_us - self._last_beat_us >= (BEAT_BUSY_MS if busy else BEAT_IDLE_MS) * 1000:
            return self._beat(now_us)
        return []

    def lost(self, reason: str) -> list[Instruction]:
        """The transport is gone: every stream that has not ended is broken."""
        return self._close(reason)

    def _streams_max(self) -> int:
        offered = STREAMS_MAX if self.welcome is None else self.welcome.streams_max
        return min(STREAMS_MAX, offered)

    def _greeted(self, welcome: Welcome, now_us: int, wall_ms: int) -> list[Instruction]:
        if self.state is not State.GREETING:
            return self._close("protocol_violation")
        if not SESSION_VERSION_MIN <= welcome.version <= SESSION_VERSION:
            return self._close("protocol_violation")
        self.welcome = welcome
        self.state = State.LIVE
        # The greeting's round trip holds the dialling too, so it bounds the skew but is no measure of the distance.
        self.skew_ms = welcome.now_ms + (now_us - self._beats.pop(0)) // 2000 - wall_ms
        for load in welcome.loads:
            self.loads[load.pool] = load
        return self._beat(now_us)

    def _beat(self, now_us: int) -> list[Instruction]:
        self._last_beat += 1
        self._beats[self._last_beat] = now_us
        if len(self._beats) > BEATS_MAX:
            # An intake may speak and never answer a beat.
            del self._beats[next(iter(self._beats))]
        self._last_beat_us = now_us
        return [Send(Beat(self._last_beat))]

    def _beaten(self, beat: Beat, now_us: int) -> list[Instruction]:
        if beat.answers:
            sent_us = self._beats.pop(beat.answers, None)
            if sent_us is not None:
                self._measure(now_us - sent_us)
            return []
        return [Send(Beat(0, beat.number))]

    def _measure(self, sample_us: int) -> None:
        self._samples_us.append(sample_us)
        self.rtt_us = min(self._samples_us)

    def _streamed(self, frame: StreamFrame) -> list[Instruction]:
        found = self._streams.get(frame.stream)
        if found is None or found.ended or found.attempt != frame.attempt:
            self.dead_frames += 1
            return []
        if isinstance(frame, Tokens):
            found.credit_bytes -= held_bytes(frame.text, frame.ids)
            if frame.first != found.next_token:
                return self._violated(found, frame, "Tokens arrived with a gap or twice.")
            if found.credit_bytes < 0:
                return self._violated(found, frame, "The pool sent more than it had credit for.")
            found.next_token += frame.count
        elif isinstance(frame, Refused) and found.next_token:
            return self._violated(found, frame, "The pool refused what it had begun to answer.")
        elif isinstance(frame, Done | Broken | Refused):
            found.ended = True
        return [Deliver(frame.stream, frame)]

    def _violated(self, found: _Stream, frame: StreamFrame, detail: str) -> list[Instruction]:
        found.ended = True
        broken = Broken(frame.stream, frame.attempt, "protocol_violation", detail, PoolCounts())
        return [Send(Cancel(frame.stream, frame.attempt)), Deliver(frame.stream, broken)]

    def _close(self, reason: str) -> list[Instruction]:
        if self.state is State.CLOSED:
            return []
        self.state = State.CLOSED
        found: list[Instruction] = []
        for number, stream in self._streams.items():
            if not stream.ended:
                stream.ended = True
                detail = "The session with the pool ended."
                found.append(Deliver(number, Broken(number, stream.attempt, reason, detail, PoolCounts())))
        self._streams.clear()
        found.append(Close(reason))
        return found
