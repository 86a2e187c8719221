"""Keys and values of a replica: which prefixes are found, which go first, and that the room is never exceeded."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.replay.memory import Holding, Memory
from orchestrator.placement.replay.world import SimRequest
from tests.replay.small_world import BLOCK, GPU, blocks, request
from tests.values import replace


def memory(room_tokens: int, prefix_cache: bool = True) -> Memory:
    return Memory(replace(GPU, kv_tokens=room_tokens, prefix_cache=prefix_cache), BLOCK)


def prompt(family: int, tokens: int, output: int = 1) -> SimRequest:
    whole = blocks(family, -(-tokens // BLOCK))
    return request(family, prompt_tokens=tokens, output_tokens=output, blocks=whole)


def serve(memory: Memory, asked: SimRequest) -> int:
    """Run one request from admission to its end; return what was cached of it."""
    holding = memory.admit(asked)
    assert holding is not None
    memory.keep(holding)
    memory.release(holding)
    return holding.cached_tokens


def test_the_second_of_two_equal_prompts_finds_the_whole_blocks_of_the_first() -> None:
    held = memory(1_000)
    assert serve(held, prompt(1, 45)) == 0
    assert serve(held, prompt(1, 45)) == 40


def test_the_last_token_of_a_prompt_is_always_computed() -> None:
    held = memory(1_000)
    serve(held, prompt(1, 40))
    assert serve(held, prompt(1, 40)) == 39


def test_a_prompt_that_goes_on_finds_what_it_has_in_common() -> None:
    held = memory(1_000)
    serve(held, prompt(1, 40))
    assert serve(held, prompt(1, 95)) == 40
    assert serve(held, replace(prompt(1, 95), blocks=blocks(1, 6) + blocks(2, 4))) == 60


def test_blocks_behind_a_gap_are_not_found() -> None:
    held = memory(1_000)
    serve(held, prompt(1, 40))
    assert held.found(replace(prompt(1, 40), blocks=blocks(2, 1) + blocks(1, 4)[1:])) == 0


def test_a_prompt_is_there_for_others_only_when_it_has_been_taken_in() -> None:
    held = memory(1_000)
    holding = held.admit(prompt(1, 40))
    assert holding is not None
    assert held.found(prompt(1, 40)) == 0
    held.keep(holding)
    assert held.found(prompt(1, 40)) == 4


def test_streams_that_share_a_prefix_hold_it_once() -> None:
    held = memory(1_000)
    first = held.admit(prompt(1, 45, output=5))
    assert first is not None
    held.keep(first)
    second = held.admit(prompt(1, 45, output=5))
    assert second is not None
    assert held.used_tokens == 40 + 10 + 10
    held.release(first)
    assert held.used_tokens == 40 + 10


def test_equal_prompts_that_were_taken_in_at_once_are_held_once_afterwards() -> None:
    held = memory(1_000)
    both = [held.admit(prompt(1, 45, output=5)) for _ in range(2)]
    assert held.used_tokens == 100
    for holding in both:
        assert holding is not None
        held.keep(holding)
    assert held.used_tokens == 40 + 10 + 10
    for holding in both:
        assert holding is not None
        held.release(holding)
    assert (held.used_tokens, held.idle_tokens) == (0, 40)


def test_the_prefix_that_was_used_longest_ago_goes_first_and_its_end_before_its_beginning() -> None:
    held = memory(100)
    serve(held, prompt(1, 40))
    serve(held, prompt(2, 40))
    serve(held, prompt(1, 40))
    serve(held, prompt(3, 39))
    assert [held.found(prompt(family, 40)) for family in (1, 2, 3)] == [4, 2, 3]


def test_what_runs_is_never_thrown_out_and_the_next_must_wait() -> None:
    held = memory(100)
    running = held.admit(prompt(1, 50, output=10))
    assert running is not None
    held.keep(running)
    assert held.admit(prompt(2, 40, output=1)) is None
    assert held.admit(prompt(1, 80, output=10)) is not None, "what they share needs no room"


def test_without_a_prefix_cache_nothing_is_found() -> None:
    held = memory(1_000, prefix_cache=False)
    serve(held, prompt(1, 40))
    assert serve(held, prompt(1, 40)) == 0
    assert held.used_tokens == held.idle_tokens == 0


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 60), st.integers(1, 20), st.integers(0, 5)), max_size=60))
def test_the_room_is_never_exceeded_and_what_is_used_is_what_streams_hold(
    steps: list[tuple[int, int, int, int]],
) -> None:
    held = memory(120)
    running: list[Holding] = []
    for family, tokens, output, end in steps:
        if end < len(running):
            held.release(running.pop(end))
        holding = held.admit(prompt(family, tokens, output))
        if holding is not None:
            # In an engine, one prompt is taken in before the next is begun.
            held.keep(holding)
            running.append(holding)
        shared = {block for one in running for block in one.request.blocks[: one.blocks]}
        assert held.used_tokens == len(shared) * BLOCK + sum(one.own_tokens for one in running)
        assert held.used_tokens + held.idle_tokens <= held.room_tokens
    for holding in running:
        held.release(holding)
    assert held.used_tokens == 0
