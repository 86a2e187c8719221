"""The intake's end of a session, as a pure state machine: events in, instructions out.

Credit bounds memory, not the engine: an engine may run ahead of a slow tenant within `AHEAD_BYTES_MAX`; beyond that the
stream is broken as `slow_reader` and its slot is free. Nothing parks a running slot.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace

from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, EdgeId, ReplicaId, SchedulerId, SessionId
from orchestrator.wire.frames import (
    FRAME_BYTES,
    PIECE_BYTES_MAX,
    SESSION_VERSION,
    SESSION_VERSION_MIN,
    Accepted,
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
    Tokens,
    Welcome,
)
from orchestrator.wire.session_edge import DEAD_BUSY_MS, DEAD_IDLE_MS, STREAMS_MAX, State

AHEAD_BYTES_MAX = 128 * 1024
"""How far an engine may run ahead of what the edge is ready to hold, per stream."""
UNSETTLED_FACTOR = 2
"""A session may hold this many times its streams before it is closed: an edge that never settles."""


@dataclass(frozen=True, slots=True)
class Send:
    """Put this frame on the wire."""

    frame: IntakeFrame


@dataclass(frozen=True, slots=True)
class Start:
    """A new attempt wants to be permitted, queued and run."""

    open: Open


@dataclass(frozen=True, slots=True)
class Stop:
    """Stop the work of this stream; nobody waits for it."""

    stream: int
    reason: str


@dataclass(frozen=True, slots=True)
class Settled:
    """The edge said what it received and delivered, or is gone (`counts` is None)."""

    stream: int
    attempt: AttemptId
    counts: EdgeCounts | None
    sent: int
    """Tokens of this stream that were put on the wire."""


@dataclass(frozen=True, slots=True)
class Close:
    """Close the transport; the session is over."""

    reason: str


Instruction = Send | Start | Stop | Settled | Close


@dataclass(frozen=True, slots=True)
class _Piece:
    """Tokens that are sent together. Payload: its repr holds no text."""

    text: str = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    count: int
    size_bytes: int

    def plus(self, other: _Piece) -> _Piece:
        return _Piece(
            self.text + other.text, self.ids + other.ids, self.count + other.count, self.size_bytes + other.size_bytes
        )


@dataclass(slots=True)
class _Stream:
    attempt: AttemptId
    credit_bytes: int
    sent_tokens: int = 0
    ready: deque[_Piece] = field(default_factory=deque)  # bounded: AHEAD_BYTES_MAX
    """Not sent yet."""
    ready_bytes: int = 0
    cancelled: bool = False
    """The edge wants no more: what the engine still makes is dropped."""
    last: Done | Broken | Refused | None = None
    """The terminal frame, held back until `ready` is empty."""
    ended: bool = False

    def running(self) -> bool:
        """Whether an engine may work for this stream and was not told to stop."""
        return self.last is None and not self.cancelled


class IntakeSession:
    """One session with one edge."""

    def __init__(self, scheduler: SchedulerId, instance: str, streams_max: int = STREAMS_MAX) -> None:
        self.scheduler = scheduler
        self.instance = instance
        self.streams_max = streams_max
        self.state = State.GREETING
        self.edge: EdgeId | None = None
        self.session: SessionId | None = None
        self.epoch = 0
        self.skew_ms: int | None = None
        self.dead_frames = 0
        self._streams: dict[int, _Stream] = {}
        self._last_stream = 0
        self._last_heard_us = 0

    def connected(self, now_us: int) -> None:
        """The transport is open; the edge speaks first."""
        self._last_heard_us = now_us

    def streams(self) -> int:
        """Return how many streams are not settled."""
        return len(self._streams)

    def sent_tokens(self, stream: int) -> int:
        """Return how many tokens of a live stream were put on the wire."""
        found = self._streams.get(stream)
        return 0 if found is None else found.sent_tokens

    def received(
        self, epoch: int, frame: EdgeFrame, now_us: int, wall_ms: int, loads: tuple[Load, ...]
    ) -> list[Instruction]:
        """A frame arrived. `loads` is what a greeting is answered with."""
        if self.state is State.CLOSED:
            self.dead_frames += 1
            return []
        if isinstance(frame, Hello):
            self._last_heard_us = now_us
            return self._greet(frame, epoch, wall_ms, loads)
        if self.state is State.GREETING:
            return self._close("protocol_violation")
        if epoch != self.epoch:
            self.dead_frames += 1
            return []
        self._last_heard_us = now_us
        if isinstance(frame, Beat):
            return [] if frame.answers else [Send(Beat(0, frame.number))]
        if isinstance(frame, Open):
            return self._open(frame)
        return self._streamed(frame)

    def unreadable(self, epoch: int, stream: int, attempt: AttemptId, field: str) -> list[Instruction]:
        """An attempt arrived that cannot be read, such as one with a label this version does not know: refuse it.

        Only that stream suffers; the session and its other streams go on.
        """
        if self.state is State.CLOSED or (self.state is not State.GREETING and epoch != self.epoch):
            self.dead_frames += 1
            return []
        if self.state is State.GREETING or stream <= self._last_stream or self._flooded():
            return self._close("protocol_violation")
        self._last_stream = stream
        found = _Stream(attempt, 0)
        self._streams[stream] = found
        detail = f"The pool's side cannot read the field {field}."
        found.last = Refused(stream, attempt, "policy_stale", detail)
        return self._flush(stream, found)

    def accepted(
        self, stream: int, replica: ReplicaId, continuing: Continuing = NOT_CONTINUED
    ) -> list[Instruction]:
        """A replica has the work of `stream`; `continuing` is what its answer could be continued by."""
        found = self._live(stream)
        return [] if found is None else [Send(Accepted(stream, found.attempt, replica, continuing))]

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
        found = self._live(stream)
        if found is None:
            return []
        found.last = Refused(stream, found.attempt, code, detail, param, rules, retry_after_ms)
        return self._flush(stream, found)

    def tokens(self, stream: int, text: str, ids: tuple[int, ...], count: int) -> list[Instruction]:
        """The engine made tokens: send what credit allows, hold the rest, break a reader that is too slow."""
        found = self._live(stream)
        if found is None or found.cancelled:
            return []
        found.ready_bytes += len(text.encode()) + 4 * len(ids)
        if found.ready_bytes > found.credit_bytes + AHEAD_BYTES_MAX:
            found.ready.clear()
            found.ready_bytes = 0
            detail = "The answer was read too slowly to be held."
            counts = PoolCounts(sent=found.sent_tokens)
            found.last = Broken(stream, found.attempt, "slow_reader", detail, counts)
            return [*self._flush(stream, found), Stop(stream, "slow_reader")]
        for piece in _pieces(text, ids, count):
            # Small deltas are held together: one by one, each would cost more than its text.
            if found.ready and found.ready[-1].size_bytes + piece.size_bytes <= PIECE_BYTES_MAX:
                piece = found.ready.pop().plus(piece)
            found.ready.append(piece)
        return self._flush(stream, found)

    def done(
        self, stream: int, reason: str, counts: PoolCounts, queued_us: int | None = None, beside: int | None = None
    ) -> list[Instruction]:
        """The engine finished `stream`. The frame leaves after the last token."""
        found = self._live(stream)
        if found is None:
            return []
        # Nobody reads what came after the cancel, so the answer is not complete, however the engine ended.
        said = "cancelled" if found.cancelled else reason
        found.last = Done(stream, found.attempt, said, counts, queued_us, beside)
        return self._flush(stream, found)

    def broken(self, stream: int, code: str, detail: str, counts: PoolCounts) -> list[Instruction]:
        """The engine failed `stream`. The frame leaves after the last token that was made."""
        found = self._live(stream)
        if found is None:
            return []
        found.last = Broken(stream, found.attempt, code, detail, counts)
        return self._flush(stream, found)

    def load(self, load: Load) -> list[Instruction]:
        """Report the state of a pool."""
        return [Send(load)] if self.state in (State.LIVE, State.DRAINING) else []

    def drain(self, grace_ms: int) -> list[Instruction]:
        """Take no new work."""
        if self.state is not State.LIVE:
            return []
        self.state = State.DRAINING
        return [Send(Draining(grace_ms))]

    def tick(self, now_us: int) -> list[Instruction]:
        """Time passed: judge silence. The edge beats; the intake answers."""
        if self.state is State.CLOSED:
            return []
        silent_ms = (now_us - self._last_heard_us) // 1000
        # The border's round trip is the edge's to measure; a second is added for it.
        limit_ms = (DEAD_BUSY_MS if self._streams else DEAD_IDLE_MS) + 1_000
        return self._close("session_lost") if silent_ms > limit_ms else []

    def lost(self, reason: str) -> list[Instruction]:
        """The transport is gone: stop all work, and settle what nobody will."""
        return self._close(reason)

    def _live(self, stream: int) -> _Stream | None:
        found = self._streams.get(stream)
        return None if found is None or found.last is not None else found

    def _greet(self, hello: Hello, epoch: int, wall_ms: int, loads: tuple[Load, ...]) -> list[Instruction]:
        version = min(SESSION_VERSION, hello.version_max)
        if self.state is not State.GREETING or epoch != hello.epoch or version < SESSION_VERSION_MIN:
            return self._close("protocol_violation")
        if version < hello.version_min or not hello.edge or not hello.session:
            return self._close("protocol_violation")
        self.state = State.LIVE
        self.edge, self.session, self.epoch = hello.edge, hello.session, hello.epoch
        self.skew_ms = hello.now_ms - wall_ms
        return [Send(Welcome(version, self.scheduler, self.instance, wall_ms, self.streams_max, loads))]

    def _open(self, frame: Open) -> list[Instruction]:
        if frame.stream <= self._last_stream or self._flooded():
            return self._close("protocol_violation")  # a number was used twice, or nothing is ever settled
        self._last_stream = frame.stream
        found = _Stream(frame.attempt, frame.credit_bytes)
        self._streams[frame.stream] = found
        if self.state is State.DRAINING:
            found.last = Refused(frame.stream, frame.attempt, "draining", "The scheduler is stopping.")
            return self._flush(frame.stream, found)
        if len(self._streams) > self.streams_max:
            detail = "The session has as many streams as the scheduler takes."
            found.last = Refused(frame.stream, frame.attempt, "engine_busy", detail)
            return self._flush(frame.stream, found)
        return [Start(frame)]

    def _flooded(self) -> bool:
        return len(self._streams) >= UNSETTLED_FACTOR * self.streams_max

    def _streamed(self, frame: Credit | Cancel | Settle) -> list[Instruction]:
        found = self._streams.get(frame.stream)
        if found is None:
            self.dead_frames += 1
            return []
        if isinstance(frame, Credit):
            found.credit_bytes += frame.size_bytes
            return self._flush(frame.stream, found)
        if frame.attempt != found.attempt:
            self.dead_frames += 1
            return []
        if isinstance(frame, Settle):
            del self._streams[frame.stream]
            settled = Settled(frame.stream, frame.attempt, frame.counts, found.sent_tokens)
            return [Stop(frame.stream, "cancelled"), settled] if found.running() else [settled]
        if found.cancelled:
            return []
        found.cancelled = True
        if isinstance(found.last, Done) and found.ready:
            found.last = Done(frame.stream, found.attempt, "cancelled", found.last.counts)
        # What is held back has no reader.
        found.ready.clear()
        found.ready_bytes = 0
        return self._flush(frame.stream, found) if found.last is not None else [Stop(frame.stream, "cancelled")]

    def _flush(self, stream: int, found: _Stream) -> list[Instruction]:
        """Send what credit allows in one frame, then the terminal frame when nothing is held back."""
        out: list[Instruction] = []
        texts: list[str] = []
        ids: list[int] = []
        count = 0
        room_bytes = found.credit_bytes - FRAME_BYTES
        while found.ready and found.ready[0].size_bytes <= room_bytes:
            piece = found.ready.popleft()
            texts.append(piece.text)
            ids.extend(piece.ids)
            count += piece.count
            room_bytes -= piece.size_bytes
            found.ready_bytes -= piece.size_bytes
        if texts:
            found.credit_bytes = room_bytes
            out.append(Send(Tokens(stream, found.attempt, found.sent_tokens, count, "".join(texts), tuple(ids))))
            found.sent_tokens += count
        if found.last is not None and not found.ready and not found.ended:
            found.ended = True
            out.append(Send(self._counted(found)))
        return out

    def _counted(self, found: _Stream) -> Done | Broken | Refused:
        """Put the number of sent tokens into the terminal frame: only this machine knows it."""
        last = found.last
        if isinstance(last, Done):
            return replace(last, counts=_with_sent(last.counts, found.sent_tokens))
        if isinstance(last, Broken):
            counts = _with_sent(last.counts, found.sent_tokens)
            return Broken(last.stream, last.attempt, last.code, last.detail, counts)
        if last is None:
            raise ValueError("a stream without a terminal frame has no count")
        return last

    def _close(self, reason: str) -> list[Instruction]:
        if self.state is State.CLOSED:
            return []
        self.state = State.CLOSED
        out: list[Instruction] = []
        for number, found in self._streams.items():
            if found.running():
                out.append(Stop(number, reason))
            out.append(Settled(number, found.attempt, None, found.sent_tokens))
        self._streams.clear()
        out.append(Close(reason))
        return out


def _with_sent(counts: PoolCounts, sent: int) -> PoolCounts:
    return PoolCounts(counts.prompt, counts.cached, counts.generated, sent)


def _pieces(text: str, ids: tuple[int, ...], count: int) -> list[_Piece]:
    """Cut a delta into pieces of at most `PIECE_BYTES_MAX`: half for text, half for ids, none across a character."""
    size_bytes = len(text.encode()) + 4 * len(ids)
    if size_bytes <= PIECE_BYTES_MAX:
        # Nothing of nothing is no piece.
        return [_Piece(text, ids, count, size_bytes)] if text or ids or count else []
    half_bytes = PIECE_BYTES_MAX // 2
    texts = _cut(text, half_bytes)
    step = half_bytes // 4
    numbers = [ids[at : at + step] for at in range(0, len(ids), step)]
    parts = max(len(texts), len(numbers))
    found: list[_Piece] = []
    for at in range(parts):
        part = texts[at] if at < len(texts) else ""
        more = numbers[at] if at < len(numbers) else ()
        # Where ids are told they are the count; elsewhere the last piece carries it.
        tokens = len(more) if len(ids) == count else count * (at == parts - 1)
        found.append(_Piece(part, more, tokens, len(part.encode()) + 4 * len(more)))
    return found


def _cut(text: str, size_bytes: int) -> list[str]:
    data, found, at = text.encode(), list[str](), 0
    while at < len(data):
        end = min(at + size_bytes, len(data))
        while end < len(data) and data[end] & 0xC0 == 0x80:
            end -= 1
        found.append(data[at:end].decode())
        at = end
    return found
