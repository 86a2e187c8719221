"""The batch against the plain model: the slot cache computes what a model without any cache computes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from scheduler.pools.engine.batch import PREFILL_CHUNK_TOKENS, Batch, Handle, Row, Step
from scheduler.pools.engine.detokenise import AnswerText
from scheduler.pools.engine.model import ServedModel
from scheduler.pools.engine.prompt import Prompt
from scheduler.pools.engine.sampling import Drawing

GREEDY = Drawing(temperature=0.0, top_p=1.0, seed=0)
SEEDED = Drawing(temperature=1.2, top_p=0.95, seed=99)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> ServedModel:
    """With three rows of 256 tokens."""
    return ServedModel(tiny_model, slots=3, context_tokens=256, threads=1)


def _row(handle: int, prompt: list[int], tokens_max: int, drawing: Drawing = GREEDY) -> Row:
    return Row(Handle(handle), Prompt(tuple(prompt), tokens_max), drawing, AnswerText([], ()))


def _prompt(seed: int, length: int) -> list[int]:
    ids: list[int] = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return ids


def _step(batch: Batch) -> list[Step]:
    steps = batch.decode()
    joined = batch.prefill()
    return steps if joined is None else [*steps, joined]


def _run(batch: Batch, rows: list[Row]) -> dict[int, list[int]]:
    """Let each row join as soon as it can, until all are done; the tokens of each."""
    tokens: dict[int, list[int]] = {row.handle: [] for row in rows}
    waiting = list(rows)
    while waiting or len(batch):
        if waiting and batch.can_join:
            batch.join(waiting.pop(0))
        for step in _step(batch):
            tokens[step.row.handle] += step.delta.token_ids
    return tokens


@pytest.mark.parametrize("length", [1, PREFILL_CHUNK_TOKENS - 1, PREFILL_CHUNK_TOKENS, 3 * PREFILL_CHUNK_TOKENS + 7])
def test_greedy_answer_is_that_of_the_model_without_a_cache(model: ServedModel, tiny_model: Path, length: int) -> None:
    plain = LlamaForCausalLM.from_pretrained(str(tiny_model), local_files_only=True)
    ids = _prompt(length, length)
    expected: list[int] = []
    with torch.inference_mode():
        for _ in range(20):
            expected.append(int(plain(torch.tensor([ids + expected]), use_cache=False).logits[0, -1].argmax()))
    other = _row(2, _prompt(7, 40), 30)
    assert _run(Batch(model, 3), [other, _row(1, ids, 20)])[1] == expected


def test_answer_may_leave_while_a_prompt_is_half_taken_in(model: ServedModel) -> None:
    long = _prompt(1, 4 * PREFILL_CHUNK_TOKENS)
    alone = _run(Batch(model, 3), [_row(1, long, 12)])[1]
    batch = Batch(model, 3)
    leaving, staying, joining = _row(2, _prompt(2, 9), 60), _row(3, _prompt(3, 11), 60), _row(1, long, 12)
    for row in (leaving, staying):
        batch.join(row)
        _step(batch)
    batch.join(joining)
    _step(batch)
    _step(batch)
    assert 0 < joining.fed < len(long)
    assert batch.leave(leaving.handle) is leaving
    tokens: list[int] = []
    while joining.generated < 12:
        for step in _step(batch):
            if step.row is joining:
                tokens += step.delta.token_ids
    assert tokens == alone


def test_joining_answer_may_leave(model: ServedModel) -> None:
    batch = Batch(model, 1)
    batch.join(_row(1, _prompt(1, 100), 5))
    _step(batch)
    held = batch.kv_tokens
    assert batch.leave(Handle(1)) is not None
    assert (held, batch.kv_tokens) == (PREFILL_CHUNK_TOKENS, 0)
    after = _run(batch, [_row(2, _prompt(2, 10), 8)])
    assert after == _run(Batch(model, 3), [_row(2, _prompt(2, 10), 8)])


@pytest.mark.parametrize("drawing", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("given", [1, 17, 39])
def test_answer_goes_on_alike_from_its_prompt_and_first_tokens(
    model: ServedModel, drawing: Drawing, given: int
) -> None:
    prompt = _prompt(5, 30)
    whole = _run(Batch(model, 3), [_row(1, prompt, 40, drawing)])[1]
    assert len(whole) == 40
    rest = _run(Batch(model, 3), [_row(2, _prompt(6, 50), 30), _row(1, prompt + whole[:given], 40 - given, drawing)])[1]
    assert whole[:given] + rest == whole


def test_one_answer_joins_at_a_time(model: ServedModel) -> None:
    batch = Batch(model, 3)
    batch.join(_row(1, _prompt(1, 100), 5))
    with pytest.raises(RuntimeError):
        batch.join(_row(2, _prompt(2, 100), 5))
