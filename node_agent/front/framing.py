"""HTTP/1.1 requests as bytes: the one way in which each is read, or why it is not read at all. Pure.

Two parsers that read one connection in two ways are how a request is smuggled past the first of them. So nothing here
is lenient: lines end with CR LF, a target is a path, a body has a length or is in plain chunks, and whatever the
standard lets a server repair or ignore (folded lines, two equal lengths, a length beside chunks, chunk extensions,
trailers, names with an underscore) is refused.
"""

from __future__ import annotations

import re

import msgspec

from orchestrator.wire.catalogue import Problem

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
TARGET_BYTES_MAX = 4 * 1024
HEAD_END = b"\r\n\r\n"

_NAME = rb"[!#$%&'*+.^`|~0-9A-Za-z-]{1,64}"
_VALUE = rb"[\t\x20-\x7e\x80-\xff]*+"
# Possessive throughout: nothing is tried twice, so the time is in proportion to the bytes.
_FIRST_LINE = re.compile(
    rb"([A-Z][A-Z-]{0,31}+) (/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*+)(?:\?([A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]-]*+))?"
    rb" HTTP/1\.([01])\r\n"
)
_LINES = re.compile(rb"(?:" + _NAME + rb":" + _VALUE + rb"\r\n)*+\r\n\Z")
_LINE = re.compile(rb"(" + _NAME + rb"):[ \t]*+(" + _VALUE + rb")\r\n")
_UNDERSCORE = re.compile(rb"\n([!#$%&'*+.^`|~0-9A-Za-z_-]{0,63}_[!#$%&'*+.^`|~0-9A-Za-z_-]{0,63}):")
_FRAMING = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))
_HOST = re.compile(rb"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")
_DIGITS = re.compile(rb"[0-9]{1,18}\Z")
_NEVER_IN_A_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
_CHUNK_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,8}\r?\Z")


class Malformed(Exception):
    """These bytes are not read as a request. What follows them cannot be trusted to be where it seems."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.entry.code)
        self.problem = problem


class RequestHead(msgspec.Struct, frozen=True):
    """The first lines of one request. Its repr shows no header: one of them is a key."""

    method: str
    path: bytes
    query: bytes
    headers: list[tuple[bytes, bytes]]
    """Names in lower case, in the order of arrival; a name may stand more than once."""
    length: int | None
    """Bytes of the body; None where it comes in chunks."""
    keep_alive: bool
    """Whether the client wants another request on this connection."""
    expects: bool
    """Whether the client waits for a word before it sends the body."""
    chunks_allowed: bool
    """Whether the client reads an answer in chunks."""

    def __repr__(self) -> str:
        return f"RequestHead({self.method})"


def read_head(head: bytes) -> RequestHead:
    """Return the head that ends with an empty line. Raises Malformed."""
    if len(head) > HEAD_BYTES_MAX:
        raise Malformed(Problem("head_too_large"))
    first = _FIRST_LINE.match(head)
    if first is None:
        raise Malformed(Problem("invalid_request_line"))
    method, path, query, minor = first.groups()
    if len(path) + len(query or b"") > TARGET_BYTES_MAX:
        raise Malformed(Problem("head_too_large", f"The path is longer than {TARGET_BYTES_MAX} bytes."))
    if _LINES.match(head, first.end()) is None:
        named = _UNDERSCORE.search(head)
        if named is not None:
            # Some proxies make hyphens of underscores: two headers for us may be one for them.
            raise Malformed(_bad_header(named[1][:64].decode().lower(), "A header's name must not have an underscore."))
        raise Malformed(Problem("invalid_header", "A line of the head is not a header."))
    headers = [(name.lower(), value.rstrip(b" \t")) for name, value in _LINE.findall(head, first.end())]
    if len(headers) > HEADERS_MAX:
        raise Malformed(Problem("head_too_large", f"There are more than {HEADERS_MAX} headers."))
    return _framed(method.decode(), path, query or b"", headers, minor == b"1")


def fault_so_far(begun: bytes | bytearray, since: int) -> Problem | None:
    """Return what is already wrong with a head whose end is not here yet. Bytes before `since` were seen before."""
    if _NEVER_IN_A_HEAD.search(begun, max(0, since - 1)) is not None:
        return Problem("invalid_request_line", "Lines end with CR LF, and a head has no other control characters.")
    return Problem("head_too_large") if len(begun) > HEAD_BYTES_MAX else None


def _framed(
    method: str, path: bytes, query: bytes, headers: list[tuple[bytes, bytes]], current: bool
) -> RequestHead:
    hosts = lengths = codings = 0
    length: int | None = 0
    keep_alive, expects = current, False
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == b"host":
            hosts += 1
            if _HOST.match(value) is None:
                raise Malformed(_bad_header("host", "There must be one Host header, with a host."))
        elif name == b"content-length":
            lengths += 1
            if _DIGITS.match(value) is None:
                raise Malformed(_bad_header("content-length", "There must be one Content-Length, in digits."))
            length = int(value)
        elif name == b"transfer-encoding":
            codings += 1
            if value.lower() != b"chunked" or not current:
                raise Malformed(_bad_header("transfer-encoding", "The only transfer coding is chunked."))
        elif name == b"connection":
            options = [option.strip() for option in value.lower().split(b",")]
            keep_alive = b"close" not in options and (keep_alive or b"keep-alive" in options)
        elif name == b"expect":
            if value.lower() != b"100-continue":
                raise Malformed(_bad_header("expect", "The only expectation is 100-continue."))
            expects = current
    if hosts != 1:
        raise Malformed(_bad_header("host", "There must be one Host header, with a host."))
    if lengths > 1:
        raise Malformed(_bad_header("content-length", "There must be one Content-Length, in digits."))
    if codings > 1:
        raise Malformed(_bad_header("transfer-encoding", "The only transfer coding is chunked."))
    if codings and lengths:
        sentence = "A body has a length or a transfer coding, not both."
        raise Malformed(_bad_header("transfer-encoding", sentence))
    return RequestHead(method, path, query, headers, None if codings else length, keep_alive, expects, current)


def _bad_header(name: str, sentence: str) -> Problem:
    return Problem("invalid_header", sentence, name)


class Body:
    """How far the body of one request has come."""

    __slots__ = ("_after_data", "_chunked", "_last", "_left", "ended")

    def __init__(self, length: int | None) -> None:
        self._chunked = length is None
        self._left = length or 0
        """Bytes still to come: of the body, or of this chunk."""
        self._after_data = False
        """Whether the line end after a chunk's data is due."""
        self._last = False
        """Whether the chunk without data was read."""
        self.ended = length == 0

    def take(self, data: bytes, at: int = 0) -> tuple[bytes, int]:
        """Return what of the body stands in `data` from `at` on, and where the rest begins. Raises Malformed.

        The rest, at most a few bytes until the body has ended, is to be given again in front of what comes next.
        """
        if not self._chunked:
            part = data[at : at + self._left]
            self._left -= len(part)
            self.ended = self._left == 0
            return part, at + len(part)
        parts: list[bytes] = []
        while not self.ended and at < len(data):
            if self._left:
                part = data[at : at + self._left]
                parts.append(part)
                at += len(part)
                self._left -= len(part)
                self._after_data = self._left == 0
            elif self._after_data or self._last:
                if not data.startswith(b"\r\n", at):
                    if data[at:] == b"\r":
                        break
                    raise Malformed(Problem("body_incomplete"))
                at += 2
                self.ended = self._last
                self._after_data = False
            else:
                line = _CHUNK_LINE.match(data, at)
                if line is None:
                    if _CHUNK_LINE_BEGUN.match(data, at) is None:
                        raise Malformed(Problem("body_incomplete"))
                    break
                at = line.end()
                self._left = int(line[1], 16)
                self._last = self._left == 0
        return b"".join(parts), at
