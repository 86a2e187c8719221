"""Records as bytes, and the search for where good bytes end. Pure.

    segment := header frame*
    header  := "TGSPOOL1" | number u64 | salt 16 | crc32 of these u32
    frame   := magic 2 | length u32 | crc32 u32 | version u8 | kind length u8 | id length u8 | retain until u64
               | kind | id | data                                  (big endian; length counts kind, id and data)

The checksum covers the salt of the segment and the offset of the frame as well. So a frame that was written for another
place, or that lies inside the data of a record, is not taken for a frame of this place.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final
from zlib import crc32

from orchestrator.spool.records import (
    DATA_BYTES_MAX,
    Holder,
    Offered,
    Rank,
    RecordId,
    RecordKind,
    SpoolCorrupt,
    check_record,
)

FRAME_VERSION: Final = 1
SALT_BYTES: Final = 16

_SEGMENT_MAGIC = b"TGSPOOL1"
_SEGMENT_HEADER = struct.Struct(">8sQ16s")
_CRC = struct.Struct(">I")
SEGMENT_HEADER_BYTES: Final = _SEGMENT_HEADER.size + _CRC.size

_FRAME_MAGIC = b"\xa7\x5c"
_FRAME_START = struct.Struct(">2sII")
_FRAME_TOLD = struct.Struct(">BBBQ")
"""What a record can tell before it has its place. It is checked as it is written, and what follows it too."""
_pack_told = _FRAME_TOLD.pack
_CHECKED_START = struct.Struct(">16sQI")
"""What is checked before that."""
FRAME_HEADER_BYTES: Final = _FRAME_START.size + _FRAME_TOLD.size
_BODY_BYTES_MAX = DATA_BYTES_MAX + 255 + 255


@dataclass(frozen=True, slots=True)
class Frame:
    """A record found in a segment."""

    kind: RecordKind
    record_id: RecordId
    data: bytes = field(repr=False)
    retain_until_ms: int
    offset: int
    end: int
    """Offset of the byte after it."""


@dataclass(frozen=True, slots=True)
class Scan:
    """The frames at the start of a segment, and how it goes on."""

    frames: tuple[Frame, ...]
    end: int
    """Offset after the last good frame."""
    torn_bytes: int
    """Bytes after it that are no frame and have no good frame behind them: a write that was cut."""


def encode_segment_header(number: int, salt: bytes) -> bytes:
    """The first bytes of a segment."""
    header = _SEGMENT_HEADER.pack(_SEGMENT_MAGIC, number, salt)
    return header + _CRC.pack(crc32(header))


def decode_segment_header(data: bytes, number: int) -> bytes:
    """The salt of segment `number`. Raises SpoolCorrupt."""
    header, checksum = data[: _SEGMENT_HEADER.size], data[_SEGMENT_HEADER.size : SEGMENT_HEADER_BYTES]
    if len(checksum) < _CRC.size or _CRC.unpack(checksum)[0] != crc32(header):
        raise SpoolCorrupt(number, 0, "its header is not whole")
    magic, told, salt = _SEGMENT_HEADER.unpack(header)
    if magic != _SEGMENT_MAGIC:
        raise SpoolCorrupt(number, 0, "it was not written by this version")
    if told != number:
        raise SpoolCorrupt(number, 0, f"its header tells number {told}")
    return bytes(salt)


def offer(
    kind: RecordKind,
    record_id: RecordId,
    data: bytes,
    retain_until_ms: int,
    durable: bool,
    rank: Rank,
    holder: Holder | None = None,
) -> Offered:
    """A record, ready to be written. Raises BadRecord."""
    kind_bytes, id_bytes, data_bytes = len(kind), len(record_id), len(data)
    check_record(kind, record_id, data_bytes, retain_until_ms)
    told = _pack_told(FRAME_VERSION, kind_bytes, id_bytes, retain_until_ms) + (kind + record_id).encode()  # ASCII
    size_bytes = FRAME_HEADER_BYTES + kind_bytes + id_bytes + data_bytes
    return Offered(kind, record_id, told, data, retain_until_ms, durable, rank, size_bytes, holder)


def encode_frames(records: Iterable[Offered], salt: bytes, offset: int) -> bytes:
    """The records as they are written, one after the other, from `offset` of the segment with this salt on."""
    written: list[bytes] = []
    pack_start, pack_checked = _FRAME_START.pack, _CHECKED_START.pack
    for record in records:
        told, data, size_bytes = record.told, record.data, record.size_bytes
        length = size_bytes - FRAME_HEADER_BYTES
        # The data itself is copied once, when all is joined.
        checksum = crc32(data, crc32(pack_checked(salt, offset, length) + told))
        written += (pack_start(_FRAME_MAGIC, length, checksum), told, data)
        offset += size_bytes
    return b"".join(written)


def decode_frame(data: bytes, offset: int, salt: bytes, number: int, base: int = 0) -> Frame | None:
    """The frame at `offset` of a segment, or None where there is no whole one. `data` begins at offset `base`.

    Raises SpoolCorrupt for a whole frame of a version that this program does not know: it must not be cut off.
    """
    begin = offset - base
    if len(data) - begin < FRAME_HEADER_BYTES:
        return None
    magic, length, checksum = _FRAME_START.unpack_from(data, begin)
    told = begin + _FRAME_START.size
    version, kind_length, id_length, retain = _FRAME_TOLD.unpack_from(data, told)
    start = begin + FRAME_HEADER_BYTES
    end = start + length
    if magic != _FRAME_MAGIC or length > _BODY_BYTES_MAX or kind_length + id_length > length or end > len(data):
        return None
    if crc32(memoryview(data)[told:end], crc32(_CHECKED_START.pack(salt, offset, length))) != checksum:
        return None
    if version != FRAME_VERSION:
        raise SpoolCorrupt(number, offset, f"the record has version {version}, this program knows {FRAME_VERSION}")
    id_start, data_start = start + kind_length, start + kind_length + id_length
    kind = RecordKind(data[start:id_start].decode("ascii"))
    record_id = RecordId(data[id_start:data_start].decode("ascii"))
    check_record(kind, record_id, end - data_start, retain)
    return Frame(kind, record_id, bytes(data[data_start:end]), retain, offset, end + base)


def scan_segment(data: bytes, salt: bytes, number: int) -> Scan:
    """All frames of a segment. Raises SpoolCorrupt when bad bytes have a good frame behind them.

    The last write of a process that died may be cut anywhere; nothing good follows it. Damage in the middle is no cut
    write, and cutting there would lose records that were promised.
    """
    frames: list[Frame] = []
    offset = SEGMENT_HEADER_BYTES
    while offset < len(data):
        frame = decode_frame(data, offset, salt, number)
        if frame is None:
            if _has_frame_after(data, offset + 1, salt, number):
                raise SpoolCorrupt(number, offset, "a good record follows the damage")
            break
        frames.append(frame)
        offset = frame.end
    return Scan(tuple(frames), offset, len(data) - offset)


def _has_frame_after(data: bytes, offset: int, salt: bytes, number: int) -> bool:
    while (offset := data.find(_FRAME_MAGIC, offset)) >= 0:
        if decode_frame(data, offset, salt, number) is not None:
            return True
        offset += 1
    return False
