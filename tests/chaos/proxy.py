"""A TCP proxy that does harm, in this process: the link between the edges and one intake.

The words are those of toxiproxy. What is set holds for the connections that stand and for those that come:

* `latency_ms`, `jitter_ms`: each chunk is late by this much, in each direction; order is kept.
* `kb_per_s`: bandwidth in each direction; 0 is no bound.
* `hold_up`, `hold_down`: bytes towards the intake, or back, are not passed on; they are once it heals. Both is a black
  hole: new connections are accepted, and nothing answers.
* `refuse`: new connections are reset at once.
* `reset()`, `close()`: end every connection, by RST or in order.

What a sender writes waits in the proxy up to a bound, then in the sender's kernel. It looks for words in what passes,
so that a payload that crossed is seen wherever it crossed.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

CHUNK_BYTES = 64 * 1024
CONNECT_S = 5.0
IN_FLIGHT_MAX = 256
"""Chunks on the way per direction and connection."""


@dataclass(frozen=True, slots=True)
class Toxics:
    """What is wrong with the link."""

    latency_ms: float = 0.0
    jitter_ms: float = 0.0
    kb_per_s: float = 0.0
    hold_up: bool = False
    hold_down: bool = False
    refuse: bool = False

    @property
    def passes_at_once(self) -> bool:
        """Whether bytes need not wait."""
        return not (self.latency_ms or self.jitter_ms or self.kb_per_s)


HEALTHY = Toxics()


class Proxy:
    """One listening port, one target. Lives in one running event loop."""

    def __init__(self, port: int, target_port: int, watched: Sequence[bytes] = (), seed: int = 0) -> None:
        self.port = port
        self.toxics = HEALTHY
        self.seen: Counter[bytes] = Counter()
        """How often each watched word passed, in either direction."""
        self.connections = 0
        """Connections that were accepted so far."""
        self._target_port = target_port
        self._watched = tuple(watched)
        self._chance = random.Random(seed)
        self._changed = asyncio.Event()
        self._links: dict[asyncio.Task[None], tuple[asyncio.StreamWriter, ...]] = {}
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises OSError."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port, limit=CHUNK_BYTES)

    async def stop(self) -> None:
        """Stop listening and end every connection."""
        if self._server is not None:
            self._server.close()
        self.reset()
        tasks = list(self._links)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def set(self, toxics: Toxics) -> None:
        """Change what is wrong, from now on."""
        self.toxics = toxics
        self._changed.set()
        self._changed = asyncio.Event()

    def reset(self) -> int:
        """End every connection with RST, and return how many there were."""
        links = list(self._links.values())
        for writers in links:
            for writer in writers:
                made: socket.socket | None = writer.get_extra_info("socket")
                with contextlib.suppress(OSError):
                    if made is not None:
                        made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                writer.transport.abort()
        return len(links)

    def close(self) -> int:
        """End every connection in order, and return how many there were."""
        links = list(self._links.values())
        for writers in links:
            for writer in writers:
                writer.close()
        return len(links)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None:
            return
        self.connections += 1
        self._links[task] = (writer,)
        try:
            await self._carry(reader, writer, task)
        except asyncio.CancelledError:
            return  # the proxy stops; a callback of the server has nobody to tell
        finally:
            for one in self._links.pop(task):
                one.transport.abort()

    async def _carry(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, task: asyncio.Task[None]
    ) -> None:
        if self.toxics.refuse:
            self._abort(writer)
            return
        try:
            async with asyncio.timeout(CONNECT_S):
                far_reader, far_writer = await asyncio.open_connection(
                    "127.0.0.1", self._target_port, limit=CHUNK_BYTES
                )
        except (OSError, TimeoutError):
            self._abort(writer)
            return
        self._links[task] = (writer, far_writer)
        ways = [
            asyncio.create_task(self._way(reader, far_writer, up=True)),
            asyncio.create_task(self._way(far_reader, writer, up=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)

    def _abort(self, writer: asyncio.StreamWriter) -> None:
        made: socket.socket | None = writer.get_extra_info("socket")
        with contextlib.suppress(OSError):
            if made is not None:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()

    async def _way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, up: bool) -> None:
        """Carry one direction until its end. A broken end ends both."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(IN_FLIGHT_MAX)
        sender = asyncio.create_task(self._send(queue, writer, up=up))
        tail = b""
        loop = asyncio.get_running_loop()
        due = 0.0
        try:
            while data := await reader.read(CHUNK_BYTES):
                tail = self._look(tail, data)
                toxics = self.toxics
                late_s = (toxics.latency_ms + toxics.jitter_ms * self._chance.random()) / 1000
                due = max(due, loop.time() + late_s)
                await queue.put((due, data))
            await queue.put((due, b""))
            await sender
        finally:
            sender.cancel()
            await asyncio.gather(sender, return_exceptions=True)

    async def _send(
        self, queue: asyncio.Queue[tuple[float, bytes]], writer: asyncio.StreamWriter, *, up: bool
    ) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            if due > loop.time():
                await asyncio.sleep(due - loop.time())
            while self.toxics.hold_up if up else self.toxics.hold_down:
                await self._changed.wait()
            if not data:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            if self.toxics.kb_per_s:
                await asyncio.sleep(len(data) / 1000 / self.toxics.kb_per_s)
            writer.write(data)
            await writer.drain()

    def _look(self, tail: bytes, data: bytes) -> bytes:
        """Count watched words, also those that are spread over two chunks. Returns what the next chunk may complete."""
        whole = tail + data
        for word in self._watched:
            self.seen[word] += whole.count(word) - tail.count(word)
        keep = max((len(word) for word in self._watched), default=1) - 1
        return whole[-keep:] if keep else b""
