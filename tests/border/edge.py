"""An edge without HTTP: its gate, the shipped example as its bundle, a real spool, and ways out that are scripted."""

from __future__ import annotations

import json
import secrets
from pathlib import Path
from typing import Any

from node_agent.border.attempts import Hands
from node_agent.border.decider import Asked, Commitment
from node_agent.border.gate import Gate
from node_agent.uplink.sending import Sendable
from orchestrator.bundles.assemble import Bundle
from orchestrator.bundles.roots import SigningKey
from orchestrator.engines.generation import Generation, Message, Role, Sampling
from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.capabilities import Capability
from orchestrator.policy.ids import KeyId, ModelId, make_request_id
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels, Personal
from orchestrator.spool.records import RecordKind
from orchestrator.spool.store import Spool
from orchestrator.telemetry.metrics import Metrics
from orchestrator.wire.frames import Accepted, Broken, Done, Refused, StreamFrame, Tokens
from tests.border.example import CONTRACT, OVERSEAS_PERSONAL, Example, Plan, ScriptedRoutes
from tests.bundles.sides import NOW_MS
from tests.values import replace

SECRET_WORDS = "the words of the tenant"
PLAIN = Labels()
GERMAN = Labels(personal=Personal.PERSONAL, origin=frozenset({Jurisdiction("DE")}))


def answers(text: str = "Yes") -> Plan:
    def plan(sendable: Sendable) -> list[StreamFrame]:
        attempt = sendable.attempt
        return [
            Accepted(1, attempt, "replica"),  # type: ignore[arg-type]
            Tokens(1, attempt, 0, 1, text, (7,)),
            Done(1, attempt, "stop", PoolCounts(10, 0, 1, 1)),
        ]

    return plan


def refuses(code: str) -> Plan:
    return lambda sendable: [Refused(1, sendable.attempt, code, "Not now.")]


def breaks(code: str) -> Plan:
    return lambda sendable: [Broken(1, sendable.attempt, code, "It died.", PoolCounts())]


class Edge:
    """A gate with a real bundle, a real spool, and scripted ways out."""

    def __init__(self, folder: Path, name: str, plans: dict[str, Plan]) -> None:
        self.example = Example()
        self.current: Bundle | None = self.example.bundle()
        self.spool = Spool(folder / "spool", capacity_bytes=4 << 20, segment_bytes=1 << 20)
        self.routes = ScriptedRoutes(plans)
        self.key = SigningKey.generate()
        self.name = name
        self.metrics = Metrics()
        self.skew_ms = 0
        self.hands = Hands(
            bundle=lambda: self.current,
            routes=self.routes,  # type: ignore[arg-type]
            spool=self.spool,
            metrics=self.metrics,
            signing_key=self.key,
            commitment=Commitment(KeyId("commit"), b"k" * 32),
            now_ms=lambda: NOW_MS,
            now_ns=lambda: NOW_MS * 1_000_000,
            entropy=secrets.token_bytes,
            skew_ms=lambda: self.skew_ms,
            patience_ms=0,
        )
        self.gate = Gate(name, self.hands)

    def asked(self, tenant: str, declared: Labels = PLAIN, **generation: Any) -> Asked:
        assert self.current is not None
        found = next(t for t in self.current.tenants if t.id == tenant)
        words = Generation(
            ModelId("smollm2-135m-instruct"), (Message(Role.USER, SECRET_WORDS),), Sampling(max_tokens=8)
        )
        return Asked(
            request=make_request_id(NOW_MS, secrets.token_bytes(10)),
            client_request=None,
            tenant=found,
            key_id=found.keys[0].id,
            generation=replace(words, **generation),
            capabilities=frozenset({Capability.CHAT}),
            declared=declared,
            body=SECRET_WORDS.encode(),
            budget_ms=60_000,
        )

    def asked_overseas(self) -> Asked:
        """Personal data of Singapore under a contract: to China with a proof that nothing domestic went in."""
        asked = self.asked("acme-sg", OVERSEAS_PERSONAL)
        return replace(asked, tenant=replace(asked.tenant, pathways=(CONTRACT,)))

    def records(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(e.data) for e in self.spool.read_from() if e.kind == RecordKind(kind)]

    async def text(self, asked: Asked) -> tuple[str, str]:
        """Ask, and return the pool and the whole text."""
        answer = await self.gate.ask(asked)
        said = [frame.text async for frame in answer.frames if isinstance(frame, Tokens)]
        return answer.pool.id, "".join(said)


ALL = {"cn-guizhou": answers("G"), "cn-shanghai": answers("S"), "eu-frankfurt": answers("F")}
