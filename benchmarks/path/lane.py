"""The edge's end of one session that carries prepared attempts, as a pure state machine over bytes.

It does what `wire.session_edge` does for an edge whose transport is never lost and whose answers fit the first credit,
with as little work as can be: what it says was written before, and what it hears is counted and compared.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.path.ask import WrongAnswer
from benchmarks.path.prepared import Prepared, written
from orchestrator.wire.frames import Beat
from orchestrator.wire.session_edge import BEAT_BUSY_MS, SETTLES_BEAT
from protos.tidegate.v1 import session_pb2 as pb


@dataclass(slots=True)
class _Heard:
    attempt: str
    accepted: bool = False
    count: int = 0
    text: str = ""


class Lane:
    """One session. Every method returns what is to be sent, as bytes of an `EdgeBatch` without its epoch."""

    def __init__(self, attempts: Sequence[Prepared], text: str, tokens: int) -> None:
        """`text` of so many tokens is the answer to every attempt."""
        self.complete = 0
        """Answers that were whole."""
        self.ran_out = False
        """Whether it had to send fewer than it should, for want of attempts."""
        self._attempts = attempts
        self._text = text
        self._tokens = tokens
        self._opened = 0
        self._heard: dict[int, _Heard] = {}  # bounded: by what was begun at once
        self._closing = False
        self._beats = 0
        self._beat_us = 0
        self._unbeaten = 0
        """Settlements since the last beat."""

    @property
    def in_flight(self) -> int:
        """Attempts that have not ended."""
        return len(self._heard)

    def begin(self, count: int) -> bytes:
        """Keep so many more attempts in flight from now on."""
        return b"".join(self._open() for _ in range(count))

    def close(self) -> None:
        """Begin nothing more."""
        self._closing = True

    def received(self, message: bytes) -> bytes:
        """Take a message of the intake: settle what has ended, and put another in its place. Raises WrongAnswer."""
        out: list[bytes] = []
        for frame in pb.IntakeBatch.FromString(message).frames:
            kind = frame.WhichOneof("kind")
            if kind == "tokens":
                tokens = frame.tokens
                heard = self._of(tokens.stream, tokens.attempt)
                if tokens.first != heard.count:
                    raise WrongAnswer(f"tokens from {tokens.first} on where {heard.count} should follow")
                heard.count += tokens.count
                heard.text += tokens.text
            elif kind == "done":
                out.append(self._ended(frame.done))
            elif kind == "accepted":
                self._of(frame.accepted.stream, frame.accepted.attempt).accepted = True
            elif kind == "beat":
                if frame.beat.number:
                    out.append(written([Beat(0, frame.beat.number)]))
            elif kind != "load":
                raise WrongAnswer(f"the intake said {kind}: {str(getattr(frame, kind or ''))[:200]}")
        return b"".join(out)

    def tick(self, now_us: int) -> bytes:
        """Time passed: give a sign of life when it is time for one, as a busy edge does."""
        if now_us - self._beat_us < BEAT_BUSY_MS * 1000 and self._unbeaten < SETTLES_BEAT:
            return b""
        self._beat_us, self._unbeaten = now_us, 0
        self._beats += 1
        return written([Beat(self._beats)])

    def _of(self, stream: int, attempt: str) -> _Heard:
        heard = self._heard.get(stream)
        if heard is None or heard.attempt != attempt:
            raise WrongAnswer(f"a frame of stream {stream}, which is not open")
        return heard

    def _ended(self, done: pb.Done) -> bytes:
        heard = self._of(done.stream, done.attempt)
        if not heard.accepted or heard.count != self._tokens or heard.text != self._text:
            raise WrongAnswer(f"an answer of {heard.count} tokens that is not the engine's: {heard.text[:60]!r}")
        if done.counts.sent != self._tokens:
            raise WrongAnswer(f"{done.counts.sent} tokens were sent by the pool's word, {self._tokens} arrived")
        del self._heard[done.stream]
        self.complete += 1
        self._unbeaten += 1
        settled = self._attempts[done.stream - 1].settled
        return settled if self._closing else settled + self._open()

    def _open(self) -> bytes:
        if self._opened == len(self._attempts):
            self.ran_out = True
            return b""
        prepared = self._attempts[self._opened]
        self._opened += 1
        self._heard[self._opened] = _Heard(prepared.attempt)
        return prepared.opened
