"""Who probably holds which prefix: bounded, expiring, believed as far as engines confirm it, of one tenant alone."""

from __future__ import annotations

from hashlib import blake2b

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.placement.prefix import BLOCK_CHARS, BLOCKS_MAX, HOLDERS_MAX, PrefixIndex, any_block, salted

HOLDERS = st.sampled_from("abcdefghijkl")
CHAINS = st.lists(st.integers(0, 30), max_size=8, unique=True)
SENDS = st.lists(st.tuples(HOLDERS, CHAINS, st.integers(0, 50)), max_size=40)
TEXTS = st.lists(st.text(st.characters(codec="utf-8"), max_size=3 * BLOCK_CHARS), max_size=4)


def words(seed: str, blocks: float) -> str:
    """A text of so many blocks."""
    chars = int(blocks * BLOCK_CHARS)
    return (seed * chars)[:chars]


@given(SENDS, st.integers(1, 12))
def test_there_are_never_more_entries_than_the_bound(sends: list[tuple[str, list[int], int]], most: int) -> None:
    index = PrefixIndex[str](entries_max=most)
    for holder, blocks, at in sends:
        index.insert(holder, blocks, at)
        assert len(index) <= most


@given(SENDS, CHAINS, st.integers(0, 60), st.integers(1, 40))
def test_a_holder_is_expected_to_hold_what_it_was_sent_lately_from_the_first_block_on(
    sends: list[tuple[str, list[int], int]], asked: list[int], now: int, keep: int
) -> None:
    index = PrefixIndex[str](keep_us=keep)
    last: dict[tuple[str, int], int] = {}
    for holder, blocks, at in sorted(sends, key=lambda sent: sent[2]):
        index.insert(holder, blocks, at)
        last |= {(holder, block): at for block in blocks}
    wanted: dict[str, int] = {}
    for holder in {holder for holder, _ in last}:
        for number, block in enumerate(asked):
            if last.get((holder, block), -1_000) < now - keep:
                break
            wanted[holder] = number + 1
    found = index.expect(asked, now)
    crowded = {block for block in asked if sum(1 for _, held in last if held == block) > HOLDERS_MAX}
    if crowded:  # of so many holders only the latest are remembered
        assert all(found[holder] <= wanted.get(holder, 0) for holder in found)
    else:
        assert found == wanted


def test_a_clock_that_has_just_begun_makes_no_holders() -> None:
    index = PrefixIndex[str]()
    index.insert("a", [1, 2], 0)
    index.insert("b", [1], 1)
    assert index.expect([1, 2], 2) == {"a": 2, "b": 1}


def test_what_nobody_asked_for_lately_is_expected_no_more() -> None:
    index = PrefixIndex[str](keep_us=100)
    index.insert("a", [1, 2], 0)
    assert index.expect([1, 2], 100) == {"a": 2}
    assert index.expect([1, 2], 101) == {}
    index.insert("a", [1], 101)
    assert index.expect([1, 2], 102) == {"a": 1}


def test_what_was_used_longest_ago_goes_first() -> None:
    index = PrefixIndex[str](entries_max=4)
    index.insert("a", [1, 2], 0)
    index.insert("a", [3, 4], 1)
    index.insert("a", [1, 2], 2)
    index.insert("a", [5], 3)
    assert index.expect([1, 2], 4) == {"a": 2}
    assert index.expect([5], 4) == {"a": 1}
    assert index.expect([3, 4], 4) == {"a": 1}, "the end of the oldest prompt went, its head is still of use"


@given(st.lists(st.tuples(HOLDERS, CHAINS, st.booleans()), max_size=40), st.integers(1, 12))
def test_blocks_that_share_their_holders_are_held_as_if_each_had_its_own(
    steps: list[tuple[str, list[int], bool]], most: int
) -> None:
    index = PrefixIndex[str](entries_max=most)
    held: dict[int, list[str]] = {}
    for at, (holder, blocks, anew) in enumerate(steps):
        if anew:
            index.forget(holder)
            held = {block: left for block, of in held.items() if (left := [one for one in of if one != holder])}
        index.insert(holder, blocks, at)
        for block in reversed(blocks):
            others = [one for one in held.pop(block, ()) if one != holder]
            held[block] = [*others[1 - HOLDERS_MAX :], holder]
        held = dict(list(held.items())[-most:])
        assert len(index) == len(held)
        for block in range(31):
            assert index.expect([block], at) == dict.fromkeys(held.get(block, ()), 1)


def test_of_a_prompt_that_is_too_long_the_head_is_kept() -> None:
    index = PrefixIndex[str](entries_max=3)
    index.insert("a", [1, 2, 3, 4, 5], 0)
    assert index.expect([1, 2, 3, 4, 5], 1) == {"a": 3}


def test_of_many_holders_the_latest_are_remembered() -> None:
    index = PrefixIndex[int]()
    for holder in range(HOLDERS_MAX + 3):
        index.insert(holder, [1], holder)
    index.insert(3, [1], 100)
    index.insert(99, [1], 101)
    assert set(index.expect([1], 102)) == {3, 99, *range(5, HOLDERS_MAX + 3)}


def test_a_holder_that_is_forgotten_holds_nothing_and_is_believed_anew() -> None:
    index = PrefixIndex[str]()
    index.insert("a", [1, 2], 0)
    index.insert("b", [1], 0)
    for _ in range(50):
        index.corrected("a", 1_000, 0)
    index.forget("a")
    assert index.expect([1, 2], 1) == {"b": 1}
    assert len(index) == 1
    assert index.tokens("a", 2, 256, 10_000) == 512


def believed(index: PrefixIndex[str], holder: str = "a") -> int:
    return index.tokens(holder, 100, 10, 10_000)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 1.0])
def test_belief_moves_towards_what_engines_report_and_recovers(share: float) -> None:
    index = PrefixIndex[str]()
    assert believed(index) == 1_000
    seen = [1_000]
    for _ in range(60):
        index.corrected("a", 500, int(500 * share))
        seen.append(believed(index))
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] == pytest.approx(1_000 * share, abs=5)
    for _ in range(60):
        index.corrected("a", 500, 500)
    assert believed(index) == pytest.approx(1_000, abs=5)


def test_belief_is_of_one_holder_and_says_nothing_where_nothing_was_expected() -> None:
    index = PrefixIndex[str]()
    index.corrected("a", 500, 0)
    index.corrected("b", 0, 0)
    index.corrected("c", 500, 10**9)
    assert [believed(index, holder) for holder in "abc"] == [900, 1_000, 1_000]


@given(st.integers(0, 600), st.integers(1, 2_000), st.integers(0, 100_000))
def test_the_last_token_of_a_prompt_is_never_expected_to_be_held(blocks: int, size: int, prompt: int) -> None:
    held = PrefixIndex[str]().tokens("a", blocks, size, prompt)
    assert 0 <= held <= max(0, prompt - 1)
    assert held <= blocks * size


@given(TEXTS, st.binary(min_size=1, max_size=32), st.binary(min_size=1, max_size=32))
def test_two_tenants_with_one_prompt_share_nothing(texts: list[str], ours: bytes, theirs: bytes) -> None:
    mine, other = salted(ours, texts), salted(theirs, texts)
    assert mine == salted(ours, texts)
    if ours.rstrip(b"\0") != theirs.rstrip(b"\0"):  # BLAKE2 fills short keys up with noughts
        assert not set(mine) & set(other)


def test_equal_heads_share_leading_hashes_until_the_first_block_that_differs() -> None:
    head = words("system ", 3)
    one, other = salted(b"salt", [head + words("x", 2)]), salted(b"salt", [head + words("y", 2)])
    assert (len(one), len(other)) == (5, 5)
    assert one[:3] == other[:3]
    assert not set(one[3:]) & set(other)


def test_a_block_is_named_by_all_that_stands_before_it() -> None:
    same = words("same", 1)
    one, other = salted(b"salt", [words("x", 1) + same]), salted(b"salt", [words("y", 1) + same])
    assert one[1] != other[1]
    assert len(set(salted(b"salt", [same * 5]))) == 5, "equal blocks in a row are five prefixes"


def test_where_messages_meet_matters() -> None:
    text = words("t", 2)
    assert salted(b"salt", [text, text]) != salted(b"salt", [text + text])


def test_only_whole_blocks_are_named_and_not_without_end() -> None:
    assert salted(b"salt", []) == salted(b"salt", [words("t", 0.99)]) == ()
    assert len(salted(b"salt", [words("t", 1)])) == 1
    assert len(salted(b"salt", [words("t", 1.99)])) == 1
    assert len(salted(b"salt", [words("t", BLOCKS_MAX + 10)])) == BLOCKS_MAX


@given(TEXTS, st.binary(max_size=32))
def test_a_hash_is_that_of_the_hash_before_and_the_block(texts: list[str], salt: bytes) -> None:
    joined, before = "\x00".join(texts), b""
    found: list[int] = []
    for number in range(len(joined) // BLOCK_CHARS):
        block = joined[number * BLOCK_CHARS : (number + 1) * BLOCK_CHARS].encode()
        before = blake2b(before + block, key=salt, digest_size=8).digest()
        found.append(int.from_bytes(before, "big") >> 1)
    assert salted(salt, texts) == tuple(found)


@given(st.lists(st.integers(0, BLOCK_CHARS + 2), max_size=4))
def test_there_is_a_block_exactly_where_one_is_hashed(sizes: list[int]) -> None:
    texts = ["t" * size for size in sizes]
    assert any_block(texts) is bool(salted(b"salt", texts))


@pytest.mark.parametrize("short", [-2, -1, 0, 1])
def test_what_joins_messages_counts_for_a_block(short: int) -> None:
    texts = ["t" * (BLOCK_CHARS // 2), "t" * (BLOCK_CHARS // 2 + short)]
    assert any_block(texts) is bool(salted(b"salt", texts)) is (short >= -1)


def test_any_text_that_python_holds_has_a_name() -> None:
    assert len(salted(b"salt", ["\ud800" * BLOCK_CHARS, "\x00" * BLOCK_CHARS, "\N{GRINNING FACE}" * BLOCK_CHARS])) == 3
