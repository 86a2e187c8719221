"""When messages leave: a burst at once, a steady crowd at an even pace, and what nobody waits for with the others."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.wire.outbox import Outbox
from orchestrator.wire.pace import BURST, GATHER_US, MESSAGE_US, RIDE_US, Haste, Pace

LONG_S = 5.0


def test_a_session_that_is_not_busy_is_never_held_up() -> None:
    pace = Pace()
    for now_us in (7, 1_000_000, 1_000_300, 1_000_600, 2_000_000):
        assert pace.at_us(Haste.NOW, now_us) == now_us
        pace.left(now_us)


@given(st.lists(st.integers(0, 3_000), min_size=1, max_size=200))
def test_what_somebody_waits_for_waits_for_no_more_than_one_message_and_no_crowd_is_faster(gaps_us: list[int]) -> None:
    pace, now_us, left_us = Pace(), 1_000_000, list[int]()
    for gap_us in gaps_us:
        now_us += gap_us
        at_us = pace.at_us(Haste.NOW, now_us)
        assert now_us <= at_us <= now_us + MESSAGE_US
        now_us = at_us
        pace.left(now_us)
        left_us.append(now_us)
    for at, first_us in enumerate(left_us):
        # In any span: a burst, and one message for each interval of it.
        many = sum(1 for other_us in left_us[at:] if other_us <= first_us + 20 * MESSAGE_US)
        assert many <= BURST + 20


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_later_tokens_gather_for_a_moment_after_a_message_and_not_at_all_after_a_pause(left: int, passed: int) -> None:
    pace = Pace()
    pace.left(1_000_000 + left)
    now_us = 1_000_000 + left + passed
    assert pace.at_us(Haste.GATHER, now_us) == max(now_us, 1_000_000 + left + GATHER_US)


@given(st.integers(0, 10_000_000))
def test_what_nobody_waits_for_leaves_after_a_moment_by_itself(now_us: int) -> None:
    assert Pace().at_us(Haste.RIDE, now_us) == now_us + RIDE_US


@given(
    st.lists(st.integers(0, 3_000), max_size=30),
    st.lists(st.tuples(st.sampled_from(Haste), st.integers(0, 12_000)), min_size=2, max_size=2),
)
def test_nothing_leaves_before_what_came_before_with_as_much_haste(
    gaps_us: list[int], asked: list[tuple[Haste, int]]
) -> None:
    pace, now_us = Pace(), 1_000_000
    for gap_us in gaps_us:
        now_us = pace.at_us(Haste.NOW, now_us + gap_us)
        pace.left(now_us)
    (haste, wait_us), (other, later_us) = asked
    at_us = pace.at_us(haste, now_us + wait_us)
    if other >= haste:
        assert pace.at_us(other, now_us + wait_us + later_us) >= at_us


async def taken(outbox: Outbox[str]) -> list[str]:
    async with asyncio.timeout(LONG_S):
        await outbox.due()
    return outbox.take()


@pytest.mark.asyncio
async def test_a_settlement_rides_with_the_next_request() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.put("settle", Haste.RIDE)
    outbox.put("open", Haste.NOW)
    assert await taken(outbox) == ["settle", "open"]
    assert not outbox.frames


@pytest.mark.asyncio
async def test_a_settlement_that_nothing_follows_leaves_all_the_same() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.put("settle", Haste.RIDE)
    assert await taken(outbox) == ["settle"]


@pytest.mark.asyncio
async def test_more_than_a_burst_leaves_in_fewer_messages_and_in_order() -> None:
    outbox: Outbox[str] = Outbox()
    messages: list[list[str]] = []

    async def write() -> None:
        while sum(map(len, messages)) < 400:
            messages.append(await taken(outbox))

    writer = asyncio.create_task(write())
    for number in range(400):
        outbox.put(str(number), Haste.NOW)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    await writer
    assert [frame for message in messages for frame in message] == [str(number) for number in range(400)]
    assert len(messages) < 200


@pytest.mark.asyncio
async def test_what_is_dropped_with_its_transport_does_not_leave() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.put("settle", Haste.RIDE)
    assert outbox.drop() == ["settle"]
    outbox.put("hello", Haste.NOW)
    assert await taken(outbox) == ["hello"]


@pytest.mark.asyncio
async def test_more_haste_makes_what_waits_leave_sooner_and_less_holds_nothing_up() -> None:
    outbox: Outbox[str] = Outbox()
    for name, haste in (("settle", Haste.RIDE), ("open", Haste.NOW), ("credit", Haste.RIDE), ("cancel", Haste.NOW)):
        outbox.put(name, haste)
    leaving = asyncio.create_task(outbox.due())
    await asyncio.sleep(0)
    assert leaving.done(), "what somebody waits for leaves at once"
    assert outbox.take() == ["settle", "open", "credit", "cancel"]
    outbox.put("token", Haste.GATHER)
    outbox.put("token", Haste.GATHER)
    assert await taken(outbox) == ["token", "token"]


@pytest.mark.asyncio
async def test_what_is_hurried_and_dropped_lets_its_task_go_on_once() -> None:
    outbox: Outbox[str] = Outbox()
    outbox.put("settle", Haste.RIDE)
    outbox.hurry()
    assert outbox.drop() == ["settle"]
    outbox.put("hello", Haste.RIDE)
    assert await taken(outbox) == ["hello"]
    outbox.put("settle", Haste.RIDE)
    assert await taken(outbox) == ["settle"]


@pytest.mark.asyncio
async def test_a_task_that_was_cancelled_while_it_waited_keeps_nothing_from_the_next() -> None:
    outbox: Outbox[str] = Outbox()
    for put_while_cancelled in (True, False):
        waiting = asyncio.create_task(outbox.due())
        await asyncio.sleep(0)
        waiting.cancel()
        if put_while_cancelled:
            outbox.put("open", Haste.NOW)
        await asyncio.gather(waiting, return_exceptions=True)
        if not put_while_cancelled:
            outbox.put("open", Haste.NOW)
        assert await taken(outbox) == ["open"]
