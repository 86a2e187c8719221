"""Looking for a payload where it must not be: as text, in other encodings, compressed, and as token ids."""

from __future__ import annotations

import base64
import struct
import subprocess
import sys
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer

UNPACKED_BYTES_MAX = 4 << 20
ZEROS_KEPT = 16
"""More than the zeros in which a spelling can end: a text in UTF-16, or an id in eight bytes."""
PREPARE_S = 60
# zlib (RFC 1950) at every level that is used, and gzip (RFC 1952).
_ZLIB_HEADS = (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda")
_GZIP_HEAD = b"\x1f\x8b\x08"


@dataclass(frozen=True, slots=True)
class Canary:
    """One text and everything that it may look like."""

    text: str
    spellings: tuple[bytes, ...]

    def within(self, data: bytes) -> bool:
        """Whether the text is in `data` in any spelling, also inside of what is compressed there."""
        data = _without_room(data)
        return any(spelling in body for body in (data, *unpacked(data)) for spelling in self.spellings)

    def hits(self, folder: Path) -> list[str]:
        """Every file below `folder` that holds the text in any spelling."""
        return [
            str(path.relative_to(folder))
            for path in sorted(folder.rglob("*"))
            if path.is_file() and not path.is_symlink() and self.within(path.read_bytes())
        ]


def canary_of(text: str, tokenizer: Tokenizer | None) -> Canary:
    """Return the canary with every spelling that is looked for; with a tokenizer, its token ids too."""
    ids = () if tokenizer is None else tuple(_id_spellings(text, tokenizer))
    return Canary(text, (*_text_spellings(text), *ids))


def model_tokenizer() -> Tokenizer:
    """Return the tokenizer of the demo model, which `make setup` prepared."""
    command = [sys.executable, "-m", "scheduler.pools.prepare", "--paths"]
    asked = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PREPARE_S)
    return Tokenizer.from_file(str(Path(asked.stdout.splitlines()[-2]) / "tokenizer.json"))


def unpacked(data: bytes) -> Iterator[bytes]:
    """Yield what lies compressed in `data`, wherever it begins. A cut end is no hindrance."""
    for head in (_GZIP_HEAD, *_ZLIB_HEADS):
        at = data.find(head)
        while at >= 0:
            unpacker = zlib.decompressobj(31 if head == _GZIP_HEAD else 15)
            try:
                body = unpacker.decompress(data[at:], UNPACKED_BYTES_MAX)
            except zlib.error:
                body = b""
            if body:
                yield body
            at = data.find(head, at + 1)


def _without_room(data: bytes) -> bytes:
    """Leave out what a file only reserves: etcd's logs end in 64 MB of zeros, and no spelling has so many of them."""
    return data[: len(data.rstrip(b"\0")) + ZEROS_KEPT]


def _text_spellings(text: str) -> Iterator[bytes]:
    """As text, UTF-16, and base64 at each of the three alignments."""
    yield from (text.encode(), text.encode("utf-16-le"), text.encode("utf-16-be"))
    for lead in range(3):
        coded = base64.b64encode(b"\0" * lead + text.encode())
        # Leave out what the neighbours of the canary would change.
        yield coded[(lead * 8 + 5) // 6 : len(coded) - 4]


def _id_spellings(text: str, tokenizer: Tokenizer) -> Iterator[bytes]:
    """As ids of the model: packed varints of protobuf, JSON, fixed integers. The ends depend on what stands beside."""
    for lead in ("", " ", "\n"):
        ids = tokenizer.encode(lead + text, add_special_tokens=False).ids[2:-1]
        yield b"".join(map(_varint, ids))
        yield ",".join(map(str, ids)).encode()
        yield ", ".join(map(str, ids)).encode()
        for form in ("<I", "<Q", ">I"):
            yield b"".join(struct.pack(form, one) for one in ids)


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)


def in_any_form(text: str, tokenizer: Tokenizer) -> Sequence[tuple[str, bytes]]:
    """Return the text as each kind of leak would carry it: the scanner's positive control."""
    ids = tokenizer.encode(f"Repeat: {text}\n", add_special_tokens=False).ids
    around = b"before " + f"Repeat: {text}\n".encode() + b" after" * 20
    gzip = zlib.compressobj(9, zlib.DEFLATED, 31)
    return (
        ("text", around),
        ("base64", base64.b64encode(around)),
        ("utf-16", around.decode().encode("utf-16-le")),
        ("zlib", b"\0\1frame" + zlib.compress(around)),
        ("gzip", b"\0\1frame" + gzip.compress(around) + gzip.flush()),
        ("gzip, cut", (b"\0\1frame" + zlib.compress(around + bytes(range(256)) * 50))[:400]),
        ("packed varints", b"\n\x20" + b"".join(map(_varint, ids)) + b"\x12\x00"),
        ("JSON ids", str(ids).encode()),
        ("int32", b"".join(struct.pack("<I", one) for one in ids)),
        ("compressed ids", zlib.compress(str(ids).encode())),
    )
