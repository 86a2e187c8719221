"""A seeded run of many attempts over sessions that are delayed, cut, lost and read slowly, with every promise checked.

One seed is one world: the same seed meets the same faults at the same steps. `Simulation(seed).run()` raises
AssertionError with the seed when a promise is broken, and returns what it met.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, field
from random import Random

from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, ReplicaId
from orchestrator.wire import session_edge, session_intake
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    Beat,
    Broken,
    Cancel,
    Credit,
    Done,
    EdgeFrame,
    Hello,
    IntakeFrame,
    Open,
    Refused,
    Settle,
    Tokens,
    held_bytes,
)
from orchestrator.wire.session_edge import DEAD_BUSY_MS, DEAD_IDLE_MS, HELLO_DEADLINE_MS, State
from orchestrator.wire.session_intake import AHEAD_BYTES_MAX
from tests.session.world import EDGE_TICK_US, INTAKE_TICK_US, Clock, Pair, load, made_id, open_frame

MS = 1_000
S = 1_000_000
OPENING_UNTIL_US = 12 * S
LEAVING_AT_US = 16 * S
END_US = 40 * S
KEPT = 40


@dataclass(slots=True)
class Attempt:
    """What the simulation knows of one attempt, from both ends."""

    number: int
    id: AttemptId
    stream: int
    credit_bytes: int
    read_every_us: int
    leaves_at_us: int | None
    made: str = ""
    made_ids: list[int] = field(default_factory=list)
    made_count: int = 0
    made_bytes: int = 0
    sent_bytes: int = 0
    ahead_ends: bool = False
    """Whether what is ahead was dropped: cancelled, or read too slowly."""
    started: bool = False
    cancel_taken: bool = False
    stop_seen: bool = False
    stops_after: int = 0
    """Steps that the engine still makes after it was told to stop."""
    engine_ended: bool = False
    settled_at_intake: int = 0
    got_chars: int = 0
    got_count: int = 0
    got_ids: int = 0
    waiting: deque[Tokens] = field(default_factory=deque)  # bounded: by credit, which is checked
    waiting_bytes: int = 0
    consumed: int = 0
    terminals: list[Done | Broken | Refused] = field(default_factory=list)
    left: bool = False
    settled_at_edge: bool = False


class Session(Pair):
    """One session of a simulation: carries out instructions and checks each."""

    def __init__(self, simulation: Simulation, epoch: int) -> None:
        rng = simulation.rng
        rtt_us = rng.choice((0, 2, 40, 180, 220, 400)) * MS
        jitter_us = rng.choice((0, rtt_us // 10))
        super().__init__(
            simulation.clock, epoch, lambda: rtt_us // 2 + (rng.randrange(jitter_us) if jitter_us else 0), streams_max=8
        )
        self.rtt_us = rtt_us + 2 * jitter_us
        self.simulation = simulation
        self.attempts: dict[int, Attempt] = {}
        self.busy_since_us = 0
        self.seen_streams = 0
        self.faulty = False
        self.lost_transport = False
        self.frames_left = -1
        self.kept_up: deque[EdgeFrame] = deque(maxlen=KEPT)
        self.kept_down: deque[IntakeFrame] = deque(maxlen=KEPT)

    # The edge

    def open(self, number: int) -> None:
        """Send a new attempt, if the session takes work."""
        if not self.edge.accepts_work(self.clock.now_us):
            return
        rng = self.simulation.rng
        stream = self.edge.next_stream()
        assert stream not in self.attempts
        frame = open_frame(stream, number, rng.choice((CREDIT_BYTES_MIN, 16 * 1024, 64 * 1024)))
        leaves_us = rng.randrange(8 * S) if rng.random() < 0.25 else None
        attempt = Attempt(
            number,
            frame.attempt,
            stream,
            frame.credit_bytes,
            rng.choice((1, 1, 20, 400, 3_000)) * MS,
            None if leaves_us is None else self.clock.now_us + leaves_us,
        )
        attempt.stops_after = rng.choice((0, 2))
        if self.edge.streams() == 0:
            self.busy_since_us = self.clock.now_us
        self.attempts[stream] = attempt
        self.simulation.attempts.append(attempt)
        self.act_edge(self.edge.open(frame, self.clock.now_us))
        self.clock.after(attempt.read_every_us, lambda: self.read(attempt))

    def delivered(self, instruction: session_edge.Deliver) -> None:
        """Check what reaches a request."""
        frame = instruction.frame
        attempt = self.attempts[instruction.stream]
        assert frame.attempt == attempt.id, "a frame reached another attempt"
        assert frame.stream == instruction.stream == attempt.stream
        assert not attempt.settled_at_edge, "a frame reached a settled attempt"
        assert not attempt.terminals, "something came after the terminal event"
        if isinstance(frame, Tokens):
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
            attempt.terminals.append(frame)
            code = getattr(frame, "code", "done")
            assert code != "protocol_violation", "an honest peer was called dishonest"
            self.simulation.met[f"edge {code}"] += 1
            if isinstance(frame, Done) and frame.reason == "stop":
                assert attempt.got_chars == len(attempt.made), "an answer was called complete and was not"
                assert attempt.got_count == attempt.made_count == frame.counts.sent

    def read(self, attempt: Attempt) -> None:
        """The tenant takes the next piece, or leaves, or learns the end."""
        if attempt.settled_at_edge:
            return
        now_us = self.clock.now_us
        if attempt.leaves_at_us is not None and now_us >= attempt.leaves_at_us and not attempt.left:
            attempt.left = True
            self.act_edge(self.edge.cancel(attempt.stream))
            if self.simulation.rng.random() < 0.7:
                self.settle(attempt)
                return
        if attempt.waiting:
            frame = attempt.waiting.popleft()
            size_bytes = held_bytes(frame.text, frame.ids)
            attempt.waiting_bytes -= size_bytes
            attempt.consumed += frame.count
            self.act_edge(self.edge.consumed(attempt.stream, size_bytes))
        elif attempt.terminals:
            self.settle(attempt)
            return
        self.clock.after(attempt.read_every_us, lambda: self.read(attempt))

    def settle(self, attempt: Attempt) -> None:
        """Say what was received and delivered."""
        attempt.settled_at_edge = True
        counts = EdgeCounts(attempt.got_count, attempt.consumed)
        self.act_edge(self.edge.settle(attempt.stream, counts))

    def edge_closed(self, reason: str) -> None:
        """Every attempt that had not ended was told so, before this."""
        self.simulation.met[f"edge closed {reason}"] += 1
        assert self.faulty or self.intake.state is State.CLOSED, "a healthy session was given up"
        for attempt in self.attempts.values():
            if not attempt.settled_at_edge:
                assert len(attempt.terminals) == 1, "the session is lost and an attempt does not know"
        assert self.edge.streams() == 0
        self.simulation.redial()

    def edge_ticked(self) -> None:
        """Silence beyond the limit is never survived."""
        if self.edge.state is State.CLOSED:
            return
        silent_us = self.clock.now_us - self.edge_heard_us
        if self.edge.state is State.GREETING:
            assert silent_us <= HELLO_DEADLINE_MS * MS + EDGE_TICK_US
            return
        slack_us = 2 * (self.edge.rtt_us or 0) + 2 * EDGE_TICK_US
        if self.edge.streams():
            silent_us = self.clock.now_us - max(self.edge_heard_us, self.busy_since_us)
            assert silent_us <= DEAD_BUSY_MS * MS + slack_us, "a dead session was kept"
        assert silent_us <= DEAD_IDLE_MS * MS + slack_us, "a dead session was kept"

    # The intake

    def take_up(self, frame: EdgeFrame) -> list[session_intake.Instruction]:
        """Some attempts cannot be read; only these suffer."""
        if isinstance(frame, Cancel):
            self.attempts[frame.stream].cancel_taken = True
        if not isinstance(frame, Open) or self.intake.state not in (State.LIVE, State.DRAINING):
            return super().take_up(frame)
        assert frame.stream > self.seen_streams, "a stream number came twice"
        assert frame.attempt == self.attempts[frame.stream].id
        self.seen_streams = frame.stream
        if self.simulation.rng.random() > 0.04:
            return super().take_up(frame)
        self.simulation.met["unreadable"] += 1
        return self.intake.unreadable(self.epoch, frame.stream, frame.attempt, "label.personal")

    def started(self, opened: Open) -> None:
        """An engine takes the attempt."""
        attempt = self.attempts[opened.stream]
        assert not attempt.started
        attempt.started = True
        rng = self.simulation.rng
        if rng.random() < 0.1:
            self.clock.after(
                rng.randrange(200 * MS),
                lambda: self._engine_end(attempt, self.intake.refused(attempt.stream, "engine_busy", "No room.")),
            )
            return
        tokens = rng.choice((0, 1, 5, 40, 120))
        plan = (rng.choice((1, 1, 3)), rng.choice((0, 4, 4, 900, 6_000)), rng.choice((1, 10, 65)) * MS)
        self.clock.after(rng.randrange(1 * S), lambda: self._accept(attempt, tokens, plan))

    def _accept(self, attempt: Attempt, tokens: int, plan: tuple[int, int, int]) -> None:
        self.act_intake(self.intake.accepted(attempt.stream, ReplicaId("r-1")))
        self._make(attempt, tokens, plan)

    def _make(self, attempt: Attempt, left: int, plan: tuple[int, int, int]) -> None:
        """One step of the engine: some tokens, or its end."""
        together, pad, gap_us = plan
        if attempt.stop_seen:
            attempt.stops_after -= 1
        if attempt.stops_after < 0:
            counts = PoolCounts(3, 0, attempt.made_count)
            self._engine_end(attempt, self.intake.done(attempt.stream, "cancelled", counts))
            return
        if left <= 0:
            if self.simulation.rng.random() < 0.1:
                counts = PoolCounts(3, 0, attempt.made_count)
                self._engine_end(attempt, self.intake.broken(attempt.stream, "engine_failed", "It died.", counts))
            else:
                counts = PoolCounts(3, 0, attempt.made_count)
                self._engine_end(attempt, self.intake.done(attempt.stream, "stop", counts))
            return
        count = min(left, together)
        text = f"{attempt.number}:{attempt.made_count} " + "é" * pad
        told = pad != 900
        ids = tuple(attempt.number * 1_000 + attempt.made_count + index for index in range(count)) if told else ()
        attempt.made += text
        attempt.made_ids += ids
        attempt.made_count += count
        attempt.made_bytes += len(text.encode()) + 4 * len(ids)
        self.act_intake(self.intake.tokens(attempt.stream, text, ids, count))
        if not attempt.ahead_ends and not attempt.settled_at_intake:
            ahead_bytes = attempt.made_bytes - attempt.sent_bytes
            assert ahead_bytes <= AHEAD_BYTES_MAX + attempt.credit_bytes, "an engine ran too far ahead"
        self.clock.after(gap_us, lambda: self._make(attempt, left - count, plan))

    def _engine_end(self, attempt: Attempt, instructions: list[session_intake.Instruction]) -> None:
        attempt.engine_ended = True
        self.act_intake(instructions)

    def sent_down(self, frame: IntakeFrame) -> None:
        """Check what the intake sends."""
        self.kept_down.append(frame)
        if isinstance(frame, Tokens):
            assert not self.attempts[frame.stream].cancel_taken, "tokens for nobody"
            self.attempts[frame.stream].sent_bytes += held_bytes(frame.text, frame.ids) - held_bytes("", ())
        elif isinstance(frame, Broken) and frame.code == "slow_reader":
            self.attempts[frame.stream].ahead_ends = True
        self._one_more_frame()

    def sent_up(self, frame: EdgeFrame) -> None:
        """Remember what the edge sends."""
        self.kept_up.append(frame)
        self._one_more_frame()

    def stopped(self, instruction: session_intake.Stop) -> None:
        """The engine hears of it a moment later."""
        attempt = self.attempts[instruction.stream]
        attempt.stop_seen = attempt.ahead_ends = True
        self.simulation.met[f"stop {instruction.reason}"] += 1

    def settled(self, instruction: session_intake.Settled) -> None:
        """Once per stream, with what was put on the wire."""
        attempt = self.attempts[instruction.stream]
        assert instruction.attempt == attempt.id
        attempt.settled_at_intake += 1
        assert attempt.settled_at_intake == 1, "settled twice"
        assert instruction.sent <= attempt.made_count
        assert attempt.got_count <= instruction.sent or instruction.counts is None
        if instruction.counts is not None:
            assert instruction.counts.delivered <= instruction.counts.received <= instruction.sent

    def intake_closed(self, reason: str) -> None:
        """Nothing is left running or unsettled."""
        self.simulation.met[f"intake closed {reason}"] += 1
        assert self.faulty or self.edge.state is State.CLOSED, "a healthy session was given up"
        assert self.intake.streams() == 0
        for attempt in self.attempts.values():
            assert attempt.settled_at_intake == (attempt.stream <= self.seen_streams), "not settled, once"
            assert not attempt.started or attempt.engine_ended or attempt.stop_seen, "an engine works for nobody"

    def intake_ticked(self) -> None:
        """Silence beyond the limit is never survived."""
        if self.intake.state is State.CLOSED:
            return
        limit_ms = (DEAD_BUSY_MS if self.intake.streams() else DEAD_IDLE_MS) + 1_000
        silent_us = self.clock.now_us - self.intake_heard_us
        assert silent_us <= limit_ms * MS + 2 * INTAKE_TICK_US, "a dead session was kept"

    # Faults

    def fail_transport(self) -> None:
        """Both ends learn of it, each in its own time."""
        if self.lost_transport:
            return
        self.faulty = self.lost_transport = True
        self.lose()
        rng = self.simulation.rng
        self.clock.after(rng.randrange(2 * S), lambda: self.act_edge(self.edge.lost("session_lost")))
        self.clock.after(rng.randrange(2 * S), lambda: self.act_intake(self.intake.lost("session_lost")))

    def cut(self, up: bool, down: bool, for_us: int | None) -> None:
        """Let nothing pass in one direction or both, for a time or for good."""
        self.faulty = True
        self.up.cut, self.down.cut = self.up.cut or up, self.down.cut or down
        if for_us is not None:
            self.clock.after(for_us, self.up.heal)
            self.clock.after(for_us, self.down.heal)

    def stray(self, before: Session | None) -> None:
        """Frames of an old epoch, and of streams that are dead: dropped, counted, and nothing else."""
        rng = self.simulation.rng
        if before is not None and self.edge.state is not State.GREETING and before.kept_down:
            dropped = self.edge.dead_frames
            assert self.take_down(before.epoch, rng.choice(before.kept_down)) == []
            assert self.edge.dead_frames == dropped + 1
            self.simulation.met["old epoch"] += 1
        if self.edge.state in (State.LIVE, State.DRAINING):
            self._stray_down()
        if self.intake.state in (State.LIVE, State.DRAINING):
            self._stray_up(before)

    def _stray_down(self) -> None:
        live = next((a for a in self.attempts.values() if not a.settled_at_edge and not a.terminals), None)
        if live is not None:
            dropped = self.edge.dead_frames
            self.edge_heard_us = self.clock.now_us
            other = Tokens(live.stream, self.simulation.stranger, live.got_count, 1, "x", (1,))
            assert self.take_down(self.epoch, other) == [], "a frame of another attempt was taken"
            assert self.edge.dead_frames == dropped + 1
            self.simulation.met["other attempt"] += 1
        for frame in self.kept_down:
            if not isinstance(frame, Tokens | Done | Refused | Broken):
                continue
            if self.attempts[frame.stream].settled_at_edge:
                dropped = self.edge.dead_frames
                self.edge_heard_us = self.clock.now_us
                assert self.take_down(self.epoch, frame) == []
                assert self.edge.dead_frames == dropped + 1
                self.simulation.met["dead stream"] += 1
                return

    def _stray_up(self, before: Session | None) -> None:
        dropped = self.intake.dead_frames
        for frame in self.kept_up:
            if isinstance(frame, Credit | Cancel | Settle) and self.attempts[frame.stream].settled_at_intake:
                self.intake_heard_us = self.clock.now_us
                assert self.take_up(frame) == []
                dropped += 1
                break
        if before is not None:
            old = next((frame for frame in before.kept_up if not isinstance(frame, Hello | Beat)), None)
            if old is not None:
                now_us = self.clock.now_us
                assert self.intake.received(before.epoch, old, now_us, self.wall_ms(), (load(1),)) == []
                dropped += 1
        assert self.intake.dead_frames == dropped

    def _one_more_frame(self) -> None:
        self.frames_left -= 1
        if self.frames_left == 0:
            self.clock.after(0, self.fail_transport)


class Simulation:
    """One world."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.rng = Random(seed)
        self.clock = Clock()
        self.met: Counter[str] = Counter()
        self.attempts: list[Attempt] = []
        self.sessions: list[Session] = []
        self.faults = self.rng.choice(("none", "step", "cut", "one-way", "mixed", "drain"))
        self.stranger = AttemptId(made_id("att", 1 << 64))
        """An attempt that nobody opened."""
        self._redialling = False
        self._over = False

    def run(self) -> Counter[str]:
        """Run it to its end. Raises AssertionError with the seed."""
        try:
            self._run()
        except Exception as failure:
            failure.add_note(f"seed {self.seed} ({self.faults})")
            raise
        return self.met

    def _run(self) -> None:
        self._dial()
        self.clock.run(OPENING_UNTIL_US)
        self._over = True
        self.clock.run(LEAVING_AT_US)
        for attempt in self.attempts:
            # Whoever is still there leaves, or reads what waits at once.
            attempt.read_every_us = 1 * MS
            if attempt.leaves_at_us is None:
                attempt.leaves_at_us = self.clock.now_us
        self.clock.run(END_US)
        for session in self.sessions:
            session.faulty = True
            session.act_edge(session.edge.lost("session_lost"))
            session.act_intake(session.intake.lost("session_lost"))
        self.clock.run(END_US + 20 * S)
        for attempt in self.attempts:
            assert attempt.settled_at_edge, "an attempt never came to its end"
            assert len(attempt.terminals) == 1 or (attempt.left and not attempt.terminals)

    def redial(self) -> None:
        """Open a new session a little later."""
        if not self._redialling and not self._over:
            self._redialling = True
            self.clock.after(self.rng.randrange(100 * MS, 1 * S), self._dial)

    def _dial(self) -> None:
        self._redialling = False
        before = self.sessions[-1] if self.sessions else None
        session = Session(self, len(self.sessions) + 1)
        self.sessions.append(session)
        session.connect()
        self._plan(session)
        self._open_more(session)
        for _ in range(3):
            self.clock.after(self.rng.randrange(6 * S), lambda: session.stray(before))

    def _plan(self, session: Session) -> None:
        rng = self.rng
        faults = rng.choice(("none", "step", "cut", "one-way")) if self.faults == "mixed" else self.faults
        at_us = rng.randrange(6 * S)
        if faults == "step":
            session.frames_left = rng.randrange(1, 80)
        elif faults == "cut":
            for_us = rng.choice((None, rng.randrange(5 * S)))
            self.clock.after(at_us, lambda: session.cut(True, True, for_us))
        elif faults == "one-way":
            up, for_us = rng.random() < 0.5, rng.choice((None, rng.randrange(5 * S)))
            self.clock.after(at_us, lambda: session.cut(up, not up, for_us))
        elif faults == "drain":
            self.clock.after(at_us, lambda: session.act_intake(session.intake.drain(5_000)))

    def _open_more(self, session: Session) -> None:
        if self._over or session.edge.state is State.CLOSED:
            return
        if len(self.attempts) < 40:
            session.open(len(self.attempts) + 1)
        self.clock.after(self.rng.choice((5, 50, 400, 1_500)) * MS, lambda: self._open_more(session))
        if self.rng.random() < 0.3 and session.intake.state is State.LIVE:
            session.act_intake(session.intake.load(load(self.clock.now_us)))
