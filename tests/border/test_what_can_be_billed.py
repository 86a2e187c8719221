"""An edge bills what a pool tells it as far as that can be, and no more of an answer than was asked for."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from node_agent.border.gate import Answer
from node_agent.uplink.sending import Sendable
from orchestrator.engines.chunks import TEXTS_BEYOND
from orchestrator.engines.generation import Message, Role, Sampling
from orchestrator.engines.prompt_bound import RAW_TOKENS, TEMPLATE_TOKENS
from orchestrator.ledger.usage import PoolCounts
from orchestrator.wire.frames import Accepted, Broken, Done, StreamFrame, Tokens
from tests.border.edge import SECRET_WORDS, Edge
from tests.border.example import Plan

Make = Callable[..., Edge]
BYTES = len(SECRET_WORDS.encode())
CONTEXT = 2_048
"""What the example's pools declare."""
MOST = 8
"""What is asked for."""


def tells(counts: PoolCounts, *frames: int) -> Plan:
    """Frames of so many tokens each, and the end."""

    def plan(sendable: Sendable) -> list[StreamFrame]:
        attempt, first = sendable.attempt, 0
        told: list[StreamFrame] = [Accepted(1, attempt, "replica")]  # type: ignore[arg-type]
        for count in frames:
            told.append(Tokens(1, attempt, first, count, "a" * count, ()))
            first += count
        return [*told, Done(1, attempt, "stop", counts)]

    return plan


async def heard(edge: Edge, **generation: object) -> tuple[Answer, int, str, Done | Broken]:
    """The answer, and what the tenant has of it: tokens, text, and how it ended."""
    answer = await edge.gate.ask(edge.asked("acme-sg", **generation))
    tokens, text = 0, ""
    async for frame in answer.frames:
        if not isinstance(frame, Tokens):
            return answer, tokens, text, frame
        tokens, text = tokens + frame.count, text + frame.text
    raise AssertionError("no end")


def cost(prompt: int, delivered: int, cached: int = 0) -> int:
    """In pico-units, of the example's book."""
    return (prompt - cached) * 2_000_000 + cached * 1_000_000 + delivered * 4_000_000


async def billed(edge: Edge, **generation: object) -> tuple[int, int, int]:
    """What the tenant is told to have used and pays for: of the prompt, cached of that, and of the answer."""
    answer, tokens, _, end = await heard(edge, **generation)
    assert isinstance(end, Done)
    (usage,) = edge.records("usage")
    assert answer.price is not None
    assert usage["price"]["amount_pico"] == str(answer.price.amount_pico)
    return end.counts.prompt, end.counts.cached, tokens


@pytest.mark.parametrize("told", [1_700, 4_000_000_000])
async def test_no_more_of_a_prompt_is_billed_than_its_bytes_can_be(make_edge: Make, told: int) -> None:
    raw = (Message(Role.PROMPT, SECRET_WORDS),)
    edge = make_edge(cn_guizhou=tells(PoolCounts(told, told, 1, 1), 1))
    assert await billed(edge, messages=raw) == (BYTES + RAW_TOKENS, BYTES + RAW_TOKENS, 1)
    (usage,) = edge.records("usage")
    assert usage["counts"]["pool"]["prompt"] == told  # marked as its word


async def test_what_can_be_is_billed_as_it_was_told(make_edge: Make) -> None:
    for told in (1, BYTES, BYTES + 500):
        edge = make_edge(cn_guizhou=tells(PoolCounts(told, 1, 1, 1), 1))
        assert await billed(edge) == (told, 1, 1)


async def test_no_more_is_billed_than_the_declared_context_holds(make_edge: Make) -> None:
    assert BYTES + TEMPLATE_TOKENS > CONTEXT
    edge = make_edge(cn_guizhou=tells(PoolCounts(CONTEXT, 0, MOST, MOST), MOST))
    assert await billed(edge) == (CONTEXT - MOST, 0, MOST)


async def test_no_more_of_an_answer_is_billed_than_was_asked_for(make_edge: Make) -> None:
    most = MOST + TEXTS_BEYOND
    edge = make_edge(cn_guizhou=tells(PoolCounts(10, 0, most, most), MOST - 1, 2, *[1] * (TEXTS_BEYOND - 1)))
    answer, tokens, text, end = await heard(edge)
    assert (tokens, len(text), type(end)) == (MOST, most, Done)
    (usage,) = edge.records("usage")
    assert usage["counts"]["edge"] == {"delivered": MOST, "received": most, "reported": False}
    assert answer.price is not None
    fair = make_edge(cn_guizhou=tells(PoolCounts(10, 0, MOST, MOST), MOST))
    assert (await heard(fair))[0].price == answer.price


@pytest.mark.parametrize("frames", [[1] * 100, [3, 100]])
async def test_a_pool_that_goes_on_and_on_is_cut(make_edge: Make, frames: list[int]) -> None:
    edge = make_edge(cn_guizhou=tells(PoolCounts(10, 0, 100, 100), *frames))
    answer, tokens, text, end = await heard(edge)
    assert isinstance(end, Broken)
    assert end.code == "engine_protocol"
    assert tokens <= MOST
    assert len(text) <= MOST + TEXTS_BEYOND
    assert answer.price is None


async def test_a_pool_that_says_too_much_at_once_is_replaced_by_another(make_edge: Make) -> None:
    edge = make_edge(cn_guizhou=tells(PoolCounts(10, 0, 100, 100), 100))
    _, tokens, text, end = await heard(edge)
    assert (tokens, text, type(end)) == (1, "S", Done)


async def test_without_a_most_the_declared_context_is_the_most(make_edge: Make) -> None:
    endless = Sampling()
    edge = make_edge(cn_guizhou=tells(PoolCounts(1, 0, CONTEXT, CONTEXT), *[1] * CONTEXT))
    assert (await heard(edge, sampling=endless))[1] == CONTEXT
    more = make_edge(cn_guizhou=tells(PoolCounts(1, 0, 3_000, 3_000), *[1] * 3_000))
    _, tokens, text, end = await heard(more, sampling=endless)
    assert isinstance(end, Broken)
    assert (end.code, tokens, len(text)) == ("engine_protocol", CONTEXT, CONTEXT + TEXTS_BEYOND)
