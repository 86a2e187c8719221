"""The pure cursor loses and repeats nothing, whatever the server sends in whatever pieces."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from orchestrator.control.entries import Change, Entry, Listing, RegistryKey, Revision
from orchestrator.control.watch import (
    Changes,
    Ending,
    PendingBatches,
    Reply,
    Resync,
    Step,
    WatchCursor,
    backoff_s,
)
from tests.registry.simulated_history import FIRST, Simulation

K = RegistryKey("k")
KEYS = [RegistryKey(name) for name in "abcde"]

Act = Callable[[Simulation], None]


def write(writes: dict[RegistryKey, bytes | None]) -> Act:
    return lambda sim: sim.history.commit(writes)


def deliver(revisions: int, pieces: int, lost: int, again: int) -> Act:
    return lambda sim: sim.deliver(revisions, pieces, lost, again)


def compact(sim: Simulation) -> None:
    sim.history.compacted = sim.history.revision


ACTS = st.one_of(
    st.builds(write, st.dictionaries(st.sampled_from(KEYS), st.none() | st.binary(max_size=2), min_size=1)),
    st.builds(deliver, st.integers(1, 8), st.integers(1, 6), st.integers(0, 3), st.integers(0, 2)),
    st.just(Simulation.connect),
    st.just(Simulation.cut),
    st.just(Simulation.notice),
    st.just(Simulation.answer),
    st.just(compact),
)


@settings(max_examples=400, deadline=None)
@given(st.lists(ACTS, min_size=10, max_size=60))
def test_every_change_is_taken_once_and_in_order(acts: list[Act]) -> None:
    sim = Simulation(WatchCursor())
    for act in acts:
        act(sim)
        sim.check()
    sim.drain()
    sim.check()
    assert sim.consumer == sim.history.state()
    assert sim.taken == sim.history.since(sim.listed_at + 1)
    assert sim.cursor.next_revision == sim.history.revision + 1


@settings(max_examples=100, deadline=None)
@given(st.lists(ACTS, max_size=25), st.integers(0, 8))
def test_a_restored_backup_is_listed_again_when_the_history_is_behind(acts: list[Act], lost_commits: int) -> None:
    sim = Simulation(WatchCursor())
    sim.connect()
    for act in acts:
        act(sim)
    sim.drain()
    sim.cut()
    sim.history.rewind(min(lost_commits, len(sim.history.commits)))
    behind = sim.history.revision < (sim.cursor.next_revision or FIRST) - 1
    sim.connect()
    assert (sim.endings[-1:] == [Ending.REWOUND]) == behind
    sim.drain()
    assert sim.consumer == sim.history.state()


class ResumesFromHeader(WatchCursor):
    """The mistake that loses events: to trust the header of a reply that carries events."""

    def received(self, reply: Reply) -> Step:
        step = super().received(reply)
        if step.changes:
            self._next = Revision(max(self._next or 0, reply.revision + 1))
        return step


class TrustsAnswers(WatchCursor):
    """The mistake that loses events before etcd 3.5.8: to move on by the answer to a progress question."""

    def received(self, reply: Reply) -> Step:
        step = super().received(reply)
        if reply.watch_id < 0:
            self._next = Revision(max(self._next or 0, reply.revision + 1))
        return step


class TakesFragments(WatchCursor):
    """The mistake that repeats or loses: to take a fragment as if it were whole revisions."""

    def _taken(self, reply: Reply) -> tuple[Change, ...]:
        return super()._taken(Reply(reply.revision, reply.cluster_id, reply.watch_id, reply.changes))


@pytest.mark.parametrize("mistaken", [ResumesFromHeader, TrustsAnswers, TakesFragments])
def test_the_simulation_finds_the_known_mistakes(mistaken: type[WatchCursor]) -> None:
    def run(cursor: WatchCursor) -> bool:
        sim = Simulation(cursor)
        sim.connect()
        for n in range(6):
            sim.history.commit({KEYS[0]: b"%d" % n, KEYS[1]: b"%d" % n})
        sim.answer()
        sim.deliver(revisions=3, pieces=2, lost=1)
        sim.drain()
        return sim.consumer == sim.history.state() and sim.taken == sim.history.since(FIRST)

    assert run(WatchCursor())
    assert not run(
        mistaken(),
    )


def test_a_revision_split_by_a_fragment_is_held_back_until_it_is_whole() -> None:
    cursor = WatchCursor()
    cursor.listed(Listing(Revision(1), 7, {}), 0.0)
    cursor.opened()
    first, second = (Change(RegistryKey(name), Entry(b"", Revision(2)), Revision(2)) for name in "ab")
    assert cursor.received(Reply(Revision(2), 7, 0, (first,), fragment=True)).changes == ()
    assert dict(cursor.state) == {}
    assert cursor.next_revision == 2
    assert cursor.received(Reply(Revision(2), 7, 0, (second,))).changes == (first, second)
    assert cursor.next_revision == 3


def test_a_listing_after_a_compaction_shows_what_changed_and_what_went() -> None:
    cursor = WatchCursor()
    kept, old = Entry(b"kept", Revision(2)), Entry(b"old", Revision(3))
    cursor.listed(Listing(Revision(4), 7, {RegistryKey("kept"): kept, K: old, RegistryKey("gone"): old}), 0.0)
    cursor.opened()
    assert cursor.received(Reply(Revision(9), 7, 0, canceled=True, compacted=True)).ending is Ending.COMPACTED
    assert cursor.next_revision is None
    new, late = Entry(b"new", Revision(8)), Entry(b"late", Revision(7))
    changes = cursor.listed(Listing(Revision(9), 7, {RegistryKey("kept"): kept, K: new, RegistryKey("x"): late}), 1.0)
    assert changes == (
        Change(RegistryKey("x"), late, Revision(7)),
        Change(K, new, Revision(8)),
        Change(RegistryKey("gone"), None, Revision(9)),
    )
    assert cursor.next_revision == 10


def test_another_cluster_is_another_history() -> None:
    cursor = WatchCursor()
    cursor.listed(Listing(Revision(4), 7, {}), 0.0)
    cursor.opened()
    assert cursor.received(Reply(Revision(99), 8, 0, created=True)).ending is Ending.REWOUND
    assert cursor.next_revision is None


def test_only_an_answer_proves_the_age_and_it_is_dated_at_the_question() -> None:
    cursor = WatchCursor()
    assert cursor.age_s(5.0) == math.inf
    cursor.listed(Listing(Revision(4), 7, {}), asked_at_s=10.0)
    cursor.opened()
    assert cursor.age_s(12.0) == 2.0
    cursor.received(Reply(Revision(5), 7, 0, (Change(K, None, Revision(5)),)))
    cursor.received(Reply(Revision(6), 7, 0))
    assert cursor.age_s(12.0) == 2.0
    cursor.asked(11.0)
    cursor.asked(12.0)
    cursor.received(Reply(Revision(6), 7, -1))
    assert cursor.age_s(12.0) == 1.0
    cursor.received(Reply(Revision(6), 7, -1))
    assert cursor.age_s(12.0) == 1.0, "an answer without an open question proves nothing"
    cursor.asked(13.0)
    cursor.opened()
    cursor.received(Reply(Revision(6), 7, -1))
    assert cursor.age_s(14.0) == 3.0, "a question on a stream that broke was never answered"


def test_a_reply_before_the_listing_is_a_mistake_of_the_caller() -> None:
    with pytest.raises(ValueError):
        WatchCursor().received(Reply(Revision(1), 7, 0))


@given(st.integers(-1, 10_000))
@example(0)
def test_the_wait_before_the_next_try_stays_between_its_bounds(failures: int) -> None:
    assert 0.1 <= backoff_s(failures) <= 1.0
    assert backoff_s(failures) <= backoff_s(failures + 1)


def _changes(count: int, size_bytes: int = 1) -> Changes:
    entry = Entry(bytes(size_bytes), Revision(2))
    return Changes(tuple(Change(K, entry, Revision(2)) for _ in range(count)), relisted=False)


@pytest.mark.parametrize("batches", [[_changes(3), _changes(3)], [_changes(1, 60), _changes(1, 60)], [_changes(6)]])
def test_a_consumer_that_falls_behind_gets_the_state_once(batches: list[Changes]) -> None:
    pending = PendingBatches(most_changes=5, most_bytes=100)
    for batch in batches:
        pending.add(batch)
    pending.add(_changes(1))
    assert pending.overflows == 1
    state = {K: Entry(b"now", Revision(9))}
    assert pending.take(state) == Resync(state)
    assert pending.take(state) is None
    pending.add(_changes(1))
    assert pending.take(state) == _changes(1)


def test_a_consumer_that_keeps_up_gets_every_batch() -> None:
    pending = PendingBatches(most_changes=5, most_bytes=100)
    for _ in range(100):
        pending.add(_changes(4))
        assert pending.take({}) == _changes(4)
    assert pending.overflows == 0
    pending.add(_changes(0))
    assert pending.take({}) is None
