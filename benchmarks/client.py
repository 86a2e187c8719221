"""A client that times a streamed answer and reads no more of it than that takes. The same one for every path.

It takes the time of the events with text as they arrive, of which one may hold several tokens, and counts tokens by the
usage that it asked for. It checks the status, that the answer ends with `[DONE]`, and nothing else.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter_ns
from types import TracebackType
from typing import Self, cast

ANSWER_S = 60.0
"""The longest that one answer may take."""
CONNECT_S = 5.0
HEAD_BYTES_MAX = 64 * 1024
ERROR_BYTES_MAX = 64 * 1024
SETTLE_S = 0.002
"""A new connection rests this long before its first request, so that no path is charged for the accept."""

_END_OF_HEAD = b"\r\n\r\n"
_END_OF_BODY = b"0\r\n\r\n"
_TEXT = b'"content":"'
_NO_TEXT = b'"content":""'
_USAGE = re.compile(rb'"completion_tokens":([0-9]{1,9})')
_DONE = b"data: [DONE]\n\n"


class AnswerError(Exception):
    """An answer was not what the benchmark needs: another status, cut, or too late."""


@dataclass(frozen=True, slots=True)
class Target:
    """Where requests go, and the request itself. Its repr shows no header: one of them is a key."""

    host: str
    port: int
    request: bytes
    keeps_connection: bool
    """Whether the next request may use the same connection. llama.cpp closes it after a stream without a word."""

    def __repr__(self) -> str:
        return f"Target({self.host}:{self.port})"


@dataclass(frozen=True, slots=True)
class Timed:
    """One answer, in nanoseconds from the moment the request was written."""

    first_ns: int
    """To the first token."""
    last_ns: int
    """To the last token."""
    done_ns: int
    """To `[DONE]`."""
    tokens: int

    @property
    def between_ns(self) -> float:
        """The mean time between two tokens."""
        return (self.last_ns - self.first_ns) / max(1, self.tokens - 1)


def post(path: str, host: str, body: bytes, headers: Mapping[str, str]) -> bytes:
    """Return the bytes of one POST of JSON."""
    lines = [f"POST {path} HTTP/1.1", f"host: {host}", "content-type: application/json", "accept: text/event-stream"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    lines += [f"content-length: {len(body)}", "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


class _Reader(asyncio.Protocol):
    """Reads one answer at a time on one connection."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport | None = None
        self._waiting: asyncio.Future[Timed] | None = None
        self._rest = b""
        self._status = 0
        self._tokens = 0
        self._begun_ns = self._first_ns = self._last_ns = self._done_ns = 0

    @property
    def open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def ask(self, request: bytes) -> asyncio.Future[Timed]:
        """Write a request and return what its answer becomes."""
        self._reset()
        self._waiting = asyncio.get_running_loop().create_future()
        if self._transport is None:
            self._fail("the connection was closed before the request")
            return self._waiting
        self._begun_ns = perf_counter_ns()
        self._transport.write(request)
        return self._waiting

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports are none of asyncio's classes, and do all that these do.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self._status == 200 and self._done_ns:
            self._finish()
        else:
            what = "the connection was closed in the middle of the answer"
            self._fail((f"HTTP {self._status}" if self._status not in (0, 200) else what) + self._error_text())

    def data_received(self, data: bytes) -> None:
        now_ns = perf_counter_ns()
        received = self._rest + data
        if not self._status:
            end = received.find(_END_OF_HEAD)
            if end < 0:
                self._rest = received[:HEAD_BYTES_MAX]
                return
            self._status = int(received[9:12])
            received = received[end + len(_END_OF_HEAD) :]
        if self._status != 200:
            self._rest = received[:ERROR_BYTES_MAX]
            if received.endswith(b"}"):
                self._fail(f"HTTP {self._status}" + self._error_text())
                self.close()
            return
        self._read(received, now_ns)

    def _read(self, received: bytes, now_ns: int) -> None:
        whole = received.rfind(b"\n\n") + 2
        if whole < 2:
            self._rest = received
        else:
            if received.count(_TEXT, 0, whole) > received.count(_NO_TEXT, 0, whole):
                self._first_ns = self._first_ns or now_ns
                self._last_ns = now_ns
            if (told := _USAGE.search(received, 0, whole)) is not None:
                self._tokens = int(told[1])
            if not self._done_ns and received.rfind(_DONE, 0, whole) >= 0:
                self._done_ns = now_ns
            self._rest = received[whole:]
        if self._done_ns and self._rest.endswith(_END_OF_BODY):
            self._finish()

    def _reset(self) -> None:
        self._rest = b""
        self._status = self._tokens = 0
        self._begun_ns = self._first_ns = self._last_ns = self._done_ns = 0

    def _finish(self) -> None:
        if self._waiting is None or self._waiting.done():
            return
        if not self._tokens:
            self._fail("the answer has no token")
            return
        begun_ns = self._begun_ns
        first_ns, last_ns, done_ns = self._first_ns - begun_ns, self._last_ns - begun_ns, self._done_ns - begun_ns
        self._waiting.set_result(Timed(first_ns, last_ns, done_ns, self._tokens))

    def _fail(self, what: str) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_exception(AnswerError(what))

    def _error_text(self) -> str:
        """The body of a refusal: the prompt is the benchmark's own, so it may be shown."""
        return f": {self._rest[-1024:].decode('utf-8', 'replace')}" if self._rest and not self._tokens else ""


class Client:
    """One client: one request at a time, to one target. Used as an async context manager."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._reader: _Reader | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._close()

    async def ask(self) -> Timed:
        """Send the request and return the times of its answer. Connecting is not in them. Raises AnswerError."""
        reader = await self._connected()
        try:
            async with asyncio.timeout(ANSWER_S):
                timed = await reader.ask(self._target.request)
        except TimeoutError:
            self._close()
            raise AnswerError(f"no whole answer within {ANSWER_S:.0f} s") from None
        if not self._target.keeps_connection:
            self._close()
        return timed

    async def _connected(self) -> _Reader:
        if self._reader is not None and self._reader.open:
            return self._reader
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, self._reader = await loop.create_connection(_Reader, self._target.host, self._target.port)
        except (OSError, TimeoutError):
            raise AnswerError(f"no connection to {self._target.host}:{self._target.port}") from None
        await asyncio.sleep(SETTLE_S)
        return self._reader

    def _close(self) -> None:
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()
