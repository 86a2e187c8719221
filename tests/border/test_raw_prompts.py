"""A raw prompt at the gate: the same law and the same proof, and only pools that say that they take one."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node_agent.border.decider import Asked
from orchestrator.engines.generation import Message, Role
from orchestrator.placement.capabilities import Capability
from orchestrator.wire.catalogue import ProblemError
from tests.border.edge import GERMAN, SECRET_WORDS, Edge
from tests.values import replace


def raw(asked: Asked) -> Asked:
    generation = replace(asked.generation, messages=(Message(Role.PROMPT, SECRET_WORDS),))
    return replace(asked, generation=generation, capabilities=frozenset({Capability.COMPLETIONS}))


async def test_a_raw_prompt_goes_where_a_conversation_would(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge("edge-frankfurt")
    asked = edge.asked("rhein-gmbh", GERMAN)
    assert await edge.text(raw(asked)) == await edge.text(asked)
    [(_, sent), _] = edge.routes.sent
    assert sent.generation.raw_prompt == SECRET_WORDS
    record = edge.records("decision")[0]
    assert record["outcome"] == "sent"
    assert SECRET_WORDS not in str(record)


async def test_the_proof_of_inputs_covers_a_raw_prompt(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    await edge.text(raw(edge.asked_overseas()))
    [(_, sent)] = edge.routes.sent
    assert sent.inputs is not None
    assert ("prompt", len(SECRET_WORDS)) in [(part.kind, part.size_bytes) for part in sent.inputs.parts]


async def test_a_pool_that_does_not_say_completions_gets_no_raw_prompt(make_edge: Callable[..., Edge]) -> None:
    edge = make_edge()
    assert edge.current is not None
    fleet = edge.current.fleet
    pools = tuple(
        replace(
            pool,
            models=tuple(
                replace(served, capabilities=served.capabilities - {Capability.COMPLETIONS}) for served in pool.models
            ),
        )
        for pool in fleet.pools
    )
    edge.current = replace(edge.current, fleet=replace(fleet, pools=pools))
    with pytest.raises(ProblemError) as found:
        await edge.gate.ask(raw(edge.asked("acme-sg")))
    assert found.value.problem.code == "capability_not_offered"
    assert "completions" in found.value.problem.text
    assert edge.routes.sent == []
    await edge.text(edge.asked("acme-sg"))
