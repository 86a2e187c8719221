"""The head and the body of a request, checked before anything is made of them.

How a request is framed was checked in `framing`, before there was a `Head`. Here: what the headers say, how large a
body is, and how long it takes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

from node_agent.front.framing import Head, body_too_large
from orchestrator.files.label_header import HEADER as LABEL_HEADER
from orchestrator.wire.catalogue import Problem, ProblemError

OUR_PREFIX = "x-tidegate-"
TIMEOUT_HEADER = "x-tidegate-timeout-ms"
RESUME_HEADER = "x-tidegate-resume"
NEVER = "never"
"""What a client may say in it: an answer that is cut stays cut."""
OURS = frozenset({LABEL_HEADER, TIMEOUT_HEADER, RESUME_HEADER})
"""The headers of ours that a client may send, each once. `document.REQUEST_HEADERS` describes them."""
JSON_TYPE = "application/json"

_CLIENT_REQUEST = re.compile(r"[\x21-\x7e]{1,128}\Z")
_NAME_CHARS_MAX = 64
_OUR_NAME = OUR_PREFIX.split("-")[1]


class FramingError(ProblemError):
    """What follows on this connection cannot be trusted to be where it seems: answer and close."""


class Client(Protocol):
    """Who asks, as far as one request goes: its body comes from here, and its answer goes there."""

    task: asyncio.Task[None] | None
    """What serves the request."""
    gone: bool
    """Whether the client has left."""
    fault: Problem | None
    """What is wrong with the body, of which nothing more is read then."""
    left: Callable[[], None] | None
    """Called once when the client leaves; None calls nobody. Only after the body was read."""

    def here(self) -> bytes | None:
        """Return the whole body, as long as its head says, where all of it came and nothing of it was taken; else None.
        """

    def bound(self, size_max: int) -> None:
        """Find fault with the body as soon as it is known to have more than `size_max` bytes."""

    async def part(self) -> tuple[bytes, bool] | None:
        """Return the next part of the body, and whether more follows; None when the client is gone, or at fault."""

    def begin(self, status: int, lines: list[str], length: int | None, close: bool) -> None:
        """The answer begins. Its head leaves with the first of `put`. Raises ValueError for a line end in a header.

        `lines` are its headers as they are written, without those that say how the answer ends, and are not the
        caller's any more; `length` is what they say of its body, where they do. `close` ends the connection with it.
        """

    def put(self, data: bytes, last: bool = False) -> bool:
        """Write some of the answer. Returns False when the client is to take some first: await `writable` then.

        Does nothing when the client is gone. Raises ValueError when the answer is not as long as it says.
        """

    async def writable(self) -> None:
        """Return when the client has taken enough of what was written, or is gone."""

    def untaken_bytes(self) -> int:
        """Return what was written and not taken yet."""


App = Callable[[Head, Client], Coroutine[Any, Any, None]]
"""What serves requests."""


def check_encoding(head: Head) -> None:
    """Refuse a body that is packed: its size would say nothing of what it becomes. Raises ProblemError."""
    packed = "content-encoding" in head.once and head.once["content-encoding"].strip().lower() != "identity"
    if packed or "content-encoding" in head.repeated:
        sentence = "The body must not be compressed or encoded."
        raise ProblemError(Problem("unsupported_media_type", sentence, "content-encoding"))


def check_our_headers(head: Head) -> None:
    """Refuse a client that says what only we say. Raises ProblemError.

    A header never names a tenant, an upstream, a salt or a route; labels and a bound of time may be declared, and
    going on elsewhere may be declined, once each.
    """
    if not head.repeated and _OUR_NAME not in " ".join(head.once):
        return  # nearly always: what looks like ours bears our name
    for name, _ in head.headers:
        # Some proxies make hyphens of underscores: what looks like ours after them is refused before them.
        if name[0] == OUR_PREFIX[0] and name not in OURS and name.replace("_", "-").startswith(OUR_PREFIX):
            raise ProblemError(_bad_header(name[:_NAME_CHARS_MAX], "A client may not send this header."))
    for name in head.repeated:
        if name in OURS:
            raise ProblemError(_bad_header(name, "There may be one such header."))
    if RESUME_HEADER in head.once and head.once[RESUME_HEADER] != NEVER:
        raise ProblemError(_bad_header(RESUME_HEADER, f"The one thing to say here is {NEVER}."))


def check_content(head: Head, size_max: int) -> None:
    """Refuse by its head a body that is not JSON or is too large. Raises ProblemError and FramingError."""
    kind = head.once.get("content-type", "")
    if kind != JSON_TYPE and not _is_json(kind):
        raise ProblemError(Problem("unsupported_media_type", param="content-type"))
    if head.length is not None and head.length > size_max:
        raise too_large(size_max)


def client_request(head: Head) -> str | None:
    """Return the client's own id of the request, or None when it gives none that can be kept."""
    if "x-request-id" not in head.once:
        return None
    given = head.once["x-request-id"]
    return given if _CLIENT_REQUEST.match(given) else None


async def read_body(client: Client, size_max: int, timeout_ms: int) -> bytes:
    """Return the whole body. Raises FramingError when it is too large, too late, or ends too early."""
    parts = bytearray()
    client.bound(size_max)
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            more = True
            while more:
                found = await client.part()
                if found is None:
                    raise FramingError(client.fault or Problem("body_incomplete"))
                part, more = found
                parts += part
                if len(parts) > size_max:
                    raise too_large(size_max)
    except TimeoutError:
        raise FramingError(Problem("body_timeout")) from None
    return bytes(parts)


def too_large(size_max: int) -> FramingError:
    """Return the refusal of a body of more than `size_max` bytes."""
    return FramingError(body_too_large(size_max))


def _is_json(kind: str) -> bool:
    media, _, parameter = kind.partition(";")
    charset = parameter.strip().lower().replace('"', "")
    return media.strip().lower() == JSON_TYPE and charset in ("", "charset=utf-8")


def _bad_header(name: str, sentence: str) -> Problem:
    return Problem("invalid_header", sentence, name)
