"""Where the front hands in a request with an `Idempotency-Key`, and where that request's claim is worked off.

One loop, and one process for each key: between two requests with the same key nothing decides but the memory of this
process and, behind it, the store.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import msgspec

from node_agent.idempotency.rules import HEADER, KEEP_MS, Answer, Held, State, Why, judge
from node_agent.idempotency.sealing import Sealed, Sealer
from node_agent.idempotency.store import KeyStore, StoreError, StoreFull
from node_agent.idempotency.turns import Turns
from orchestrator.policy.ids import RequestId
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.metrics import Metrics
from orchestrator.telemetry.names import IDEMPOTENCY, IDEMPOTENCY_BYTES, IDEMPOTENCY_KEYS, Event
from orchestrator.wire.catalogue import Problem, ProblemError

RESULT_VERSION = 1
RESULT_BYTES_MAX = 256 * 1024
"""A result that is larger is not kept."""
TAKING_BYTES_MAX = 64 << 20
"""What all answers that run may hold for their results together."""
PURGE_S = 60.0

Pair = tuple[str, str]

log = logger("node_agent.idempotency")


class Taken(ProblemError):
    """The key is not free for this request. `first` is the request that has it."""

    def __init__(self, problem: Problem, first: RequestId) -> None:
        super().__init__(problem)
        self.first = first


class Result(msgspec.Struct, frozen=True, array_like=True):
    """An answer as it was sent, but for the headers that every answer has."""

    version: int
    status: int
    headers: tuple[Pair, ...]
    body: bytes

    def __repr__(self) -> str:
        return f"Result({self.status})"


@dataclass(frozen=True, slots=True)
class Kept:
    """The result of an earlier request, to be sent again."""

    first: RequestId
    result: Result


@dataclass(frozen=True, slots=True)
class Handed:
    """One request with a key, as it is handed in."""

    request: RequestId
    sealed: Sealed
    keeps: bool
    """Whether the tenant wants results kept."""
    delivered: Callable[[], int] = field(default=lambda: 0)
    """How many tokens of its answer were delivered so far."""


class Desk:
    """Lets at most one request with a key go on, and tells the others."""

    def __init__(self, turns: Turns, sealer: Sealer, now_ms: Callable[[], int], metrics: Metrics) -> None:
        self.turns = turns
        self.sealer = sealer
        self.now_ms = now_ms
        self._keys = metrics.gauge(IDEMPOTENCY_KEYS)
        self._bytes = metrics.gauge(IDEMPOTENCY_BYTES)
        self._answers = metrics.counter(IDEMPOTENCY)
        # bounded: one for each request in flight that has a key
        self._claims: dict[bytes, Claim] = {}
        self._taking_bytes = 0

    async def run(self) -> None:
        """Forget what is past its time, now and every minute. Ends only when cancelled."""
        while True:
            await self.purge()
            await asyncio.sleep(PURGE_S)

    async def purge(self) -> None:
        """Forget what is past its time, and put what is left into the metrics."""
        try:
            while await self.turns.do(lambda store: store.purge(self.now_ms())):
                pass
            entries, size = await self.turns.do(KeyStore.totals)
        except StoreError as failure:
            self.failed(failure)
            return
        self._keys[()].value = entries
        self._bytes[()].value = size

    async def close(self) -> None:
        """Do what waits for the store, and close it."""
        try:
            await self.turns.close()
        except StoreError as failure:
            self.failed(failure)

    async def hand_in(self, handed: Handed) -> Claim | Kept:
        """Return the claim of the one request that may go on, or the result that is sent again.

        Raises Taken, and ProblemError(idempotency_unavailable).
        """
        key = handed.sealed.key
        while (other := self._claims.get(key)) is not None:
            if other.confirmed:
                self._refuse(other.held(), handed, here=True)
            await other.looked.wait()
        claim = self._claims[key] = Claim(self, handed)
        try:
            held = await self._look(handed)
            kept = await self._judged(held, handed)
            claim.confirmed = kept is None
            return claim if kept is None else kept
        finally:
            if not claim.confirmed:
                del self._claims[key]
            claim.looked.set()

    async def _look(self, handed: Handed) -> Held | None:
        sealed, now_ms = handed.sealed, self.now_ms()
        try:
            return await self.turns.do(lambda store: store.find(sealed.key, sealed.tenant, now_ms))
        except StoreError as failure:
            raise self.unavailable(failure) from None

    async def _judged(self, held: Held | None, handed: Handed) -> Kept | None:
        """Return the kept result of a key, or None when the key is free. Raises ProblemError."""
        if held is None:
            self._answers[Answer.GO.value].value += 1
            return None
        if judge(held, handed.sealed.body, self.now_ms(), here=False) is Answer.REPLAY:
            kept = await self._kept(held, handed) if handed.keeps else None
            if kept is not None:
                self._answers[Answer.REPLAY.value].value += 1
                return kept
            why = Why.NO_ROOM if handed.keeps else Why.NOT_WANTED
            held = Held(held.request, held.body, State.ENDED, held.until_ms, why)
        self._refuse(held, handed, here=False)
        return None

    async def _kept(self, held: Held, handed: Handed) -> Kept | None:
        """Return the kept result of a key, or None where it cannot be read. Raises ProblemError."""
        sealed = handed.sealed
        try:
            shut = await self.turns.do(lambda store: store.result(sealed.key))
        except StoreError as failure:
            raise self.unavailable(failure) from None
        result = None if shut is None else _read(sealed.open(shut))
        if result is None:
            log.error(Event.IDEMPOTENCY_FAILED, detail="a kept result cannot be read", request_id=handed.request)
            return None
        return Kept(held.request, result)

    def _refuse(self, held: Held, handed: Handed, *, here: bool) -> None:
        """Raises Taken, unless the time of the key is over."""
        answer = judge(held, handed.sealed.body, self.now_ms(), here=here)
        self._answers[answer.value].value += 1
        if answer is not Answer.GO:
            raise Taken(_taken(answer, held), held.request)

    def unavailable(self, failure: StoreError) -> ProblemError:
        """Return what is said when a key cannot be looked up or noted."""
        if isinstance(failure, StoreFull):
            self._answers["full"].value += 1
            sentence = "This edge holds as many idempotency keys as it may, so nothing was sent."
            return ProblemError(Problem("idempotency_unavailable", sentence, HEADER))
        self.failed(failure)
        self._answers["unavailable"].value += 1
        return ProblemError(Problem("idempotency_unavailable", param=HEADER))

    def failed(self, failure: StoreError) -> None:
        """Tell of a store that does not do its work."""
        log.error(Event.IDEMPOTENCY_FAILED, detail=str(failure))

    def forget(self, claim: Claim) -> None:
        """A claim was worked off."""
        key = claim.handed.sealed.key
        if self._claims.get(key) is claim:
            del self._claims[key]

    def take(self, size: int) -> bool:
        """Reserve memory for a result. Returns False when there is none."""
        if self._taking_bytes + size > TAKING_BYTES_MAX:
            return False
        self._taking_bytes += size
        return True

    def give_back(self, size: int) -> None:
        """The memory of a result is free again."""
        self._taking_bytes -= size


class Claim:
    """The right to be sent once under one key. `end` must be called, however the request ended."""

    __slots__ = (
        "_desk",
        "_head",
        "_marked",
        "_over",
        "_parts",
        "_size",
        "_touched",
        "_why",
        "begun",
        "confirmed",
        "handed",
        "looked",
        "settle",
    )

    def __init__(self, desk: Desk, handed: Handed) -> None:
        self.handed = handed
        self.confirmed = False
        """Whether the key was found free."""
        self.looked = asyncio.Event()
        """Set once that is known."""
        self.begun = False
        """Whether something may have been begun for it somewhere."""
        self.settle: Callable[[], Awaitable[None]] | None = None
        """Settles what the answer used: awaited when the answer is whole, before its result is kept."""
        self._desk = desk
        self._why: Why | None = None if handed.keeps else Why.NOT_WANTED
        self._touched = False
        self._marked = False
        self._over = False
        self._head: tuple[int, tuple[Pair, ...]] | None = None
        # bounded: by RESULT_BYTES_MAX
        self._parts: list[bytes] = []
        self._size = 0

    def held(self) -> Held:
        """Return what others with the same key are told of."""
        handed = self.handed
        return Held(handed.request, handed.sealed.body, State.RUNNING, self._desk.now_ms() + KEEP_MS)

    async def before_send(self, *, may_keep: bool) -> None:
        """Make it durable that the request is sent, before it is. Called before every send of it.

        `may_keep` says whether the law lets what comes back be kept. Raises ProblemError: then nothing may be sent.
        """
        if not may_keep and self._why is None:
            self._why = Why.NOT_GRANTED
        if not self._marked:
            handed, now_ms = self.handed, self._desk.now_ms()
            sealed, until_ms = handed.sealed, now_ms + KEEP_MS
            self._touched = True
            try:
                await self._desk.turns.do(
                    lambda store: store.begin(sealed.key, sealed.tenant, sealed.body, handed.request, now_ms, until_ms)
                )
            except StoreError as failure:
                raise self._desk.unavailable(failure) from None
            self._marked = True
        self.begun = True

    def not_started(self) -> None:
        """The send came to nothing: whoever was to begin says that it did not."""
        self.begun = False

    def start(self, status: int, headers: Sequence[Pair]) -> None:
        """The answer begins."""
        self._head = (status, tuple(headers))

    def add(self, data: bytes) -> None:
        """Some of the answer."""
        if self._why is not None:
            return
        fits = self._size + len(data) <= RESULT_BYTES_MAX
        if not fits or not self._desk.take(len(data)):
            self._drop(Why.NO_ROOM if fits else Why.TOO_LARGE)
            return
        self._parts.append(data)
        self._size += len(data)

    async def complete(self) -> None:
        """The answer is whole. Its end is not sent before this returns: whoever saw it is told what became of it."""
        if self.settle is not None:
            await self.settle()
        handed = self.handed
        sealed, request, delivered = handed.sealed, handed.request, handed.delivered()
        why, shut = self._why, b""
        if self._head is not None and why is None:
            result = Result(RESULT_VERSION, *self._head, b"".join(self._parts))
            shut = sealed.shut(msgspec.msgpack.encode(result))

        def over(store: KeyStore) -> None:
            if not shut or not store.keep(sealed.key, sealed.tenant, request, delivered, shut):
                store.end(sealed.key, request, delivered, why or Why.NO_ROOM)

        await self._note(over)

    async def end(self) -> None:
        """Note what became of it, however it ended. A key under which nothing was begun is free again."""
        self._drop(Why.CUT)
        # It leads to the answer, which knows the request, which knows this: nothing of it stays for the collector.
        self.settle = None
        handed = self.handed
        key, request, delivered = handed.sealed.key, handed.request, handed.delivered()
        if self.begun:
            await self._note(lambda store: store.end(key, request, delivered, Why.CUT))
        elif self._touched:
            await self._note(lambda store: store.free(key, request))
        else:
            self._desk.forget(self)

    async def _note(self, action: Callable[[KeyStore], None]) -> None:
        """Make the end of it durable, once."""
        if self._over:
            return
        try:
            await self._desk.turns.do(action)
            self._over = True
        except StoreError as failure:
            # It stays as running on the disk: the key is not free, which is the safe side.
            self._desk.failed(failure)
        finally:
            self._desk.forget(self)

    def _drop(self, why: Why) -> None:
        """Keep no result, and hold none."""
        self._why = self._why or why
        self._parts.clear()
        self._desk.give_back(self._size)
        self._size = 0


def _taken(answer: Answer, held: Held) -> Problem:
    """Return what a request is told whose key another one has."""
    who = f"The first request with this key, {held.request},"
    match answer:
        case Answer.RUNNING:
            return Problem("idempotency_in_progress", f"{who} is still running.", HEADER)
        case Answer.UNCERTAIN:
            sentence = f"{who} may have been sent, and what became of it is not known here."
            return Problem("idempotency_result_not_kept", sentence, HEADER)
        case Answer.OTHER_BODY:
            return Problem("idempotency_body_differs", f"{who} had another body or other labels.", HEADER)
        case _:
            sentence = f"{who} is over, and its result is not kept: {_REASONS[held.why]}."
            return Problem("idempotency_result_not_kept", sentence, HEADER)


_REASONS = {
    None: "nobody noted why",
    Why.CUT: "it did not come to its end",
    Why.NOT_WANTED: "this tenant's contract keeps none",
    Why.NOT_GRANTED: "the law that it touches does not grant it",
    Why.TOO_LARGE: "it is too large",
    Why.NO_ROOM: "there was no room for it, or it cannot be read",
}

_results: msgspec.msgpack.Decoder[Any] = msgspec.msgpack.Decoder(Result)


def _read(data: bytes | None) -> Result | None:
    """Return a result, or None for what is none of this version."""
    if data is None:
        return None
    try:
        result: Result = _results.decode(data)
    except msgspec.DecodeError:
        return None
    return result if result.version == RESULT_VERSION else None
