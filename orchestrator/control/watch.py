"""Following a prefix of the registry without losing, repeating or believing silence.

`WatchCursor` is pure: replies in, changes and verdicts out. `Watch` drives it over a `Feed` (etcd, in `registry`).

What the cursor rests on:

* It lists first and watches from the revision after the listing. A cut watch resumes after the last change that was
  taken, never after the revision in a reply's header: a server that catches up sends a header far ahead of its events.
* A server may split one reply into fragments, even inside one revision. A revision is taken whole or not at all, so a
  cut between fragments repeats nothing.
* After a compaction the missed changes are gone. The cursor lists again and derives the differences, deletes included.
* Silence proves nothing. Only the answer to a question of ours proves that what we hold is current, and it is dated at
  the moment of the question.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType
from typing import Protocol

from orchestrator.control.entries import (
    Change,
    Entry,
    Listing,
    RegistryError,
    RegistryKey,
    RegistryUnavailable,
    Revision,
)
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event

log = logger("orchestrator.control")

QUIET_INTERVALS = 3
"""A server that has said nothing for this many progress intervals is hung."""
BACKOFF_FIRST_S = 0.1
BACKOFF_MOST_S = 1.0
PENDING_MOST_CHANGES = 4096
PENDING_MOST_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Reply:
    """One message of the server on a watch stream, in our words."""

    revision: Revision
    """The revision of the server's store when it wrote the header."""
    cluster_id: int
    watch_id: int
    """Negative for the answer to a progress question."""
    changes: tuple[Change, ...] = ()
    created: bool = False
    fragment: bool = False
    """More of the same reply follows."""
    canceled: bool = False
    compacted: bool = False
    """The watch asked for changes that a compaction removed."""


class Ending(Enum):
    """Why a stream is of no more use."""

    COMPACTED = "the changes asked for were compacted"
    REWOUND = "the server's history is not the one that was listed"
    CANCELED = "the server cancelled the watch"


@dataclass(frozen=True, slots=True)
class Step:
    """What one reply led to."""

    changes: tuple[Change, ...] = ()
    ending: Ending | None = None


class WatchCursor:
    """The state below one prefix and the place in history up to which it is complete. Pure: time is a parameter."""

    def __init__(self) -> None:
        self._state: dict[RegistryKey, Entry] = {}
        self._next: Revision | None = None
        self._cluster_id = 0
        self._held_back: list[Change] = []
        self._asked_at_s: float | None = None
        self._proved_at_s = -math.inf
        self.repeats = 0
        """Changes that the server sent again and that were dropped."""

    @property
    def state(self) -> Mapping[RegistryKey, Entry]:
        """What is held now: a view, not a copy."""
        return MappingProxyType(self._state)

    @property
    def next_revision(self) -> Revision | None:
        """Where to watch from, or None when a listing is needed first."""
        return self._next

    def age_s(self, now_s: float) -> float:
        """Seconds since the server last proved that the state is current; infinite before the first listing."""
        return now_s - self._proved_at_s

    def listed(self, listing: Listing, asked_at_s: float) -> tuple[Change, ...]:
        """Take a listing that was asked for at `asked_at_s`; return how it differs from what was held."""
        old, new = self._state, dict(listing.entries)
        changes = [Change(key, entry, entry.mod_revision) for key, entry in new.items() if old.get(key) != entry]
        changes.sort(key=lambda change: change.mod_revision)
        changes.extend(Change(key, None, listing.revision) for key in old if key not in new)
        self._state = new
        self._next = Revision(listing.revision + 1)
        self._cluster_id = listing.cluster_id
        self._proved_at_s = asked_at_s
        return tuple(changes)

    def opened(self) -> None:
        """A new stream begins: what an earlier one left unfinished will be sent again."""
        self._held_back.clear()
        self._asked_at_s = None

    def asked(self, now_s: float) -> None:
        """A progress question goes out. Of several unanswered ones the earliest counts: any of them may be answered."""
        if self._asked_at_s is None:
            self._asked_at_s = now_s

    def received(self, reply: Reply) -> Step:
        """Take one reply."""
        if self._next is None:
            raise ValueError("a reply before the listing")
        if reply.compacted:
            self._next = None
            return Step(ending=Ending.COMPACTED)
        if reply.canceled:
            return Step(ending=Ending.CANCELED)
        if reply.created:
            return self._created(reply, self._next)
        if reply.watch_id < 0:
            # It never moves the place in history: before etcd 3.5.8 it could overtake events.
            if self._asked_at_s is not None:
                self._proved_at_s, self._asked_at_s = self._asked_at_s, None
            return Step()
        if not reply.changes and not self._held_back:
            # A notice on the watch itself is in order with its events: all up to this revision has arrived.
            self._next = Revision(max(self._next, reply.revision + 1))
            return Step()
        return Step(changes=self._taken(reply))

    def _created(self, reply: Reply, expected: Revision) -> Step:
        # A store restored from a backup would stay silent until it reaches our place again.
        if reply.cluster_id != self._cluster_id or reply.revision < expected - 1:
            self._next = None
            return Step(ending=Ending.REWOUND)
        return Step()

    def _taken(self, reply: Reply) -> tuple[Change, ...]:
        arrived = [*self._held_back, *reply.changes]
        self._held_back.clear()
        if reply.fragment and arrived:
            last = arrived[-1].mod_revision
            self._held_back = [change for change in arrived if change.mod_revision == last]
            arrived = arrived[: len(arrived) - len(self._held_back)]
        fresh = tuple(change for change in arrived if self._next is not None and change.mod_revision >= self._next)
        self.repeats += len(arrived) - len(fresh)
        for change in fresh:
            if change.entry is None:
                self._state.pop(change.key, None)
            else:
                self._state[change.key] = change.entry
        if fresh:
            self._next = Revision(fresh[-1].mod_revision + 1)
        return fresh


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes in the order of history, each exactly once."""

    changes: tuple[Change, ...]
    relisted: bool
    """Derived from a listing after a compaction: the last value of each key, without those between."""


@dataclass(frozen=True, slots=True, repr=False)
class Resync:
    """The whole state. It replaces all that came before: at the start, and when the consumer fell too far behind."""

    state: Mapping[RegistryKey, Entry]


Batch = Changes | Resync


class PendingBatches:
    """Batches on their way to a consumer, bounded. Beyond the bound the consumer gets the state instead. Pure."""

    def __init__(self, most_changes: int = PENDING_MOST_CHANGES, most_bytes: int = PENDING_MOST_BYTES) -> None:
        self._most_changes = most_changes
        self._most_bytes = most_bytes
        self._batches: deque[Changes] = deque()  # bounded: most_changes and most_bytes
        self._changes = 0
        self._size_bytes = 0
        self._resync = False
        self.overflows = 0
        """How often the bound was met."""

    def resync(self) -> None:
        """Forget what waits: the consumer gets the state next."""
        self._batches.clear()
        self._changes = self._size_bytes = 0
        self._resync = True

    def add(self, batch: Changes) -> None:
        """Queue one batch. A due resync covers it: the state is read when the consumer comes."""
        if self._resync or not batch.changes:
            return
        self._batches.append(batch)
        self._changes += len(batch.changes)
        self._size_bytes += sum(change.size_bytes for change in batch.changes)
        if self._changes > self._most_changes or self._size_bytes > self._most_bytes:
            self.overflows += 1
            self.resync()

    def take(self, state: Mapping[RegistryKey, Entry]) -> Batch | None:
        """Return the next batch, or None when there is none. `state` is what is held now."""
        if self._resync:
            self._resync = False
            return Resync(MappingProxyType(dict(state)))
        if not self._batches:
            return None
        batch = self._batches.popleft()
        self._changes -= len(batch.changes)
        self._size_bytes -= sum(change.size_bytes for change in batch.changes)
        return batch


def backoff_s(failures: int) -> float:
    """Return the wait before the next try, from the number of failures since the last success: 0.1 s up to 1 s."""
    return min(BACKOFF_MOST_S, BACKOFF_FIRST_S * float(1 << min(max(failures - 1, 0), 10)))


class FeedStream(Protocol):
    """One watch stream. All but `abandon` and `close` raise RegistryError when the stream is of no more use."""

    async def begin(self, timeout_s: float) -> None:
        """Connect and ask for the watch. Before all else, and once."""
        ...

    async def ask_progress(self, timeout_s: float) -> None:
        """Ask the server to say how far it is."""
        ...

    async def read(self, timeout_s: float) -> Reply | None:
        """Return the next reply, or None when there was none in time."""
        ...

    def abandon(self) -> None:
        """Note that the server is hung, so that the next stream goes to another one if there is one."""
        ...

    async def close(self) -> None:
        """End the stream. Raises nothing."""
        ...


class Feed(Protocol):
    """Where a watch listens."""

    async def list_all(self) -> Listing:
        """Return all entries, read from a majority. Raises RegistryError."""
        ...

    def open(self, start: Revision) -> FeedStream:
        """Return a stream of the changes from this revision on. It asks for fragments and progress notices."""
        ...


@dataclass(frozen=True, slots=True)
class WatchCounts:
    """What a watch has been through, for telemetry."""

    listings: int
    """Listings taken; the first one included."""
    streams: int
    """Streams opened; the first one included."""
    overflows: int
    """How often the consumer fell too far behind."""
    repeats: int
    """Changes that the server sent again and that were dropped."""


class Watch:
    """A prefix of the registry, followed by a task of its own until `close`.

    One consumer iterates over it: first a `Resync`, then `Changes`. Any number may read `state` and `age_s`. No failure
    of etcd ends it: it tries again, and its age grows meanwhile.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        name: str,
        progress_s: float,
        pending: PendingBatches | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._feed = feed
        self._name = name
        self._progress_s = progress_s
        self._quiet_s = QUIET_INTERVALS * progress_s
        self._clock = clock
        self._cursor = WatchCursor()
        self._pending = pending if pending is not None else PendingBatches()
        self._news = asyncio.Event()
        self._listings = 0
        self._streams = 0
        self._failures = 0
        self._last_failure = "no answer yet"
        self._connected = False
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._run(), name=f"watch {name}")
        self._task.add_done_callback(lambda _: self._tell())

    @property
    def connected(self) -> bool:
        """Whether the server has accepted the present stream and was heard within the quiet limit."""
        return self._connected

    @property
    def state(self) -> Mapping[RegistryKey, Entry]:
        """A snapshot of what is held now. Judge it by `age_s`."""
        return MappingProxyType(dict(self._cursor.state))

    @property
    def counts(self) -> WatchCounts:
        """What the watch has been through so far."""
        return WatchCounts(self._listings, self._streams, self._pending.overflows, self._cursor.repeats)

    def get(self, key: RegistryKey) -> Entry | None:
        """Return the held entry of one key, or None. Judge it by `age_s`."""
        return self._cursor.state.get(key)

    def age_s(self, now_s: float) -> float:
        """Seconds of the monotonic clock since the server last proved that the state is current; infinite before."""
        return self._cursor.age_s(now_s)

    async def ready(self, timeout_s: float) -> None:
        """Wait for the first listing. Raises RegistryUnavailable when it does not come in time."""
        try:
            async with asyncio.timeout(timeout_s):
                while self._listings == 0 and self._task is not None and not self._task.done():
                    await self._news.wait()
        except TimeoutError:
            raise RegistryUnavailable(f"list {self._name}", self._last_failure) from None
        if self._listings == 0:
            raise RegistryUnavailable(f"list {self._name}", "the watch is closed")

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        """Return the next batch; the iteration ends when the watch is closed."""
        while True:
            batch = self._pending.take(self._cursor.state)
            if batch is not None:
                return batch
            if self._task is None or self._task.cancelled():
                raise StopAsyncIteration
            if self._task.done():
                self._task.result()
            await self._news.wait()

    async def close(self) -> None:
        """End the task and its stream. Raises nothing; may be called again."""
        # The task keeps its cancellation, that keeps every frame it passed, and these keep the call and its socket.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def _run(self) -> None:
        try:
            while True:
                try:
                    await self._follow()
                except RegistryError as failure:
                    self._failed(failure)
                await asyncio.sleep(backoff_s(self._failures))
        finally:
            self._connected = False

    async def _follow(self) -> None:
        start = await self._start()
        stream = self._feed.open(start)
        try:
            self._streams += 1
            self._cursor.opened()
            await stream.begin(self._quiet_s)
            await self._read_on(stream)
        finally:
            await stream.close()

    async def _start(self) -> Revision:
        start = self._cursor.next_revision
        if start is not None:
            return start
        asked_at_s = self._clock()
        listing = await self._feed.list_all()
        changes = self._cursor.listed(listing, asked_at_s)
        self._listings += 1
        if self._listings == 1:
            self._pending.resync()
        else:
            self._pending.add(Changes(changes, relisted=True))
        self._tell()
        return Revision(listing.revision + 1)

    async def _read_on(self, stream: FeedStream) -> None:
        heard_at_s = asked_at_s = self._clock()
        while True:
            now_s = self._clock()
            quiet_at_s = heard_at_s + self._quiet_s
            if now_s >= quiet_at_s:
                stream.abandon()
                raise RegistryUnavailable(f"watch {self._name}", "the server is silent")
            if now_s >= asked_at_s + self._progress_s:
                asked_at_s = now_s
                self._cursor.asked(now_s)
                await stream.ask_progress(max(0.0, quiet_at_s - now_s))
            reply = await stream.read(max(0.0, min(quiet_at_s, asked_at_s + self._progress_s) - self._clock()))
            if reply is not None:
                heard_at_s = self._clock()
                self._take(reply)

    def _take(self, reply: Reply) -> None:
        step = self._cursor.received(reply)
        if step.ending is not None:
            raise RegistryUnavailable(f"watch {self._name}", step.ending.value)
        if reply.created:
            self._connected = True
            return
        if self._failures > 0:
            log.info(Event.REGISTRY_CONNECTED)
            self._failures = 0
        if step.changes:
            self._pending.add(Changes(step.changes, relisted=False))
            self._tell()

    def _failed(self, failure: RegistryError) -> None:
        if self._failures == 0:
            log.warning(Event.REGISTRY_LOST, detail=str(failure))
        self._last_failure = str(failure)
        self._connected = False
        self._failures += 1

    def _tell(self) -> None:
        """Wake all who wait. Nothing is awaited between their look at the state and their wait."""
        self._news.set()
        self._news = asyncio.Event()
