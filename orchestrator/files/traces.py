"""Traces: what arrived when, without a payload. Ours, and two public ones, told apart by their first line.

* Ours: one JSON object a line; the first is ``{"v":1,"kind":"tidegate-trace"}``. An edge records such a file.
* Mooncake's (FAST'25): ``{"timestamp":27482,"input_length":6955,"output_length":52,"hash_ids":[46,47]}``. Its arrivals
  come in windows of three seconds; they are spread over each window by chance.
* Azure's LLM inference trace of 2023: CSV with ``TIMESTAMP,ContextTokens,GeneratedTokens``.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from orchestrator.files.document import FileError
from orchestrator.files.typed import Misfit, fit, spell

TRACE_KIND = "tidegate-trace"
TRACE_VERSION = 1
SIZE_BYTES_MAX = 1 << 30
ROWS_MAX = 5_000_000
MOONCAKE_WINDOW_US = 3_000_000
BYTES_PER_TOKEN = 4
AZURE_HEADER = "TIMESTAMP,ContextTokens,GeneratedTokens"
AZURE_EXPECTED = "expected a time and two whole numbers"
TOKENS_MAX = 10_000_000
Tokens = Annotated[int, Meta(ge=0, le=TOKENS_MAX)]
Hash = Annotated[int, Meta(ge=0)]
"""64 bits as we make them. No upper bound: msgspec knows none beyond 63 bits."""
AtMs = Annotated[int, Meta(ge=0, le=1 << 50)]
Microseconds = Annotated[int, Meta(ge=0, le=1 << 60)]
Pico = Annotated[str, Meta(pattern="^[0-9]{1,30}$")]


@dataclass(frozen=True, slots=True)
class TraceRow:
    """One request. What a trace does not say is None, and is drawn by chance where it is needed."""

    at_us: int
    """From the first request of the trace."""
    prompt_tokens: int
    output_tokens: int
    max_tokens: int | None = None
    """The caller's limit on the answer."""
    blocks: tuple[int, ...] = ()
    session: int | None = None
    edge: str | None = None
    tenant: str | None = None
    model: str | None = None
    traffic: str | None = None
    """Its class of traffic."""
    labels: str | None = None
    """What it declared, as the text of the header."""
    upload_bytes: int | None = None


class HeadLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """The first line of a trace of ours."""

    v: int
    kind: str
    block_chars: int | None = None
    """Characters of one prefix block, where blocks were hashed from text."""


class TraceLine(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """One request of a trace of ours. What comes after `labels` is what became of it where it was recorded."""

    at_ms: AtMs
    prompt_tokens: Tokens
    output_tokens: Tokens
    max_tokens: Tokens | None = None
    blocks: tuple[Hash, ...] = ()
    session: Hash | None = None
    edge: str | None = None
    tenant: str | None = None
    model: str | None = None
    traffic: str | None = msgspec.field(name="class", default=None)
    labels: str | None = None
    upload_bytes: Tokens | None = None
    decision: str | None = None
    pool: str | None = None
    outcome: str | None = None
    canary: bool = False
    cached_tokens: Tokens = 0
    first_us: Microseconds | None = None
    end_us: Microseconds | None = None
    cost_pico: Pico | None = None
    """What the choice expected the operator to pay, of tokens and egress."""


class _Mooncake(msgspec.Struct, frozen=True):
    timestamp: AtMs
    input_length: Tokens
    output_length: Tokens
    hash_ids: tuple[Hash, ...] = ()


class _StrictMooncake(_Mooncake, frozen=True, forbid_unknown_fields=True):
    """The same, to say exactly what does not fit."""


def read_trace(path: Path, chance: Callable[[], float], limit: int | None = None) -> list[TraceRow]:
    """Return the rows by arrival, the first `limit` of them. Raises FileError."""
    most = ROWS_MAX if limit is None else min(limit, ROWS_MAX)
    try:
        if path.stat().st_size > SIZE_BYTES_MAX:
            raise FileError(str(path), 0, "", f"expected a trace of at most {SIZE_BYTES_MAX >> 20} MiB")
        with path.open(encoding="utf-8-sig") as file:
            first = file.readline()
            file.seek(0)
            if first.rstrip("\r\n") == AZURE_HEADER:
                rows = _azure(path, csv.DictReader(file), most)
            elif '"kind"' in first:
                rows = [row for row, _ in _ours(path, file, most)]
            else:
                rows = _mooncake(path, file, most, chance)
    except OSError as error:
        raise FileError(str(path), 0, "", error.strerror or "expected a file that can be read") from None
    except UnicodeDecodeError:
        raise FileError(str(path), 0, "", "expected text in UTF-8") from None
    if not rows:
        raise FileError(str(path), 0, "", "expected at least one request")
    rows.sort(key=lambda row: row.at_us)
    start_us = rows[0].at_us
    return [replace(row, at_us=row.at_us - start_us) for row in rows]


def read_recorded(path: Path) -> list[TraceLine]:
    """Return the lines of a trace of ours, with what became of each request. Raises FileError."""
    try:
        with path.open(encoding="utf-8") as file:
            return [line for _, line in _ours(path, file, ROWS_MAX)]
    except OSError as error:
        raise FileError(str(path), 0, "", error.strerror or "expected a file that can be read") from None
    except UnicodeDecodeError:
        raise FileError(str(path), 0, "", "expected text in UTF-8") from None


def trace_head(block_chars: int | None = None) -> bytes:
    """Return the first line of a trace of ours."""
    return msgspec.json.encode(HeadLine(TRACE_VERSION, TRACE_KIND, block_chars)) + b"\n"


def trace_line(line: TraceLine) -> bytes:
    """Return one line of a trace of ours."""
    return msgspec.json.encode(line) + b"\n"


def _ours(path: Path, lines: Iterator[str], most: int) -> list[tuple[TraceRow, TraceLine]]:
    try:
        head = msgspec.json.decode(next(lines, ""), type=HeadLine)
    except (msgspec.DecodeError, RecursionError):
        raise FileError(str(path), 1, "", f'expected {{"v":{TRACE_VERSION},"kind":"{TRACE_KIND}"}}') from None
    if head.kind != TRACE_KIND or head.v != TRACE_VERSION:
        raise FileError(str(path), 1, "", f"expected kind {TRACE_KIND} of version {TRACE_VERSION}")
    decoder = msgspec.json.Decoder(TraceLine)
    found: list[tuple[TraceRow, TraceLine]] = []
    for number, text in enumerate(lines, 2):
        if len(found) >= most:
            break
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, RecursionError):
            raise _bad_line(path, number, text, TraceLine) from None
        found.append((_row(line), line))
    return found


def _row(line: TraceLine) -> TraceRow:
    return TraceRow(
        line.at_ms * 1000,
        line.prompt_tokens,
        line.output_tokens,
        line.max_tokens,
        line.blocks,
        line.session,
        line.edge,
        line.tenant,
        line.model,
        line.traffic,
        line.labels,
        line.upload_bytes,
    )


def _mooncake(path: Path, lines: Iterator[str], most: int, chance: Callable[[], float]) -> list[TraceRow]:
    decoder = msgspec.json.Decoder(_Mooncake)
    rows: list[TraceRow] = []
    for number, text in enumerate(lines, 1):
        if len(rows) >= most:
            break
        if not text.strip():
            continue
        try:
            line = decoder.decode(text)
        except (msgspec.DecodeError, RecursionError):
            raise _bad_line(path, number, text, _StrictMooncake) from None
        at_us = line.timestamp * 1000 + int(chance() * MOONCAKE_WINDOW_US)
        # The first block is the same for nearly all; the second tells conversations apart.
        session = line.hash_ids[min(1, len(line.hash_ids) - 1)] if line.hash_ids else None
        rows.append(TraceRow(at_us, line.input_length, line.output_length, None, line.hash_ids, session))
    return rows


def _azure(path: Path, lines: csv.DictReader[str], most: int) -> list[TraceRow]:
    rows: list[TraceRow] = []
    try:
        for line in lines:
            if len(rows) >= most:
                break
            rows.append(_azure_row(line))
    except (ValueError, TypeError, OverflowError):
        raise FileError(str(path), lines.line_num, "", AZURE_EXPECTED) from None
    except csv.Error:  # of the line that could not be taken in
        raise FileError(str(path), lines.line_num + 1, "", AZURE_EXPECTED) from None
    return rows


def _azure_row(line: Mapping[str, str]) -> TraceRow:
    """Return one row. Raises ValueError, TypeError and OverflowError."""
    # The fraction has seven digits, of which datetime reads six. The times are UTC: no hour is missing or twice.
    moment = datetime.fromisoformat(line["TIMESTAMP"][:26]).replace(tzinfo=UTC)
    prompt, output = int(line["ContextTokens"]), int(line["GeneratedTokens"])
    if not 0 <= min(prompt, output) <= max(prompt, output) <= TOKENS_MAX:
        raise ValueError("token counts are zero or more")
    return TraceRow(round(moment.timestamp() * 1e6), prompt, output)


def _bad_line(path: Path, number: int, text: str, shape: type[msgspec.Struct]) -> FileError:
    """Say which field of a line does not fit and what was expected, never a value of it."""
    try:
        value = json.loads(text)
        if isinstance(value, dict):
            known = {field.encode_name for field in msgspec.structs.fields(shape)}
            strict = shape is not _StrictMooncake
            fit({name: one for name, one in value.items() if strict or name in known}, shape)
    except Misfit as misfit:
        return FileError(str(path), number, spell(misfit.path), misfit.expected)
    except (ValueError, RecursionError):
        pass
    return FileError(str(path), number, "", "expected one JSON object a line")
