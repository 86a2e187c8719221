"""The line between the watch and one of its processes: a pair of local sockets, a line of JSON for each message.

The process has its end as its standard input: nothing is named, listens or can be connected to from anywhere else.
"""

from __future__ import annotations

import asyncio
import os
import socket
from contextlib import ExitStack
from typing import Generic, TypeVar

import msgspec

LINE_BYTES_MAX = 1 << 18
UNREAD_BYTES_MAX = 1 << 16
"""When so much waits for the other end to read, no more is sent: a later message says all that an earlier one did."""

T = TypeVar("T", bound=msgspec.Struct)


class Line(Generic[T]):
    """One end of a line, on which messages of the type `T` arrive."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, type_: type[T]) -> None:
        self._reader = reader
        self._transport = writer.transport
        self._writer = writer
        self._decoder = msgspec.json.Decoder(type_)

    def send(self, message: msgspec.Struct) -> None:
        """Send a message, if the other end reads. Never waits."""
        if not self._transport.is_closing() and self._transport.get_write_buffer_size() <= UNREAD_BYTES_MAX:
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def received(self) -> T | None:
        """Return the next message, or None at the end of the line, which is also where something else is said."""
        try:
            return self._decoder.decode(await self._reader.readuntil(b"\n"))
        except (OSError, EOFError, asyncio.LimitOverrunError, msgspec.MsgspecError):
            return None

    def close(self) -> None:
        """End the line."""
        self._transport.abort()


async def opened(end: socket.socket, type_: type[T]) -> Line[T]:
    """Return the line whose end is `end`, which is the line's from now on. Raises OSError."""
    with ExitStack() as failing:
        failing.enter_context(end)
        reader, writer = await asyncio.open_unix_connection(sock=end, limit=LINE_BYTES_MAX)
        failing.pop_all()
    return Line(reader, writer, type_)


def own_end() -> socket.socket:
    """Return the end that the watch gave this process, which then has no input. Raises OSError where that is no socket.

    The line ends when this is closed: nothing else of this process, and no child of it, holds the end.
    """
    end = socket.fromfd(0, socket.AF_UNIX, socket.SOCK_STREAM)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.close(nothing)
    return end
