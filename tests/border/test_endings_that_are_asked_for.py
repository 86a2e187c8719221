"""Where the model may end an answer: sent as it was asked for, and only to pools that say that they can."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node_agent.border.decider import Asked
from orchestrator.placement.capabilities import Capability
from orchestrator.wire.catalogue import ProblemError
from tests.border.edge import Edge
from tests.values import replace

ENDINGS = frozenset({Capability.IGNORE_EOS, Capability.MIN_TOKENS})


def endless(asked: Asked) -> Asked:
    sampling = replace(asked.generation.sampling, max_tokens=8, ignore_eos=True, min_tokens=4)
    generation = replace(asked.generation, sampling=sampling)
    return replace(asked, generation=generation, capabilities=frozenset({Capability.CHAT, *ENDINGS}))


async def test_a_pool_that_declares_it_is_sent_what_was_asked_for(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    await edge.text(endless(edge.asked("acme-sg")))
    [(_, sent)] = edge.routes.sent
    assert (sent.generation.sampling.ignore_eos, sent.generation.sampling.min_tokens) == (True, 4)
    record = edge.records("decision")[0]
    assert {"ignore_eos", "min_tokens"} <= {*record["asked"]["capabilities"]}


@pytest.mark.parametrize("missing", sorted(ENDINGS, key=lambda capability: capability.value))
async def test_a_pool_that_does_not_declare_it_is_never_sent_it(
    make_edge: Callable[..., Edge], missing: Capability
) -> None:
    edge = make_edge()
    assert edge.current is not None
    fleet = edge.current.fleet
    pools = tuple(
        replace(
            pool,
            models=tuple(replace(served, capabilities=served.capabilities - {missing}) for served in pool.models),
        )
        for pool in fleet.pools
    )
    edge.current = replace(edge.current, fleet=replace(fleet, pools=pools))
    with pytest.raises(ProblemError) as found:
        await edge.gate.ask(endless(edge.asked("acme-sg")))
    assert found.value.problem.code == "capability_not_offered"
    assert missing.value in found.value.problem.text
    assert edge.routes.sent == []
    await edge.text(edge.asked("acme-sg"))
