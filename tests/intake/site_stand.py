"""A real intake on loopback: both gRPC sockets, a real spool, bundles of the shipped example, replicas of the test."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from node_agent.uplink.session_link import Sendable, SessionLink
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.evidence.citation import Citation, attestation_bytes
from orchestrator.placement.fleet import EdgeKey, Fleet
from orchestrator.policy.ids import (
    Digest,
    EdgeId,
    ModelId,
    PoolId,
    SchedulerId,
    SideId,
    make_attempt_id,
    make_decision_id,
    make_request_id,
)
from orchestrator.policy.labels import LabelSources
from orchestrator.policy.permit import PERMIT_VERSION, Facts
from orchestrator.spool.store import Spool
from orchestrator.wire.channels import bind, make_server, open_channel
from orchestrator.wire.convert_replica import (
    REPLICA_VERSION,
    Identity,
    ReplicaBeat,
    ReplicaFrame,
    ReplicaHello,
    ReplicaWelcome,
    WorkFrame,
    replica_frame_out,
    work_frame_in,
)
from protos.tidegate.v1 import replica_pb2 as pb
from protos.tidegate.v1.replica_pb2_grpc import ReplicaPortStub, add_ReplicaPortServicer_to_server
from protos.tidegate.v1.session_pb2_grpc import add_IntakeServicer_to_server
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.replicas import ReplicaService
from scheduler.intake.sessions import IntakeService
from scheduler.intake.site import Hands, Site
from tests.border.example import Example

EDGE = EdgeId("edge-singapore")
POOL = PoolId("cn-guizhou")
MODEL = ModelId("smollm2-135m-instruct")
TOKEN = "replica-token"
SCHEDULER = SchedulerId("guizhou")


def now_us() -> int:
    return time.monotonic_ns() // 1000


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def fresh(bundle: Bundle, key: SigningKey) -> Bundle:
    """The example's bundle with horizons of today and the test's key for the edge."""
    edges = tuple(
        replace(edge, keys=(EdgeKey(key_id_of(key.public_key), key.public_key),)) if edge.id == EDGE else edge
        for edge in bundle.fleet.edges
    )
    at_ms = now_ms()
    law = type(bundle.law)(bundle.law.packs, type(bundle.law.horizons).from_issue(at_ms))
    return replace(bundle, fleet=Fleet(edges, bundle.fleet.pools), law=law)


@dataclass
class Shelf:
    """The manifests that the site may cite."""

    current: Bundle | None
    held: dict[int, Bundle] = field(default_factory=dict)

    async def find(self, side: SideId, number: int, digest: Digest, timeout_ms: int) -> Bundle | None:
        return self.held.get(number)


class ScriptedReplica:
    """A replica that dials the intake and does as the test says."""

    def __init__(self, port: int, slots: int = 2, token: str = TOKEN) -> None:
        self.got: asyncio.Queue[WorkFrame] = asyncio.Queue(64)
        self.beats = True
        self._channel = open_channel(f"127.0.0.1:{port}")
        self._call = ReplicaPortStub(self._channel).Serve()
        self._hello = ReplicaHello(
            REPLICA_VERSION,
            "cn-guizhou-0",  # type: ignore[arg-type]
            POOL,
            secrets.token_hex(4),
            MODEL,
            slots,
            2048,
            Identity("w", "t", "p", "scripted", "none"),
            token,
            {"region": "cn-guizhou"},
        )
        self._tasks: list[asyncio.Task[None]] = []

    async def start(self) -> None:
        await self.say(self._hello)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]

    async def say(self, *frames: ReplicaFrame) -> None:
        await self._call.write(pb.ReplicaBatch(frames=[replica_frame_out(frame) for frame in frames]))

    async def close(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def _read(self) -> None:
        async for batch in self._call:
            for message in batch.frames:
                frame = work_frame_in(message)
                if not isinstance(frame, ReplicaWelcome):
                    await self.got.put(frame)

    async def _beat(self) -> None:
        while True:
            if self.beats:
                await self.say(ReplicaBeat(1, 0, 0, True))
            await asyncio.sleep(0.1)


@dataclass
class Stand:
    """The running site."""

    site: Site
    spool: Spool
    shelf: Shelf
    key: SigningKey
    link: SessionLink
    replica_port: int
    example: Example

    def sendable(self, **changes: Any) -> Sendable:
        """A permitted attempt, signed by the edge."""
        bundle = self.shelf.held[max(self.shelf.held)]
        tenant = next(t for t in bundle.tenants if t.id == "acme-sg")
        edge = bundle.fleet.edge(EDGE)
        assert edge is not None
        sources = LabelSources(attested=tenant.attested, soil=edge.place.soil())
        facts = Facts(tenant.entity, sources.effective())
        at_ms = now_ms()
        citation = Citation(bundle.side, bundle.number, bundle.digest, 0, at_ms, PERMIT_VERSION)
        made = Sendable(
            make_attempt_id(at_ms, secrets.token_bytes(10)),
            make_decision_id(at_ms, secrets.token_bytes(10)),
            make_request_id(at_ms, secrets.token_bytes(10)),
            POOL,
            Generation(MODEL, (Message(Role.USER, "Hello"),), Sampling(max_tokens=8)),
            facts,
            citation,
            key_id_of(self.key.public_key),
            b"",
            10_000,
        )
        made = replace(made, **{name: value for name, value in changes.items() if name != "signature"})
        signed = attestation_bytes(EDGE, made.attempt, made.decision, made.pool, made.facts, made.citation)
        signature = changes.get("signature", self.key.sign(signed))
        assert isinstance(signature, bytes)
        return replace(made, signature=signature)

    async def live(self, replicas: int) -> None:
        """Wait until the session is live and the pool has so many replicas."""
        async with asyncio.timeout(10):
            while True:
                heard = self.link.load(POOL)
                if self.link.state().accepts_work and heard is not None and heard[0].replicas == replicas:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def standing(folder: Path, waiting_max: int = 2, dead_ms: int = 1_000) -> AsyncIterator[Stand]:
    """An intake, and one session of the real edge link to it."""
    key = SigningKey.generate()
    example = Example(folder / "bundles")
    bundle = fresh(example.bundle(), key)
    shelf = Shelf(bundle, {bundle.number: bundle})
    spool = Spool(folder / "spool", capacity_bytes=4 << 20, segment_bytes=1 << 20)
    hands = Hands(shelf, spool, now_ms, now_us, secrets.token_bytes)
    site = Site(SCHEDULER, SideId("domestic"), {POOL: Dispatcher(POOL, waiting_max, dead_ms)}, hands)
    intake = IntakeService(site, SCHEDULER, "instance", now_us, now_ms)
    edges, replicas = make_server(), make_server()
    add_IntakeServicer_to_server(intake, edges)
    add_ReplicaPortServicer_to_server(ReplicaService(site, SCHEDULER, TOKEN, now_us), replicas)
    port, replica_port = bind(edges, "127.0.0.1:0"), bind(replicas, "127.0.0.1:0")
    await edges.start()
    await replicas.start()
    link = SessionLink(EDGE, SCHEDULER, f"127.0.0.1:{port}", now_ms)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(ticking(site))]
    try:
        yield Stand(site, spool, shelf, key, link, replica_port, example)
    finally:
        await link.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        intake.close()
        await edges.stop(0.2)
        await replicas.stop(0.2)
        await site.close()
        await spool.close_async()


async def ticking(site: Site) -> None:
    while True:
        await asyncio.sleep(0.05)
        site.tick()
