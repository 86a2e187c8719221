"""One session to one scheduler over gRPC: thin I/O around `wire.session_edge`. It redials for as long as it lives.

A session outlives its transport: when that is lost another is dialled at once, and requests notice nothing. When the
session itself is over, a new one is begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable

import grpc
import msgspec

from node_agent.uplink.sending import Sendable, Sending, Tally, Unsent
from node_agent.uplink.stream import CREDIT_BYTES, Stream, Streams
from orchestrator.policy.ids import (
    RANDOM_BYTES,
    EdgeId,
    PoolId,
    SchedulerId,
    make_session_id,
)
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.channels import open_channel
from orchestrator.wire.convert_facts import WireError
from orchestrator.wire.convert_session import edge_batch_out, fits, intake_frame_in
from orchestrator.wire.deadlines import Deadlines
from orchestrator.wire.frames import (
    MESSAGE_BYTES_MAX,
    Credit,
    EdgeFrame,
    IntakeFrame,
    Load,
    Open,
    Process,
    Settle,
    Welcome,
)
from orchestrator.wire.outbox import Outbox
from orchestrator.wire.pace import Haste
from orchestrator.wire.portions import PORTION_BYTES_MAX, generation_bytes_most, portions
from orchestrator.wire.session_edge import TICK_MS, Deliver, EdgeSession, Instruction, Send, State
from protos.tidegate.v1 import session_pb2 as pb
from protos.tidegate.v1.session_pb2_grpc import IntakeStub

TICK_S = TICK_MS / 1000
REATTACH_PAUSE_S = 0.02
"""Between two tries to replace a lost transport."""
REFUSED = "refused"
"""In what gRPC says of a connection that nobody listens for."""
REDIAL_MIN_S = 0.1
REDIAL_MAX_S = 2.0
RIDING = frozenset({Credit, Settle})
"""Frames that nobody waits for."""
# A member costs several times as much by way of its enumeration, and each frame asks.
_NOW, _RIDE = Haste.NOW, Haste.RIDE
LEAVE_S = 2.0
LEAVE_POLL_S = 0.01
_TOO_LARGE = f"With what was said already it is larger than a message to a pool may be, {MESSAGE_BYTES_MAX} bytes."

log = logger("node_agent.uplink")


class LinkState(msgspec.Struct, frozen=True):
    """What is known of a session, for placement and for `status`."""

    scheduler: SchedulerId
    session: str
    epoch: int
    state: str
    accepts_work: bool
    rtt_us: int | None
    skew_ms: int | None
    streams: int


class SessionLink:
    """Keeps one session to `target` alive, and carries attempts over it."""

    def __init__(
        self,
        edge: EdgeId,
        scheduler: SchedulerId,
        target: str,
        wall_ms: Callable[[], int],
        went_on: Callable[[int], None] | None = None,
        wanted: Callable[[SessionLink, Process], bool] | None = None,
    ) -> None:
        """`wanted` says of each new session whether it is of use with the process of the intake that it reached."""
        self.scheduler = scheduler
        self.target = target
        self._edge = edge
        self._wall_ms = wall_ms
        self._went_on = went_on
        """Told how many answers go on over a new connection."""
        self._wanted = wanted
        self._unwanted = False
        """Whether the session was given up because it reached a process that another link has."""
        self._epoch = 0
        """Of the last transport. It grows on from one session to the next."""
        self._machine: EdgeSession | None = None
        self._outbox: Outbox[EdgeFrame] = Outbox()  # bounded: by the streams and their credit
        self._leaving = asyncio.Event()
        """Set when the transport is to be given up."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where it runs, once it does."""
        self._streams = Streams()

    @property
    def process(self) -> Process | None:
        """Which process of the intake the session is with; None before one has answered."""
        machine = self._machine
        return None if machine is None or machine.welcome is None else machine.welcome.process

    async def run(self) -> None:
        """Dial, hold the session, dial again. Ends only when cancelled."""
        pause_s = REDIAL_MIN_S
        while True:
            greeted = await self._session()
            pause_s = REDIAL_MIN_S if greeted else min(REDIAL_MAX_S, pause_s * 2)
            # Jitter, so that a thousand edges do not redial at once.
            await asyncio.sleep(pause_s * (0.5 + secrets.randbelow(1000) / 1000))

    def state(self) -> LinkState:
        """Return what is known of the session now."""
        machine = self._machine
        if machine is None:
            return LinkState(self.scheduler, "", self._epoch, "down", False, None, None, 0)
        accepts = machine.accepts_work(_now_us())
        return LinkState(
            self.scheduler,
            machine.session,
            machine.epoch,
            machine.state.value,
            accepts,
            machine.rtt_us,
            machine.skew_ms,
            machine.streams(),
        )

    def view(self, pool: PoolId, now_us: int) -> tuple[bool, int | None, tuple[Load, int] | None]:
        """Return whether it takes a new attempt, the round trip, and the last report of `pool` with when it came."""
        machine = self._machine
        if machine is None:
            return False, None, None
        return machine.accepts_work(now_us), machine.rtt_us, machine.loads.get(pool)

    def load(self, pool: PoolId) -> Load | None:
        """Return the last report of `pool`."""
        heard = None if self._machine is None else self._machine.loads.get(pool)
        return None if heard is None else heard[0]

    def left(self, pool: PoolId) -> int:
        """Return how many attempts `pool` would still take by its last report, 0 where that is none."""
        machine, load = self._machine, self.load(pool)
        if machine is None or load is None:
            return 0
        return max(0, (load.openings or 0) - machine.opened.get(pool, 0))

    def send(self, sendable: Sendable, tally: Tally, deadlines: Deadlines, now_us: int) -> Sending:
        """Send one attempt, and keep `tally`. Only the gate calls this, through `routes`."""
        machine, loop = self._machine, self._loop
        if machine is None or loop is None or not machine.accepts_work(now_us):
            return Unsent(sendable.attempt, "No live session to the scheduler.")
        number = machine.next_stream
        opened = Open(
            number,
            sendable.attempt,
            sendable.decision,
            sendable.request,
            sendable.pool,
            sendable.generation,
            sendable.facts,
            sendable.citation,
            sendable.key_id,
            sendable.signature,
            CREDIT_BYTES,
            sendable.budget_ms,
            sendable.inputs,
            sendable.continues,
        )
        if generation_bytes_most(sendable.generation) > PORTION_BYTES_MAX and not fits(opened):
            return Unsent(sendable.attempt, _TOO_LARGE, "body_too_large")
        stream = Stream(number, sendable.attempt, tally, deadlines, machine, self._act, self._streams, loop)
        self._act(machine.open(opened, now_us))
        return stream

    async def close(self) -> None:
        """Let what was decided leave (cancels, settlements), within a bound. `run` must be cancelled after."""
        end_at = time.monotonic() + LEAVE_S
        machine = self._machine
        if machine is not None and machine.unheard():
            self._act(machine.beat(_now_us()))  # its answer says that they arrived
        while time.monotonic() < end_at and (self._outbox.frames or (machine is not None and machine.unheard())):  # noqa: ASYNC110
            await asyncio.sleep(LEAVE_POLL_S)

    async def _session(self) -> bool:
        """Hold one session from its first greeting to its end. Returns whether it was ever live."""
        session = make_session_id(self._wall_ms(), secrets.token_bytes(RANDOM_BYTES))
        machine = self._machine = EdgeSession(self._edge, session, self._epoch)
        self._loop = asyncio.get_running_loop()
        self._unwanted = False
        try:
            while True:
                lived = await self._transport(machine)
                if machine.state is State.CLOSED:
                    return machine.welcome is not None and not self._unwanted
                log.info(Event.SESSION_DETACHED, peer=self.scheduler, session_id=session, epoch=machine.epoch)
                if not lived:
                    await asyncio.sleep(REATTACH_PAUSE_S)
                    self._act(machine.tick(_now_us()))
        finally:
            self._act(machine.close("session_lost"))
            self._machine = None
            self._streams.off()
            if machine.welcome is not None and not self._unwanted:
                log.warning(Event.SESSION_LOST, peer=self.scheduler, session_id=session)

    async def _transport(self, machine: EdgeSession) -> bool:
        """Carry the session over one connection until that is lost or given up. Returns whether it ever did.

        Where nobody listens the session is over: there is nothing to come back to.
        """
        if machine.state is State.CLOSED:
            return False
        channel = open_channel(self.target)
        self._outbox.drop()
        self._leaving = asyncio.Event()
        before = (machine.welcome, machine.reattached)
        call = IntakeStub(channel).Session()
        self._act(machine.connected(_now_us(), self._wall_ms()))
        self._epoch = machine.epoch
        tasks = [
            asyncio.create_task(self._write(call, machine.epoch)),
            asyncio.create_task(self._read(call, machine)),
            asyncio.create_task(self._tick(machine)),
            asyncio.create_task(self._leaving.wait()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            # What was not taken for the wire is known not to have left.
            self._act(machine.lost(_now_us(), self._outbox.drop()))
            # Cancel readers before the call, and the call before its channel: the other order leaks connections.
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            if call.done() and REFUSED in (await call.details() or "").lower():
                self._act(machine.close("session_lost"))
            call.cancel()
            await channel.close()
        return (machine.welcome, machine.reattached) != before

    async def _write(self, call: grpc.aio.StreamStreamCall[pb.EdgeBatch, pb.IntakeBatch], epoch: int) -> None:
        """Put whatever is ready into one message, or as many as it takes, as soon as the pace lets it leave."""
        with contextlib.suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await self._outbox.due()
                frames = self._outbox.take()
                if frames:
                    for portion in portions(frames):
                        await call.write(edge_batch_out(epoch, portion))

    async def _read(
        self, call: grpc.aio.StreamStreamCall[pb.EdgeBatch, pb.IntakeBatch], machine: EdgeSession
    ) -> None:
        try:
            async for batch in call:
                epoch, now_us, wall_ms, before = batch.epoch, _now_us(), self._wall_ms(), machine.welcome
                frames: list[IntakeFrame] = []
                try:
                    frames += map(intake_frame_in, batch.frames[:])
                finally:
                    # Also what came before a frame that cannot be read.
                    self._act(machine.received(epoch, frames, now_us, wall_ms))
                if machine.welcome is not before and machine.welcome is not None:
                    self._welcomed(machine, machine.welcome)
        except WireError as error:
            log.error(Event.FRAME_DROPPED, peer=self.scheduler, cause="malformed", detail=error.field)
            self._act(machine.close("protocol_violation"))
        except grpc.aio.AioRpcError as error:
            log.debug(Event.SESSION_CLOSED, peer=self.scheduler, code=error.code().name)

    def _welcomed(self, machine: EdgeSession, welcome: Welcome) -> None:
        """A greeting is answered."""
        if welcome.continued:
            self._reattached(machine)
        elif not self._useful(machine, welcome):
            self._unwanted = True
            self._act(machine.close("session_lost"))

    def _useful(self, machine: EdgeSession, welcome: Welcome) -> bool:
        """Whether a session that was just answered is one to keep."""
        if machine.state is not State.LIVE or self._wanted is None:
            return True
        return self._wanted(self, welcome.process)

    def _reattached(self, machine: EdgeSession) -> None:
        going_on = machine.streams()
        log.info(Event.SESSION_REATTACHED, peer=self.scheduler, epoch=machine.epoch, count=going_on)
        if self._went_on is not None:
            self._went_on(going_on)

    async def _tick(self, machine: EdgeSession) -> None:
        while True:
            await asyncio.sleep(TICK_S)
            self._act(machine.tick(_now_us()))

    def _act(self, instructions: list[Instruction]) -> None:
        """Carry out what the machine asks for, in order."""
        by_attempt = self._streams.by_attempt
        for instruction in instructions:
            if type(instruction) is Deliver:
                stream = by_attempt.get(instruction.frame.attempt)
                if stream is not None:
                    stream.put(instruction)
            elif type(instruction) is Send:
                frame = instruction.frame
                self._outbox.put(frame, _RIDE if type(frame) in RIDING else _NOW)
            else:
                self._leaving.set()


def _now_us() -> int:
    return time.monotonic_ns() // 1000
