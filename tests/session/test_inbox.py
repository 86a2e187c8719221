"""What waits for a tenant: in order, taken by one task, and not lost when that is cancelled."""

from __future__ import annotations

import asyncio

from node_agent.uplink.inbox import Inbox


async def test_frames_are_taken_in_the_order_in_which_they_were_put() -> None:
    inbox: Inbox[int] = Inbox()
    for number in range(3):
        inbox.put(number)
    assert len(inbox) == 3
    assert [await inbox.get(), inbox.take(), await inbox.get()] == [0, 1, 2]
    assert len(inbox) == 0


async def test_who_waits_gets_what_is_put_then() -> None:
    inbox: Inbox[int] = Inbox()
    taking = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(1)
    inbox.put(2)
    assert await taking == 1
    assert inbox.take() == 2


async def test_a_frame_outlives_whoever_waited_for_it() -> None:
    inbox: Inbox[int] = Inbox()
    taking = asyncio.create_task(inbox.get())
    await asyncio.sleep(0)
    inbox.put(1)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    inbox.put(2)
    assert [await inbox.get(), await inbox.get()] == [1, 2]


async def test_what_is_cleared_is_not_taken() -> None:
    inbox: Inbox[int] = Inbox()
    inbox.put(1)
    inbox.clear()
    inbox.put(2)
    assert await inbox.get() == 2
