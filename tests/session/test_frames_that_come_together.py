"""What frames come to does not depend on whether they came in one message or each in its own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, ReplicaId
from orchestrator.wire import session_edge as e
from orchestrator.wire import session_intake as i
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    Accepted,
    Beat,
    Broken,
    Cancel,
    Credit,
    Done,
    Draining,
    EdgeFrame,
    IntakeFrame,
    Refused,
    Settle,
    Tokens,
)
from orchestrator.wire.session_edge import State
from tests.session.machines import EPOCH, WALL_MS, edge, greeting, intake, welcome
from tests.session.world import load, made_id, open_frame

NUMBERS = st.integers(1, 3)
ATTEMPTS = NUMBERS.map(lambda number: AttemptId(made_id("att", number)))
COUNTS = st.just(PoolCounts())
OF_STREAMS = st.one_of(
    st.builds(Accepted, NUMBERS, ATTEMPTS, st.just(ReplicaId("r"))),
    st.builds(
        Tokens, NUMBERS, ATTEMPTS, st.integers(0, 2), st.just(1), st.sampled_from(("a", "a" * 1_500)), st.just(())
    ),
    st.builds(Done, NUMBERS, ATTEMPTS, st.just("stop"), COUNTS),
    st.builds(Refused, NUMBERS, ATTEMPTS, st.just("engine_busy"), st.just("")),
    st.builds(Broken, NUMBERS, ATTEMPTS, st.just("engine_protocol"), st.just(""), COUNTS),
)
RARE = st.sampled_from((Beat(5), Beat(0, 1, 0), Beat(0, 1, 9), Draining(10), load(9), load(3), welcome()))
OF_EDGES = st.one_of(
    NUMBERS.map(lambda number: open_frame(number, number, CREDIT_BYTES_MIN)),
    st.builds(Credit, NUMBERS, st.integers(1, 9_000)),
    st.builds(Cancel, NUMBERS, ATTEMPTS),
    st.builds(Settle, NUMBERS, ATTEMPTS, st.just(EdgeCounts(1, 1))),
    st.sampled_from((Beat(5), Beat(0, 1))),
    st.just(greeting()),
)


def heard(frames: list[list[IntakeFrame]], epoch: int) -> tuple[object, ...]:
    """Return what an edge with three streams is told to do, and what it says of them on its next transport."""
    machine = edge()
    for number in (1, 2, 3):
        machine.open(open_frame(number, number, CREDIT_BYTES_MIN), 100_000)
    told = [one for together in frames for one in machine.received(epoch, together, 200_000, WALL_MS)]
    state, dead = machine.state, machine.dead_frames
    machine.lost(300_000)
    again = [] if state is State.CLOSED else machine.connected(400_000, WALL_MS)
    return told, state, dead, machine.loads, again


def taken(frames: list[list[EdgeFrame]], epoch: int) -> tuple[object, ...]:
    """Return what an intake is told to do, and what it does with its streams in the end."""
    machine = intake()
    told: list[i.Instruction] = []
    for together in frames:
        told += machine.received(epoch, together, 200_000)
        told += machine.tokens(1, "a" * 3_000, (), 1)
    return told, machine.state, machine.dead_frames, machine.close("session_lost")


@given(st.lists(OF_STREAMS | RARE, max_size=12), st.sampled_from((EPOCH, EPOCH, EPOCH, EPOCH - 1)))
def test_an_edge_does_with_them_what_it_would_do_with_each(frames: list[IntakeFrame], epoch: int) -> None:
    assert heard([frames], epoch) == heard([[frame] for frame in frames], epoch)


@given(
    st.lists(OF_EDGES, max_size=12), st.lists(OF_EDGES, max_size=4), st.sampled_from((EPOCH, EPOCH, EPOCH, EPOCH + 1))
)
def test_an_intake_does_with_them_what_it_would_do_with_each(
    frames: list[EdgeFrame], more: list[EdgeFrame], epoch: int
) -> None:
    together = taken([frames, more], epoch)
    machine, told = intake(), list[i.Instruction]()
    for some in (frames, more):
        for frame in some:
            told += machine.received(epoch, [frame], 200_000)
        told += machine.tokens(1, "a" * 3_000, (), 1)
    assert together == (told, machine.state, machine.dead_frames, machine.close("session_lost"))


def test_what_comes_after_the_end_of_a_session_in_one_message_is_dropped_and_counted() -> None:
    machine = edge()
    told = machine.received(EPOCH, [welcome(), Beat(5), load(9)], 200_000, WALL_MS)
    assert told == [e.Close("protocol_violation")]
    assert machine.dead_frames == 2
