"""The real front on loopback with a gate that answers at once, for a client that tries everything (`make fuzz`).

Says its port and an API key in one line, and serves until its standard input ends.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path

import uvloop

from tests.front.room import ACME, done, room_in, saying, tokens


async def serve() -> None:
    """Serve until nobody holds the other end of our input."""
    with tempfile.TemporaryDirectory() as folder:
        answers = saying(tokens("Good "), tokens("morning", 1), done())
        async with room_in(Path(folder), answers, body_bytes_max=1 << 20) as room:
            print(room.server.port, ACME.text(), flush=True)
            await asyncio.to_thread(sys.stdin.read)
            print(f"{len(room.gate.asked)} requests were let through", flush=True)


if __name__ == "__main__":
    uvloop.run(serve())
