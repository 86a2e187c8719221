"""An engine whose reply has ended and whose framing has not takes no time and no memory of ours."""

from __future__ import annotations

import asyncio

from orchestrator.engines.generation import Failed
from tests.engines.test_hostile_engines import GENERATION, Server, engine_at, failure, serving


async def endless_trailer(server: Server, writer: asyncio.StreamWriter) -> None:
    """What follows a reply whose body has ended goes on for good."""
    head = b"400 No" if b"chat" in server.requests[-1][0] else b"200 OK"
    writer.write(b"HTTP/1.1 " + head + b"\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nx: ")
    while True:
        writer.write(b"y" * 65_536)
        server.sent_bytes += 65_536
        await writer.drain()


async def test_a_trailer_without_end_is_not_taken_in() -> None:
    async with serving(endless_trailer) as server, engine_at(server.port) as engine:
        begun = asyncio.get_running_loop().time()
        assert failure([event async for event in engine.generate(GENERATION)]) == "bad_generation"
        assert isinstance(await engine.fetch("/models", deadline_ms=2_000), Failed)
        assert asyncio.get_running_loop().time() - begun < 1.5
        assert server.sent_bytes < 20_000_000  # most of it lies in sockets
