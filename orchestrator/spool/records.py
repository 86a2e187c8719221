"""What a spool holds and how it refuses: values and errors.

SpoolError
├── SpoolFull       no room, now; nothing was written
├── SpoolConflict   the id is taken by another record
├── BadRecord       a record that no spool can hold
├── SpoolCorrupt    bytes that were once good are not
├── SpoolBroken     the disk failed; this spool writes no more until it is opened again
├── SpoolLocked     another process has it open
└── SpoolClosed     it was closed
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum
from functools import lru_cache
from typing import Final, NewType, final

import msgspec

RecordKind = NewType("RecordKind", str)
"""What a record is to its reader, such as `decision`: 1 to 32 of a-z, 0-9 and `_`."""
DECISION: Final = RecordKind("decision")
USAGE: Final = RecordKind("usage")
RecordId = NewType("RecordId", str)
"""Names a record for good: 1 to 96 printable ASCII characters without a space."""

Holder = NewType("Holder", str)
"""Who has a share of a spool, and must leave the others theirs: at an edge a tenant."""

DATA_BYTES_MAX: Final = 64 * 1024
RETAIN_MS_MAX: Final = 2**63 - 1

_KIND = re.compile(r"[a-z0-9_]{1,32}\Z")
_ID_CHARS_MAX = 96


@lru_cache(maxsize=64)
def _is_kind(text: str) -> bool:
    return _KIND.match(text) is not None


class SpoolError(Exception):
    """A spool cannot do what was asked."""


class Rank(Enum):
    """Who gives way when room runs out."""

    SPARE = "spare"
    """Nothing waits for it, such as a refusal: whoever makes many of these must not stop what is admitted."""
    NEW = "new"
    CLOSES = "closes"
    """It completes something admitted before, and may use the reserves."""


class FullReason(Enum):
    """Which bound of the spool was reached."""

    SPARE_ROOM = "spare_room"
    """What is left is not for records that can be spared."""

    SHARE = "share"
    """Whoever the record is of has more than its share."""
    REGULATED_RESERVE = "regulated_reserve"
    """What is left is not for new durable records."""
    CLOSING_RESERVE = "closing_reserve"
    """What is left is for records that close something admitted before."""
    CAPACITY = "capacity"
    BACKLOG = "backlog"
    """Too many records wait to be shipped."""
    PENDING = "pending"
    """Too many appends wait for the disk."""
    DISK = "disk"
    """The file system has no space."""


class SpoolFull(SpoolError):
    """There is no room for this record now. Nothing was written."""

    def __init__(self, kind: RecordKind, reason: FullReason) -> None:
        super().__init__(f"the spool has no room for a record of kind {kind}: {reason.value}")
        self.kind = kind
        self.reason = reason


class SpoolConflict(SpoolError):
    """Another record has this id already, with other content."""


class BadRecord(SpoolError):
    """No spool can hold this record: its kind, id, size or retention is out of bounds."""


class SpoolCorrupt(SpoolError):
    """Bytes that were once good are damaged. An operator decides; the spool never drops them by itself."""

    def __init__(self, segment: int, offset: int, cause: str) -> None:
        super().__init__(f"spool segment {segment} is damaged at byte {offset}: {cause}")
        self.segment = segment
        self.offset = offset


class SpoolBroken(SpoolError):
    """Reading, writing or syncing failed. After a failed write or sync nothing more is written until a new start."""


class SpoolLocked(SpoolError):
    """Another process has this spool open."""


class SpoolClosed(SpoolError):
    """This spool was closed."""


@final
class Position(msgspec.Struct, frozen=True, order=True):
    """A place between two records. Positions of one spool are ordered as its records are."""

    segment: int
    offset: int
    """Bytes from the start of the segment's file."""


def check_record(kind: str, record_id: str, data_bytes: int, retain_until_ms: int) -> None:
    """Raises BadRecord for what no spool can hold; `data_bytes` is the size of its data."""
    if not _is_kind(kind):
        raise BadRecord("expected a kind of 1 to 32 characters of a-z, 0-9 and _")
    # That it is an identifier, as ours are, is said in half of the time.
    printable = record_id.isidentifier() or (record_id.isprintable() and " " not in record_id)
    if not (printable and record_id.isascii() and 0 < len(record_id) <= _ID_CHARS_MAX):
        raise BadRecord("expected an id of 1 to 96 printable ASCII characters")
    if data_bytes > DATA_BYTES_MAX:
        raise BadRecord(f"expected at most {DATA_BYTES_MAX} bytes")
    if not 0 <= retain_until_ms <= RETAIN_MS_MAX:
        raise BadRecord("expected a retention time in milliseconds since 1970")


class Offered(msgspec.Struct, frozen=True, gc=False):
    """A checked record that is to be written, and how."""

    kind: RecordKind
    record_id: RecordId
    told: bytes
    """Kind, id and retention, as a segment holds them: all of a frame between its checksum and its data."""
    data: bytes
    """At most 64 KiB. The spool knows nothing of its meaning."""
    retain_until_ms: int
    """Unix time before which the record is not deleted, even if it was shipped; 0 is none."""
    durable: bool
    rank: Rank
    size_bytes: int
    """What it takes in a segment."""
    holder: Holder | None = None
    """Out of whose share; None where it is nobody's."""

    def __repr__(self) -> str:
        return f"Offered({self.kind} {self.record_id})"


Outcome = Position | SpoolError
"""What became of a record: where it begins, or why it was not written."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One record as it is read."""

    kind: RecordKind
    record_id: RecordId
    data: bytes = field(repr=False)
    retain_until_ms: int
    position: Position
    """Where the record begins."""
    following: Position
    """Where the next one begins: what to release once this one is shipped."""


@dataclass(frozen=True, slots=True)
class Released:
    """What a release did."""

    segments_deleted: int
    bytes_freed: int
    segments_retained: int
    """Shipped segments that are kept because a record in them is younger than its retention."""
