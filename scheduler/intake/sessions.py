"""The gRPC socket for edges: thin I/O around `wire.session_intake`. A session outlives the calls that carry it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable

import grpc
import msgspec

from orchestrator.engines.identity import Continuing
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import EdgeId, PoolId, ReplicaId, SchedulerId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.attachments import Attachments, Limits
from orchestrator.wire.catalogue import Problem
from orchestrator.wire.convert_facts import WireError
from orchestrator.wire.convert_session import attempt_in, edge_frame_in, intake_batch_out
from orchestrator.wire.frames import ALONE, Accepted, EdgeFrame, Hello, IntakeFrame, Load, Process
from orchestrator.wire.intake_stream import GoOn, Hold
from orchestrator.wire.outbox import Outbox
from orchestrator.wire.pace import Haste
from orchestrator.wire.portions import portions
from orchestrator.wire.session_intake import (
    TICK_MS,
    Close,
    Detach,
    Instruction,
    IntakeSession,
    Send,
    Settled,
    Start,
    Stop,
)
from protos.tidegate.v1 import session_pb2 as pb
from protos.tidegate.v1.session_pb2_grpc import IntakeServicer
from scheduler.intake.site import Site

TICK_S = TICK_MS / 1000
HELLO_S = 5.0
"""How long a call may be open without a greeting."""
IDLE_REPORT_S = 10.0
"""How often, about, an edge without requests here hears how the pools are."""
IDLE_STEPS = 4
"""It hears so many ticks sooner each time, round and round: always at the same beat, one that shares openings by turns
could always be told of another's turn."""
RIDING = frozenset({Accepted, Load})
"""Frames that nobody waits for."""
# A member costs several times as much by way of its enumeration, and each frame asks.
_NOW, _GATHER, _RIDE = Haste.NOW, Haste.GATHER, Haste.RIDE
OUTBOX_FRAMES_MAX = 1 << 18
"""Frames that wait for the socket. Credit bounds the tokens; an edge that reads nothing at all ends here."""

MADE_CHARS_MAX = 4_096
"""What is gathered of one stream between two messages, beside what came in one piece."""

log = logger("scheduler.intake")


class Line:
    """One call of an edge: a transport of one session."""

    def __init__(self) -> None:
        self.port: Port | None = None
        """The session that it carries, once it has greeted."""
        self.epoch = 0
        self.closing = False
        self.outbox: Outbox[IntakeFrame] = Outbox()  # bounded: OUTBOX_FRAMES_MAX

    def end(self) -> None:
        """Say what waits, and end the call."""
        self.closing = True
        self.outbox.hurry()

    def end_ungreeted(self) -> None:
        """End a call that has not greeted in time."""
        if self.port is None:
            self.end()

    async def batches(self) -> AsyncIterator[pb.IntakeBatch]:
        """Yield what is ready, mostly as one message, as soon as the pace lets it leave, until the call ends."""
        while True:
            await self.outbox.due()
            if self.port is not None and self.port.line is self:
                self.port.gather()
            frames = self.outbox.take()
            if frames:
                for portion in portions(frames):
                    yield intake_batch_out(self.epoch, portion)
            if self.closing and not self.outbox.frames:
                return


class _Made(msgspec.Struct):
    """Tokens of one stream. Payload: its repr holds none."""

    text: str
    ids: tuple[int, ...]
    count: int

    def __repr__(self) -> str:
        return f"_Made(count={self.count})"


class Port:
    """One session: carries out what its machine asks for, and hands it what the site has."""

    def __init__(
        self, site: Site, machine: IntakeSession, now_us: Callable[[], int], changed: Callable[[Port], None]
    ) -> None:
        self.machine = machine
        self.line: Line | None = None
        """The call that carries it now."""
        self.over = False
        self._site = site
        self._now_us = now_us
        self._changed = changed
        self._made: dict[int, _Made] = {}  # bounded: by the streams
        """Tokens by stream, since the last message."""
        self._due: dict[PoolId, None] = {}  # bounded: by the pools
        """Pools whose state is to be told with the next message."""
        self._todo: deque[Instruction] = deque()  # bounded: by the frames of a message
        """What is to be carried out."""
        self._acting = False

    @property
    def edge(self) -> EdgeId | None:
        """The edge at the other end, while it is connected."""
        return self.machine.edge if self.machine.is_attached() else None

    def carry(self, line: Line, hello: Hello) -> None:
        """From now on `line` is the transport. One that was so before is ended: it only seemed to be alive."""
        self.gather()
        before, self.line = self.line, line
        line.port, line.epoch = self, hello.epoch
        if before is not None:
            before.end()

    def act(self, instructions: list[Instruction]) -> None:
        """Carry out what the machine asks for, in order: what it asks for meanwhile comes after.

        What is raised by one of them keeps back the others, until the next event at the latest.
        """
        todo = self._todo
        todo.extend(instructions)
        if self._acting:
            return
        self._acting = True
        try:
            while todo:
                instruction, line = todo.popleft(), self.line
                if type(instruction) is not Send:
                    self._carry_out(instruction)
                elif line is not None:
                    frame = instruction.frame
                    line.outbox.put(frame, _RIDE if type(frame) in RIDING else _NOW)
                if not todo and self.line is not None and len(self.line.outbox.frames) > OUTBOX_FRAMES_MAX:
                    # The edge takes nothing away.
                    self.line.outbox.drop()
                    todo.extend(self.machine.close("slow_reader"))
        finally:
            self._acting = False

    def _carry_out(self, instruction: Instruction) -> None:
        """Whatever is not to be sent."""
        if type(instruction) is Start:
            if self.machine.edge is not None and not self.over:
                self._site.start(self, self.machine.edge, instruction.open, instruction.arrived_us)
        elif type(instruction) is Stop:
            self._site.stop(self, instruction.stream)
        elif type(instruction) is Hold or type(instruction) is GoOn:
            self._site.hold(self, instruction.stream, held=type(instruction) is Hold)
        elif type(instruction) is Settled:
            self._site.settled(self, instruction.stream, instruction.counts, instruction.sent)
        elif type(instruction) is Detach:
            self._leave()
        elif type(instruction) is Close:
            self.over = True
            log.info(Event.SESSION_CLOSED, session_id=self.machine.session or "", code=instruction.reason)
            self._leave()

    def lost(self, line: Line) -> None:
        """A call ended. When it was the one that carries the session, that waits for another."""
        if self.line is line:
            self.gather()
            self.line = None
            self.act(self.machine.lost(self._now_us()))
            self._changed(self)

    def gather(self) -> None:
        """Hand the machine what came since the last message: all tokens of a stream at once, and each pool's state."""
        while self._made or self._due:
            made, self._made = self._made, {}
            told: list[Instruction] = []
            for stream, one in made.items():
                told += self.machine.tokens(stream, one.text, one.ids, one.count)
            due, self._due = self._due, {}
            for pool in due:
                told += self.machine.load(self._site.load(pool, self))
            self.act(told)

    def accepted(self, stream: int, replica: ReplicaId, continuing: Continuing) -> None:
        """A replica has the work."""
        self.act(self.machine.accepted(stream, replica, continuing))

    def tokens(self, stream: int, text: str, ids: tuple[int, ...], count: int, first: bool) -> None:
        """Tokens were made. They leave with the next message, for which the first of a stream do not wait."""
        made = self._made.get(stream)
        if made is None:
            made = self._made[stream] = _Made(text, ids, count)
        else:
            made.text += text
            made.ids += ids
            made.count += count
        full = len(made.text) > MADE_CHARS_MAX or len(made.ids) > MADE_CHARS_MAX
        if self.line is None:
            self.act(self._gathered(stream))
            self._changed(self)  # nobody takes them away
        elif full:
            self.act(self._gathered(stream))  # the machine judges who reads too slowly
        else:
            haste, outbox = _NOW if first else _GATHER, self.line.outbox
            if haste < outbox.haste:
                outbox.wake(haste)

    def done(self, stream: int, reason: str, counts: PoolCounts, queued_us: int | None, beside: int | None) -> None:
        """The answer is complete; how long it waited here, and how many streams ran beside it."""
        told = self._gathered(stream)
        self.act(told + self.machine.done(stream, reason, counts, queued_us, beside))

    def refused(self, stream: int, problem: Problem) -> None:
        """Nothing was generated."""
        told = self._gathered(stream)
        code, text, retry_ms = problem.entry.code, problem.text, problem.retry_after_ms
        self.act(told + self.machine.refused(stream, code, text, problem.param, problem.rules, retry_ms))

    def broken(self, stream: int, code: str, detail: str, counts: PoolCounts) -> None:
        """The answer was cut."""
        told = self._gathered(stream)
        self.act(told + self.machine.broken(stream, code, detail, counts))

    def tell(self, pool: PoolId) -> None:
        """The state of a pool is to be told. The next message has it, as it is then."""
        self._due[pool] = None
        if self.line is not None and self.line.outbox.haste > _RIDE:
            self.line.outbox.wake(_RIDE)

    def _gathered(self, stream: int) -> list[Instruction]:
        """Hand the machine what came of one stream since the last message."""
        made = self._made.pop(stream, None)
        return [] if made is None else self.machine.tokens(stream, made.text, made.ids, made.count)

    async def tick(self) -> None:
        """Judge silence; report loads often while the edge has requests here, seldom otherwise."""
        quiet_s, reports = 0.0, 0
        while not self.over:
            await asyncio.sleep(TICK_S)
            self.act(self.machine.tick(self._now_us()))
            self._changed(self)
            quiet_s += TICK_S
            if self.machine.streams() or quiet_s >= IDLE_REPORT_S - reports % IDLE_STEPS * TICK_S:
                quiet_s, reports = 0.0, reports + 1
                for load in self._site.loads(self) if self.machine.is_attached() else ():
                    self.act(self.machine.load(load))

    def _leave(self) -> None:
        line, self.line = self.line, None
        if line is not None:
            line.end()
        self._changed(self)


class IntakeService(IntakeServicer):
    """Accepts sessions of edges, and keeps those whose transport is gone for as long as the edge may come back."""

    def __init__(
        self,
        site: Site,
        scheduler: SchedulerId,
        instance: str,
        now_us: Callable[[], int],
        wall_ms: Callable[[], int],
        limits: Limits | None = None,
        process: Process = ALONE,
    ) -> None:
        self.attachments = Attachments(scheduler, instance, limits or Limits(), process)
        self._site = site
        self._now_us = now_us
        self._wall_ms = wall_ms
        self._ports: dict[IntakeSession, Port] = {}
        self._ticks: dict[Port, asyncio.Task[None]] = {}

    @property
    def ports(self) -> tuple[Port, ...]:
        """Every session that is not over."""
        return tuple(self._ports.values())

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.EdgeBatch],
        context: grpc.aio.ServicerContext[pb.EdgeBatch, pb.IntakeBatch],
    ) -> AsyncIterator[pb.IntakeBatch]:
        """One transport of a session with one edge."""
        line = Line()
        reader = asyncio.create_task(self._read(line, request_iterator))
        deadline = asyncio.get_running_loop().call_later(HELLO_S, line.end_ungreeted)
        try:
            async for batch in line.batches():
                yield batch
        finally:
            deadline.cancel()
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            if line.port is not None:
                line.port.lost(line)

    def drain(self, grace_ms: int) -> None:
        """Tell every edge that no new work is taken. Sessions still come back for what runs."""
        self.attachments.drain(grace_ms)
        for port in self.ports:
            port.act(port.machine.drain(grace_ms))

    def close(self) -> None:
        """End every session."""
        for port in self.ports:
            port.act(port.machine.close("draining"))

    async def _read(self, line: Line, batches: AsyncIterator[pb.EdgeBatch]) -> None:
        """Feed the machine. Whatever ends the stream ends the transport, and what cannot be read the session."""
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.RpcError):
            try:
                async for batch in batches:
                    self._take(line, batch)
            except WireError as error:
                log.error(Event.FRAME_DROPPED, cause="malformed", detail=error.field)
                if line.port is not None and line.port.line is line:
                    line.port.act(line.port.machine.close("protocol_violation"))
            finally:
                line.end()

    def _take(self, line: Line, batch: pb.EdgeBatch) -> None:
        """Hand the frames of one message to the session of this transport. Raises WireError."""
        epoch, now_us = batch.epoch, self._now_us()
        frames: list[EdgeFrame] = []
        try:
            for message in batch.frames:
                if line.closing:
                    return  # another transport has taken its place, or it said something unheard of
                try:
                    frame = edge_frame_in(message)
                except WireError as error:
                    if message.WhichOneof("kind") != "open" or line.port is None:
                        raise
                    # An attempt that cannot be read is refused by itself, after what came before it.
                    self._hand(line, epoch, frames, now_us)
                    frames = []
                    self._unreadable(line, epoch, message.open, error.field)
                    continue
                if line.port is not None and type(frame) is not Hello:
                    frames.append(frame)
                else:
                    self._hand(line, epoch, frames, now_us)
                    frames = []
                    self._greet(line, epoch, frame, now_us)
        finally:
            self._hand(line, epoch, frames, now_us)

    def _hand(self, line: Line, epoch: int, frames: list[EdgeFrame], now_us: int) -> None:
        if frames and line.port is not None and not line.closing:
            line.port.act(line.port.machine.received(epoch, frames, now_us))

    def _unreadable(self, line: Line, epoch: int, message: pb.Open, field: str) -> None:
        log.error(Event.ATTEMPT_REFUSED, code="policy_stale", detail=field)
        attempt = attempt_in(message.attempt)
        if line.port is not None and not line.closing:
            line.port.act(line.port.machine.unreadable(epoch, message.stream, attempt, field))

    def _greet(self, line: Line, epoch: int, frame: EdgeFrame, now_us: int) -> None:
        """Take the first frame of a transport. It ends where that is no greeting, or of no session that may be."""
        if line.closing:
            return
        if line.port is not None:
            line.port.act(line.port.machine.close("protocol_violation"))  # one transport greets once
            return
        port = self._greeted(line, frame) if type(frame) is Hello else None
        if port is None or type(frame) is not Hello:
            line.end()
            return
        port.act(port.machine.greeted(epoch, frame, now_us, self._wall_ms(), self._site.loads(port)))
        self._changed(port)

    def _greeted(self, line: Line, frame: Hello) -> Port | None:
        """Return the session that a greeting belongs to; None where it may do nothing."""
        machine = self.attachments.greeted(frame)
        if machine is None:
            log.warning(Event.SESSION_REFUSED, session_id=frame.session, epoch=frame.epoch)
            return None
        port = self._ports.get(machine)
        if port is None:
            port = self._ports[machine] = Port(self._site, machine, self._now_us, self._changed)
            self._site.session_opened(port)
            self._ticks[port] = asyncio.create_task(port.tick())
        else:
            log.info(Event.SESSION_REATTACHED, session_id=frame.session, epoch=frame.epoch)
        port.carry(line, frame)
        return port

    def _changed(self, port: Port) -> None:
        """A session gained or lost its transport, holds more without one, or is over."""
        for machine, instructions in self.attachments.changed(port.machine):
            log.warning(Event.SESSION_LOST, session_id=machine.session or "", detail="no room to keep it")
            self._ports[machine].act(instructions)
        if port.over and self._ports.pop(port.machine, None) is not None:
            self._ticks.pop(port).cancel()
            self._site.session_closed(port)
