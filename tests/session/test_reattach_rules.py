"""What each machine does when its transport is lost and another comes, step by step."""

from __future__ import annotations

import pytest

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
    EdgeFrame,
    Held,
    Hello,
    Process,
    Refused,
    Settle,
    Tokens,
    Welcome,
)
from tests.session.machines import ATTEMPT, EPOCH, broken, edge, greeting, hand, intake, sent, take, ticked, welcome
from tests.session.world import WALL_MS, load, made_id, open_frame
from tests.values import replace


def lost(machine: e.EdgeSession, unsent: tuple[EdgeFrame, ...] = (), now_us: int = 300_000) -> None:
    assert machine.lost(now_us, unsent) == []
    assert machine.state is e.State.DETACHED


def again(machine: e.EdgeSession, answer: Welcome, now_us: int = 400_000) -> list[e.Instruction]:
    """Greet on a new transport, and take the answer."""
    machine.connected(now_us, WALL_MS)
    return machine.received(machine.epoch, [answer], now_us, WALL_MS)


def test_an_attempt_that_never_left_is_refused_and_one_that_may_have_is_broken() -> None:
    machine = edge()
    left, stayed = open_frame(1, 1, CREDIT_BYTES_MIN), open_frame(2, 2, CREDIT_BYTES_MIN)
    for attempt in (left, stayed):
        machine.open(attempt, 200_000)
    lost(machine, (stayed,))
    told = ticked(machine, 350_000, 700_000 + e.REATTACH_TRY_MS * 1_000)
    frames = [one.frame for one in told if isinstance(one, e.Deliver)]
    assert [(type(frame), getattr(frame, "code", "")) for frame in frames] == [
        (Broken, "session_lost"),
        (Refused, "engine_unreachable"),
    ]
    assert told[-1] == e.Close("session_lost")


@pytest.mark.parametrize(
    "answer",
    [welcome(), replace(welcome(), continued=True, instance="two")],
    ids=["an unknown session", "another instance"],
)
def test_an_intake_that_cannot_go_on_ends_the_session(answer: Welcome) -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 200_000)
    lost(machine)
    told = again(machine, answer)
    assert broken(told).code == "session_lost"
    assert told[-1] == e.Close("session_lost")


def test_a_session_that_meets_another_process_of_its_intake_looks_on_for_its_own() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 200_000)
    lost(machine)
    elsewhere = replace(welcome(), instance="two", process=Process(1, 2))
    assert again(machine, elsewhere, 400_000) == [e.Detach("another process")]
    assert machine.state is e.State.DETACHED
    assert not any(isinstance(one, e.Deliver) for one in again(machine, elsewhere, 500_000))
    found = again(machine, replace(welcome(), continued=True, last_stream=1), 600_000)
    assert machine.state is e.State.LIVE
    assert [type(one) for one in found] == [e.Send]
    assert machine.streams() == 1


def test_a_session_looks_for_its_process_no_longer_than_for_a_transport() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 200_000)
    lost(machine)
    again(machine, replace(welcome(), instance="two", process=Process(1, 2)), 400_000)
    told = ticked(machine, 450_000, 700_000 + e.REATTACH_TRY_MS * 1_000)
    assert broken(told).code == "session_lost"
    assert told[-1] == e.Close("session_lost")


def test_what_is_wished_without_a_transport_is_in_the_greeting_and_later_wishes_follow_it() -> None:
    machine = edge()
    for number in (1, 2, 3):
        machine.open(open_frame(number, number, CREDIT_BYTES_MIN), 200_000)
    lost(machine)
    assert machine.settle(1, EdgeCounts(3, 2)) == machine.cancel(2) == []
    (greeting_sent,) = machine.connected(400_000, WALL_MS)
    assert isinstance(greeting_sent, e.Send)
    hello = greeting_sent.frame
    assert isinstance(hello, Hello)
    assert hello.continues
    assert [(one.stream, one.cancelled) for one in hello.held] == [(2, True), (3, False)]
    assert [(one.stream, one.counts) for one in hello.settled] == [(1, EdgeCounts(3, 2))]
    assert machine.settle(3, EdgeCounts()) == []
    answer = replace(welcome(), continued=True, last_stream=3)
    told = machine.received(machine.epoch, [answer], 500_000, WALL_MS)
    assert [one.frame for one in told if isinstance(one, e.Send)] == [
        Settle(3, AttemptId(made_id("att", 3)), EdgeCounts()),
        Beat(2),
    ]
    assert machine.unheard() == 1
    assert machine.received(machine.epoch, [Beat(0, 2, 1)], 600_000, WALL_MS) == []
    assert machine.unheard() == 0


def test_a_lost_attempt_is_sent_again_with_what_is_left_of_its_budget() -> None:
    machine = edge()
    attempt = open_frame(1, 1, CREDIT_BYTES_MIN)
    machine.open(attempt, 200_000)
    lost(machine)
    told = again(machine, replace(welcome(), continued=True, last_stream=0), 700_000)
    assert told[0] == e.Send(replace(attempt, budget_ms=attempt.budget_ms - 500))


def test_a_stream_that_the_intake_does_not_have_is_broken_alone() -> None:
    machine = edge()
    for number in (1, 2):
        machine.open(open_frame(number, number, CREDIT_BYTES_MIN), 200_000)
    lost(machine)
    told = again(machine, replace(welcome(), continued=True, last_stream=2, gone=(1,)))
    assert broken(told).stream == 1
    assert machine.state is e.State.LIVE
    assert machine.streams() == 2, "it is still to be settled"


def test_a_transport_that_is_lost_before_its_greeting_is_answered_gives_no_new_time() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 200_000)
    lost(machine, now_us=300_000)
    for now_us in (400_000, 600_000, 800_000):
        ticked(machine, now_us, now_us + 100_000)
        machine.connected(now_us, WALL_MS)
        lost(machine, now_us=now_us + 100_000)
    assert ticked(machine, 900_000, 1_300_000)[-1] == e.Close("session_lost")


def test_our_own_pause_is_not_the_death_of_the_other() -> None:
    machine, other = edge(), intake()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 200_000)
    hand(other, open_frame(1, 1, CREDIT_BYTES_MIN), 200_000)
    for one in (machine, other):
        one.tick(300_000)
        assert e.State.LIVE is one.state
        told = one.tick(60_000_000)
        assert not any(isinstance(step, e.Detach | i.Detach | e.Close | i.Close) for step in told)
    for step in range(1, 60):
        told = machine.tick(60_000_000 + step * 100_000)
        if e.Detach("silent") in told:
            break
    assert 24 <= step <= 28, "from then on it counts"


def test_an_intake_that_takes_no_settlement_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(e, "SETTLES_MAX", 3)
    machine = edge()
    for number in range(1, 5):
        machine.open(open_frame(number, number, CREDIT_BYTES_MIN), 200_000)
        told = machine.settle(number, EdgeCounts())
    assert told == [e.Close("protocol_violation")]


@pytest.mark.parametrize("settled", [1, 2**63])
def test_an_intake_that_took_more_settlements_than_were_sent_is_dishonest(settled: int) -> None:
    assert take(edge(), Beat(0, 1, settled)) == [e.Close("protocol_violation")]


# The intake


def held(stream: int, received_bytes: int, next_token: int, limit_bytes: int = CREDIT_BYTES_MIN) -> Held:
    return Held(
        stream, AttemptId(made_id("att", stream)), False, next_token, received_bytes, limit_bytes, False, False
    )


def reattach(machine: i.IntakeSession, *streams: Held, epoch: int = EPOCH + 1) -> list[i.Instruction]:
    """The edge comes back with these streams."""
    hello = replace(greeting(epoch), continues=True, held=streams)
    return machine.greeted(epoch, hello, 500_000, WALL_MS, ())


def test_a_session_without_a_transport_works_on_and_says_nothing() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    machine.lost(100_000)
    assert machine.accepted(1, ReplicaId("r")) == machine.tokens(1, "word", (1,), 1) == []
    assert machine.done(1, "stop", PoolCounts(1, 0, 1)) == machine.load(load(1)) == []
    assert machine.detached_bytes == 8
    frames = sent(reattach(machine, held(1, 0, 0)))
    assert [type(frame) for frame in frames] == [Welcome, Accepted, Tokens, Done]


def test_a_session_is_kept_for_so_long_and_no_longer() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    machine.lost(100_000)
    told = [step for now in range(200, 4_000, 100) for step in machine.tick(now * 1_000)]
    assert told == [i.Stop(1, "session_lost"), i.Settled(1, ATTEMPT, None, 0), i.Close("session_lost")]


@pytest.mark.parametrize(
    ("received_bytes", "next_token", "limit_bytes"),
    [(1, 0, CREDIT_BYTES_MIN), (68, 2, CREDIT_BYTES_MIN), (10_000, 1, CREDIT_BYTES_MIN), (0, 0, 64)],
    ids=["between frames", "another token", "what was never sent", "less credit than was given"],
)
def test_a_stream_that_cannot_go_on_exactly_is_over(received_bytes: int, next_token: int, limit_bytes: int) -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    machine.tokens(1, "word", (), 1)
    machine.lost(100_000)
    told = reattach(machine, held(1, received_bytes, next_token, limit_bytes))
    (answer,) = sent(told)
    assert isinstance(answer, Welcome)
    assert answer.continued
    assert answer.gone == (1,)
    assert [type(one) for one in told[1:]] == [i.Stop, i.Settled]


def test_what_was_read_is_not_kept_and_what_was_received_is_not_said_again() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    for number in range(20):
        machine.tokens(1, "w" * 36, (), 1)
        if number == 9:
            hand(machine, Credit(1, 1_000))
    assert len(machine._streams[1].kept) == 10
    machine.lost(100_000)
    frames = sent(reattach(machine, held(1, 1_800, 18, CREDIT_BYTES_MIN + 1_000)))
    assert [(frame.first, frame.count) for frame in frames if isinstance(frame, Tokens)] == [(18, 1), (19, 1)]


def test_a_newer_transport_takes_the_place_of_one_that_only_seems_to_live() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    machine.tokens(1, "word", (), 1)
    frames = sent(reattach(machine, held(1, 0, 0)))
    assert [type(frame) for frame in frames] == [Welcome, Tokens]
    dropped = machine.dead_frames
    assert hand(machine, Cancel(1, ATTEMPT)) == []
    assert machine.dead_frames == dropped + 1, "what the old one says is dropped"


def test_two_greetings_on_one_transport_end_the_session() -> None:
    assert hand(intake(), greeting())[-1] == i.Close("protocol_violation")
