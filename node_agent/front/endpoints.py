"""Every endpoint of an edge: its path and the methods that it takes."""

from __future__ import annotations

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
MODELS = "/v1/models"
HEALTH = "/healthz"
PLAIN_HEALTH = "/health"
"""The same under the path of vLLM and llama.cpp, which their clients probe."""
READY = "/readyz"
METRICS = "/metrics"
DOCUMENT = "/openapi.json"
ONE_MODEL = MODELS + "/{model}"

OPEN = frozenset({HEALTH, PLAIN_HEALTH, READY, METRICS, DOCUMENT})
"""Answered without a key."""
# RFC 9110, 9.1: who serves GET serves HEAD, which is the same answer without its body.
_READS = ("GET", "HEAD")
_MAKES = ("POST",)
METHODS: dict[str, tuple[str, ...]] = {
    CHAT: _MAKES,
    COMPLETIONS: _MAKES,
    MODELS: _READS,
    ONE_MODEL: _READS,
    HEALTH: _READS,
    PLAIN_HEALTH: _READS,
    READY: _READS,
    METRICS: _READS,
    DOCUMENT: _READS,
}


def allowed_methods(path: str) -> tuple[str, ...] | None:
    """Return the methods of an endpoint, or None when there is none at this path."""
    if path in METHODS:
        return METHODS[path]
    return METHODS[ONE_MODEL] if path.startswith(MODELS + "/") and path != MODELS + "/" else None
