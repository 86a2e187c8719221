"""What is known of single pools at the moment that a request file asks about. What is left out is idle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from msgspec import UNSET, Meta, UnsetType

from orchestrator.files.domain_error import DomainError
from orchestrator.files.fields import Count, CountOrZero, Written, read_name
from orchestrator.files.settings import BYTES_PER_MBIT
from orchestrator.files.typed import FieldPath
from orchestrator.placement.fleet import Pool
from orchestrator.placement.requests import PoolLoad, PoolView
from orchestrator.placement.speed import DECLARED_SPREAD_PPM, PPM, SPREAD_MAX_PPM, Speed
from orchestrator.policy.ids import PoolId


class SpeedDocument(Written, frozen=True):
    """How fast a pool was learned to be for the model: nanoseconds per token of one replica.

    `stream_ns` is what each stream beside it adds, `fixed_us` what every request takes besides queue, distance and
    prompt, `service_us` how long a stream holds its slot; `spread_ppm` is the relative standard deviation of the time
    to the first token, `queue_ppm` how long a wait is relative to what reports make of it, both in parts per million.
    """

    prefill_ns: Count
    decode_ns: Count
    stream_ns: CountOrZero
    fixed_us: CountOrZero = 0
    service_us: Count | UnsetType = UNSET
    spread_ppm: Annotated[int, Meta(ge=0, le=SPREAD_MAX_PPM)] = DECLARED_SPREAD_PPM
    queue_ppm: CountOrZero = PPM


class PoolStateDocument(Written, frozen=True):
    """What is known of one pool. Left out: it is up and idle, and what only a measurement tells is unknown.

    `slots` and `waiting_max` are, left out, what the fleet declares as slots. `own_in_flight` are attempts of the edge
    there, `unseen` those of them that the last report cannot have counted, `unseen_tokens` their prompt tokens: left
    out, prompts like this one. `cached_tokens` of this prompt are expected to lie there, `held_off` says that its
    breaker is open, `openings` how many attempts the edge may still start.
    """

    up: bool = True
    rtt_ms: CountOrZero | UnsetType = UNSET
    mbit_per_s: Annotated[int, Meta(ge=1, le=1_000_000)] | UnsetType = UNSET
    replicas: CountOrZero = 1
    slots: Count | UnsetType = UNSET
    running: CountOrZero = 0
    waiting: CountOrZero = 0
    waiting_max: CountOrZero | UnsetType = UNSET
    queued_tokens: CountOrZero | UnsetType = UNSET
    kv_tokens: Count | UnsetType = UNSET
    kv_used_tokens: CountOrZero | UnsetType = UNSET
    openings: CountOrZero | UnsetType = UNSET
    age_ms: CountOrZero = 0
    own_in_flight: CountOrZero | UnsetType = UNSET
    unseen: CountOrZero = 0
    unseen_tokens: CountOrZero | UnsetType = UNSET
    cached_tokens: CountOrZero = 0
    held_off: bool = False
    speed: SpeedDocument | UnsetType = UNSET


@dataclass(frozen=True, slots=True)
class PoolState:
    """What is known of one pool. None: what the fleet declares, or, where only a measurement tells, unknown."""

    up: bool = True
    rtt_us: int | None = None
    bytes_per_s: int | None = None
    replicas: int = 1
    slots: int | None = None
    running: int = 0
    waiting: int = 0
    waiting_max: int | None = None
    queued_tokens: int | None = None
    kv_tokens: int | None = None
    kv_used_tokens: int | None = None
    openings: int | None = None
    age_ms: int = 0
    own_in_flight: int = 0
    unseen: int = 0
    unseen_tokens: int | None = None
    """None: the unseen prompts are like the one that is asked about."""
    cached_tokens: int = 0
    held_off: bool = False
    speed: Speed | None = None

    def view(self, pool: Pool, prompt_tokens: int) -> PoolView:
        """Return what an edge would know of `pool` while it places a prompt of that length."""
        load = PoolLoad(
            replicas=self.replicas,
            slots=pool.slots if self.slots is None else self.slots,
            running=self.running,
            waiting=self.waiting,
            waiting_max=pool.slots if self.waiting_max is None else self.waiting_max,
            age_ms=self.age_ms,
            queued_tokens=self.queued_tokens,
            kv_tokens=self.kv_tokens,
            kv_used_tokens=self.kv_used_tokens,
            openings=self.openings,
        )
        unseen_tokens = self.unseen * prompt_tokens if self.unseen_tokens is None else self.unseen_tokens
        return PoolView(
            pool.id,
            self.up,
            self.rtt_us,
            load,
            self.own_in_flight,
            self.unseen,
            unseen_tokens,
            self.bytes_per_s,
            self.cached_tokens,
            self.speed,
            self.held_off,
        )


IDLE = PoolState()
"""Of a pool that a request file does not name: it is up, and nothing runs there."""


def pool_states_of(documents: Mapping[str, PoolStateDocument], path: FieldPath) -> dict[PoolId, PoolState]:
    """Return what is known of each pool that is named. Raises DomainError."""
    return {PoolId(read_name(name, (*path, name))): _state(one, (*path, name)) for name, one in documents.items()}


def _state(document: PoolStateDocument, path: FieldPath) -> PoolState:
    own = document.unseen if document.own_in_flight is UNSET else document.own_in_flight
    if own < document.unseen:
        raise DomainError((*path, "own_in_flight"), "expected at least as many as are unseen")
    if document.unseen_tokens is not UNSET and document.unseen == 0:
        raise DomainError((*path, "unseen_tokens"), "expected unseen attempts that they are of")
    if document.kv_used_tokens is not UNSET and document.kv_tokens is UNSET:
        raise DomainError((*path, "kv_used_tokens"), "expected kv_tokens, of which these are used")
    rtt, mbit = document.rtt_ms, document.mbit_per_s
    return PoolState(
        up=document.up,
        rtt_us=None if rtt is UNSET else rtt * 1000,
        bytes_per_s=None if mbit is UNSET else mbit * BYTES_PER_MBIT,
        replicas=document.replicas,
        slots=_or_none(document.slots),
        running=document.running,
        waiting=document.waiting,
        waiting_max=_or_none(document.waiting_max),
        queued_tokens=_or_none(document.queued_tokens),
        kv_tokens=_or_none(document.kv_tokens),
        kv_used_tokens=_or_none(document.kv_used_tokens),
        openings=_or_none(document.openings),
        age_ms=document.age_ms,
        own_in_flight=own,
        unseen=document.unseen,
        unseen_tokens=_or_none(document.unseen_tokens),
        cached_tokens=document.cached_tokens,
        held_off=document.held_off,
        speed=None if document.speed is UNSET else _speed(document.speed),
    )


def _speed(document: SpeedDocument) -> Speed:
    return Speed(
        prefill_ns=document.prefill_ns,
        decode_ns=document.decode_ns,
        stream_ns=document.stream_ns,
        fixed_us=document.fixed_us,
        service_us=_or_none(document.service_us),
        spread_ppm=document.spread_ppm,
        queue_ppm=document.queue_ppm,
    )


def _or_none(number: int | UnsetType) -> int | None:
    return None if number is UNSET else number
