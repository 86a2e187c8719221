"""Server-sent events: our encoding of each event."""

from __future__ import annotations

import msgspec

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = (
    ("content-type", "text/event-stream"),
    # Proxies that gather a response before they pass it on keep the first token from the tenant.
    ("x-accel-buffering", "no"),
)

# JSON allows these as they are. Some readers of lines take them for the end of one, and an event for two.
_LINE_ENDS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def event(value: object) -> bytes:
    """Return one event with a value as JSON in one line."""
    return b"data: " + one_line(msgspec.json.encode(value)) + b"\n\n"


def one_line(data: bytes) -> bytes:
    """Return JSON in what every reader takes for one line."""
    if not data.isascii():
        for found, escape in _LINE_ENDS:
            data = data.replace(found, escape)
    return data
