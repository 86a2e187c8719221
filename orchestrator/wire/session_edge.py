"""The edge's end of a session, as a pure state machine: events in, instructions out.

It holds no socket and no clock. The caller feeds frames, wishes and the time, and carries out what comes back in order.
Promises: a stream number is never used twice; a frame reaches only the attempt it names; tokens arrive without gap or
repeat, or the stream is broken; after one terminal event a stream gets no other.

A session outlives its transport. What was said and may be lost is kept as state, not as a queue: the greeting on the
next transport tells all of it at once. Only when the intake cannot go on, or not in time, are the streams broken.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Sequence
from enum import Enum

import msgspec
from msgspec.structs import replace

from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, EdgeId, PoolId, SessionId
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    SESSION_VERSION,
    SESSION_VERSION_MIN,
    SETTLES_MAX,
    STREAMS_MAX,
    Accepted,
    Beat,
    Broken,
    Cancel,
    Credit,
    Done,
    Draining,
    EdgeFrame,
    Held,
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
from orchestrator.wire.silence import Patience, Silence

TICK_MS = 100
"""How often `tick` is called."""
HELLO_DEADLINE_MS = 5_000
BEAT_BUSY_MS = 250
BEAT_IDLE_MS = 5_000
SUSPECT_BUSY_MS = 750
"""Silence, beyond the round trip, after which a busy session gets no new work."""
DEAD_BUSY_MS = 2_500
DEAD_IDLE_MS = 15_000
REATTACH_TRY_MS = 750
"""How long a lost transport is tried to be replaced before the streams are broken and placement is asked again."""
CREDIT_STEP_BYTES = 8 * 1024
"""Consumed bytes are given back in steps, not one by one. A step is never more than half of the first credit."""
BEATS_MAX = 64
"""Beats without an answer that are remembered; an older one is no longer measured."""
SETTLES_BEAT = 256
"""So many settlements make a beat, whose answer says that they arrived."""
RTT_SAMPLES = 8
"""The round trip is the least of the last beats: what lies above it is somebody's queue, not distance."""


class State(Enum):
    """Where a session stands."""

    GREETING = "greeting"
    LIVE = "live"
    DRAINING = "draining"
    DETACHED = "detached"
    """Its transport is gone, and there is no other yet."""
    REATTACHING = "reattaching"
    """It has greeted on a new transport."""
    CLOSED = "closed"


ATTACHED = (State.LIVE, State.DRAINING)
UNANSWERED = (State.GREETING, State.REATTACHING)
UNHEARD = (State.CLOSED, State.DETACHED)
# In Python 3.11 a member costs several times as much by way of its enumeration, and each frame asks.
_LIVE, _CLOSED = State.LIVE, State.CLOSED


class Send(msgspec.Struct, frozen=True):
    """Put this frame on the wire."""

    frame: EdgeFrame


class Deliver(msgspec.Struct, frozen=True):
    """Hand this frame to the request that waits for `stream`."""

    stream: int
    frame: StreamFrame
    size_bytes: int = 0
    """What a frame of tokens counts against credit."""


class Detach(msgspec.Struct, frozen=True):
    """Give this transport up and dial another at once; the session goes on."""

    reason: str


class Close(msgspec.Struct, frozen=True):
    """Close the transport; the session is over."""

    reason: str


Instruction = Send | Deliver | Detach | Close


class _Stream(msgspec.Struct):
    attempt: AttemptId
    limit_bytes: int
    """All credit that was given."""
    step_bytes: int
    opened: Open | None
    """Kept until the intake shows that it has it."""
    opened_us: int
    received_bytes: int = 0
    next_token: int = 0
    owed_bytes: int = 0
    """Consumed, not yet given back as credit."""
    left: bool = True
    """Whether the attempt may have left; when not, nobody can have begun it."""
    accepted: bool = False
    cancelled: bool = False
    ended: bool = False


class EdgeSession:
    """One session towards one intake. `epoch` grows with each transport, on from the one that it begins with."""

    def __init__(self, edge: EdgeId, session: SessionId, epoch: int = 0) -> None:
        self.edge = edge
        self.session = session
        self.epoch = epoch
        self.state = State.GREETING
        self.welcome: Welcome | None = None
        self.loads: dict[PoolId, tuple[Load, int]] = {}
        """The newest report of each pool, with when the pool was last heard of."""
        self.opened: defaultdict[PoolId, int] = defaultdict(int)  # bounded: by the pools
        """Attempts that were opened since a pool was last heard of."""
        self.rtt_us: int | None = None
        self.skew_ms: int | None = None
        self.dead_frames = 0
        self.reattached = 0
        """How often it went on over a new transport."""
        self._streams: dict[int, _Stream] = {}
        self._streams_max = STREAMS_MAX
        self.next_stream = 1
        """The number that the next `open` must carry. Only the machine sets it."""
        self._beats: dict[int, int] = {}
        self._samples_us: deque[int] = deque(maxlen=RTT_SAMPLES)
        self._last_beat = 0
        self._last_beat_us = 0
        self._silence = Silence(TICK_MS * 1000)
        self._patience = Patience(REATTACH_TRY_MS * 1000)
        self._unheard: deque[Settle] = deque()  # bounded: SETTLES_MAX
        """Settlements that the intake has not said that it took."""
        self._told = 0
        """How many of these the last greeting holds."""
        self._taken = 0
        """How many the intake said it took since then."""
        self._unbeaten = 0
        """Settlements since the last beat."""
        self._wishes: list[EdgeFrame] = []  # bounded: a credit step, a cancel and a settlement for each stream
        """What is to be said as soon as the greeting of a new transport is answered."""

    # The transport

    def connected(self, now_us: int, wall_ms: int) -> list[Instruction]:
        """A transport is open: greet. `now_us` is monotonic, `wall_ms` is the clock that is compared."""
        if self.state not in (State.GREETING, State.DETACHED):
            raise ValueError("a session has one transport at a time")
        self.epoch += 1
        self._silence.begun(now_us)
        self._last_beat_us = now_us
        self._beats = {0: now_us}
        self._wishes = []
        continues = self.welcome is not None
        if continues:
            self.state = State.REATTACHING
        self._told = len(self._unheard)
        held = tuple(_held(number, stream) for number, stream in self._streams.items())
        return [
            Send(
                Hello(
                    SESSION_VERSION_MIN, SESSION_VERSION, self.edge, self.session, self.epoch, wall_ms, STREAMS_MAX,
                    continues, held, tuple(self._unheard),
                )
            )
        ]

    def lost(self, now_us: int, unsent: Collection[EdgeFrame] = ()) -> list[Instruction]:
        """The transport is gone; `unsent` never reached it. A session that was ever live waits for another."""
        for frame in unsent:
            found = self._streams.get(frame.stream) if isinstance(frame, Open) else None
            if found is not None:
                found.left = False
        if self.state is State.GREETING:
            return self.close("session_lost")
        return self._detached(now_us)

    def close(self, reason: str) -> list[Instruction]:
        """The session is over: every stream that has not ended is broken, or refused where it cannot have begun."""
        if self.state is State.CLOSED:
            return []
        self.state = State.CLOSED
        left = [self._broken(number, stream, reason) for number, stream in self._streams.items() if not stream.ended]
        self._streams.clear()
        self._unheard.clear()
        self._wishes.clear()
        return [*left, Close(reason)]

    # Wishes of requests

    def accepts_work(self, now_us: int) -> bool:
        """Whether a new attempt may be opened: live, not suspect, and with a free stream."""
        if self.state is not _LIVE or len(self._streams) >= self._streams_max:
            return False
        limit_us = (SUSPECT_BUSY_MS + (self.rtt_us or 0) // 1000) * 1000
        # Nearly always it was heard just now, and how late we are ourselves does not matter.
        heard = now_us - self._silence.heard_us <= limit_us
        return heard or not self._streams or self._silence.silent_us(now_us) <= limit_us

    def streams(self) -> int:
        """Return how many streams are not settled."""
        return len(self._streams)

    def unheard(self) -> int:
        """Return how many settlements the intake may not have."""
        return len(self._unheard)

    def open(self, attempt: Open, now_us: int) -> list[Instruction]:
        """Send a permitted attempt. Raises ValueError when its number is not the next one, or its credit too small.

        Only a session that `accepts_work` may be asked.
        """
        if attempt.stream != self.next_stream:
            raise ValueError("a stream number is used once, in order")
        if attempt.credit_bytes < CREDIT_BYTES_MIN:
            raise ValueError(f"a stream starts with at least {CREDIT_BYTES_MIN} bytes of credit")
        if self.state is not _LIVE:
            raise ValueError("a session that is not live takes no work")
        self.next_stream += 1
        self.opened[attempt.pool] += 1
        if not self._streams:
            # An idle session was silent by right; suspicion counts from the first work on.
            self._silence.heard_us = max(self._silence.heard_us, now_us)
        credit_bytes = attempt.credit_bytes
        step_bytes = CREDIT_STEP_BYTES if credit_bytes >= 2 * CREDIT_STEP_BYTES else credit_bytes // 2
        self._streams[attempt.stream] = _Stream(attempt.attempt, credit_bytes, step_bytes, attempt, now_us)
        return [Send(attempt)]

    def consumed(self, stream: int, size_bytes: int) -> list[Instruction]:
        """The tenant took `size_bytes` (see `held_bytes`) of the stream: give credit back, in steps."""
        found = self._streams.get(stream)
        if found is None or found.ended:
            return []
        found.owed_bytes += size_bytes
        if found.owed_bytes < found.step_bytes:
            return []
        owed, found.owed_bytes = found.owed_bytes, 0
        found.limit_bytes += owed
        return self._say(Credit(stream, owed))

    def cancel(self, stream: int) -> list[Instruction]:
        """The tenant is gone, or wants no more."""
        found = self._streams.get(stream)
        if found is None or found.ended:
            return []
        found.cancelled = True
        return self._say(Cancel(stream, found.attempt))

    def settle(self, stream: int, counts: EdgeCounts) -> list[Instruction]:
        """Say what was received and delivered; the number is dead from here on."""
        found = self._streams.pop(stream, None)
        if found is None or self.state is _CLOSED:
            return []
        if len(self._unheard) >= SETTLES_MAX:
            return self.close("protocol_violation")  # an intake that answers no beat, or takes nothing
        settle = Settle(stream, found.attempt, counts)
        self._unheard.append(settle)
        self._unbeaten += 1
        return [Send(settle)] if self.state is _LIVE else self._say(settle)

    def beat(self, now_us: int) -> list[Instruction]:
        """Ask for a sign of life now; its answer says which settlements arrived."""
        return self._beat(now_us) if self.state in ATTACHED else []

    # What comes in

    def received(self, epoch: int, frames: Sequence[IntakeFrame], now_us: int, wall_ms: int) -> list[Instruction]:
        """Frames arrived together. Those of another epoch, a dead stream or another attempt are dropped and counted."""
        told: list[Instruction] = []
        streams, silence = self._streams, self._silence
        for frame in frames:
            # That a state is none of some costs more than that it is this one, which it nearly always is.
            live = self.state is _LIVE
            if epoch != self.epoch or (not live and self.state in UNHEARD):
                self.dead_frames += 1
                continue
            silence.heard_us = now_us
            # Asked of its very type: `isinstance` and `match` of a struct that is none cost five times as much.
            if not (
                type(frame) is Tokens or type(frame) is Done or type(frame) is Accepted
                or type(frame) is Refused or type(frame) is Broken
            ):
                told += self._of_session(frame, now_us, wall_ms)
                continue
            if not live and self.state in UNANSWERED:
                told += self.close("protocol_violation")
                continue
            found = streams.get(frame.stream)
            if found is None or found.ended or found.attempt != frame.attempt:
                self.dead_frames += 1
                continue
            if found.opened is not None:
                found.opened = None
            size_bytes, wrong = 0, ""
            if type(frame) is Tokens:
                size_bytes = held_bytes(frame.text, frame.ids)
                found.received_bytes += size_bytes
                if frame.first != found.next_token:
                    wrong = "Tokens arrived with a gap or twice."
                elif found.received_bytes > found.limit_bytes:
                    wrong = "The pool sent more than it had credit for."
                else:
                    found.next_token += frame.count
            elif type(frame) is Accepted:
                found.accepted = True
            elif type(frame) is Refused and found.next_token:
                wrong = "The pool refused what it had begun to answer."
            else:
                found.ended = True
            if wrong:
                told += self._violated(found, frame, wrong)
            else:
                told.append(Deliver(frame.stream, frame, size_bytes))
        return told

    def tick(self, now_us: int) -> list[Instruction]:
        """Time passed: beat, and judge silence. Call it every `TICK_MS`; what it comes later is forgiven the peer."""
        late_us = self._silence.ticked(now_us)
        if self.state is State.CLOSED:
            return []
        if self.state in (State.DETACHED, State.REATTACHING):
            self._patience.late(late_us)
            return self.close("session_lost") if self._patience.over(now_us) else []
        silent_ms = self._silence.silent_us(now_us) // 1000
        if self.state is State.GREETING:
            return self.close("session_lost") if silent_ms > HELLO_DEADLINE_MS else []
        busy = bool(self._streams or self._unheard)
        limit_ms = (DEAD_BUSY_MS if busy else DEAD_IDLE_MS) + 2 * (self.rtt_us or 0) // 1000
        if silent_ms > limit_ms:
            return [*self._detached(now_us), Detach("silent")]
        waited_us = now_us - self._last_beat_us
        if waited_us >= (BEAT_BUSY_MS if busy else BEAT_IDLE_MS) * 1000 or self._unbeaten >= SETTLES_BEAT:
            return self._beat(now_us)
        return []

    # Inside

    def _say(self, frame: Credit | Cancel | Settle) -> list[Instruction]:
        """Send what the state holds already: without a transport the next greeting tells it."""
        if self.state in ATTACHED:
            return [Send(frame)]
        if self.state is State.REATTACHING:
            self._wishes.append(frame)
        return []

    def _detached(self, now_us: int) -> list[Instruction]:
        if self.state in ATTACHED:
            # A transport that is lost before its greeting is answered gives no new time.
            self._patience.lost(now_us)
        if self.state is not State.CLOSED:
            self.state = State.DETACHED
        return []

    def _greeted(self, welcome: Welcome, now_us: int, wall_ms: int) -> list[Instruction]:
        before = self.welcome
        if self.state not in UNANSWERED or not SESSION_VERSION_MIN <= welcome.version <= SESSION_VERSION:
            return self.close("protocol_violation")
        if before is not None and welcome.process.index != before.process.index:
            # Of the processes behind one address another one answered; the next transport may find the right one.
            return [*self._detached(now_us), Detach("another process")]
        if before is not None and (not welcome.continued or welcome.instance != before.instance):
            return self.close("session_lost")
        self.welcome = welcome
        self._streams_max = min(STREAMS_MAX, welcome.streams_max)
        self.state = State.LIVE
        # The greeting's round trip holds the dialling too, so it bounds the skew but is no measure of the distance.
        self.skew_ms = welcome.now_ms + (now_us - self._beats.pop(0)) // 2000 - wall_ms
        for load in welcome.loads:
            self.loads[load.pool] = (load, now_us)
            self.opened[load.pool] = 0
        return [*(self._continued(welcome, now_us) if before is not None else ()), *self._beat(now_us)]

    def _continued(self, welcome: Welcome, now_us: int) -> list[Instruction]:
        """Go on: break what the intake has not, send again what never reached it, and say what was wished meanwhile."""
        self.reattached += 1
        for _ in range(self._told):
            self._unheard.popleft()
        self._taken = 0
        out: list[Instruction] = []
        gone = set(welcome.gone)
        for number, stream in self._streams.items():
            if stream.ended:
                continue
            if number in gone or (number > welcome.last_stream and stream.opened is None):
                stream.ended = True
                out.append(self._broken(number, stream, "session_lost"))
            elif number <= welcome.last_stream:
                stream.opened = None
            elif stream.cancelled:
                stream.ended, stream.left = True, False
                out.append(self._broken(number, stream, "session_lost"))
            elif stream.opened is not None:
                stream.left = True
                spent_ms = (now_us - stream.opened_us) // 1000
                budget_ms = max(0, stream.opened.budget_ms - spent_ms)
                out.append(Send(replace(stream.opened, budget_ms=budget_ms)))
        out += [Send(frame) for frame in self._wishes]
        self._wishes = []
        return out

    def _beat(self, now_us: int) -> list[Instruction]:
        self._last_beat += 1
        self._beats[self._last_beat] = now_us
        if len(self._beats) > BEATS_MAX:
            # An intake may speak and never answer a beat.
            del self._beats[next(iter(self._beats))]
        self._last_beat_us = now_us
        self._unbeaten = 0
        return [Send(Beat(self._last_beat))]

    def _beaten(self, beat: Beat, now_us: int) -> list[Instruction]:
        if not beat.answers:
            return [Send(Beat(0, beat.number))]
        sent_us = self._beats.pop(beat.answers, None)
        if sent_us is not None:
            self._patience.answered()
            self._samples_us.append(now_us - sent_us)
            self.rtt_us = min(self._samples_us)
        if not self._taken <= beat.settled <= self._taken + len(self._unheard):
            return self.close("protocol_violation")
        while self._taken < beat.settled:
            self._unheard.popleft()
            self._taken += 1
        return []

    def _of_session(self, frame: IntakeFrame, now_us: int, wall_ms: int) -> list[Instruction]:
        """A frame of the session as a whole arrived."""
        if type(frame) is Welcome:
            return self._greeted(frame, now_us, wall_ms)
        if self.state in UNANSWERED:
            return self.close("protocol_violation")
        if type(frame) is Load:
            held = self.loads.get(frame.pool)
            newest = frame if held is None or frame.number > held[0].number else held[0]
            self.loads[frame.pool] = (newest, now_us)
            self.opened[frame.pool] = 0
        elif type(frame) is Beat:
            return self._beaten(frame, now_us)
        elif type(frame) is Draining:
            self.state = State.DRAINING
        return []

    def _violated(self, found: _Stream, frame: StreamFrame, detail: str) -> list[Instruction]:
        found.ended = found.cancelled = True
        broken = Broken(frame.stream, frame.attempt, "protocol_violation", detail, PoolCounts())
        return [*self._say(Cancel(frame.stream, frame.attempt)), Deliver(frame.stream, broken)]

    @staticmethod
    def _broken(number: int, stream: _Stream, reason: str) -> Deliver:
        stream.ended = True
        if not stream.left:
            detail = "The attempt did not leave before the link to the pool was lost."
            return Deliver(number, Refused(number, stream.attempt, "engine_unreachable", detail))
        detail = "The session with the pool ended."
        return Deliver(number, Broken(number, stream.attempt, reason, detail, PoolCounts()))


def _held(number: int, stream: _Stream) -> Held:
    return Held(
        number, stream.attempt, stream.accepted, stream.next_token, stream.received_bytes, stream.limit_bytes,
        stream.cancelled, stream.ended,
    )
