"""How much of what was written a client has not taken yet, and how much it must take to be waited for."""

from __future__ import annotations

import asyncio
import fcntl
import struct
import termios

TAKEN_BYTES_MIN = 16 * 1024
"""Whoever takes less within the time for a write is left. A client may be slow: what it must not do is stand still."""

_COUNT = struct.Struct("i")
_ROOM = bytes(_COUNT.size)


def untaken_bytes(transport: asyncio.Transport) -> int:
    """Return the bytes that wait here, and those that the system has and the client's system has not.

    What waits here falls only in large steps: the system asks for more once a third of what it may hold is free.
    """
    here = transport.get_write_buffer_size()
    if transport.is_closing():
        return here
    number: int = transport.get_extra_info("socket").fileno()
    (sending,) = _COUNT.unpack(fcntl.ioctl(number, termios.TIOCOUTQ, _ROOM))
    return here + int(sending)
