"""What is said of records that a spool does not take: each reason seldom, none lost from the count."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import pytest

from orchestrator.spool.left import close_what_was_left
from orchestrator.spool.records import DECISION, FullReason, Rank, RecordId, RecordKind, SpoolBroken, SpoolFull
from orchestrator.spool.room import SEGMENT_BYTES_MIN
from orchestrator.spool.store import Spool
from orchestrator.spool.untaken import QUIET_US, Untaken, UntakenLine

SPARE, FULL = SpoolFull(DECISION, FullReason.SPARE_ROOM), SpoolFull(DECISION, FullReason.CAPACITY)


def decided(number: int) -> bytes:
    """A decision of an edge, as far as it is read again."""
    ids = {"id": f"dec_{number}", "request": f"req_{number}", "attempt": f"att_{number}", "pool": "cn-guizhou"}
    more = {"tenant": "rhein", "model": "demo", "outcome": "sent", "decided_ms": 1, "continues": None}
    return json.dumps({**ids, **more, "first_token": 0, "placement": {}}).encode()


def test_a_reason_is_told_once_a_second_with_how_many_there_were() -> None:
    untaken = Untaken()
    assert untaken.line(FULL, 5) == UntakenLine("SpoolFull", "capacity", normal=False, count=1)
    assert [untaken.line(FULL, 5 + QUIET_US - 1) for _ in range(1_000)] == [None] * 1_000
    assert untaken.line(FULL, 5 + QUIET_US) == UntakenLine("SpoolFull", "capacity", normal=False, count=1_001)
    assert untaken.line(FULL, 5 + QUIET_US) is None


def test_one_reason_hides_no_other() -> None:
    untaken = Untaken()
    assert untaken.line(SPARE, 5) == UntakenLine("SpoolFull", "spare_room", normal=True, count=1)
    assert untaken.line(FULL, 5) == UntakenLine("SpoolFull", "capacity", normal=False, count=1)
    assert untaken.line(SpoolBroken(), 5) == UntakenLine("SpoolBroken", None, normal=False, count=1)
    assert untaken.line(SPARE, 5) is None


def test_what_was_not_told_is_told_at_the_end() -> None:
    untaken = Untaken()
    assert untaken.rest() == []
    for error in (FULL, SPARE, FULL):
        untaken.add(error)
    assert untaken.rest() == [
        UntakenLine("SpoolFull", "capacity", normal=False, count=2),
        UntakenLine("SpoolFull", "spare_room", normal=True, count=1),
    ]
    assert untaken.rest() == []


def test_what_a_full_spool_does_not_take_at_the_start_is_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Spool(
        tmp_path,
        capacity_bytes=4 * SEGMENT_BYTES_MIN,
        segment_bytes=SEGMENT_BYTES_MIN,
        regulated_reserve_bytes=0,
        closing_reserve_bytes=0,
    ) as spool:
        for number in range(8):
            spool.append(DECISION, RecordId(f"dec_{number}"), decided(number), durable=False)
        for size_bytes in (60_000, 1):  # to the last byte
            with pytest.raises(SpoolFull):
                for number in range(100_000):
                    name = RecordId(f"r{size_bytes}-{number}")
                    spool.append(RecordKind("other"), name, bytes(size_bytes), durable=False, rank=Rank.CLOSES)
        close_what_was_left(spool, "edge", 1_000, 5)
    (line,) = [one for one in caplog.records if one.msg == "spool_failed"]
    told = cast(Any, line).tidegate_fields
    assert (line.levelname, told["reason"], told["count"]) == ("ERROR", "capacity", 8)
