"""HTTP/1.1 requests as bytes: the one way in which each is read, or why it is not read at all. Pure.

Two parsers that read one connection in two ways are how a request is smuggled past the first of them. So nothing here
is lenient: lines end with CR LF, a target is a path, a body has a length or is in plain chunks, and whatever the
standard lets a server repair or ignore (folded lines, two equal lengths, a length beside chunks, chunk extensions,
trailers, names with an underscore) is refused.
"""

from __future__ import annotations

import re
from collections import Counter

import msgspec

from orchestrator.wire.catalogue import Problem

HEAD_BYTES_MAX = 32 * 1024
HEADERS_MAX = 100
TARGET_BYTES_MAX = 4 * 1024
HEAD_END = b"\r\n\r\n"

Pair = tuple[str, str]
"""A header: its name in lower case, and its value."""

# A head is text of one byte a character: every expression says which of the 256 it takes.
_NAME = r"[!#$%&'*+.^`|~0-9A-Za-z-]{1,64}"
_VALUE = r"[\t\x20-\x7e\x80-\xff]*+"
# Possessive throughout: nothing is tried twice, so the time is in proportion to the bytes.
_FIRST_LINE = re.compile(
    r"([A-Z][A-Z-]{0,31}+) (/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*+)(?:\?([A-Za-z0-9._~!$&'()*+,;=:@%/?\[\]-]*+))?"
    r" HTTP/1\.([01])\r\n"
)
_HEAD = re.compile(_FIRST_LINE.pattern + r"((?:" + _NAME + r":" + _VALUE + r"\r\n)*+)\r\n\Z")
_UNDERSCORE = re.compile(r"\n([!#$%&'*+.^`|~0-9A-Za-z-]*+_[!#$%&'*+.^`|~0-9A-Za-z_-]*+):")
_FRAMING = frozenset(("host", "content-length", "transfer-encoding", "connection", "expect"))
_NONE: frozenset[str] = frozenset()
_HOST = re.compile(r"(?:[A-Za-z0-9._-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?\Z")
_DIGITS_MAX = 18
_DIGITS = re.compile(rf"[0-9]{{1,{_DIGITS_MAX}}}\Z")
_NEVER_IN_A_HEAD = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]|(?<!\r)\n|\r(?=[^\n])")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,8})\r\n")
CHUNKS_MAX = 4_096
"""The chunks that any body may come in."""
BYTES_A_CHUNK = 64
"""A body of more chunks has so many bytes for each of them at least: a chunk costs far more to read than a byte."""
_CHUNK_LINE_BEGUN = re.compile(rb"[0-9A-Fa-f]{0,8}\r?\Z")


class Malformed(Exception):
    """These bytes are not read as a request. What follows them cannot be trusted to be where it seems."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.entry.code)
        self.problem = problem


class Head(msgspec.Struct, frozen=True):
    """The first lines of one request. Its repr shows no header: one of them is a key."""

    method: str
    path: str
    """As it was written. An escape is not undone, so that one resource has one path."""
    query: str
    several: list[Pair]
    """All headers, where a name stands more than once; else none."""
    once: dict[str, str]
    """The value of every header whose name stands once."""
    repeated: frozenset[str]
    """The names that stand more than once."""
    length: int | None
    """Bytes of the body; None where it comes in chunks."""
    keep_alive: bool
    """Whether the client wants another request on this connection."""
    expects: bool
    """Whether the client waits for a word before it sends the body."""
    chunks_allowed: bool
    """Whether the client reads an answer in chunks."""
    fault: Problem | None = None
    """Set when the request could not be read; the rest is empty then."""

    @property
    def headers(self) -> list[Pair]:
        """All headers in the order of arrival; a name may stand more than once."""
        return self.several or list(self.once.items())

    def __repr__(self) -> str:
        return f"Head({self.method})"


def unread(problem: Problem) -> Head:
    """Return the head of a request that could not be read."""
    return Head("", "", "", [], {}, frozenset(), 0, False, False, True, problem)


def read_head(head: bytes) -> Head:
    """Return the head that ends with an empty line. Raises Malformed."""
    size = len(head)
    if size > HEAD_BYTES_MAX:
        raise Malformed(Problem("head_too_large"))
    text = head.decode("latin-1")
    found = _HEAD.match(text)
    if found is None:
        raise Malformed(_fault(text))
    method, path, query, minor, lines = found.groups("")
    if size > TARGET_BYTES_MAX and len(path) + len(query) > TARGET_BYTES_MAX:
        raise Malformed(_long_target())
    written, current = lines.split("\r\n"), minor == "1"
    written.pop()  # nothing stands after the last end of a line
    if len(written) > HEADERS_MAX:
        raise Malformed(Problem("head_too_large", f"There are more than {HEADERS_MAX} headers."))
    once: dict[str, str] = {}
    for line in written:
        name, _, value = line.partition(":")
        once[name.lower()] = value.strip(" \t")
    if len(once) == len(written) and "transfer-encoding" not in once and "expect" not in once:
        # Nearly always. Whatever is wrong is told by the walk below.
        host, given, said = once.get("host"), once.get("content-length", "0"), once.get("connection")
        # Of the 256 characters, the ten digits alone are decimal.
        if host is not None and _HOST.match(host) is not None and given.isdecimal() and len(given) <= _DIGITS_MAX:
            keeps = current if said is None else said == "keep-alive" or _keeps(said, current)
            return Head(method, path, query, [], once, _NONE, int(given), keeps, False, current)
    parts = [line.partition(":") for line in written]
    return _walked(method, path, query, [(name.lower(), value.strip(" \t")) for name, _, value in parts], current)


def fault_so_far(begun: bytes | bytearray, since: int) -> Problem | None:
    """Return what is already wrong with a head whose end is not here yet. Bytes before `since` were seen before."""
    if _NEVER_IN_A_HEAD.search(begun, max(0, since - 1)) is not None:
        return Problem("invalid_request_line", "Lines end with CR LF, and a head has no other control characters.")
    return Problem("head_too_large") if len(begun) > HEAD_BYTES_MAX else None


def _fault(text: str) -> Problem:
    """Return what is wrong with a head that `_HEAD` does not match."""
    first = _FIRST_LINE.match(text)
    if first is None:
        return Problem("invalid_request_line")
    _, path, query, _ = first.groups("")
    if len(path) + len(query) > TARGET_BYTES_MAX:
        return _long_target()
    named = _UNDERSCORE.search(text)
    if named is not None:
        # Some proxies make hyphens of underscores: two headers for us may be one for them.
        return _bad_header(named[1][:64].lower(), "A header's name must not have an underscore.")
    return Problem("invalid_header", "A line of the head is not a header.")


def _long_target() -> Problem:
    return Problem("head_too_large", f"The path is longer than {TARGET_BYTES_MAX} bytes.")


def _keeps(said: str, current: bool) -> bool:
    """Whether the connection goes on after the answer, by one header that says something of it."""
    options = [option.strip(" \t") for option in said.lower().split(",")]
    return (current or "keep-alive" in options) and "close" not in options


def _walked(method: str, path: str, query: str, headers: list[Pair], current: bool) -> Head:
    """Return the head, after every header was looked at in its order. Raises Malformed."""
    hosts = lengths = codings = 0
    length: int | None = 0
    keep_alive, closes, expects = current, False, False
    for name, value in headers:
        if name not in _FRAMING:
            continue
        if name == "host":
            hosts += 1
            if _HOST.match(value) is None:
                raise Malformed(_bad_header("host", "There must be one Host header, with a host."))
        elif name == "content-length":
            lengths += 1
            if _DIGITS.match(value) is None:
                raise Malformed(_bad_header("content-length", "There must be one Content-Length, in digits."))
            length = int(value)
        elif name == "transfer-encoding":
            codings += 1
            if value.lower() != "chunked" or not current:
                raise Malformed(_bad_header("transfer-encoding", "The only transfer coding is chunked."))
        elif name == "connection":
            options = [option.strip(" \t") for option in value.lower().split(",")]
            keep_alive = keep_alive or "keep-alive" in options
            closes = closes or "close" in options
        elif name == "expect":
            if value.lower() != "100-continue":
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
    if codings:
        length = None
    once, repeated = dict(headers), _NONE
    if len(once) < len(headers):
        repeated = _repeated(headers)
        once = {name: value for name, value in headers if name not in repeated}
    several = headers if repeated else []
    return Head(method, path, query, several, once, repeated, length, keep_alive and not closes, expects, current)


def _repeated(headers: list[Pair]) -> frozenset[str]:
    counts = Counter(name for name, _ in headers)
    return frozenset(name for name, count in counts.items() if count > 1)


def _many_chunks() -> Problem:
    sentence = (
        f"The body came in more than {CHUNKS_MAX} chunks and one for each {BYTES_A_CHUNK} bytes of it."
        " Send larger chunks, or a Content-Length."
    )
    return Problem("body_too_large", sentence)


def body_too_large(size_max: int) -> Problem:
    """Return the refusal of a body of more than `size_max` bytes."""
    return Problem("body_too_large", f"The body is larger than {size_max} bytes.")


def _bad_header(name: str, sentence: str) -> Problem:
    return Problem("invalid_header", sentence, name)


class Body:
    """How far the body of one request has come."""

    __slots__ = ("_after_data", "_chunked", "_chunks", "_last", "_left", "ended", "size")

    def __init__(self, length: int | None) -> None:
        self._chunked = length is None
        self._left = length or 0
        """Bytes still to come: of the body, or of this chunk."""
        self._after_data = False
        """Whether the line end after a chunk's data is due."""
        self._last = False
        """Whether the chunk without data was read."""
        self._chunks = 0
        """How many chunks have begun."""
        self.size = length or 0
        """Its bytes, as far as they were announced: here or not."""
        self.ended = length == 0

    def take(self, data: bytes, at: int = 0) -> tuple[bytes, int]:
        """Return what of the body stands in `data` from `at` on, and where the rest begins. Raises Malformed.

        The rest, at most a few bytes until the body has ended, is to be given again in front of what comes next.
        """
        if not self._chunked:
            part = data[at : at + self._left]
            size = len(part)
            self._left -= size
            self.ended = self._left == 0
            return part, at + size
        return self._dechunked(data, at)

    def _dechunked(self, data: bytes, at: int) -> tuple[bytes, int]:
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
                at = self._whole(data, at, parts)
                line = _CHUNK_LINE.match(data, at)
                if line is None:
                    if _CHUNK_LINE_BEGUN.match(data, at) is None:
                        raise Malformed(Problem("body_incomplete"))
                    break
                at = line.end()
                self._left = size = int(line[1], 16)
                self._last = size == 0
                self._chunks += 1
                self.size += size
                if self._chunks > CHUNKS_MAX + self.size // BYTES_A_CHUNK:
                    raise Malformed(_many_chunks())
        return b"".join(parts), at

    def _whole(self, data: bytes, at: int, parts: list[bytes]) -> int:
        """Take the chunks that are here as a whole, but for the one without data. Returns where the rest begins."""
        match, chunks, size = _CHUNK_LINE.match, self._chunks, self.size
        while (line := match(data, at)) is not None:
            start = line.end()
            length = int(line[1], 16)
            end = start + length
            if not length or data[end : end + 2] != b"\r\n":
                break
            parts.append(data[start:end])
            at = end + 2
            chunks += 1
            size += length
            if chunks > CHUNKS_MAX and chunks > CHUNKS_MAX + size // BYTES_A_CHUNK:
                raise Malformed(_many_chunks())
        self._chunks, self.size = chunks, size
        return at
