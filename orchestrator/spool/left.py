"""At the start of a program: the end of what it was killed under is recorded."""

from __future__ import annotations

import os

from orchestrator.ledger.left import left_open
from orchestrator.policy.ids import make_usage_id
from orchestrator.spool.records import USAGE, Holder, Rank, RecordId, SpoolFull
from orchestrator.spool.store import Spool
from orchestrator.spool.untaken import Untaken
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event

log = logger("orchestrator.spool")


def close_what_was_left(spool: Spool, own: str, within_ms: int, now_ms: int) -> None:
    """Append a usage record for each attempt that this program, the `own` side of it, had begun and not ended.

    `within_ms` bounds how far back it looks: the longest that an attempt may take. May block on the disk. Raises
    SpoolCorrupt and SpoolBroken; where the spool is full, the log says how many have no room.
    """
    records = ((entry.kind, entry.data) for entry in spool.read_back())
    left = left_open(records, own, within_ms, now_ms, lambda: make_usage_id(now_ms, os.urandom(10)))
    if left:
        log.warning(Event.ATTEMPTS_LOST, count=len(left))
    untaken, last = Untaken(), ""
    for record in left:
        try:
            holder = None if record.tenant is None else Holder(record.tenant)
            record_id, data = RecordId(record.id), record.to_bytes()
            spool.append(USAGE, record_id, data, durable=False, rank=Rank.CLOSES, holder=holder)
        except SpoolFull as error:
            untaken.add(error)
            last = record.id
    for line in untaken.rest():
        line.say(log, last)
