"""A writer that knows what it wrote and a reader that knows what it saw."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator.control.entries import (
    ABSENT,
    Change,
    RegistryConflict,
    RegistryKey,
    RegistryUnavailable,
    Revision,
)
from orchestrator.control.registry import Registry
from orchestrator.control.watch import Changes, Resync, Watch

RETRY_S = 0.05
POLL_S = 0.005


@dataclass(frozen=True, slots=True)
class Written:
    """One write that is known to have been applied, once."""

    key: RegistryKey
    value: bytes
    mod_revision: Revision


class Writer:
    """The only writer of its keys. It sends a write again until it knows that it was applied exactly once."""

    def __init__(self, registry: Registry, keys: list[RegistryKey]) -> None:
        self._registry = registry
        self._keys = keys
        self._revisions: dict[RegistryKey, Revision] = {}
        self.written: list[Written] = []
        self.unknown = 0
        """Writes whose outcome was not known at first."""

    async def write(self, count: int, *, size_bytes: int = 16) -> None:
        for _ in range(count):
            number = len(self.written)
            value = (b"%d " % number).ljust(size_bytes, b".")
            await self._apply(self._keys[number % len(self._keys)], value)

    async def delete(self, key: RegistryKey) -> Revision:
        return await self._registry.delete(key, self._revisions.pop(key))

    async def _apply(self, key: RegistryKey, value: bytes) -> None:
        while True:
            try:
                revision = await self._registry.replace(key, value, self._revisions.get(key, ABSENT))
            except RegistryUnavailable:
                self.unknown += 1
                await asyncio.sleep(RETRY_S)
            except RegistryConflict:
                # Nobody else writes this key: an earlier try was applied. The next turn reads which revision it got.
                revision = await self._applied(key, value)
                break
            else:
                break
        self._revisions[key] = revision
        self.written.append(Written(key, value, revision))

    async def _applied(self, key: RegistryKey, value: bytes) -> Revision:
        while True:
            try:
                entry = await self._registry.get(key)
            except RegistryUnavailable:
                await asyncio.sleep(RETRY_S)
                continue
            assert entry is not None
            assert entry.value == value, "another write of this key was applied"
            return entry.mod_revision


class Reader:
    """Reads all that a watch hands out."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        self._news = asyncio.Event()
        self.resyncs = 0
        self.live: list[Change] = []
        """Changes that the watch saw happen, in order."""
        self.relisted: list[tuple[Change, ...]] = []
        """Changes that were derived from a listing after a compaction, a tuple for each."""
        self._task = asyncio.create_task(self._run())

    @property
    def seen(self) -> list[Written]:
        """The writes among the live changes."""
        return [
            Written(change.key, change.entry.value, change.mod_revision)
            for change in self.live
            if change.entry is not None
        ]

    async def until_seen(self, count: int, timeout_s: float = 20.0) -> None:
        """Wait until so many live changes were seen."""
        async with asyncio.timeout(timeout_s):
            while len(self.live) < count:
                await self._news.wait()
                self._news.clear()

    async def finish(self) -> None:
        """Wait for the end of the watch, which the caller has closed."""
        async with asyncio.timeout(5.0):
            await self._task

    async def _run(self) -> None:
        async for batch in self._watch:
            match batch:
                case Resync():
                    self.resyncs += 1
                case Changes(changes, relisted=True):
                    self.relisted.append(changes)
                case Changes(changes):
                    self.live.extend(changes)
            self._news.set()


async def until(condition: Callable[[], bool], timeout_s: float) -> float:
    """Poll until it is true; return the seconds it took. Raises TimeoutError."""
    began_s = time.monotonic()
    async with asyncio.timeout(timeout_s):
        while True:
            if condition():
                return time.monotonic() - began_s
            await asyncio.sleep(POLL_S)
