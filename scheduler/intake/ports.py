"""What the site acts through: sessions to edges, ways to replicas, where manifests come from, and its hands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import msgspec

from orchestrator.bundles.assemble import Bundle
from orchestrator.engines.generation import Generation
from orchestrator.engines.identity import Continuing
from orchestrator.ledger.usage import PoolCounts
from orchestrator.policy.ids import Digest, EdgeId, PoolId, ReplicaId, SideId
from orchestrator.spool.store import Spool
from orchestrator.wire.catalogue import Problem


class SessionPort(Protocol):
    """The way back to one edge."""

    @property
    def edge(self) -> EdgeId | None:
        """The edge at the other end, while it is connected."""

    def accepted(self, stream: int, replica: ReplicaId, continuing: Continuing) -> None:
        """A replica has the work, and its answer could be continued by that."""

    def tokens(self, stream: int, text: str, ids: tuple[int, ...], count: int, first: bool) -> None:
        """Tokens were made: the first of the stream, or more."""

    def done(self, stream: int, reason: str, counts: PoolCounts, queued_us: int | None, beside: int | None) -> None:
        """The answer is complete; how long it waited here, and how many streams ran beside it."""

    def refused(self, stream: int, problem: Problem) -> None:
        """Nothing was generated."""

    def broken(self, stream: int, code: str, detail: str, counts: PoolCounts) -> None:
        """The answer was cut."""

    def tell(self, pool: PoolId) -> None:
        """The state of a pool is to be told: the port asks the site for it when it has room to say it."""


class ReplicaPort(Protocol):
    """The way to one replica."""

    def assign(self, work: int, generation: Generation, budget_ms: int) -> None:
        """Run this. When its time is over it is withdrawn; `budget_ms` is for those who bound it themselves too."""

    def withdraw(self, work: int) -> None:
        """Stop that."""

    def hold(self, work: int, *, held: bool) -> None:
        """Make no more of that for now, or go on with it. Who cannot wait goes on."""

    def expel(self) -> None:
        """The connection is given up."""


class Manifests(Protocol):
    """Where manifests come from."""

    @property
    def current(self) -> Bundle | None:
        """The newest bundle of this side."""

    def remembered(self, side: SideId, number: int, digest: Digest) -> Bundle | None:
        """Return a cited manifest that is at hand, or None: then it may be found."""

    async def find(self, side: SideId, number: int, digest: Digest, timeout_ms: int) -> Bundle | None:
        """Return a cited manifest, or None when it cannot be had in time."""


class Hands(msgspec.Struct, frozen=True):
    """What the site acts with."""

    manifests: Manifests
    spool: Spool
    now_ms: Callable[[], int]
    now_us: Callable[[], int]
    entropy: Callable[[int], bytes]
    salt: bytes
    """Of the hashes of prefixes. A secret of this site."""
