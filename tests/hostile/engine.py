"""Evil engines: they speak enough of the OpenAI protocol to be asked, and answer as a prompt tells them to.

    python -m tests.hostile.engine PORT...

`MODE=name` in a prompt chooses what is answered; without it, the five tokens of `TEXT`. Loopback only.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import re
import socket
import struct
import sys
from collections.abc import Awaitable, Callable

MODEL = "evil"
TOKENS = 5
TEXT = "".join(f" t{number}" for number in range(TOKENS))
CONTROL = "a\0b\u2028\r\n\r\ndata: [DONE]\n\n"
POISON = "POISON"
"""Stands in what engines say beside an answer of theirs; no tenant may ever see it."""
BODY_BYTES_MAX = 8 << 20
FLOOD_S = 20.0

_MODE = re.compile(rb"MODE=([a-z0-9_]+)")
_LENGTH = re.compile(rb"\r\ncontent-length: ([0-9]{1,8})\r\n")

Json = dict[str, object]


def chunk(data: bytes) -> bytes:
    """Return one chunk of HTTP."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def event(choices: list[Json], usage: object = None) -> bytes:
    """Return one event of a stream."""
    fields: Json = {"id": "c", "object": "chat.completion.chunk", "created": 0, "model": MODEL}
    return b"data: " + json.dumps({**fields, "choices": choices, "usage": usage}).encode() + b"\n\n"


def text(piece: str) -> bytes:
    """Return the event of one token."""
    return event([{"index": 0, "delta": {"content": piece}, "finish_reason": None}])


def usage(prompt: object = 16, completion: object = TOKENS, **more: object) -> bytes:
    """Return the event of a usage."""
    return event([], {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": 21, **more})


def reply(status: int, body: bytes, *headers: str) -> bytes:
    """Return a whole reply of a known length."""
    lines = (f"HTTP/1.1 {status} X", "content-type: application/json", f"content-length: {len(body)}", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def thought(piece: str) -> bytes:
    """Return the event of one token of a thought."""
    return event([{"index": 0, "delta": {"reasoning_content": piece}, "finish_reason": None}])


def _stop(reason: object) -> bytes:
    return event([{"index": 0, "delta": {}, "finish_reason": reason}])


PLAIN_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
HEAD = PLAIN_HEAD + b"transfer-encoding: chunked\r\n\r\n"
ROLE = event([{"index": 0, "delta": {"role": "assistant"}, "finish_reason": None}])
PIECES = tuple(text(f" t{number}") for number in range(TOKENS))
STOP = event([{"index": 0, "delta": {}, "finish_reason": "stop"}])
SPLIT = STOP.replace(b'"choices"', b'\ndata: "choices"')
"""The same event in two lines."""
DONE = b"data: [DONE]\n\n"
END = b"0\r\n\r\n"
WORDS = b"".join(map(chunk, PIECES))
LAST = chunk(STOP) + chunk(usage()) + chunk(DONE) + END
SHORT = text(" abc") + STOP + usage(completion=1) + DONE
STRAY = HEAD + chunk(text(POISON)) + chunk(STOP) + chunk(usage(completion=1)) + chunk(DONE) + END
SECRET = json.dumps({"error": {"message": f"{POISON} of a prompt", "code": 500}}).encode()
WHOLE = json.dumps({"object": "chat.completion", "choices": [{"index": 0, "message": {"content": POISON}}]}).encode()


def _ended_by(*last: bytes) -> bytes:
    return HEAD + WORDS + b"".join(map(chunk, last)) + END


def _beginning_with(*first: bytes) -> bytes:
    return HEAD + b"".join(map(chunk, first)) + LAST


SAID: dict[str, bytes] = {
    "ok": HEAD + WORDS + LAST,
    # Frames that are none, or say one thing and do another.
    "length_short": PLAIN_HEAD + b"content-length: 100\r\n\r\n" + SHORT,
    "both_lengths": PLAIN_HEAD + b"transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n" + WORDS + LAST,
    "second_answer": HEAD + WORDS + LAST + STRAY,
    "first_hundreds": b"HTTP/1.1 100 Continue\r\n\r\n" * 7 + HEAD + WORDS + LAST,
    "no_http": b"hello\r\n\r\n",
    "noise": bytes(range(256)) * 400,
    "gzip": PLAIN_HEAD + b"content-encoding: gzip\r\ncontent-length: %d\r\n\r\n" % len(gzip.compress(SHORT, mtime=0))
    + gzip.compress(SHORT, mtime=0),
    "whole": reply(200, WHOLE),
    "redirect": reply(307, b"", "location: http://127.0.0.1:1/"),
    "switch": reply(101, b""),
    # Codes.
    "status_400": reply(400, SECRET),
    "status_404": reply(404, SECRET),
    "status_429": reply(429, SECRET),
    "status_500": reply(500, SECRET),
    "status_503": reply(503, SECRET),
    "status_500_big": reply(500, SECRET + b"y" * 5_000_000),
    # Counts.
    "usage_negative": _ended_by(STOP, usage(-5, -5), DONE),
    "usage_of_2_60": _ended_by(STOP, usage(2**60, 2**60), DONE),
    "usage_of_2_52": _ended_by(STOP, usage(2**52, 2**52), DONE),
    "usage_far_beyond": _ended_by(STOP, usage(16, 5_000), DONE),
    "usage_fraction": _ended_by(STOP, usage(1.5), DONE),
    "usage_text": _ended_by(STOP, usage("16", "5"), DONE),
    "usage_none": _ended_by(STOP, DONE),
    "usage_less": _ended_by(STOP, usage(16, 1), DONE),
    # Events that are none, or too much.
    "too_many": HEAD + chunk(text(" t")) * 3_000 + LAST,
    "done_alone": HEAD + chunk(DONE) + END,
    "no_reason": _ended_by(usage(), DONE),
    "no_done": _ended_by(STOP, usage()),
    "text_after_reason": _ended_by(STOP, text(POISON), usage(), DONE),
    "text_after_done": _ended_by(STOP, usage(), DONE, text(POISON)),
    "done_twice": _ended_by(STOP, usage(), DONE, DONE),
    "error_event": HEAD + WORDS + chunk(b"data: " + SECRET + b"\n\n"),
    "bad_utf8": _beginning_with(b'data: {"choices":[{"index":0,"delta":{"content":"\xff\xfe"}}]}\n\n'),
    "half_pair": _beginning_with(b'data: {"choices":[{"index":0,"delta":{"content":"a\\ud83d"}}]}\n\n'),
    "number": _beginning_with(b'data: {"choices":[{"index":0,"delta":{"content":5}}]}\n\n'),
    "two_choices": _beginning_with(event([{"index": 0, "delta": {"content": "a"}}, {"index": 1, "delta": {}}])),
    "tool_calls": _beginning_with(event([{"index": 0, "delta": {"tool_calls": []}, "finish_reason": "tool_calls"}])),
    "deep_list": _beginning_with(b"data: " + b"[" * 100_000 + b"\n\n"),
    "deep_object": _beginning_with(b'data: {"x":' + b'{"a":' * 20_000 + b"1" + b"}" * 20_000 + b"}\n\n"),
    "long_line": _beginning_with(text("x" * 1_000_000)),
    "long_text": HEAD + chunk(text("x" * 250_000)) + chunk(STOP) + chunk(usage(completion=1)) + chunk(DONE) + END,
    # More of what an event may hold.
    "reason_unknown": HEAD + WORDS + chunk(_stop("sausage")) + chunk(usage()) + chunk(DONE) + END,
    "reason_number": HEAD + WORDS + chunk(_stop(5)) + chunk(usage()) + chunk(DONE) + END,
    "reason_long": HEAD + WORDS + chunk(_stop(POISON * 20_000)) + chunk(usage()) + chunk(DONE) + END,
    "reason_twice": _ended_by(STOP, STOP, usage(), DONE),
    "choices_null": _beginning_with(b'data: {"choices":null}\n\n'),
    "choices_missing": _beginning_with(b'data: {"id":"c"}\n\n'),
    "index_negative": _beginning_with(event([{"index": -1, "delta": {"content": "a"}}])),
    "content_list": _beginning_with(event([{"index": 0, "delta": {"content": ["a"]}}])),
    "not_a_number": _beginning_with(b'data: {"choices":[],"x":NaN}\n\n'),
    "usage_bool": _ended_by(STOP, usage(True), DONE),
    "usage_cached": _ended_by(STOP, usage(prompt_tokens_details={"cached_tokens": 99}), DONE),
    "usage_falls": HEAD + WORDS + chunk(usage(90, 5)) + LAST,
    "usage_twice": _ended_by(STOP, usage(), usage(900, 200), DONE),
    "data_lines": HEAD + WORDS + chunk(SPLIT) + chunk(usage()) + chunk(DONE) + END,
    "no_space": HEAD + chunk(b"".join((*PIECES, STOP, usage(), DONE)).replace(b"data: ", b"data:")) + END,
    "two_in_one": HEAD + chunk(b"".join((*PIECES, STOP, usage(), DONE))) + END,
    "chunk_extended": HEAD + b"5;a=b\r\n: a\n\n\r\n" + WORDS + LAST,
    "trailer": HEAD + WORDS + LAST[:-2] + b"X: y\r\n\r\n",
    "html": b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ntransfer-encoding: chunked\r\n\r\n" + WORDS + LAST,
    "status_299": HEAD.replace(b"200", b"299") + WORDS + LAST,
    "status_099": HEAD.replace(b"200", b"099") + WORDS + LAST,
    "later_429": reply(429, SECRET, "retry-after: 99999999999"),
    "later_503": reply(503, SECRET, "retry-after: -5"),
    "later_inf": reply(503, SECRET, "retry-after: inf"),
    "control": HEAD + b"".join(map(chunk, (text(CONTROL), STOP, usage(completion=1), DONE))) + END,
    "empty_words": HEAD + chunk(text("")) * 100 + WORDS + LAST,
    "thoughts": HEAD + chunk(thought("hm")) * 2 + WORDS + LAST,
    # Odd, and right.
    "byte_order_mark": HEAD + chunk(b"\xef\xbb\xbf") + WORDS + LAST,
    "crlf": HEAD + chunk(b"".join((*PIECES, STOP, usage(), DONE)).replace(b"\n", b"\r\n")) + END,
    "crumbs": HEAD + b"".join(chunk(bytes([one])) for one in b"".join((ROLE, *PIECES, STOP, usage(), DONE))) + END,
}
"""Modes that say their bytes and leave the connection open."""

CUT: dict[str, bytes] = {
    "cut_first": b"",
    "cut_in_head": b"HTTP/1.1 200 OK\r\ncontent-ty",
    "cut_after_head": HEAD,
    "cut_in_middle": HEAD + WORDS,
    "cut_before_done": HEAD + WORDS + chunk(STOP) + chunk(usage()),
}
"""Modes that say their bytes and reset the connection; with `end_` in place of `cut_`, close it in good order."""

FLOODS: dict[str, tuple[bytes, bytes]] = {
    "flood_hundreds": (b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 50),
    "flood_head": (b"HTTP/1.1 200 OK\r\n", b"x: " + b"a" * 1_000 + b"\r\n"),
    "flood_comments": (HEAD, chunk(b": x\n\n" * 50)),
    "flood_lines": (HEAD, chunk(b"\n" * 2_000)),
    "flood_spaces": (HEAD, chunk(b" " * 2_000)),
    "flood_data": (HEAD, chunk(b"data: a\n" * 200)),
    "flood_empty_data": (HEAD, chunk(b"data\n" * 400)),
    "flood_names": (HEAD, chunk(b"event: a\n" * 200)),
    "flood_roles": (HEAD, chunk(ROLE) * 20),
    "flood_text": (HEAD, chunk(text(" t")) * 50),
    "flood_thoughts": (HEAD, chunk(thought(" t")) * 50),
    "flood_between": (HEAD, chunk(text(" t")) + chunk(b": x\n\n" * 180) * 200),
    "flood_zeros": (HEAD, b"0" * 4_000),
    "flood_empty": (HEAD, chunk(text("")) * 50),
}
"""Modes that say the first bytes once and the second as fast as they are taken."""

SLOW: dict[str, tuple[bytes, bytes]] = {
    "hang": (b"", b""),
    "hang_after_head": (HEAD, b""),
    "hang_in_middle": (HEAD + WORDS, b""),
    "drip_head": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "drip_comments": (HEAD, chunk(b": x\n\n")),
    "drip_roles": (HEAD, chunk(ROLE)),
    "drip_nothing": (HEAD, chunk(text(""))),
    "drip_comments_later": (HEAD + WORDS, chunk(b": x\n\n")),
    "drip_text": (HEAD, chunk(text(" t"))),
}
"""Modes that say the first bytes, and the second three times a second for as long as they are listened to."""


def reset(writer: asyncio.StreamWriter) -> None:
    """Reset a connection."""
    _linger_not(writer.get_extra_info("socket"))
    writer.transport.abort()


def _linger_not(one: socket.socket) -> None:
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def _say(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(data)
    await writer.drain()


async def _flood(writer: asyncio.StreamWriter, first: bytes, piece: bytes) -> None:
    end_at = asyncio.get_running_loop().time() + FLOOD_S
    await _say(writer, first)
    while asyncio.get_running_loop().time() < end_at:
        await _say(writer, piece)


async def _drip(writer: asyncio.StreamWriter, first: bytes, piece: bytes) -> None:
    await _say(writer, first)
    while not writer.is_closing():
        await asyncio.sleep(0.3)
        await _say(writer, piece)


def _generation(mode: str, writer: asyncio.StreamWriter) -> Callable[[], Awaitable[bool]]:
    """Return what answers in a mode; it returns whether the connection goes on."""

    async def answer() -> bool:
        how, _, where = mode.partition("_")
        if mode in SAID:
            await _say(writer, SAID[mode])
            return True
        if mode in FLOODS:
            await _flood(writer, *FLOODS[mode])
        elif mode in SLOW:
            await _drip(writer, *SLOW[mode])
        elif f"cut_{where}" in CUT and how in ("cut", "end"):
            await _say(writer, CUT[f"cut_{where}"])
            if how == "cut":
                await asyncio.sleep(0.02)
                reset(writer)
        else:
            await _say(writer, reply(500, b""))
        return False

    return answer


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    models = json.dumps({"object": "list", "data": [{"id": MODEL, "object": "model", "max_model_len": 131_072}]})
    with contextlib.suppress(asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            length = _LENGTH.search(head.lower())
            body = b"" if length is None else await reader.readexactly(int(length[1]))
            if head.startswith(b"GET "):
                found = head.startswith(b"GET /v1/models ")
                await _say(writer, reply(200, models.encode()) if found else reply(404, b""))
                continue
            mode = _MODE.search(body)
            if not await _generation("ok" if mode is None else mode[1].decode(), writer)():
                break
    writer.close()


async def _main(ports: list[int]) -> None:
    servers = [await asyncio.start_server(_serve, "127.0.0.1", port, limit=BODY_BYTES_MAX) for port in ports]
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(_main([int(port) for port in sys.argv[1:]]))
