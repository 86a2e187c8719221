"""What is told of a request that has no record of its decision, and so goes nowhere. Pure."""

from __future__ import annotations

from typing import Final

from orchestrator.spool.records import FullReason, SpoolError, SpoolFull
from orchestrator.wire.catalogue import Problem

SHARE_AGAIN_MS: Final = 30_000
"""When one that has too much of a spool may ask again: nothing but shipping makes room."""


def without_record(error: SpoolError) -> Problem:
    """Return why, by what the spool said of the record."""
    if isinstance(error, SpoolFull) and error.reason is FullReason.SHARE:
        return Problem("evidence_share", retry_after_ms=SHARE_AGAIN_MS)
    return Problem("evidence_unavailable")
