"""What a pool says of itself: prompts that wait, memory, how long a work waited, and what ran beside it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.engines.metrics_page import EngineLoad
from orchestrator.placement.sight import End
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from scheduler.intake.choice import Asked
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.engine_replica import told_of
from scheduler.intake.figures import Passage
from scheduler.intake.replica import Replica, Told
from tests.values import replace

MODEL = ModelId("model")
ONE, TWO = ReplicaId("r-1"), ReplicaId("r-2")
MS = 1_000
NOBODY = EngineLoad(0, 0, None, None, "vllm")


def pool(*names: ReplicaId, slots: int = 4, beats: bool = True) -> Dispatcher:
    queue = Dispatcher(PoolId("pool"), 8)
    for name in names:
        queue.joined(Replica(name, "1", MODEL, slots, 0, beats=beats))
    return queue


def give(queue: Dispatcher, work: int, prompt_tokens: int = 100, at_us: int = 0) -> None:
    queue.submit(work, Asked(MODEL, prompt_tokens), 60_000, at_us)


def test_what_the_beats_say_is_added_up_over_the_replicas() -> None:
    queue = pool(ONE, TWO)
    queue.beat(ONE, "1", True, 0, Told(700, 8_000, 1_500))
    queue.beat(TWO, "1", True, 0, Told(41, 8_000, 20))
    state = queue.state()
    assert (state.queued_tokens, state.kv_tokens, state.kv_used_tokens) == (741, 16_000, 1_520)


@pytest.mark.parametrize(
    ("told", "known"),
    [
        (None, (0, None, None)),
        (Told(5, None, None), (5, None, None)),
        (Told(5, 8_000, None), (5, 16_000, None)),
        (Told(5, 8_000, 10, others_waiting=1), (None, 16_000, 20)),
    ],
    ids=["not heard of yet", "no memory", "no use of memory", "prompts of others"],
)
def test_what_one_replica_does_not_tell_is_not_known_of_the_pool(
    told: Told | None, known: tuple[int | None, int | None, int | None]
) -> None:
    queue = pool(ONE, TWO)
    queue.beat(ONE, "1", True, 0, Told(0, 8_000, 10))
    queue.beat(TWO, "1", True, 0, told)
    state = queue.state()
    assert (state.queued_tokens, state.kv_tokens, state.kv_used_tokens) == known


def test_a_pool_without_replicas_knows_of_no_memory() -> None:
    state = pool().state()
    assert (state.free, state.queued_tokens, state.kv_tokens, state.kv_used_tokens) == (0, 0, None, None)


def test_prompts_are_estimated_until_they_are_counted_and_forgotten_when_they_are_read() -> None:
    queue = pool(ONE, slots=1)
    give(queue, 1, 100)
    give(queue, 2, 50)
    assert queue.state().queued_tokens == 150, "one in the replica, one in the queue"
    queue.started(1, 120, 1)
    assert queue.state().queued_tokens == 170
    queue.beat(ONE, "1", True, 2, Told(queued_tokens=90))
    assert queue.state().queued_tokens == 140, "it has read 30 of them"
    queue.first_token(1, 3)
    assert queue.state().queued_tokens == 50, "sooner than the next beat says so"
    queue.ended(1, 4, End.COMPLETE)
    queue.first_token(2, 5)
    assert queue.state().queued_tokens == 0


def test_what_a_beat_cannot_have_counted_is_added_to_it() -> None:
    queue = pool(ONE)
    give(queue, 1, 100)
    queue.started(1, 100, 1)
    queue.beat(ONE, "1", True, 2, Told(queued_tokens=60))
    give(queue, 2, 30, at_us=3)
    queue.beat(ONE, "1", None, 4)
    assert queue.state().queued_tokens == 90, "other frames of the replica say nothing of it"
    queue.beat(ONE, "1", True, 5, Told(queued_tokens=40))
    assert queue.state().queued_tokens == 70, "the second was not rendered when it beat"
    queue.ended(1, 6, End.CANCELLED)
    assert queue.state().queued_tokens == 30


def test_the_wait_of_a_work_ends_when_its_prompt_is_read() -> None:
    queue = pool(ONE, slots=2)
    give(queue, 1)
    give(queue, 2, at_us=1 * MS)
    give(queue, 3, at_us=2 * MS)
    assert queue.passage(3) == Passage(None, None), "it waits still"
    queue.started(1, 100, 5 * MS)
    queue.started(2, 100, 6 * MS)
    assert queue.passage(1).queued_us == 5 * MS
    assert queue.passage(2).queued_us == 5 * MS
    queue.first_token(1, 20 * MS)
    assert queue.passage(2).queued_us == 19 * MS, "our engine takes in one prompt after the other"
    queue.first_token(2, 40 * MS)
    queue.ended(1, 50 * MS, End.COMPLETE)
    queue.started(3, 100, 51 * MS)
    assert queue.passage(1) == Passage(None, None)
    assert queue.passage(2).queued_us == 19 * MS
    assert queue.passage(3).queued_us == 49 * MS


def test_a_work_that_gives_up_holds_up_only_what_came_after_it() -> None:
    queue = pool(ONE)
    for work in (1, 2, 3):
        give(queue, work)
        queue.started(work, 100, work * MS)
    queue.ended(2, 30 * MS, End.CANCELLED)
    assert queue.passage(1).queued_us == 1 * MS
    assert queue.passage(3).queued_us == 30 * MS


def test_of_an_engine_behind_a_url_only_the_wait_in_our_queue_is_known() -> None:
    queue = pool(ONE, slots=2, beats=False)
    give(queue, 1)
    give(queue, 2)
    give(queue, 3, at_us=1 * MS)
    queue.first_token(1, 20 * MS)
    assert queue.passage(2).queued_us == 0
    queue.ended(1, 30 * MS, End.COMPLETE)
    assert queue.passage(3).queued_us == 29 * MS


def test_only_streams_that_decode_ran_beside_a_work() -> None:
    queue = pool(ONE)
    for work in (1, 2, 3):
        give(queue, work)
    queue.first_token(1, 1)
    assert queue.passage(1).beside == 0
    queue.first_token(2, 2)
    assert (queue.passage(1).beside, queue.passage(3).beside) == (1, 2)
    queue.beat(ONE, "1", True, 3, Told(others_running=4))
    assert queue.passage(1).beside == 5
    queue.ended(2, 4, End.COMPLETE)
    assert queue.passage(1).beside == 4


@pytest.mark.parametrize(
    ("load", "ours", "told"),
    [
        (NOBODY, 0, Told()),
        (replace(NOBODY, running=3), 3, Told()),
        (replace(NOBODY, running=5, waiting=2), 3, Told(others_running=2, others_waiting=2)),
        (replace(NOBODY, running=2, waiting=3), 4, Told(others_waiting=1)),
        (replace(NOBODY, running=1), 4, Told()),
        (replace(NOBODY, kv_tokens=10_000, kv_used_ppm=250_000), 0, Told(None, 10_000, 2_500)),
        (replace(NOBODY, kv_tokens=10_000), 0, Told(None, 10_000, None)),
        (replace(NOBODY, kv_used_ppm=250_000), 0, Told()),
    ],
)
def test_what_a_page_says_beside_ours_is_others(load: EngineLoad, ours: int, told: Told) -> None:
    assert told_of(load, ours) == told


@given(running=st.integers(0, 100), waiting=st.integers(0, 100), ours=st.integers(0, 100))
def test_every_request_on_a_page_is_ours_or_others(running: int, waiting: int, ours: int) -> None:
    told = told_of(replace(NOBODY, running=running, waiting=waiting), ours)
    assert told.others_running + told.others_waiting == max(0, running + waiting - ours)
    assert 0 <= told.others_running <= running
    assert 0 <= told.others_waiting <= waiting
