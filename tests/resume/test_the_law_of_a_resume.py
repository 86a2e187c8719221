"""Going on elsewhere asks the law again, for prompt and output: what one place said may not go to every other."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from node_agent.border.decider import Asked
from orchestrator.evidence.reading import facts_from_json
from orchestrator.placement import decide as placement_decide
from orchestrator.policy.jurisdictions import Jurisdiction
from orchestrator.policy.labels import Domestic, Grade, Labels, Personal
from orchestrator.policy.packs import ObligationKind
from orchestrator.policy.verdicts import Verdict
from orchestrator.wire.frames import Broken, Done
from tests.border.edge import Edge
from tests.border.test_duties_at_the_gate import owing
from tests.bundles.sides import NOW_MS, Document
from tests.intake.small_house import pack, rule
from tests.resume.wordy import Read, Wordy, read, whole

Make = Callable[..., Edge]
MILD = Labels(personal=Personal.NONE, grade=Grade.GENERAL, domestic=Domestic.NO)
FRANKFURT = "eu-frankfurt"
INFER: Document = {"action": {"in": ["infer"]}}


def not_from_china() -> Document:
    """A pack of Germany: what was processed in China is not processed on German soil."""
    vectors = [
        {
            "label": {"personal": "none", "grade": "general", "origin": ["DE"]},
            "processed_in": processed_in,
            "from": ["DE"],
            "target": ["DE"],
            "action": "infer",
            "expect": expect,
        }
        for processed_in, expect in ((["CN"], "holds"), ([], "not"))
    ]
    when: list[Document] = [{"processed_in": {"touches": ["CN"]}}, {"target_soil": {"touches": ["DE"]}}, INFER]
    return pack("de-clean", "DE", [rule("DE-CLEAN", "forbid", when, vectors=vectors)])


def cut_in_china(make_edge: Make) -> tuple[Edge, Asked]:
    """Mild data of Frankfurt goes to China while the pool beside the edge is down, which is up when it is cut there."""
    edge = make_edge("edge-frankfurt")

    def turn() -> None:
        edge.routes.down = frozenset({"cn-guizhou", "cn-shanghai"})

    edge.routes.down = frozenset({FRANKFURT})
    edge.routes.plans = {
        FRANKFURT: Wordy(),
        "cn-guizhou": Wordy([(3, "session_lost")], after=turn),
        "cn-shanghai": Wordy([(3, "session_lost")], after=turn),
    }
    return edge, edge.asked("rhein-gmbh", MILD)


async def ask(edge: Edge, asked: Asked) -> Read:
    return await read(await edge.gate.ask(asked))


async def test_what_the_law_allows_goes_on_across_the_border(make_edge: Make) -> None:
    edge, asked = cut_in_china(make_edge)
    got = await ask(edge, asked)
    assert got.text == whole(asked.generation)
    assert isinstance(got.end, Done)
    assert [one.to_json()["jurisdiction"] for one in got.answer.segments] == ["CN", "DE"]
    first, second = (facts_from_json(record["facts"]) for record in edge.records("decision"))
    assert not first.processed_in
    assert second.processed_in == frozenset({Jurisdiction("CN")})


async def test_what_the_law_forbids_ends_with_an_error_that_names_the_rule(make_edge: Make) -> None:
    edge, asked = cut_in_china(make_edge)
    edge.current = edge.example.bundle(packs=(not_from_china(),))
    edge.routes.down = frozenset({"cn-guizhou", "cn-shanghai"})
    # The prompt alone may well go there: it is the output of the first pool that may not.
    allowed = await edge.text(asked)
    assert allowed[0] == FRANKFURT
    edge.routes.down = frozenset({FRANKFURT})
    got = await ask(edge, asked)
    assert isinstance(got.end, Broken)
    assert got.places == [0, 1, 2]
    record = edge.records("decision")[-1]
    assert record["continues"] is not None
    (frankfurt,) = (one for one in record["placement"]["candidates"] if one["pool"] == FRANKFURT)
    assert frankfurt["drop"] == "not_permitted"
    assert "DE-CLEAN" in json.dumps(frankfurt)
    assert got.answer.stopped is not None
    assert "DE-CLEAN" in got.answer.stopped.rules
    assert sum(pool == FRANKFURT for pool, _ in edge.routes.sent) == 1, "and that was the first request"


async def test_where_every_pool_is_forbidden_the_tenant_is_told_which_law(make_edge: Make) -> None:
    edge, asked = cut_in_china(make_edge)
    edge.current = edge.example.bundle(packs=(not_from_china(),))
    newest = edge.example.bundle(packs=(not_from_china(), nothing_returns()))
    for plan in edge.routes.plans.values():
        assert isinstance(plan, Wordy)
        plan.after = lambda: setattr(edge, "current", newest)
    got = await ask(edge, asked)
    assert got.answer.stopped is not None
    told: dict[str, Any] = got.answer.stopped.to_json()
    assert told["reason"] == "law"
    assert {"DE-CLEAN", "DE-SHUT"} <= set(told["rules"])
    assert got.places == [0, 1, 2]


def nothing_returns() -> Document:
    """A pack of Germany that came while it ran: nothing goes to China any more."""
    vectors = [
        {"label": {"origin": ["DE"]}, "from": ["DE"], "target": [target], "action": "infer", "expect": expect}
        for target, expect in (("CN", "holds"), ("DE", "not"))
    ]
    when: list[Document] = [{"target_soil": {"touches": ["CN"]}}, INFER]
    return pack("de-shut", "DE", [rule("DE-SHUT", "forbid", when, vectors=vectors)])


async def test_the_set_of_pools_never_widens(make_edge: Make) -> None:
    edge, asked = cut_in_china(make_edge)
    shut = pack(
        "de-shut", "DE", [rule("DE-SHUT", "forbid", [{"target_soil": {"touches": ["DE"]}}, INFER], vectors=[
            {"label": {"origin": ["DE"]}, "from": ["DE"], "target": [target], "action": "infer", "expect": expect}
            for target, expect in (("DE", "holds"), ("CN", "not"))
        ])]
    )  # fmt: skip
    edge.current, later = edge.example.bundle(packs=(shut,)), edge.example.bundle()
    china = edge.routes.plans["cn-guizhou"], edge.routes.plans["cn-shanghai"]
    for plan in china:
        assert isinstance(plan, Wordy)

        def turn(before: Callable[[], object] = plan.after) -> None:
            before()
            edge.current = later

        plan.after = turn
    edge.routes.down = frozenset()
    got = await ask(edge, asked)
    assert isinstance(got.end, Broken), "a law that has opened meanwhile opens nothing for an answer that has begun"
    assert FRANKFURT not in [pool for pool, _ in edge.routes.sent]


async def test_a_duty_that_headers_do_is_not_undone_when_they_have_left(make_edge: Make) -> None:
    for before, after, goes_on in (
        ((), (ObligationKind.DISCLOSE,), False),
        ((ObligationKind.DISCLOSE,), (ObligationKind.DISCLOSE,), True),
        ((ObligationKind.DISCLOSE, ObligationKind.LABEL), (ObligationKind.LABEL,), True),
    ):
        edge = make_edge(cn_shanghai=Wordy())
        first, second = (edge.example.bundle(packs=(owing(*kinds),) if kinds else ()) for kinds in (before, after))
        edge.current = first
        cut = Wordy([(3, "session_lost")], after=lambda edge=edge, second=second: setattr(edge, "current", second))  # type: ignore[misc]
        edge.routes.plans["cn-guizhou"] = cut
        got = await ask(edge, edge.asked("acme-sg"))
        assert isinstance(got.end, Done) is goes_on
        assert len(edge.routes.sent) == 1 + goes_on


async def test_without_the_call_a_resume_leaks(make_edge: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    edge, asked = cut_in_china(make_edge)
    edge.current = edge.example.bundle(packs=(not_from_china(),))

    def every_pool(ground: Any, _facts: object, _now_ms: int) -> dict[str, Verdict]:
        return {pool.id: Verdict(True, (), (), (), NOW_MS + 1) for pool in ground.fleet.pools}

    monkeypatch.setattr(placement_decide, "judge", every_pool)
    got = await ask(edge, asked)
    assert [pool for pool, _ in edge.routes.sent][-1] == FRANKFURT
    assert isinstance(got.end, Done)
