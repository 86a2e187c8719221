"""Every endpoint of an edge: its path and the one method that it takes."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
HEALTH = "/healthz"
READY = "/readyz"
METRICS = "/metrics"
DOCUMENT = "/openapi.json"
ONE_MODEL = MODELS + "/{model}"

OPEN = frozenset({HEALTH, READY, METRICS, DOCUMENT})
"""Answered without a key."""
METHODS = {
    CHAT: "POST",
    COMPLETIONS: "POST",
    MODELS: "GET",
    ONE_MODEL: "GET",
    HEALTH: "GET",
    READY: "GET",
    METRICS: "GET",
    DOCUMENT: "GET",
}


def allowed_method(path: str) -> str | None:
    """Return the one method of an endpoint, or None when there is none at this path."""
    if path.startswith(MODELS + "/") and len(path) > len(MODELS) + 1:
        return METHODS[ONE_MODEL]
    return None if path == ONE_MODEL else METHODS.get(path)
