"""Edges and an intake with their real machines, ordered lines between them, and a clock that is not real.

The nodes do what the programs do around the machines (`node_agent.uplink.session_link`, `scheduler.intake.sessions`),
without sockets. A world's subclass looks on through the methods at the end of `World`, and plays tenants and engines.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable

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
from orchestrator.wire.attachments import Attachments, Limits
from orchestrator.wire.frames import EdgeFrame, Hello, IntakeFrame, Load, Open
from orchestrator.wire.intake_stream import GoOn, Hold
from orchestrator.wire.session_edge import EdgeSession, State
from orchestrator.wire.session_intake import IntakeSession

POOL = PoolId("pool")
WALL_MS = 1_790_000_000_000
EDGE_TICK_US = session_edge.TICK_MS * 1_000
INTAKE_TICK_US = session_intake.TICK_MS * 1_000
DIAL_PAUSE_US = 20_000
FACTS = Facts(Entity(EntityId("acme"), Jurisdiction("SG")), Effective(origin=frozenset({Jurisdiction("SG")})))
CITATION = Citation(1, Digest("sha256:" + "0" * 64), WALL_MS, 1, 0, SideId("overseas"))
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
        KeyId("edge-1"), b"", credit_bytes, 60_000,
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


class Line:
    """One direction of a connection: what is sent arrives in order, later, or never."""

    def __init__(self, clock: Clock, delay_us: Callable[[], int], arrive: Callable[[object], None]) -> None:
        self.dead = False
        self._clock = clock
        self._delay_us = delay_us
        self._arrive = arrive
        self._cut = False
        self._held: list[object] = []
        self._last_us = 0

    def busy_until(self, at_us: int) -> None:
        """Nothing arrives before."""
        self._last_us = max(self._last_us, at_us)

    def send(self, what: object) -> None:
        """Put something on the line. None is the end of the connection."""
        self._last_us = due_us = max(self._clock.now_us + self._delay_us(), self._last_us)
        self._clock.after(due_us - self._clock.now_us, lambda: self._arrived(what))

    def cut(self) -> None:
        """Let nothing pass, and keep it."""
        self._cut = True

    def heal(self) -> None:
        """Let pass what a cut held back."""
        self._cut = False
        held, self._held = self._held, []
        for what in held:
            self._arrived(what)

    def _arrived(self, what: object) -> None:
        if self._cut:
            self._held.append(what)
        elif not self.dead:
            self._arrive(what)


class Wire:
    """One transport: a line each way between an edge and the intake."""

    def __init__(self, world: World, edge: EdgeNode | None, rtt_us: int, jitter_us: int = 0) -> None:
        def delay_us() -> int:
            return rtt_us // 2 + world.chance(jitter_us)

        self.edge = edge
        self.session: IntakeSession | None = None
        """At the intake, once it has greeted."""
        self.epoch = 0
        self.spoken: list[tuple[int, EdgeFrame]] = []
        """All that went up, for those who repeat it."""
        self.outbox: list[tuple[int, EdgeFrame]] = []
        self.world = world
        self.intake = world.intake
        self.up = Line(world.clock, delay_us, lambda what: self.intake.awake(lambda: self.intake.arrived(self, what)))
        self.down = Line(world.clock, delay_us, self._at_edge)
        # The connection is made first.
        self.up.busy_until(world.clock.now_us + rtt_us)
        self.intake.connections.append(self)

    def say(self, epoch: int, frame: EdgeFrame) -> None:
        """Put a frame of the edge into the outbox, and that on the line a moment later."""
        self.outbox.append((epoch, frame))
        if len(self.outbox) == 1:
            self.world.clock.after(self.world.chance(self.world.write_us), self._write)

    def unsent(self) -> list[EdgeFrame]:
        """Return what never reached the line."""
        left, self.outbox = self.outbox, []
        return [frame for _, frame in left]

    def _write(self) -> None:
        left, self.outbox = self.outbox, []
        for epoch, frame in left:
            if self.edge is not None:
                self.world.sent_up(self.edge, frame)
            self.spoken.append((epoch, frame))
            self.up.send((epoch, frame))

    def lose(self) -> None:
        """Lose it: nothing that is on its way arrives."""
        self.up.dead = self.down.dead = True

    def _at_edge(self, what: object) -> None:
        edge = self.edge
        if edge is not None:
            edge.awake(lambda: edge.arrived(self, what))


class Node:
    """A program that may be stopped for a while, and does everything that it missed when it wakes: ticks first."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.clock = world.clock
        self.slept = False
        self._asleep_until_us = 0
        self._missed: list[Callable[[], None]] = []

    def sleep(self, for_us: int, *, longer: bool = False) -> None:
        """Stop it, as SIGSTOP does. One that sleeps already sleeps on, or `longer`."""
        if longer or self.clock.now_us >= self._asleep_until_us:
            self.slept = True
            self._asleep_until_us = max(self._asleep_until_us, self.clock.now_us + for_us)
            self.clock.after(for_us, self._wake)

    def awake(self, act: Callable[[], None]) -> None:
        """Do it now, or when awake."""
        if self.clock.now_us < self._asleep_until_us:
            self._missed.append(act)
        else:
            act()

    def tick(self) -> None:
        """Time passed."""

    def _wake(self) -> None:
        if self.clock.now_us < self._asleep_until_us:
            return
        missed, self._missed = self._missed, []
        self.tick()
        for act in missed:
            act()


class EdgeNode(Node):
    """An edge with one session after the other, over one transport after the other."""

    def __init__(self, world: World, name: str) -> None:
        super().__init__(world)
        self.name = EdgeId(name)
        self.machine = EdgeSession(self.name, world.new_session())
        self.wire: Wire | None = None
        self._life = 0
        self._ticking()

    def dial(self) -> None:
        """Open a transport, unless there is one."""
        if self.wire is None and self.machine.state is not State.CLOSED:
            self.act(self.machine.tick(self.clock.now_us))
        if self.wire is None and self.machine.state in (State.GREETING, State.DETACHED):
            self.wire = wire = self.world.connect(self)
            self.act(self.machine.connected(self.clock.now_us, self.world.wall_ms(self)))
            if not self.world.intake.up:
                wire.lose()
                self.clock.after(self.world.rtt_us, lambda: self.awake(lambda: self.turned_away(wire)))

    def act(self, instructions: list[session_edge.Instruction]) -> None:
        """Carry out what the machine asks for."""
        for instruction in instructions:
            if isinstance(instruction, session_edge.Send):
                if self.wire is not None:
                    self.wire.say(self.machine.epoch, instruction.frame)
            elif isinstance(instruction, session_edge.Deliver):
                self.world.delivered(self, instruction)
            elif isinstance(instruction, session_edge.Detach):
                self.world.edge_detached(self, instruction.reason)
                self._hang_up()
            else:
                self.world.edge_closed(self, instruction.reason)
                self._hang_up()

    def arrived(self, wire: Wire, what: object) -> None:
        """Something came down a line. What comes down one that was given up is not read."""
        if wire is not self.wire:
            return
        if what is None:
            self.lose(wire)
        elif isinstance(what, tuple):
            epoch, frame = what
            self.act(self.machine.received(epoch, [frame], self.clock.now_us, self.world.wall_ms(self)))

    def lose(self, wire: Wire) -> None:
        """It is noticed that a transport is gone."""
        if wire is self.wire:
            self.wire = None
            lived = self.machine.state in (State.LIVE, State.DRAINING)
            if lived:
                self.world.edge_detached(self, "lost")
            self.act(self.machine.lost(self.clock.now_us, wire.unsent()))
            self.clock.after(0 if lived else DIAL_PAUSE_US, self.dial)

    def turned_away(self, wire: Wire) -> None:
        """Nobody listens."""
        if wire is self.wire:
            self.wire = None
            self.act(self.machine.lost(self.clock.now_us, wire.unsent()))
            self.act(self.machine.close("session_lost"))

    def crash(self) -> None:
        """Everything in memory is gone."""
        if self.wire is not None:
            wire = self.wire
            self.wire = None
            wire.unsent()
            wire.up.send(None)
        self._missed = []
        self.machine = EdgeSession(self.name, self.world.new_session())

    def begin(self) -> None:
        """Begin a new session, where the old one is over."""
        if self.machine.state is State.CLOSED:
            self.machine = EdgeSession(self.name, self.world.new_session(), self.machine.epoch)
        self.dial()

    def tick(self) -> None:
        self.act(self.machine.tick(self.clock.now_us))
        self.world.edge_ticked(self)

    def _hang_up(self) -> None:
        if self.wire is not None:
            wire, self.wire = self.wire, None
            self.act(self.machine.lost(self.clock.now_us, wire.unsent()))
            wire.up.send(None)
            wire.edge = None
            self.clock.after(0, self.dial)

    def _ticking(self) -> None:
        self.awake(self.tick)
        self.clock.after(EDGE_TICK_US, self._ticking)


class IntakeNode(Node):
    """An intake with the sessions of every edge."""

    def __init__(self, world: World, limits: Limits) -> None:
        super().__init__(world)
        self.up = True
        self.number = 0
        self.limits = limits
        self.attachments = Attachments(SchedulerId("site"), "0", limits)
        self.wires: dict[IntakeSession, Wire | None] = {}
        """Every session, with the transport that carries it."""
        self.connections: list[Wire] = []
        """Every transport that was made since it was started."""
        self._ticking()

    def arrived(self, wire: Wire, what: object) -> None:
        """Something came up a line."""
        if not self.up:
            return
        if what is None:
            if wire.session is not None and self.wires.get(wire.session) is wire:
                self.wires[wire.session] = None
                self.act(wire.session, wire.session.lost(self.clock.now_us))
                self.changed(wire.session)
            return
        assert isinstance(what, tuple)
        epoch, frame = what
        session = wire.session
        if session is None:
            session = self._greeted(wire, frame)
        elif self.wires.get(session) is not wire:
            return  # another transport has taken its place
        if session is not None:
            self.act(session, self.world.take_up(session, epoch, frame))
            self.changed(session)

    def act(self, session: IntakeSession, instructions: list[session_intake.Instruction]) -> None:
        """Carry out what a machine asks for."""
        for instruction in instructions:
            if isinstance(instruction, session_intake.Send):
                if (wire := self.wires.get(session)) is not None:
                    self.world.sent_down(session, instruction.frame)
                    wire.down.send((wire.epoch, instruction.frame))
            elif isinstance(instruction, session_intake.Start):
                self.world.started(session, instruction.open)
            elif isinstance(instruction, session_intake.Stop):
                self.world.stopped(session, instruction)
            elif isinstance(instruction, Hold | GoOn):
                self.world.held(session, instruction)
            elif isinstance(instruction, session_intake.Settled):
                self.world.settled(session, instruction)
            else:
                if isinstance(instruction, session_intake.Detach):
                    self.world.intake_detached(session, instruction.reason)
                else:
                    self.world.intake_closed(session, instruction.reason)
                if (wire := self.wires.get(session)) is not None:
                    wire.down.send(None)
                    self.wires[session] = None
                self.changed(session)

    def changed(self, session: IntakeSession) -> None:
        """A session gained or lost its transport, holds more without one, or is over."""
        for other, instructions in self.attachments.changed(session):
            self.act(other, instructions)
        assert self.attachments.held_bytes <= self.limits.detached_bytes
        if session.is_over():
            self.wires.pop(session, None)

    def crash(self) -> None:
        """Everything in memory is gone, with every connection that was made to it; nobody listens until `restart`."""
        self.up = False
        self._missed = []
        for wire in self.connections:
            wire.up.dead = True
            wire.down.send(None)
        self.wires, self.connections = {}, []

    def restart(self) -> None:
        """Listen again, as another instance."""
        if not self.up:
            self.up = True
            self.number += 1
            self.attachments = Attachments(SchedulerId("site"), str(self.number), self.limits)

    def tick(self) -> None:
        for session in list(self.wires):
            if session in self.wires:
                self.act(session, session.tick(self.clock.now_us))
                self.changed(session)
                self.world.intake_ticked(session)

    def _greeted(self, wire: Wire, frame: EdgeFrame) -> IntakeSession | None:
        session = self.attachments.greeted(frame) if isinstance(frame, Hello) else None
        if session is None or not isinstance(frame, Hello):
            wire.down.send(None)
            return None
        before = self.wires.get(session)
        if before is not None:
            before.down.send(None)
        wire.session, wire.epoch = session, frame.epoch
        self.wires[session] = wire
        return session

    def _ticking(self) -> None:
        self.awake(self.tick)
        self.clock.after(INTAKE_TICK_US, self._ticking)


class World:
    """One intake, its edges, and what lies between. What happens is told to the methods below."""

    def __init__(self, rtt_us: int, limits: Limits, skew_ms: int = 0) -> None:
        self.clock = Clock()
        self.rtt_us = rtt_us
        self.skew_ms = skew_ms
        """Of the intake's wall clock."""
        self.write_us = 0
        """A frame waits less than this for the line."""
        self.sessions = 0
        self.intake = IntakeNode(self, limits)

    def new_session(self) -> SessionId:
        """Return an id that was never given."""
        self.sessions += 1
        return SessionId(made_id("ses", self.sessions))

    def wall_ms(self, edge: EdgeNode | None = None) -> int:
        """Return what the wall clock of an edge says, or of the intake."""
        return WALL_MS + self.clock.now_us // 1000 + (self.skew_ms if edge is None else 0)

    def connect(self, edge: EdgeNode) -> Wire:
        """Return a new transport of `edge`."""
        return Wire(self, edge, self.rtt_us)

    def chance(self, below: int) -> int:
        """Return a number below."""
        return 0

    def take_up(self, session: IntakeSession, epoch: int, frame: EdgeFrame) -> list[session_intake.Instruction]:
        """Give a frame to a machine of the intake."""
        if isinstance(frame, Hello):
            return session.greeted(epoch, frame, self.clock.now_us, self.wall_ms(), (load(1),))
        return session.received(epoch, [frame], self.clock.now_us)

    def sent_up(self, edge: EdgeNode, frame: EdgeFrame) -> None:
        """An edge sent a frame."""

    def sent_down(self, session: IntakeSession, frame: IntakeFrame) -> None:
        """The intake sent a frame."""

    def delivered(self, edge: EdgeNode, instruction: session_edge.Deliver) -> None:
        """An edge handed a frame to a request."""

    def edge_detached(self, edge: EdgeNode, reason: str) -> None:
        """An edge lost its transport, or gave it up."""

    def edge_closed(self, edge: EdgeNode, reason: str) -> None:
        """An edge ended its session."""

    def edge_ticked(self, edge: EdgeNode) -> None:
        """An edge judged silence."""

    def started(self, session: IntakeSession, opened: Open) -> None:
        """The intake wants an attempt to be run."""

    def stopped(self, session: IntakeSession, instruction: session_intake.Stop) -> None:
        """The intake wants the work of a stream to stop."""

    def held(self, session: IntakeSession, instruction: Hold | GoOn) -> None:
        """The intake wants an engine to wait, or to go on."""

    def settled(self, session: IntakeSession, instruction: session_intake.Settled) -> None:
        """A stream is settled."""

    def intake_detached(self, session: IntakeSession, reason: str) -> None:
        """The intake gave a transport up."""

    def intake_closed(self, session: IntakeSession, reason: str) -> None:
        """The intake ended a session."""

    def intake_ticked(self, session: IntakeSession) -> None:
        """The intake judged silence."""
