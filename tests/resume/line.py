"""An edge's gate over a real session to a real intake, whose replicas are deterministic and die when they are told."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from node_agent.border.attempts import Hands
from node_agent.border.decider import Asked, Commitment
from node_agent.border.gate import Gate
from node_agent.uplink.routes import Routes
from node_agent.uplink.site_links import SiteLinks
from orchestrator.engines.generation import Generation, Message, Resume, Role, Sampling
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.capabilities import Capability
from orchestrator.policy.ids import KeyId, SchedulerId, make_request_id
from orchestrator.policy.labels import Labels
from orchestrator.spool.store import Spool
from orchestrator.telemetry.metrics import Metrics
from orchestrator.wire.convert_replica import WorkAssign, WorkFinished, WorkStarted, WorkTokens
from orchestrator.wire.frames import Tokens
from tests.intake.site_stand import EDGE, MODEL, ScriptedReplica, Stand, now_ms, standing
from tests.resume.wordy import PROMPT_TOKENS, TOKENS, Read, token, word
from tests.values import replace

SOON_S = 20.0


class Worker:
    """A replica that redials. It makes the tokens of `wordy`; of an answer's first attempt no more than `hold_at`."""

    def __init__(self, stand: Stand, name: str) -> None:
        self.hold_at: int | None = None
        self.holds = asyncio.Event()
        """Set when it has made what it may of an answer, and goes no further."""
        self.name = name
        self._stand = stand
        self._replica: ScriptedReplica | None = None
        self._task = asyncio.create_task(self._run())

    async def die(self) -> None:
        """Be gone at once; dial again as a new process would."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self.hold_at = None
        self._task = asyncio.create_task(self._run())

    async def close(self) -> None:
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        while True:
            replica = ScriptedReplica(self._stand.replica_port, name=self.name)
            replica._hello = replace(replica._hello, resume=Resume.IDS)
            try:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await replica.start()
                    await self._serve(replica)
            finally:
                with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
                    await replica.close()
            await asyncio.sleep(0.05)

    async def _serve(self, replica: ScriptedReplica) -> None:
        """Do what comes until the connection ends, in whatever way."""
        while True:
            got = asyncio.create_task(replica.got.get())
            try:
                done, _ = await asyncio.wait([got, *replica._tasks], return_when=asyncio.FIRST_COMPLETED)
            finally:
                got.cancel()
            if got not in done:
                return
            frame = got.result()
            if isinstance(frame, WorkAssign):
                await self._work(replica, frame)

    async def _work(self, replica: ScriptedReplica, assigned: WorkAssign) -> None:
        work, wanted = assigned.work, assigned.generation
        start = wanted.first_token()
        if wanted.said is not None:
            assert wanted.said.ids == tuple(token(wanted, index) for index in range(start))
        end = TOKENS if self.hold_at is None or wanted.said is not None else self.hold_at
        await replica.say(WorkStarted(work, PROMPT_TOKENS))
        for index in range(start, end):
            await replica.say(WorkTokens(work, word(wanted, index), (token(wanted, index),), 1))
        if end < TOKENS or self.hold_at == TOKENS:
            self.holds.set()
            return
        await replica.say(WorkFinished(work, "length", PoolCounts(PROMPT_TOKENS, 0, end - start)))


@dataclass
class Line:
    """The edge, the site, and its replicas."""

    stand: Stand
    gate: Gate
    spool: Spool
    metrics: Metrics
    workers: list[Worker] = field(default_factory=list)

    def asked(self, **sampling: Any) -> Asked:
        bundle = self.stand.shelf.current
        assert bundle is not None
        tenant = next(one for one in bundle.tenants if one.id == "acme-sg")
        wanted = Generation(MODEL, (Message(Role.USER, "Good morning"),), Sampling(max_tokens=TOKENS, **sampling))
        return Asked(
            make_request_id(now_ms(), secrets.token_bytes(10)),
            None,
            tenant,
            tenant.keys[0].id,
            wanted,
            frozenset({Capability.CHAT}),
            Labels(),
            b"Good morning",
            10_000,
        )

    def hold_at(self, at: int | None) -> None:
        """Let every replica stop behind that many tokens of the next answer, and say nothing more."""
        for worker in self.workers:
            worker.hold_at = at
            worker.holds.clear()

    async def holder(self) -> Worker:
        """Return the replica that stopped."""
        waits = {asyncio.create_task(worker.holds.wait()): worker for worker in self.workers}
        done, pending = await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED, timeout=SOON_S)
        for task in pending:
            task.cancel()
        return waits[done.pop()]


@asynccontextmanager
async def line(folder: Path, replicas: int) -> AsyncIterator[Line]:
    """One site with so many deterministic replicas, and an edge that reaches it over its own link."""
    async with standing(folder, waiting_max=4, dead_ms=5_000) as stand:
        routes = Routes(EDGE, {}, now_ms)
        site = SiteLinks(EDGE, SchedulerId("guizhou"), stand.link.target, now_ms)
        site._links = [stand.link]
        routes._links = {SchedulerId("guizhou"): site}
        (folder / "edge").mkdir()
        spool = Spool(folder / "edge" / "spool", capacity_bytes=4 << 20, segment_bytes=1 << 20)
        metrics = Metrics()
        hands = Hands(
            bundle=lambda: stand.shelf.current,
            routes=routes,
            spool=spool,
            metrics=metrics,
            signing_key=stand.key,
            commitment=Commitment(KeyId("commit"), b"k" * 32),
            now_ms=now_ms,
            now_ns=time.monotonic_ns,
            entropy=secrets.token_bytes,
            patience_ms=int(SOON_S * 1000),
        )
        made = Line(stand, Gate(EDGE, hands), spool, metrics)
        made.workers = [Worker(stand, f"cn-guizhou-{number}") for number in range(replicas)]
        try:
            if replicas:
                await stand.live(replicas)
            yield made
        finally:
            for worker in made.workers:
                await worker.close()
            await spool.close_async()


async def read_and_cut(made: Line, asked: Asked, at: int, cut: Any) -> Read:
    """Read an answer; once `at` tokens of it are here, and no more will come of this attempt, do `cut`."""
    frames: list[Any] = []
    async with asyncio.timeout(SOON_S):
        asking = asyncio.create_task(made.gate.ask(asked))
        if at == 0:
            await made.holder()
            await cut()
        answer = await asking
        async for frame in answer.frames:
            frames.append(frame)
            got = sum(one.count for one in frames if isinstance(one, Tokens))
            if at and got == at and isinstance(frame, Tokens):
                await made.holder()
                await cut()
    return Read(answer, frames)
