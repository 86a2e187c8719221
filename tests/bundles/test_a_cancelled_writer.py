"""A writer that is told to stop stops, even when its message leaves at that very moment."""

from __future__ import annotations

import asyncio

import pytest

from orchestrator.bundles.streams import MessageStream, StreamEnded


class Call:
    """A call whose writes end when the test says so."""

    def __init__(self) -> None:
        self.gate = asyncio.Event()
        self.written = 0

    async def write(self, message: object) -> None:
        await self.gate.wait()
        self.written += 1

    def cancel(self) -> None:
        pass


@pytest.mark.parametrize("turns", range(4))
async def test_a_cancellation_is_never_lost_while_a_message_is_written(turns: int) -> None:
    call = Call()
    stream: MessageStream[object, object] = MessageStream(call)  # type: ignore[arg-type]

    async def write_on() -> None:
        while True:
            await stream.write(object(), 10)
            call.gate.clear()

    writer = asyncio.create_task(write_on())
    await asyncio.sleep(0.01)
    call.gate.set()
    for _ in range(turns):
        await asyncio.sleep(0)
    writer.cancel()
    done, _ = await asyncio.wait({writer}, timeout=1)
    writer.cancel()
    assert done == {writer}, "the cancellation was dropped"
    assert writer.cancelled()


async def test_a_message_that_does_not_leave_in_time_ends_the_stream() -> None:
    stream: MessageStream[object, object] = MessageStream(Call())  # type: ignore[arg-type]
    with pytest.raises(StreamEnded, match="in time"):
        await stream.write(object(), 0.01)
