"""What waits for a tenant: in order, taken by one task, and not lost when that is cancelled."""

from __future__ import annotations

import asyncio

from node_agent.uplink.inbox import Inbox


async def first(inbox: Inbox[int]) -> int:
    """Take the first frame, once there is one."""
    while not inbox.frames:
        await inbox.more()
    return inbox.frames.pop(0)


def empty() -> Inbox[int]:
    return Inbox(asyncio.get_running_loop())


async def test_frames_are_taken_in_the_order_in_which_they_were_put() -> None:
    inbox = empty()
    for number in range(3):
        inbox.put(number)
    assert [await first(inbox), await first(inbox), await first(inbox)] == [0, 1, 2]
    assert not inbox.frames


async def test_who_waits_gets_what_is_put_then() -> None:
    inbox = empty()
    taking = asyncio.create_task(first(inbox))
    await asyncio.sleep(0)
    inbox.put(1)
    inbox.put(2)
    assert await taking == 1
    assert inbox.frames == [2]


async def test_a_frame_outlives_whoever_waited_for_it() -> None:
    inbox = empty()
    taking = asyncio.create_task(first(inbox))
    await asyncio.sleep(0)
    inbox.put(1)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    inbox.put(2)
    assert [await first(inbox), await first(inbox)] == [1, 2]


async def test_who_waits_again_after_it_was_cancelled_is_woken() -> None:
    inbox = empty()
    taking = asyncio.create_task(first(inbox))
    await asyncio.sleep(0)
    taking.cancel()
    await asyncio.gather(taking, return_exceptions=True)
    taking = asyncio.create_task(first(inbox))
    await asyncio.sleep(0)
    inbox.put(1)
    assert await taking == 1
