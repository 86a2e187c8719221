"""A lease that knows by its own clock when it is lost.

The server counts a lease from when it takes a renewal, which is never before we sent it. So until `sent + ttl` on our
own monotonic clock the server cannot have let the lease go, and after it we no longer hold it, whatever the server or
its silence says. A machine that was suspended stops this clock: whoever acts on a lease also guards the commit with it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from orchestrator.control.entries import LeaseId, RegistryError
from orchestrator.control.watch import backoff_s

RENEWALS_PER_TTL = 3


class LeaseFence:
    """Until when a lease is held. Pure: times are monotonic seconds, given by the caller."""

    def __init__(self, sent_at_s: float, ttl_s: float) -> None:
        self._until_s = sent_at_s + ttl_s
        self._ended = False

    @property
    def until_s(self) -> float:
        """The end, if no renewal comes."""
        return self._until_s

    def held(self, now_s: float) -> bool:
        """Whether the lease is held. Once False it stays False."""
        return not self._ended and now_s < self._until_s

    def renewed(self, sent_at_s: float, ttl_s: float, now_s: float) -> bool:
        """Take the answer to a renewal that was sent at `sent_at_s`; return whether the lease is held.

        A TTL of 0 says that the server no longer has the lease. An answer after the end comes too late: somebody may
        have acted on the end already.
        """
        if ttl_s <= 0 or not self.held(now_s):
            self._ended = True
            return False
        self._until_s = max(self._until_s, sent_at_s + ttl_s)
        return self.held(now_s)

    def end(self) -> None:
        """Give the lease up."""
        self._ended = True


class LeaseStream(Protocol):
    """One renewal stream."""

    async def renew(self, timeout_s: float) -> float:
        """Send one renewal, return the TTL in seconds of its answer (0: gone). Raises RegistryError."""
        ...

    async def close(self) -> None:
        """End the stream. Raises nothing."""
        ...


class LeaseHome(Protocol):
    """Where a lease lives."""

    def open(self) -> LeaseStream:
        """Return a new renewal stream."""
        ...

    async def revoke(self) -> None:
        """Delete the lease and its keys. Raises RegistryError."""
        ...


class Lease:
    """A granted lease, renewed by a task of its own until it is lost or closed."""

    def __init__(
        self,
        home: LeaseHome,
        lease_id: LeaseId,
        *,
        sent_at_s: float,
        ttl_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._home = home
        self._id = lease_id
        self._ttl_s = ttl_s
        self._clock = clock
        self._fence = LeaseFence(sent_at_s, ttl_s)
        self._renew_at_s = sent_at_s + ttl_s / RENEWALS_PER_TTL
        self._failures = 0
        self._lost = asyncio.Event()
        self._task: asyncio.Task[None] | None = asyncio.create_task(self._run(), name=f"lease {lease_id:x}")

    @property
    def id(self) -> LeaseId:
        """The number to attach to a `Put`."""
        return self._id

    @property
    def ttl_s(self) -> float:
        """Seconds that the server granted."""
        return self._ttl_s

    def held(self, now_monotonic_s: float) -> bool:
        """Whether the lease is held at this moment of `time.monotonic()`. Once False it stays False."""
        return self._fence.held(now_monotonic_s)

    async def lost(self) -> None:
        """Wait until the lease is no longer held."""
        await self._lost.wait()

    async def close(self) -> None:
        """Give the lease up and tell the server, if it can be reached. Raises nothing; may be called again."""
        self._fence.end()
        self._lost.set()
        # Let go: a cancelled task keeps every frame it passed, and with them the call and its socket.
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            await self._revoke()

    async def _revoke(self) -> None:
        try:
            await self._home.revoke()
        except RegistryError:
            # The server lets it go by itself when the TTL is over.
            return

    async def _run(self) -> None:
        try:
            while self._fence.held(self._clock()):
                try:
                    await self._renew_on()
                except RegistryError:
                    self._failures += 1
                    self._renew_at_s = self._clock() + backoff_s(self._failures)
        finally:
            self._fence.end()
            self._lost.set()

    async def _renew_on(self) -> None:
        """Renew over one stream until it breaks or the lease is lost."""
        await self._until_renewal()
        stream = self._home.open()
        try:
            while True:
                sent_at_s = self._clock()
                left_s = self._fence.until_s - sent_at_s
                if left_s <= 0:
                    return
                ttl_s = await stream.renew(min(left_s, self._ttl_s / RENEWALS_PER_TTL))
                if not self._fence.renewed(sent_at_s, ttl_s, self._clock()):
                    return
                self._failures = 0
                self._renew_at_s = sent_at_s + ttl_s / RENEWALS_PER_TTL
                await self._until_renewal()
        finally:
            await stream.close()

    async def _until_renewal(self) -> None:
        await asyncio.sleep(max(0.0, min(self._renew_at_s, self._fence.until_s) - self._clock()))
