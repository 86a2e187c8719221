"""A deterministic engine: the OpenAI protocol, with tokens that are a function of the prompt and their position.

    python -m tests.chaos.engine --port PORT --journal FILE [--slots 8] [--token-ms 10] [--first-ms 5]

`POST /v1/chat/completions` streams `max_tokens` tokens, one event each. It knows vLLM's `continue_final_message`: the
answer goes on after the text that the last message holds, and only when that text is exactly the answer so far. What
finds no slot waits in line. Closing the connection ends the answer. `GET /counters` tells what it did; the journal, one
line of JSON per answer that began and per answer that ended, outlives a SIGKILL.
Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec
import uvloop

from tests.chaos.words import QUICK, TOKEN_CHARS, answer, tag_of, token

MODEL = "words"
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 4 * 1024 * 1024
DEFAULT_MAX_TOKENS = 16
WAITING_MAX = 4096

_END_OF_HEAD = b"\r\n\r\n"


@dataclass(frozen=True, slots=True)
class Pace:
    """How an engine works."""

    slots: int
    token_ms: float
    first_ms: float
    quick_ms: float


@dataclass(frozen=True, slots=True)
class Order:
    """One generation that was asked for."""

    prompt: str
    begin: int
    """Tokens that the text to be continued has already."""
    count: int
    """Tokens to make."""
    kind: str
    tag: str


class BadOrder(Exception):
    """A body that is no request, or a text to be continued that is not the answer so far."""


def read_order(body: bytes) -> Order:
    """Read a request. Raises BadOrder."""
    try:
        fields = msgspec.json.decode(body)
        messages: list[dict[str, str]] = list(fields["messages"])
        partial = messages.pop()["content"] if fields.get("continue_final_message") else ""
        prompt = next(message["content"] for message in reversed(messages) if message["role"] == "user")
        count = int(fields.get("max_tokens") or DEFAULT_MAX_TOKENS)
    except (msgspec.DecodeError, LookupError, TypeError, ValueError, StopIteration) as error:
        raise BadOrder("the body is no request") from error
    begin, rest = divmod(len(partial), TOKEN_CHARS)
    if rest or partial != answer(prompt, begin):
        raise BadOrder("the text to be continued is not the answer so far")
    kind, tag = tag_of(prompt) or ("?", "?")
    return Order(prompt, begin, count, kind, tag)


class Works:
    """The slots of one engine, who waits for one, the counters and the journal."""

    def __init__(self, pace: Pace, journal: Path) -> None:
        self.pace = pace
        self.counters = {"started": 0, "finished": 0, "cancelled": 0, "refused": 0}
        self.running = 0
        self._waiting: deque[Connection] = deque(maxlen=WAITING_MAX)
        self._journal = os.open(journal, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def submit(self, connection: Connection) -> None:
        """Begin an answer now, or when a slot is free."""
        self._waiting.append(connection)
        self._fill()

    def leave(self, connection: Connection, ended: str) -> None:
        """An answer is over, or was given up before it had a slot."""
        if connection in self._waiting:
            self._waiting.remove(connection)
            return
        self.running -= 1
        self.counters[ended] += 1
        self._fill()

    def note(self, **fields: object) -> None:
        """Add a line to the journal: one write, so that it is there whole or not at all."""
        os.write(self._journal, msgspec.json.encode({"at_ms": time.time_ns() // 1_000_000, **fields}) + b"\n")

    def told(self) -> dict[str, int]:
        """Return the counters."""
        return {**self.counters, "running": self.running, "waiting": len(self._waiting)}

    def _fill(self) -> None:
        while self._waiting and self.running < self.pace.slots:
            self.running += 1
            self.counters["started"] += 1
            self._waiting.popleft().begin()


class Connection(asyncio.Protocol):
    """One connection: one request at a time, kept open until the client closes it."""

    def __init__(self, works: Works) -> None:
        self._works = works
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._order: Order | None = None
        self._made = 0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports are none of asyncio's classes, and do all that these do.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone: its answer ends here, and its slot is free."""
        self._transport = None
        if self._timer is not None:
            self._timer.cancel()
        if self._order is not None:
            self._end("cancelled")

    def data_received(self, data: bytes) -> None:
        """Take some of a request. What is not framed within the bounds closes the connection."""
        self._received += data
        if self._order is None:
            self._take_request()

    def begin(self) -> None:
        """A slot is free: the first token comes after the prefill."""
        order = self._order
        if order is None:
            return
        self._works.note(what="start", kind=order.kind, tag=order.tag, begin=order.begin, count=order.count)
        self._due = self._loop.time() + self._works.pace.first_ms / 1000
        self._timer = self._loop.call_at(self._due, self._write_token)

    def _take_request(self) -> None:
        end = self._received.find(_END_OF_HEAD)
        if end < 0:
            if len(self._received) > HEAD_BYTES_MAX:
                self._close()
            return
        head = bytes(self._received[:end]).lower()
        length = _content_length(head)
        if length is None or length > BODY_BYTES_MAX:
            self._close()
            return
        begin = end + len(_END_OF_HEAD)
        if len(self._received) < begin + length:
            return
        body = bytes(self._received[begin : begin + length])
        del self._received[: begin + length]
        if not head.startswith(b"post /v1/chat/completions "):
            self._reply(head)
            return
        try:
            self._order = read_order(body)
        except BadOrder as error:
            self._works.counters["refused"] += 1
            self._works.note(what="refused", why=str(error))
            self._write(_plain(400, {"error": {"message": str(error), "type": "invalid_request_error"}}))
            return
        self._made = 0
        self._works.submit(self)

    def _reply(self, head: bytes) -> None:
        if head.startswith(b"get /v1/models "):
            self._write(_plain(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]}))
        elif head.startswith(b"get /counters "):
            self._write(_plain(200, self._works.told()))
        else:
            self._write(_plain(404, {"error": {"message": "not here", "type": "invalid_request_error"}}))

    def _write_token(self) -> None:
        order = self._order
        if order is None:
            return
        head = b"" if self._made else _HEAD
        text = token(order.prompt, order.begin + self._made)
        self._made += 1
        self._write(head + _event([{"index": 0, "delta": {"content": text}, "finish_reason": None}]))
        if self._made >= order.count:
            usage = {"prompt_tokens": len(order.prompt.split()) + order.begin, "completion_tokens": self._made}
            usage["total_tokens"] = usage["prompt_tokens"] + self._made
            last = _event([{"index": 0, "delta": {}, "finish_reason": "length"}]) + _event([], usage)
            self._write(last + _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")
            self._end("finished")
            self._take_request()
            return
        # By the clock and not by sleeping: a loaded machine does not make the engine slower than it says.
        pace = self._works.pace
        self._due += (pace.quick_ms if order.tag.startswith(QUICK) else pace.token_ms) / 1000
        self._timer = self._loop.call_at(self._due, self._write_token)

    def _end(self, how: str) -> None:
        order, self._order = self._order, None
        if order is not None:
            self._works.note(what=how, tag=order.tag, made=self._made)
            self._works.leave(self, how)

    def _write(self, data: bytes) -> None:
        if self._transport is not None:
            self._transport.write(data)

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(choices: list[dict[str, Any]], usage: dict[str, int] | None = None) -> bytes:
    value = {
        "id": "chatcmpl-0",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }
    return _chunk(b"data: " + msgspec.json.encode(value) + b"\n\n")


def _plain(status: int, value: object) -> bytes:
    body = msgspec.json.encode(value)
    return b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (
        status,
        len(body),
        body,
    )


def _content_length(head: bytes) -> int | None:
    """Return the length of the body, 0 where none is named, None where it cannot be read."""
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        if name == b"content-length":
            digits = value.strip()
            return int(digits) if digits.isdigit() and len(digits) < 10 else None
        if name == b"transfer-encoding":
            return None
    return 0


async def serve(port: int, works: Works) -> None:
    """Serve until the process ends."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(works), "127.0.0.1", port, backlog=512)
    async with server:
        await server.serve_forever()


def main() -> int:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.engine", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--slots", type=int, default=8)
    parser.add_argument("--token-ms", type=float, default=10.0)
    parser.add_argument("--first-ms", type=float, default=5.0)
    parser.add_argument("--quick-ms", type=float, default=0.5)
    told = parser.parse_args()
    uvloop.run(_main(told.port, Pace(told.slots, told.token_ms, told.first_ms, told.quick_ms), told.journal))
    return 0


async def _main(port: int, pace: Pace, journal: Path) -> None:
    await serve(port, Works(pace, journal))


if __name__ == "__main__":
    sys.exit(main())
