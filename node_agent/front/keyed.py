"""A request with an `Idempotency-Key`: from its header to its claim, and a kept result that is sent again."""

from __future__ import annotations

from typing import Protocol

from node_agent.front.exchange import Exchange
from node_agent.front.framing import Head
from node_agent.front.tenants import Caller
from node_agent.front.visit import Visit
from node_agent.idempotency.desk import Claim, Desk, Handed, Kept, Taken
from node_agent.idempotency.rules import HEADER, well_formed
from orchestrator.files.label_header import HEADER as LABEL_HEADER
from orchestrator.wire.catalogue import Problem, ProblemError

FIRST_HEADER = "x-tidegate-first-request"
REPLAYED_HEADER = "idempotent-replayed"
PIECE_BYTES = 64 * 1024
"""A kept result goes out in such pieces, so that a slow reader holds up one of them and not all."""


class Elsewhere(Protocol):
    """The other processes of this edge: each answers for some of the keys, and has metrics of its own."""

    async def served(self, exchange: Exchange, visit: Visit, caller: Caller, key: str) -> bool:
        """Have a request served by the process that answers for its key. Returns False when that is this one.

        Raises ProblemError, and Gone when the client hung up.
        """

    async def metrics(self, own: bytes) -> bytes:
        """Return the metrics of all processes; `own` are those of this one."""

    def cut(self) -> None:
        """End every answer that is passed on, with an error that says so."""


class Keyed:
    """One request with a key."""

    __slots__ = ("_caller", "_claim", "_desk", "_exchange", "_key", "_visit")

    def __init__(self, desk: Desk, exchange: Exchange, visit: Visit, caller: Caller, key: str) -> None:
        self._desk = desk
        self._exchange = exchange
        self._visit = visit
        self._caller = caller
        self._key = key
        self._claim: Claim | None = None

    async def end(self) -> None:
        """The request is over, however it ended."""
        if self._claim is not None:
            # Asked again under its key, the request is told only that it is over.
            self._exchange.final = self._claim.begun
            await self._claim.end()

    async def claimed(self, body: bytes) -> Claim | None:
        """Claim the key for this checked request. Returns None where a kept result was sent instead.

        Raises ProblemError when the key is taken, or cannot be looked up.
        """
        exchange, visit, tenant = self._exchange, self._visit, self._caller.tenant
        labels = exchange.head.once.get(LABEL_HEADER, "")
        sealed = self._desk.sealer.of(tenant.id, exchange.head.path, self._key, labels, body)
        handed = Handed(exchange.request_id, sealed, tenant.keep_results, lambda: visit.delivered)
        try:
            found = await self._desk.hand_in(handed)
        except Taken as taken:
            exchange.add_header(FIRST_HEADER, taken.first)
            raise
        if isinstance(found, Kept):
            await self._send_again(found)
            visit.complete()
            return None
        self._claim = exchange.keeper = found
        return found

    async def _send_again(self, kept: Kept) -> None:
        """Send a kept result, byte for byte, with headers that say what it is."""
        exchange, result = self._exchange, kept.result
        exchange.add_header(REPLAYED_HEADER, "true")
        exchange.add_header(FIRST_HEADER, kept.first)
        lengths = [int(value) for name, value in result.headers if name == "content-length"]
        exchange.start(result.status, result.headers, lengths[0] if lengths else None)
        for at in range(0, len(result.body), PIECE_BYTES):
            await exchange.write(result.body[at : at + PIECE_BYTES])
        await exchange.end()


def key_of(head: Head) -> str | None:
    """Return the key of a request, or None when it has none. Raises ProblemError."""
    if HEADER in head.repeated:
        raise ProblemError(Problem("invalid_header", "There may be one Idempotency-Key.", HEADER))
    if HEADER not in head.once:
        return None
    given = head.once[HEADER]
    if not well_formed(given):
        sentence = "An Idempotency-Key has 1 to 255 printable ASCII characters."
        raise ProblemError(Problem("invalid_header", sentence, HEADER))
    return given
