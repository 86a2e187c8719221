"""A request with an `Idempotency-Key` goes to the process that answers for its key, and that one's answer comes back.

Between two processes nothing else decides who has a key: no lock, no shared file. The request is handed over as it
came, its API key included, and the owner does with it what it does with its own. Here are only bytes on their way,
about 64 KiB of them in each direction; whoever reads slowly holds up whoever writes.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from node_agent.front.exchange import Exchange
from node_agent.front.framing import HEAD_END, Body, Head, Malformed, Pair
from node_agent.front.http import FramingError
from node_agent.front.interest import Gone, Interest
from node_agent.front.limits import Limits
from node_agent.front.tenants import Caller
from node_agent.front.visit import Visit
from node_agent.idempotency.rules import HEADER, owner
from node_agent.idempotency.sealing import Sealer
from node_agent.workers.scrape import merged, page_of
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.watch.places import socket_of
from orchestrator.wire.catalogue import Problem, ProblemError

BUFFER_BYTES = 64 * 1024
CONNECT_S = 2.0
"""How long a request waits for an owner that is being started again."""
CONNECT_AGAIN_S = 0.05
OWNER_ENDS_S = 1.0
"""How long an owner has to end an answer itself once this process stops: it knows what the tenant has of it, and mostly
it stops at the same time. Less than a server waits for what was cut."""
MARGIN_S = 10.0
"""How much longer than a request may take its owner may be silent: each bound of time is the owner's to keep."""

_OF_THE_CONNECTION = frozenset({"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "upgrade"})
"""Headers that are between a tenant and this process. `expect` is as well: this process asks for the body itself."""
_MADE_ANEW = frozenset({"date", "transfer-encoding"})
_UNREACHED = "The process of this edge that answers for this key is not there, so nothing was sent."
_STOPPED = "This edge stopped before the answer was complete."
_LOST = (
    "The process of this edge that answers for this key ended before its answer was whole."
    " Asked again with the same key, the request is not sent twice."
)

log = logger("node_agent.workers")


class OwnerLost(Exception):
    """The process that answers for a key is gone, says nothing, or says what is not an answer."""


class Siblings:
    """The other processes of this edge."""

    def __init__(
        self, sealer: Sealer, index: int, processes: int, run_dir: Path, limits: Limits, relays_max: int
    ) -> None:
        """`relays_max` is how many requests may be with others at once."""
        self._sealer = sealer
        self._index = index
        self._processes = processes
        self._run_dir = run_dir
        self._relays_max = relays_max
        self._limit_s = (limits.budget_ms + limits.body_timeout_ms) / 1000 + MARGIN_S
        # bounded: by `_relays_max`
        self._running: set[Interest] = set()

    async def served(self, exchange: Exchange, visit: Visit, caller: Caller, key: str) -> bool:
        """Have a request served by the process that answers for its key. Returns False when that is this one.

        Raises ProblemError, and Gone when the client hung up.
        """
        to = owner(self._sealer.key(caller.tenant.id, exchange.head.path, key), self._processes)
        if to == self._index:
            return False
        if len(self._running) >= self._relays_max:
            raise ProblemError(Problem("overloaded"))
        interest = Interest(exchange.client)
        self._running.add(interest)
        try:
            with interest:
                await self._pass(exchange, visit, interest, socket_of(self._run_dir, to))
        except OwnerLost as lost:
            visit.elsewhere = False
            log.warning(Event.IDEMPOTENCY_FAILED, detail="the owner of a key is lost", request_id=exchange.request_id)
            raise ProblemError(Problem("idempotency_unavailable", str(lost), HEADER)) from None
        finally:
            self._running.discard(interest)
        return True

    async def metrics(self, own: bytes) -> bytes:
        """Return the metrics of all processes that tell them in time; `own` are those of this one."""
        others = [index for index in range(self._processes) if index != self._index]
        pages = await asyncio.gather(*(page_of(socket_of(self._run_dir, index)) for index in others))
        told = {self._index: own, **{index: page for index, page in zip(others, pages, strict=True) if page}}
        return merged(sorted(told.items()))

    def cut(self) -> None:
        """End every answer that is passed on, with an error that says so, unless its owner ends it in a moment."""
        loop = asyncio.get_running_loop()
        for interest in tuple(self._running):
            loop.call_later(OWNER_ENDS_S, interest.interrupt, ProblemError(Problem("draining", _STOPPED)))

    async def _pass(self, exchange: Exchange, visit: Visit, interest: Interest, path: Path) -> None:
        reader, writer = await _connected(path)
        relay = Relay(exchange, reader, writer)
        sending = asyncio.create_task(relay.ask(interest), name="hand a request over")
        visit.elsewhere = True
        try:
            async with asyncio.timeout(self._limit_s):
                await relay.answer()
        except TimeoutError:
            raise OwnerLost(_LOST) from None
        finally:
            sending.cancel()
            await asyncio.gather(sending, return_exceptions=True)
            # At once: for the owner this is the tenant's hanging up.
            writer.transport.abort()


class Relay:
    """One request to its owner, and the answer to the tenant. `ask` and `answer` run at the same time.

    An owner may answer before it has read the whole request, as it does with one that is too large.
    """

    def __init__(self, exchange: Exchange, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._exchange = exchange
        self._reader = reader
        self._writer = writer

    async def ask(self, interest: Interest) -> None:
        """Send the request as it comes, then wait for the tenant to hang up. Either end of it ends `interest`."""
        exchange, writer = self._exchange, self._writer
        writer.write(request_head(exchange.head))
        chunked = exchange.head.length is None
        more = reads = True
        while True:
            found = await exchange.client.part()
            if found is None:
                fault = exchange.client.fault or Problem("body_incomplete")
                interest.interrupt(FramingError(fault) if more else Gone())
                return
            data, more = found
            if chunked and data:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            if chunked and not more:
                data += b"0\r\n\r\n"
            if reads and data:
                try:
                    writer.write(data)
                    await writer.drain()
                except ConnectionError:
                    # An owner that reads no more has said why, or is gone: its answer tells which.
                    reads = False

    async def answer(self) -> None:
        """Send the owner's answer to the tenant. Raises OwnerLost and ProblemError."""
        try:
            status, headers, body = await self._head()
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, ValueError):
            raise OwnerLost(_LOST) from None
        self._exchange.pass_on(status, headers)
        events = any(name == "content-type" and value.startswith("text/event-stream") for name, value in headers)
        ending = b"\n\n" if events else b""
        held = b""
        ended = body.ended
        if ended:
            await self._exchange.end()
        try:
            while not ended:
                try:
                    data = held + await self._data()
                    part, at = body.take(data)
                except (ConnectionError, Malformed):
                    raise OwnerLost(_LOST) from None
                held, ended = data[at:], body.ended
                if ended:
                    await self._exchange.end(part)
                elif part:
                    ending = (ending + part)[-2:] if events else b""
                    await self._exchange.write(part)
        except (OwnerLost, asyncio.CancelledError):
            if ending != b"\n\n":
                # In the middle of an event, or of a document, there is no place for a word of ours.
                self._exchange.abandon()
            raise

    async def _head(self) -> tuple[int, list[Pair], Body]:
        head = await self._reader.readuntil(HEAD_END)
        first, *rest = head.decode("latin-1").removesuffix("\r\n\r\n").split("\r\n")
        status = int(first.removeprefix("HTTP/1.1 ")[:3])
        pairs = [line.partition(": ") for line in rest]
        lengths = [int(value) for name, _, value in pairs if name == "content-length"]
        headers = [(name, value) for name, _, value in pairs if name not in _MADE_ANEW]
        return status, headers, Body(lengths[0] if lengths else None)

    async def _data(self) -> bytes:
        data = await self._reader.read(BUFFER_BYTES)
        if not data:
            raise ConnectionResetError
        return data


def request_head(head: Head) -> bytes:
    """Return the head of a request for its owner: as the tenant sent it, but for how its body is framed.

    It grows by nothing, so that what the tenant's own head was small enough for fits here too.
    """
    kept = [(name, value) for name, value in head.headers if name not in _OF_THE_CONNECTION and name != "expect"]
    if head.length is None:
        kept.append(("transfer-encoding", "chunked"))
    lines = [f"{head.method} {head.path} HTTP/1.1", *(f"{name}:{value}" for name, value in kept)]
    return "\r\n".join(lines).encode("latin-1") + HEAD_END


async def _connected(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to a process of this edge. Raises OwnerLost when none listens for a while."""
    loop = asyncio.get_running_loop()
    end_s = loop.time() + CONNECT_S
    while True:
        try:
            reader, writer = await asyncio.open_unix_connection(str(path), limit=BUFFER_BYTES)
        except OSError:
            if loop.time() > end_s:
                raise OwnerLost(_UNREACHED) from None
            await asyncio.sleep(CONNECT_AGAIN_S)
        else:
            writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
            return reader, writer
