"""The stages of a request in each program: which functions belong to which, and sums that add up.

A name is `module:function`, `module:Class.method`, or with `*` every public function of a class or a module. What is
named here and is gone is said in the table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

EDGE, INTAKE = "edge", "intake"
LAW = "law"
"""Marks the stages of permit, placement and evidence: issue 5 bounds their sum over both programs."""
LAW_AIM_US = 60.0
REST = "rest: event loop, gRPC, HTTP server, kernel"


@dataclass(frozen=True, slots=True)
class Stage:
    """Some functions that do one thing."""

    title: str
    functions: tuple[str, ...]
    kind: str = ""
    once: bool = False
    """Whether it runs once for each request: its calls then say how many there were."""


MODULES = {EDGE: "node_agent.assembly", INTAKE: "scheduler.assembly"}
"""What a program imports: by then every name is where it is used."""
SPOOL = ("orchestrator.spool.group:GroupWriter.append", "orchestrator.spool.group:GroupWriter._turn")
"""To take a record in, and to write those of a turn of the loop."""
STAGES: Mapping[str, tuple[Stage, ...]] = {
    EDGE: (
        Stage(
            "HTTP in: head, framing, key, body",
            (
                "node_agent.front.framing:read_head",
                "node_agent.front.http:*",
                "node_agent.front.tenants:*",
                "node_agent.front.tenants:Callers.*",
                "node_agent.front.interest:Interest.*",
            ),
        ),
        Stage("strict parse", ("node_agent.front.completions:Completions._checked",), once=True),
        Stage("front, between its parts", ("node_agent.front.app:Front.__call__",)),
        Stage(
            "label",
            (
                "orchestrator.placement.decide:label",
                "orchestrator.placement.decide:gather",
                "orchestrator.files.label_header:parse_label_header",
            ),
            LAW,
        ),
        Stage("permit", ("orchestrator.placement.decide:judge",), LAW),
        Stage("place", ("orchestrator.placement.pick:place", "node_agent.uplink.routes:Routes.view"), LAW),
        Stage(
            "learn: prefix, lengths, speeds",
            (
                "node_agent.border.memory:Memory.*",
                "orchestrator.placement.sight:Sight.left",
                "orchestrator.placement.sight:Sight.first_token",
                "orchestrator.placement.outliers:Outliers.changes",
            ),
            LAW,
        ),
        Stage("decide, between its parts", ("node_agent.border.decider:Decider.*",), LAW),
        Stage(
            "record: account, canonical bytes, commitment",
            (
                "node_agent.border.decider:record_of",
                "orchestrator.evidence.records:DecisionRecord.to_bytes",
                "orchestrator.ledger.usage:UsageRecord.to_bytes",
                "orchestrator.evidence.citation:attestation_bytes",
                "orchestrator.evidence.duties:discharge",
                "orchestrator.evidence.inputs:manifest_of",
            ),
            LAW,
        ),
        Stage("sign", ("orchestrator.bundles.roots:SigningKey.sign",), LAW),
        Stage("spool", SPOOL, LAW),
        Stage("gate, between its parts", ("node_agent.border.gate:Gate.ask", "node_agent.border.gate:_Course.*")),
        Stage("session machine", ("orchestrator.wire.session_edge:EdgeSession.*",)),
        Stage(
            "session frames to and from protobuf",
            (
                "orchestrator.wire.convert_session:edge_batch_out",
                "orchestrator.wire.convert_session:intake_frame_in",
            ),
        ),
        Stage(
            "session: batches to and from gRPC",
            (
                "node_agent.uplink.session_link:SessionLink.*",
                "node_agent.uplink.session_link:SessionLink._write",
                "node_agent.uplink.session_link:SessionLink._read",
                "node_agent.uplink.stream:Stream.*",
            ),
        ),
        Stage(
            "HTTP out: shapes, events, writes",
            (
                "node_agent.front.shapes:*",
                "node_agent.front.shapes:Chunks.*",
                "node_agent.front.shapes:Answering.*",
                "node_agent.front.exchange:Exchange.*",
                "node_agent.front.stream:EventStream.*",
            ),
        ),
        Stage("visit: log line, metrics", ("node_agent.front.visit:Visit.*",)),
    ),
    INTAKE: (
        Stage(
            "session frames to and from protobuf",
            (
                "orchestrator.wire.convert_session:edge_frame_in",
                "orchestrator.wire.convert_session:intake_batch_out",
            ),
        ),
        Stage("session machine", ("orchestrator.wire.session_intake:IntakeSession.*",)),
        Stage("session: batches to and from gRPC", ("scheduler.intake.sessions:Port.*",)),
        Stage("second permit", ("scheduler.intake.second_permit:second_permit",), LAW, once=True),
        Stage("second permit: the edge's signature", ("orchestrator.evidence.signing:verify",), LAW),
        Stage(
            "record: account, canonical bytes",
            (
                "scheduler.intake.records:*",
                "orchestrator.evidence.records:DecisionRecord.to_bytes",
                "orchestrator.ledger.usage:UsageRecord.to_bytes",
            ),
            LAW,
        ),
        Stage("spool", SPOOL, LAW),
        Stage(
            "queue, replica choice",
            (
                "scheduler.intake.dispatch:Dispatcher.*",
                "scheduler.intake.shape:Shapes.*",
                "scheduler.intake.grants:Grants.*",
            ),
        ),
        Stage("site, between its parts", ("scheduler.intake.site:Site.*", "scheduler.intake.site:Site._permitted")),
        Stage(
            "engine HTTP out and in",
            (
                "orchestrator.engines.openai:Answer.*",
                "orchestrator.engines.openai:Answer.__init__",
                "orchestrator.engines.http:Reply.data_received",
            ),
        ),
        Stage("engine events: SSE, JSON", ("orchestrator.engines.chunks:AnswerReader.*",)),
        Stage(
            "replica of an engine, between its parts",
            ("scheduler.intake.engine_replica:EngineReplica.*", "scheduler.intake.engine_replica:_Working.*"),
        ),
    ),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a stage table, in microseconds of a request."""

    title: str
    us: float
    calls: float
    kind: str = ""


def rows(program: str, before: Mapping[str, object], after: Mapping[str, object], requests: int) -> list[Row]:
    """Return the stages of a program between two looks at its clock; the last row is what the process spent beyond.

    They add up to the processor time of the process in that time, without what the clock itself cost. `requests` counts
    where no stage does. Pure.
    """
    stages = STAGES[program]
    spent, calls, inner = (_between(before, after, name) for name in ("spent_ns", "calls", "inner"))
    inner_ns, outer_ns = _number(after, "inner_ns"), _number(after, "outer_ns")
    counted = [calls[number] for number, stage in enumerate(stages) if stage.once and calls[number]]
    count = counted[0] if counted else requests
    found = []
    for number, stage in enumerate(stages):
        own_ns = spent[number] - calls[number] * inner_ns - inner[number] * outer_ns
        found.append(Row(stage.title, max(0.0, own_ns) / 1000 / count, calls[number] / count, stage.kind))
    clock_us = sum(calls) * (inner_ns + outer_ns) / 1000
    whole_us = (_number(after, "process_us") - _number(before, "process_us") - clock_us) / count
    return [*found, Row(REST, whole_us - sum(row.us for row in found), 0.0)]


def law_us(tables: Mapping[str, Sequence[Row]]) -> float:
    """Return what permit, placement and evidence cost in both programs together. Pure."""
    return sum(row.us for table in tables.values() for row in table if row.kind == LAW)


def _number(look: Mapping[str, object], name: str) -> float:
    return float(str(look[name]))


def _between(before: Mapping[str, object], after: Mapping[str, object], name: str) -> list[float]:
    first, last = before[name], after[name]
    if not isinstance(first, list) or not isinstance(last, list):
        raise TypeError(f"{name} is no list")
    return [float(late) - float(early) for early, late in zip(first, last, strict=True)]
