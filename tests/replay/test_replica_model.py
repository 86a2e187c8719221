"""The replica, which jumps from change to change, against one that takes every step; and against queueing theory."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestrator.placement.replay.replica import NEVER_US, Attempt, Replica
from orchestrator.placement.replay.world import Gpu, SimRequest
from tests.replay.small_world import BLOCK, GPU, MS, S, blocks, request
from tests.values import replace

Story = dict[int, tuple[int, int, int, int]]
"""By request: (prompt begun, first token, last token, cached tokens)."""


def attempt(of: SimRequest) -> Attempt:
    return Attempt(of, 0, 0, 0, of.at_us)


def jump(gpu: Gpu, requests: list[SimRequest], early: bool = True) -> Story:
    """Run the replica; `early` says whether it is called before or after what arrives in the same microsecond."""
    replica = Replica(0, 0, gpu, BLOCK, len(requests))
    story: Story = {}

    def call(until_us: int) -> None:
        while replica.next_us < until_us or (early and replica.next_us == until_us):
            now_us = replica.next_us
            _, ends = replica.advance(now_us)
            assert all(one.ended_us == now_us for one in ends)
            for one in ends:
                assert one.output_tokens == one.request.output_tokens
                story[one.request.number] = (one.begun_us, one.first_us, one.ended_us, one.cached_tokens)
            assert replica.memory.used_tokens + replica.memory.idle_tokens <= gpu.kv_tokens
            assert replica.running <= gpu.slots

    for one in requests:
        call(one.at_us)
        assert replica.submit(attempt(one), one.at_us)
    call(NEVER_US - 1)
    assert replica.running == replica.waiting == replica.memory.used_tokens == 0
    assert replica.next_us == NEVER_US
    return story


@dataclass(eq=False)
class Stream:
    request: SimRequest
    left_tokens: int
    """Of its prompt."""
    begun_ns: int
    cached: int
    first_ns: int = -1
    tokens: int = 0


@dataclass
class SlowMemory:
    """Prefixes as a plain list by last use, everything counted anew each time."""

    gpu: Gpu
    idle: list[int] = field(default_factory=list)
    held: dict[int, list[int]] = field(default_factory=dict)
    """Blocks that each running stream holds in common."""
    own: dict[int, int] = field(default_factory=dict)

    def whole(self, of: SimRequest) -> list[int]:
        return list(of.blocks[: of.prompt_tokens // BLOCK]) if self.gpu.prefix_cache else []

    def in_use(self) -> set[int]:
        return {block for blocks in self.held.values() for block in blocks}

    def used(self) -> int:
        return len(self.in_use()) * BLOCK + sum(self.own.values())

    def admit(self, of: SimRequest) -> int | None:
        """The cached tokens, or None when it does not fit."""
        here = self.in_use() | set(self.idle)
        found: list[int] = []
        for block in self.whole(of):
            if block not in here:
                break
            found.append(block)
        self.held[of.number] = found
        self.own[of.number] = of.prompt_tokens + of.output_tokens - len(found) * BLOCK
        if self.used() > self.gpu.kv_tokens:
            del self.held[of.number], self.own[of.number]
            return None
        self.idle = [block for block in self.idle if block not in found]
        while self.used() + len(self.idle) * BLOCK > self.gpu.kv_tokens:
            self.idle.pop(0)
        return min(len(found) * BLOCK, of.prompt_tokens - 1)

    def keep(self, of: SimRequest) -> None:
        self.held[of.number] = self.whole(of)
        self.idle = [block for block in self.idle if block not in self.held[of.number]]
        self.own[of.number] = of.prompt_tokens + of.output_tokens - len(self.held[of.number]) * BLOCK

    def release(self, of: SimRequest) -> None:
        blocks = self.held.pop(of.number)
        del self.own[of.number]
        self.idle += [block for block in reversed(blocks) if block not in self.in_use()]


def step_by_step(gpu: Gpu, requests: list[SimRequest]) -> Story:
    """The same replica, one step and one token at a time."""
    memory, story, line, decoding = SlowMemory(gpu), Story(), list[SimRequest](), list[Stream]()
    taking: Stream | None = None
    coming = list(requests)
    now_ns = 0
    while coming or line or decoding or taking:
        if not line and not decoding and taking is None and coming[0].at_us * 1000 >= now_ns + 1000:
            now_ns = coming[0].at_us * 1000
        while coming and coming[0].at_us * 1000 < now_ns + 1000:
            line.append(coming.pop(0))
        if taking is None and line and len(decoding) < gpu.slots:
            cached = memory.admit(line[0])
            if cached is not None:
                first = line.pop(0)
                taking = Stream(first, first.prompt_tokens - cached, now_ns, cached)
        chunk = 0 if taking is None else min(gpu.chunk_tokens, taking.left_tokens)
        now_ns += gpu.step_ns + gpu.stream_ns * len(decoding) + gpu.prefill_ns * chunk
        over = []
        for stream in decoding:
            stream.tokens += 1
            if stream.tokens == stream.request.output_tokens:
                over.append(stream)
        if taking is not None:
            taking.left_tokens -= chunk
            if not taking.left_tokens:
                taking.first_ns, taking.tokens = now_ns, 1
                decoding.append(taking)
        # Streams that end in this step give up their blocks before the new prompt's are kept.
        for stream in over:
            memory.release(stream.request)
        if taking is not None and not taking.left_tokens:
            memory.keep(taking.request)
            if taking.request.output_tokens == 1:
                memory.release(taking.request)
                over.append(taking)
            taking = None
        for stream in over:
            times = [-(-time_ns // 1000) for time_ns in (stream.begun_ns, stream.first_ns, now_ns)]
            story[stream.request.number] = (times[0], times[1], times[2], stream.cached)
            decoding.remove(stream)
    return story


gpus = st.builds(
    Gpu,
    step_ns=st.integers(5_000, 50_000),
    stream_ns=st.integers(0, 9_000),
    prefill_ns=st.integers(0, 3_000),
    chunk_tokens=st.sampled_from([1, 7, 16, 64]),
    slots=st.integers(1, 5),
    kv_tokens=st.integers(130, 400),
    prefix_cache=st.booleans(),
)
asked = st.tuples(st.integers(0, 900), st.integers(0, 2), st.integers(1, 90), st.integers(1, 40))


@settings(max_examples=150)
@given(gpus, st.lists(asked, max_size=14), st.booleans())
def test_jumping_tells_the_same_story_as_every_step(
    gpu: Gpu, loads: list[tuple[int, int, int, int]], early: bool
) -> None:
    requests, at_us = [], 0
    for number, (gap_us, family, prompt, output) in enumerate(loads):
        at_us += gap_us
        whole = blocks(family, -(-prompt // BLOCK))
        requests.append(request(number, at_us, prompt_tokens=prompt, output_tokens=output, blocks=whole))
    assert jump(gpu, requests, early) == step_by_step(gpu, requests)


def test_a_stream_alone_takes_its_chunks_and_then_a_step_for_each_token() -> None:
    story = jump(GPU, [request(1, 5, prompt_tokens=250, output_tokens=11)])
    first_us = 5 + 3 * 10 * MS + 250 * 100
    assert story == {1: (5, first_us, first_us + 10 * 11 * MS, 0)}


def test_every_stream_in_the_batch_slows_the_others() -> None:
    alone = jump(GPU, [request(1)])
    together = jump(GPU, [request(number) for number in range(1, 4)])
    assert together[1][1] == alone[1][1]
    assert together[1][2] > alone[1][2]


def test_prompts_are_begun_in_the_order_in_which_they_came() -> None:
    chance = Random(5)
    requests = [request(number, number, prompt_tokens=chance.randint(1, 300)) for number in range(30)]
    story = jump(replace(GPU, slots=2), requests)
    assert sorted(story, key=lambda number: story[number][0]) == list(range(30))


def test_a_large_request_at_the_head_is_not_overtaken_by_a_small_one_that_would_fit() -> None:
    gpu = replace(GPU, kv_tokens=1_000)
    large = request(2, 1, prompt_tokens=900, output_tokens=1)
    story = jump(gpu, [request(1, 0, prompt_tokens=100, output_tokens=50), large, request(3, 2)])
    assert story[1][2] == story[2][0] < story[3][0]


def test_a_full_replica_lets_the_next_one_wait_and_then_refuses() -> None:
    replica = Replica(0, 0, replace(GPU, slots=2), BLOCK, 1)
    assert [replica.submit(attempt(request(number)), 0) for number in range(4)] == [True, True, True, False]
    replica.advance(replica.next_us)
    assert (replica.running, replica.waiting) == (2, 1)


def test_what_can_never_fit_in_memory_is_refused_at_once() -> None:
    replica = Replica(0, 0, replace(GPU, kv_tokens=100), BLOCK, 10)
    assert not replica.submit(attempt(request(1, prompt_tokens=60, output_tokens=41)), 0)
    assert replica.submit(attempt(request(2, prompt_tokens=60, output_tokens=40)), 0)


def test_queued_tokens_fall_as_chunks_are_taken_in_and_leave_out_what_is_cached() -> None:
    replica = Replica(0, 0, GPU, BLOCK, 10)
    replica.submit(attempt(request(1, prompt_tokens=300, blocks=blocks(1, 30))), 0)
    assert replica.queued_tokens(0) == 300
    assert replica.queued_tokens(20 * MS) == 200
    while replica.next_us < NEVER_US:
        replica.advance(replica.next_us)
    replica.submit(attempt(request(2, prompt_tokens=340, blocks=blocks(1, 34))), S)
    assert replica.queued_tokens(S) == 40


def test_an_outage_cuts_what_runs_where_it_stands_and_gives_back_what_waits() -> None:
    replica = Replica(0, 0, replace(GPU, slots=1), BLOCK, 10)
    replica.submit(attempt(request(1, prompt_tokens=100, output_tokens=50, blocks=blocks(1, 10))), 0)
    replica.submit(attempt(request(2)), 0)
    replica.advance(replica.next_us)
    ran, waited = replica.break_all(20 * MS + 4 * 11 * MS + 1)
    assert (ran.broken, ran.refused, ran.output_tokens) == (True, False, 5)
    assert (waited.broken, waited.refused, waited.output_tokens) == (False, True, 0)
    assert (replica.present, replica.next_us, replica.queued_tokens(S)) == (0, NEVER_US, 0)
    again = attempt(request(3, prompt_tokens=100, output_tokens=1, blocks=blocks(1, 10)))
    replica.submit(again, S)
    replica.advance(replica.next_us)
    assert (again.cached_tokens, again.ended_us) == (0, S + 20 * MS)


def test_one_slot_waits_as_long_as_theory_says() -> None:
    """M/D/1: the mean wait is load * service / (2 * (1 - load)) (Pollaczek and Khinchine)."""
    gpu = replace(GPU, slots=1)
    service_us, load = 10 * MS + 50 * 100 + 10 * 11 * MS, 0.7
    chance, at_us, requests = Random(11), 0.0, []
    for number in range(40_000):
        at_us += chance.expovariate(load / service_us)
        requests.append(request(number, int(at_us)))
    story = jump(gpu, requests)
    waits = [story[one.number][0] - one.at_us for one in requests]
    assert sum(waits) / len(waits) == pytest.approx(load * service_us / (2 * (1 - load)), rel=0.04)
