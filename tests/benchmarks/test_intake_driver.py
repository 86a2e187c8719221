"""What drives an intake keeps to the protocol, sends what the law permits, and takes no answer that is not whole."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.path.ask import WrongAnswer, text_of
from benchmarks.path.driven import ENGINE, driven
from benchmarks.path.driver import DRIVER
from benchmarks.path.lane import Lane
from benchmarks.path.prepared import Prepared, written
from benchmarks.path.processes import INTAKE, Run, rendered
from benchmarks.path.watched import Spent
from benchmarks.stand import Scale, Stand
from orchestrator.cli.evidence import records
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import ReplicaId
from orchestrator.watch.places import folders_in
from orchestrator.wire import session_intake as i
from orchestrator.wire.convert_session import edge_frame_in, intake_batch_out
from orchestrator.wire.frames import Accepted, Beat, Done, IntakeFrame, Settle, Tokens
from protos.tidegate.v1 import session_pb2 as pb
from tests.session.machines import hand, intake, sent
from tests.session.world import open_frame

TOKENS = 6
CREDIT_BYTES = 64 * 1024


def prepared(count: int) -> list[Prepared]:
    """Attempts for the streams from 1 on."""
    opens = [open_frame(number, number, CREDIT_BYTES) for number in range(1, count + 1)]
    return [
        Prepared(one.attempt, written([one]), written([Settle(one.stream, one.attempt, EdgeCounts(TOKENS, TOKENS))]))
        for one in opens
    ]


def lane(count: int) -> Lane:
    return Lane(prepared(count), text_of(TOKENS), TOKENS)


def message(frames: Sequence[IntakeFrame]) -> bytes:
    return intake_batch_out(3, list(frames)).SerializeToString()


def pieces(cuts: set[int]) -> list[tuple[int, int]]:
    """Where the tokens of an answer begin and end when it is cut so."""
    ends = [*sorted(cuts), TOKENS]
    return list(zip([0, *ends], ends, strict=False))


class Site:
    """The intake's own machine of a session, with an engine that answers in pieces."""

    def __init__(self) -> None:
        self.machine = intake()
        self.settled: list[EdgeCounts | None] = []
        self.waiting: list[int] = []
        self._said: list[IntakeFrame] = []

    def take(self, data: bytes) -> None:
        """Take what a lane sent."""
        for frame in pb.EdgeBatch.FromString(data).frames:
            told = hand(self.machine, edge_frame_in(frame))
            assert not any(isinstance(one, i.Close | i.Stop) for one in told)
            self.waiting += [one.open.stream for one in told if isinstance(one, i.Start)]
            self.settled += [one.counts for one in told if isinstance(one, i.Settled)]
            self._said += sent(told)

    def answer(self, cuts: set[int]) -> None:
        """Answer the attempt that waits longest."""
        stream, words = self.waiting.pop(0), text_of(TOKENS).split()
        told = self.machine.accepted(stream, ReplicaId("engine"))
        for first, end in pieces(cuts):
            told += self.machine.tokens(stream, "".join(f" {word}" for word in words[first:end]), (), end - first)
        self._said += sent([*told, *self.machine.done(stream, "length", PoolCounts(9, 0, TOKENS, 0))])

    def say(self) -> bytes:
        """Return what is to be said since the last time."""
        said, self._said = self._said, []
        return message(said)


@given(st.integers(1, 8), st.integers(1, 30), st.lists(st.sets(st.integers(1, TOKENS - 1))), st.data())
def test_a_lane_speaks_as_an_intake_expects_it_and_settles_every_answer(
    in_flight: int, count: int, cuts: list[set[int]], data: st.DataObject
) -> None:
    site, driven_lane, now_us = Site(), lane(count), 0
    site.take(driven_lane.begin(in_flight))
    while site.waiting:
        for _ in range(data.draw(st.integers(1, len(site.waiting)))):
            site.answer(cuts.pop() if cuts else set())
        site.take(driven_lane.received(site.say()))
        now_us += data.draw(st.integers(0, 400_000))
        site.take(driven_lane.tick(now_us))
        assert len(site.waiting) == driven_lane.in_flight <= in_flight
    driven_lane.received(site.say())
    assert (driven_lane.complete, driven_lane.in_flight, driven_lane.ran_out) == (count, 0, True)
    assert site.settled == [EdgeCounts(TOKENS, TOKENS)] * count
    assert not site.machine.streams()


def test_a_lane_that_closes_lets_what_runs_end() -> None:
    site, closing = Site(), lane(10)
    site.take(closing.begin(2))
    closing.close()
    site.answer(set())
    site.answer({1})
    site.take(closing.received(site.say()))
    assert (closing.complete, closing.in_flight, closing.ran_out) == (2, 0, False)
    assert (len(site.waiting), site.machine.streams()) == (0, 0)


def test_an_answer_that_is_not_whole_is_refused() -> None:
    attempt = open_frame(1, 1, CREDIT_BYTES).attempt
    accepted = Accepted(1, attempt, ReplicaId("engine"))
    whole = Tokens(1, attempt, 0, TOKENS, text_of(TOKENS), ())
    done = Done(1, attempt, "length", PoolCounts(9, 0, TOKENS, TOKENS))
    wrong: list[list[IntakeFrame]] = [
        [accepted, done],
        [whole, done],
        [accepted, Tokens(1, attempt, 1, TOKENS, text_of(TOKENS), ()), done],
        [accepted, Tokens(1, attempt, 0, TOKENS, text_of(TOKENS)[1:], ()), done],
        [accepted, whole, Done(1, attempt, "length", PoolCounts(9, 0, TOKENS, TOKENS - 1))],
        [accepted, Tokens(2, attempt, 0, TOKENS, text_of(TOKENS), ())],
        [accepted, Tokens(1, open_frame(1, 2, CREDIT_BYTES).attempt, 0, TOKENS, text_of(TOKENS), ())],
    ]
    for frames in wrong:
        asking = lane(1)
        asking.begin(1)
        with pytest.raises(WrongAnswer):
            asking.received(message(frames))
    fine = lane(1)
    fine.begin(1)
    fine.received(message([accepted, whole, done]))
    assert fine.complete == 1


def test_a_beat_of_the_intake_is_answered() -> None:
    answered = lane(0).received(message([Beat(7)]))
    assert [edge_frame_in(one) for one in pb.EdgeBatch.FromString(answered).frames] == [Beat(0, 7)]


@pytest.mark.e2e
async def test_both_processes_of_an_intake_permit_what_is_driven_at_them(tmp_path: Path) -> None:
    stand = Stand(tmp_path / "stand", None, Scale(site={"processes": 2}))
    try:
        await stand.start()
        pid = stand.process("scheduler").pid
        found = await driven(stand, TOKENS, tmp_path, 2, 8, pid)
    finally:
        await stand.stop()
    assert len(found) == 2
    assert all(window.requests for window in found)
    assert {frozenset(window.spent.cpu_us) for window in found} == {frozenset({INTAKE, ENGINE, DRIVER})}
    spools = [folder / "spool" for _, folder in folders_in(stand.data("scheduler"))]
    assert len(spools) == 2
    for spool in spools:
        assert {one["outcome"] for one in records(spool, "decision")} == {"permitted"}
        used = list(records(spool, "usage"))
        assert {one["outcome"] for one in used} == {"complete"}
        told = [one["counts"]["edge"] for one in used]
        assert told == [{"received": TOKENS, "delivered": TOKENS, "reported": True}] * len(used)


def test_the_table_of_processes_shows_medians_by_load_and_count() -> None:
    def run(requests: int) -> Run:
        return Run(requests, Spent(2.0, {INTAKE: 1e6, ENGINE: 5e5, DRIVER: 1e5}, 0.125))

    shown = rendered(INTAKE, {(2, "b"): [run(1000)], (1, "b"): [run(500), run(5000), run(1000)], (1, "a"): [run(200)]})
    rows = [line.split() for line in shown.splitlines()[3:]]
    assert rows == [
        ["a", "1", "100", "5,000", "0.50", "500", "0.25", "0.12"],
        ["b", "1", "500", "1,000", "0.50", "100", "0.25", "0.12"],
        ["b", "2", "500", "1,000", "0.50", "100", "0.25", "0.12"],
    ]
