"""A TCP proxy on loopback between a real link and a real intake, which resets, silences or turns away connections."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER of nothing: closing sends a reset."""
CHUNK_BYTES = 64 * 1024


class CuttingProxy:
    """Passes bytes on, until it is told otherwise."""

    def __init__(self, target_port: int) -> None:
        self.port = 0
        self.connections = 0
        """How many came, ever."""
        self._target_port = target_port
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._passing = asyncio.Event()
        self._passing.set()
        self._silenced: set[asyncio.StreamWriter] = set()

    async def start(self, port: int = 0) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        self.port = self._server.sockets[0].getsockname()[1]

    def cut(self) -> None:
        """Reset every connection there is."""
        for writer in list(self._writers):
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            writer.transport.abort()

    def silence(self) -> None:
        """Let nothing pass on the connections that there are, and leave them open."""
        self._silenced |= self._writers

    async def turn_away(self) -> None:
        """Listen no more, and reset every connection."""
        if self._server is not None:
            self._server.close()
        self.cut()

    async def close(self) -> None:
        """End everything."""
        await self.turn_away()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        self._writers.add(writer)
        try:
            other_reader, other_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            writer.transport.abort()
            return
        finally:
            self._tasks.discard(task)
        self._writers.add(other_writer)
        pipes = [
            asyncio.create_task(self._pipe(reader, other_writer)),
            asyncio.create_task(self._pipe(other_reader, writer)),
        ]
        self._tasks.update(pipes)
        try:
            await asyncio.wait(pipes, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for pipe in pipes:
                pipe.cancel()
            await asyncio.gather(*pipes, return_exceptions=True)
            self._tasks.difference_update(pipes)
            for one in (writer, other_writer):
                self._writers.discard(one)
                self._silenced.discard(one)
                one.transport.abort()

    async def _pipe(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(CHUNK_BYTES):
                if writer not in self._silenced:
                    writer.write(data)
                    await writer.drain()
