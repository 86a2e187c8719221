"""Frames against the layout that the module tells, written down once more: what lies on disks does not change."""

from __future__ import annotations

import binascii
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.spool.framing import decode_frame, encode_frames, offer
from orchestrator.spool.records import RETAIN_MS_MAX, BadRecord, Rank, RecordId, RecordKind

Told = tuple[RecordKind, RecordId, bytes, int]
"""Kind, id, data and until when it is kept."""

KINDS = st.from_regex(r"[a-z0-9_]{1,32}", fullmatch=True).map(RecordKind)
IDS = st.from_regex(r"[!-~]{1,96}", fullmatch=True).map(RecordId)
RECORDS = st.lists(st.tuples(KINDS, IDS, st.binary(max_size=200), st.integers(0, RETAIN_MS_MAX)), max_size=5)
SALTS = st.binary(min_size=16, max_size=16)


def as_told(told: Told, salt: bytes, offset: int) -> bytes:
    kind, record_id, data, until_ms = told
    body = kind.encode() + record_id.encode() + data
    after_checksum = struct.pack(">BBBQ", 1, len(kind), len(record_id), until_ms)
    covered = salt + struct.pack(">QI", offset, len(body)) + after_checksum + body
    return b"\xa7\x5c" + struct.pack(">II", len(body), binascii.crc32(covered)) + after_checksum + body


@given(RECORDS, SALTS, st.integers(0, 1 << 26))
def test_a_run_is_its_frames_one_after_the_other_and_each_comes_back(
    records: list[Told], salt: bytes, offset: int
) -> None:
    run = [offer(*told, durable=False, rank=Rank.NEW) for told in records]
    written = encode_frames(run, salt, offset)
    at = offset
    for told, offered in zip(records, run, strict=True):
        frame = as_told(told, salt, at)
        assert written[at - offset : at - offset + offered.size_bytes] == frame
        found = decode_frame(written, at, salt, 1, offset)
        assert found is not None
        assert (found.kind, found.record_id, found.data, found.retain_until_ms) == told
        assert (found.offset, found.end) == (at, at + len(frame))
        at = found.end
    assert at == offset + len(written)


def test_a_frame_of_a_record_that_no_spool_holds_is_refused() -> None:
    written = as_told((RecordKind("Decision"), RecordId("a"), b"", 0), bytes(16), 0)
    with pytest.raises(BadRecord):
        decode_frame(written, 0, bytes(16), 1)


def test_what_is_told_of_a_record_holds_none_of_its_data() -> None:
    offered = offer(RecordKind("decision"), RecordId("a"), b"secret", 0, durable=False, rank=Rank.NEW)
    assert "secret" not in repr(offered)
    frame = decode_frame(encode_frames([offered], bytes(16), 0), 0, bytes(16), 1)
    assert "decision" in repr(frame)
    assert "secret" not in repr(frame)
