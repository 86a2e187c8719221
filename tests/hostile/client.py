"""Tenants at an edge: raw bytes on real sockets, and what became of them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import socket
import struct
from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass, field
from typing import Any

LOOPBACK = "127.0.0.1"
CANARY = "canary-7f3a91"
"""Stands in every prompt; no log of a program may hold it."""
ANSWER_S = 30.0
READ_BYTES = 16 << 20
_CODE = re.compile(rb'"code":"([a-z_]+)"')
CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Answer:
    """What one request was told. A connection that ended without an answer has the status 0."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def code(self) -> str:
        """The code of the catalogue, empty where there is none, `closed` where nothing was said."""
        found = _CODE.search(self.body)
        return found[1].decode() if found else "" if self.status else "closed"

    @property
    def told(self) -> tuple[int, str]:
        """The status and the code."""
        return self.status, self.code

    @property
    def events(self) -> list[dict[str, Any]]:
        """The events of a stream, without `[DONE]`; of a whole answer, that alone."""
        if self.headers.get("content-type", "").startswith("application/json"):
            return [json.loads(self.body)]
        lines = [line[6:] for line in self.body.split(b"\n") if line.startswith(b"data: {")]
        return [json.loads(line) for line in lines]

    @property
    def text(self) -> str:
        """The text that was answered."""
        found: list[str] = []
        for one in self.events:
            for choice in one.get("choices", ()):
                found.append(choice.get("delta", choice.get("message", {})).get("content") or "")
        return "".join(found)

    @property
    def tokens(self) -> int | None:
        """The tokens that the tenant was told it got, also by an error in the middle; None where none were told."""
        for one in reversed(self.events if self.status else []):
            usage = one.get("usage") or one.get("error", {}).get("usage")
            if usage:
                return int(usage["completion_tokens"])
        return None

    @property
    def whole(self) -> bool:
        """Whether an answer came to its end."""
        streamed = self.headers.get("content-type", "").startswith("text/event-stream")
        return self.status == 200 and (not streamed or self.body.endswith(b"data: [DONE]\n\n"))


def body(model: str, prompt: str = "", *, stream: bool = True, max_tokens: int = 5, **more: object) -> bytes:
    """Return the body of a request."""
    fields: dict[str, object] = {
        "model": model,
        "max_tokens": max_tokens,
        "messages": [{"role": "user", "content": f"{CANARY} {prompt}"}],
    }
    if stream:
        fields |= {"stream": True, "stream_options": {"include_usage": True}}
    return json.dumps({**fields, **more}).encode()


def head(key: str | None, length: int | None = None, *lines: str, method: str = "POST", path: str = CHAT) -> bytes:
    """Return the head of a request. Without `length` nothing says how the body is framed."""
    said = [f"{method} {path} HTTP/1.1", "Host: x"]
    if key is not None:
        said.append(f"Authorization: Bearer {key}")
    if method == "POST":
        said.append("Content-Type: application/json")
    if length is not None:
        said.append(f"Content-Length: {length}")
    return "\r\n".join((*said, *lines, "", "")).encode()


def request(key: str | None, data: bytes, *lines: str) -> bytes:
    """Return a whole request."""
    return head(key, len(data), *lines) + data


def get(path: str, key: str | None = None) -> bytes:
    """Return a request without a body."""
    return head(key, method="GET", path=path)


async def read_answer(reader: asyncio.StreamReader) -> Answer:
    """Read one answer. Raises IncompleteReadError and OSError when the connection ends first."""
    first, *rest = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    status = int(first.split(" ")[1])
    if status == 100:
        return await read_answer(reader)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in rest if line)}
    if headers.get("transfer-encoding") != "chunked":
        return Answer(status, headers, await reader.readexactly(int(headers.get("content-length", "0"))))
    found = bytearray()
    while size := int(await reader.readuntil(b"\r\n"), 16):
        found += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return Answer(status, headers, bytes(found))


@dataclass(slots=True)
class Door:
    """Where tenants call, and all that was answered there."""

    port: int
    answers: list[Answer] = field(default_factory=list)

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        """Open a connection. It is reset at the end."""
        reader, writer = await asyncio.open_connection(LOOPBACK, self.port, limit=READ_BYTES)
        try:
            yield reader, writer
        finally:
            with contextlib.suppress(OSError):  # the other end was first
                linger_not(writer.get_extra_info("socket"))
            writer.transport.abort()

    async def take(self, reader: asyncio.StreamReader) -> Answer:
        """Read one answer, and keep it. Raises TimeoutError when none comes at all."""
        try:
            async with asyncio.timeout(ANSWER_S):
                answer = await read_answer(reader)
        except (asyncio.IncompleteReadError, ConnectionError):
            return Answer(0)
        self.answers.append(answer)
        return answer

    async def ask(self, raw: bytes, *, half_closed: bool = False) -> Answer:
        """Send bytes on a connection of their own and read the first answer."""
        async with self.connection() as (reader, writer):
            with contextlib.suppress(ConnectionError):
                writer.write(raw)
                if half_closed:
                    writer.write_eof()
            return await self.take(reader)

    async def all(self, raws: Iterable[bytes], at_once: int = 32) -> list[Answer]:
        """Ask many, at most `at_once` at a time; the answers are in order."""
        free = asyncio.Semaphore(at_once)

        async def one(raw: bytes) -> Answer:
            async with free:
                return await self.ask(raw)

        return await asyncio.gather(*map(one, raws))

    async def crowd(self, count: int, said: bytes = b"", receive_bytes: int | None = None) -> Crowd:
        """Open many connections that send the same and read nothing. Those that are refused are left out."""
        loop = asyncio.get_running_loop()
        made = Crowd()
        for number in range(count):
            one = socket.socket()
            one.setblocking(False)
            if receive_bytes is not None:
                one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
            try:
                await asyncio.wait_for(loop.sock_connect(one, (LOOPBACK, self.port)), 10)
                if said:
                    one.send(said)
            except OSError:
                one.close()
                continue
            made.sockets.append(one)
            if number % 64 == 0:
                await asyncio.sleep(0)
        return made


@dataclass(slots=True)
class Crowd:
    """Many connections."""

    sockets: list[socket.socket] = field(default_factory=list)

    def send(self, data: bytes) -> None:
        """Send to all that are still open."""
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.send(data)

    def half_close(self) -> None:
        """Say on all that nothing more comes."""
        for one in self.sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_WR)

    def heard(self) -> list[bytes]:
        """Return up to 64 KiB of what each of them was sent and did not read yet."""
        found: list[bytes] = []
        for one in self.sockets:
            with contextlib.suppress(OSError):
                found.append(one.recv(1 << 16))
        return found

    def reset(self) -> None:
        """Reset all."""
        for one in self.sockets:
            with contextlib.suppress(OSError):
                linger_not(one)
            one.close()
        self.sockets.clear()


def linger_not(one: socket.socket) -> None:
    """Have closing this socket reset its connection."""
    one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
