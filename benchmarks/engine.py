"""An engine that answers at once: the OpenAI protocol without a model, so that what is measured is not noise of one.

    python -m benchmarks.engine --port PORT

`POST /v1/chat/completions` answers with `max_tokens` tokens, 100 where none are named: as one JSON object, or with
`"stream": true` as that many events, each a write of its own. `"seed": N` with N > 0 rests N milliseconds before each
token but the first. `GET /v1/models` lists one model; `GET /health`, `/get_model_info` and `/get_server_info` answer as
the workers of other routers do. Nothing else of a request is read. Loopback only.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import socket
import sys
from functools import lru_cache
from typing import cast

import msgspec
import uvloop

MODEL = "instant"
TOKENS = 100
TOKENS_MAX = 8_192
PROMPT_TOKENS = 16
HEAD_BYTES_MAX = 64 * 1024
BODY_BYTES_MAX = 4 * 1024 * 1024

_END_OF_HEAD = b"\r\n\r\n"
_STREAM = re.compile(rb'"stream"\s*:\s*true')
_COUNT = re.compile(rb'"max_(?:completion_)?tokens"\s*:\s*([0-9]{1,9})')
_SEED = re.compile(rb'"seed"\s*:\s*([0-9]{1,9})')


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


def _plain(value: object) -> bytes:
    """Return a whole answer of JSON."""
    body = msgspec.json.encode(value)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(body)
    return head + body


def _usage(tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": PROMPT_TOKENS,
        "completion_tokens": tokens,
        "total_tokens": PROMPT_TOKENS + tokens,
    }


_TOKEN_EVENTS = tuple(
    _event([{"index": 0, "delta": {"content": f" tok{number:02}"}, "finish_reason": None}], None)
    for number in range(100)
)


@lru_cache(maxsize=64)
def streamed(tokens: int) -> tuple[bytes, ...]:
    """Return every write of a streamed answer, in order: the head goes with the first token, the end is one write."""
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    events = [_TOKEN_EVENTS[number % len(_TOKEN_EVENTS)] for number in range(tokens)]
    end = _event([{"index": 0, "delta": {}, "finish_reason": "length"}], None) + _event([], _usage(tokens))
    end += _chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n"
    return (head + events[0], *events[1:], end)


@lru_cache(maxsize=64)
def whole(tokens: int) -> bytes:
    """Return an answer in one piece."""
    text = "".join(f" tok{number % 100:02}" for number in range(tokens))
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
    return _plain(
        {
            "id": "chatcmpl-0",
            "object": "chat.completion",
            "created": 0,
            "model": MODEL,
            "choices": [choice],
            "usage": _usage(tokens),
        }
    )


ANSWER = streamed(TOKENS)
_MODEL = {"id": MODEL, "object": "model", "created": 0, "owned_by": "tidegate", "max_model_len": 131_072}
_INFO = _plain({"model_path": MODEL, "tokenizer_path": MODEL, "is_generation": True, "served_model_name": MODEL})
PAGES = {
    b"get /v1/models": _plain({"object": "list", "data": [_MODEL]}),
    b"get /health": b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
    b"get /get_model_info": _INFO,
    b"get /model_info": _INFO,
    b"get /get_server_info": _INFO,
    b"get /server_info": _INFO,
}
NOT_FOUND = b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n"


class Connection(asyncio.Protocol):
    """One connection: one request at a time, kept open until the client closes it or has said that it will."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._received = bytearray()
        self._answering = False
        self._last = False

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
        begin = end + len(_END_OF_HEAD)
        if len(self._received) < begin + length:
            return
        body = bytes(self._received[begin : begin + length])
        del self._received[: begin + length]
        self._last = b"\r\nconnection: close" in head
        if head.startswith(b"post /v1/chat/completions "):
            self._answer(body)
        else:
            self._write_whole(PAGES.get(head[: head.find(b" http/")], NOT_FOUND))

    def _answer(self, body: bytes) -> None:
        named = _COUNT.search(body)
        tokens = TOKENS if named is None else max(1, min(TOKENS_MAX, int(named[1])))
        if _STREAM.search(body) is None:
            self._write_whole(whole(tokens))
            return
        seed = _SEED.search(body)
        self._answering = True
        self._write(streamed(tokens), 0, 0 if seed is None else int(seed[1]) / 1000)

    def _write_whole(self, answer: bytes) -> None:
        if self._transport is None:
            return
        self._transport.write(answer)
        if self._last:
            self._close()
        elif self._received:
            self._take_request()

    def _write(self, answer: tuple[bytes, ...], index: int, rest_s: float) -> None:
        """Write one part, and the next in the next turn of the loop: each is a send of its own, as from an engine."""
        if self._transport is None:
            return
        self._transport.write(answer[index])
        index += 1
        if index == len(answer):
            self._answering = False
            if self._last:
                self._close()
            else:
                self._take_request()
        elif rest_s and index + 1 < len(answer):
            self._loop.call_later(rest_s, self._write, answer, index, rest_s)
        else:
            self._loop.call_soon(self._write, answer, index, rest_s)

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
    server = await loop.create_server(Connection, "127.0.0.1", port, backlog=socket.SOMAXCONN)
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
