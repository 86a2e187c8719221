"""For schemathesis: most bodies ask for a model that is there, so that what is generated gets past its name."""

from __future__ import annotations

from typing import Any

import schemathesis  # type: ignore[import-not-found]

SERVED = "demo"
KEPT_OF = 8
"""One body in so many keeps the name that was generated."""
PLAIN = frozenset(("messages", "model", "prompt", "stream", "max_tokens", "temperature", "top_p", "seed", "stop"))


@schemathesis.hook  # type: ignore[untyped-decorator]
def map_body(context: Any, body: Any) -> Any:
    """Name the served model, and leave half of the bodies only what every pool takes, as their size happens to be."""
    if not isinstance(body, dict) or "model" not in body:
        return body
    size = len(repr(body))
    kept = body if size % 2 else {name: value for name, value in body.items() if name in PLAIN}
    return {**kept, "model": SERVED} if size % KEPT_OF else kept
