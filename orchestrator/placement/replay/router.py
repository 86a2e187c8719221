"""What a router is to a replay: asked where a request goes, told what became of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from orchestrator.placement.replay.world import PoolReport, Reply, SimRequest


@dataclass(frozen=True, slots=True)
class Send:
    """Send it to `pool`; to `replica` of it, or, when None, to whichever the pool's own scheduler chooses."""

    pool: int
    replica: int | None = None


@dataclass(frozen=True, slots=True)
class Forward:
    """Hand it to the balancer at another edge, which is asked in turn. One hop at most."""

    edge: int


@dataclass(frozen=True, slots=True)
class Hold:
    """Keep it in the edge's line, first come first served; ask again at the next report, reply, or 10 ms."""


@dataclass(frozen=True, slots=True)
class Refuse:
    """Turn it away, for this reason."""

    reason: str


Choice = Send | Forward | Hold | Refuse


class Router(Protocol):
    """Placement at every edge. Reports and replies arrive with the delay that they would have."""

    loads_with_replies: bool
    """Whether each reply brings a report of its pool, made when it left there."""
    report_us: int
    """How often pools report to each edge, in microseconds."""

    def choose(self, request: SimRequest, edge: int, tried: Sequence[int], hopped: bool, now_us: int) -> Choice:
        """Say where `request`, which stands at `edge`, goes. `tried` are pools that refused it as not started."""

    def sent(self, request: SimRequest, edge: int, choice: Send, now_us: int) -> None:
        """The attempt left `edge`."""

    def first_token(self, request: SimRequest, edge: int, pool: int, replica: int, now_us: int) -> None:
        """The first token of an attempt reached `edge`."""

    def replied(self, request: SimRequest, edge: int, reply: Reply, now_us: int) -> None:
        """The attempt ended: complete, refused or broken."""

    def reported(self, edge: int, pool: int, report: PoolReport, now_us: int) -> None:
        """A report of `pool` reached `edge`, half a round trip after it was made."""

    def replica(self, request: SimRequest, pool: int, report: PoolReport, now_us: int) -> int:
        """The pool's own scheduler chooses a replica, by its own fresh state. Called when `Send` names none."""
