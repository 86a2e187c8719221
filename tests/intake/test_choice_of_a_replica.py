"""Which replica gets a work: the one where it costs the least time, by what is declared, told and learned."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.usage import PoolCounts
from orchestrator.placement.breaker import FAILURES_MAX, HOLD_MIN_US
from orchestrator.placement.fleet import ServedModel
from orchestrator.placement.sight import End, Sight
from orchestrator.policy.ids import FlowId, ModelId, PoolId, ReplicaId
from scheduler.intake.choice import BLOCK_TOKENS, TIME_ALONE, Asked, Chooser
from scheduler.intake.dispatch import Dispatcher
from scheduler.intake.instructions import Assign, Instruction
from scheduler.intake.replica import Replica, Told
from tests.values import replace

MODEL = ModelId("model")
FIRST, SECOND = ReplicaId("r-1"), ReplicaId("r-2")
MS = 1_000
PREFILL_US, DECODE_US = 100, 10_000
SERVED = ServedModel(MODEL, 32_768, frozenset(), PREFILL_US, DECODE_US)
PROMPT = tuple(range(1, 17))
"""Sixteen blocks of one prompt."""


def asked(prompt_tokens: int = 100, output_tokens: int = 10, blocks: tuple[int, ...] = ()) -> Asked:
    return Asked(MODEL, prompt_tokens, output_tokens, blocks, SERVED)


def long_prompt() -> Asked:
    return asked(prompt_tokens=len(PROMPT) * BLOCK_TOKENS + 1, blocks=PROMPT)


class Site:
    """A pool of two replicas and a clock."""

    def __init__(self, slots: int = 8, names: Sequence[ReplicaId] = (FIRST, SECOND), beats: bool = True) -> None:
        self.queue = Dispatcher(PoolId("pool"), 4, dead_ms=10**9)
        self.now_us = 0
        self.works = 0
        for name in names:
            self.queue.joined(Replica(name, "1", MODEL, slots, 0, beats=beats))

    def give(self, what: Asked | None = None) -> tuple[int, ReplicaId]:
        """Submit a work that finds a free slot; return it, and who got it."""
        self.works += 1
        for name in (FIRST, SECOND):
            self.beat(name)
        (told,) = self.queue.submit(self.works, what or asked(), 60_000, self.now_us)
        assert isinstance(told, Assign)
        return self.works, told.replica

    def beat(self, name: ReplicaId, told: Told | None = None) -> None:
        self.queue.beat(name, "1", True, self.now_us, told)

    def begin(self, work: int, after_us: int, prompt_tokens: int = 100) -> None:
        """The engine reads the prompt at once, and its first token comes `after_us` later."""
        self.queue.started(work, prompt_tokens, self.now_us)
        self.now_us += after_us
        self.queue.first_token(work, self.now_us)

    def answer(
        self, work: int, first_us: int, token_us: int, prompt_tokens: int = 100, cached: int = 0, output: int = 10
    ) -> None:
        """A whole answer, at this pace."""
        self.begin(work, first_us, prompt_tokens)
        self.now_us += token_us * (output - 1)
        self.queue.ended(work, self.now_us, End.COMPLETE, PoolCounts(prompt_tokens, cached, output))


def test_the_holder_of_a_prefix_is_preferred_when_that_saves_more_than_its_load_costs() -> None:
    site = Site()
    work, holder = site.give(long_prompt())
    assert holder == FIRST
    site.begin(work, 400 * MS, prompt_tokens=4_097)
    # Beside it, ten tokens take an eighth longer; without it, 4,096 tokens are read again.
    assert site.give(long_prompt())[1] == FIRST
    assert site.give(asked())[1] == SECOND, "another prompt goes where there is room"


def test_the_holder_of_a_prefix_is_passed_over_when_its_queue_costs_more() -> None:
    def second_choice(queued_tokens: int) -> ReplicaId:
        site = Site()
        work, _ = site.give(long_prompt())
        site.begin(work, 400 * MS, prompt_tokens=4_097)
        site.beat(FIRST, Told(queued_tokens))
        return site.give(long_prompt())[1]

    saved = len(PROMPT) * BLOCK_TOKENS
    assert second_choice(saved // 2) == FIRST
    assert second_choice(saved * 2) == SECOND


def test_a_prefix_that_is_still_being_read_saves_nothing_yet() -> None:
    site = Site()
    assert site.give(long_prompt())[1] == FIRST
    # To wait for it takes as long as to read it again.
    assert site.give(long_prompt())[1] == SECOND


def test_a_replica_that_starts_anew_holds_no_prefix() -> None:
    site = Site()
    work, _ = site.give(long_prompt())
    site.answer(work, 400 * MS, DECODE_US, prompt_tokens=4_097)
    busy, holder = site.give(asked())
    assert holder == FIRST
    assert site.give(long_prompt())[1] == FIRST, "busy, but it holds the prefix"
    site = Site()
    work, _ = site.give(long_prompt())
    site.answer(work, 400 * MS, DECODE_US, prompt_tokens=4_097)
    site.queue.joined(Replica(FIRST, "2", MODEL, 8, site.now_us))
    busy, holder = site.give(asked())
    other = SECOND if holder == FIRST else FIRST
    assert site.give(long_prompt())[1] == other
    assert busy


def test_an_engine_that_says_it_had_nothing_cached_is_believed_less_and_less() -> None:
    site = Site()
    chosen = []
    for _ in range(40):
        work, _ = site.give(long_prompt())
        site.answer(work, 400 * MS, DECODE_US, prompt_tokens=4_097)
        work, where = site.give(asked())
        chosen.append(site.give(long_prompt())[1] == where)
        for one in (work, work + 1):
            site.answer(one, 400 * MS, DECODE_US, prompt_tokens=100 if one == work else 4_097)
    assert chosen[0], "at first the holder is preferred, busy or not"
    assert not chosen[-1], "in the end a prefix that never saved anything counts for nothing"


@pytest.mark.parametrize("slow", [FIRST, SECOND])
def test_a_replica_that_is_slower_than_its_sibling_is_found_out_and_avoided(slow: ReplicaId) -> None:
    site = Site()
    where: list[ReplicaId] = []
    for _ in range(30):
        work, replica = site.give()
        where.append(replica)
        pace = 4 if replica == slow else 1
        site.answer(work, 10 * MS * pace, DECODE_US * pace)
    assert set(where[-20:]) == {SECOND if slow == FIRST else FIRST}


def test_a_slower_replica_still_gets_work_when_the_quicker_one_is_full_enough() -> None:
    site = Site()
    for _ in range(30):
        # Eight at once, so that both are tried.
        for work, replica in [site.give() for _ in range(8)]:
            pace = 2 if replica == FIRST else 1
            site.answer(work, 10 * MS * pace, DECODE_US * pace)
    shared = []
    for _ in range(16):
        work, replica = site.give()
        shared.append(replica)
        site.begin(work, 10 * MS)
    assert shared[0] == SECOND
    assert shared.count(FIRST) == shared.count(SECOND) == 8, "in the end every slot is used"
    assert shared[:8].count(SECOND) > shared[:8].count(FIRST)


def test_a_replica_that_told_nothing_yet_is_hoped_to_be_like_its_siblings() -> None:
    site = Site()
    for _ in range(10):
        work, replica = site.give()
        assert replica == FIRST, "one at a time, ties go by name"
        site.answer(work, MS, DECODE_US // 8)
    site.give()
    # By its declared speed alone the second would be left idle until the first is full.
    assert site.give()[1] == SECOND


def test_prompts_that_wait_in_a_replica_send_work_elsewhere() -> None:
    site = Site()
    site.give(asked(prompt_tokens=5_000))
    site.give()
    # One stream each: what tells them apart is the prompt that the first is still reading.
    assert site.give()[1] == SECOND
    site = Site()
    long, _ = site.give(asked(prompt_tokens=5_000))
    site.give()
    site.begin(long, 500 * MS, prompt_tokens=5_000)
    assert site.give()[1] == FIRST


def test_a_speed_declared_anew_is_what_the_next_choice_is_made_by() -> None:
    chooser, told = Chooser(Sight()), []
    for prefill_us in (PREFILL_US, 2 * PREFILL_US):
        served = replace(SERVED, prefill_us_per_token=prefill_us)
        choice = chooser.best(Asked(MODEL, 100, 10, (), served), [Replica(FIRST, "1", MODEL, 4, 0)], 0)
        assert choice is not None
        told.append(choice.declared.prefill_ns)
    assert told == [PREFILL_US * 1_000, 2 * PREFILL_US * 1_000]


def test_slots_that_others_take_of_an_engine_are_not_free() -> None:
    site = Site(slots=4, beats=False)
    site.beat(FIRST, Told(others_running=2, others_waiting=1))
    state = site.queue.state()
    assert (state.slots, state.running, state.free) == (8, 3, 5)
    chosen = [site.give()[1] for _ in range(5)]
    assert (chosen.count(FIRST), chosen.count(SECOND)) == (1, 4)
    assert site.queue.submit(99, asked(), 1_000, 0) == [], "the last slots are others'"
    assert site.queue.beat(FIRST, "1", True, 0, Told()) == [Assign(99, FIRST)], "until they leave"


def test_a_replica_whose_answers_fail_is_the_last_choice_but_still_one() -> None:
    site = Site(slots=1)
    for _ in range(FAILURES_MAX):
        work, replica = site.give()
        assert replica == FIRST, "it is free at once, and ties go by name"
        site.now_us += MS
        site.queue.ended(work, site.now_us, End.FAILED)
        site.now_us += MS
    _, where = site.give()
    assert where == SECOND
    work, where = site.give()
    assert where == FIRST, "work does not wait beside a free slot"
    site.queue.ended(work, site.now_us, End.CANCELLED)
    site.queue.ended(work - 1, site.now_us, End.CANCELLED)
    site.now_us += HOLD_MIN_US + 1
    assert site.give()[1] == FIRST, "after a while it may show that it is well"


def test_a_replica_is_the_last_choice_to_a_flow_whose_work_alone_fails_there_and_to_no_other() -> None:
    site = Site()
    bad, good = (replace(asked(), flow=FlowId(name)) for name in ("bad", "good"))
    for _ in range(FAILURES_MAX):
        work, replica = site.give(bad)
        assert replica == FIRST
        site.now_us += MS
        site.queue.ended(work, site.now_us, End.FAILED)
        site.now_us += MS
    assert site.give(bad)[1] == SECOND
    assert site.give(good)[1] == FIRST


def test_a_replica_that_dies_with_its_work_is_the_last_choice_when_it_is_back() -> None:
    site = Site()
    for _ in range(FAILURES_MAX):
        work, replica = site.give()
        assert replica == FIRST
        site.now_us += MS
        site.queue.left(FIRST, "1")
        site.queue.ended(work, site.now_us, End.FAILED)
        assert site.queue.holder(work) is None
        site.now_us += MS
        site.queue.joined(Replica(FIRST, "1", MODEL, 8, site.now_us))
    assert site.give()[1] == SECOND, "what became of its works was told when it was gone"


@given(
    value=st.integers(0, 10**6),
    loads=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20_000)), min_size=2, max_size=4),
)
def test_the_order_of_replicas_does_not_depend_on_what_time_is_worth(value: int, loads: list[tuple[int, int]]) -> None:
    def chosen(work: Asked) -> ReplicaId:
        names = [ReplicaId(f"r-{number}") for number in range(len(loads))]
        site = Site(slots=4, names=names)
        for name, (others, queued) in zip(names, loads, strict=True):
            site.beat(name, Told(queued, others_running=others))
        (told,) = site.queue.submit(1, work, 1_000, 0)
        assert isinstance(told, Assign)
        return told.replica

    plain = asked()
    assert plain.worth == TIME_ALONE
    # A value of nought leaves the time itself to decide.
    pico = value * 1_000
    worth = replace(TIME_ALONE, value_of_time_pico_per_ms=pico, others_value_pico_per_ms=pico)
    assert chosen(replace(plain, worth=worth)) == chosen(plain)


@given(
    script=st.lists(
        st.tuples(
            st.sampled_from(["submit", "first", "end", "fail", "beat"]),
            st.integers(0, 3),
            st.integers(0, 50_000),
        ),
        max_size=40,
    )
)
def test_the_same_events_give_the_same_choices(script: list[tuple[str, int, int]]) -> None:
    def play() -> list[Instruction]:
        site = Site(slots=3)
        told: list[Instruction] = []
        running: list[int] = []
        for what, which, amount in script:
            site.now_us += amount
            if what == "submit":
                site.works += 1
                work = asked(amount + 1, blocks=PROMPT[: which * 4])
                told += site.queue.submit(site.works, work, 60_000, site.now_us)
                running.append(site.works)
            elif what == "beat":
                told += site.queue.beat((FIRST, SECOND)[which % 2], "1", True, site.now_us, Told(amount))
            elif running:
                number = running[which % len(running)]
                if what == "first":
                    site.queue.first_token(number, site.now_us)
                else:
                    end = End.COMPLETE if what == "end" else End.FAILED
                    told += site.queue.ended(number, site.now_us, end, PoolCounts(100, 0, 10))
        return told

    assert play() == play()
