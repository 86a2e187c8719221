"""An answer that was cut goes on from its tokens: the same text, nothing twice and nothing left out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.generation import Delta, FinishReason, Generation, Resume, Said
from orchestrator.policy.ids import digest_of
from scheduler.pools.engine.loop import Engine
from tests.engine.answers import Answer, ask, generation
from tests.engine.conftest import MakeEngine
from tests.engine.tiny_model import build_tiny_model
from tests.values import replace

IDENTITY = digest_of(b"tiny")
TOKENS = 24

GREEDY = generation(max_tokens=TOKENS)
SEEDED = generation(temperature=1.2, top_p=0.9, seed=20261126, max_tokens=TOKENS)


def cut_after(whole: Answer, tokens: int) -> Said:
    """What an edge holds of an answer when it was cut behind its `tokens`-th token."""
    deltas = whole.all_deltas[:tokens]
    ids = tuple(token for delta in deltas for token in delta.token_ids)
    return Said(Resume.IDS, IDENTITY, len(ids), "".join(delta.text for delta in deltas), ids)


def resumed(engine: Engine, wanted: Generation, said: Said) -> Answer:
    return ask(engine, replace(wanted, said=said)).wait()


@pytest.mark.parametrize("wanted", [GREEDY, SEEDED], ids=["greedy", "seeded"])
def test_cut_at_every_token_the_answer_and_its_count_are_those_of_the_undisturbed_one(
    make_engine: MakeEngine, wanted: Generation
) -> None:
    first, second = make_engine(slots=1), make_engine(slots=3)
    whole = ask(first, wanted).wait()
    assert whole.finished.completion_tokens == TOKENS
    # Others run beside it in the second engine: who is in the batch changes nothing.
    beside = ask(second, generation("others", temperature=1.0, seed=3, max_tokens=200))
    for tokens in range(TOKENS + 1):
        said = cut_after(whole, tokens)
        rest = resumed(second, wanted, said)
        assert said.text + rest.text == whole.text, f"cut behind token {tokens}"
        assert [*said.ids, *rest.token_ids] == whole.token_ids
        assert rest.finished.reason is whole.finished.reason
        assert rest.finished.prompt_tokens == whole.finished.prompt_tokens
        assert rest.finished.completion_tokens == TOKENS - tokens
    second.cancel(beside.handle)
    beside.wait()


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 17}], ids=["ignored", "fewest"])
def test_where_an_answer_may_end_is_counted_from_its_first_token(
    engine: Engine, make_engine: MakeEngine, tmp_path: Path, fields: dict[str, Any]
) -> None:
    end_id = ask(engine, GREEDY).wait().token_ids[8]
    ending = make_engine(model_dir=build_tiny_model(tmp_path, end_id=end_id))
    wanted = generation(max_tokens=TOKENS, **fields)
    whole = ask(ending, wanted).wait()
    assert len(whole.token_ids) >= 17
    for tokens in range(len(whole.token_ids)):
        said = cut_after(whole, tokens)
        rest = resumed(ending, wanted, said)
        assert [*said.ids, *rest.token_ids] == whole.token_ids, f"cut behind token {tokens}"
        assert rest.finished.reason is whole.finished.reason
    early = Said(Resume.IDS, IDENTITY, 1, "", (end_id,))
    assert resumed(ending, wanted, early).refused.code == "identity_mismatch"
    assert resumed(ending, GREEDY, early).finished.reason is FinishReason.STOP


def test_what_was_held_back_of_a_stop_string_is_held_back_again(make_engine: MakeEngine) -> None:
    engine = make_engine()
    text = ask(engine, GREEDY).wait().text
    # One stop string that the answer meets, and one whose head it meets again and again.
    wanted = generation(max_tokens=TOKENS, stop=(text[12:15], text[4] + "\x00"))
    whole = ask(engine, wanted).wait()
    assert whole.finished.reason is FinishReason.STOP
    assert len(whole.text) < len(text)
    for tokens in range(len(whole.token_ids) + 1):
        said = cut_after(whole, tokens)
        rest = resumed(engine, wanted, said)
        assert said.text + rest.text == whole.text, f"cut behind token {tokens}"
        assert [*said.ids, *rest.token_ids] == whole.token_ids
        assert rest.finished.reason is FinishReason.STOP


def test_cut_twice_it_still_goes_on(make_engine: MakeEngine) -> None:
    engine = make_engine()
    whole = ask(engine, SEEDED).wait()
    once = resumed(engine, SEEDED, cut_after(whole, 5))
    twice = cut_after(whole, 5)
    more = once.all_deltas[:7]
    ids = (*twice.ids, *(token for delta in more for token in delta.token_ids))
    said = Said(Resume.IDS, IDENTITY, len(ids), twice.text + "".join(delta.text for delta in more), ids)
    assert said.text + resumed(engine, SEEDED, said).text == whole.text


def test_text_that_did_not_reach_the_tenant_is_said_first(make_engine: MakeEngine) -> None:
    engine = make_engine()
    whole = ask(engine, GREEDY).wait()
    said = cut_after(whole, 9)
    shorter = replace(said, text=said.text[:-2])
    assert shorter.text + resumed(engine, GREEDY, shorter).text == whole.text
    over = cut_after(whole, TOKENS)
    shorter = replace(over, text=over.text[:-2])
    rest = resumed(engine, GREEDY, shorter)
    assert rest.all_deltas == [Delta(over.text[-2:], (), 0)]
    assert rest.finished.reason is FinishReason.LENGTH


@pytest.mark.parametrize(
    "change",
    [
        {"text": "another text"},
        {"ids": (10_000,), "tokens": 1, "text": ""},
        {"by": Resume.TEXT, "ids": ()},
        {"ids": (2, 2), "tokens": 2, "text": ""},
        {"ids": (200,) * (TOKENS + 1), "tokens": TOKENS + 1, "text": ""},
    ],
    ids=["other text", "no such token", "by text", "more after its end", "too many"],
)
def test_what_is_not_an_answer_of_this_model_is_not_gone_on_with(engine: Engine, change: dict[str, object]) -> None:
    said = replace(cut_after(ask(engine, GREEDY).wait(), 9), **change)  # type: ignore[arg-type]
    answer = resumed(engine, GREEDY, said)
    assert answer.refused.code == "identity_mismatch"
    assert ask(engine, GREEDY).wait().finished.completion_tokens == TOKENS, "its slot is free"
