"""Tenants who read slowly: a raw connection with a small receive buffer, and one token's worth of bytes a second."""

from __future__ import annotations

import asyncio
import json
import socket

from tests.chaos.client import Ending, Told, body_of, headers_of
from tests.chaos.load import Asked, Lane, Load
from tests.chaos.stand import LOOPBACK, Stand
from tests.chaos.words import QUICK

RECEIVE_BYTES = 4096
TOKEN_BYTES = 256
"""About what one event takes on the connection."""
FAST_BYTES = 64 * 1024
HEAD_S = 60.0
_TOKEN = b'"content":" '


async def read_slowly(
    stand: Stand, load: Load, lane: Lane, number: int, for_s: float, pause_s: float = 1.0
) -> None:
    """Ask, read about one token each `pause_s` for a while, then hang up. The request is kept with those of the load.

    Without a pause everything is read as it comes.
    """
    loop = asyncio.get_running_loop()
    edge = lane.edges[number % len(lane.edges)]
    plan = load.plan(lane, edge, f"{QUICK}{lane.tenant}-{number}-{pause_s:g}")
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
        await _sip(made, told, for_s, pause_s)
    except OSError:
        told.ending = Ending.CLOSED
    finally:
        made.close()
    told.ended_s = loop.time()


async def _sip(made: socket.socket, told: Told, for_s: float, pause_s: float) -> None:
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
        data = await _received(made, TOKEN_BYTES if pause_s else FAST_BYTES, end_at)
        if not data:
            break
        rest += data
        await asyncio.sleep(pause_s)
    told.ending = Ending.CANCELLED


async def _received(made: socket.socket, bytes_max: int, end_at: float) -> bytes:
    """Return the next bytes; none at the end of the answer or of the time."""
    try:
        async with asyncio.timeout_at(end_at):
            return await asyncio.get_running_loop().sock_recv(made, bytes_max)
    except TimeoutError:
        return b""


def _code(body: bytes) -> str:
    at = body.find(b'"code":"')
    return "?" if at < 0 else body[at + 8 :].split(b'"', 1)[0].decode("ascii", "replace")
