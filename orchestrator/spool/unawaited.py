"""Records of what was used for which nobody waits, and which nobody who stops takes back."""

from __future__ import annotations

import asyncio
from functools import partial

from orchestrator.spool.records import USAGE, Holder, Position, Rank, RecordId, SpoolError
from orchestrator.spool.store import Spool
from orchestrator.telemetry.logs import Log
from orchestrator.telemetry.names import Event

# A member of an enumeration costs as much as a call by way of its class, and each answer asks for it.
_CLOSES = Rank.CLOSES


def append_usage(spool: Spool, record_id: RecordId, data: bytes, holder: Holder | None, log: Log) -> None:
    """Append a usage record. `log` has a line of it where the spool does not take it, now or later."""
    try:
        appending = spool.append_async(USAGE, record_id, data, durable=False, rank=_CLOSES, holder=holder)
    except SpoolError as error:
        _lost(log, record_id, error)
    else:
        appending.add_done_callback(partial(_appended, log, record_id))


def _appended(log: Log, record_id: RecordId, appending: asyncio.Future[Position]) -> None:
    try:
        failure = appending.exception()
    except asyncio.CancelledError:
        return  # whoever ends the program ends this too
    if failure is not None:
        _lost(log, record_id, failure)


def _lost(log: Log, record_id: RecordId, failure: BaseException) -> None:
    log.error(Event.SPOOL_FAILED, record_id=record_id, exception=type(failure).__name__)
