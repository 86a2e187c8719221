"""What an engine says of prompts that wait and of its memory."""

from __future__ import annotations

from scheduler.pools.engine.batch import PREFILL_CHUNK_TOKENS
from scheduler.pools.engine.loop import EngineLoad
from tests.engine.answers import Hold, ask, generation
from tests.engine.conftest import MakeEngine


def test_an_idle_engine_has_room_and_nothing_that_waits(make_engine: MakeEngine) -> None:
    assert make_engine(slots=3, context_tokens=256).load() == EngineLoad(0, 0, 3, 0, 3 * 256, 0)


def test_a_prompt_counts_as_waiting_until_the_cache_holds_it(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=2)
    loads: list[EngineLoad] = []
    hold = Hold(at_delta=5)

    def look(deltas: int) -> None:
        hold(deltas)
        loads.append(engine.load())

    running = ask(engine, generation("x", max_tokens=200), look)
    hold.wait_reached()
    long = ask(engine, generation("qwxyz" * 40, max_tokens=2))
    hold.release()
    whole = long.wait().finished.prompt_tokens
    running.wait()
    waited = [load.queued_tokens for load in loads]
    # One chunk between two tokens of the running answer.
    steps = list(range(whole, 0, -PREFILL_CHUNK_TOKENS))
    at = waited.index(whole)
    assert waited[at : at + len(steps)] == steps
    assert set(waited[:at]) == {0}
    assert set(waited[at + len(steps) :]) == {0}
    used = [load.kv_used_tokens for load in loads]
    assert max(used) > whole
    assert all(load.kv_tokens == 2 * 256 for load in loads)


def test_prompts_that_have_no_slot_wait_as_a_whole(make_engine: MakeEngine) -> None:
    engine = make_engine(slots=1)
    waited: list[int] = []
    hold = Hold()

    def look(deltas: int) -> None:
        hold(deltas)
        waited.append(engine.load().queued_tokens)

    running = ask(engine, generation("x", max_tokens=60), look)
    hold.wait_reached()
    others = [ask(engine, generation("user " * count, max_tokens=1)) for count in (3, 9)]
    hold.release()
    running.wait()
    assert waited[-1] == sum(other.wait().finished.prompt_tokens for other in others)
