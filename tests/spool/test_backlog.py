"""The backlog of a spool against a dictionary that does the same in more memory, ids of one digest included."""

from __future__ import annotations

from collections.abc import Callable

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spool.backlog import Backlog
from orchestrator.spool.records import Position, RecordId

IDS = [RecordId(f"r{number}") for number in range(12)]
Step = tuple[str, int]


def add(backlog: Backlog, segment: int, record_ids: list[RecordId], offsets: list[int]) -> None:
    backlog.add(segment, backlog.tags(record_ids), offsets)


def two_digests(record_id: str) -> int:
    return int(record_id[1:]) % 2


def one_digest(_record_id: str) -> int:
    return -1


adding = st.tuples(st.just("add"), st.integers(0, 11))
forgetting = st.tuples(st.just("forget"), st.integers(0, 9))
steps = st.lists(st.one_of(adding, forgetting))


@given(steps, st.sampled_from([hash, two_digests, one_digest]), st.integers(1, 5))
def test_what_is_held_is_found_and_what_was_forgotten_is_not(
    taken: list[Step], digest: Callable[[str], int], per_segment: int
) -> None:
    backlog = Backlog(digest)
    model: dict[RecordId, Position] = {}
    written = 0
    for what, number in taken:
        if what == "add" and IDS[number] not in model:
            position = Position(1 + written // per_segment, 16 + 10 * (written % per_segment))
            written += 1
            add(backlog, position.segment, [IDS[number]], [position.offset])
            model[IDS[number]] = position
        elif what == "forget":
            later = written - number
            before = Position(0, 0)
            if later > 0:
                before = Position(1 + later // per_segment, 16 + 10 * (later % per_segment))
            backlog.forget(before)
            model = {record_id: at for record_id, at in model.items() if at >= before}
        assert len(backlog) == len(model)
        for record_id, position in model.items():
            assert position in backlog.find(record_id)
            assert backlog.may_hold(backlog.tags([record_id]))
        others = sorted(set(IDS) - model.keys())
        assert backlog.may_hold(backlog.tags(others)) == any(backlog.find(record_id) for record_id in others)
        if digest is hash:
            for record_id in others:
                assert backlog.find(record_id) == ()


def test_an_id_that_was_written_twice_is_found_twice() -> None:
    backlog = Backlog(one_digest)
    add(backlog, 1, [RecordId("r0")], [0])
    add(backlog, 1, [RecordId("r1"), RecordId("r1")], [1, 2])
    add(backlog, 2, [RecordId("r2")], [0])
    assert len(backlog) == 4
    assert backlog.find(RecordId("r1")) == (Position(1, 0), Position(1, 1), Position(1, 2), Position(2, 0))
    backlog.forget(Position(1, 2))
    assert len(backlog) == 2
    assert backlog.find(RecordId("r1")) == (Position(1, 2), Position(2, 0))


def test_bytes_of_two_neighbours_are_no_record() -> None:
    numbers = {"a": 0x0000_1000, "b": 0x1000_0000, "c": 0x0010_0000, "d": 0x0000_0010}
    backlog = Backlog(lambda record_id: numbers.get(record_id, 0))
    add(backlog, 1, [RecordId("a"), RecordId("b")], [0, 1])
    assert [backlog.find(RecordId(name)) for name in "abcd"] == [(Position(1, 0),), (Position(1, 1),), (), ()]
