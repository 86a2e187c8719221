"""The front with a real server and real sockets. Where the edge's gate would stand, a gate of the test answers."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from secrets import token_bytes, token_hex
from typing import Any, cast

import openai

from node_agent.border.decider import Asked
from node_agent.border.gate import Answer
from node_agent.front.app import Front
from node_agent.front.keyed import Elsewhere
from node_agent.front.limits import Limits
from node_agent.front.serve import FrontServer
from node_agent.idempotency.desk import Desk
from node_agent.idempotency.sealing import Sealer
from node_agent.idempotency.store import Bounds, KeyStore
from node_agent.idempotency.turns import StoreThread
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.formats import SectionKind
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import AttemptId, DecisionId, EdgeId, KeyId, PoolId, format_api_key
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.names import CODE, POOL
from orchestrator.wire.catalogue import CATALOGUE, Problem, ProblemError
from orchestrator.wire.frames import Broken, Done, Tokens
from tests.bundles.sides import MODEL, NOW_MS, holdings_in, issue, overseas, take, tenants

Frame = Tokens | Done | Broken
Frames = AsyncGenerator[Frame, None]
Plan = Callable[[Asked], Frames]

ATTEMPT = AttemptId("att_" + "1" * 32)
DECISION = DecisionId("dec_" + "2" * 32)
OTHER_MODEL = "other"
CHAT = "/v1/chat/completions"
QUESTION: list[Any] = [{"role": "user", "content": "Good morning"}]
COUNTS = PoolCounts(prompt=7, cached=3, generated=9, sent=9)


@dataclass(frozen=True)
class Key:
    """An API key of a tenant in the bundle."""

    id: str
    secret: bytes = field(default_factory=lambda: token_bytes(32), repr=False)

    def text(self) -> str:
        return format_api_key(KeyId(self.id), self.secret)


ACME = Key("acmekey1")
ACME_SECOND = Key("acmekey2")
BETA = Key("betakey1")
ELSEWHERE = Key("farawaykey1")


def bundle_in(folder: Path, keeps: Sequence[str] = ()) -> Bundle:
    """A bundle of one side: acme may use both models, beta one, and one tenant is not served at this edge.

    The tenants in `keeps` want results of requests with a key to be kept.
    """
    side = overseas()
    files = []
    for kind, name, document in side.files:
        if kind is SectionKind.TENANTS:
            document = {"version": 1, "tenants": [*_tenant("acme", (ACME, ACME_SECOND), [MODEL, OTHER_MODEL])]}
            document["tenants"] += _tenant("beta", (BETA,), [MODEL])
            document["tenants"] += [{**one, "edges": ["far-edge"]} for one in _tenant("far", (ELSEWHERE,), [MODEL])]
            document["tenants"] = [{**one, "keep_results": one["id"] in keeps} for one in document["tenants"]]
        if kind is SectionKind.FLEET:
            served = document["pools"][0]["models"]
            served.append({**served[0], "id": OTHER_MODEL})
        files.append((kind, name, document))
    holdings = holdings_in(folder, side)
    take(holdings, issue(side, 1, files=files))
    bundle = holdings.bundle(side.name)
    assert bundle is not None
    return bundle


def _tenant(name: str, keys: Sequence[Key], models: list[str]) -> list[dict[str, Any]]:
    document = tenants(name)["tenants"][0]
    hashes = [{"id": key.id, "sha256": sha256(key.secret).hexdigest()} for key in keys]
    return [{**document, "keys": hashes, "models": models}]


def tokens(text: str, first: int = 0, count: int = 1) -> Tokens:
    return Tokens(1, ATTEMPT, first, count, text, tuple(range(count)))


def done(reason: str = "stop") -> Done:
    return Done(1, ATTEMPT, reason, COUNTS)


def broken(code: str = "session_lost", detail: str = "") -> Broken:
    return Broken(1, ATTEMPT, code, detail, PoolCounts())


def saying(*frames: Frame) -> Plan:
    """A plan that answers every request with these frames."""

    async def plan(asked: Asked) -> Frames:
        for frame in frames:
            yield frame

    return plan


class TestGate:
    """Answers as planned, and remembers what it was asked and how far each answer was read."""

    __test__ = False

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.before: Callable[[Asked], Awaitable[None]] | None = None
        """Awaited before the answer begins; may raise what the gate raises."""
        self.asked: list[Asked] = []
        self.frames_taken = 0
        self.answers_closed = 0
        self.asks_cancelled = 0
        self.bundle: Bundle | None = None
        self.may_keep = True
        """Whether the law lets answers be kept."""
        self.sent = 0
        """Requests that were sent on, and so may have been begun."""
        self.refuses = False
        """Whether pools refuse what is sent to them, without having begun it."""
        self.headers: tuple[tuple[str, str], ...] = ()
        """What the law wants said with each answer."""

    async def ask(self, asked: Asked) -> Answer:
        self.asked.append(asked)
        if self.before is not None:
            try:
                await self.before(asked)
            except asyncio.CancelledError:
                self.asks_cancelled += 1
                raise
        if asked.departure is not None:
            await asked.departure.before_send(may_keep=self.may_keep)
        self.sent += 1
        if self.refuses:
            if asked.departure is not None:
                asked.departure.not_started()
            raise ProblemError(Problem("engine_busy"))
        assert self.bundle is not None
        pool = self.bundle.fleet.pool(PoolId("sg-pool"))
        assert pool is not None
        return Answer(DECISION, pool, self._counted(self.plan(asked)), self.headers)

    async def _counted(self, frames: Frames) -> Frames:
        try:
            async for frame in frames:
                self.frames_taken += 1
                yield frame
        finally:
            await frames.aclose()
            self.answers_closed += 1


@dataclass
class Room:
    """A front that is served."""

    front: Front
    server: FrontServer
    gate: TestGate
    metrics: Metrics
    bundle: Bundle | None
    desk: Desk
    now_ms: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/v1"

    def client(self, key: Key = ACME, retries: int = 2) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=self.url, api_key=key.text(), max_retries=retries)

    async def call(
        self,
        method: str = "POST",
        path: str = CHAT,
        body: bytes | None = None,
        headers: Sequence[tuple[str, str]] = (),
        key: Key | None = ACME,
    ) -> Reply:
        """One plain request. `headers` come after the usual ones."""
        lines = [("Host", "edge.example"), ("Connection", "close")]
        if key is not None:
            lines.append(("Authorization", f"Bearer {key.text()}"))
        if body is not None:
            lines += [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
        return await self.raw(request_bytes(method, path, [*lines, *headers], body or b""))

    async def raw(self, data: bytes) -> Reply:
        """Send these bytes and read until the server closes."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        try:
            writer.write(data)
            await writer.drain()
            async with asyncio.timeout(10):
                return parse_reply(await reader.read())
        finally:
            writer.close()
            await writer.wait_closed()


@dataclass(frozen=True)
class Reply:
    """An answer as it stood on the wire."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes
    rest: bytes
    """What came after the answer."""
    ended: bool
    """Whether the body was complete."""

    def header(self, name: str) -> str | None:
        found = [value for one, value in self.headers if one == name]
        assert len(found) <= 1, f"{name} stands {len(found)} times"
        return found[0] if found else None

    def json(self) -> Any:
        return json.loads(self.body)

    def error(self) -> dict[str, Any]:
        found = self.json()
        assert list(found) == ["error"]
        assert {"message", "type", "param", "code", "request_id"} <= set(found["error"])
        error: dict[str, Any] = found["error"]
        return error

    def events(self) -> list[Any]:
        """The data of every event; comments are left out."""
        events = [event for event in self.body.decode().split("\n\n") if event and not event.startswith(":")]
        assert all(event.startswith("data: ") for event in events)
        return [event.removeprefix("data: ") for event in events]


def request_bytes(method: str, path: str, headers: Sequence[tuple[str, str]], body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in headers)
    return head.encode("latin-1") + b"\r\n" + body


def parse_reply(data: bytes) -> Reply:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    headers = [(name.lower(), value.strip()) for name, _, value in (line.partition(":") for line in lines)]
    status = int(first.split(" ")[1]) if first else 0
    found = dict(headers)
    if found.get("transfer-encoding") == "chunked":
        whole, rest, ended = _dechunk(body)
    else:
        length = int(found.get("content-length", len(body)))
        whole, rest, ended = body[:length], body[length:], len(body) >= length
    return Reply(status, headers, whole, rest, ended)


def _dechunk(data: bytes) -> tuple[bytes, bytes, bool]:
    parts: list[bytes] = []
    at = 0
    while (line_end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line_end], 16)
        if size == 0:
            return b"".join(parts), data[line_end + 2 :].removeprefix(b"\r\n"), True
        parts.append(data[line_end + 2 : line_end + 2 + size])
        at = line_end + 2 + size + 2
    return b"".join(parts), b"", False


def chat_body(**fields: Any) -> bytes:
    return json.dumps({"model": MODEL, "messages": QUESTION, **fields}).encode()


async def until(check: Callable[[], bool], within_s: float = 1.0) -> None:
    """Return when `check` holds; fail when it does not in time."""
    end_s = asyncio.get_running_loop().time() + within_s
    while not check():
        assert asyncio.get_running_loop().time() < end_s, "it did not happen in time"
        await asyncio.sleep(0.005)


SEALER = Sealer(b"a secret", EdgeId("sg-edge"))
BOUNDS = Bounds(1_000, 500, 1 << 20, 1 << 19)
LIMITS: dict[str, int] = {
    "body_bytes_max": 4096,
    "body_timeout_ms": 500,
    "max_tokens_max": 1000,
    "requests_max": 8,
    "tenant_requests_max": 4,
    "budget_ms": 30_000,
}


@asynccontextmanager
async def room_in(
    folder: Path,
    plan: Plan,
    *,
    head_timeout_ms: int = 5_000,
    idle_timeout_ms: int = 5_000,
    now_ms: int = NOW_MS,
    keeps: Sequence[str] = (),
    bounds: Bounds = BOUNDS,
    elsewhere: Elsewhere | None = None,
    **limits: int,
) -> AsyncIterator[Room]:
    """Serve a front on a port that the system chooses, until the block ends.

    A second one in the same folder finds the idempotency keys of the first.
    """
    bundle = bundle_in(folder / token_hex(4), keeps)
    gate = TestGate(plan)
    gate.bundle = bundle
    metrics = Metrics()
    metrics.admit(CODE, CATALOGUE)
    metrics.admit(POOL, ["sg-pool"])
    room: Room
    keys = StoreThread(KeyStore(folder / "idempotency" / "keys.db", bounds))
    desk = Desk(keys, SEALER, lambda: room.now_ms, metrics)
    front = Front(
        edge=EdgeId("sg-edge"),
        ask=gate.ask,
        bundle=lambda: room.bundle,
        limits=Limits(**cast(dict[str, Any], {**LIMITS, **limits})),
        now_ms=lambda: room.now_ms,
        entropy=token_bytes,
        metrics=metrics,
        desk=desk,
        elsewhere=elsewhere,
    )
    server = FrontServer(front, "127.0.0.1", 0, head_timeout_ms=head_timeout_ms, idle_timeout_ms=idle_timeout_ms)
    room = Room(front, server, gate, metrics, bundle, desk, now_ms)
    await server.start()
    try:
        yield room
    finally:
        await server.stop(2.0)
        await desk.close()
