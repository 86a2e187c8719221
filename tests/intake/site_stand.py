"""A real intake on loopback: both gRPC sockets, a real spool, bundles of the shipped example, replicas of the test."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from node_agent.uplink.sending import Sendable
from node_agent.uplink.session_link import SessionLink
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.roots import SigningKey, key_id_of
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.engines.identity import Identity
from orchestrator.evidence.attestation import seal
from orchestrator.evidence.citation import Citation, attestation_bytes
from orchestrator.evidence.inputs import manifest_of
from orchestrator.placement.decide import gather, label
from orchestrator.placement.fleet import EdgeKey
from orchestrator.policy.ids import (
    Digest,
    EdgeId,
    KeyId,
    ModelId,
    PoolId,
    ReplicaId,
    SchedulerId,
    SideId,
    make_attempt_id,
    make_decision_id,
    make_request_id,
)
from orchestrator.policy.labels import Labels
from orchestrator.policy.permit import PERMIT_VERSION
from orchestrator.spool.store import Spool
from orchestrator.wire.channels import bind, make_server, open_channel
from orchestrator.wire.convert_replica import (
    REPLICA_VERSION,
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
from scheduler.intake.ports import Hands
from scheduler.intake.replicas import ReplicaService
from scheduler.intake.sessions import IntakeService
from scheduler.intake.site import Site
from tests.border.example import CONTRACT, OVERSEAS_PERSONAL, Example
from tests.values import replace

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
    return replace(bundle, fleet=replace(bundle.fleet, edges=edges), law=law)


@dataclass
class Shelf:
    """The manifests that the site may cite. One is at hand when it was found once."""

    current: Bundle | None
    held: dict[int, Bundle] = field(default_factory=dict)
    found: set[int] = field(default_factory=set)

    def remembered(self, side: SideId, number: int, digest: Digest) -> Bundle | None:
        return self.held.get(number) if number in self.found else None

    async def find(self, side: SideId, number: int, digest: Digest, timeout_ms: int) -> Bundle | None:
        self.found.add(number)
        return self.held.get(number)


class ScriptedReplica:
    """A replica that dials the intake and does as the test says."""

    def __init__(
        self,
        port: int,
        slots: int = 2,
        token: str = TOKEN,
        name: str = "cn-guizhou-0",
        incarnation: str | None = None,
    ) -> None:
        self.incarnation = secrets.token_hex(4) if incarnation is None else incarnation
        self.got: asyncio.Queue[WorkFrame] = asyncio.Queue(64)
        self.beats = True
        self.healthy = True
        self.load: tuple[int | None, int | None, int | None] = (None, None, None)
        """Prompt tokens that wait, room for keys and values, and how much of it is used."""
        self.over = asyncio.Event()
        """Set when the intake ended the connection."""
        self._channel = open_channel(f"127.0.0.1:{port}")
        self._call = ReplicaPortStub(self._channel).Serve()
        self._hello = ReplicaHello(
            REPLICA_VERSION,
            ReplicaId(name),
            POOL,
            self.incarnation,
            MODEL,
            slots,
            2048,
            Identity("w", "t", "p", "scripted", "none"),
            token,
            {"region": "cn-guizhou"},
        )
        self._tasks: list[asyncio.Task[None]] = []
        # gRPC takes one write at a time; a beat may fall into one of the test's.
        self._writing = asyncio.Lock()

    async def start(self) -> None:
        await self.say(self._hello)
        self._tasks = [asyncio.create_task(self._read()), asyncio.create_task(self._beat())]

    async def say(self, *frames: ReplicaFrame) -> None:
        async with self._writing:
            await self._call.write(pb.ReplicaBatch(frames=[replica_frame_out(frame) for frame in frames]))

    async def ended(self) -> None:
        """Wait for the end of the connection. Raises what it ended with."""
        await self._tasks[0]

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
        self.over.set()

    async def _beat(self) -> None:
        while True:
            if self.beats:
                await self.say(ReplicaBeat(1, 0, 0, self.healthy, *self.load))
            await asyncio.sleep(0.1)


class Running:
    """One run of an intake: its site and both gRPC sockets."""

    def __init__(self, hands: Hands, waiting_max: int, dead_ms: int) -> None:
        self.hands, self.waiting_max, self.dead_ms = hands, waiting_max, dead_ms
        self.site = Site(SCHEDULER, SideId("domestic"), {POOL: Dispatcher(POOL, waiting_max, dead_ms)}, hands)
        self.intake = IntakeService(self.site, SCHEDULER, secrets.token_hex(4), now_us, now_ms)
        self.ports = (0, 0)
        self._edges, self._replicas = make_server(), make_server()
        add_IntakeServicer_to_server(self.intake, self._edges)
        replicas = ReplicaService(self.site, SCHEDULER, TOKEN, now_us)
        add_ReplicaPortServicer_to_server(replicas, self._replicas)

    async def start(self, ports: tuple[int, int] = (0, 0)) -> None:
        """Listen for edges and for replicas."""
        self.ports = (bind(self._edges, f"127.0.0.1:{ports[0]}"), bind(self._replicas, f"127.0.0.1:{ports[1]}"))
        await self._edges.start()
        await self._replicas.start()

    async def stop(self) -> None:
        """End every session and close both sockets."""
        self.intake.close()
        await self._edges.stop(0.2)
        await self._replicas.stop(0.2)
        await self.site.close()


@dataclass
class Stand:
    """The running site."""

    running: Running
    spool: Spool
    shelf: Shelf
    key: SigningKey
    link: SessionLink
    example: Example

    @property
    def site(self) -> Site:
        """The site of the intake that runs now."""
        return self.running.site

    @property
    def intake(self) -> IntakeService:
        """The service for edges of the intake that runs now."""
        return self.running.intake

    @property
    def replica_port(self) -> int:
        """Where replicas dial."""
        return self.running.ports[1]

    async def restart(self) -> None:
        """Stop the intake, and start it anew at the same addresses with nothing in memory."""
        ports = self.running.ports
        await self.running.stop()
        self.running = Running(self.running.hands, self.running.waiting_max, self.running.dead_ms)
        await self.running.start(ports)

    def sendable(self, *, personal: bool = False, **changes: Any) -> Sendable:
        """A permitted attempt, signed by the edge; of personal data under a contract, whose inputs must be proven."""
        bundle = self.shelf.held[max(self.shelf.held)]
        tenant = next(t for t in bundle.tenants if t.id == "acme-sg")
        edge = bundle.fleet.edge(EDGE)
        assert edge is not None
        if personal:
            tenant = replace(tenant, pathways=(CONTRACT,))
        facts = gather(tenant, label(tenant, OVERSEAS_PERSONAL if personal else Labels(), edge))
        at_ms = now_ms()
        citation = Citation(bundle.number, bundle.digest, at_ms, PERMIT_VERSION, 0, bundle.side)
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
        if "inputs" not in changes:
            stated = manifest_of(made.attempt, made.generation.texts(), made.facts.label, b"k" * 32, KeyId("commit"))
            made = replace(made, inputs=stated)
        inputs = None if made.inputs is None else made.inputs.digest
        signed = attestation_bytes(EDGE, made.attempt, made.decision, made.pool, made.facts, made.citation, inputs)
        signature = changes.get("signature", seal(self.key.sign, [signed])[0])
        assert isinstance(signature, bytes)
        return replace(made, signature=signature)

    async def live(self, replicas: int) -> None:
        """Wait until the session is live and the pool has so many replicas."""
        async with asyncio.timeout(10):
            while True:
                heard = self.link.load(POOL)
                if self.link.state().accepts_work and heard is not None and heard.replicas == replicas:
                    return
                await asyncio.sleep(0.02)


@asynccontextmanager
async def standing(folder: Path, waiting_max: int = 2, dead_ms: int = 1_000) -> AsyncIterator[Stand]:
    """An intake, and one session of the real edge link to it."""
    key = SigningKey.generate()
    example = Example()
    bundle = fresh(example.bundle(), key)
    shelf = Shelf(bundle, {bundle.number: bundle})
    spool = Spool(folder / "spool", capacity_bytes=4 << 20, segment_bytes=1 << 20)
    hands = Hands(shelf, spool, now_ms, now_us, secrets.token_bytes, secrets.token_bytes(32))
    running = Running(hands, waiting_max, dead_ms)
    await running.start()
    link = SessionLink(EDGE, SCHEDULER, f"127.0.0.1:{running.ports[0]}", now_ms)
    stand = Stand(running, spool, shelf, key, link, example)
    tasks = [asyncio.create_task(link.run()), asyncio.create_task(ticking(stand))]
    try:
        yield stand
    finally:
        await link.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await stand.running.stop()
        await spool.close_async()


async def ticking(stand: Stand) -> None:
    while True:
        await asyncio.sleep(0.05)
        stand.site.tick()
