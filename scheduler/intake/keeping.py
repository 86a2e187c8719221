"""The records of a site, put into its spool: decisions and what was used; and what is said where one is not taken."""

from __future__ import annotations

import asyncio

import msgspec

from orchestrator.evidence.records import PERMITTED, DecisionRecord, retain_until_ms
from orchestrator.ledger.usage import Outcome, PoolCounts
from orchestrator.policy.ids import EdgeId, make_usage_id
from orchestrator.spool.records import DECISION, Holder, Position, Rank, RecordId, RecordKind, SpoolError
from orchestrator.spool.unawaited import append_usage
from orchestrator.spool.untaken import Untaken
from orchestrator.telemetry.logs import logger
from scheduler.intake.ports import Hands
from scheduler.intake.records import usage_record
from scheduler.intake.running import Running

# A member of an enumeration costs as much as a call by way of its class, and each answer asks for these.
NEW, SPARE, REFUSED = Rank.NEW, Rank.SPARE, Outcome.REFUSED

log = logger("scheduler.intake")


class Keeping:
    """Writes the records of a site. It belongs to the event loop of that."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._untaken = Untaken()

    def decision(
        self, record: DecisionRecord, running: Running, *, permits: bool, now_ms: int
    ) -> asyncio.Future[Position]:
        """Append a decision on an attempt. The future raises SpoolError: then nothing may be done for it."""
        try:
            return self._hands.spool.append_async(
                DECISION,
                RecordId(record.id),
                record.to_bytes(),
                durable=record.regulated,
                rank=NEW if permits else SPARE,
                retain_until_ms=retain_until_ms(record.retention, now_ms),
                holder=flow_of(running) if permits else None,
            )
        except SpoolError as error:
            keeping: asyncio.Future[Position] = asyncio.get_running_loop().create_future()
            keeping.set_exception(error)
            return keeping

    def not_taken(self, record_id: str, error: SpoolError) -> None:
        """A decision has no record: say so, unless the same was said just now."""
        line = self._untaken.line(error, self._hands.now_us())
        if line is not None:
            line.say(log, record_id)

    def usage(self, running: Running, outcome: Outcome) -> None:
        """Append what an attempt used. Nobody waits for it, and nobody who stops takes it back."""
        hands, now_ms = self._hands, self._hands.now_ms()
        counts = PoolCounts(running.prompt, running.cached, running.generated, running.sent)
        usage = make_usage_id(now_ms, hands.entropy(10))
        record = usage_record(usage, running.opened, outcome, running.counted, counts, running.edge_counts, now_ms)
        holder = None if outcome is REFUSED else flow_of(running)
        append_usage(hands.spool, RecordId(record.id), record.to_bytes(), holder, log)


def flow_of(running: Running) -> Holder:
    """Return whose the records of an attempt are: as in a queue, of its tenant's entity at one edge.

    Of refused ones they are nobody's: there any name may stand, and they have half of a spool at most.
    """
    return Holder(f"{running.edge}\x00{running.opened.facts.tenant.id}")


class _Entity(msgspec.Struct):
    id: str


class _Facts(msgspec.Struct):
    tenant: _Entity


class _Decided(msgspec.Struct):
    edge: EdgeId
    facts: _Facts
    outcome: str


_DECIDED = msgspec.json.Decoder(_Decided)


def flow_in(kind: RecordKind, data: bytes) -> Holder | None:
    """Return the flow that a record of a site names. What was used, the smaller part, names none."""
    if kind != DECISION:
        return None
    try:
        decided = _DECIDED.decode(data)
    except msgspec.DecodeError:
        return None  # a record all the same: whoever ships it judges it
    if decided.outcome != PERMITTED:
        return None
    return Holder(f"{decided.edge}\x00{decided.facts.tenant.id}")
