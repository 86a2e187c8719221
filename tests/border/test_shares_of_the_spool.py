"""A tenant that sends much leaves the others room for their records, and is told why it is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node_agent.border.holders import tenant_of
from orchestrator.spool.records import DECISION, USAGE, Holder
from orchestrator.wire.catalogue import Problem, ProblemError
from tests.border.edge import GERMAN, Edge


async def until_refused(edge: Edge, tenant: str) -> Problem:
    for _ in range(2_000):
        try:
            await edge.text(edge.asked(tenant))
        except ProblemError as error:
            return error.problem
    raise AssertionError("the spool has no bound")


async def test_one_tenant_does_not_take_the_evidence_of_the_others(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge("edge-frankfurt")
    problem = await until_refused(edge, "acme-sg")
    assert (problem.entry.http, problem.code) == (429, "evidence_share")
    assert "spool_bytes" in problem.text
    assert ("retry-after", "30") in problem.headers()
    sent = len(edge.routes.sent)
    with pytest.raises(ProblemError):
        await edge.text(edge.asked("acme-sg"))
    assert len(edge.routes.sent) == sent, "nothing leaves without its record"
    # Regulated, which a spool that fills refuses first.
    for _ in range(20):
        assert await edge.text(edge.asked("rhein-gmbh", GERMAN)) == ("eu-frankfurt", "F")
    assert 'tidegate_spool_refusals_total{reason="share"} 2.0' in edge.metrics.render().decode()
    # Whatever was admitted is closed.
    decisions = [one for one in edge.records("decision") if one["outcome"] == "sent"]
    assert {one["attempt"] for one in decisions} == {one["attempt"] for one in edge.records("usage")}


async def test_every_record_of_an_edge_says_whose_it_is(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    await edge.text(edge.asked("acme-sg"))
    told = [(entry.kind, tenant_of(entry.kind, entry.data)) for entry in edge.spool.read_from()]
    assert told == [(DECISION, Holder("acme-sg")), (USAGE, Holder("acme-sg"))]
    held = sum(entry.following.offset - entry.position.offset for entry in edge.spool.read_from())
    assert edge.spool._holders.held_bytes(Holder("acme-sg")) == held


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"tenant":null}', b'{"tenant":7}', b'{"v":4}', b"\xff"])
def test_a_record_that_names_no_tenant_is_nobodys(data: bytes) -> None:
    assert tenant_of(DECISION, data) is None
