"""The one error catalogue: code, who caused it, whether a retry can help, and how HTTP, gRPC and OpenAI clients see it.

Every refusal and failure that reaches a tenant or another program has a code from this table. The `openai` client
retries 408, 409, 429 and 5xx by itself, so each entry says outright whether it should (`x-should-retry`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum

import grpc

from orchestrator.wire.deadlines import BETWEEN, FIRST, TOTAL


class Cause(Enum):
    """Who has to act."""

    TENANT = "tenant"
    LAW = "law"
    EDGE = "edge"
    BORDER = "border"
    POOL = "pool"
    US = "us"


class Retry(Enum):
    """Whether the same request may succeed later."""

    NEVER = "never"
    LATER = "later"
    ELSEWHERE = "elsewhere"
    """Place once more, at another pool of the permitted set."""


class Kind(Enum):
    """The `type` of an OpenAI error object."""

    INVALID_REQUEST = "invalid_request_error"
    AUTHENTICATION = "authentication_error"
    PERMISSION = "permission_error"
    RESIDENCY = "residency_error"
    NOT_FOUND = "not_found_error"
    IDEMPOTENCY = "idempotency_error"
    RATE_LIMIT = "rate_limit_error"
    UNAVAILABLE = "service_unavailable_error"
    API = "api_error"


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the catalogue."""

    code: str
    http: int
    kind: Kind
    cause: Cause
    retry: Retry
    grpc_status: grpc.StatusCode
    sentence: str
    """Said when the place that raises has nothing more exact to say."""


_INVALID = grpc.StatusCode.INVALID_ARGUMENT
_UNAVAILABLE = grpc.StatusCode.UNAVAILABLE
_BAD = (400, Kind.INVALID_REQUEST, Cause.TENANT, Retry.NEVER, _INVALID)
_GONE = (503, Kind.UNAVAILABLE)
_FULL = (Retry.LATER, grpc.StatusCode.RESOURCE_EXHAUSTED)
_MANY = (429, Kind.RATE_LIMIT, Cause.TENANT, *_FULL)
_LATE = (504, Kind.API, Cause.POOL, Retry.LATER, grpc.StatusCode.DEADLINE_EXCEEDED)
_TAKEN = (409, Kind.IDEMPOTENCY, Cause.TENANT, Retry.NEVER, grpc.StatusCode.ALREADY_EXISTS)

_ENTRIES = (
    # Bad input: nothing was forwarded.
    Entry("invalid_json", *_BAD, "The body is not valid JSON."),
    Entry("duplicate_key", *_BAD, "A key stands twice in one object."),
    Entry("too_deep", *_BAD, "The body is nested too deeply."),
    Entry("invalid_type", *_BAD, "A field has the wrong type."),
    Entry("invalid_value", *_BAD, "A field has a value that is not allowed."),
    Entry("unknown_field", *_BAD, "A field is not known."),
    Entry("missing_field", *_BAD, "A required field is missing."),
    Entry("too_many_messages", *_BAD, "There are too many messages."),
    Entry("too_many_values", *_BAD, "The body has too many values."),
    Entry("unsupported_value", *_BAD, "This value is not supported."),
    Entry("invalid_header", *_BAD, "A header is not valid."),
    Entry("invalid_request_line", *_BAD, "The request line must be a method, a path and HTTP/1.1."),
    Entry("head_too_large", 431, *_BAD[1:], "The head of the request is larger than the limit."),
    Entry("head_timeout", 408, *_BAD[1:], "The head of the request did not arrive in time."),
    Entry("invalid_label", *_BAD, "The header x-tidegate-labels is not valid."),
    Entry("bad_generation", *_BAD, "The engine did not accept the request."),
    Entry("context_length_exceeded", *_BAD, "The prompt and the answer do not fit the model's context."),
    Entry("capability_not_offered", *_BAD, "No pool offers what this request needs."),
    Entry("body_too_large", 413, *_BAD[1:], "The body is larger than the limit."),
    Entry("body_incomplete", *_BAD, "The body ended too early, or is not framed as HTTP asks."),
    Entry("body_timeout", 408, *_BAD[1:], "The body did not arrive in time."),
    Entry("unsupported_media_type", 415, *_BAD[1:], "The content type must be application/json."),
    Entry(
        "invalid_api_key",
        401,
        Kind.AUTHENTICATION,
        Cause.TENANT,
        Retry.NEVER,
        grpc.StatusCode.UNAUTHENTICATED,
        "The API key is missing or not valid.",
    ),
    Entry(
        "not_entitled",
        403,
        Kind.PERMISSION,
        Cause.TENANT,
        Retry.NEVER,
        grpc.StatusCode.PERMISSION_DENIED,
        "This tenant may not do that here.",
    ),
    Entry(
        "budget_exceeded",
        402,
        Kind.INVALID_REQUEST,
        Cause.TENANT,
        Retry.NEVER,
        grpc.StatusCode.FAILED_PRECONDITION,
        "The request is expected to cost more than the tenant allows for one.",
    ),
    Entry(
        "unknown_endpoint",
        404,
        Kind.NOT_FOUND,
        Cause.TENANT,
        Retry.NEVER,
        grpc.StatusCode.UNIMPLEMENTED,
        "This endpoint does not exist here.",
    ),
    Entry(
        "model_not_found",
        404,
        Kind.NOT_FOUND,
        Cause.TENANT,
        Retry.NEVER,
        grpc.StatusCode.NOT_FOUND,
        "This model is not served here.",
    ),
    Entry(
        "method_not_allowed",
        405,
        Kind.INVALID_REQUEST,
        Cause.TENANT,
        Retry.NEVER,
        grpc.StatusCode.UNIMPLEMENTED,
        "This endpoint does not take that method.",
    ),
    # The key of the request is taken. A client that tried again by itself would only be told so again.
    Entry("idempotency_in_progress", *_TAKEN, "The first request with this key is still running."),
    Entry("idempotency_result_not_kept", *_TAKEN, "The first request with this key is over, and has no kept result."),
    Entry("idempotency_body_differs", 422, *_TAKEN[1:], "The first request with this key was another one."),
    # The law.
    Entry(
        "residency_blocked",
        451,
        Kind.RESIDENCY,
        Cause.LAW,
        Retry.NEVER,
        grpc.StatusCode.PERMISSION_DENIED,
        "No pool of the declared fleet may receive this payload.",
    ),
    Entry(
        "policy_newer",
        *_GONE,
        Cause.LAW,
        Retry.ELSEWHERE,
        grpc.StatusCode.FAILED_PRECONDITION,
        "The pool's side holds newer law that does not allow this.",
    ),
    Entry(
        "policy_stale",
        *_GONE,
        Cause.EDGE,
        Retry.ELSEWHERE,
        grpc.StatusCode.FAILED_PRECONDITION,
        "The decision cites a manifest that the pool's side cannot use.",
    ),
    Entry(
        "policy_mismatch",
        *_GONE,
        Cause.US,
        Retry.NEVER,
        grpc.StatusCode.FAILED_PRECONDITION,
        "Both sides read the same law differently; the request was refused.",
    ),
    Entry(
        "no_bundle",
        *_GONE,
        Cause.US,
        Retry.LATER,
        _UNAVAILABLE,
        "This program holds no usable bundle.",
    ),
    # Permitted, but not possible now.
    Entry(
        "no_feasible_pool",
        *_GONE,
        Cause.POOL,
        Retry.LATER,
        _UNAVAILABLE,
        "Pools are permitted for this request, but none can take it now.",
    ),
    Entry(
        "engine_busy",
        *_GONE,
        Cause.POOL,
        Retry.ELSEWHERE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        "The pool has no room for another request.",
    ),
    Entry(
        "model_not_served",
        *_GONE,
        Cause.POOL,
        Retry.ELSEWHERE,
        grpc.StatusCode.NOT_FOUND,
        "The pool does not serve this model.",
    ),
    Entry(
        "identity_mismatch",
        *_GONE,
        Cause.POOL,
        Retry.ELSEWHERE,
        grpc.StatusCode.FAILED_PRECONDITION,
        "The pool has no equal of the model that began the answer.",
    ),
    Entry(
        "no_replica",
        *_GONE,
        Cause.POOL,
        Retry.ELSEWHERE,
        _UNAVAILABLE,
        "The pool has no replica that is up.",
    ),
    Entry(
        "draining",
        *_GONE,
        Cause.US,
        Retry.ELSEWHERE,
        _UNAVAILABLE,
        "This program is stopping and takes no new work.",
    ),
    Entry(
        "engine_unreachable",
        *_GONE,
        Cause.POOL,
        Retry.ELSEWHERE,
        _UNAVAILABLE,
        "The engine cannot be reached.",
    ),
    Entry(
        "evidence_unavailable",
        *_GONE,
        Cause.US,
        Retry.ELSEWHERE,
        _UNAVAILABLE,
        "The decision could not be recorded, so nothing was sent.",
    ),
    Entry(
        "idempotency_unavailable",
        *_GONE,
        Cause.US,
        Retry.LATER,
        _UNAVAILABLE,
        "The idempotency key could not be looked up or noted, so nothing was sent.",
    ),
    Entry("overloaded", *_GONE, Cause.EDGE, *_FULL, "This edge has as many requests as it takes."),
    # Of the tenant's own doing: another tenant would have been served.
    Entry("tenant_limit", *_MANY, "This tenant has as many requests here as it may have."),
    Entry("tenant_share", *_MANY, "This edge is nearly full, and this tenant has more than its share of it."),
    Entry(
        "evidence_share",
        *_MANY[:3],
        Retry.ELSEWHERE,
        _FULL[1],
        "Records that wait to be shipped fill the spool here, and this tenant has more than its share of them: send "
        "less, or have the operator ship them or raise spool_bytes.",
    ),
    # Cut after it began.
    Entry(
        "session_lost",
        502,
        Kind.API,
        Cause.BORDER,
        Retry.LATER,
        _UNAVAILABLE,
        "The link to the pool was lost before the answer was complete.",
    ),
    Entry(
        "engine_failed",
        502,
        Kind.API,
        Cause.POOL,
        Retry.LATER,
        grpc.StatusCode.ABORTED,
        "The engine failed before the answer was complete.",
    ),
    Entry(
        "engine_protocol",
        502,
        Kind.API,
        Cause.POOL,
        Retry.LATER,
        grpc.StatusCode.ABORTED,
        "The engine sent something that cannot be trusted.",
    ),
    Entry(FIRST, *_LATE, "The answer did not begin in time."),
    Entry(BETWEEN, *_LATE, "The answer stopped in the middle for too long."),
    # How long a request may take in all is the tenant's choice: it says nothing of a pool.
    Entry(TOTAL, *_LATE[:2], Cause.TENANT, *_LATE[3:], "The answer was not complete in the time that it had."),
    Entry(
        "slow_reader",
        499,
        Kind.API,
        Cause.TENANT,
        Retry.LATER,
        grpc.StatusCode.CANCELLED,
        "The answer was read too slowly to be held.",
    ),
    Entry(
        "protocol_violation",
        502,
        Kind.API,
        Cause.US,
        Retry.NEVER,
        _INVALID,
        "A peer broke the session protocol.",
    ),
    Entry(
        "internal_error",
        500,
        Kind.API,
        Cause.US,
        Retry.NEVER,
        grpc.StatusCode.INTERNAL,
        "Something is wrong on our side; the request was refused.",
    ),
)

CATALOGUE: dict[str, Entry] = {entry.code: entry for entry in _ENTRIES}

RETRY_AFTER_S = 2
"""What `Retry-After` says where nothing better is known."""


@dataclass(frozen=True, slots=True)
class Told:
    """One reason of the law, as a tenant may see it."""

    rule: str
    jurisdiction: str | None
    """None for a rule of the house."""
    sentence: str
    needs: str


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal or failure, in the catalogue's words. Never holds a payload or a secret."""

    code: str
    sentence: str = ""
    param: str | None = None
    rules: tuple[str, ...] = ()
    needs: str = ""
    retry_after_ms: int | None = None
    explanation: tuple[Told, ...] = ()
    """Which law stood in the way, and what would be needed: what `explain` says, without what is not the tenant's."""
    cut: Mapping[str, object] | None = None
    """Of an answer that had begun: the usage so far, its parts, and why it does not go on elsewhere."""

    @property
    def entry(self) -> Entry:
        """The catalogue's line. A code that is not in the catalogue is an internal error."""
        return CATALOGUE.get(self.code, CATALOGUE["internal_error"])

    @property
    def text(self) -> str:
        """The sentence that people read."""
        return self.sentence or self.entry.sentence

    def openai(self, request_id: str) -> dict[str, object]:
        """Return the OpenAI error object. What clients do not know of it is ours; they keep it in `body`."""
        message = f"{self.text} (request {request_id})"
        if self.needs:
            message = f"{self.text} Needed: {self.needs} (request {request_id})"
        error: dict[str, object] = {
            "message": message,
            "type": self.entry.kind.value,
            "param": self.param,
            "code": self.entry.code,
        }
        if self.rules:
            error["rules"] = list(self.rules)
        if self.needs:
            error["needs"] = self.needs
        if self.explanation:
            error["explanation"] = [
                {
                    "rule": one.rule,
                    "jurisdiction": one.jurisdiction,
                    "sentence": one.sentence,
                    "needs": one.needs,
                }
                for one in self.explanation
            ]
        error.update(self.cut or {})
        error["request_id"] = request_id
        return {"error": error}

    def headers(self) -> list[tuple[str, str]]:
        """Return the HTTP headers that tell a client whether and when to try again."""
        later = self.entry.retry is not Retry.NEVER
        found = [("x-should-retry", "true" if later else "false")]
        if later:
            seconds = RETRY_AFTER_S if self.retry_after_ms is None else max(1, -(-self.retry_after_ms // 1000))
            found.append(("retry-after", str(seconds)))
        return found


class ProblemError(Exception):
    """A problem on its way to whoever asked."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.entry.code}: {problem.text}")
        self.problem = problem
