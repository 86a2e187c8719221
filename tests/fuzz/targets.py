"""What must hold for any bytes at all, reader by reader.

A target returns when the bytes were read or refused as they should be, and raises for a bug: another exception than the
reader's own, an answer that contradicts itself, or more held than a bound. Plain functions, so that pytest replays the
corpus, hypothesis makes bytes, and a coverage-guided fuzzer (`make fuzz`) looks for more.
"""

from __future__ import annotations

import json
import math
import random
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.message import DecodeError, Message

from node_agent.front.framing import HEAD_END, Body, Malformed, fault_so_far, read_head
from orchestrator.engines.chunks import AnswerReader, UsageExpectation
from orchestrator.engines.generation import Delta, EngineEvent, Failed, Finished, Refused
from orchestrator.engines.metrics_page import parse_load
from orchestrator.engines.replies import outcome_of_reply
from orchestrator.engines.request import body_of
from orchestrator.engines.sse import SseDecoder, SseEvent, SseFault
from orchestrator.files.chat import CARRIED, ChatLimits, ChatRequest, load_chat_request
from orchestrator.files.completion import load_completion_request
from orchestrator.files.document import FileError, load_document
from orchestrator.files.domain_error import DomainError
from orchestrator.files.label_header import LabelHeaderError, parse_label_header, write_label_header
from orchestrator.files.pack_shapes import PackDocument
from orchestrator.files.packs import pack_of
from orchestrator.files.strict_json import INT_MAX, INT_MIN, RequestError, parse_strict
from orchestrator.files.traces import read_trace
from orchestrator.wire.catalogue import CATALOGUE
from orchestrator.wire.convert_facts import WireError
from orchestrator.wire.convert_replica import replica_frame_in, replica_frame_out, work_frame_in, work_frame_out
from orchestrator.wire.convert_session import edge_batch_out, edge_frame_in, intake_batch_out, intake_frame_in
from protos.tidegate.v1 import replica_pb2, session_pb2

Target = Callable[[bytes], None]

LIMITS = ChatLimits(max_tokens_max=4096)
LINE_BYTES_MAX = 256
FORWARDED = frozenset(
    ("model", "messages", "prompt", "stream", "stream_options", "temperature", "top_p", "seed", "stop", "max_tokens")
)
"""Everything that an engine is ever sent."""


def strict_json(data: bytes) -> None:
    """Whatever is accepted means the same to the standard library, and holds nothing that is refused."""
    try:
        value = parse_strict(data)
    except RequestError:
        return
    assert value == json.loads(data)
    nodes = 0
    for node in _nodes(value):
        nodes += 1
        assert not isinstance(node, float) or math.isfinite(node)
        assert not isinstance(node, int) or INT_MIN <= node <= INT_MAX
        assert not isinstance(node, str) or "\x00" not in node
    assert nodes <= len(data)


def _nodes(value: object) -> Iterator[object]:
    pending = [value]
    while pending:
        node = pending.pop()
        yield node
        if isinstance(node, list):
            pending += node
        elif isinstance(node, dict):
            pending += node.values()


def chat_body(data: bytes) -> None:
    """An accepted chat request sends an engine the fields that are ours and no other."""
    _request(load_chat_request, data)


def completion_body(data: bytes) -> None:
    """An accepted completion sends an engine the fields that are ours and no other."""
    _request(load_completion_request, data)


def _request(load: Callable[[bytes, ChatLimits], ChatRequest], data: bytes) -> None:
    try:
        request = load(data, LIMITS)
    except RequestError:
        return
    sampling = request.generation.sampling
    assert 0 <= sampling.temperature <= 2
    assert 0 < sampling.top_p <= 1
    assert sampling.seed is None or 0 <= sampling.seed < 2**64
    assert sampling.max_tokens is None or 1 <= sampling.max_tokens <= LIMITS.max_tokens_max
    assert not request.generation.mixed
    assert request.carried == (request.capabilities <= CARRIED)
    body = body_of(request.generation, request.generation.raw_prompt, "served")
    assert body is not None
    sent = json.loads(body)
    assert sent.keys() <= FORWARDED
    assert sent["model"] == "served"
    assert sent["stream"] is True
    assert all(message.keys() == {"role", "content"} for message in sent.get("messages", []))


def label_header(data: bytes) -> None:
    """What was understood says the same when it is written and read again."""
    try:
        labels = parse_label_header(data.decode("latin-1"))
    except LabelHeaderError:
        return
    assert parse_label_header(write_label_header(labels)) == labels


def event_stream(data: bytes) -> None:
    """However the bytes are cut, the events are the same; what is held has bounds."""
    at_once = _decoded([data])
    size = 1 + len(data) % 7
    pieces = [data[at : at + size] for at in range(0, len(data), size)]
    assert _decoded(pieces) == at_once
    faults = [event for event in at_once if isinstance(event, SseFault)]
    assert not faults or at_once[-1:] == faults
    assert sum(len(event.data) for event in at_once if isinstance(event, SseEvent)) <= len(data)


def _decoded(pieces: list[bytes]) -> list[SseEvent | SseFault]:
    decoder = SseDecoder(line_bytes_max=LINE_BYTES_MAX, event_bytes_max=LINE_BYTES_MAX)
    found: list[SseEvent | SseFault] = []
    for piece in pieces:
        found += decoder.feed(piece)
        assert len(decoder._pending) <= LINE_BYTES_MAX
        assert sum(map(len, decoder._data)) <= LINE_BYTES_MAX
    return found


def engine_answer(data: bytes) -> None:
    """Text, then exactly one end; no end without its words; no more text than bytes; in pieces as at once."""
    reader = AnswerReader(line_bytes_max=65_536, usage=UsageExpectation.OPTIONAL)
    *deltas, last = reader.feed(data or b"\n") + reader.feed(b"")
    assert reader.ended
    reader = AnswerReader(line_bytes_max=65_536, usage=UsageExpectation.OPTIONAL)
    *pieces, end = [event for byte in data for event in reader.feed(bytes([byte]))] + reader.feed(b"")
    assert (_said(pieces), end) == (_said(deltas), last)
    reader = AnswerReader(line_bytes_max=65_536, usage=UsageExpectation.OPTIONAL)
    framed = [event + b"\n\n" for event in data.split(b"\n\n")]
    framed[-1] = framed[-1][:-2]
    *parts, end = [event for part in framed if part for event in reader.feed_parts([part])] + reader.feed(b"")
    assert (_said(parts), end) == (_said(deltas), last), "event by event"
    assert isinstance(last, Finished | Failed)
    assert isinstance(last, Failed) or b"[DONE]" in data
    assert all(isinstance(event, Delta) for event in deltas)
    # An escape is longer than what it stands for.
    assert sum(len(event.text) for event in deltas if isinstance(event, Delta)) <= len(data)


def _said(deltas: list[EngineEvent]) -> tuple[str, int]:
    texts = [event for event in deltas if isinstance(event, Delta)]
    return "".join(event.text for event in texts), sum(event.tokens for event in texts)


def engine_reply(data: bytes) -> None:
    """A reply that is no stream is refused or failed, in words that are ours."""
    outcome = outcome_of_reply(400, data)
    assert isinstance(outcome, Refused)
    assert outcome.code in CATALOGUE
    assert len(outcome.detail) < 200


def metrics_page(data: bytes) -> None:
    """A page of figures is understood or it is not."""
    load = parse_load(data.decode("utf-8", "replace"))
    if load is not None:
        assert all(value is None or not isinstance(value, int) or value >= 0 for value in _fields(load))


def _fields(value: object) -> list[object]:
    return [getattr(value, name) for name in getattr(type(value), "__slots__", ())]


def request_head(data: bytes) -> None:
    """A request is read in one way or refused; in pieces as at once."""
    assert fault_so_far(data, 0) is None or fault_so_far(data, 0) is not None
    end = data.find(HEAD_END)
    try:
        head = read_head(data[: end + len(HEAD_END)] if end >= 0 else data)
    except Malformed as malformed:
        problem = malformed.problem
    else:
        assert end >= 0
        assert sum(name == "host" for name, _ in head.headers) == 1
        assert all(name == name.lower() and "_" not in name and "\n" not in value for name, value in head.headers)
        assert head.path.startswith("/")
        assert {*head.once, *head.repeated} == {name for name, _ in head.headers}
        assert all((name, value) in head.headers for name, value in head.once.items())
        assert all(sum(name == one for name, _ in head.headers) > 1 for one in head.repeated)
        _body(Body(head.length), data[end + len(HEAD_END) :])
        return
    assert problem.entry.http in (400, 431)


def _body(body: Body, data: bytes) -> None:
    held, got = b"", 0
    try:
        for at in range(0, len(data), 5):
            held += data[at : at + 5]
            if body.ended:
                break
            part, used = body.take(held)
            got += len(part)
            held = held[used:]
            assert body.ended or len(held) <= 10
    except Malformed:
        return
    assert got <= len(data)


def _frame(message: Message, read: Callable[[Any], Any], write: Callable[[Any], Any], data: bytes) -> None:
    """A frame that is read is read in the same way after it was written."""
    try:
        message.ParseFromString(data)
        frame = read(message)
    except (DecodeError, WireError):
        return
    again = read(write(frame))
    assert again == frame


def edge_frame(data: bytes) -> None:
    """A frame of an edge."""
    _frame(session_pb2.EdgeFrame(), edge_frame_in, lambda frame: edge_batch_out(1, [frame]).frames[0], data)


def intake_frame(data: bytes) -> None:
    """A frame of an intake."""
    _frame(session_pb2.IntakeFrame(), intake_frame_in, lambda frame: intake_batch_out(1, [frame]).frames[0], data)


def replica_frame(data: bytes) -> None:
    """A frame of a replica."""
    _frame(replica_pb2.ReplicaFrame(), replica_frame_in, replica_frame_out, data)


def work_frame(data: bytes) -> None:
    """A frame to a replica."""
    _frame(replica_pb2.WorkFrame(), work_frame_in, work_frame_out, data)


def pack_file(data: bytes) -> None:
    """A pack that people wrote is a pack, or a refusal that names the file."""
    try:
        pack_of(load_document(data.decode("utf-8", "replace"), "pack.yaml").convert(PackDocument))
    except (FileError, DomainError):
        return


def trace_file(data: bytes) -> None:
    """A trace in any of its three forms is rows in order, or a refusal that names the file."""
    with tempfile.NamedTemporaryFile(dir=_SHARED, suffix=".trace") as file:
        file.write(data)
        file.flush()
        try:
            rows = read_trace(Path(file.name), random.Random(1).random)
        except FileError:
            return
    assert rows
    assert [row.at_us for row in rows] == sorted(row.at_us for row in rows)


_SHARED = "/dev/shm" if Path("/dev/shm").is_dir() else None

TARGETS: dict[str, Target] = {
    "strict_json": strict_json,
    "chat_body": chat_body,
    "completion_body": completion_body,
    "label_header": label_header,
    "event_stream": event_stream,
    "engine_answer": engine_answer,
    "engine_reply": engine_reply,
    "metrics_page": metrics_page,
    "request_head": request_head,
    "edge_frame": edge_frame,
    "intake_frame": intake_frame,
    "replica_frame": replica_frame,
    "work_frame": work_frame,
    "pack_file": pack_file,
    "trace_file": trace_file,
}
"""By name, which is that of the target's folder in the corpus."""
