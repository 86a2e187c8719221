"""A request that must be sent once at most: the gate tells of a send before it, and of one that came to nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from node_agent.border.decider import Asked
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Labels, Personal
from orchestrator.wire.catalogue import Problem, ProblemError
from tests.border.edge import GERMAN, PLAIN, Edge, breaks, refuses
from tests.values import replace

Ways = Callable[..., Edge]
Label = dict[str, Any]


@dataclass
class Log:
    """A departure that writes down what it is told, among what leaves."""

    edge: Edge
    fails: bool = False
    told: list[str] = field(default_factory=list)

    async def before_send(self, *, may_keep: bool) -> None:
        await asyncio.sleep(0)
        # Evidence comes first.
        assert len(self.edge.records("decision")) > sum(word in ("keep", "send") for word in self.told)
        self.told.append("keep" if may_keep else "send")
        if self.fails:
            raise ProblemError(Problem("idempotency_unavailable"))

    def not_started(self) -> None:
        self.told.append("not started")


def followed(edge: Edge, asked: Asked, *, fails: bool = False) -> tuple[Asked, Log]:
    log = Log(edge, fails)
    edge.routes.on_send = lambda sendable: log.told.append(str(sendable.pool))
    return replace(asked, departure=log), log


async def test_each_send_is_told_before_it_and_after_it_came_to_nothing(make_edge: Ways) -> None:
    edge = make_edge(cn_guizhou=refuses("engine_busy"))
    asked, log = followed(edge, edge.asked("acme-sg"))
    await edge.text(asked)
    assert log.told == ["send", "cn-guizhou", "not started", "send", "cn-shanghai"]


async def test_what_broke_off_was_begun(make_edge: Ways) -> None:
    edge = make_edge(cn_guizhou=breaks("timeout_total"))
    asked, log = followed(edge, edge.asked("acme-sg"))
    with pytest.raises(ProblemError):
        await edge.gate.ask(asked)
    assert log.told == ["send", "cn-guizhou"]


async def test_what_the_law_refuses_is_never_told(make_edge: Ways) -> None:
    edge = make_edge()
    china = Labels(personal=Personal.SENSITIVE, origin=frozenset({Jurisdiction("CN")}))
    asked, log = followed(edge, edge.asked("acme-sg", china))
    with pytest.raises(ProblemError) as refused:
        await edge.gate.ask(asked)
    assert refused.value.problem.code == "residency_blocked"
    assert log.told == []


async def test_without_a_note_of_it_nothing_is_sent_and_nothing_is_owed(make_edge: Ways) -> None:
    edge = make_edge()
    asked, log = followed(edge, edge.asked("acme-sg"), fails=True)
    with pytest.raises(ProblemError) as refused:
        await edge.gate.ask(asked)
    assert refused.value.problem.code == "idempotency_unavailable"
    assert (log.told, edge.routes.sent) == (["send"], [])
    (usage,) = edge.records("usage")
    assert (usage["outcome"], usage["price"]) == ("cancelled", None)


def pack(jurisdiction: str, effect: str, *when: dict[str, Any], holds: Label, fails: Label) -> dict[str, Any]:
    """A pack with one rule about storing."""
    move = {"from": [jurisdiction], "target": [jurisdiction], "action": "store"}
    rule = {
        "id": f"{jurisdiction}-KEEP",
        "effect": effect,
        "when": [{"action": {"in": ["store"]}}, *when],
        "sentence": "That is how it may be kept.",
        "source": {"instrument": "Test Act", "article": "1", "dated": "2026-01-01"},
        "confidence": "high",
        "vectors": [{"label": holds, **move, "expect": "holds"}, {"label": fails, **move, "expect": "not"}],
    }
    return {
        "version": 1,
        "id": f"{jurisdiction.lower()}-results",
        "title": "A pack for tests",
        "topic": "results",
        "jurisdictions": [jurisdiction],
        "effective_from": "2026-01-01",
        "mode": "enforce",
        "rules": [rule],
    }


LABEL: Label = {"personal": "personal", "grade": "general", "origin": ["DE"]}
PERSONAL_TOO = pack(
    "DE",
    "grant",
    {"personal": {"at_most": "personal"}},
    {"grade": {"at_most": "general"}},
    {"target": {"within": ["DE"]}},
    holds=LABEL,
    fails={**LABEL, "grade": "core"},
)
NOT_IN_CHINA = pack(
    "CN", "forbid", {"grade": {"at_least": "general"}}, holds=LABEL, fails={**LABEL, "grade": "public"}
)


@pytest.mark.parametrize(
    ("packs", "declared", "wanted", "told"),
    [
        ((), PLAIN, True, ["keep", "eu-frankfurt"]),
        ((), PLAIN, False, ["send", "eu-frankfurt"]),
        ((), GERMAN, True, ["send", "eu-frankfurt"]),
        ((PERSONAL_TOO,), GERMAN, True, ["keep", "eu-frankfurt"]),
    ],
    ids=["granted", "not wanted", "not granted for personal data", "granted for personal data"],
)
async def test_a_result_may_be_kept_where_the_law_grants_it_and_the_tenant_wants_it(
    make_edge: Ways, packs: tuple[dict[str, Any], ...], declared: Labels, wanted: bool, told: list[str]
) -> None:
    edge = make_edge("edge-frankfurt")
    edge.routes.down = frozenset({"cn-guizhou", "cn-shanghai"})
    edge.current = edge.example.bundle(packs=packs)
    plain = edge.asked("rhein-gmbh", declared)
    asked, log = followed(edge, replace(plain, tenant=replace(plain.tenant, keep_results=wanted)))
    await edge.text(asked)
    assert log.told == told


@pytest.mark.parametrize(("packs", "told"), [((), "keep"), ((NOT_IN_CHINA,), "send")])
async def test_the_law_of_where_an_answer_was_made_has_a_word_in_the_keeping_of_it(
    make_edge: Ways, packs: tuple[dict[str, Any], ...], told: str
) -> None:
    edge = make_edge("edge-frankfurt")
    edge.current = edge.example.bundle(packs=packs)
    plain = edge.asked("rhein-gmbh")
    asked, log = followed(edge, replace(plain, tenant=replace(plain.tenant, keep_results=True)))
    await edge.text(asked)
    assert log.told == [told, "cn-guizhou"]
