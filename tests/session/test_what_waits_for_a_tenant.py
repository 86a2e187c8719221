"""A stream between its session and its tenant: in order, taken by one task, not lost when that is cancelled, ended."""

from __future__ import annotations

import asyncio
import gc
import time

import pytest

from node_agent.uplink import stream
from node_agent.uplink.sending import Tally
from node_agent.uplink.stream import CREDIT_BYTES, Stream, Streams
from orchestrator.ledger.usage import EdgeCounts
from orchestrator.policy.ids import AttemptId
from orchestrator.wire.deadlines import Deadlines, Waits
from orchestrator.wire.frames import Broken, Cancel, Credit, Done, Settle, StreamFrame, Tokens, held_bytes
from orchestrator.wire.session_edge import Instruction, Send
from tests.session.machines import ATTEMPT, NOTHING, edge, take
from tests.session.world import made_id, open_frame

LONG_MS = 60_000
PATIENT = Waits(LONG_MS, LONG_MS)


class Seat:
    """A tenant's stream, with the machine of its session behind it."""

    def __init__(self, waits: Waits = PATIENT, among: Streams | None = None, number: int = 1) -> None:
        """`number` is of its attempt. One that is `among` others shares their timer."""
        self.attempt = AttemptId(made_id("att", number))
        self.machine = edge()
        self.machine.open(open_frame(1, number, CREDIT_BYTES), 0)
        self.tally = Tally()
        self.told: list[Instruction] = []
        self.among = among or Streams()
        deadlines = Deadlines(waits, LONG_MS, now_us())
        loop = asyncio.get_running_loop()
        self.stream = Stream(1, self.attempt, self.tally, deadlines, self.machine, self.told.extend, self.among, loop)

    def put(self, frame: StreamFrame) -> None:
        for instruction in take(self.machine, frame):
            self.stream.put(instruction)  # type: ignore[arg-type]

    def say(self, text: str) -> None:
        self.put(Tokens(1, self.attempt, self.tally.received, 1, text, (7,)))

    async def next(self) -> StreamFrame | None:
        return await self.stream.next(now_us())

    async def text(self) -> str:
        frame = await self.next()
        assert isinstance(frame, Tokens)
        return frame.text

    def sent(self) -> list[object]:
        return [one.frame for one in self.told if isinstance(one, Send)]


def now_us() -> int:
    return time.monotonic_ns() // 1000


async def waiting(seat: Seat) -> asyncio.Task[StreamFrame | None]:
    task = asyncio.create_task(seat.next())
    await asyncio.sleep(0)
    return task


async def test_frames_are_taken_in_the_order_in_which_they_were_put() -> None:
    seat = Seat()
    seat.say("a")
    assert await seat.text() == "a"
    seat.say("b")
    seat.say("c")
    seat.put(Done(1, ATTEMPT, "stop", NOTHING))
    assert await seat.text() == "bc"
    assert isinstance(await seat.next(), Done)
    assert await seat.next() is None
    await seat.stream.close()


async def test_who_waits_gets_what_is_put_then() -> None:
    seat = Seat()
    taking = await waiting(seat)
    seat.say("a")
    assert isinstance(await taking, Tokens)
    await seat.stream.close()


async def test_a_frame_outlives_whoever_waited_for_it() -> None:
    seat = Seat()
    taking = await waiting(seat)
    seat.say("a")
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    assert await seat.text() == "a"
    await seat.stream.close()


async def test_who_waits_again_after_it_was_cancelled_is_woken() -> None:
    seat = Seat()
    taking = await waiting(seat)
    taking.cancel()
    seat.say("a")
    await asyncio.gather(taking, return_exceptions=True)
    assert await seat.text() == "a"
    taking = await waiting(seat)
    seat.say("b")
    assert isinstance(await taking, Tokens)
    await seat.stream.close()


async def test_tokens_are_delivered_once_the_frame_after_them_is_asked_for() -> None:
    seat = Seat()
    seat.say("a")
    await seat.next()
    assert seat.tally.counts() == EdgeCounts(1, 0)
    seat.say("b")
    await seat.next()
    assert seat.tally.counts() == EdgeCounts(2, 1)
    await seat.stream.close()
    assert seat.sent() == [Cancel(1, ATTEMPT), Settle(1, ATTEMPT, EdgeCounts(2, 1))]


async def test_credit_is_given_back_in_steps_and_whole() -> None:
    seat, texts = Seat(), [letter * 3_000 for letter in "abcdefg"]
    credited: list[int] = []
    for text in texts:
        seat.say(text)
        assert await seat.text() == text
        credited.append(sum(frame.size_bytes for frame in seat.sent() if isinstance(frame, Credit)))
    # What was taken shows with the next question.
    each = held_bytes(texts[0], (7,))
    assert credited == [0, 0, 0, 3 * each, 3 * each, 3 * each, 6 * each]
    await seat.stream.close()


async def test_one_that_is_closed_is_cancelled_and_settled_once() -> None:
    seat = Seat()
    await seat.stream.close()
    await seat.stream.close()
    assert seat.sent() == [Cancel(1, ATTEMPT), Settle(1, ATTEMPT, EdgeCounts(0, 0))]
    assert seat.among.by_attempt == {}


async def test_one_that_is_closed_brings_nothing_more_not_even_to_who_waits() -> None:
    seat = Seat()
    taking = await waiting(seat)
    await seat.stream.close()
    assert await taking is None
    assert await seat.next() is None


async def test_one_that_is_closed_is_held_by_nothing() -> None:
    gc.collect()
    gc.disable()
    try:
        before = sum(type(one) is Stream for one in gc.get_objects())
        seat = Seat()
        taking = await waiting(seat)
        await seat.stream.close()
        await taking
        del seat, taking
        await asyncio.sleep(0)
        assert sum(type(one) is Stream for one in gc.get_objects()) == before
    finally:
        gc.enable()


async def test_one_that_has_ended_is_settled_and_not_cancelled() -> None:
    seat = Seat()
    seat.put(Done(1, ATTEMPT, "stop", NOTHING))
    await seat.next()
    await seat.stream.close()
    assert seat.sent() == [Settle(1, ATTEMPT, EdgeCounts(0, 0))]


async def test_one_whose_time_is_over_is_stopped_and_says_so_once() -> None:
    seat = Seat(Waits(LONG_MS, 30))
    seat.say("a")
    await seat.next()
    last = await seat.next()
    assert isinstance(last, Broken)
    assert last.code == "timeout_between_tokens"
    assert seat.sent() == [Cancel(1, ATTEMPT), Settle(1, ATTEMPT, EdgeCounts(1, 1))]
    assert await seat.next() is None


async def test_what_comes_in_time_is_waited_for_anew() -> None:
    seat = Seat(Waits(LONG_MS, 200))
    loop = asyncio.get_running_loop()
    for number in range(4):
        loop.call_later(0.08, seat.say, str(number))
        assert await seat.text() == str(number)
    await seat.stream.close()


async def test_of_several_that_wait_each_is_ended_in_its_own_time() -> None:
    among = Streams()
    seats = [Seat(Waits(wait_ms, LONG_MS), among, number) for number, wait_ms in enumerate((LONG_MS, 600, 200, 400), 1)]
    patient, *others = [await waiting(seat) for seat in seats]
    begun_us, ended = now_us(), dict[int, int]()
    for number, taking in enumerate(others, 1):
        taking.add_done_callback(lambda _, number=number: ended.setdefault(number, now_us() - begun_us))
    for last in await asyncio.gather(*others):
        assert isinstance(last, Broken)
        assert last.code == "timeout_first_token"
    await asyncio.sleep(0)
    assert list(ended) == [2, 3, 1]
    assert all(ended[number] >= wait_ms * 1000 for number, wait_ms in ((1, 600), (2, 200), (3, 400)))
    assert not patient.done()
    seats[0].say("a")
    assert isinstance(await patient, Tokens)
    await seats[0].stream.close()
    assert among.by_attempt == {}
    among.off()


async def test_a_wait_that_is_longer_than_the_timer_is_set_ahead_is_not_cut_short(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(stream, "AHEAD_US", 10_000)
    seat = Seat(Waits(100, LONG_MS))
    begun_us = now_us()
    last = await seat.next()
    assert isinstance(last, Broken)
    assert now_us() - begun_us >= 100_000
    seat.among.off()


async def test_the_time_of_who_waits_again_is_told_though_the_timer_was_off() -> None:
    seat = Seat(Waits(LONG_MS, 30))
    taking = await waiting(seat)
    seat.among.off()
    seat.say("a")
    assert isinstance(await taking, Tokens)
    last = await seat.next()
    assert isinstance(last, Broken)
    assert last.code == "timeout_between_tokens"
