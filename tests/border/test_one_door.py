"""One door: every way out of an edge, and into a pool, asks the law by one call. Where the call is removed, it leaks.

Each place that asks today is shown to be what stops a payload: with the call in place nothing leaves, and with the call
answered by a yes it does. Places that do not exist yet (resume, prefix reuse, sinks) have only `permit_route` and
`permit_sink` to call, and nothing else in the programs can send.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator.placement import decide as placement_decide
from orchestrator.policy import table as compiled
from orchestrator.policy.permit import permit_route
from orchestrator.policy.table import Tables
from orchestrator.policy.verdicts import HOUSE_RULES, Verdict
from orchestrator.telemetry.names import RULE
from orchestrator.wire.catalogue import ProblemError
from scheduler.intake.second_permit import Ask
from tests.border.edge import GERMAN, Edge, answers, refuses
from tests.bundles.sides import NOW_MS
from tests.intake.bench import PERSONAL, Bench, told
from tests.intake.small_house import OVERSEAS, House, citation, opened, require

ROOT = Path(__file__).parents[2]
YES = Verdict(True, (), (), (), NOW_MS + 1)
Ways = Callable[..., Edge]


def open_the_edge(patch: pytest.MonkeyPatch) -> None:
    """Answer the edge's one question with yes, for every pool."""

    def every_pool(ground: Any, _facts: object, _now_ms: int) -> dict[str, Verdict]:
        return {pool.id: YES for pool in ground.fleet.pools}

    patch.setattr(placement_decide, "judge", every_pool)


async def leaks(edge: Edge) -> list[str]:
    """Ask for a German citizen's personal data from Frankfurt, and return every pool outside of the EEA it went to."""
    try:
        answer = await edge.gate.ask(edge.asked("rhein-gmbh", GERMAN))
        await answer.frames.aclose()
    except ProblemError:
        pass
    return [pool for pool, _ in edge.routes.sent if pool.startswith("cn-")]


@pytest.mark.parametrize(
    "plans",
    [
        {},
        # A retry: the law's own pool refuses without having started, and the request is placed again.
        {"eu_frankfurt": refuses("engine_busy")},
        # A failover: it cannot be reached.
        {"eu_frankfurt": refuses("engine_unreachable")},
        # A spill: it is full.
        {"eu_frankfurt": refuses("queue_full")},
    ],
    ids=["first send", "retry", "failover", "spill"],
)
async def test_without_the_call_at_the_edge_a_payload_leaves(
    make_edge: Ways, plans: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await leaks(make_edge("edge-frankfurt", **plans)) == []
    open_the_edge(monkeypatch)
    assert await leaks(make_edge("edge-frankfurt", **plans)) != []


async def test_the_table_alone_opens_nothing(make_edge: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled.RouteTable, "allowed", lambda self, _facts, _now_ms: (1 << len(self.pools)) - 1)
    assert await leaks(make_edge("edge-frankfurt")) == []


async def test_the_interpreter_alone_opens_nothing(make_edge: Ways, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiled, "permit_route", lambda *_: YES)
    assert await leaks(make_edge("edge-frankfurt")) == []


@dataclass(frozen=True)
class Site:
    """An attempt that one of the two laws of the pool's side refuses."""

    bench: Bench

    def runs(self, ask: Ask) -> bool:
        return self.bench.judge(ask).problem is None


def refused_by_cited_law() -> Site:
    house = House(sg_rules=[*House().sg_rules, require("SG", "sg_contract", ["infer"])])
    cited = house.bundle(OVERSEAS)
    house.sg_rules = House().sg_rules
    newest = house.bundle(OVERSEAS)
    return Site(Bench(house, cited, newest, opened(told(PERSONAL), citation(cited))))


def refused_by_newest_law() -> Site:
    house = House()
    cited = house.bundle(OVERSEAS)
    house.sg_rules = [*house.sg_rules, require("SG", "sg_contract", ["infer"])]
    newest = house.bundle(OVERSEAS)
    return Site(Bench(house, cited, newest, opened(told(PERSONAL), citation(cited))))


@pytest.mark.parametrize("real", [permit_route, Tables().permit_route], ids=["interpreter", "tables"])
@pytest.mark.parametrize(("site", "call"), [(refused_by_cited_law, 0), (refused_by_newest_law, 1)])
def test_without_a_call_at_the_site_an_attempt_runs(site: Callable[[], Site], call: int, real: Ask) -> None:
    assert not site().runs(real)
    calls = 0

    def removed(*asked: Any) -> Verdict:
        nonlocal calls
        calls += 1
        return YES if calls - 1 == call else real(*asked)

    assert site().runs(removed)
    assert calls == 2


CALLERS = {
    # Who asks the law, and who may: the live path, the second permit, and what only explains.
    "permit_route": {
        "orchestrator/policy/table.py",
        "orchestrator/cli/law/diff.py",
        "orchestrator/cli/law/table.py",
    },
    "ask_law": {"scheduler/intake/second_permit.py"},
    "second_permit": {"scheduler/intake/site.py"},
    "permit_sink": {"node_agent/border/keeping.py", "orchestrator/cli/law/explain.py"},
    "permit": set(),
    # Who can send: each link is called by the routes alone, the routes by the gate alone.
    "routes.send": {"node_agent/border/gate.py"},
    "send": {
        "node_agent/border/gate.py",
        "node_agent/uplink/routes.py",
        "orchestrator/cli/warden.py",  # signals to processes
        "orchestrator/watch/holding.py",  # leases, between a process and its watch
        "orchestrator/watch/lending.py",
    },
    # Who gives work to a replica, and who lets it in: the site alone, after its permit.
    "assign": {"scheduler/intake/site.py"},
    "dispatcher.submit": {"scheduler/intake/site.py"},
}


def calls_of(path: Path) -> Iterator[str]:
    """Every call in a file as `name`, and as `owner.name` with the last part of what it is called on."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Name):
                yield node.func.id
            elif isinstance(node.func, ast.Attribute):
                owner = node.func.value
                said = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                yield node.func.attr
                yield f"{said.lstrip('_')}.{node.func.attr}"


def test_nobody_else_asks_and_nobody_else_sends() -> None:
    found: dict[str, set[str]] = {name: set() for name in CALLERS}
    for room in ("orchestrator", "node_agent", "scheduler"):
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            for call in set(calls_of(path)) & set(CALLERS):
                found[call].add(name)
    assert found == CALLERS


async def test_a_change_of_law_under_load_is_seen_whole(make_edge: Ways) -> None:
    edge = make_edge("edge-singapore", cn_guizhou=answers("G"))
    first = edge.current
    second_bundle = edge.example.bundle(without_pool="eu-frankfurt")
    third = edge.example.bundle(drains=("cn-guizhou",))
    assert first is not None
    by_number = {bundle.number: bundle for bundle in (first, second_bundle, third)}
    for index in range(120):
        edge.current = (first, second_bundle, third)[index % 3]
        await edge.text(edge.asked("acme-sg"))
    decided = edge.records("decision")
    assert len(decided) == 120
    for record in decided:
        cited = by_number[record["citation"]["manifest"]]
        assert record["citation"]["manifest_digest"] == cited.digest
        # Fleet, settings and law of one record are those of the one manifest that it cites.
        candidates = {candidate["pool"] for candidate in record["placement"]["candidates"]}
        assert candidates == {pool.id for pool in cited.fleet.pools}
        drained = [c["pool"] for c in record["placement"]["candidates"] if c["drop"] == "drained"]
        assert drained == (["cn-guizhou"] if cited is third else [])


async def test_two_readings_that_differ_refuse_and_are_told(
    make_edge: Ways, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(compiled, "permit_route", lambda *_: YES)
    edge = make_edge("edge-frankfurt")
    edge.metrics.admit(RULE, HOUSE_RULES)
    with caplog.at_level("ERROR"):
        assert await leaks(edge) == []
    assert [record.msg for record in caplog.records if record.msg == "policy_disagreed"]
    assert 'rule="TG-FAULT"' in edge.metrics.render().decode()
