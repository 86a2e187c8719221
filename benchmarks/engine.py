"""An engine that answers at once: the OpenAI protocol without a model, so that what is measured is not noise of one.

    python -m benchmarks.engine --port PORT

`POST /v1/chat/completions` streams 100 tokens, one event and one write each; `GET /v1/models` lists one model. The
request is framed but not read: every body gets the same answer. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from typing import cast

import msgspec
import uvloop

MODEL = "instant"
TOKENS = 100
PROMPT_TOKENS = 16
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 4 * 1024 * 1024

_END_OF_HEAD = b"\r\n\r\n"


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _event(choices: list[dict[str, object]], usage: dict[str, int] | None) -> bytes:
    value = {
        "id": "chatcmpl-0",
        "object": "chat.completion.chunk",
        "created": 0,
        "model": MODEL,
        "choices": choices,
        "usage": usage,
    }
    return _chunk(b"data: " + msgspec.json.encode(value) + b"\n\n")


def _answer() -> tuple[bytes, ...]:
    """Return every write of one answer, in order: the head goes with the first token, the end is one write."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    tokens = [
        _event([{"index": 0, "delta": {"content": f" tok{number:02}"}, "finish_reason": None}], None)
        for number in range(TOKENS)
    ]
    usage = {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": TOKENS,
        "total_tokens": PROMPT_TOKENS + TOKENS,
    }
    end = _event([{"index": 0, "delta": {}, "finish_reason": "length"}], None) + _event([], usage)
    end += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return (head + tokens[0], *tokens[1:], end)


ANSWER = _answer()
_MODELS_BODY = msgspec.json.encode({"object": "list", "data": [{"id": MODEL, "object": "model"}]})
MODELS = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_MODELS_BODY)
) + _MODELS_BODY
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection: one request at a time, kept open until the client closes it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answering = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Take the transport."""
        # uvloop's transports are none of asyncio's classes, and do all that these do.
        self._transport = cast(asyncio.Transport, transport)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop writing."""
        self._transport = None

    def data_received(self, data: bytes) -> None:
        """Take some of a request. What is not framed within the bounds closes the connection."""
        self._received += data
        if not self._answering:
            self._take_request()

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
        whole = end + len(_END_OF_HEAD) + length
        if len(self._received) < whole:
            return
        del self._received[:whole]
        if head.startswith(b"post /v1/chat/completions "):
            self._answering = True
            self._write(0)
        elif self._transport is not None:
            self._transport.write(MODELS if head.startswith(b"get /v1/models ") else NOT_FOUND)

    def _write(self, index: int) -> None:
        """Write one part, and the next in the next turn of the loop: each is a send of its own, as from an engine."""
        if self._transport is None:
            return
        self._transport.write(ANSWER[index])
        if index + 1 < len(ANSWER):
            self._loop.call_soon(self._write, index + 1)
        else:
            self._answering = False
            self._take_request()

    def _close(self) -> None:
        if self._transport is not None:
            self._transport.close()


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


async def _serve(port: int) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=256)
    async with server:
        await server.serve_forever()


def main() -> int:
    """Serve until a signal ends the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.engine", description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    uvloop.run(_serve(parser.parse_args().port))
    return 0


if __name__ == "__main__":
    sys.exit(main())
