"""The gRPC socket for edges: thin I/O around `wire.session_intake`, one machine per call."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable

import grpc

from orchestrator.engines.identity import Continuing
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import EdgeId, ReplicaId, SchedulerId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.catalogue import Problem
from orchestrator.wire.convert_facts import WireError
from orchestrator.wire.convert_session import attempt_in, edge_frame_in, intake_batch_out
from orchestrator.wire.frames import EdgeFrame, Hello, IntakeFrame, Load
from orchestrator.wire.session_intake import Close, Instruction, IntakeSession, Send, Settled, Start, Stop
from protos.tidegate.v1 import session_pb2 as pb
from protos.tidegate.v1.session_pb2_grpc import IntakeServicer
from scheduler.intake.site import Site

TICK_S = 0.25
IDLE_REPORT_S = 10.0
"""How often, about, an edge without requests here hears how the pools are."""
IDLE_STEPS = 4
"""It hears so many ticks sooner each time, round and round: always at the same beat, one that shares openings by turns
could always be told of another's turn."""
OUTBOX_FRAMES_MAX = 1 << 18
"""Frames that wait for the socket. Credit bounds the tokens; an edge that reads nothing at all ends here."""

log = logger("scheduler.intake")


class Port:
    """One session: carries out what its machine asks for, and hands it what the site has."""

    def __init__(self, site: Site, scheduler: SchedulerId, instance: str, now_us: Callable[[], int]) -> None:
        self.machine = IntakeSession(scheduler, instance)
        self.closing = asyncio.Event()
        self._site = site
        self._now_us = now_us
        self._outbox: list[IntakeFrame] = []
        self._ready = asyncio.Event()

    @property
    def edge(self) -> EdgeId | None:
        """The edge at the other end, once it has greeted."""
        return self.machine.edge

    def act(self, instructions: list[Instruction]) -> None:
        """Carry out what the machine asks for, in order."""
        for instruction in instructions:
            if isinstance(instruction, Send):
                self._outbox.append(instruction.frame)
                self._ready.set()
            elif isinstance(instruction, Start):
                if self.machine.edge is not None:
                    self._site.start(self, self.machine.edge, instruction.open)
            elif isinstance(instruction, Stop):
                self._site.stop(self, instruction.stream)
            elif isinstance(instruction, Settled):
                self._site.settled(self, instruction.stream, instruction.counts, instruction.sent)
            elif isinstance(instruction, Close):
                self.closing.set()
                self._ready.set()
        if len(self._outbox) > OUTBOX_FRAMES_MAX and not self.closing.is_set():
            self._outbox.clear()
            self.act(self.machine.lost("slow_reader"))

    def accepted(self, stream: int, replica: ReplicaId, continuing: Continuing) -> None:
        """A replica has the work."""
        self.act(self.machine.accepted(stream, replica, continuing))

    def tokens(self, stream: int, text: str, ids: tuple[int, ...], count: int) -> None:
        """Tokens were made."""
        self.act(self.machine.tokens(stream, text, ids, count))

    def done(self, stream: int, reason: str, counts: PoolCounts, queued_us: int | None, beside: int | None) -> None:
        """The answer is complete; how long it waited here, and how many streams ran beside it."""
        self.act(self.machine.done(stream, reason, counts, queued_us, beside))

    def refused(self, stream: int, problem: Problem) -> None:
        """Nothing was generated."""
        self.act(
            self.machine.refused(
                stream, problem.entry.code, problem.text, problem.param, problem.rules, problem.retry_after_ms
            )
        )

    def broken(self, stream: int, code: str, detail: str, counts: PoolCounts) -> None:
        """The answer was cut."""
        self.act(self.machine.broken(stream, code, detail, counts))

    def load(self, load: Load) -> None:
        """State of a pool."""
        self.act(self.machine.load(load))

    async def batches(self) -> AsyncIterator[pb.IntakeBatch]:
        """Yield one message per turn of the loop for whatever is ready, until the session closes."""
        while True:
            await self._ready.wait()
            self._ready.clear()
            frames, self._outbox = self._outbox, []
            if frames:
                yield intake_batch_out(self.machine.epoch, frames)
            if self.closing.is_set() and not self._outbox:
                return

    async def tick(self) -> None:
        """Judge silence; report loads often while the edge has requests here, seldom otherwise."""
        quiet_s, reports = 0.0, 0
        while True:
            await asyncio.sleep(TICK_S)
            self.act(self.machine.tick(self._now_us()))
            quiet_s += TICK_S
            if self.machine.streams() or quiet_s >= IDLE_REPORT_S - reports % IDLE_STEPS * TICK_S:
                quiet_s, reports = 0.0, reports + 1
                for load in self._site.loads(self):
                    self.load(load)


class IntakeService(IntakeServicer):
    """Accepts sessions of edges."""

    def __init__(
        self,
        site: Site,
        scheduler: SchedulerId,
        instance: str,
        now_us: Callable[[], int],
        wall_ms: Callable[[], int],
    ) -> None:
        self.ports: set[Port] = set()
        self._site = site
        self._scheduler = scheduler
        self._instance = instance
        self._now_us = now_us
        self._wall_ms = wall_ms

    async def Session(
        self,
        request_iterator: AsyncIterator[pb.EdgeBatch],
        context: grpc.aio.ServicerContext[pb.EdgeBatch, pb.IntakeBatch],
    ) -> AsyncIterator[pb.IntakeBatch]:
        """One session with one edge."""
        port = Port(self._site, self._scheduler, self._instance, self._now_us)
        port.machine.connected(self._now_us())
        self.ports.add(port)
        self._site.session_opened(port)
        tasks = [
            asyncio.create_task(self._read(port, request_iterator)),
            asyncio.create_task(port.tick()),
        ]
        try:
            async for batch in port.batches():
                yield batch
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            port.act(port.machine.lost("session_lost"))
            self._site.session_closed(port)
            self.ports.discard(port)

    def drain(self, grace_ms: int) -> None:
        """Tell every edge that no new work is taken."""
        for port in self.ports:
            port.act(port.machine.drain(grace_ms))

    def close(self) -> None:
        """End every session."""
        for port in list(self.ports):
            port.act(port.machine.lost("draining"))

    async def _read(self, port: Port, batches: AsyncIterator[pb.EdgeBatch]) -> None:
        """Feed the machine. Whatever ends the stream ends the session."""
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.RpcError):
            try:
                async for batch in batches:
                    for message in batch.frames:
                        frame = self._frame(port, batch.epoch, message)
                        if frame is None:
                            continue
                        # Only a greeting is answered with them.
                        loads = self._site.loads(port) if isinstance(frame, Hello) else ()
                        now_us, wall_ms = self._now_us(), self._wall_ms()
                        port.act(port.machine.received(batch.epoch, frame, now_us, wall_ms, loads))
            except WireError as error:
                log.error(Event.FRAME_DROPPED, cause="malformed", detail=error.field)
                port.act(port.machine.lost("protocol_violation"))
                return
        port.act(port.machine.lost("session_lost"))

    def _frame(self, port: Port, epoch: int, message: pb.EdgeFrame) -> EdgeFrame | None:
        """Return the frame of a message. An attempt that cannot be read is refused by itself. Raises WireError."""
        try:
            return edge_frame_in(message)
        except WireError as error:
            if message.WhichOneof("kind") != "open":
                raise
            log.error(Event.ATTEMPT_REFUSED, code="policy_stale", detail=error.field)
            attempt = attempt_in(message.open.attempt)
            port.act(port.machine.unreadable(epoch, message.open.stream, attempt, error.field))
            return None
