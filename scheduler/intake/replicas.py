"""The local gRPC socket for replicas: they dial it, say who they are, and stream what they make."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
from collections.abc import AsyncIterator, Callable, Sequence

import grpc

from orchestrator.engines.generation import Generation
from orchestrator.engines.identity import Continuing
from orchestrator.placement.sight import TOKENS_MAX
from orchestrator.policy.ids import SchedulerId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.wire.convert_facts import WireError
from orchestrator.wire.convert_replica import (
    REPLICA_VERSION,
    ReplicaBeat,
    ReplicaFrame,
    ReplicaHello,
    ReplicaWelcome,
    WorkAssign,
    WorkCancel,
    WorkFailed,
    WorkFinished,
    WorkFrame,
    WorkRefused,
    WorkStarted,
    WorkTokens,
    replica_frame_in,
    work_frame_out,
)
from protos.tidegate.v1 import replica_pb2 as pb
from protos.tidegate.v1.replica_pb2_grpc import ReplicaPortServicer
from scheduler.intake.replica import Replica, Told
from scheduler.intake.site import Site

HELLO_DEADLINE_S = 5.0

log = logger("scheduler.intake")


class Dialled:
    """One replica that dialled in: the way to it."""

    def __init__(self) -> None:
        self.closing = False
        self._outbox: list[WorkFrame] = []
        self._ready = asyncio.Event()

    def put(self, frame: WorkFrame) -> None:
        """Queue a frame. The number of slots bounds what can wait here."""
        self._outbox.append(frame)
        self._ready.set()

    def assign(self, work: int, generation: Generation, budget_ms: int) -> None:
        """Run this, until it is withdrawn."""
        self.put(WorkAssign(work, generation))

    def withdraw(self, work: int) -> None:
        """Stop that."""
        self.put(WorkCancel(work))

    def hold(self, work: int, *, held: bool) -> None:
        """A replica tells all its works on one call, and cannot wait with one: how far it may run ahead is bounded."""

    def expel(self) -> None:
        """The connection is given up."""
        self.closing = True
        self._ready.set()

    async def batches(self) -> AsyncIterator[pb.WorkBatch]:
        """Yield one message per turn of the loop for whatever is ready, until the connection is given up."""
        while not self.closing:
            await self._ready.wait()
            self._ready.clear()
            frames, self._outbox = self._outbox, []
            if frames:
                yield pb.WorkBatch(frames=[work_frame_out(frame) for frame in frames])


class ReplicaService(ReplicaPortServicer):
    """Takes replicas in."""

    def __init__(self, site: Site, scheduler: SchedulerId, token: str, now_us: Callable[[], int]) -> None:
        self._site = site
        self._scheduler = scheduler
        self._token = token
        self._now_us = now_us

    async def Serve(
        self,
        request_iterator: AsyncIterator[pb.ReplicaBatch],
        context: grpc.aio.ServicerContext[pb.ReplicaBatch, pb.WorkBatch],
    ) -> AsyncIterator[pb.WorkBatch]:
        """One replica, from its greeting to its end."""
        try:
            async with asyncio.timeout(HELLO_DEADLINE_S):
                first = await _first_message(request_iterator)
            hello = replica_frame_in(first[0])
        except (TimeoutError, StopAsyncIteration, WireError):
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a replica greets first")
        refusal = self._refusal(hello)
        if refusal is not None or not isinstance(hello, ReplicaHello):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, refusal or "a replica greets first")
        port = Dialled()
        port.put(ReplicaWelcome(REPLICA_VERSION, self._scheduler))
        replica = Replica(hello.replica, hello.incarnation, hello.model, hello.slots, self._now_us())
        replica.continuing = Continuing(hello.identity.digest(), hello.resume)
        reader = asyncio.create_task(self._read(first[1:], request_iterator, hello, port))
        self._site.replica_joined(hello.pool, replica, port)
        try:
            async for batch in port.batches():
                yield batch
        finally:
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
            self._site.replica_left(hello.pool, hello.replica, hello.incarnation)

    def _refusal(self, hello: ReplicaFrame) -> str | None:
        """Return why a replica is not taken in, or None."""
        if not isinstance(hello, ReplicaHello):
            return "a replica greets first"
        if not hmac.compare_digest(hello.token.encode(), self._token.encode()):
            return "the site's token is wrong"
        if hello.version != REPLICA_VERSION:
            return f"this intake speaks version {REPLICA_VERSION} to replicas"
        if hello.pool not in self._site.dispatchers:
            return "this site does not have that pool"
        if self._site.dispatchers[hello.pool].is_replaced(hello.replica, hello.incarnation):
            return "a newer replica has this name"
        return None

    async def _read(
        self,
        rest: Sequence[pb.ReplicaFrame],
        batches: AsyncIterator[pb.ReplicaBatch],
        hello: ReplicaHello,
        port: Dialled,
    ) -> None:
        """Hand what the replica makes to the site. The end of the stream is the end of the replica."""
        with contextlib.suppress(grpc.aio.AioRpcError, grpc.RpcError):
            try:
                self._take(rest, hello)
                async for batch in batches:
                    self._take(batch.frames, hello)
            except WireError as error:
                log.error(Event.FRAME_DROPPED, replica=hello.replica, cause="malformed", detail=error.field)
        port.expel()

    def _take(self, messages: Sequence[pb.ReplicaFrame], hello: ReplicaHello) -> None:
        """Hand what came together to the site. Raises WireError."""
        site, pool, replica, heard = self._site, hello.pool, hello.replica, False
        dispatcher = site.dispatchers[pool]
        for message in messages:
            frame = replica_frame_in(message)
            # What came is a sign of life, once for all of it; only a beat says how the engine is.
            if not heard and not isinstance(frame, ReplicaBeat):
                site.replica_beat(pool, replica, hello.incarnation, None)
            heard = True
            match frame:
                case ReplicaBeat():
                    queued, room, used = frame.queued_tokens, frame.kv_tokens, frame.kv_used_tokens
                    told = Told(_bounded(queued), _bounded(room), _bounded(used))
                    site.replica_beat(pool, replica, hello.incarnation, frame.healthy, told)
                case ReplicaHello():
                    raise WireError("hello", "one greeting")
                case _ if not dispatcher.holds(frame.work, replica, hello.incarnation):
                    pass  # of work that has ended, or that another replica has
                case WorkTokens():
                    site.work_tokens(frame.work, frame.text, frame.ids, frame.count)
                case WorkStarted():
                    site.work_started(frame.work, frame.prompt_tokens)
                case WorkFinished():
                    site.work_finished(frame.work, frame.reason, frame.counts)
                case WorkRefused():
                    site.work_refused(frame.work, frame.code, frame.detail, frame.param)
                case WorkFailed():
                    site.work_failed(frame.work, frame.code, frame.detail)


def _bounded(tokens: int | None) -> int | None:
    """Return a figure that can be added to others and still be sent on, whatever a replica says."""
    return None if tokens is None else min(tokens, TOKENS_MAX)


async def _first_message(batches: AsyncIterator[pb.ReplicaBatch]) -> Sequence[pb.ReplicaFrame]:
    """Return the frames that come first. Raises StopAsyncIteration where none do."""
    while not (frames := (await anext(batches)).frames):
        pass
    return frames
