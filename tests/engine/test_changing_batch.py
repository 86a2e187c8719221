"""An answer is the same whoever joins and leaves beside it."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from orchestrator.engines.generation import Generation
from scheduler.pools.engine.loop import Engine
from tests.engine.answers import Answer, Hold, ask, generation
from tests.engine.conftest import MakeEngine

GREEDY = [generation(f"hello number {n}" * (n + 1), max_tokens=30 + 17 * n) for n in range(5)]
SEEDED = [generation(f"user {n}", temperature=1.2, top_p=0.9, seed=1000 + n, max_tokens=30 + 17 * n) for n in range(5)]


def _alone(engine: Engine, wanted: list[Generation]) -> list[list[int]]:
    return [ask(engine, one).wait().token_ids for one in wanted]


def _together(engine: Engine, wanted: list[Generation]) -> list[list[int]]:
    """Each joins when the one before it has a few tokens, so every answer sees others come and go."""
    answers: dict[int, Answer] = {}

    def joiner(number: int) -> Callable[[int], None]:
        def on_delta(deltas: int) -> None:
            if deltas == 4 and number + 1 < len(wanted):
                submit(number + 1)

        return on_delta

    def submit(number: int) -> None:
        answers[number] = ask(engine, wanted[number], joiner(number))

    submit(0)
    return [answers[number].wait().token_ids for number in range(len(wanted))]


@pytest.mark.parametrize("wanted", [GREEDY, SEEDED], ids=["greedy", "seeded"])
@pytest.mark.parametrize("slots", [2, 4])
def test_answer_is_the_same_alone_and_in_a_changing_batch(
    make_engine: MakeEngine, wanted: list[Generation], slots: int
) -> None:
    engine = make_engine(slots=slots)
    alone = _alone(engine, wanted)
    assert _together(engine, wanted) == alone
    assert len({tuple(ids) for ids in alone}) == len(wanted), "the answers must differ for this to mean anything"


def test_answer_survives_cancellations_around_it(engine: Engine) -> None:
    wanted = generation("hello", max_tokens=120)
    alone = ask(engine, wanted).wait().token_ids
    first = ask(engine, generation("first", max_tokens=200))
    kept_answer = Answer()

    def cancel_first(deltas: int) -> None:
        if deltas == 10:
            engine.cancel(first.handle)

    kept_answer = ask(engine, wanted, cancel_first)
    joined = ask(engine, generation("user " * 20, max_tokens=5))
    assert kept_answer.wait().token_ids == alone
    joined.wait()
    first.wait()


def test_another_seed_gives_another_answer_and_the_same_seed_the_same(engine: Engine) -> None:
    def drawn(seed: int | None) -> list[int]:
        return ask(engine, generation(temperature=1.5, seed=seed)).wait().token_ids

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)
    assert drawn(None) != drawn(None), "without a seed each answer gets its own entropy"


def test_long_prompt_is_taken_in_between_the_tokens_of_running_answers(engine: Engine) -> None:
    hold = Hold(at_delta=5)
    running = ask(engine, generation("x", max_tokens=200), hold)
    hold.wait_reached()
    seen: list[int] = []
    progress = engine.progress
    long = ask(engine, generation("qwxyz" * 40, max_tokens=2), lambda _: seen.append(running.deltas))
    hold.release()
    long.wait()
    assert long.finished.prompt_tokens > 200
    # 200 tokens are seven chunks: the running answer went on for at least six tokens meanwhile.
    assert seen[0] - 5 >= 6
    assert engine.progress - progress >= 7
    running.wait()


def test_load_counts_running_waiting_and_memory(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1)
    idle = engine.load()
    assert (idle.running, idle.waiting, idle.slots, idle.kv_used_share) == (0, 0, 1, 0.0)
    loads = []
    hold = Hold()

    def look(deltas: int) -> None:
        hold(deltas)
        loads.append(engine.load())

    first = ask(engine, generation(max_tokens=100), look)
    hold.wait_reached()
    second = ask(engine, generation(max_tokens=2))
    hold.release()
    first.wait()
    second.wait()
    assert loads[-1].running == 1
    assert loads[50].waiting == 1
    assert 0 < loads[50].kv_used_share < loads[90].kv_used_share < 1
