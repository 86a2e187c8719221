"""What the benchmarks make of their samples."""

from __future__ import annotations

import pytest

from benchmarks.client import Timed
from benchmarks.figures import enough_for, median, percentile, table
from benchmarks.overhead import DIRECT, PathTimes, summary
from benchmarks.stand import TWO_HOP


def timed(first_ms: int) -> Timed:
    """An answer of eleven tokens, one each millisecond after the first."""
    return Timed(first_ms * 1_000_000, (first_ms + 10) * 1_000_000, (first_ms + 11) * 1_000_000, 11)


def test_a_percentile_is_a_value_that_was_seen() -> None:
    values = [float(number) for number in range(1, 101)]
    assert (percentile(values, 50), percentile(values, 99), percentile(values, 100)) == (50.0, 99.0, 100.0)
    assert percentile([3.0], 99) == 3.0
    assert median([4.0, 1.0, 2.0, 3.0]) == 2.5
    with pytest.raises(ValueError, match="nothing"):
        percentile([], 50)


def test_a_percentile_of_few_samples_is_marked() -> None:
    assert enough_for(99, 500)
    assert not enough_for(99, 499)


def test_what_is_added_is_taken_within_each_round() -> None:
    # The machine was slow in the last round: on both paths alike, so it adds nothing.
    direct = PathTimes(DIRECT, [[timed(10)], [timed(11)], [timed(90)]], 1_000_000_000, {"edge": 0})
    through = PathTimes(TWO_HOP, [[timed(15)], [timed(16)], [timed(95)]], 1_000_000_000, {"edge": 6_000})
    bare, added = summary([direct, through])
    assert bare["first_token_ms"]["added"] == 0
    assert added["first_token_ms"]["added"] == pytest.approx(5)
    assert added["first_token_ms"]["p50"] == pytest.approx(16)
    assert added["per_token_us"]["ratio"] == pytest.approx(1)
    assert added["tokens_per_s"] == pytest.approx(33)
    assert added["cpu_us_per_request"] == {"edge": 2.0}


def test_a_table_lines_up() -> None:
    lines = table("a title", ("name", "ms"), [("direct", "1.0"), ("two-hop", "12.5")]).splitlines()
    assert lines == ["a title", "name       ms", "-------  ----", "direct    1.0", "two-hop  12.5"]
