"""Two session machines, an ordered line per direction between them, and a clock that is not real."""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.evidence.citation import Citation
from orchestrator.policy.entities import Entity
from orchestrator.policy.facts import Facts
from orchestrator.policy.ids import (
    AttemptId,
    DecisionId,
    Digest,
    EdgeId,
    EntityId,
    KeyId,
    ModelId,
    PoolId,
    RequestId,
    SchedulerId,
    SessionId,
    SideId,
)
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Effective
from orchestrator.wire import session_edge, session_intake
from orchestrator.wire.frames import EdgeFrame, IntakeFrame, Load, Open
from orchestrator.wire.session_edge import EdgeSession
from orchestrator.wire.session_intake import IntakeSession

POOL = PoolId("pool")
WALL_MS = 1_790_000_000_000
EDGE_TICK_US = 100_000
INTAKE_TICK_US = 250_000
FACTS = Facts(Entity(EntityId("acme"), Jurisdiction("SG")), Effective(origin=frozenset({Jurisdiction("SG")})))
CITATION = Citation(SideId("overseas"), 1, Digest("sha256:" + "0" * 64), 0, WALL_MS, 1)
GENERATION = Generation(ModelId("m"), (Message(Role.USER, "hello"),), Sampling())


def made_id(prefix: str, number: int) -> str:
    """Return an id in the form that we make."""
    return f"{prefix}_{number:032x}"


def open_frame(stream: int, number: int, credit_bytes: int) -> Open:
    """Return the opening of attempt `number`."""
    return Open(
        stream,
        AttemptId(made_id("att", number)),
        DecisionId(made_id("dec", number)),
        RequestId(made_id("req", number)),
        POOL,
        GENERATION,
        FACTS,
        CITATION,
        KeyId("edge-1"),
        b"",
        credit_bytes,
        60_000,
    )


def load(number: int) -> Load:
    """Return a report of the one pool."""
    return Load(number, POOL, 1, 8, 0, 0, 8)


class Clock:
    """Virtual time and what is due in it."""

    def __init__(self) -> None:
        self.now_us = 0
        self._due: list[tuple[int, int, Callable[[], None]]] = []
        self._count = 0

    def after(self, delay_us: int, act: Callable[[], None]) -> None:
        """Do `act` later. What is due at the same time is done in the order in which it was asked for."""
        self._count += 1
        heapq.heappush(self._due, (self.now_us + delay_us, self._count, act))

    def run(self, until_us: int) -> None:
        """Let time pass."""
        while self._due and self._due[0][0] <= until_us:
            self.now_us, _, act = heapq.heappop(self._due)
            act()
        self.now_us = until_us


@dataclass(slots=True)
class Line:
    """One direction of a connection: what is sent arrives in order, later, or never."""

    clock: Clock
    delay_us: Callable[[], int]
    arrive: Callable[[object], None]
    cut: bool = False
    dead: bool = False
    _held: deque[object] = field(default_factory=deque)  # bounded: by what one simulation sends
    _last_us: int = 0

    def send(self, what: object) -> None:
        """Put something on the line. None is the end of the connection."""
        due_us = max(self.clock.now_us + self.delay_us(), self._last_us)
        self._last_us = due_us
        self.clock.after(due_us - self.clock.now_us, lambda: self._arrived(what))

    def heal(self) -> None:
        """Let pass what a cut held back."""
        self.cut = False
        while self._held and not self.cut and not self.dead:
            self.arrive(self._held.popleft())

    def _arrived(self, what: object) -> None:
        if self.dead:
            return
        if self.cut or self._held:
            self._held.append(what)
        else:
            self.arrive(what)


class Pair:
    """One session: both machines, the lines between them, and their ticks. Subclasses carry out instructions."""

    def __init__(
        self, clock: Clock, epoch: int, delay_us: Callable[[], int], streams_max: int = 64, skew_ms: int = 0
    ) -> None:
        self.clock = clock
        self.epoch = epoch
        self.edge = EdgeSession(EdgeId("edge-a"), SessionId(made_id("ses", epoch)), epoch)
        self.intake = IntakeSession(SchedulerId("site"), "instance", streams_max)
        self.up = Line(clock, delay_us, self._at_intake)
        self.down = Line(clock, delay_us, self._at_edge)
        self.skew_ms = skew_ms
        self.edge_heard_us = clock.now_us
        self.intake_heard_us = clock.now_us

    def wall_ms(self) -> int:
        """Return what the edge's wall clock says."""
        return WALL_MS + self.clock.now_us // 1000

    def connect(self) -> None:
        """Open the transport."""
        self.intake.connected(self.clock.now_us)
        self.act_edge(self.edge.connected(self.clock.now_us, self.wall_ms()))
        self.clock.after(EDGE_TICK_US, self._edge_tick)
        self.clock.after(INTAKE_TICK_US, self._intake_tick)

    def lose(self) -> None:
        """Lose the transport: nothing that is on its way arrives."""
        self.up.dead = self.down.dead = True

    def act_edge(self, instructions: list[session_edge.Instruction]) -> None:
        """Carry out what the edge's machine asks for."""
        for instruction in instructions:
            if isinstance(instruction, session_edge.Send):
                self.sent_up(instruction.frame)
                self.up.send(instruction.frame)
            elif isinstance(instruction, session_edge.Deliver):
                self.delivered(instruction)
            else:
                self.up.send(None)
                self.edge_closed(instruction.reason)

    def act_intake(self, instructions: list[session_intake.Instruction]) -> None:
        """Carry out what the intake's machine asks for."""
        for instruction in instructions:
            if isinstance(instruction, session_intake.Send):
                self.sent_down(instruction.frame)
                self.down.send(instruction.frame)
            elif isinstance(instruction, session_intake.Start):
                self.started(instruction.open)
            elif isinstance(instruction, session_intake.Stop):
                self.stopped(instruction)
            elif isinstance(instruction, session_intake.Settled):
                self.settled(instruction)
            else:
                self.down.send(None)
                self.intake_closed(instruction.reason)

    def sent_up(self, frame: EdgeFrame) -> None:
        """The edge sent a frame."""

    def sent_down(self, frame: IntakeFrame) -> None:
        """The intake sent a frame."""

    def delivered(self, instruction: session_edge.Deliver) -> None:
        """The edge handed a frame to a request."""

    def edge_closed(self, reason: str) -> None:
        """The edge ended the session."""

    def started(self, opened: Open) -> None:
        """The intake wants an attempt to be run."""

    def stopped(self, instruction: session_intake.Stop) -> None:
        """The intake wants the work of a stream to stop."""

    def settled(self, instruction: session_intake.Settled) -> None:
        """A stream is settled."""

    def intake_closed(self, reason: str) -> None:
        """The intake ended the session."""

    def edge_ticked(self) -> None:
        """The edge judged silence."""

    def intake_ticked(self) -> None:
        """The intake judged silence."""

    def _at_intake(self, what: object) -> None:
        if what is None:
            self.act_intake(self.intake.lost("session_lost"))
        else:
            self.intake_heard_us = self.clock.now_us
            self.act_intake(self.take_up(what))  # type: ignore[arg-type]

    def _at_edge(self, what: object) -> None:
        if what is None:
            self.act_edge(self.edge.lost("session_lost"))
        else:
            self.edge_heard_us = self.clock.now_us
            self.act_edge(self.take_down(self.epoch, what))  # type: ignore[arg-type]

    def take_up(self, frame: EdgeFrame) -> list[session_intake.Instruction]:
        """Give a frame to the intake's machine."""
        now_us, wall_ms = self.clock.now_us, self.wall_ms() + self.skew_ms
        return self.intake.received(self.epoch, frame, now_us, wall_ms, (load(1),))

    def take_down(self, epoch: int, frame: IntakeFrame) -> list[session_edge.Instruction]:
        """Give a frame to the edge's machine."""
        return self.edge.received(epoch, frame, self.clock.now_us, self.wall_ms())

    def _edge_tick(self) -> None:
        self.act_edge(self.edge.tick(self.clock.now_us))
        self.edge_ticked()
        if self.edge.state is not session_edge.State.CLOSED:
            self.clock.after(EDGE_TICK_US, self._edge_tick)

    def _intake_tick(self) -> None:
        self.act_intake(self.intake.tick(self.clock.now_us))
        self.intake_ticked()
        if self.intake.state is not session_edge.State.CLOSED:
            self.clock.after(INTAKE_TICK_US, self._intake_tick)
