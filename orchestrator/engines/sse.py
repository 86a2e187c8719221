"""A strict decoder of server-sent events. Pure: bytes in, events out, wherever the bytes were split.

It follows the event-stream format of the HTML standard, with three differences: lines and events are bounded, bytes
that are not UTF-8 are a fault instead of being replaced, and `id` and `retry` mean nothing here.
"""

from __future__ import annotations

from enum import Enum

import msgspec

_LINE_ENDS = (b"\n", b"\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
DATA = b"data: "
EVENT_END = b"\n\n"
BETWEEN = EVENT_END + DATA
_MEANING = b"de"
"""What lines that mean something begin with: `data`, `event`. Others are comments, and fields that we do not read."""
DATA_BYTES, END_BYTES = len(DATA), len(EVENT_END)


class SseEvent(msgspec.Struct, frozen=True):
    """One event with data. Payload: its repr holds no text."""

    name: str
    """The value of the `event` field, empty where the stream told none."""
    data: str
    """The values of the `data` fields, joined by line feeds."""

    def __repr__(self) -> str:
        return f"SseEvent(chars={len(self.data)})"


class SseFault(Enum):
    """Why a stream cannot be read on. It comes after the events before it, and nothing comes after it."""

    LINE_TOO_LONG = "line_too_long"
    EVENT_TOO_LONG = "event_too_long"
    NOT_UTF8 = "not_utf8"


class SseDecoder:
    """Holds one unfinished line and one unfinished event, and no more than their bounds.

    `line_bytes_max` bounds a line without its end, `event_bytes_max` the joined data of one event.
    """

    __slots__ = (
        "_after_cr",
        "_data",
        "_data_bytes",
        "_event_bytes_max",
        "_faulted",
        "_line_bytes_max",
        "_name",
        "_pending",
        "between",
        "on_first_line",
    )

    def __init__(self, *, line_bytes_max: int, event_bytes_max: int) -> None:
        self._line_bytes_max = line_bytes_max
        self._event_bytes_max = event_bytes_max
        self._pending = bytearray()
        self._after_cr = False
        self._name = ""
        self._data: list[str] = []
        self._data_bytes = 0
        self._faulted = False
        self.between = True
        """Whether it holds nothing: what comes next is the beginning of an event."""
        self.on_first_line = True
        """Whether a byte order mark may come. Whoever reads whole events beside it says that none may any more."""

    def feed(self, data: bytes) -> list[SseEvent | SseFault]:
        """Takes the next bytes and returns what they complete. After a fault it returns nothing.

        An event that no empty line has ended is never returned: at the end of the stream it is dropped, as the
        standard says.
        """
        if self._faulted or not data:
            return []
        if self._after_cr and data.startswith(b"\n"):
            # The second half of a CRLF whose first half ended the bytes before.
            data = data[1:]
        self._after_cr = data.endswith(b"\r")
        ended = data.splitlines()
        rest = ended.pop() if ended and not data.endswith(_LINE_ENDS) else b""
        found: list[SseEvent | SseFault] = []
        if self._end_lines(ended, data, found):
            return found
        if len(self._pending) + len(rest) > self._line_bytes_max:
            found.append(self._fault(SseFault.LINE_TOO_LONG))
            return found
        self._pending += rest
        self.between = not (self._pending or self._data or self._name or self._after_cr)
        return found

    def _end_lines(self, ended: list[bytes], data: bytes, found: list[SseEvent | SseFault]) -> bool:
        """Takes lines of `data` that are whole, and adds what they complete. Returns whether that is a fault."""
        # None of them can be at fault, once what begins the first is taken: a flood that means nothing costs little.
        sound = len(data) <= self._line_bytes_max and data.isascii()
        begun = not self._pending and not self.on_first_line
        for part in ended:
            if sound and begun and (part[0] not in _MEANING if part else not self._data and not self._name):
                continue
            begun = True
            outcome = self._end_line(part)
            if outcome is not None:
                found.append(outcome)
                if isinstance(outcome, SseFault):
                    return True
        return False

    def _end_line(self, part: bytes) -> SseEvent | SseFault | None:
        if len(self._pending) + len(part) > self._line_bytes_max:
            return self._fault(SseFault.LINE_TOO_LONG)
        if self._pending:
            line = bytes(self._pending) + part
            self._pending.clear()
        else:
            line = part
        if self.on_first_line:
            self.on_first_line = False
            line = line.removeprefix(_BYTE_ORDER_MARK)
        if not line:
            return self._end_event()
        try:
            text = line.decode("utf-8")
        except UnicodeDecodeError:
            return self._fault(SseFault.NOT_UTF8)
        field, _, value = text.partition(":")
        value = value.removeprefix(" ")
        if field == "event":
            self._name = value
        elif field == "data":
            # The joining line feed counts too, so that empty data lines cannot grow without bound.
            self._data_bytes += len(line) - len("data") + (1 if self._data else 0)
            if self._data_bytes > self._event_bytes_max:
                return self._fault(SseFault.EVENT_TOO_LONG)
            self._data.append(value)
        return None

    def _end_event(self) -> SseEvent | None:
        name, data = self._name, self._data
        self._name, self._data, self._data_bytes = "", [], 0
        return SseEvent(name, "\n".join(data)) if data else None

    def _fault(self, fault: SseFault) -> SseFault:
        self._faulted, self.between = True, False
        self._pending.clear()
        self._data.clear()
        return fault


def plain_data(data: bytes, line_bytes_max: int) -> list[bytes] | None:
    """Return the data of whole events of one `data` line each, as all engines write them; None where there is more.

    `data` ends with the end of an event. It reads what `SseDecoder` reads of the same bytes, and is there because it
    costs a tenth of it.
    """
    if not data.startswith(DATA) or b"\r" in data:
        return None
    found = data[DATA_BYTES:-END_BYTES].split(BETWEEN)
    # The ends of the events are all line feeds that there are: none is left inside of one.
    if b"\n" in b"".join(found):
        return None
    if not data.isascii():
        try:
            data.decode()
        except UnicodeDecodeError:
            return None
    # No line is longer than all of them together.
    if len(data) > line_bytes_max and max(map(len, found)) + DATA_BYTES > line_bytes_max:
        return None
    return found
