"""A recorded decision to go on elsewhere is made again from its record, like every other."""

from __future__ import annotations

from collections.abc import Callable

from orchestrator.cli.law.explain import explain_record
from tests.border.edge import Edge
from tests.resume.wordy import Wordy, read


async def test_the_decision_to_go_on_can_be_made_again_from_its_record(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge(cn_guizhou=Wordy([(3, "session_lost")]), cn_shanghai=Wordy())
    await read(await edge.gate.ask(edge.asked("acme-sg")))
    _, second = edge.records("decision")
    assert edge.current is not None
    explained = explain_record(edge.current, second)
    assert explained.value["replay"] == {"identical": True, "recorded": "cn-shanghai"}
    assert explained.chosen == "cn-shanghai"
