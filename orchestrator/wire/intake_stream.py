"""One stream of an intake's session: what of it is ready, what was sent and perhaps not read, and how it ends."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import msgspec
from msgspec.structs import replace

from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import AttemptId
from orchestrator.wire.frames import FRAME_BYTES, PIECE_BYTES_MAX, Accepted, Broken, Done, Refused, Tokens

AHEAD_BYTES_MAX = 128 * 1024
"""How far an engine may run ahead of what the edge is ready to hold, per stream, beside the largest delta of it."""
STEP_BYTES = 16 * 1024
HOLD_AT_BYTES = AHEAD_BYTES_MAX - STEP_BYTES
"""With more than that ready an engine is held back, until a step of it was taken."""
HELD_TICKS_MAX = 8
"""For so many ticks, which are 2 s, an engine is held back for a step. None of them is without a transport."""


class Hold(msgspec.Struct, frozen=True):
    """Take no more from the engine of this stream until `GoOn`: enough is ready. What it cannot stop is taken still."""

    stream: int


class GoOn(msgspec.Struct, frozen=True):
    """Take from the engine of this stream again."""

    stream: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Tokens that are sent together. Payload: its repr holds no text."""

    text: str = field(repr=False)
    ids: tuple[int, ...] = field(repr=False)
    count: int
    size_bytes: int

    def plus(self, other: Piece) -> Piece:
        """Return both as one."""
        return Piece(
            self.text + other.text, self.ids + other.ids, self.count + other.count, self.size_bytes + other.size_bytes
        )


class Stream(msgspec.Struct, eq=False):
    """What an intake holds of one attempt, until the edge has settled it."""

    attempt: AttemptId
    limit_bytes: int
    """All credit that was given."""
    first_bytes: int
    """The credit that it began with: what was given beyond it was read."""
    sent_bytes: int = 0
    """What was sent counts against credit."""
    sent_tokens: int = 0
    kept: deque[tuple[int, Tokens]] = msgspec.field(default_factory=deque)  # bounded: by credit
    """Sent and perhaps not read, each with what it counts."""
    kept_from: int = 0
    """How much was sent before the first of these."""
    ready: deque[Piece] = msgspec.field(default_factory=deque)  # bounded: AHEAD_BYTES_MAX and a delta
    """Not sent yet."""
    ready_bytes: int = 0
    largest_bytes: int = 0
    """The most that was made at once, where it had to be cut. The engine's own bound of a line is a bound of it."""
    accepted: Accepted | None = None
    cancelled: bool = False
    """The edge wants no more: what the engine still makes is dropped."""
    last: Done | Broken | Refused | None = None
    """The terminal frame, held back until `ready` is empty."""
    ended: bool = False
    held_ticks: int | None = None
    """For how many ticks its engine has been held back; None while it is not."""

    def running(self) -> bool:
        """Whether an engine may work for this stream and was not told to stop."""
        return self.last is None and not self.cancelled

    def kept_bytes(self) -> int:
        """What is held for this stream."""
        return self.sent_bytes - self.kept_from + self.ready_bytes

    def is_ahead(self) -> bool:
        """Whether its engine has to be held back from now on."""
        if self.held_ticks is not None or self.ready_bytes <= HOLD_AT_BYTES:
            return False
        self.held_ticks = 0
        return True

    def may_go_on(self) -> bool:
        """Whether its engine, which is held back, has to go on from now on."""
        if self.ready_bytes > HOLD_AT_BYTES - STEP_BYTES:
            return False
        self.held_ticks = None
        return self.running()

    def drop_ready(self) -> None:
        """Nobody will read what was not sent."""
        self.held_ticks = None
        self.ready.clear()
        self.ready_bytes = 0

    def add(self, text: str, ids: tuple[int, ...], count: int, size_bytes: int) -> None:
        """Hold tokens that are not sent yet."""
        self.ready_bytes += size_bytes
        for piece in _pieces(text, ids, count, size_bytes):
            # Small deltas are held together: one by one, each would cost more than its text.
            if self.ready and self.ready[-1].size_bytes + piece.size_bytes <= PIECE_BYTES_MAX:
                piece = self.ready.pop().plus(piece)
            self.ready.append(piece)

    def next_tokens(self, stream: int) -> Tokens | None:
        """Return what credit allows as one frame, which is kept until it was read; None where there is no room."""
        texts: list[str] = []
        ids: list[int] = []
        count, size_bytes = 0, FRAME_BYTES
        room_bytes = self.limit_bytes - self.sent_bytes
        while self.ready and size_bytes + self.ready[0].size_bytes <= room_bytes:
            piece = self.ready.popleft()
            texts.append(piece.text)
            ids.extend(piece.ids)
            count += piece.count
            size_bytes += piece.size_bytes
        if not texts:
            return None
        self.ready_bytes -= size_bytes - FRAME_BYTES
        return self.frame(stream, "".join(texts), tuple(ids), count, size_bytes)

    def frame(self, stream: int, text: str, ids: tuple[int, ...], count: int, size_bytes: int) -> Tokens:
        """Return the next frame of tokens, which is kept until it was read."""
        frame = Tokens(stream, self.attempt, self.sent_tokens, count, text, ids)
        self.kept.append((size_bytes, frame))
        self.sent_bytes += size_bytes
        self.sent_tokens += count
        return frame

    def read_to(self, place_bytes: int) -> None:
        """Let go what lies before `place_bytes`: the edge has it for good."""
        kept = self.kept
        while kept and self.kept_from + kept[0][0] <= place_bytes:
            self.kept_from += kept.popleft()[0]


def counted(last: Done | Broken | Refused, sent_tokens: int) -> Done | Broken | Refused:
    """Put the number of sent tokens into a terminal frame: only the session knows it."""
    if isinstance(last, Refused):
        return last
    counts = PoolCounts(last.counts.prompt, last.counts.cached, last.counts.generated, sent_tokens)
    return replace(last, counts=counts)


def too_slow(streams: dict[int, Stream], holding: set[int]) -> list[int]:
    """A tick passed: return those of `holding` whose readers took no step in time, and drop those that are not held."""
    slow: list[int] = []
    for stream in sorted(holding):
        found = streams.get(stream)
        if found is None or found.held_ticks is None or not found.running():
            holding.discard(stream)
            continue
        found.held_ticks += 1
        if found.held_ticks > HELD_TICKS_MAX:
            slow.append(stream)
    return slow


def _pieces(text: str, ids: tuple[int, ...], count: int, size_bytes: int) -> list[Piece]:
    """Cut a delta into pieces of at most `PIECE_BYTES_MAX`: half for text, half for ids, none across a character."""
    if size_bytes <= PIECE_BYTES_MAX:
        # Nothing of nothing is no piece.
        return [Piece(text, ids, count, size_bytes)] if text or ids or count else []
    half_bytes = PIECE_BYTES_MAX // 2
    texts = _cut(text, half_bytes)
    step = half_bytes // 4
    numbers = [ids[at : at + step] for at in range(0, len(ids), step)]
    parts = max(len(texts), len(numbers))
    found: list[Piece] = []
    for at in range(parts):
        part = texts[at] if at < len(texts) else ""
        more = numbers[at] if at < len(numbers) else ()
        # Where ids are told they are the count; elsewhere the last piece carries it.
        tokens = len(more) if len(ids) == count else count * (at == parts - 1)
        found.append(Piece(part, more, tokens, len(part.encode()) + 4 * len(more)))
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
