"""What a second request with the same `Idempotency-Key` is told. Pure: time and digests are parameters.

A key is in one of these states. What is durable is written before the next step is taken:

    (free) ── claimed, in memory ──▶ RUNNING ──▶ ENDED   over, and no result is kept
      ▲                                │ │
      └── nothing was begun for it ────┘ └─────▶ KEPT    over, and its result is sent again

RUNNING is on the disk before the first byte leaves. Found there by a program that does not itself run the request, it
means that the request may have been sent, and nobody knows what became of it: the key is not free.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from typing import NewType

from orchestrator.policy.ids import RequestId

HEADER = "idempotency-key"
KEEP_MS = 86_400_000
"""For how long a key is held from its first send on: 24 h."""

_KEY = re.compile(r"[\x20-\x7e]{1,255}\Z")

KeyDigest = NewType("KeyDigest", bytes)
"""Keyed digest of (tenant, endpoint, region, key)."""
BodyDigest = NewType("BodyDigest", bytes)
"""Keyed digest of what was asked: the body, and the labels that were declared with it."""
TenantDigest = NewType("TenantDigest", bytes)


class State(Enum):
    """What is durable of a key."""

    RUNNING = 1
    ENDED = 2
    KEPT = 3


class Why(Enum):
    """Why the result of a request that is over is not kept."""

    CUT = 1
    """It did not come to its end."""
    NOT_WANTED = 2
    """The tenant's contract does not say that results are kept."""
    NOT_GRANTED = 3
    """The law does not grant that it is."""
    TOO_LARGE = 4
    NO_ROOM = 5


class Answer(Enum):
    """What a request with a key is told."""

    GO = "new"
    RUNNING = "running"
    """The first request still runs here."""
    NOT_KEPT = "not_kept"
    """It is over, and its result is not kept."""
    UNCERTAIN = "uncertain"
    """It may have been sent; what became of it is not known."""
    REPLAY = "replayed"
    OTHER_BODY = "other_body"


@dataclass(frozen=True, slots=True)
class Held:
    """What is known of a key that is not free."""

    request: RequestId
    """The first request."""
    body: BodyDigest
    state: State
    until_ms: int
    """From then on the key is free."""
    why: Why | None = None
    """Why no result is kept, where the state is ENDED."""


def well_formed(key: str) -> bool:
    """Whether a header value can be a key: 1 to 255 printable ASCII characters."""
    return _KEY.match(key) is not None


def judge(held: Held | None, body: BodyDigest, now_ms: int, *, here: bool) -> Answer:
    """Return what a request with this body is told. `here` says that this program itself runs the first one."""
    if held is None or (held.until_ms <= now_ms and not here):
        return Answer.GO
    if held.body != body:
        return Answer.OTHER_BODY
    if here:
        return Answer.RUNNING
    match held.state:
        case State.RUNNING:
            return Answer.UNCERTAIN
        case State.ENDED:
            return Answer.NOT_KEPT
        case State.KEPT:
            return Answer.REPLAY


def owner(key: KeyDigest, processes: int) -> int:
    """Return which of `processes` processes of one edge answers for a key. Raises ValueError for none."""
    if processes < 1:
        raise ValueError("expected at least one process")
    return int.from_bytes(key[:8], "big") % processes
