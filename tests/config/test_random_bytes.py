"""Random bytes are drawn a block at a time, and none of them is given twice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.config.entropy import BLOCK_BYTES, Entropy


class Drawn:
    """Counts up in four bytes, so that no four of what it draws are alike."""

    def __init__(self) -> None:
        self.blocks: list[bytes] = []

    def draw(self, size_bytes: int) -> bytes:
        first = len(self.blocks) * size_bytes
        self.blocks.append(b"".join((first + at).to_bytes(4, "big") for at in range(0, size_bytes, 4)))
        return self.blocks[-1]


@given(st.lists(st.integers(0, BLOCK_BYTES // 8).map(lambda words: words * 4), max_size=60))
def test_no_byte_is_given_twice(sizes_bytes: list[int]) -> None:
    drawn = Drawn()
    entropy = Entropy(drawn.draw)
    taken = [entropy.take(size) for size in sizes_bytes]
    assert [len(one) for one in taken] == sizes_bytes
    words = [one[at : at + 4] for one in taken for at in range(0, len(one), 4)]
    assert len(set(words)) == len(words)
    assert sorted(words) == words
    assert set(words) <= {block[at : at + 4] for block in drawn.blocks for at in range(0, BLOCK_BYTES, 4)}


def test_what_is_taken_differs_from_one_to_the_next_and_between_two() -> None:
    one, other = Entropy(), Entropy()
    assert len({entropy.take(10) for _ in range(300) for entropy in (one, other)}) == 600


def test_more_than_a_block_is_refused() -> None:
    entropy = Entropy()
    assert len(entropy.take(BLOCK_BYTES)) == BLOCK_BYTES
    with pytest.raises(ValueError, match="at most"):
        entropy.take(BLOCK_BYTES + 1)
