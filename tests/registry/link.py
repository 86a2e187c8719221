"""A TCP link on loopback that a test can cut and slow."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from types import TracebackType
from typing import Self

CHUNK_BYTES = 64 << 10
BROKEN = (OSError, asyncio.IncompleteReadError)


class Link:
    """Forwards a port of its own to a port of 127.0.0.1."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._server: asyncio.Server | None = None
        self._pairs: set[asyncio.Task[None]] = set()
        self.whole = True
        """Whether connections are forwarded. Set by `cut` and `mend`."""
        self.bytes_per_s: float | None = None
        """The most that is sent to the client, or None."""

    @property
    def url(self) -> str:
        """The endpoint on this side of the link."""
        if self._server is None:
            raise RuntimeError("the link is not open")
        return f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        await self.cut()

    async def cut(self) -> None:
        """Drop every connection and everything in flight; refuse new ones."""
        self.whole = False
        for pair in list(self._pairs):
            pair.cancel()
        await asyncio.gather(*self._pairs, return_exceptions=True)

    def mend(self) -> None:
        """Accept connections again."""
        self.whole = True

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self.whole:
            writer.transport.abort()
            return
        pair = asyncio.create_task(self._forward(reader, writer))
        self._pairs.add(pair)
        pair.add_done_callback(self._pairs.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(*BROKEN):
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
            pumps = [
                asyncio.create_task(self._pump(reader, far_writer, slowed=False)),
                asyncio.create_task(self._pump(far_reader, writer, slowed=True)),
            ]
            try:
                await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for pump in pumps:
                    pump.cancel()
                await asyncio.gather(*pumps, return_exceptions=True)
                far_writer.transport.abort()
                writer.transport.abort()
        writer.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slowed: bool) -> None:
        with suppress(*BROKEN):
            while data := await reader.read(CHUNK_BYTES):
                if slowed and self.bytes_per_s is not None:
                    await asyncio.sleep(len(data) / self.bytes_per_s)
                writer.write(data)
                await writer.drain()
