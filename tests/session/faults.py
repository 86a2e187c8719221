"""What goes wrong in a simulated world: each mode is a kind of bad day, and says what must hold all the same."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.policy.ids import AttemptId
from orchestrator.wire.frames import Cancel, Tokens
from orchestrator.wire.session_edge import State
from orchestrator.wire.session_intake import IntakeSession
from tests.session.world import EdgeNode, Wire, made_id

if TYPE_CHECKING:
    from tests.session.simulation import Simulation

MS = 1_000
S = 1_000_000
CUTS_MAX = 14
IN_VAIN_MAX = 3
"""Transports in a row that may be cut before they are of use; with more, nobody could reattach in time."""
CUTTING = frozenset({"cuts", "far cuts", "bound", "repeat", "drain"})
STRANGER = AttemptId(made_id("att", 1 << 64))
"""An attempt that nobody opened."""


@dataclass(frozen=True, slots=True)
class Mode:
    """One kind of bad day."""

    name: str
    quick: bool = False
    """Whether the border is short, so that a session can be reattached in time."""
    may_lose: bool = True
    """Whether a session may be lost; where not, every stream must go on."""
    may_fall_silent: bool = False


MODES = (
    Mode("none", may_lose=False),
    Mode("cuts", quick=True, may_lose=False),
    Mode("far cuts"),
    Mode("flow", quick=True, may_lose=False, may_fall_silent=True),
    Mode("link", may_fall_silent=True),
    Mode("edge crash"),
    Mode("intake crash"),
    Mode("naps", may_lose=False),
    Mode("stops", may_fall_silent=True),
    Mode("bound", quick=True),
    Mode("repeat", quick=True, may_lose=False),
    Mode("drain", quick=True, may_lose=False),
    Mode("mixed", may_fall_silent=True),
)


class Faults:
    """The bad day of one world."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.mode = world.mode
        self.may_lose = world.mode.may_lose
        self.may_fall_silent = world.mode.may_fall_silent
        self._left: dict[Wire, int] = {}
        """Frames until a transport is cut."""
        self._cuts = 0
        self._row: dict[EdgeNode, tuple[int, int]] = {}
        """By edge: transports in a row that were of no use, and how often it had gone on before them."""
        self._cut_links: dict[EdgeNode, tuple[bool, bool]] = {}
        self._healed = False
        others = [world.rng.choice(MODES[:-1]).name for _ in range(3)]
        self._kinds = tuple(dict.fromkeys(others)) if world.mode.name == "mixed" else (world.mode.name,)

    def plan(self) -> None:
        """Set the faults of the day."""
        rng, after = self.world.rng, self.world.clock.after
        for edge in self.world.edges:
            at_us = rng.randrange(200 * MS, 5 * S)
            for kind in self._kinds:
                if kind == "flow":
                    after(at_us, lambda edge=edge: self._cut_flow(edge))  # type: ignore[misc]
                elif kind == "link":
                    after(at_us, lambda edge=edge: self._cut_link(edge))  # type: ignore[misc]
                elif kind == "edge crash":
                    after(at_us, lambda edge=edge: self._crash_edge(edge))  # type: ignore[misc]
                elif kind == "intake crash":
                    after(at_us, self._crash_intake)
                elif kind in ("naps", "stops"):
                    for _ in range(3):
                        after(rng.randrange(5 * S), lambda edge=edge, kind=kind: self._sleep(edge, kind))  # type: ignore[misc]
                elif kind == "drain":
                    after(at_us, self._drain)
                elif kind == "repeat":
                    for _ in range(8):
                        after(rng.randrange(300 * MS, 7 * S), lambda edge=edge: self._repeat(edge))  # type: ignore[misc]

    def connected(self, edge: EdgeNode, wire: Wire) -> None:
        """A transport is dialled: say how long it may live."""
        for line, cut in zip((wire.up, wire.down), self._cut_links.get(edge, (False, False)), strict=True):
            if cut:
                line.cut()
        if not CUTTING & set(self._kinds) or self._healed or self._cuts >= CUTS_MAX:
            return
        going_on = edge.machine.reattached
        row, before = self._row.get(edge, (0, -1))
        row = row + 1 if going_on == before else 0
        self._row[edge] = (row, going_on)
        if row >= IN_VAIN_MAX:
            return
        self._cuts += 1
        self._left[wire] = self.world.rng.randrange(1, 5 if self.world.rng.random() < 0.4 else 60)

    def one_more_frame(self, session: IntakeSession | None, wire: Wire | None = None) -> None:
        """A frame is on its way."""
        if wire is None:
            wire = None if session is None else self.world.intake.wires.get(session)
        if wire is not None and wire in self._left:
            self._left[wire] -= 1
            if self._left[wire] <= 0:
                del self._left[wire]
                self.world.clock.after(0, lambda: self.fail(wire))

    def fail(self, wire: Wire) -> None:
        """A transport is lost. Both ends learn of it, each in its own time."""
        edge = wire.edge
        if wire.up.dead or edge is None:
            return
        self.world.met["cut"] += 1
        wire.lose()
        rng, after = self.world.rng, self.world.clock.after
        after(rng.randrange(50 * MS), lambda: edge.awake(lambda: edge.lose(wire)))
        after(rng.choice((0, rng.randrange(2 * S))), lambda: self._notice(wire))

    def _notice(self, wire: Wire) -> None:
        """The intake learns that a transport is lost."""
        intake = self.world.intake
        intake.awake(lambda: intake.arrived(wire, None))

    def heal(self) -> None:
        """From now on nothing goes wrong any more."""
        self._healed = True
        self._left.clear()
        for edge in list(self._cut_links):
            self._heal_link(edge)
        self.world.intake.restart()

    def _cut_flow(self, edge: EdgeNode) -> None:
        """Something on the way forgets one connection; others pass."""
        if edge.wire is None:
            return
        self.world.met["flow cut"] += 1
        both = self.world.rng.random() < 0.4
        up = self.world.rng.random() < 0.5
        for line, cut in ((edge.wire.up, up or both), (edge.wire.down, both or not up)):
            if cut:
                line.cut()

    def _cut_link(self, edge: EdgeNode) -> None:
        rng = self.world.rng
        up, down = rng.choice(((True, True), (True, False), (False, True)))
        self._cut_links[edge] = (up, down)
        for wire in self.world.wires:
            if wire.edge is edge:
                for line, cut in ((wire.up, up), (wire.down, down)):
                    if cut:
                        line.cut()
        self.world.clock.after(rng.randrange(100 * MS, 5 * S), lambda: self._heal_link(edge))

    def _heal_link(self, edge: EdgeNode) -> None:
        if self._cut_links.pop(edge, None) is not None:
            for wire in self.world.wires:
                if wire.edge is edge:
                    wire.up.heal()
                    wire.down.heal()

    def _crash_edge(self, edge: EdgeNode) -> None:
        self.world.met["edge crash"] += 1
        wire = edge.wire
        self.world.lives[edge] += 1
        edge.crash()
        if wire is not None:
            wire.lose()
            self.world.clock.after(self.world.rng.randrange(1 * S), lambda: self._notice(wire))
        self.world.clock.after(self.world.rng.randrange(100 * MS, 2 * S), edge.begin)

    def _crash_intake(self) -> None:
        if not self.world.intake.up:
            return
        self.world.met["intake crash"] += 1
        self.world.intake.crash()
        for wire in self.world.wires:
            self.fail(wire)
        self.world.clock.after(self.world.rng.randrange(2 * S), self.world.intake.restart)

    def _sleep(self, edge: EdgeNode, kind: str) -> None:
        rng, intake = self.world.rng, self.world.intake
        which = rng.choice(("edge", "intake", "both"))
        for_us = rng.randrange(100 * MS, 2 * S if kind == "naps" and which != "both" else 6 * S)
        self.world.met[f"asleep {which}"] += 1
        if which == "both":
            # A starved machine: nobody on it is dead.
            for node in (intake, *self.world.edges):
                node.sleep(for_us, longer=True)
        else:
            (edge if which == "edge" else intake).sleep(for_us)

    def _drain(self) -> None:
        intake = self.world.intake
        intake.attachments.drain(5_000)
        for session in list(intake.wires):
            intake.act(session, session.drain(5_000))

    def _repeat(self, edge: EdgeNode) -> None:
        """Somebody says again what was said: a whole transport, or a frame of it."""
        world = self.world
        instance = world.intake.attachments.instance
        old = [
            wire
            for wire in world.wires
            # Across a restart of the intake it is TLS that lets nobody repeat a transport.
            if wire.session is not None and wire.edge is edge and wire.session.instance == instance
        ]
        if not old or edge.machine.state is State.CLOSED:
            return
        wire = world.rng.choice(old)
        again = Wire(world, None, world.rtt_us)
        for what in wire.spoken[world.rng.choice((0, 0, 1)) :]:
            again.up.send(what)
        if world.rng.random() < 0.5:
            again.up.send(None)
        world.met["repeated"] += 1
        self._late(edge, wire)

    def _late(self, edge: EdgeNode, wire: Wire) -> None:
        """Frames of an old epoch, of another attempt and of dead streams are dropped and counted, and nothing else."""
        world, now_us = self.world, self.world.clock.now_us
        machine, session = edge.machine, wire.session
        if wire.epoch < machine.epoch and session is not None and not session.is_over():
            for epoch, frame in wire.spoken[:20]:
                if epoch < session.epoch:
                    dropped = session.dead_frames
                    assert world.take_up(session, epoch, frame) == []
                    assert session.dead_frames == dropped + 1
                    world.met["old epoch"] += 1
        live = next((a for a in world.attempts if a.edge is edge and a.counts is None and not a.terminals), None)
        if live is None or machine.state is not State.LIVE:
            return
        for epoch, attempt, stream in (
            (machine.epoch, STRANGER, live.stream),
            (machine.epoch, live.id, live.stream + 10_000),
            (machine.epoch - 1, live.id, live.stream),
        ):
            dropped = machine.dead_frames
            late = Tokens(stream, attempt, live.got_count, 1, "x", (1,))
            assert machine.received(epoch, [late], machine._silence.heard_us, world.wall_ms(edge)) == []
            assert machine.dead_frames == dropped + 1
        if session is not None and session.is_attached():
            dropped = session.dead_frames
            cancel = Cancel(live.stream, STRANGER)
            assert session.received(session.epoch, [cancel], now_us) == []
            assert session.dead_frames == dropped + 1
        world.met["another's frame"] += 1
