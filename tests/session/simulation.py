"""A seeded world of many attempts over sessions that are cut, delayed, repeated, stopped and read slowly, with every
promise checked.

One seed is one world: the same seed meets the same faults at the same steps. `Simulation(seed).run()` raises
AssertionError with the seed when a promise is broken, and returns what it met. To see one again:
``python -m tests.session.simulation SEED``.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, ReplicaId
from orchestrator.wire import session_edge, session_intake
from orchestrator.wire.attachments import Limits
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    SETTLES_MAX,
    Broken,
    Cancel,
    Done,
    EdgeFrame,
    Hello,
    IntakeFrame,
    Open,
    Refused,
    Tokens,
    held_bytes,
)
from orchestrator.wire.intake_stream import AHEAD_BYTES_MAX, HELD_TICKS_MAX, GoOn, Hold, Stream
from orchestrator.wire.session_edge import REATTACH_TRY_MS, State
from orchestrator.wire.session_intake import IntakeSession
from tests.session.faults import MODES, Faults
from tests.session.world import EDGE_TICK_US, EdgeNode, Wire, World, load, open_frame

MS = 1_000
S = 1_000_000
OPENING_UNTIL_US = 6 * S
HEALED_AT_US = 7 * S
LEAVING_AT_US = 9 * S
ENDED_AT_US = 17 * S
GONE_AT_US = 38 * S
ATTEMPTS_MAX = 30


@dataclass(slots=True, eq=False)
class Attempt:
    """What the simulation knows of one attempt, from both ends."""

    number: int
    id: AttemptId
    edge: EdgeNode
    life: int
    """Of the edge: what a crashed one knew is gone."""
    stream: int
    credit_bytes: int
    read_every_us: int
    leaves_at_us: int | None
    made: str = ""
    made_ids: list[int] = field(default_factory=list)
    made_count: int = 0
    starts: int = 0
    instance: int = -1
    """Of the intake that began it."""
    stop_seen: bool = False
    obeys: bool = False
    held: bool = False
    goes_on: Callable[[], None] | None = None  # what its engine does once it may
    stops_after: int = 0
    """Steps that the engine still makes after it was told to stop."""
    engine_ended: bool = False
    settlements: list[EdgeCounts | None] = field(default_factory=list)
    got_chars: int = 0
    got_count: int = 0
    got_ids: int = 0
    accepted: int = 0
    waiting: deque[Tokens] = field(default_factory=deque)  # bounded: by credit, which is checked
    waiting_bytes: int = 0
    consumed: int = 0
    terminals: list[Done | Broken | Refused] = field(default_factory=list)
    left: bool = False
    counts: EdgeCounts | None = None
    """What the edge said at last."""
    session_lived: bool = False
    """Whether the session was still alive then."""


class Simulation(World):
    """One world."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = rng = Random(seed)
        self.mode = MODES[seed % len(MODES)]
        rtt_us = rng.choice((0, 2, 10, 40) if self.mode.quick else (0, 2, 40, 180, 220, 400)) * MS
        bound = rng.choice((4 * 1024, 32 * 1024)) if self.mode.name == "bound" else 64 << 20
        skew_ms = rng.choice((0, 0, -700, 5_000, -86_400_000))
        self.met: Counter[str] = Counter()
        self.attempts: list[Attempt] = []
        self.by_id: dict[AttemptId, Attempt] = {}
        self.opened: dict[tuple[IntakeSession, int], Attempt] = {}
        self.wires: list[Wire] = []
        self.jitter_us = rng.choice((0, rtt_us // 10))
        super().__init__(rtt_us, Limits(8, detached_bytes=bound), skew_ms)
        self.write_us = rng.choice((0, 1, 5 * MS))
        self.lives: Counter[EdgeNode] = Counter()
        self.detached_us: dict[EdgeNode, int] = {}
        self.epochs: dict[object, int] = {}
        self.settled_order: dict[EdgeNode, list[AttemptId]] = {}
        self.intake_order: dict[EdgeNode, list[AttemptId]] = {}
        self.edges = [EdgeNode(self, f"edge-{letter}") for letter in ("ab" if rng.random() < 0.5 else "a")]
        self.faults = Faults(self)
        self.over = False

    def run(self) -> Counter[str]:
        """Run it to its end. Raises AssertionError with the seed."""
        try:
            self._run()
        except Exception as failure:
            failure.add_note(f"seed {self.seed} ({self.mode.name}): python -m tests.session.simulation {self.seed}")
            raise
        return self.met

    def _run(self) -> None:
        for edge in self.edges:
            edge.begin()
            self._open_more(edge)
        self.faults.plan()
        self.clock.run(OPENING_UNTIL_US)
        self.over = True
        self.clock.run(HEALED_AT_US)
        self.faults.heal()
        self.clock.run(LEAVING_AT_US)
        for attempt in self.attempts:
            # Whoever is still there leaves, or reads what waits at once.
            attempt.read_every_us = 1 * MS
            if attempt.leaves_at_us is None:
                attempt.leaves_at_us = self.clock.now_us
        self.clock.run(ENDED_AT_US)
        for attempt in self.attempts:
            self._check_ended(attempt)
        for edge in self.edges:
            if edge.machine.state is State.LIVE:
                assert edge.machine.unheard() == 0, "a settlement was not taken though all is well"
            edge.act(edge.machine.close("session_lost"))
        self.clock.run(GONE_AT_US)
        assert not self.intake.wires, "a session that nobody has is kept"
        assert self.intake.attachments.held_bytes == 0
        for attempt in self.attempts:
            self._check_released(attempt)
        for edge, order in self.intake_order.items():
            said = {one: place for place, one in enumerate(self.settled_order.get(edge, ()))}
            places = [said[one] for one in order]
            assert places == sorted(places), "settlements in another order than they were said"

    def _check_ended(self, attempt: Attempt) -> None:
        if attempt.life != self.lives[attempt.edge]:
            return
        assert attempt.counts is not None, "an attempt never came to its end"
        assert len(attempt.terminals) == 1 or (attempt.left and not attempt.terminals)
        for last in attempt.terminals:
            if isinstance(last, Refused):
                assert attempt.got_count == 0, "refused, and had begun"
                if last.code == "engine_unreachable":
                    assert attempt.starts == 0, "called not started, and was"

    def _check_released(self, attempt: Attempt) -> None:
        if attempt.starts == 0 or attempt.instance != self.intake.number:
            return
        assert len(attempt.settlements) == 1, "not settled, once"
        assert attempt.engine_ended or attempt.stop_seen, "an engine works for nobody"
        counts = attempt.settlements[0]
        if counts is not None:
            assert counts == attempt.counts, "the two sides count differently"
        if attempt.session_lived and not self.faults.may_lose:
            assert counts is not None, "a settlement was lost though the session lives"

    # Tenants

    def _open_more(self, edge: EdgeNode) -> None:
        if self.over:
            return
        if len(self.attempts) < ATTEMPTS_MAX:
            edge.awake(lambda: self._open(edge))
        self.clock.after(self.rng.choice((5, 50, 300, 900)) * MS, lambda: self._open_more(edge))
        if self.rng.random() < 0.2:
            for session in list(self.intake.wires):
                self.intake.act(session, session.load(load(self.clock.now_us)))

    def _open(self, edge: EdgeNode) -> None:
        rng, machine = self.rng, edge.machine
        if self.over or not machine.accepts_work(self.clock.now_us):
            return
        stream = machine.next_stream
        number = len(self.attempts) + 1
        frame = open_frame(stream, number, rng.choice((CREDIT_BYTES_MIN, 16 * 1024, 64 * 1024)))
        leaves_us = rng.randrange(6 * S) if rng.random() < 0.25 else None
        attempt = Attempt(
            number,
            frame.attempt,
            edge,
            self.lives[edge],
            stream,
            frame.credit_bytes,
            rng.choice((1, 1, 20, 300, 1_500)) * MS,
            None if leaves_us is None else self.clock.now_us + leaves_us,
        )
        attempt.stops_after = rng.choice((0, 2))
        attempt.obeys = attempt.number % 3 > 0
        self.attempts.append(attempt)
        self.by_id[attempt.id] = attempt
        edge.act(machine.open(frame, self.clock.now_us))
        self.clock.after(attempt.read_every_us, lambda: self._read_awake(attempt))

    def _read_awake(self, attempt: Attempt) -> None:
        attempt.edge.awake(lambda: self._read(attempt))

    def _read(self, attempt: Attempt) -> None:
        """The tenant takes the next piece, or leaves, or learns the end."""
        edge, now_us = attempt.edge, self.clock.now_us
        if attempt.counts is not None or attempt.life != self.lives[edge]:
            return
        if attempt.leaves_at_us is not None and now_us >= attempt.leaves_at_us and not attempt.left:
            attempt.left = True
            edge.act(edge.machine.cancel(self._stream(attempt)))
            if self.rng.random() < 0.7:
                self._settle(attempt)
                return
        if attempt.waiting:
            frame = attempt.waiting.popleft()
            size_bytes = held_bytes(frame.text, frame.ids)
            attempt.waiting_bytes -= size_bytes
            attempt.consumed += frame.count
            edge.act(edge.machine.consumed(self._stream(attempt), size_bytes))
        elif attempt.terminals:
            self._settle(attempt)
            return
        # Where nothing waits it looks less often.
        again_us = attempt.read_every_us if attempt.waiting else max(attempt.read_every_us, 12 * MS)
        self.clock.after(again_us, lambda: self._read_awake(attempt))

    def _stream(self, attempt: Attempt) -> int:
        """The link knows by session which stream is meant; a stream of an old session has no number in a new one."""
        held = attempt.edge.machine._streams.get(attempt.stream)
        return attempt.stream if held is not None and held.attempt == attempt.id else -1

    def _settle(self, attempt: Attempt) -> None:
        """Say what was received and delivered."""
        edge = attempt.edge
        attempt.counts = EdgeCounts(attempt.got_count, attempt.consumed)
        stream = self._stream(attempt)
        attempt.session_lived = stream != -1
        if stream != -1:
            self.settled_order.setdefault(edge, []).append(attempt.id)
        edge.act(edge.machine.settle(stream, attempt.counts))
        assert edge.machine.unheard() <= SETTLES_MAX

    def delivered(self, edge: EdgeNode, instruction: session_edge.Deliver) -> None:
        frame = instruction.frame
        attempt = self.by_id[frame.attempt]
        assert attempt.edge is edge, "a frame reached another edge"
        assert frame.stream == instruction.stream == attempt.stream, "a frame reached another stream"
        assert attempt.counts is None, "a frame reached a settled attempt"
        assert not attempt.terminals, "something came after the terminal event"
        if isinstance(frame, Tokens):
            assert attempt.starts == 1, "tokens of what nobody was asked for"
            assert frame.first == attempt.got_count, "a gap, or a repeat"
            assert attempt.made.startswith(frame.text, attempt.got_chars), "text of elsewhere"
            ids = attempt.made_ids[attempt.got_ids : attempt.got_ids + len(frame.ids)]
            assert list(frame.ids) == ids, "ids of elsewhere"
            attempt.got_chars += len(frame.text)
            attempt.got_count += frame.count
            attempt.got_ids += len(frame.ids)
            attempt.waiting.append(frame)
            attempt.waiting_bytes += held_bytes(frame.text, frame.ids)
            assert attempt.waiting_bytes <= attempt.credit_bytes, "more is held than there was credit for"
        elif isinstance(frame, Done | Broken | Refused):
            self._ended(attempt, frame)
        else:
            attempt.accepted += 1
            assert attempt.accepted == 1, "accepted twice"

    def _ended(self, attempt: Attempt, frame: Done | Broken | Refused) -> None:
        attempt.terminals.append(frame)
        code = getattr(frame, "code", "done")
        assert code != "protocol_violation", "an honest peer was called dishonest"
        self.met[f"edge {code}"] += 1
        if code in ("session_lost", "engine_unreachable"):
            assert self.faults.may_lose or attempt.left, "a session was lost where it could go on"
        if isinstance(frame, Done) and frame.reason == "stop":
            assert attempt.got_chars == len(attempt.made), "an answer was called complete and was not"
            assert attempt.got_count == attempt.made_count == frame.counts.sent

    def edge_detached(self, edge: EdgeNode, reason: str) -> None:
        self.met[f"edge detached {reason}"] += 1
        self.detached_us[edge] = self.clock.now_us
        if reason == "silent":
            assert self.faults.may_fall_silent, "a living peer was called dead"

    def edge_ticked(self, edge: EdgeNode) -> None:
        if edge.machine.state in (State.DETACHED, State.REATTACHING) and not edge.slept:
            waited_us = self.clock.now_us - self.detached_us[edge]
            assert waited_us <= REATTACH_TRY_MS * MS + 2 * EDGE_TICK_US, "streams wait for what does not come"

    def edge_closed(self, edge: EdgeNode, reason: str) -> None:
        self.met[f"edge closed {reason}"] += 1
        if not self.over or self.clock.now_us < ENDED_AT_US:
            assert self.faults.may_lose or edge.machine.welcome is None, "a healthy session was given up"
            self.clock.after(self.rng.randrange(100 * MS, 600 * MS), lambda: edge.awake(edge.begin))
        for attempt in self.attempts:
            if attempt.edge is edge and attempt.life == self.lives[edge] and attempt.counts is None:
                assert len(attempt.terminals) == 1, "the session is lost and an attempt does not know"
        assert edge.machine.streams() == 0

    # Engines: token i of attempt n is a function of both

    def take_up(self, session: IntakeSession, epoch: int, frame: EdgeFrame) -> list[session_intake.Instruction]:
        """Some attempts cannot be read; only these suffer."""
        if isinstance(frame, Open) and session.is_attached() and epoch == session.epoch:
            attempt = self.opened[session, frame.stream] = self.by_id[frame.attempt]
            if attempt.number % 23 == 0:
                self.met["unreadable"] += 1
                return session.unreadable(epoch, frame.stream, frame.attempt, "label.personal")
        told = super().take_up(session, epoch, frame)
        if isinstance(frame, Hello) and session.is_attached() and epoch == session.epoch:
            self._check_reattached(session, frame)
        assert self.epochs.get(session, 0) <= session.epoch, "an epoch went back"
        self.epochs[session] = session.epoch
        return told

    @staticmethod
    def _check_reattached(session: IntakeSession, hello: Hello) -> None:
        for held in hello.held:
            stream = session._streams.get(held.stream)
            if stream is not None:
                assert stream.limit_bytes == held.limit_bytes, "the two sides differ about credit"
                assert not held.cancelled or not stream.running(), "an engine works for one who left"
        for settle in hello.settled:
            assert settle.stream not in session._streams, "a settlement was not taken"

    def started(self, session: IntakeSession, opened: Open) -> None:
        attempt = self.by_id[opened.attempt]
        attempt.starts += 1
        assert attempt.starts == 1, "one attempt was begun twice"
        attempt.instance = self.intake.number
        rng = self.rng
        if rng.random() < 0.1:
            self._later(session, attempt, rng.randrange(200 * MS), lambda: self._engine_refuses(session, attempt))
            return
        tokens = rng.choice((0, 1, 5, 40, 120))
        plan = (rng.choice((1, 1, 3)), rng.choice((0, 4, 4, 900, 6_000)), rng.choice((1, 10, 65)) * MS)
        self._later(session, attempt, rng.randrange(600 * MS), lambda: self._accept(session, attempt, tokens, plan))

    def _later(self, session: IntakeSession, attempt: Attempt, delay_us: int, act: object) -> None:
        def due() -> None:
            if attempt.instance == self.intake.number and self.intake.up:
                self.intake.awake(act)  # type: ignore[arg-type]

        self.clock.after(delay_us, due)

    def _engine_refuses(self, session: IntakeSession, attempt: Attempt) -> None:
        attempt.engine_ended = True
        self.act(session, session.refused(attempt.stream, "engine_busy", "No room."))

    def _accept(self, session: IntakeSession, attempt: Attempt, tokens: int, plan: tuple[int, int, int]) -> None:
        self.act(session, session.accepted(attempt.stream, ReplicaId("r-1")))
        self._make(session, attempt, tokens, plan)

    def _make(self, session: IntakeSession, attempt: Attempt, left: int, plan: tuple[int, int, int]) -> None:
        """One step of the engine: some tokens, or its end."""
        together, pad, gap_us = plan
        counts = PoolCounts(3, 0, attempt.made_count)
        if attempt.held and attempt.obeys and not attempt.stop_seen:
            attempt.goes_on = lambda: self._make(session, attempt, left, plan)
            return
        if attempt.stop_seen:
            attempt.stops_after -= 1
        if attempt.stops_after < 0 or left <= 0:
            attempt.engine_ended = True
            if attempt.stops_after < 0:
                self.act(session, session.done(attempt.stream, "cancelled", counts))
            elif attempt.number % 10 == 7:
                self.act(session, session.broken(attempt.stream, "engine_failed", "It died.", counts))
            else:
                self.act(session, session.done(attempt.stream, "stop", counts))
            return
        count = min(left, together)
        text = f"{attempt.number}:{attempt.made_count} " + "é" * pad
        told = pad != 900
        ids = tuple(attempt.number * 1_000 + attempt.made_count + index for index in range(count)) if told else ()
        attempt.made += text
        attempt.made_ids += ids
        attempt.made_count += count
        self.act(session, session.tokens(attempt.stream, text, ids, count))
        self._check_bounds(session)
        self._later(session, attempt, gap_us, lambda: self._make(session, attempt, left - count, plan))

    def act(self, session: IntakeSession, instructions: list[session_intake.Instruction]) -> None:
        """What an engine said is carried out, and may cost a session without a transport its place."""
        self.intake.act(session, instructions)
        if session in self.intake.wires:
            self.intake.changed(session)

    def _check_bounds(self, session: IntakeSession) -> None:
        for number, stream in session._streams.items():
            self._check_stream(stream)
            if stream.running() and (attempt := self.opened[session, number]).starts:
                assert attempt.held == (stream.held_ticks is not None), "an engine waits for nothing"
        if session.is_detached():
            held = sum(stream.kept_bytes() for stream in session._streams.values())
            assert session.detached_bytes == held, "what a session holds is counted wrongly"

    @staticmethod
    def _check_stream(stream: Stream) -> None:
        sent_unread = stream.sent_bytes - stream.kept_from
        assert sent_unread == sum(size for size, _ in stream.kept) <= stream.first_bytes, "more is kept than credit"
        room_bytes = stream.limit_bytes - stream.sent_bytes
        assert room_bytes >= 0
        assert stream.ready_bytes <= room_bytes + AHEAD_BYTES_MAX + stream.largest_bytes, "an engine ran too far ahead"
        assert (stream.held_ticks or 0) <= HELD_TICKS_MAX or not stream.running(), "a reader is waited for"

    def intake_ticked(self, session: IntakeSession) -> None:
        self._check_bounds(session)

    def intake_detached(self, session: IntakeSession, reason: str) -> None:
        self.met[f"intake detached {reason}"] += 1
        if reason == "silent":
            assert self.faults.may_fall_silent, "a living peer was called dead"

    def intake_closed(self, session: IntakeSession, reason: str) -> None:
        self.met[f"intake closed {reason}"] += 1
        assert reason != "protocol_violation", "an honest peer was called dishonest"
        assert session.streams() == 0

    def stopped(self, session: IntakeSession, instruction: session_intake.Stop) -> None:
        attempt = self._of(session, instruction.stream)
        attempt.stop_seen = True
        self.met[f"stop {instruction.reason}"] += 1
        self._go_on(session, attempt)

    def held(self, session: IntakeSession, instruction: Hold | GoOn) -> None:
        attempt, holds = self._of(session, instruction.stream), isinstance(instruction, Hold)
        assert attempt.held != holds, "an engine is told twice"
        self.met["held" if holds else "goes on"] += 1
        attempt.held = holds
        if not holds:
            self._go_on(session, attempt)

    def _go_on(self, session: IntakeSession, attempt: Attempt) -> None:
        if attempt.goes_on is not None:
            self._later(session, attempt, 0, attempt.goes_on)
        attempt.goes_on = None

    def settled(self, session: IntakeSession, instruction: session_intake.Settled) -> None:
        attempt = self.by_id[instruction.attempt]
        assert attempt is self._of(session, instruction.stream)
        attempt.settlements.append(instruction.counts)
        assert len(attempt.settlements) == 1, "settled twice"
        assert instruction.sent <= attempt.made_count
        if instruction.counts is not None:
            assert instruction.counts == attempt.counts, "counts of elsewhere"
            assert instruction.counts.delivered <= instruction.counts.received <= instruction.sent
            self.intake_order.setdefault(attempt.edge, []).append(attempt.id)

    def _of(self, session: IntakeSession, stream: int) -> Attempt:
        return self.opened[session, stream]

    # What is on the wire

    def connect(self, edge: EdgeNode) -> Wire:
        wire = Wire(self, edge, self.rtt_us, self.jitter_us)
        self.wires.append(wire)
        self.faults.connected(edge, wire)
        return wire

    def chance(self, below: int) -> int:
        return self.rng.randrange(below) if below > 0 else 0

    def sent_down(self, session: IntakeSession, frame: IntakeFrame) -> None:
        self.faults.one_more_frame(session)

    def sent_up(self, edge: EdgeNode, frame: EdgeFrame) -> None:
        if isinstance(frame, Cancel) and edge.machine.state is State.CLOSED:
            raise AssertionError("a session that is over speaks")
        self.faults.one_more_frame(None, edge.wire)


def main() -> None:
    """Run the worlds whose seeds are given."""
    for seed in map(int, sys.argv[1:]):
        print(seed, dict(Simulation(seed).run()))


if __name__ == "__main__":
    main()
