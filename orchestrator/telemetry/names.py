"""Every metric, label, log event and log field, with the values that each may take.

A name is added here, in review, and nowhere else. No name stands for a payload or a secret, and none is made at run
time.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum
from typing import Final

from orchestrator.policy.labels import RANK_AXES, SET_AXES

OTHER: Final = "other"
"""Stands for every label value that is not allowed, so that no input can grow the number of series."""


class MetricKind(Enum):
    """What may be done with a metric: count, set or observe."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Label:
    """One label of a metric."""

    name: str
    values: frozenset[str] | None
    """The allowed values; None means ids that the fleet or a bundle names, admitted as they are learnt."""


@dataclass(frozen=True, slots=True, eq=False)
class Metric:
    """One metric as Prometheus sees it. Compared by identity: only the ones defined here are metrics."""

    name: str
    kind: MetricKind
    help: str
    labels: tuple[Label, ...] = ()
    buckets: tuple[float, ...] = ()
    """Upper bounds in the unit of the metric; for histograms only."""


def _closed(name: str, *values: str) -> Label:
    return Label(name, frozenset(values))


POOL: Final = Label("pool", None)
MODEL: Final = Label("model", None)
RULE: Final = Label("rule", None)
AXIS: Final = _closed("axis", *RANK_AXES, *SET_AXES)
CODE: Final = Label("code", None)
SIDE: Final = _closed("side", "overseas", "domestic")
OUTCOME: Final = _closed("outcome", "answered", "refused", "cut", "cancelled", "failed")
TOKEN_COUNT: Final = _closed("count", "prompt", "cached", "generated", "sent", "received", "delivered")
NOT_PLACED: Final = _closed(
    "reason",
    "not_permitted",
    "not_entitled",
    "model_not_served",
    "revision_not_served",
    "capability_not_offered",
    "context_too_short",
    "not_reachable",
    "drained",
    "tried",
    "down",
    "breaker_open",
    "capped",
    "full",
    "no_opening",
    "no_price",
    "over_budget",
)
"""The reasons of `placement.pick.Drop`."""
CONTINUED: Final = _closed("how", "reattached", "resumed_ids", "resumed_text", "not_resumable", "refused", "failed")
DROPPED_FRAME: Final = _closed("cause", "dead_stream", "old_epoch", "malformed", "over_credit", "unknown_stream")
SPOOL_FULL: Final = _closed(
    "reason", "spare_room", "share", "regulated_reserve", "closing_reserve", "capacity", "backlog", "pending", "disk"
)
IDEMPOTENCY_ANSWER: Final = _closed(
    "answer", "new", "replayed", "running", "not_kept", "uncertain", "other_body", "full", "unavailable"
)
PROCESS: Final = _closed("process", *(str(index) for index in range(64)))
"""Put before the labels of every series where several processes of an edge are told of on one page."""
CUT: Final = _closed("cut", "evicted", "refused")
TELEMETRY_FAULT: Final = _closed("what", "label_value", "log_value", "log_line")

_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)


def _counter(name: str, text: str, *labels: Label) -> Metric:
    return Metric(name, MetricKind.COUNTER, text, labels)


def _gauge(name: str, text: str, *labels: Label) -> Metric:
    return Metric(name, MetricKind.GAUGE, text, labels)


def _histogram(name: str, text: str, buckets: tuple[float, ...], *labels: Label) -> Metric:
    return Metric(name, MetricKind.HISTOGRAM, text, labels, buckets)


REQUESTS: Final = _counter("tidegate_requests_total", "Requests of tenants by how they ended.", OUTCOME)
REQUESTS_ACTIVE: Final = _gauge("tidegate_requests_active", "Requests of tenants that are being served.")
PLACES: Final = _gauge(
    "tidegate_places",
    "Requests of tenants that one of several processes may serve at once: its share, and what it leases.",
)
UNEVEN_LIMITS: Final = _gauge(
    "tidegate_uneven_limits", "Limits of which a process leases more than its even share, or lends some of it."
)
CONNECTIONS_CUT: Final = _counter(
    "tidegate_connections_cut_total",
    "Connections that found every one taken: idle ones that were ended for them, and those that were refused.",
    CUT,
)
REQUEST_SECONDS: Final = _histogram(
    "tidegate_request_seconds", "From the first byte of a request to the last of its answer.", _SECONDS, OUTCOME
)
FIRST_TOKEN_SECONDS: Final = _histogram(
    "tidegate_first_token_seconds", "From the first byte of a request to the first token out.", _SECONDS, POOL
)
REFUSALS: Final = _counter("tidegate_refusals_total", "Refusals by code of the error catalogue.", CODE)
DENIALS: Final = _counter("tidegate_denials_total", "Verdicts that deny, by the rule that denied.", RULE)
MISMATCHES: Final = _counter(
    "tidegate_label_mismatches_total", "Labels that said less than what counts, by axis.", AXIS
)
PLACEMENTS: Final = _counter("tidegate_placements_total", "Attempts by the pool that was chosen.", POOL)
NOT_PLACED_POOLS: Final = _counter(
    "tidegate_not_placed_pools_total", "Pools that were left out of a placement, by reason.", NOT_PLACED
)
TOKENS: Final = _counter("tidegate_tokens_total", "Tokens by pool and by who counted them where.", POOL, TOKEN_COUNT)
STREAMS_CONTINUED: Final = _counter("tidegate_streams_continued_total", "Cut streams by how they went on.", CONTINUED)
MANIFEST_NUMBER: Final = _gauge("tidegate_manifest_number", "Number of the manifest in use, by its side.", SIDE)
SPOOL_REFUSALS: Final = _counter("tidegate_spool_refusals_total", "Records that the spool refused.", SPOOL_FULL)
IDEMPOTENCY: Final = _counter(
    "tidegate_idempotency_total", "Requests with an Idempotency-Key by what they were told.", IDEMPOTENCY_ANSWER
)
IDEMPOTENCY_KEYS: Final = _gauge("tidegate_idempotency_keys", "Idempotency keys that are held, as of a minute ago.")
IDEMPOTENCY_BYTES: Final = _gauge("tidegate_idempotency_bytes", "Bytes of kept results, as of a minute ago.")
TELEMETRY_FAULTS: Final = _counter(
    "tidegate_telemetry_faults_total", "Values that were not allowed and were replaced or lost.", TELEMETRY_FAULT
)

METRICS: Final = (
    REQUESTS,
    REQUESTS_ACTIVE,
    PLACES,
    UNEVEN_LIMITS,
    CONNECTIONS_CUT,
    REQUEST_SECONDS,
    FIRST_TOKEN_SECONDS,
    REFUSALS,
    DENIALS,
    MISMATCHES,
    PLACEMENTS,
    NOT_PLACED_POOLS,
    TOKENS,
    STREAMS_CONTINUED,
    MANIFEST_NUMBER,
    SPOOL_REFUSALS,
    IDEMPOTENCY,
    IDEMPOTENCY_KEYS,
    IDEMPOTENCY_BYTES,
    TELEMETRY_FAULTS,
)
"""Every metric there is; one that nothing was counted of stays absent or zero."""


class Event(StrEnum):
    """What a log line tells. The value is the `event` of the line."""

    PROGRAM_STARTED = "program_started"
    PROGRAM_READY = "program_ready"
    PROGRAM_DRAINING = "program_draining"
    PROGRAM_STOPPED = "program_stopped"
    TASK_FAILED = "task_failed"
    REQUEST_ACCEPTED = "request_accepted"
    REQUEST_REFUSED = "request_refused"
    REQUEST_ENDED = "request_ended"
    ATTEMPT_SENT = "attempt_sent"
    ATTEMPT_REFUSED = "attempt_refused"
    ATTEMPT_ENDED = "attempt_ended"
    CONNECTIONS_FULL = "connections_full"
    CONNECTIONS_LIMITED = "connections_limited"
    STREAM_CUT = "stream_cut"
    STREAM_CONTINUED = "stream_continued"
    SLOW_READER = "slow_reader"
    SESSION_OPENED = "session_opened"
    SESSION_DETACHED = "session_detached"
    SESSION_LOST = "session_lost"
    SESSION_REATTACHED = "session_reattached"
    SESSION_CLOSED = "session_closed"
    SESSION_REFUSED = "session_refused"
    CLOCK_SKEWED = "clock_skewed"
    FRAME_DROPPED = "frame_dropped"
    LABEL_MISMATCH = "label_mismatch"
    BUNDLE_LOADED = "bundle_loaded"
    BUNDLE_REFUSED = "bundle_refused"
    BUNDLE_STALE = "bundle_stale"
    BUNDLE_PUBLISHED = "bundle_published"
    BUNDLE_REISSUED = "bundle_reissued"
    ALARM_RAISED = "alarm_raised"
    ALARM_CLEARED = "alarm_cleared"
    EXCHANGE_ENDED = "exchange_ended"
    POLICY_DISAGREED = "policy_disagreed"
    POOL_LIVE = "pool_live"
    POOL_LOST = "pool_lost"
    POOL_EJECTED = "pool_ejected"
    POOL_TRIED = "pool_tried"
    POOL_BACK = "pool_back"
    REPLICA_STARTED = "replica_started"
    REPLICA_LIVE = "replica_live"
    REPLICA_SUSPECT = "replica_suspect"
    REPLICA_LOST = "replica_lost"
    REPLICA_EJECTED = "replica_ejected"
    REPLICA_TRIED = "replica_tried"
    ENGINE_FAILED = "engine_failed"
    USAGE_DOUBTED = "usage_doubted"
    RAY_JOINED = "ray_joined"
    RAY_LOST = "ray_lost"
    REGISTRY_CONNECTED = "registry_connected"
    REGISTRY_LOST = "registry_lost"
    REGISTRY_RELISTED = "registry_relisted"
    LEASE_LOST = "lease_lost"
    ATTEMPTS_LOST = "attempts_lost"
    SPOOL_OPENED = "spool_opened"
    SPOOL_FULL = "spool_full"
    SPOOL_FAILED = "spool_failed"
    RECORDS_SHIPPED = "records_shipped"
    IDEMPOTENCY_FAILED = "idempotency_failed"
    PROCESS_STARTED = "process_started"
    PROCESS_EXITED = "process_exited"
    PROCESS_HUNG = "process_hung"


class FieldKind(Enum):
    """How the value of a log field is checked."""

    ID = "id"
    """Up to 128 of A-Z a-z 0-9 and ._:/@+=-[]"""
    CHOICE = "choice"
    """One of the values of the field."""
    WHOLE = "whole"
    """A whole number of 64 bits."""
    NUMBER = "number"
    """A finite number."""
    FLAG = "flag"
    TEXT = "text"
    """A sentence of ours, never a tenant's: escaped and cut to 200 characters."""


@dataclass(frozen=True, slots=True)
class LogField:
    """One field of a log line."""

    name: str
    kind: FieldKind
    values: frozenset[str] = frozenset()
    """The allowed values of a CHOICE."""


_IDS = (
    "request_id attempt_id decision_id record_id session_id instance_id stream_id tenant_id project_id key_id entity_id"
    " edge pool replica model side jurisdiction rule code manifest digest pathway peer address node kind exception"
)
_WHOLES = (
    "count number epoch size_bytes duration_ms age_ms skew_ms rtt_ms deadline_ms prompt_tokens completion_tokens"
    " delivered_tokens http_status exit_status process_id port segment offset attempt limit free_slots torn_bytes"
    " revision"
)
_CHOICES = (OUTCOME, CONTINUED, DROPPED_FRAME)

FIELDS: Final = {
    **{name: LogField(name, FieldKind.ID) for name in _IDS.split()},
    **{name: LogField(name, FieldKind.WHOLE) for name in _WHOLES.split()},
    **{label.name: LogField(label.name, FieldKind.CHOICE, label.values or frozenset()) for label in _CHOICES},
    "axis": LogField("axis", FieldKind.CHOICE, AXIS.values or frozenset()),
    "source": LogField("source", FieldKind.CHOICE, frozenset({"declared", "attested"})),
    "reason": LogField("reason", FieldKind.CHOICE, frozenset().union(NOT_PLACED.values or (), SPOOL_FULL.values or ())),
    "load": LogField("load", FieldKind.NUMBER),
    "regulated": LogField("regulated", FieldKind.FLAG),
    "durable": LogField("durable", FieldKind.FLAG),
    "retryable": LogField("retryable", FieldKind.FLAG),
    "detail": LogField("detail", FieldKind.TEXT),
    "where": LogField("where", FieldKind.TEXT),
}
"""Every field that a log line may bear besides time, level, program, logger and event."""
