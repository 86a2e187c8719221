"""The head and the body of a request, checked before anything is made of them.

The HTTP library hands over two headers of one name as two, a path as it was written, and a body in pieces. It leaves
to us: how many of a header there may be, how large a body is, and how long it takes.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from orchestrator.files.label_header import HEADER as LABEL_HEADER
from orchestrator.wire.catalogue import Problem, ProblemError

Message = MutableMapping[str, Any]
Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

OUR_PREFIX = "x-tidegate-"
RESUME_HEADER = "x-tidegate-resume"
NEVER = "never"
"""What a client may say in it: an answer that is cut stays cut."""
JSON_TYPE = "application/json"

_HOST = re.compile(r"[A-Za-z0-9._:\[\]-]{1,255}\Z")
_DIGITS = re.compile(r"[0-9]{1,18}\Z")
_CLIENT_REQUEST = re.compile(r"[\x21-\x7e]{1,128}\Z")
_NAME_CHARS_MAX = 64


class FramingError(ProblemError):
    """What follows on this connection cannot be trusted to be where it seems: answer and close."""


@dataclass(frozen=True, slots=True)
class Head:
    """The first lines of a request. Its repr shows no header: one of them is a key."""

    method: str
    path: str
    """As it was written. An escape is not undone, so that one resource has one path."""
    query: bytes
    headers: tuple[tuple[str, str], ...]
    """Names in lower case, in the order of arrival; a name may stand more than once."""

    def __repr__(self) -> str:
        return f"Head({self.method})"

    def all(self, name: str) -> list[str]:
        """Return every value of a header."""
        return [value for found, value in self.headers if found == name]


def head_of(scope: Scope) -> Head:
    """Return the head of an ASGI scope."""
    raw = scope.get("raw_path")
    path = scope["path"] if raw is None else raw.decode("latin-1")
    pairs = [(name.decode("latin-1").lower(), value.decode("latin-1")) for name, value in scope["headers"]]
    return Head(scope["method"], path, scope["query_string"], tuple(pairs))


def check_framing(head: Head) -> None:
    """Refuse a head that two parsers could read in two ways. Raises FramingError and ProblemError."""
    hosts = head.all("host")
    if len(hosts) != 1 or _HOST.match(hosts[0]) is None:
        raise FramingError(_bad_header("host", "There must be one Host header, with a host."))
    codings, lengths = head.all("transfer-encoding"), head.all("content-length")
    if codings and (len(codings) > 1 or codings[0].strip().lower() != "chunked"):
        raise FramingError(_bad_header("transfer-encoding", "The only transfer coding is chunked."))
    if codings and lengths:
        raise FramingError(_bad_header("transfer-encoding", "A body has a length or a transfer coding, not both."))
    if len(lengths) > 1 or (lengths and _DIGITS.match(lengths[0]) is None):
        raise FramingError(_bad_header("content-length", "There must be one Content-Length, in digits."))
    encodings = head.all("content-encoding")
    if len(encodings) > 1 or (encodings and encodings[0].strip().lower() != "identity"):
        sentence = "The body must not be compressed or encoded."
        raise ProblemError(Problem("unsupported_media_type", sentence, "content-encoding"))


def check_our_headers(head: Head) -> None:
    """Refuse a client that says what only we say. Raises ProblemError.

    A header never names a tenant, an upstream, a salt or a route; the labels may be declared, once, and going on
    elsewhere may be declined.
    """
    for name, _ in head.headers:
        # Some proxies make hyphens of underscores: what looks like ours after them is refused before them.
        if name.replace("_", "-").startswith(OUR_PREFIX) and name not in (LABEL_HEADER, RESUME_HEADER):
            raise ProblemError(_bad_header(name[:_NAME_CHARS_MAX], "A client may not send this header."))
    if len(head.all(LABEL_HEADER)) > 1:
        raise ProblemError(_bad_header(LABEL_HEADER, "There may be one header with labels."))
    if head.all(RESUME_HEADER) not in ([], [NEVER]):
        raise ProblemError(_bad_header(RESUME_HEADER, f"The one thing to say here, once, is {NEVER}."))


def check_content(head: Head, size_max: int) -> None:
    """Refuse by its head a body that is not JSON or is too large. Raises ProblemError and FramingError."""
    kinds = head.all("content-type")
    if len(kinds) != 1 or not _is_json(kinds[0]):
        raise ProblemError(Problem("unsupported_media_type", param="content-type"))
    lengths = head.all("content-length")
    if lengths and int(lengths[0]) > size_max:
        raise too_large(size_max)


def client_request(head: Head) -> str | None:
    """Return the client's own id of the request, or None when it gives none that can be kept."""
    given = head.all("x-request-id")
    return given[0] if len(given) == 1 and _CLIENT_REQUEST.match(given[0]) else None


async def read_body(receive: Receive, size_max: int, timeout_ms: int) -> bytes:
    """Return the whole body. Raises FramingError when it is too large, too late, or ends too early."""
    parts = bytearray()
    try:
        async with asyncio.timeout(timeout_ms / 1000):
            more = True
            while more:
                message = await receive()
                if message["type"] != "http.request":
                    raise FramingError(Problem("body_incomplete"))
                parts += message.get("body", b"")
                more = message.get("more_body", False)
                if len(parts) > size_max:
                    raise too_large(size_max)
    except TimeoutError:
        raise FramingError(Problem("body_timeout")) from None
    return bytes(parts)


def too_large(size_max: int) -> FramingError:
    """Return the refusal of a body of more than `size_max` bytes."""
    return FramingError(Problem("body_too_large", f"The body is larger than {size_max} bytes."))


def _is_json(kind: str) -> bool:
    media, _, parameter = kind.partition(";")
    charset = parameter.strip().lower().replace('"', "")
    return media.strip().lower() == JSON_TYPE and charset in ("", "charset=utf-8")


def _bad_header(name: str, sentence: str) -> Problem:
    return Problem("invalid_header", sentence, name)
