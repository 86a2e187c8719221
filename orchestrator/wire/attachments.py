"""Which session a new transport belongs to, and which sessions without a transport are kept. Pure, like the sessions.

A greeting either begins a session, or goes on with one that is here, or is of no use: a late or repeated transport can
do nothing. What sessions without a transport hold together is bounded; beyond it the one that waits longest is given
up, for its edge has most likely given up too.
"""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.policy.ids import EdgeId, SchedulerId, SessionId
from orchestrator.wire.frames import ALONE, STREAMS_MAX, Hello, Process
from orchestrator.wire.session_intake import REATTACH_MS, Instruction, IntakeSession

DETACHED_BYTES_MAX = 64 << 20
DETACHED_MAX = 4_096
"""Sessions without a transport that are kept at once."""
ENDED_MAX = 4_096
"""Sessions that have ended and are remembered, so that a repeated greeting does not begin them anew."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How long sessions without a transport are kept, and how much they may hold together."""

    streams_max: int = STREAMS_MAX
    reattach_ms: int = REATTACH_MS
    detached_bytes: int = DETACHED_BYTES_MAX


class Attachments:
    """Every session of one intake."""

    def __init__(self, scheduler: SchedulerId, instance: str, limits: Limits, process: Process = ALONE) -> None:
        self.refused = 0
        """Transports that were of no use."""
        self.held_bytes = 0
        """What all sessions without a transport hold."""
        self.instance = instance
        self._scheduler = scheduler
        self._limits = limits
        self._process = process
        self._sessions: dict[tuple[EdgeId, SessionId], IntakeSession] = {}
        self._detached: dict[IntakeSession, int] = {}  # bounded: DETACHED_MAX
        """What each holds, as counted last; the one that waits longest first."""
        self._ended: dict[tuple[EdgeId, SessionId], None] = {}  # bounded: ENDED_MAX
        self._grace_ms: int | None = None

    def greeted(self, hello: Hello) -> IntakeSession | None:
        """Return the session that a transport belongs to, new where it is not here; None where it may do nothing.

        The greeting itself is then the session's to answer: `received` must be called with it next.
        """
        key = (hello.edge, hello.session)
        known = self._sessions.get(key)
        if known is None and (hello.continues or key not in self._ended):
            limits = self._limits
            made = IntakeSession(
                self._scheduler, self.instance, limits.streams_max, limits.reattach_ms, self._process
            )
            if self._grace_ms is not None:
                made.drain(self._grace_ms)
            if not hello.continues:
                self._sessions[key] = made
            return made
        if known is not None and hello.continues and hello.epoch > known.epoch:
            self._forget(known)
            return known
        self.refused += 1
        return None

    def changed(self, session: IntakeSession) -> list[tuple[IntakeSession, list[Instruction]]]:
        """A session gained or lost its transport, holds more, or is over. Returns whom that costs its place."""
        if session.edge is not None and session.session is not None and session.is_over():
            self._over((session.edge, session.session), session)
        elif session.is_detached():
            held_bytes = session.detached_bytes
            self.held_bytes += held_bytes - self._detached.get(session, 0)
            self._detached[session] = held_bytes
        else:
            self._forget(session)
        return self._beyond()

    def drain(self, grace_ms: int) -> None:
        """From now on every new session is told that no work is taken."""
        self._grace_ms = grace_ms

    def _beyond(self) -> list[tuple[IntakeSession, list[Instruction]]]:
        given_up: list[tuple[IntakeSession, list[Instruction]]] = []
        while self._detached and (
            self.held_bytes > self._limits.detached_bytes or len(self._detached) > DETACHED_MAX
        ):
            longest = next(iter(self._detached))
            self._forget(longest)
            given_up.append((longest, longest.close("session_lost")))
        return given_up

    def _over(self, key: tuple[EdgeId, SessionId], session: IntakeSession) -> None:
        self._forget(session)
        if self._sessions.get(key) is session:
            del self._sessions[key]
            self._ended[key] = None
            if len(self._ended) > ENDED_MAX:
                del self._ended[next(iter(self._ended))]

    def _forget(self, session: IntakeSession) -> None:
        self.held_bytes -= self._detached.pop(session, 0)
