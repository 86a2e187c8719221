"""A replica: one engine serving one model, hosted by a Ray actor, talking to the intake over local gRPC.

Ray places and restarts it. No token passes through Ray: the actor's own thread dials the intake's fixed address and
keeps dialling, so that a restarted intake finds its replicas again. Only `__init__` runs again when Ray restarts an
actor, so everything starts there.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import grpc

from orchestrator.engines.generation import Delta, EngineEvent, Failed, Finished, Refused, Resume, Started
from orchestrator.engines.identity import Identity
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from orchestrator.wire.channels import open_channel
from orchestrator.wire.convert_replica import (
    REPLICA_VERSION,
    ReplicaBeat,
    ReplicaFrame,
    ReplicaHello,
    WorkAssign,
    WorkCancel,
    WorkFailed,
    WorkFinished,
    WorkRefused,
    WorkStarted,
    WorkTokens,
    replica_frame_out,
    work_frame_in,
)
from protos.tidegate.v1 import replica_pb2 as pb
from protos.tidegate.v1.replica_pb2_grpc import ReplicaPortStub
from scheduler.pools.engine.identity import ModelIdentity

if TYPE_CHECKING:
    from scheduler.pools.engine.batch import Handle
    from scheduler.pools.engine.loop import Engine

BEAT_S = 0.25
REDIAL_S = 0.25
STOP_DEADLINE_S = 2.0


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """What a replica is told at its start. Travels through Ray as plain values."""

    replica: str
    pool: str
    model: str
    model_dir: str
    intake: str
    token: str
    slots: int
    waiting_max: int
    context_tokens: int
    threads: int
    node_labels: dict[str, str]

    def __repr__(self) -> str:
        return f"ReplicaSpec({self.replica})"


class Replica:
    """The engine, and one thread with the one event loop that talks to the intake."""

    def __init__(self, spec: ReplicaSpec) -> None:
        # Imported here: the driver only names this class, and would hold torch and transformers for it.
        from scheduler.pools.engine.loop import Engine

        self._spec = spec
        # New with every start, so that the intake tells a restarted replica from the one it knew.
        self._incarnation = secrets.token_hex(8)
        self._engine = Engine(
            Path(spec.model_dir),
            slots=spec.slots,
            context_tokens=spec.context_tokens,
            waiting_max=spec.waiting_max,
            threads=spec.threads,
            entropy=lambda: secrets.randbits(64),
            serves=ModelId(spec.model),
        )
        self._identity = self._engine.start()
        self._thread = threading.Thread(target=self._talk, name="intake-link", daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        """Whether the engine takes requests. The driver asks this."""
        return self._engine.healthy and self._thread.is_alive()

    def _talk(self) -> None:
        asyncio.run(_dial_for_ever(self._spec, self._incarnation, self._engine, self._identity))


async def _dial_for_ever(spec: ReplicaSpec, incarnation: str, engine: Engine, identity: ModelIdentity) -> None:
    while True:
        channel = open_channel(spec.intake)
        try:
            await _Link(spec, incarnation, engine, identity).run(channel)
        finally:
            await channel.close()
        await asyncio.sleep(REDIAL_S)


class _Link:
    """One connection to the intake. Work of a lost connection is cancelled: nobody waits for it."""

    def __init__(self, spec: ReplicaSpec, incarnation: str, engine: Engine, identity: ModelIdentity) -> None:
        self._spec = spec
        self._incarnation = incarnation
        self._engine = engine
        self._identity = identity
        self._loop = asyncio.get_running_loop()
        self._outbox: list[ReplicaFrame] = []
        self._ready = asyncio.Event()
        self._handles: dict[int, Handle] = {}
        self._closed = False

    async def run(self, channel: grpc.aio.Channel) -> None:
        """Greet, then carry work and tokens until the connection ends."""
        call = ReplicaPortStub(channel).Serve()
        self._put(self._hello())
        tasks = [
            asyncio.create_task(self._write(call)),
            asyncio.create_task(self._read(call)),
            asyncio.create_task(self._beat()),
        ]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._closed = True
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            call.cancel()
            for handle in self._handles.values():
                self._engine.cancel(handle)

    def _hello(self) -> ReplicaHello:
        spec, identity = self._spec, self._identity
        return ReplicaHello(
            REPLICA_VERSION,
            ReplicaId(spec.replica),
            PoolId(spec.pool),
            self._incarnation,
            ModelId(spec.model),
            spec.slots,
            spec.context_tokens,
            Identity(
                identity.weights_sha256,
                identity.tokenizer_sha256,
                identity.template_sha256,
                identity.engine_family,
                identity.quantisation,
            ),
            spec.token,
            spec.node_labels,
            Resume.IDS,
        )

    async def _write(self, call: grpc.aio.StreamStreamCall[pb.ReplicaBatch, pb.WorkBatch]) -> None:
        """Put whatever is ready into one message per turn of the loop."""
        try:
            while True:
                await self._ready.wait()
                self._ready.clear()
                frames, self._outbox = self._outbox, []
                if frames:
                    await call.write(pb.ReplicaBatch(frames=[replica_frame_out(frame) for frame in frames]))
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
            return

    async def _read(self, call: grpc.aio.StreamStreamCall[pb.ReplicaBatch, pb.WorkBatch]) -> None:
        try:
            async for batch in call:
                for message in batch.frames:
                    frame = work_frame_in(message)
                    if isinstance(frame, WorkAssign):
                        self._assign(frame)
                    elif isinstance(frame, WorkCancel):
                        handle = self._handles.get(frame.work)
                        if handle is not None:
                            self._engine.cancel(handle)
        except (grpc.aio.AioRpcError, ValueError):
            # An unreadable frame ends the connection like a lost one; the intake breaks what ran.
            return

    async def _beat(self) -> None:
        """Say that we live, how far the engine is, and how full: at least four times a second."""
        while True:
            load = self._engine.load()
            self._put(
                ReplicaBeat(
                    self._engine.progress,
                    load.running,
                    load.waiting,
                    self._engine.healthy,
                    load.queued_tokens,
                    load.kv_tokens,
                    load.kv_used_tokens,
                )
            )
            await asyncio.sleep(BEAT_S)

    def _assign(self, frame: WorkAssign) -> None:
        work = frame.work

        def sink(event: EngineEvent) -> None:
            # Called from the engine's thread; the loop may be gone when the process ends.
            if not self._closed:
                self._loop.call_soon_threadsafe(self._take, work, event)

        self._handles[work] = self._engine.submit(frame.generation, sink)

    def _take(self, work: int, event: EngineEvent) -> None:
        frame: ReplicaFrame
        match event:
            case Delta():
                frame = WorkTokens(work, event.text, event.token_ids, event.tokens)
            case Started():
                frame = WorkStarted(work, event.prompt_tokens)
            case Finished():
                counts = PoolCounts(event.prompt_tokens, event.cached_tokens, event.completion_tokens)
                frame = WorkFinished(work, event.reason.value, counts)
            case Refused():
                frame = WorkRefused(work, event.code, event.detail, event.param)
            case Failed():
                frame = WorkFailed(work, event.code, event.detail)
        if isinstance(event, Finished | Refused | Failed):
            self._handles.pop(work, None)
        self._put(frame)

    def _put(self, frame: ReplicaFrame) -> None:
        """Queue a frame. What the engine makes within the intake's reach bounds what can wait here."""
        self._outbox.append(frame)
        self._ready.set()
