"""One request and its answer: what is sent, within a bound of time, and with the headers of every answer."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

import msgspec

from node_agent.alarm import Alarm
from node_agent.front.framing import Head, Pair
from node_agent.front.http import JSON_TYPE, Client
from node_agent.front.sse import KEEP_ALIVE, event
from node_agent.front.untaken import TAKEN_BYTES_MIN
from orchestrator.policy.ids import RequestId
from orchestrator.wire.catalogue import Problem, ProblemError

BREAK_TIMEOUT_MS = 1_000
"""How long the last word on a broken answer may take."""
_NEW_KEY = "Another Idempotency-Key: this one is spent, for the request had begun."
_LATER, _BEGUN_AND_FAILED = frozenset({429, 503}), 502
"""Who reads the former asks the same again, with the key that is spent."""
_EVERY = ("server: tidegate", "cache-control: no-store")
"""Headers of every answer."""
_line = ": ".join
"""Writes a header as a line."""


class Keeper(Protocol):
    """Takes a copy of a good answer as it is sent."""

    def start(self, status: int, headers: Sequence[Pair]) -> None:
        """The answer begins, with these headers besides those of every answer."""

    def add(self, data: bytes) -> None:
        """Some of the answer."""

    async def complete(self) -> None:
        """The answer is whole. Its last part is sent once this returns."""


class Exchange:
    """Sends at most one answer, whole or in parts."""

    __slots__ = (
        "_alarm",
        "_ended",
        "_extra",
        "_write_timeout_ms",
        "client",
        "close",
        "final",
        "head",
        "keeper",
        "request_id",
        "status",
    )

    def __init__(self, head: Head, client: Client, request_id: RequestId, write_timeout_ms: int) -> None:
        self.head = head
        self.client = client
        self.request_id = request_id
        self.status: int | None = None
        """Of the answer, once it has begun."""
        self.close = False
        """Whether the connection ends with this answer."""
        self.final = False
        """Whether the same request, asked again, can have no better answer, whatever the error says of others."""
        self.keeper: Keeper | None = None
        self._write_timeout_ms = write_timeout_ms
        self._extra: list[str] = []
        self._ended = False
        self._alarm: Alarm | None = None

    def add_header(self, name: str, value: str) -> None:
        """Put a header into the answer, whatever it will be."""
        self._extra.append(f"{name}: {value}")

    async def answer(
        self, status: int, body: bytes, content_type: str = JSON_TYPE, headers: Sequence[Pair] = ()
    ) -> None:
        """Send a whole answer. Raises ProblemError(slow_reader)."""
        length = len(body)
        if self.keeper is not None and status == 200:
            own = (("content-type", content_type), ("content-length", str(length)))
            self.keeper.start(status, (*own, *headers))
            self.keeper.add(body)
            await self.keeper.complete()
        # Set before the first wait: where a whole answer was interrupted, nothing may follow.
        self._ended = True
        self._start(status, (f"content-type: {content_type}", f"content-length: {length}"), headers, length)
        if not self.client.put(body, True):
            await self.taken()

    def start(self, status: int, headers: Sequence[Pair], length: int | None = None) -> None:
        """Begin an answer that `write` continues and `end` ends. Its head leaves with the first of these.

        `length` is what its headers say of it, where they do.
        """
        if self.keeper is not None:
            self.keeper.start(status, headers)
        self._start(status, (), headers, length)

    def _start(self, status: int, own: tuple[str, ...], headers: Sequence[Pair], length: int | None) -> None:
        lines = [
            f"x-request-id: {self.request_id}",
            *_EVERY,
            *self._extra,
            *own,
            *map(_line, headers),
        ]
        self.client.begin(status, lines, length, self.close)
        self.status = status

    def pass_on(self, status: int, headers: list[Pair]) -> None:
        """Begin an answer whose headers were made elsewhere in this edge, and are sent as they are.

        `write` continues and `end` ends it, or `abandon`.
        """
        told = dict(headers)
        length, close = told.get("content-length"), self.close or told.get("connection") == "close"
        lines = [_line(pair) for pair in headers if pair[0] != "connection"]
        self.client.begin(status, lines, None if length is None else int(length), close)
        self.status = status

    def abandon(self) -> None:
        """Nothing more is sent of an answer that is not whole: the connection ends without its end."""
        self._ended = True

    async def write(self, data: bytes) -> None:
        """Send some more; returns when the connection has taken it. Raises ProblemError(slow_reader)."""
        if not self.put(data):
            await self.taken()

    def put(self, data: bytes) -> bool:
        """Send some more. Returns False when the connection is to take some first: await `taken` then."""
        if self.keeper is not None and data is not KEEP_ALIVE:
            self.keeper.add(data)
        return self.client.put(data, False)

    async def end(self, data: bytes = b"") -> None:
        """Send the last part. Raises ProblemError(slow_reader)."""
        if self.keeper is not None:
            self.keeper.add(data)
            await self.keeper.complete()
        self._ended = True
        if not self.client.put(data, True):
            await self.taken()

    async def break_off(self, problem: Problem) -> None:
        """Say that something is wrong: as the answer, or as the last event of one that has begun.

        A client that does not read is left without a word.
        """
        if self._ended:
            return
        status = problem.entry.http
        if self.final:
            problem = replace(problem, needs=problem.needs or _NEW_KEY)
            if status in _LATER:
                status = _BEGUN_AND_FAILED
        error = problem.openai(self.request_id)
        with contextlib.suppress(ProblemError):
            if self.status is None:
                if problem.entry.http == 401:
                    self.add_header("www-authenticate", "Bearer")
                headers = [("x-should-retry", "false")] if self.final else problem.headers()
                await self.answer(status, msgspec.json.encode(error), headers=headers)
            else:
                # Only a stream of events begins before it is known how it ends.
                self._ended = True
                if not self.client.put(event(error), True):
                    await self._taken_within(BREAK_TIMEOUT_MS)

    def done(self) -> None:
        """Nothing more will be sent."""
        if self._alarm is not None:
            self._alarm.off()

    async def taken(self) -> None:
        """Return when the connection has taken enough of what was sent. Raises ProblemError(slow_reader).

        Whoever goes on taking is waited for.
        """
        await self._taken_within(self._write_timeout_ms)

    async def _taken_within(self, timeout_ms: int) -> None:
        if self._alarm is None:
            self._alarm = Alarm()
        before = self.client.untaken_bytes()
        while True:
            try:
                await self._alarm.wait(self.client.writable(), timeout_ms / 1000)
            except TimeoutError:
                left = self.client.untaken_bytes()
                if before - left >= TAKEN_BYTES_MIN:
                    before = left
                    continue
                # What was sent of it is not known, so nothing may follow: the connection ends without an end of it.
                self._ended = True
                raise ProblemError(Problem("slow_reader")) from None
            return
