"""Whether this edge can serve: it can when it holds a bundle that is usable, and is not stopping."""

from __future__ import annotations

from orchestrator.bundles.assemble import Bundle
from orchestrator.policy.ids import EdgeId


def unready_reason(bundle: Bundle | None, edge: EdgeId, now_ms: int, *, draining: bool) -> str | None:
    """Return why the edge is not ready, or None when it is. A side that goes stale stays ready while the law allows."""
    if draining:
        return "draining"
    if bundle is None:
        return "no bundle is held"
    if bundle.settings is None:
        return "the bundle has no settings"
    if bundle.fleet.edge(edge) is None:
        return "the bundle does not declare this edge"
    if edge in bundle.revoked.edges:
        return "this edge is revoked"
    if now_ms >= bundle.law.horizons.not_after_ms:
        return "the bundle has expired"
    return None
