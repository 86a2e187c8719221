"""What a killed program left open is closed once, and nothing else is."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.left import left_open
from orchestrator.ledger.usage import Counts, Outcome, UsageRecord
from orchestrator.policy.ids import UsageId

WITHIN_MS = 600_000
NOW_MS = 1_790_000_000_000


def decision(number: int, outcome: str = "sent", at_ms: int = NOW_MS, answers: str | None = None) -> tuple[str, bytes]:
    record = {
        "v": 4,
        "kind": "decision",
        "id": f"dec_{number}",
        "request": f"req_{number}",
        "attempt": f"att_{number}",
        "tenant": "rhein",
        "model": "demo",
        "pool": "cn-guizhou",
        "outcome": outcome,
        "decided_ms": at_ms,
        "continues": None,
        "first_token": 0,
        "placement": {"candidates": []} if answers is None else {"answers": answers},
        "facts": {"more": [1, {"of": "it"}]},
    }
    return "decision", json.dumps(record).encode()


def usage(number: int) -> tuple[str, bytes]:
    return "usage", json.dumps({"v": 3, "kind": "usage", "attempt": f"att_{number}", "outcome": "complete"}).encode()


def closed(records: list[tuple[str, bytes]], own: str = "edge") -> list[UsageRecord]:
    numbers: Iterator[int] = count()
    make_id = lambda: UsageId(f"usg_{next(numbers)}")  # noqa: E731
    return left_open(reversed(records), own, WITHIN_MS, NOW_MS + 5, make_id)


@given(st.permutations(range(12)), st.sets(st.integers(0, 11)), st.sets(st.integers(0, 11)))
def test_exactly_what_went_on_and_has_no_end_is_closed(order: list[int], ended: set[int], refused: set[int]) -> None:
    records: list[tuple[str, bytes]] = []
    for number in order:
        records.append(decision(number, "no_permitted_pool" if number in refused else "sent"))
        if number in ended and number not in refused:
            records.append(usage(number))
        records.append(("other", b"no record of ours"))
    found = closed(records)
    assert [one.attempt for one in found] == [f"att_{n}" for n in order if n not in ended and n not in refused]
    assert len({one.id for one in found}) == len(found)
    # What was closed is closed: a second start finds nothing.
    again = records + [("usage", one.to_bytes()) for one in found]
    assert closed(again) == []


def test_an_end_may_come_long_after_other_decisions() -> None:
    records = [decision(1), decision(2), decision(3), usage(2), usage(1)]
    assert [one.attempt for one in closed(records)] == ["att_3"]


def test_what_is_closed_says_that_nothing_is_known() -> None:
    (found,) = closed([decision(7)])
    assert (found.outcome, found.counted, found.counts, found.price) == (Outcome.LOST, None, Counts(), None)
    told = json.loads(found.to_bytes())
    assert (told["outcome"], told["counted"], told["counts"], told["tenant"]) == ("lost", None, {}, "rhein")
    assert (told["decision"], told["request"], told["pool"], told["ended_ms"]) == (
        "dec_7",
        "req_7",
        "cn-guizhou",
        NOW_MS + 5,
    )


def test_the_side_of_the_pool_names_the_decision_of_the_edge() -> None:
    (found,) = closed([decision(7, "permitted", answers="dec_of_the_edge"), decision(8, "sent")], "pool")
    assert (found.attempt, found.decision) == ("att_7", "dec_of_the_edge")


def test_nothing_older_than_the_longest_attempt_is_read() -> None:
    def records() -> Iterator[tuple[str, bytes]]:
        yield decision(3)
        yield decision(2, at_ms=NOW_MS - WITHIN_MS)
        yield decision(1, at_ms=NOW_MS - WITHIN_MS - 1)
        raise AssertionError("read further back than anything can be open")

    found = left_open(records(), "edge", WITHIN_MS, NOW_MS, lambda: UsageId("usg_1"))
    assert [one.attempt for one in found] == ["att_2", "att_3"]
