"""`GET /openapi.json`: the edge's own description of what it takes and answers (OpenAPI 3.1).

It is made from what the edge works with: the endpoints' table, the types that read the bodies, the error catalogue and
the tables of headers. So a field, a code or an endpoint that is added is described, or a test fails.
"""

from __future__ import annotations

from collections import defaultdict
from functools import cache
from typing import Any

import msgspec

from node_agent.front.endpoints import (
    CHAT,
    COMPLETIONS,
    DOCUMENT,
    HEALTH,
    METHODS,
    METRICS,
    MODELS,
    ONE_MODEL,
    OPEN,
    PLAIN_HEALTH,
    READY,
)
from node_agent.front.http import JSON_TYPE, RESUME_HEADER, TIMEOUT_HEADER
from node_agent.front.shapes import OWNER, REASONS
from orchestrator.files.chat import ChatBody
from orchestrator.files.completion import CompletionBody
from orchestrator.files.label_header import HEADER as LABEL_HEADER
from orchestrator.telemetry.metrics import CONTENT_TYPE
from orchestrator.wire.catalogue import CATALOGUE

Json = dict[str, Any]

BODIES: dict[str, type[msgspec.Struct]] = {CHAT: ChatBody, COMPLETIONS: CompletionBody}
"""The type that reads the body of each endpoint that generates."""

REQUEST_HEADERS: dict[str, str] = {
    LABEL_HEADER: (
        "What the payload is, as a Dictionary of RFC 9651: personal, grade, domestic, clean, categories, origin,"
        " located, collected, purpose, asset. It only adds to what the tenant's contract and the edge's soil say; what"
        " is not known is refused. Example: personal=none, grade=public."
    ),
    "idempotency-key": (
        "1 to 255 visible characters: within 24 hours a request with it is sent once at most. The same request again is"
        " answered 409, or with the kept result; another body under it 422."
    ),
    RESUME_HEADER: "`never`: an answer that is cut is not continued elsewhere.",
    TIMEOUT_HEADER: "The most milliseconds that the whole answer may take. It can only be less than the edge allows.",
    "x-request-id": "The client's own id of the request, 1 to 128 visible characters. It is kept beside ours.",
}
"""Headers that a request may carry beside those of HTTP. Every one of ours that is taken must stand here."""

ANSWER_HEADERS: dict[str, str] = {
    "x-request-id": "Our id of the request. It is in the error object too.",
    "x-tidegate-pool": "The pool that answers.",
    "x-tidegate-jurisdiction": "The jurisdictions of that pool's soil.",
    "x-tidegate-decision": "The id of the decision record.",
}
ERROR_HEADERS: dict[str, str] = {
    "x-request-id": ANSWER_HEADERS["x-request-id"],
    "x-should-retry": "true or false: whether the same request may succeed later. The openai client obeys it.",
    "retry-after": "Seconds, where a retry may help.",
}

_TITLES = {
    CHAT: ("createChatCompletion", "Answer a conversation, whole or as a stream."),
    COMPLETIONS: ("createCompletion", "Continue one raw prompt, whole or as a stream. No template is laid round it."),
    MODELS: ("listModels", "The models that the caller may use here."),
    ONE_MODEL: ("retrieveModel", "One of these models."),
    HEALTH: ("health", "Whether the program runs."),
    PLAIN_HEALTH: ("plainHealth", "The same as `/healthz`."),
    READY: ("readiness", "Whether this edge can serve, or why not."),
    METRICS: ("metrics", "Figures for Prometheus."),
    DOCUMENT: ("document", "This document."),
}
_ANSWERS = {
    CHAT: "ChatCompletion",
    COMPLETIONS: "TextCompletion",
    MODELS: "ModelList",
    ONE_MODEL: "Model",
    HEALTH: "Health",
    PLAIN_HEALTH: "Health",
    DOCUMENT: "Document",
}
"""The shape of each whole answer that is JSON and has one."""
_STREAM = (
    "With `stream: true`: server-sent events, each `data:` with one chunk as JSON in one line, then `data: [DONE]`."
    " Comments keep the connection alive. A stream that is cut ends with an event that holds an error object, and never"
    " with `[DONE]`. With `stream_options.include_usage` the last chunk has the usage and no choices; with"
    " `continuous_usage_stats` beside it every chunk has the usage so far, in which the prompt is 0 until its end."
)
_NEVER_ANSWERED = frozenset({499})
"""Statuses that nobody receives: the client is gone or does not read."""


@cache
def document_bytes() -> bytes:
    """Return the document as it is sent."""
    return msgspec.json.encode(document())


def document() -> Json:
    """Return the whole document."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Tidegate edge",
            "version": "1",
            "description": "Sends each request to the cheapest, nearest pool that is allowed to see it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "security": [{"key": []}],
        "paths": {path: {one.lower(): _operation(path, one) for one in methods} for path, methods in METHODS.items()},
        "components": {
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "bearerFormat": "tg_<keyid>_<secret>"}},
            "schemas": {**_body_schemas(), **_answer_schemas()},
        },
    }


def _operation(path: str, method: str) -> Json:
    name, summary = _TITLES[path]
    operation: Json = {"operationId": name, "summary": summary, "responses": _responses(path)}
    if method == "HEAD":
        operation["operationId"] = name + "Head"
        operation["summary"] = f"{summary} The status and the headers alone."
        for response in operation["responses"].values():
            del response["content"]
    if path in OPEN:
        operation["security"] = []
    if path == ONE_MODEL:
        named = {"type": "string", "minLength": 1, "description": "The model's id, percent-encoded."}
        operation["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": named}]
    if path in BODIES:
        operation["parameters"] = [
            {"name": header, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
            for header, text in REQUEST_HEADERS.items()
        ]
        schema = {"$ref": f"#/components/schemas/{BODIES[path].__name__}"}
        operation["requestBody"] = {"required": True, "content": {JSON_TYPE: {"schema": schema}}}
    return operation


def _responses(path: str) -> Json:
    if path == METRICS:
        return {"200": {"description": "Text.", "content": {CONTENT_TYPE: {"schema": {"type": "string"}}}}} | _errors()
    if path == READY:
        unready = {"description": "Not ready.", **_content("Readiness")}
        return {"200": {"description": "Ready.", **_content("Readiness")}} | _errors() | {"503": unready}
    good: Json = {"description": "It went well.", **_content(_ANSWERS[path])}
    if path in BODIES:
        good["description"] = _STREAM
        good["content"]["text/event-stream"] = {"schema": {"type": "string", "description": _STREAM}}
        good["headers"] = _headers(ANSWER_HEADERS)
    return {"200": good} | _errors()


def _errors() -> Json:
    """Return every refusal and failure that a tenant can meet, by status."""
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for entry in CATALOGUE.values():
        if entry.http not in _NEVER_ANSWERED:
            by_status[entry.http].append(f"`{entry.code}`: {entry.sentence}")
    return {
        str(status): {"description": "\n".join(lines), "headers": _headers(ERROR_HEADERS), **_content("Error")}
        for status, lines in sorted(by_status.items())
    }


def _headers(table: dict[str, str]) -> Json:
    return {name: {"description": text, "schema": {"type": "string"}} for name, text in table.items()}


def _content(name: str) -> Json:
    return {"content": {JSON_TYPE: {"schema": {"$ref": f"#/components/schemas/{name}"}}}}


def _body_schemas() -> Json:
    """Return what the types say that read the bodies. What a name or a stop string is, only the reader knows."""
    _, schemas = msgspec.json.schema_components(
        BODIES.values(), schema_hook=_anything, ref_template="#/components/schemas/{name}"
    )
    return schemas


def _anything(kind: type) -> Json:
    if kind is object:
        return {"description": "Any value. What asks for more than a pool offers is refused."}
    raise NotImplementedError


def _object(required: dict[str, Json], optional: dict[str, Json] | None = None) -> Json:
    return {"type": "object", "required": sorted(required), "properties": {**required, **(optional or {})}}


def _answer_schemas() -> Json:
    text: Json = {"type": "string"}
    count: Json = {"type": "integer", "minimum": 0}
    reason: Json = {"enum": [*sorted(REASONS), None]}
    usage = _object(
        {"prompt_tokens": count, "completion_tokens": count, "total_tokens": count},
        {"prompt_tokens_details": _object({"cached_tokens": count})},
    )
    frame: dict[str, Json] = {"id": text, "created": count, "model": text}
    message = _object({"role": {"const": "assistant"}, "content": text}, {"refusal": {"type": "null"}})
    delta = _object({}, {"role": {"const": "assistant"}, "content": text, "refusal": {"type": "null"}})
    told: dict[str, Json] = {"index": {"const": 0}, "finish_reason": reason}
    shared: dict[str, Json] = {"logprobs": {"type": "null"}}
    chosen = {"chat": _object({**told, "message": message}, shared), "text": _object({**told, "text": text}, shared)}
    chosen["chunk"] = _object({**told, "delta": delta}, shared)
    kinds = {"chat": "chat.completion", "text": "text_completion", "chunk": "chat.completion.chunk"}
    whole = {
        kind: {**frame, "object": {"const": kinds[kind]}, "choices": {"type": "array", "items": choice}}
        for kind, choice in chosen.items()
    }
    model = _object({"id": text, "object": {"const": "model"}, "created": count, "owned_by": {"const": OWNER}})
    error = _object(
        {
            "message": text,
            "type": {"enum": sorted({entry.kind.value for entry in CATALOGUE.values()})},
            "param": {"type": ["string", "null"]},
            "code": {"enum": sorted(CATALOGUE)},
            "request_id": text,
        },
        {"rules": {"type": "array", "items": text}, "needs": text, "explanation": {"type": "array"}},
    )
    return {
        "Error": _object({"error": error}),
        "ChatCompletion": _object({**whole["chat"], "usage": usage}),
        "ChatCompletionChunk": _object(whole["chunk"], {"usage": {"anyOf": [usage, {"type": "null"}]}}),
        "TextCompletion": _object(whole["text"], {"usage": {"anyOf": [usage, {"type": "null"}]}}),
        "Model": model,
        "ModelList": _object({"object": {"const": "list"}, "data": {"type": "array", "items": model}}),
        "Health": _object({"alive": {"const": True}}),
        "Readiness": _object({"ready": {"type": "boolean"}}, {"reason": text}),
        "Document": _object({"openapi": text, "paths": {"type": "object"}}),
    }
