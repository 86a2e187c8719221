"""What an engine refuses, before any work, and in which words."""

from __future__ import annotations

import pytest

from orchestrator.engines.generation import FinishReason, Generation, Message, ModelId, Role, Sampling
from scheduler.pools.engine.loop import Engine
from tests.engine.answers import Answer, Hold, ask, generation
from tests.engine.conftest import MakeEngine
from tests.values import replace


def test_prompt_longer_than_the_context_is_refused_with_the_counts(engine: Engine) -> None:
    refused = ask(engine, generation("q" * 400, max_tokens=None)).wait().refused
    assert refused.code == "context_length_exceeded"
    assert "256" in refused.detail
    assert any(int(word) > 400 for word in refused.detail.split() if word.isdecimal())
    assert "qqq" not in refused.detail


def test_prompt_and_max_tokens_longer_than_the_context_are_refused(engine: Engine) -> None:
    fits = ask(engine, generation(max_tokens=1)).wait().finished.prompt_tokens
    assert ask(engine, generation(max_tokens=256 - fits)).wait().finished.reason is FinishReason.LENGTH
    refused = ask(engine, generation(max_tokens=257 - fits)).wait().refused
    assert refused.code == "context_length_exceeded"
    assert f"{fits} tokens" in refused.detail
    assert str(257 - fits) in refused.detail


def test_more_than_the_slots_and_the_waiting_line_is_refused_as_busy(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1, waiting_max=2)
    hold = Hold()
    accepted = [ask(engine, generation(max_tokens=3), hold)]
    hold.wait_reached()
    accepted += [ask(engine, generation(max_tokens=3)) for _ in range(2)]
    turned_away = ask(engine, generation(max_tokens=3))
    assert turned_away.over.is_set(), "the refusal does not wait for a step"
    assert turned_away.refused.code == "engine_busy"
    hold.release()
    assert [answer.wait().finished.completion_tokens for answer in accepted] == [3, 3, 3]
    assert ask(engine, generation(max_tokens=3)).wait().finished.completion_tokens == 3


def test_a_free_slot_needs_no_place_to_wait(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=2, waiting_max=0)
    hold = Hold()
    accepted = [ask(engine, generation(max_tokens=5), hold)]
    hold.wait_reached()
    accepted.append(ask(engine, generation(max_tokens=5)))
    assert ask(engine, generation(max_tokens=5)).refused.code == "engine_busy"
    hold.release()
    assert [answer.wait().finished.completion_tokens for answer in accepted] == [5, 5]


def test_another_model_is_refused(engine: Engine) -> None:
    refused = ask(engine, generation(model="another")).refused
    assert (refused.code, refused.param) == ("model_not_served", "model")


@pytest.mark.parametrize(
    ("sampling", "param"),
    [
        (Sampling(temperature=-0.1), "temperature"),
        (Sampling(temperature=2.1), "temperature"),
        (Sampling(temperature=float("nan")), "temperature"),
        (Sampling(top_p=0.0), "top_p"),
        (Sampling(top_p=1.01), "top_p"),
        (Sampling(top_p=float("nan")), "top_p"),
        (Sampling(seed=-1), "seed"),
        (Sampling(seed=1 << 64), "seed"),
        (Sampling(max_tokens=0), "max_tokens"),
        (Sampling(max_tokens=4, min_tokens=5), "min_tokens"),
        (Sampling(min_tokens=-1), "min_tokens"),
        (Sampling(stop=("a",) * 5), "stop"),
        (Sampling(stop=("",)), "stop"),
        (Sampling(stop=("a" * 2000,)), "stop"),
    ],
)
def test_sampling_outside_its_bounds_is_refused(engine: Engine, sampling: Sampling, param: str) -> None:
    refused = ask(engine, replace(generation(), sampling=sampling)).refused
    assert (refused.code, refused.param) == ("bad_generation", param)


@pytest.mark.parametrize(
    "messages",
    [
        (),
        (Message(Role.USER, "half a character: \ud83d"),),
        (Message(Role.ASSISTANT, "this template wants a user first"),),
    ],
    ids=["none", "lone surrogate", "order of roles"],
)
def test_conversation_that_cannot_be_rendered_is_refused(engine: Engine, messages: tuple[Message, ...]) -> None:
    answer = Answer()
    engine.submit(Generation(ModelId("tiny"), messages, Sampling()), answer)
    refused = answer.wait().refused
    assert (refused.code, refused.param) == ("bad_generation", "messages")
    assert engine.healthy
