"""Every accepted request ends in exactly one terminal event."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from orchestrator.engines.generation import EngineEvent, FinishReason, Started
from scheduler.pools.engine.identity import ModelDamagedError
from scheduler.pools.engine.loop import Engine
from scheduler.pools.engine.model import ServedModel
from tests.engine.answers import Hold, ask, generation
from tests.engine.conftest import MakeEngine
from tests.engine.tiny_model import build_tiny_model


def test_max_tokens_ends_with_length(engine: Engine) -> None:
    answer = ask(engine, generation(max_tokens=7)).wait()
    assert answer.finished.reason is FinishReason.LENGTH
    assert answer.finished.completion_tokens == len(answer.token_ids) == 7


def test_without_max_tokens_the_answer_fills_the_context(make_engine: MakeEngine) -> None:
    answer = ask(make_engine(context_tokens=64), generation(max_tokens=None)).wait()
    assert answer.finished.reason is FinishReason.LENGTH
    assert answer.finished.prompt_tokens + answer.finished.completion_tokens == 64


def test_end_token_ends_with_stop_and_is_counted(engine: Engine, make_engine: MakeEngine, tmp_path: Path) -> None:
    plain = ask(engine, generation(max_tokens=30)).wait()
    end_id = plain.token_ids[-1]
    first_at = plain.token_ids.index(end_id)
    answer = ask(make_engine(model_dir=build_tiny_model(tmp_path, end_id=end_id)), generation(max_tokens=30)).wait()
    assert answer.finished.reason is FinishReason.STOP
    assert answer.token_ids == plain.token_ids[: first_at + 1]


class Ending:
    """An engine whose model ends its greedy answer early, and that answer."""

    def __init__(self, engine: Engine, make_engine: MakeEngine, folder: Path) -> None:
        self.end_id = ask(engine, generation(max_tokens=30)).wait().token_ids[-1]
        self.engine = make_engine(model_dir=build_tiny_model(folder, end_id=self.end_id))
        self.usual = ask(self.engine, generation(max_tokens=30)).wait()
        assert self.usual.finished.reason is FinishReason.STOP

    @property
    def end_at(self) -> int:
        """How many tokens the usual answer has before its end."""
        return len(self.usual.token_ids) - 1


@pytest.fixture
def ending(engine: Engine, make_engine: MakeEngine, tmp_path: Path) -> Ending:
    return Ending(engine, make_engine, tmp_path)


@pytest.mark.parametrize("seed", [None, 5])
def test_an_end_that_is_ignored_is_not_drawn_and_the_answer_has_its_length(ending: Ending, seed: int | None) -> None:
    temperature = 0.0 if seed is None else 1.3
    wanted = generation(temperature=temperature, seed=seed, max_tokens=60, ignore_eos=True)
    answer = ask(ending.engine, wanted).wait()
    assert (answer.finished.reason, answer.finished.completion_tokens) == (FinishReason.LENGTH, 60)
    assert ending.end_id not in answer.token_ids
    if seed is None:
        assert answer.token_ids[: ending.end_at] == ending.usual.token_ids[:-1]


def test_an_end_that_is_ignored_leaves_the_context_as_the_bound(ending: Ending) -> None:
    answer = ask(ending.engine, generation(max_tokens=None, ignore_eos=True)).wait()
    assert answer.finished.reason is FinishReason.LENGTH
    assert answer.finished.prompt_tokens + answer.finished.completion_tokens == 256


def test_the_model_may_end_an_answer_once_it_has_the_fewest_tokens(ending: Ending) -> None:
    same = ask(ending.engine, generation(max_tokens=30, min_tokens=ending.end_at)).wait()
    assert same.token_ids == ending.usual.token_ids, "the end is the token after the fewest"
    for fewest in (ending.end_at + 1, 20, 30):
        longer = ask(ending.engine, generation(max_tokens=30, min_tokens=fewest)).wait()
        assert len(longer.token_ids) >= fewest
        assert ending.end_id not in longer.token_ids[:fewest]
        assert longer.token_ids[: ending.end_at] == ending.usual.token_ids[:-1]


@pytest.mark.parametrize("fields", [{"ignore_eos": True}, {"min_tokens": 60}])
def test_a_stop_string_ends_what_the_model_may_not(engine: Engine, fields: dict[str, Any]) -> None:
    plain = ask(engine, generation("user", max_tokens=60)).wait()
    stop = plain.text[20:25]
    answer = ask(engine, generation("user", max_tokens=60, stop=(stop,), **fields)).wait()
    assert answer.finished.reason is FinishReason.STOP
    assert answer.text == plain.text[: plain.text.index(stop)]


def test_more_tokens_than_the_context_holds_cannot_be_the_fewest(make_engine: MakeEngine) -> None:
    wanted = generation(max_tokens=None, min_tokens=64)
    refused = ask(make_engine(context_tokens=64), wanted).wait().refused
    assert refused.code == "context_length_exceeded"
    assert "at least 64" in refused.detail


def test_who_waits_for_its_end_changes_nothing_for_others(ending: Ending) -> None:
    beside = [ask(ending.engine, generation(max_tokens=100, ignore_eos=True)) for _ in range(2)]
    assert ask(ending.engine, generation(max_tokens=30)).wait().token_ids == ending.usual.token_ids
    assert beside[0].wait().token_ids == beside[1].wait().token_ids


def test_stop_string_ends_the_answer_and_is_not_part_of_it(engine: Engine) -> None:
    plain = ask(engine, generation("user", max_tokens=60)).wait()
    # Wider than a token here, so its head had to be held back.
    stop = plain.text[20:25]
    answer = ask(engine, generation("user", max_tokens=60, stop=("never, never", stop))).wait()
    assert answer.finished.reason is FinishReason.STOP
    assert answer.text == plain.text[: plain.text.index(stop)]
    assert answer.token_ids == plain.token_ids[: len(answer.token_ids)]
    assert len(answer.token_ids) < len(plain.token_ids)


def test_held_back_head_of_a_stop_string_is_told_at_the_end(engine: Engine) -> None:
    plain = ask(engine, generation("user", max_tokens=30)).wait()
    answer = ask(engine, generation("user", max_tokens=30, stop=(plain.text[-3:] + "\x00\x00",))).wait()
    assert answer.finished.reason is FinishReason.LENGTH
    assert answer.text == plain.text


def test_cancelled_answer_frees_its_slot_for_the_next(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1)
    hold = Hold(at_delta=3)
    first = ask(engine, generation(max_tokens=200), hold)
    second = ask(engine, generation(max_tokens=4))
    hold.wait_reached()
    engine.cancel(first.handle)
    hold.release()
    assert first.wait().finished.reason is FinishReason.CANCELLED
    assert first.finished.completion_tokens == 3
    assert second.wait().finished.reason is FinishReason.LENGTH


def test_waiting_request_can_be_cancelled(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1)
    hold = Hold()
    first = ask(engine, generation(max_tokens=20), hold)
    hold.wait_reached()
    second = ask(engine, generation(max_tokens=4))
    engine.cancel(second.handle)
    hold.release()
    assert second.wait().finished.reason is FinishReason.CANCELLED
    assert second.finished.completion_tokens == 0
    assert first.wait().finished.reason is FinishReason.LENGTH
    assert engine.load().running == engine.load().waiting == 0


def test_cancelling_what_is_over_does_nothing(engine: Engine) -> None:
    answer = ask(engine, generation(max_tokens=2)).wait()
    engine.cancel(answer.handle)
    assert ask(engine, generation(max_tokens=2)).wait().finished.reason is FinishReason.LENGTH
    assert len(answer.events) == 4


@pytest.mark.parametrize("raise_at", [0, 1, 6])
def test_raising_sink_loses_its_own_request_alone(engine: Engine, raise_at: int) -> None:
    calls: list[EngineEvent] = []

    def bad_sink(event: EngineEvent) -> None:
        calls.append(event)
        if len(calls) > raise_at:
            raise RuntimeError("the caller's own fault")

    other = ask(engine, generation(max_tokens=80))
    engine.submit(generation("bad", max_tokens=80), bad_sink)
    assert other.wait().finished.reason is FinishReason.LENGTH
    assert ask(engine, generation(max_tokens=3)).wait().finished.completion_tokens == 3
    assert len(calls) == raise_at + 1
    assert engine.load().running == 0


def test_failing_step_fails_every_request_and_marks_the_engine_dead(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "canary-payload"  # in the fault's message, and in no event's
    decode = ServedModel.decode
    steps = 0

    def failing(self: ServedModel, *arguments: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 12:
            raise RuntimeError(secret)
        return decode(self, *arguments)

    monkeypatch.setattr(ServedModel, "decode", failing)
    hold = Hold()
    answers = [ask(engine, generation(secret, max_tokens=200), hold)]
    hold.wait_reached()
    answers += [ask(engine, generation(f"{secret} {n}", max_tokens=200)) for n in range(4)]
    hold.release()
    for answer in answers:
        failed = answer.wait().failed
        assert failed.code == "engine_failed"
        assert secret not in repr(answer.events)
    assert not engine.healthy
    assert engine.load().running == engine.load().waiting == 0
    late = ask(engine, generation())
    assert late.over.is_set()
    assert late.failed.code == "engine_unreachable"


def test_stop_lets_running_answers_end_and_takes_no_more(make_engine: MakeEngine) -> None:
    engine = make_engine()
    hold = Hold(at_delta=2)
    running = ask(engine, generation(max_tokens=60), hold)
    hold.wait_reached()
    hold.release()
    assert engine.stop(deadline_s=20)
    assert running.wait().finished.completion_tokens == 60
    assert ask(engine, generation()).failed.code == "engine_unreachable"


def test_stop_fails_what_is_not_done_by_the_deadline(make_engine: MakeEngine) -> None:
    engine = make_engine()
    running = ask(engine, generation(max_tokens=200), lambda _: time.sleep(0.02))
    assert engine.stop(deadline_s=0.1)
    assert running.wait().failed.code == "engine_failed"


def test_idle_engine_beats(engine: Engine) -> None:
    before = engine.progress
    time.sleep(0.8)
    assert 2 <= engine.progress - before <= 10


def test_damaged_model_is_not_served(make_engine: MakeEngine, tmp_path: Path) -> None:
    model_dir = build_tiny_model(tmp_path)
    weights = model_dir / "model.safetensors"
    damaged = bytearray(weights.read_bytes())
    damaged[-1] ^= 1
    weights.write_bytes(damaged)
    with pytest.raises(ModelDamagedError, match=r"model\.safetensors"):
        make_engine(model_dir=model_dir)


def test_engine_is_started_once(engine: Engine) -> None:
    with pytest.raises(RuntimeError):
        engine.start()


def test_request_before_start_is_told_that_nobody_serves(tiny_model: Path) -> None:
    engine = Engine(tiny_model, slots=1, context_tokens=64, waiting_max=0, threads=1, entropy=lambda: 1)
    assert ask(engine, generation()).failed.code == "engine_unreachable"
    assert engine.stop(deadline_s=0)
    with pytest.raises(RuntimeError):
        engine.start()


def test_context_beyond_the_model_is_refused_at_start(make_engine: MakeEngine) -> None:
    with pytest.raises(ValueError, match="512"):
        make_engine(context_tokens=100_000)


def test_started_tells_the_prompt_tokens(engine: Engine) -> None:
    answer = ask(engine, generation(max_tokens=1)).wait()
    assert answer.events[0] == Started(answer.finished.prompt_tokens)
