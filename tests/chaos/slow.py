"""Tenants who read slowly: a raw connection with a small receive buffer, and one token's worth of bytes a second."""

from __future__ import annotations

import asyncio
import json
import socket

from tests.chaos.client import Ending, Told, body_of, headers_of
from tests.chaos.load import Asked, Lane, Load
from tests.chaos.stand import LOOPBACK, Stand

RECEIVE_BYTES = 4096
TOKEN_BYTES = 256
"""About what one event takes on the connection."""
HEAD_S = 60.0
_TOKEN = b'"content":" '


async def read_slowly(stand: Stand, load: Load, lane: Lane, number: int, for_s: float) -> None:
    """Ask, read about one token a second for a while, then hang up. The request is kept with those of the load."""
    loop = asyncio.get_running_loop()
    edge = lane.edges[number % len(lane.edges)]
    plan = load.plan(lane, edge, f"quick-slow-{number}")
    told = Told(plan, loop.time())
    load.asked.append(Asked(lane, [told]))
    made = socket.socket()
    made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BYTES)
    made.setblocking(False)
    try:
        await loop.sock_connect(made, (LOOPBACK, stand.ports[edge]))
        body = json.dumps(body_of(plan)).encode()
        fields = {**headers_of(plan), "host": LOOPBACK, "content-type": "application/json"}
        lines = [f"{name}: {value}" for name, value in fields.items()]
        head = "\r\n".join(["POST /v1/chat/completions HTTP/1.1", *lines, f"content-length: {len(body)}", "", ""])
        await loop.sock_sendall(made, head.encode("latin-1") + body)
        await _sip(made, told, for_s)
    except OSError:
        told.ending = Ending.CLOSED
    finally:
        made.close()
    told.ended_s = loop.time()


async def _sip(made: socket.socket, told: Told, for_s: float) -> None:
    loop = asyncio.get_running_loop()
    got = b""
    async with asyncio.timeout(HEAD_S):
        while b"\r\n\r\n" not in got:
            data = await loop.sock_recv(made, TOKEN_BYTES)
            if not data:
                return
            got += data
    head, _, rest = got.partition(b"\r\n\r\n")
    names = dict(line.split(": ", 1) for line in head.decode("latin-1").lower().split("\r\n")[1:])
    told.request = names.get("x-request-id", "")
    if not head.startswith(b"HTTP/1.1 200"):
        told.ending, told.why = Ending.REFUSED, _code(rest + await loop.sock_recv(made, RECEIVE_BYTES))
        return
    told.first_s = loop.time()
    end_at = loop.time() + for_s
    while loop.time() < end_at:
        told.received = rest.count(_TOKEN)
        data = await loop.sock_recv(made, TOKEN_BYTES)
        rest += data
        if not data:
            return
        await asyncio.sleep(1.0)
    told.ending = Ending.CANCELLED


def _code(body: bytes) -> str:
    at = body.find(b'"code":"')
    return "?" if at < 0 else body[at + 8 :].split(b'"', 1)[0].decode("ascii", "replace")
