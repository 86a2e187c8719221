"""The files of a spool: segments, the lock and the shipped position. Every call here may block on the disk."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.spool.framing import (
    SALT_BYTES,
    SEGMENT_HEADER_BYTES,
    Scan,
    decode_frame,
    decode_segment_header,
    encode_segment_header,
    scan_segment,
)
from orchestrator.spool.records import (
    Entry,
    Offered,
    Position,
    SpoolBroken,
    SpoolConflict,
    SpoolCorrupt,
    SpoolLocked,
)

NO_SPACE = frozenset({errno.ENOSPC, errno.EDQUOT})

_SEGMENT_NAME = re.compile(r"([0-9]{12})\.seg\Z")
_SHIPPED_NAME = "shipped"
_SHIPPED = struct.Struct(">QQ")
_CRC = struct.Struct(">I")


@dataclass(slots=True)
class Segment:
    """One file of the spool, as far as it is known."""

    number: int
    path: Path
    size_bytes: int
    salt: bytes | None = None
    """None until the file was read."""
    retain_until_ms: int | None = None
    """The latest retention of its records; None until the file was read."""


@contextmanager
def disk(doing: str) -> Iterator[None]:
    """Turns the failures of the disk into SpoolBroken."""
    try:
        yield
    except OSError as failure:
        raise SpoolBroken(f"the spool failed while {doing}: {failure.strerror}") from failure


def lock_folder(folder: Path) -> int:
    """Makes the folder and takes its lock, which the kernel gives back when the process ends. Raises SpoolLocked."""
    with disk("opening its folder"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(folder / "LOCK", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as failure:
        os.close(descriptor)
        if failure.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise SpoolLocked(f"the spool in {folder} is open in another process") from None
        raise SpoolBroken(f"the spool in {folder} cannot be locked: {failure.strerror}") from failure
    return descriptor


def list_segments(folder: Path) -> list[Segment]:
    """The segments in order. Raises SpoolBroken."""
    with disk("listing its segments"):
        found = [
            Segment(int(name[1]), entry, entry.stat().st_size)
            for entry in folder.iterdir()
            if (name := _SEGMENT_NAME.match(entry.name))
        ]
    return sorted(found, key=lambda segment: segment.number)


def check_sequence(segments: list[Segment], shipped: Position | None) -> None:
    """Raises SpoolCorrupt when a segment is missing that holds what is not shipped. Shipped ones may be gone."""
    expected = shipped.segment if shipped is not None else 1
    for segment in segments:
        if segment.number < expected:
            continue
        if segment.number != expected:
            raise SpoolCorrupt(expected, 0, "the segment is missing")
        expected += 1
    if shipped is not None and expected == shipped.segment:
        raise SpoolCorrupt(expected, 0, "the segment is missing")


def scan_file(segment: Segment) -> Scan:
    """Reads a whole segment and notes its salt and retention. Raises SpoolCorrupt and SpoolBroken."""
    with disk("reading a segment"):
        data = segment.path.read_bytes()
    salt = decode_segment_header(data, segment.number)
    scan = scan_segment(data, salt, segment.number)
    segment.salt = salt
    segment.retain_until_ms = max((frame.retain_until_ms for frame in scan.frames), default=0)
    return scan


def read_segment(segment: Segment, start: int, end: int) -> tuple[bytes, bytes]:
    """The bytes of a segment from `start` to `end`, and its salt.

    Raises FileNotFoundError when the segment was deleted meanwhile, SpoolCorrupt, SpoolBroken.
    """
    try:
        with segment.path.open("rb") as file:
            if segment.salt is None:
                segment.salt = decode_segment_header(file.read(SEGMENT_HEADER_BYTES), segment.number)
            file.seek(start)
            data = file.read(end - start)
    except FileNotFoundError:
        raise
    except OSError as failure:
        raise SpoolBroken(f"the spool failed while reading a segment: {failure.strerror}") from failure
    if len(data) < end - start:
        raise SpoolCorrupt(segment.number, start + len(data), "the segment is shorter than it was")
    return data, segment.salt


def is_unborn(segment: Segment) -> bool:
    """Whether the file is a segment whose creation was cut: it never held a record."""
    if segment.size_bytes > SEGMENT_HEADER_BYTES:
        return False
    with disk("reading a segment"):
        data = segment.path.read_bytes()
    return len(data) < SEGMENT_HEADER_BYTES or not any(data)


def create_segment(folder: Path, number: int) -> tuple[Segment, int]:
    """A new segment and its descriptor, both durable before this returns. Raises OSError, and leaves nothing then."""
    path = folder / f"{number:012d}.seg"
    salt = secrets.token_bytes(SALT_BYTES)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        write_all(descriptor, encode_segment_header(number, salt))
        os.fsync(descriptor)
        sync_folder(folder)
    except OSError:
        os.close(descriptor)
        path.unlink(missing_ok=True)
        raise
    return Segment(number, path, SEGMENT_HEADER_BYTES, salt, 0), descriptor


def open_segment(segment: Segment) -> int:
    """A descriptor that appends to an existing segment. Raises SpoolBroken."""
    with disk("opening a segment"):
        return os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)


def write_all(descriptor: int, data: bytes) -> None:
    """Writes all of `data`. Raises OSError, after which a part may have been written."""
    while data:  # hardly ever twice
        data = data[os.write(descriptor, data) :]


def sync_folder(folder: Path) -> None:
    """Makes the names in a folder durable. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_shipped(folder: Path) -> Position | None:
    """The shipped position. None where there is none or it cannot be read: then everything is shipped once more."""
    try:
        data = (folder / _SHIPPED_NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as failure:
        raise SpoolBroken(f"the spool failed while reading its position: {failure.strerror}") from failure
    body, checksum = data[: _SHIPPED.size], data[_SHIPPED.size :]
    if len(checksum) != _CRC.size or _CRC.unpack(checksum)[0] != zlib.crc32(body):
        return None
    return Position(*_SHIPPED.unpack(body))


def write_shipped(folder: Path, position: Position) -> None:
    """Makes the shipped position durable, all or nothing. Raises SpoolBroken."""
    body = _SHIPPED.pack(position.segment, position.offset)
    passing = folder / f"{_SHIPPED_NAME}.new"
    with disk("writing its position"):
        descriptor = os.open(passing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            write_all(descriptor, body + _CRC.pack(zlib.crc32(body)))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        passing.rename(folder / _SHIPPED_NAME)
        sync_folder(folder)


def entries_of(segment: Segment, offset: int, end: int) -> Iterator[Entry]:
    """The records of a segment from `offset` to `end`; none when it was released. Raises SpoolCorrupt."""
    offset = start = max(offset, SEGMENT_HEADER_BYTES)
    try:
        data, salt = read_segment(segment, start, max(start, end))
    except FileNotFoundError:
        # Released while the reader was on its way here.
        return
    while offset < end:
        frame = decode_frame(data, offset, salt, segment.number, start)
        if frame is None:
            raise SpoolCorrupt(segment.number, offset, "no whole record is there")
        yield Entry(
            kind=frame.kind,
            record_id=frame.record_id,
            data=frame.data,
            retain_until_ms=frame.retain_until_ms,
            position=Position(segment.number, offset),
            following=Position(segment.number, frame.end),
        )
        offset = frame.end


def find_known(segments: Sequence[Segment], one: Offered, alike: Sequence[Position]) -> Position | None:
    """The place that has this very record, of those that may. Raises SpoolConflict for another of the same id."""
    for position in alike:
        segment = next(s for s in segments if s.number == position.segment)
        entry = next(entries_of(segment, position.offset, segment.size_bytes))
        if entry.record_id != one.record_id:
            continue
        if (entry.kind, entry.data, entry.retain_until_ms) != (one.kind, one.data, one.retain_until_ms):
            raise SpoolConflict(f"the spool has another record with the id {one.record_id}")
        return position
    return None


def delete_until(folder: Path, segments: Sequence[Segment], now_ms: int) -> Iterator[Segment]:
    """Deletes segments, in this order and up to the first that is kept, and gives each once it is gone.

    Raises SpoolCorrupt and SpoolBroken.
    """
    deleted = False
    for segment in segments:
        if segment.retain_until_ms is None:
            scan_file(segment)
        if (segment.retain_until_ms or 0) > now_ms:
            break
        with disk("deleting a segment"):
            segment.path.unlink()
        deleted = True
        yield segment
    if deleted:
        with disk("deleting a segment"):
            sync_folder(folder)
