"""The work for a request ends with the interest in it, and a cancellation from elsewhere stays one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from node_agent.front.interest import Gone, Interest


class Wire:
    """As much of a client as an interest watches."""

    def __init__(self) -> None:
        self.task = asyncio.current_task()
        self.gone = False
        self.left: Callable[[], None] | None = None

    def hang_up(self) -> None:
        self.gone = True
        left, self.left = self.left, None
        if left is not None:
            left()


async def test_hanging_up_ends_every_wait_and_leaves_no_trace() -> None:
    wire = Wire()
    asyncio.get_running_loop().call_later(0.02, wire.hang_up)
    with pytest.raises(Gone):
        with Interest(wire) as interest:
            interest.watch()
            await asyncio.sleep(10)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    # A bound on a later wait works as before.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(10)


async def test_the_first_reason_stands_and_one_that_is_late_does_nothing() -> None:
    wire = Wire()
    with pytest.raises(LookupError):
        with Interest(wire) as interest:
            interest.watch()
            interest.interrupt(LookupError())
            interest.interrupt(ArithmeticError())
            await asyncio.sleep(10)
    interest.interrupt(ArithmeticError())
    await asyncio.sleep(0.01)


async def test_work_that_ends_in_time_is_not_disturbed() -> None:
    wire = Wire()
    with Interest(wire) as interest:
        interest.watch()
        await asyncio.sleep(0.01)
        assert wire.left is not None
    assert wire.left is None


async def test_one_who_left_before_it_was_looked_for_ends_the_next_wait() -> None:
    wire = Wire()
    wire.hang_up()
    waited = False
    with pytest.raises(Gone):
        with Interest(wire) as interest:
            interest.watch()
            waited = True
            await asyncio.sleep(10)
    assert waited


async def test_one_who_left_as_the_work_ended_ends_nothing_else() -> None:
    wire = Wire()
    wire.hang_up()
    with Interest(wire) as interest:
        interest.watch()
    await asyncio.sleep(0.01)
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_an_error_of_the_work_is_not_replaced() -> None:
    wire = Wire()
    with pytest.raises(ArithmeticError):
        with Interest(wire) as interest:
            try:
                interest.interrupt(LookupError())
                await asyncio.sleep(10)
            finally:
                raise ArithmeticError


async def test_a_cancellation_from_elsewhere_is_not_swallowed() -> None:
    wire = Wire()
    entered = asyncio.Event()

    async def work() -> None:
        wire.task = asyncio.current_task()
        with Interest(wire) as interest:
            interest.watch()
            entered.set()
            await asyncio.sleep(10)

    both = asyncio.create_task(work())
    await entered.wait()
    both.cancel()
    wire.hang_up()
    with pytest.raises(asyncio.CancelledError):
        await both
