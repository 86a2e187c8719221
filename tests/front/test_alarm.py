"""One timer for many waits, on the loop that the programs run on."""

from __future__ import annotations

import asyncio

import pytest
import uvloop

from node_agent import alarm as alarms
from node_agent.alarm import Alarm

SOON_S = 0.0001
"""Less than half a millisecond: uvloop takes such a time for one that has come."""


async def test_a_wait_after_one_whose_time_has_come_is_bounded_by_its_own() -> None:
    alarm = Alarm()
    try:
        with pytest.raises(TimeoutError):
            await alarm.wait(asyncio.sleep(10), 0.01)
        assert await alarm.wait(asyncio.sleep(0.02, "late enough"), 1.0) == "late enough"
        with pytest.raises(TimeoutError):
            await alarm.wait(asyncio.sleep(10), 0.01)
    finally:
        alarm.off()


async def test_a_wait_beyond_what_the_timer_is_set_ahead_is_bounded_by_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(alarms, "AHEAD_S", 0.01)
    loop = asyncio.get_running_loop()
    alarm = Alarm()
    try:
        assert await alarm.wait(asyncio.sleep(0.03, "in time"), 1.0) == "in time"
        await asyncio.sleep(0.03)  # it rings while nobody waits
        begun_s = loop.time()
        with pytest.raises(TimeoutError):
            await alarm.wait(asyncio.sleep(10), 0.05)
        assert 0.04 < loop.time() - begun_s < 1.0
    finally:
        alarm.off()


def test_what_is_ready_in_the_last_moment_does_not_spoil_the_next_wait() -> None:
    async def waits() -> None:
        alarm = Alarm()
        try:
            assert await alarm.wait(_at_once(), SOON_S) == "at once"  # its timer is still to ring
            assert await alarm.wait(asyncio.sleep(0.01, "next"), 1.0) == "next"
            assert await alarm.wait(_at_once(), SOON_S) == "at once"
            assert await alarm.wait(_at_once(), SOON_S / 2) == "at once"
            with pytest.raises(TimeoutError):
                await alarm.wait(asyncio.sleep(10), 0.01)
        finally:
            alarm.off()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(waits())


async def _at_once() -> str:
    """Ready without a turn of the loop: what takes one may be late by right where the machine is slow."""
    return "at once"
