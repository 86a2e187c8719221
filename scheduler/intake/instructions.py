"""What the queue of a pool asks for, as data. Whoever carries it out does so in order."""

from __future__ import annotations

from typing import final

import msgspec

from orchestrator.engines.identity import NOT_CONTINUED, Continuing
from orchestrator.policy.ids import ReplicaId


class Assign(msgspec.Struct, frozen=True):
    """Give this work to that replica."""

    work: int
    replica: ReplicaId
    continuing: Continuing = NOT_CONTINUED
    """What that replica is, and could continue its answer by."""


class Withdraw(msgspec.Struct, frozen=True):
    """Tell that replica to stop this work."""

    work: int
    replica: ReplicaId


class Refuse(msgspec.Struct, frozen=True):
    """This work was not started and will not be."""

    work: int
    code: str
    detail: str
    retry_after_ms: int | None = None


class Break(msgspec.Struct, frozen=True):
    """This work may have begun, and is lost."""

    work: int
    code: str
    detail: str


class TimeUp(msgspec.Struct, frozen=True):
    """Tell that replica to stop this work, whose time is over; when it has, the work is broken."""

    work: int
    replica: ReplicaId


@final
class Expel(msgspec.Struct, frozen=True):
    """Close the connection of that replica: it was given up, or has ended what it had after another took its name."""

    replica: ReplicaId
    incarnation: str
    lost: bool = True


@final
class Rename(msgspec.Struct, frozen=True):
    """That replica has another name from now on: a newer one takes its own."""

    replica: ReplicaId
    to: ReplicaId


Instruction = Assign | Withdraw | TimeUp | Refuse | Break | Expel | Rename
