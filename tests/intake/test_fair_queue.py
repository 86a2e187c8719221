"""Turns in the queue of a pool: who sends much waits for itself, a free slot is never idle, places are shared."""

from __future__ import annotations

from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.shares import equal_share, may_hold
from orchestrator.placement.sight import End
from orchestrator.policy.ids import ModelId, PoolId, ReplicaId
from scheduler.intake.choice import Asked
from scheduler.intake.dispatch import RETRY_MIN_MS, Dispatcher
from scheduler.intake.fair import CREDIT_TOKENS, DEBT_TOKENS_MAX, FLOWS_MAX, FairQueue, Waiting
from scheduler.intake.instructions import Assign, Instruction, Refuse
from scheduler.intake.replica import Replica

MODEL = ModelId("small")
FLOWS = ("a", "b", "c", "d")
COSTS = (2, 300, 512, 700, 20_000)


def asked(flow: str, tokens: int, model: ModelId = MODEL) -> Asked:
    return Asked(model, tokens - 1, 1, flow=flow)


def waiting(work: int, flow: str, tokens: int = 300, at_us: int = 0) -> Waiting:
    return Waiting(work, asked(flow, tokens), at_us, 1 << 60)


def serve(queue: FairQueue, model: ModelId = MODEL) -> Waiting:
    """Serve the one whose turn it is."""
    one = queue.head(model)
    assert one is not None
    assert queue.head(model) is one, "asked again, it is still its turn"
    queue.served(one)
    return one


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.lists(st.tuples(st.sampled_from(FLOWS), st.sampled_from(COSTS), st.integers(0, 2)), max_size=60))
def test_something_is_served_while_anything_waits_and_each_flow_in_its_order(steps: list[tuple[str, int, int]]) -> None:
    queue = FairQueue(1_000)
    left: dict[str, list[int]] = {flow: [] for flow in FLOWS}
    for work, (flow, tokens, served) in enumerate(steps):
        queue.push(waiting(work, flow, tokens))
        left[flow].append(work)
        for _ in range(min(served, len(queue))):
            one = serve(queue)
            assert left[one.asked.flow].pop(0) == one.work
    for _ in range(len(queue)):
        one = serve(queue)
        assert left[one.asked.flow].pop(0) == one.work
    assert (queue.head(MODEL), len(queue), queue.models()) == (None, 0, [])


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.lists(st.tuples(st.sampled_from(FLOWS[1:]), st.sampled_from(COSTS)), min_size=1, max_size=80),
    st.integers(0, 30),
)
def test_no_flow_is_overtaken_by_more_than_a_credit_and_one_request_of_each_other(
    others: list[tuple[str, int]], before: int
) -> None:
    queue = FairQueue(1_000)
    for work, (flow, cost) in enumerate(others):
        queue.push(waiting(work, flow, cost))
    for _ in range(min(before, len(queue))):
        serve(queue)
    # Served once it has used up what it had: its next one waits for all that the others have not taken.
    queue.push(waiting(1_000, "a", CREDIT_TOKENS + 1))
    queue.push(waiting(1_001, "a"))
    while serve(queue).asked.flow != "a":
        pass
    overtook = dict.fromkeys(FLOWS, 0)
    while (one := serve(queue)).asked.flow != "a":
        overtook[one.asked.flow] += one.asked.prompt_tokens + one.asked.output_tokens
    assert all(taken <= 2 * CREDIT_TOKENS + 1 + max(COSTS) for taken in overtook.values())


@settings(max_examples=200, derandomize=True, deadline=None, database=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from((MODEL, ModelId("large"))), st.sampled_from(FLOWS), st.sampled_from(COSTS), st.booleans()
        ),
        max_size=80,
    )
)
def test_what_need_not_wait_counts_as_if_it_had_waited(steps: list[tuple[ModelId, str, int, bool]]) -> None:
    passing, queueing = FairQueue(1_000), FairQueue(1_000)
    for work, (model, flow, cost, waits) in enumerate(steps):
        one = Waiting(work, asked(flow, cost, model), 0, 1 << 60)
        queueing.push(one)
        if waits or len(passing):
            passing.push(one)
        else:
            passing.passed(one.asked)
            assert serve(queueing, model) == one
        for queue in (passing, queueing):
            queue.correct(one.asked, cost - 400)
        if work % 3 == 0 and len(queueing):
            (which, *_) = queueing.models()
            assert serve(passing, which) == serve(queueing, which)
        assert list(passing) == list(queueing)
        accounts, others = ([repr(vars(turns)) for turns in one._turns.values()] for one in (passing, queueing))
        assert accounts == others, "in their order too"


@pytest.mark.parametrize("seed", range(5))
def test_flows_that_always_wait_get_the_same_number_of_tokens(seed: int) -> None:
    random, queue, numbers = Random(seed), FairQueue(10_000), count()
    sizes = {"a": (50, 100), "b": (2_000, 4_000), "c": (10, 8_000), "d": (300, 300)}
    got = dict.fromkeys(FLOWS, 0)
    for flow in FLOWS:
        # One sends ten times as many, and that gets it nothing.
        for _ in range(10 if flow == "a" else 1):
            queue.push(waiting(next(numbers), flow, random.randint(*sizes[flow])))
    for turn in range(4_000):
        one = serve(queue)
        if turn == 200:
            before = dict(got)
        got[one.asked.flow] += one.asked.prompt_tokens + one.asked.output_tokens
        queue.push(waiting(next(numbers), one.asked.flow, random.randint(*sizes[one.asked.flow])))
    gained = [got[flow] - before[flow] for flow in FLOWS]
    assert max(gained) - min(gained) <= 2 * 8_000


def test_answers_longer_than_expected_are_waited_for_by_their_own_flow() -> None:
    queue, numbers = FairQueue(10_000), count()
    got = {"a": 0, "b": 0}
    for flow in got:
        for _ in range(4):
            queue.push(waiting(next(numbers), flow, 256))
    for _ in range(2_000):
        one = serve(queue)
        real = 1_024 if one.asked.flow == "a" else 64  # neither says how long its answers will be
        got[one.asked.flow] += real
        queue.correct(one.asked, real - 256)
        queue.push(waiting(next(numbers), one.asked.flow, 256))
    assert abs(got["a"] - got["b"]) <= 2 * 1_024
    queue.correct(asked("a", 1), 1 << 40)
    served = [serve(queue).asked.flow for _ in range(len(queue))]
    assert served == ["b"] * 4 + ["a"] * 4
    assert DEBT_TOKENS_MAX < CREDIT_TOKENS, "a debt has an end"


def test_accounts_of_flows_that_left_are_bounded() -> None:
    queue = FairQueue(10)
    for number in range(FLOWS_MAX + 50):
        queue.push(waiting(number, f"flow {number}", 2))
        serve(queue)
    assert len(queue._turns[MODEL].idle) <= FLOWS_MAX
    for number in range(FLOWS_MAX + 50):
        queue.push(waiting(number, "again", CREDIT_TOKENS))
        serve(queue)
        queue.push(waiting(number, "and again", 2))
        serve(queue)
    assert len(queue._turns[MODEL].idle) < FLOWS_MAX, "who is far behind is as good as new"


def test_a_model_whose_replicas_are_full_holds_up_no_other() -> None:
    large = ModelId("large")
    queue = Dispatcher(PoolId("pool"), 10)
    queue.joined(Replica(ReplicaId("r-small"), "1", MODEL, 1, 0, beats=False))
    queue.joined(Replica(ReplicaId("r-large"), "1", large, 1, 0, beats=False))
    for work in (1, 2, 3):
        queue.submit(work, asked("a", 100), 1_000, 0)
    assert queue.submit(4, asked("a", 100, large), 1_000, 0) == [Assign(4, ReplicaId("r-large"))]


# Places


@settings(max_examples=300, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 40), st.lists(st.sampled_from(FLOWS), max_size=120))
def test_places_are_bounded_and_only_who_holds_more_than_its_share_is_turned_away(
    places: int, comers: list[str]
) -> None:
    queue = FairQueue(places)
    held = dict.fromkeys(FLOWS, 0)
    for work, flow in enumerate(comers):
        new = waiting(work, flow, at_us=work)
        queue.push(new)
        held[flow] += 1
        share = equal_share(places, sum(1 for each in held.values() if each))
        over = queue.outgrown(new)
        if over is not None:
            assert places == 0 or held[over.asked.flow] > share or max(held.values()) <= share
            assert over.asked.flow == flow or held[over.asked.flow] > held[flow]
            queue.drop(over.work)
            held[over.asked.flow] -= 1
        assert len(queue) == sum(held.values()) <= places


def test_one_flow_alone_leaves_places_for_those_that_come() -> None:
    held = 0
    while may_hold(held, held, 256, 1):
        held += 1
    assert 220 <= held < 256
    assert may_hold(0, held, 256, 2)


def test_when_all_places_are_taken_whoever_holds_most_makes_room_and_is_told_when_to_come_back() -> None:
    queue = Dispatcher(PoolId("pool"), 4)
    queue.joined(Replica(ReplicaId("r"), "1", MODEL, 1, 0, beats=False))
    for work in range(5):
        assert not [one for one in queue.submit(work, asked("a", 100), 60_000, work) if isinstance(one, Refuse)]
    (refused,) = queue.submit(9, asked("a", 100), 60_000, 1_000)
    assert isinstance(refused, Refuse)
    assert (refused.work, refused.code, refused.retry_after_ms) == (9, "engine_busy", RETRY_MIN_MS)
    (refused,) = queue.submit(10, asked("b", 100), 60_000, 7_000_001)
    assert isinstance(refused, Refuse)
    assert (refused.work, refused.retry_after_ms) == (4, 7_000), "as long as the first of its flow has waited"
    assert queue.ended(0, 8_000_000) == [Assign(10, ReplicaId("r"))]


# A tenant at ten times its share

SLOTS = 8
TOKEN_US = 2_000
MEAN_TOKENS = 500
LIGHT = FLOWS[1:]
SHARE = 0.2
"""Of the pool's capacity, what each flow asks for."""


def sojourns_us(times: int, seed: int, seconds: int = 400) -> list[int]:
    """Run a pool in virtual time, with flow `a` at so many times its share; return how long the others' work took."""
    random, queue = Random(seed), Dispatcher(PoolId("pool"), 256)
    queue.joined(Replica(ReplicaId("r"), "1", MODEL, SLOTS, 0, beats=False))
    per_s = SHARE * SLOTS * 1_000_000 / (MEAN_TOKENS * TOKEN_US)
    events: list[tuple[int, int, str, int]] = []
    numbers, began, size, flow_of = count(), dict[int, int](), dict[int, int](), dict[int, str]()
    for flow in FLOWS:
        # Each flow has a stream of its own, so that the others send the same whatever `a` does.
        own, at_s = Random(f"{seed} {flow}"), 0.0
        while (at_s := at_s + own.expovariate(per_s * (times if flow == "a" else 1))) < seconds:
            heappush(events, (int(at_s * 1e6), next(numbers), flow, max(20, int(own.gammavariate(4, MEAN_TOKENS / 4)))))
    took: list[int] = []

    def carry_out(told: list[Instruction], now_us: int) -> None:
        for one in told:
            if isinstance(one, Assign):
                heappush(events, (now_us + size[one.work] * TOKEN_US, next(numbers), "", one.work))
            elif isinstance(one, Refuse):
                assert flow_of[one.work] == "a", "who keeps to its share is not turned away"

    while events:
        now_us, number, flow, value = heappop(events)
        if flow:
            began[number], size[number], flow_of[number] = now_us, value, flow
            prompt = max(1, int(value * random.uniform(0.3, 1.2)))  # only estimated
            carry_out(queue.submit(number, Asked(MODEL, prompt, 64, flow=flow), 1 << 40, now_us), now_us)
        else:
            if flow_of[value] != "a":
                took.append(now_us - began[value])
            carry_out(queue.ended(value, now_us, End.COMPLETE, PoolCounts(size[value] - 1, 0, 1)), now_us)
    return sorted(took)


@pytest.mark.parametrize("seed", range(4))
def test_a_tenant_at_ten_times_its_share_moves_another_by_less_than_a_fifth(seed: int) -> None:
    fair, pressed = sojourns_us(1, seed), sojourns_us(10, seed)
    assert len(fair) == len(pressed) > 1_000
    for part in (50, 99):
        at = len(fair) * part // 100
        assert pressed[at] <= 1.2 * fair[at]
