"""Many streams at once, timed by a client of ours: wrk knows nothing of a first token, a stall or a slow reader."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter_ns
from typing import cast

from benchmarks.figures import percentile
from benchmarks.path.ask import Ask, WrongAnswer, check

CONNECTED_AT_ONCE = 64
SLOW_RECEIVE_BYTES = 4_096
"""Of the kernel's buffer of a slow reader: what the tenant's side holds is not memory of ours."""
SLOW_READ_BYTES = 256
_TOKEN = b" tok"
_BEGUN = b"HTTP/1.1 200"


@dataclass(slots=True)
class Stream:
    """One answer as it arrived, in nanoseconds."""

    begun_ns: int = 0
    first_ns: int = 0
    last_ns: int = 0
    gaps_ns: list[int] = field(default_factory=list)
    """Between the arrivals of two tokens; those that arrive together have one gap."""
    received: bytearray = field(default_factory=bytearray)


class _Reader(asyncio.Protocol):
    def __init__(self, request: bytes) -> None:
        self.stream = Stream()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._request = request
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def ask(self) -> None:
        """Send the request."""
        self.stream.begun_ns = perf_counter_ns()
        if self._transport is not None:
            self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        now_ns = perf_counter_ns()
        stream = self.stream
        stream.received += data
        if _TOKEN not in data:
            return
        if not stream.first_ns:
            stream.first_ns = now_ns
        else:
            stream.gaps_ns.append(now_ns - stream.last_ns)
        stream.last_ns = now_ns

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def abort(self) -> None:
        """Give the answer up."""
        if self._transport is not None:
            self._transport.abort()


async def streamed(asks: Sequence[Ask], tokens: int, limit_s: float, ramp_s: float = 0.0) -> list[Stream]:
    """Send every request, each on a connection of its own, and check every answer to its last token.

    They begin together, or spread over `ramp_s`. Raises WrongAnswer and OSError.
    """
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(CONNECTED_AT_ONCE)

    async def connected(ask: Ask) -> _Reader:
        async with gate:
            _, reader = await loop.create_connection(lambda: _Reader(ask.raw("close")), ask.host, ask.port)
        return reader

    readers = await asyncio.gather(*(connected(ask) for ask in asks))
    for number, reader in enumerate(readers):
        loop.call_later(ramp_s * number / len(readers), reader.ask)
    try:
        async with asyncio.timeout(limit_s):
            await asyncio.gather(*(reader.ended for reader in readers))
    except TimeoutError:
        missing = sum(not reader.ended.done() for reader in readers)
        raise WrongAnswer(f"{missing} of {len(readers)} streams did not end within {limit_s:.0f} s") from None
    finally:
        for reader in readers:
            reader.abort()
    wrong = [problem for reader in readers if (problem := _problem(reader.stream, tokens)) is not None]
    if wrong:
        raise WrongAnswer(f"{len(wrong)} of {len(readers)} answers are wrong, the first: {wrong[0]}")
    return [reader.stream for reader in readers]


class SlowReaders:
    """Connections whose readers take next to nothing. Used as an async context manager."""

    def __init__(self, asks: Sequence[Ask], bytes_per_s: int) -> None:
        """`bytes_per_s` of 0 reads nothing at all."""
        self._asks = asks
        self._bytes_per_s = bytes_per_s
        self._sockets: list[socket.socket] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._sipped: dict[socket.socket, bytes] = {}

    def begun(self) -> int:
        """Return how many answers have begun well."""
        return sum(self._first(made) == _BEGUN for made in self._sockets)

    def _first(self, made: socket.socket) -> bytes:
        try:
            return self._sipped.get(made) or made.recv(len(_BEGUN), socket.MSG_PEEK)
        except OSError:
            return b""

    async def __aenter__(self) -> SlowReaders:
        loop = asyncio.get_running_loop()
        for ask in self._asks:
            made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
            made.setblocking(False)
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_RECEIVE_BYTES)
            self._sockets.append(made)
            await loop.sock_connect(made, (ask.host, ask.port))
            await loop.sock_sendall(made, ask.raw("close"))
            if self._bytes_per_s:
                self._tasks.append(asyncio.create_task(self._sip(made)))
        return self

    async def __aexit__(self, *failure: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for made in self._sockets:
            made.close()

    async def _sip(self, made: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        with contextlib.suppress(OSError):
            while data := await loop.sock_recv(made, self._bytes_per_s):
                self._sipped.setdefault(made, data[: len(_BEGUN)])
                await asyncio.sleep(1.0)


def figures(streams: Sequence[Stream]) -> dict[str, float]:
    """Return what streams came to: first token, stalls, and tokens arrived per second's worth of time. Pure."""
    first = [(one.first_ns - one.begun_ns) / 1e6 for one in streams]
    gaps = [gap / 1e6 for one in streams for gap in one.gaps_ns] or [0.0]
    worst = [max(one.gaps_ns, default=0) / 1e6 for one in streams]
    return {
        "first_p50_ms": percentile(first, 50),
        "first_p99_ms": percentile(first, 99),
        "gap_p50_ms": percentile(gaps, 50),
        "gap_p99_ms": percentile(gaps, 99),
        "worst_gap_p99_ms": percentile(worst, 99),
        "took_ms": (max(one.last_ns for one in streams) - min(one.begun_ns for one in streams)) / 1e6,
    }


def _problem(stream: Stream, tokens: int) -> str | None:
    try:
        check(bytes(stream.received), tokens)
    except WrongAnswer as error:
        return str(error)
    return None
