"""What each machine does at one step, where a random world would seldom look."""

from __future__ import annotations

import pytest

from orchestrator.engines.generation import FinishReason
from orchestrator.ledger.usage import EdgeCounts, PoolCounts
from orchestrator.policy.ids import AttemptId, EdgeId, SchedulerId, SessionId
from orchestrator.wire import session_edge as e
from orchestrator.wire import session_intake as i
from orchestrator.wire.frames import (
    CREDIT_BYTES_MIN,
    FRAME_BYTES,
    PIECE_BYTES_MAX,
    SESSION_VERSION,
    Beat,
    Broken,
    Cancel,
    Credit,
    Done,
    Draining,
    Hello,
    IntakeFrame,
    Load,
    Refused,
    Settle,
    Tokens,
    Welcome,
    held_bytes,
)
from tests.session.machines import (
    ATTEMPT,
    EPOCH,
    NOTHING,
    broken,
    edge,
    greeting,
    hand,
    intake,
    sent,
    take,
    ticked,
    welcome,
)
from tests.session.world import POOL, WALL_MS, load, made_id, open_frame
from tests.values import replace

# The edge


def test_a_stream_number_is_used_once_and_in_order() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 0)
    for number in (0, 1, 3):
        with pytest.raises(ValueError, match="in order"):
            machine.open(open_frame(number, 2, CREDIT_BYTES_MIN), 0)
    machine.settle(1, EdgeCounts())
    assert machine.next_stream == 2


def test_a_first_credit_that_could_never_be_given_back_is_refused() -> None:
    with pytest.raises(ValueError, match="credit"):
        edge().open(open_frame(1, 1, CREDIT_BYTES_MIN - 1), 0)


def test_opening_attempts_does_not_stand_in_for_beats() -> None:
    machine, beats = edge(), 0
    for step in range(1, 41):
        now_us = 100_000 + step * 100_000
        machine.open(open_frame(step, step, CREDIT_BYTES_MIN), now_us)
        for one in machine.tick(now_us):
            assert isinstance(one, e.Send)
            if isinstance(one.frame, Beat):
                beats += 1
                take(machine, Beat(0, one.frame.number), now_us + 1_000)
    assert beats >= 12


def test_an_intake_that_never_answers_beats_costs_no_memory_and_no_life() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 100_000)
    for step in range(1, 2_000):
        machine.tick(step * 300_000)
        take(machine, load(step), step * 300_000)
    assert machine.state is e.State.LIVE
    assert len(machine._beats) <= e.BEATS_MAX


def test_only_a_newer_report_of_a_pool_counts() -> None:
    machine = edge()
    assert machine.loads[POOL][0].number == 7
    take(machine, replace(load(6), running=5))
    assert machine.loads[POOL][0].running == 0
    take(machine, replace(load(8), running=5))
    assert machine.loads[POOL][0].running == 5


def test_what_was_opened_counts_until_the_pool_is_heard_of() -> None:
    machine = edge()
    for number in (1, 2):
        machine.open(open_frame(number, number, CREDIT_BYTES_MIN), 0)
        assert machine.opened[POOL] == number
    take(machine, Draining(1_000))
    assert machine.opened[POOL] == 2
    take(machine, load(8))
    assert machine.opened[POOL] == 0


def test_what_was_opened_is_in_what_a_greeting_tells() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 0)
    machine.lost(300_000)
    machine.connected(300_000, WALL_MS)
    machine.received(EPOCH + 1, [replace(welcome(), continued=True, last_stream=1)], 400_000, WALL_MS)
    assert machine.opened[POOL] == 0


def test_skew_is_measured_with_the_greeting() -> None:
    assert edge().skew_ms == 500 + 50


def test_a_silent_busy_session_gets_no_new_work_and_an_idle_one_does() -> None:
    machine = edge()
    ticked(machine, 200_000, 14_000_000)
    assert machine.accepts_work(14_000_000)
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 14_000_000)
    limit_us = 14_000_000 + e.SUSPECT_BUSY_MS * 1_000 + (machine.rtt_us or 0)
    ticked(machine, 14_000_000, limit_us)
    assert machine.accepts_work(limit_us)
    assert not machine.accepts_work(limit_us + 1_000)


def test_no_more_streams_are_opened_than_the_intake_takes() -> None:
    machine = edge(streams_max=2)
    for number in (1, 2):
        assert machine.accepts_work(100_000)
        machine.open(open_frame(number, number, CREDIT_BYTES_MIN), 100_000)
    assert not machine.accepts_work(100_000)
    machine.settle(1, EdgeCounts())
    assert machine.accepts_work(100_000)


@pytest.mark.parametrize(
    ("frames", "detail"),
    [
        ([Tokens(1, ATTEMPT, 1, 1, "b", (2,))], "gap"),
        ([Tokens(1, ATTEMPT, 0, 1, "a", (1,)), Tokens(1, ATTEMPT, 0, 1, "a", (1,))], "gap"),
        ([Tokens(1, ATTEMPT, 0, 1, "x" * (CREDIT_BYTES_MIN - FRAME_BYTES + 1), ())], "credit"),
        ([Tokens(1, ATTEMPT, index, 1, "", ()) for index in range(CREDIT_BYTES_MIN // FRAME_BYTES + 1)], "credit"),
        ([Tokens(1, ATTEMPT, 0, 1, "a", (1,)), Refused(1, ATTEMPT, "engine_busy", "No room.")], "begun"),
    ],
    ids=["gap", "repeat", "too long", "too many", "refused after tokens"],
)
def test_a_dishonest_intake_breaks_its_stream_and_no_other(frames: list[IntakeFrame], detail: str) -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 100_000)
    machine.open(open_frame(2, 2, CREDIT_BYTES_MIN), 100_000)
    *honest, last = frames
    for frame in honest:
        assert isinstance(frame, Tokens)
        assert take(machine, frame) == [e.Deliver(1, frame, held_bytes(frame.text, frame.ids))]
    answer = take(machine, last)
    assert broken(answer).code == "protocol_violation"
    assert detail in broken(answer).detail
    dropped = machine.dead_frames
    assert take(machine, Done(1, ATTEMPT, "stop", NOTHING)) == []
    assert machine.dead_frames == dropped + 1
    other = Tokens(2, AttemptId(made_id("att", 2)), 0, 1, "a", (1,))
    assert take(machine, other) == [e.Deliver(2, other, held_bytes(other.text, other.ids))]


def test_credit_comes_back_in_steps_of_at_most_half() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 100_000)
    assert machine.consumed(1, CREDIT_BYTES_MIN // 2 - 1) == []
    assert machine.consumed(1, 1) == [e.Send(Credit(1, CREDIT_BYTES_MIN // 2))]


def test_what_comes_before_the_greeting_or_greets_twice_ends_the_session() -> None:
    machine = e.EdgeSession(EdgeId("edge-a"), SessionId(made_id("ses", 1)), EPOCH - 1)
    machine.connected(0, WALL_MS)
    assert take(machine, Draining(1)) == [e.Close("protocol_violation")]
    assert take(edge(), welcome()) == [e.Close("protocol_violation")]


@pytest.mark.parametrize("version", [0, SESSION_VERSION + 1])
def test_an_intake_of_another_version_ends_the_session(version: int) -> None:
    machine = e.EdgeSession(EdgeId("edge-a"), SessionId(made_id("ses", 1)), EPOCH - 1)
    machine.connected(0, WALL_MS)
    assert take(machine, welcome(version)) == [e.Close("protocol_violation")]


def test_a_closed_session_says_nothing_more() -> None:
    machine = edge()
    machine.open(open_frame(1, 1, CREDIT_BYTES_MIN), 100_000)
    told = machine.close("session_lost")
    assert [type(one) for one in told] == [e.Deliver, e.Close]
    assert machine.close("session_lost") == machine.lost(0) == machine.tick(10**9) == machine.cancel(1) == []
    assert machine.settle(1, EdgeCounts()) == machine.consumed(1, 10**6) == []
    assert not machine.accepts_work(0)


# The intake


def test_a_version_between_both_is_chosen_or_the_session_ends() -> None:
    for low, high in ((SESSION_VERSION + 1, SESSION_VERSION + 2), (0, 0)):
        machine = i.IntakeSession(SchedulerId("site"), "one")
        hello = replace(greeting(), version_min=low, version_max=high)
        assert hand_first(machine, hello) == [i.Close("protocol_violation")]
    machine = i.IntakeSession(SchedulerId("site"), "one")
    (frame,) = sent(hand_first(machine, replace(greeting(), version_max=SESSION_VERSION + 1)))
    assert isinstance(frame, Welcome)
    assert frame.version == SESSION_VERSION


def hand_first(machine: i.IntakeSession, hello: Hello) -> list[i.Instruction]:
    return machine.greeted(EPOCH, hello, 0, WALL_MS, ())


def test_a_number_that_comes_twice_ends_the_session() -> None:
    machine = intake()
    hand(machine, open_frame(2, 1, CREDIT_BYTES_MIN))
    told = hand(machine, open_frame(1, 2, CREDIT_BYTES_MIN))
    assert told == [i.Stop(2, "protocol_violation"), i.Settled(2, ATTEMPT, None, 0), i.Close("protocol_violation")]


def test_an_attempt_that_cannot_be_read_is_refused_alone() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    (frame,) = sent(machine.unreadable(EPOCH, 2, AttemptId(made_id("att", 2)), "label.personal"))
    assert isinstance(frame, Refused)
    assert (frame.code, frame.stream) == ("policy_stale", 2)
    assert "label.personal" in frame.detail
    assert machine.state is e.State.LIVE
    assert machine.streams() == 2


def test_what_cannot_be_read_is_dropped_when_old_and_ends_a_session_without_greeting() -> None:
    machine = intake()
    assert machine.unreadable(EPOCH - 1, 1, ATTEMPT, "open.pool") == []
    assert machine.dead_frames == 1
    ungreeted = i.IntakeSession(SchedulerId("site"), "one")
    assert ungreeted.unreadable(0, 1, ATTEMPT, "open.pool") == [i.Close("protocol_violation")]


def test_an_edge_that_never_settles_is_refused_and_then_cut() -> None:
    machine = intake(streams_max=2)
    told = [hand(machine, open_frame(number, number, CREDIT_BYTES_MIN)) for number in range(1, 6)]
    assert [type(one[0]) for one in told[:2]] == [i.Start, i.Start]
    assert all(isinstance(frame, Refused) and frame.code == "engine_busy" for one in told[2:4] for frame in sent(one))
    assert told[4][-1] == i.Close("protocol_violation")


def test_after_a_cancel_no_token_leaves_and_the_end_is_not_held_back() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    assert hand(machine, Cancel(1, ATTEMPT)) == [i.Stop(1, "cancelled")]
    assert hand(machine, Cancel(1, ATTEMPT)) == []
    assert machine.tokens(1, "x" * 10_000, (), 1) == []
    (frame,) = sent(machine.done(1, "cancelled", PoolCounts(3, 0, 9)))
    assert frame == Done(1, ATTEMPT, "cancelled", PoolCounts(3, 0, 9, 0))


def test_an_answer_that_was_cut_by_a_cancel_is_not_called_complete() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    machine.tokens(1, "x" * 10_000, (), 1)
    assert sent(machine.done(1, "stop", PoolCounts(3, 0, 1))) == []
    (frame,) = sent(hand(machine, Cancel(1, ATTEMPT)))
    assert isinstance(frame, Done)
    assert frame.reason == "cancelled"


def test_what_an_engine_made_at_once_waits_for_a_reader_who_had_no_time_yet() -> None:
    machine, text = intake(), "x" * 250_000
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    frames = sent(machine.tokens(1, text, (), 1))
    frames += sent(machine.tokens(1, " and more", (), 1))
    machine.done(1, FinishReason.STOP.value, PoolCounts(5, 0, 2))
    while not isinstance(frames[-1], Done):
        assert len(frames) < 200
        frames += sent(hand(machine, Credit(1, CREDIT_BYTES_MIN)))
    assert "".join(frame.text for frame in frames if isinstance(frame, Tokens)) == f"{text} and more"
    assert frames[-1].counts.sent == 2


def test_a_reader_who_takes_nothing_is_too_slow_whatever_comes_at_once() -> None:
    machine, text = intake(), "x" * 250_000
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    machine.tokens(1, text, (), 1)
    told = machine.tokens(1, text, (), 1)
    assert i.Stop(1, "slow_reader") in told
    assert [one.code for one in sent(told) if isinstance(one, Broken)] == ["slow_reader"]


def test_a_long_delta_is_cut_between_characters_and_never_goes_beyond_credit() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    text, ids = "日本語" * 1_000, tuple(range(700))
    frames = sent(machine.tokens(1, text, ids, len(ids)))
    credit_bytes = CREDIT_BYTES_MIN
    while True:
        for frame in frames:
            assert isinstance(frame, Tokens)
            credit_bytes -= held_bytes(frame.text, frame.ids)
            assert credit_bytes >= 0
            text, ids = text.removeprefix(frame.text), ids[len(frame.ids) :]
        if not text and not ids:
            break
        assert credit_bytes < FRAME_BYTES + PIECE_BYTES_MAX, "it waits although a piece would fit"
        credit_bytes += 2_048
        frames = sent(hand(machine, Credit(1, 2_048)))


def test_small_deltas_are_held_together() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    for index in range(20_000):
        machine.tokens(1, "a", (index,), 1)
    pieces = machine._streams[1].ready
    assert len(pieces) <= 2 * 20_000 * 5 // PIECE_BYTES_MAX


def test_the_terminal_frame_waits_for_the_last_token() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    machine.tokens(1, "x" * 5_000, (), 1)
    assert sent(machine.done(1, FinishReason.STOP.value, PoolCounts(3, 0, 1))) == []
    frames = sent(hand(machine, Credit(1, 5_000)))
    assert [type(frame) for frame in frames] == [Tokens, Done]
    assert isinstance(frames[-1], Done)
    assert frames[-1].counts == PoolCounts(3, 0, 1, 1)


def test_a_settlement_of_another_attempt_settles_nothing() -> None:
    machine = intake()
    hand(machine, open_frame(1, 1, CREDIT_BYTES_MIN))
    assert hand(machine, Settle(1, AttemptId(made_id("att", 2)), EdgeCounts())) == []
    assert machine.dead_frames == 1
    assert hand(machine, Settle(1, ATTEMPT, EdgeCounts(2, 1))) == [
        i.Stop(1, "cancelled"),
        i.Settled(1, ATTEMPT, EdgeCounts(2, 1), 0),
    ]


def test_frames_of_an_old_epoch_are_no_sign_of_life() -> None:
    machine, told = intake(), list[i.Instruction]()
    for step in range(1, 70):
        now_us = step * 250_000
        machine.received(EPOCH - 1, [Beat(step)], now_us)
        told += machine.tick(now_us)
    assert machine.dead_frames == 69
    assert told == [i.Detach("silent")]


def test_nobody_hears_of_loads_before_the_greeting() -> None:
    machine = i.IntakeSession(SchedulerId("site"), "one")
    assert machine.load(Load(1, POOL, 1, 1, 0, 0, 1)) == []
