"""One bidirectional call, read and written with deadlines. Whatever ends it becomes one error of ours."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Generic, TypeVar

import grpc

Out = TypeVar("Out")
In = TypeVar("In")
Answer = TypeVar("Answer")

CLOSE_S = 1.0


class StreamEnded(Exception):
    """A call is of no more use. Its text is a gRPC code by name, or a few words of ours."""


class MessageStream(Generic[Out, In]):
    """The client's end of a bidirectional call. One task reads, one writes."""

    def __init__(self, call: grpc.aio.StreamStreamCall[Out, In]) -> None:
        self._call = call
        self._reading: asyncio.Task[object] | None = None

    async def write(self, message: Out, timeout_s: float) -> None:
        """Send one message. Raises StreamEnded."""
        try:
            # Not `wait_for`: in Python 3.11 it drops a cancellation that comes just when the write is done, and who
            # waits for the writer's end then waits for ever.
            async with asyncio.timeout(timeout_s):
                await self._call.write(message)
        except TimeoutError:
            raise StreamEnded("a message could not be sent in time") from None
        except grpc.aio.AioRpcError as error:
            raise StreamEnded(error.code().name) from None
        except asyncio.InvalidStateError:
            raise StreamEnded("the stream was ended") from None

    async def read(self, timeout_s: float) -> In:
        """Return the next message. Raises StreamEnded, also when none came in time."""
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
        await asyncio.wait((self._reading,), timeout=timeout_s)
        if not self._reading.done():
            raise StreamEnded("the other end is silent")
        reading, self._reading = self._reading, None
        # gRPC raises CancelledError for some ends of a call. Let through, it would end our task as if asked to.
        if reading.cancelled():
            raise StreamEnded("the stream was ended")
        error = reading.exception()
        if isinstance(error, grpc.aio.AioRpcError):
            raise StreamEnded(error.code().name)
        message = reading.result()
        if message is grpc.aio.EOF:
            raise StreamEnded("the stream was ended")
        return message  # type: ignore[return-value]

    async def _read(self) -> object:
        return await self._call.read()

    async def close(self) -> None:
        """End the call. Raises nothing; may be called again."""
        # The reader first: a call that is cancelled under its reader leaks.
        reading, self._reading = self._reading, None
        try:
            if reading is not None:
                reading.cancel()
                # Bounded: on a busy machine gRPC was seen to keep a cancelled read until its call was cancelled too.
                await asyncio.wait({reading}, timeout=CLOSE_S)
        finally:
            self._call.cancel()


async def in_thread(work: Callable[[], Answer]) -> Answer:
    """Return what `work` returns, run in a thread. When cancelled, wait for its end: nothing acts behind our back."""
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.gather(task, return_exceptions=True)
        raise
