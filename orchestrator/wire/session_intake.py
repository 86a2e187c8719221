"""The intake's end of a session, as a pure state machine: events in, instructions out.

Credit bounds memory, not the engine: an engine may run ahead of a slow tenant within `AHEAD_BYTES_MAX` and the largest
delta that it made at once. Before that it is held back, for as long as the tenant takes a step of it in time: more than
any engine makes for one who reads. Otherwise, or where it cannot be held, the stream is broken as
`slow_reader` and its slot is free: nothing parks a running slot.

A session outlives its transport for a while. What was sent is kept until credit shows that it was read, and the last
frame until the settlement; the greeting of the next transport says from where each stream goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec
from msgspec.structs import replace

from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, EdgeId, ReplicaId, SchedulerId, SessionId
from orchestrator.wire.frames import (
    ALONE,
    FRAME_BYTES,
    PIECE_BYTES_MAX,
    SESSION_VERSION,
    SESSION_VERSION_MIN,
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
    Process,
    Refused,
    Settle,
    Welcome,
)
from orchestrator.wire.intake_stream import AHEAD_BYTES_MAX, GoOn, Hold, Stream, counted, too_slow
from orchestrator.wire.session_edge import ATTACHED, DEAD_BUSY_MS, DEAD_IDLE_MS, UNHEARD, State
from orchestrator.wire.silence import Silence

UNSETTLED_FACTOR = 2
"""A session may hold this many times its streams before it is closed: an edge that never settles."""
TICK_MS = 250
"""How often `tick` is called."""
REATTACH_MS = 3_000
"""How long a session without a transport is kept. Its edge tries for less; the rest is for what is on its way."""
# In Python 3.11 a member costs several times as much by way of its enumeration, and each frame asks.
_GREETING, _DETACHED, _DRAINING = State.GREETING, State.DETACHED, State.DRAINING


class Send(msgspec.Struct, frozen=True):
    """Put this frame on the wire."""

    frame: IntakeFrame


class Start(msgspec.Struct, frozen=True):
    """A new attempt wants to be permitted, queued and run."""

    open: Open
    arrived_us: int


class Stop(msgspec.Struct, frozen=True):
    """Stop the work of this stream; nobody waits for it."""

    stream: int
    reason: str


class Settled(msgspec.Struct, frozen=True):
    """The edge said what it received and delivered, or is gone (`counts` is None)."""

    stream: int
    attempt: AttemptId
    counts: EdgeCounts | None
    sent: int
    """Tokens of this stream that were put on the wire."""


class Detach(msgspec.Struct, frozen=True):
    """Give this transport up; the session waits for another."""

    reason: str


class Close(msgspec.Struct, frozen=True):
    """Close the transport; the session is over."""

    reason: str


Instruction = Send | Start | Stop | Hold | GoOn | Settled | Detach | Close


class IntakeSession:
    """One session with one edge."""

    def __init__(
        self,
        scheduler: SchedulerId,
        instance: str,
        streams_max: int = STREAMS_MAX,
        reattach_ms: int = REATTACH_MS,
        process: Process = ALONE,
    ) -> None:
        self.scheduler = scheduler
        self.instance = instance
        self.streams_max = streams_max
        self._unsettled_max = UNSETTLED_FACTOR * streams_max
        self.reattach_ms = reattach_ms
        self.process = process
        self.state = State.GREETING
        self.edge: EdgeId | None = None
        self.session: SessionId | None = None
        self.epoch = 0
        self.skew_ms: int | None = None
        self.dead_frames = 0
        self.reattached = 0
        """How often it went on over a new transport."""
        self.detached_bytes = 0
        """What is held of answers while there is no transport."""
        self._streams: dict[int, Stream] = {}
        self._holding: set[int] = set()  # bounded: by the streams, and those that ended since the last tick
        """Streams whose engines may be held back."""
        self._last_stream = 0
        self._silence = Silence(TICK_MS * 1000)
        self._detached_us = 0
        self._settles = 0
        """Settlements since the greeting."""
        self._grace_ms: int | None = None
        """Set when it drains."""

    def connected(self, now_us: int) -> None:
        """A transport is open; the edge speaks first."""
        self._silence.begun(now_us)

    def is_attached(self) -> bool:
        """Whether there is a transport whose greeting was answered."""
        return self.state in ATTACHED

    def is_detached(self) -> bool:
        """Whether it waits for its edge to come back."""
        return self.state is State.DETACHED

    def is_over(self) -> bool:
        """Whether nothing comes of it any more."""
        return self.state is State.CLOSED

    def streams(self) -> int:
        """Return how many streams are not settled."""
        return len(self._streams)

    def greeted(
        self, epoch: int, hello: Hello, now_us: int, wall_ms: int, loads: tuple[Load, ...]
    ) -> list[Instruction]:
        """A greeting arrived, first on its transport. `loads` is what it is answered with.

        One of a later epoch is a new transport of this session, also when the old one only seems to be alive.
        """
        if self.state is State.CLOSED or (epoch <= self.epoch and self.state is not State.GREETING):
            return self.received(epoch, [hello], now_us)
        self._silence.begun(now_us)
        return self._greet(hello, epoch, now_us, wall_ms, loads)

    def received(self, epoch: int, frames: Sequence[EdgeFrame], now_us: int) -> list[Instruction]:
        """Frames arrived together, after the greeting of their transport."""
        told: list[Instruction] = []
        for frame in frames:
            if self.state is _GREETING:
                told += self.close("protocol_violation")
            elif epoch != self.epoch or self.state in UNHEARD:
                self.dead_frames += 1
            else:
                self._silence.heard_us = now_us
                # Asked of its very type: `match` of a struct that is none costs five times as much.
                if type(frame) is Open:
                    told += self._open(frame, now_us)
                elif type(frame) is Settle or type(frame) is Credit or type(frame) is Cancel:
                    told += self._streamed(frame)
                elif type(frame) is Beat:
                    told += [] if frame.answers else [Send(Beat(0, frame.number, self._settles))]
                elif type(frame) is Hello:
                    told += self.close("protocol_violation")  # one transport greets once
        return told

    def unreadable(self, epoch: int, stream: int, attempt: AttemptId, field: str) -> list[Instruction]:
        """An attempt arrived that cannot be read, such as one with a label this version does not know: refuse it.

        Only that stream suffers; the session and its other streams go on.
        """
        if self.state is State.GREETING:
            return self.close("protocol_violation")
        if not self.is_attached() or epoch != self.epoch:
            self.dead_frames += 1
            return []
        if stream <= self._last_stream or len(self._streams) >= self._unsettled_max:
            return self.close("protocol_violation")
        self._last_stream = stream
        found = Stream(attempt, 0, 0)
        self._streams[stream] = found
        detail = f"The pool's side cannot read the field {field}."
        found.last = Refused(stream, attempt, "policy_stale", detail)
        return self._flush(stream, found)

    def accepted(
        self, stream: int, replica: ReplicaId, continuing: Continuing = NOT_CONTINUED
    ) -> list[Instruction]:
        """A replica has the work of `stream`; `continuing` is what its answer could be continued by."""
        found = self._streams.get(stream)
        if found is None or found.last is not None:
            return []
        found.accepted = Accepted(stream, found.attempt, replica, continuing)
        return [Send(found.accepted)] if self.state in ATTACHED else []

    def refused(
        self,
        stream: int,
        code: str,
        detail: str,
        param: str | None = None,
        rules: tuple[str, ...] = (),
        retry_after_ms: int | None = None,
    ) -> list[Instruction]:
        """Nothing was generated for `stream`."""
        found = self._streams.get(stream)
        if found is None or found.last is not None:
            return []
        found.last = Refused(stream, found.attempt, code, detail, param, rules, retry_after_ms)
        return self._flush(stream, found)

    def tokens(self, stream: int, text: str, ids: tuple[int, ...], count: int) -> list[Instruction]:
        """The engine made tokens: send what credit allows, hold the rest, break a reader that is too slow."""
        found = self._streams.get(stream)
        if found is None or found.last is not None or found.cancelled:
            return []
        size_bytes = len(text.encode()) + (4 * len(ids) if ids else 0)
        fits = 0 < size_bytes <= PIECE_BYTES_MAX and size_bytes <= found.limit_bytes - found.sent_bytes - FRAME_BYTES
        if fits and not found.ready and self.state is not _DETACHED:
            # Nearly always: nothing waits, and it fits.
            return [Send(found.frame(stream, text, ids, count, FRAME_BYTES + size_bytes))]
        if size_bytes > PIECE_BYTES_MAX and size_bytes > found.largest_bytes:
            # What comes at once says nothing of its reader, who had no time yet to take any of it.
            found.largest_bytes = size_bytes
        ahead_bytes = AHEAD_BYTES_MAX + found.largest_bytes
        if found.ready_bytes + size_bytes > found.limit_bytes - found.sent_bytes + ahead_bytes:
            return self._too_slow(stream, found)
        if self.state is State.DETACHED:
            self.detached_bytes += size_bytes
        found.add(text, ids, count, size_bytes)
        told = self._flush(stream, found)
        if found.is_ahead():
            self._holding.add(stream)
            told.append(Hold(stream))
        return told

    def done(
        self, stream: int, reason: str, counts: PoolCounts, queued_us: int | None = None, beside: int | None = None
    ) -> list[Instruction]:
        """The engine finished `stream`. The frame leaves after the last token."""
        found = self._streams.get(stream)
        if found is None or found.last is not None:
            return []
        # Nobody reads what came after the cancel, so the answer is not complete, however the engine ended.
        said = "cancelled" if found.cancelled else reason
        # What was sent by now is all, unless more is held back.
        counts = PoolCounts(counts.prompt, counts.cached, counts.generated, found.sent_tokens)
        found.last = done = Done(stream, found.attempt, said, counts, queued_us, beside)
        if found.ready or self.state is _DETACHED:
            return self._flush(stream, found)
        found.ended = True
        return [Send(done)]

    def broken(self, stream: int, code: str, detail: str, counts: PoolCounts) -> list[Instruction]:
        """The engine failed `stream`. The frame leaves after the last token that was made."""
        found = self._streams.get(stream)
        if found is None or found.last is not None:
            return []
        found.last = Broken(stream, found.attempt, code, detail, counts)
        return self._flush(stream, found)

    def load(self, load: Load) -> list[Instruction]:
        """Report the state of a pool."""
        return [Send(load)] if self.is_attached() else []

    def drain(self, grace_ms: int) -> list[Instruction]:
        """Take no new work. A session without a transport hears of it when it has one."""
        self._grace_ms = grace_ms
        if self.state is not State.LIVE:
            return []
        self.state = State.DRAINING
        return [Send(Draining(grace_ms))]

    def tick(self, now_us: int) -> list[Instruction]:
        """Time passed: judge silence. The edge beats; the intake answers. Call it every `TICK_MS`."""
        late_us = self._silence.ticked(now_us)
        if self.state is State.CLOSED:
            return []
        if self.state is State.DETACHED:
            self._detached_us += late_us
            return self.close("session_lost") if now_us - self._detached_us > self.reattach_ms * 1000 else []
        silent_ms = self._silence.silent_us(now_us) // 1000
        # The border's round trip is the edge's to measure; a second is added for it.
        limit_ms = (DEAD_BUSY_MS if self._streams else DEAD_IDLE_MS) + 1_000
        if silent_ms <= limit_ms:
            slow = too_slow(self._streams, self._holding) if self._holding else ()
            return [told for stream in slow for told in self._too_slow(stream, self._streams[stream])]
        return [*self.lost(now_us), Detach("silent")] if self.is_attached() else self.close("session_lost")

    def lost(self, now_us: int) -> list[Instruction]:
        """The transport is gone. Work goes on for as long as the edge may come back."""
        if self.state is State.GREETING:
            return self.close("session_lost")
        if self.is_attached():
            self.state = State.DETACHED
            self._detached_us = now_us
            self.detached_bytes = sum(found.kept_bytes() for found in self._streams.values())
        return []

    def close(self, reason: str) -> list[Instruction]:
        """The session is over: stop all work, and settle what nobody will."""
        if self.state is State.CLOSED:
            return []
        out: list[Instruction] = []
        for number, found in self._streams.items():
            if reason == "draining" and self.is_attached() and not found.ended:
                cut = Broken(number, found.attempt, reason, "The scheduler stopped.", PoolCounts())
                out.append(Send(counted(cut, found.sent_tokens)))
            if found.running():
                out.append(Stop(number, reason))
            out.append(Settled(number, found.attempt, None, found.sent_tokens))
        self.state = State.CLOSED
        self._streams.clear()
        self.detached_bytes = 0
        out.append(Close(reason))
        return out

    def _greet(
        self, hello: Hello, epoch: int, now_us: int, wall_ms: int, loads: tuple[Load, ...]
    ) -> list[Instruction]:
        version = min(SESSION_VERSION, hello.version_max)
        if epoch != hello.epoch or version < max(SESSION_VERSION_MIN, hello.version_min):
            return self.close("protocol_violation")
        if not hello.edge or not hello.session or epoch < 1:
            return self.close("protocol_violation")
        own = (self.scheduler, self.instance)
        welcome = Welcome(version, *own, wall_ms, self.streams_max, loads, process=self.process)
        if self.state is State.GREETING:
            self.edge, self.session = hello.edge, hello.session
            if hello.continues:
                # It lived elsewhere, or for too long without a transport: nothing of it is here.
                return [Send(welcome), *self.close("session_lost")]
            self.epoch = epoch
            self.state = State.LIVE
            self.skew_ms = hello.now_ms - wall_ms
            return [Send(welcome), *self._say_draining()]
        if not hello.continues or (hello.edge, hello.session) != (self.edge, self.session):
            return self.close("protocol_violation")
        self.lost(now_us)
        self.epoch = epoch
        self.state = State.LIVE
        self.skew_ms = hello.now_ms - wall_ms
        return self._reattach(hello, welcome)

    def _say_draining(self) -> list[Instruction]:
        return [] if self._grace_ms is None else self.drain(self._grace_ms)

    def _reattach(self, hello: Hello, welcome: Welcome) -> list[Instruction]:
        """Go on from where the edge is, stream by stream; what one of us does not know is over."""
        self.reattached += 1
        self.detached_bytes = 0
        held = {one.stream: one for one in hello.held}
        settled = {one.stream: one for one in hello.settled}
        gone = [number for number in held if number <= self._last_stream and number not in self._streams]
        out: list[Instruction] = []
        # First the settlements, in the order in which they were said.
        for number, settle in settled.items():
            if number in self._streams:
                out += self._streamed(settle)
        self._settles = 0
        for number, found in list(self._streams.items()):
            more = None if number not in held else self._resumed(held[number], found)
            if more is None:
                gone.append(number)
                out += [Stop(number, "session_lost")] if found.running() else []
                out.append(Settled(number, found.attempt, None, found.sent_tokens))
                del self._streams[number]
            else:
                out += more
        answer = replace(welcome, continued=True, last_stream=self._last_stream, gone=tuple(gone))
        return [Send(answer), *self._say_draining(), *out]

    def _resumed(self, held: Held, found: Stream) -> list[Instruction] | None:
        """Say again what the edge does not have of one stream. None where that cannot be done without gap or repeat."""
        if held.attempt != found.attempt or held.limit_bytes < found.limit_bytes:
            return None
        found.limit_bytes = held.limit_bytes
        out: list[Instruction] = []
        if found.accepted is not None and not held.accepted and not held.ended:
            out.append(Send(found.accepted))
        if held.cancelled:
            out += self._cancelled(held.stream, found)
        found.read_to(held.received_bytes)
        next_token = found.kept[0][1].first if found.kept else found.sent_tokens
        if not held.ended and (found.kept_from, next_token) != (held.received_bytes, held.next_token):
            return None
        found.ended = held.ended
        if held.ended:
            found.drop_ready()
            return out
        out += [Send(frame) for _, frame in found.kept]
        return [*out, *self._flush(held.stream, found)]

    def _open(self, frame: Open, now_us: int) -> list[Instruction]:
        unsettled = len(self._streams)
        if frame.stream <= self._last_stream or unsettled >= self._unsettled_max:
            return self.close("protocol_violation")  # a number was used twice, or nothing is ever settled
        self._last_stream = frame.stream
        found = Stream(frame.attempt, frame.credit_bytes, frame.credit_bytes)
        self._streams[frame.stream] = found
        if self.state is _DRAINING:
            found.last = Refused(frame.stream, frame.attempt, "draining", "The scheduler is stopping.")
            return self._flush(frame.stream, found)
        if unsettled >= self.streams_max:
            detail = "The session has as many streams as the scheduler takes."
            found.last = Refused(frame.stream, frame.attempt, "engine_busy", detail)
            return self._flush(frame.stream, found)
        return [Start(frame, now_us)]

    def _streamed(self, frame: Credit | Cancel | Settle) -> list[Instruction]:
        if type(frame) is Settle:
            self._settles += 1
        found = self._streams.get(frame.stream)
        if found is None:
            self.dead_frames += 1
            return []
        if type(frame) is Credit:
            found.limit_bytes += frame.size_bytes
            found.read_to(found.limit_bytes - found.first_bytes)
        elif type(frame) is Settle or type(frame) is Cancel:
            if frame.attempt != found.attempt:
                self.dead_frames += 1
                return []
            if type(frame) is Settle:
                del self._streams[frame.stream]
                settled = Settled(frame.stream, frame.attempt, frame.counts, found.sent_tokens)
                return [Stop(frame.stream, "cancelled"), settled] if found.running() else [settled]
            return [*self._cancelled(frame.stream, found), *self._flush(frame.stream, found)]
        return self._flush(frame.stream, found)

    def _cancelled(self, stream: int, found: Stream) -> list[Instruction]:
        """The edge wants no more of a stream."""
        if found.cancelled:
            return []
        found.cancelled = True
        if isinstance(found.last, Done) and found.ready:
            found.last = Done(stream, found.attempt, "cancelled", found.last.counts)
        # What was not sent has no reader. What was sent may be on its way, and the last frame counts it.
        found.drop_ready()
        return [] if found.last is not None else [Stop(stream, "cancelled")]

    def _flush(self, stream: int, found: Stream) -> list[Instruction]:
        """Send what credit allows in one frame, then the terminal frame when nothing is held back."""
        if self.state is _DETACHED:
            return []
        frame = found.next_tokens(stream) if found.ready else None
        out: list[Instruction] = [] if frame is None else [Send(frame)]
        if found.held_ticks is not None and found.may_go_on():
            out.append(GoOn(stream))
        if found.last is not None and not found.ready and not found.ended:
            found.ended = True
            out += [Send(counted(found.last, found.sent_tokens))]
        return out

    def _too_slow(self, stream: int, found: Stream) -> list[Instruction]:
        self.detached_bytes -= found.ready_bytes if self.state is State.DETACHED else 0
        found.drop_ready()
        detail = "The answer was read too slowly to be held."
        counts = PoolCounts(sent=found.sent_tokens)
        found.last = Broken(stream, found.attempt, "slow_reader", detail, counts)
        return [*self._flush(stream, found), Stop(stream, "slow_reader")]
