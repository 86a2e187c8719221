"""Which replica: the least J, by the cost and the `Sight` with which edges choose pools. Pure.

The replicas of a pool charge alike, so only time tells them apart: the prices are nought. To a `Sight` a replica is a
place to send to, and its name stands where an edge has a pool's.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Protocol

import msgspec
from msgspec.structs import replace

from orchestrator.engines.identity import Continuing
from orchestrator.ledger.money import Currency
from orchestrator.ledger.rating import TokenPrice
from orchestrator.placement.capabilities import Capability
from orchestrator.placement.cost import Spot, Terms, cost
from orchestrator.placement.fleet import ServedModel
from orchestrator.placement.lengths import DECLARED_CHARS_PER_TOKEN
from orchestrator.placement.prefix import BLOCK_CHARS
from orchestrator.placement.requests import PlacementRequest, PoolLoad, PoolView
from orchestrator.placement.settings import PlacementSettings, Worth
from orchestrator.placement.sight import NO_FLOW, Sight
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import FlowId, ModelId, PoolId, ReplicaId

EXPECTED_OUTPUT_TOKENS = 256
"""Taken for an answer where the side publishes no settings."""
BLOCK_TOKENS = int(BLOCK_CHARS / DECLARED_CHARS_PER_TOKEN)
NO_CURRENCY = Currency("XTS")
"""The code that ISO 4217 keeps for tests: no money has it."""
TIME_ALONE = PlacementSettings(
    NO_CURRENCY,
    value_of_time_pico_per_ms=1_000,
    late_price_pico_per_ms=0,
    slo_first_ms=1,
    slo_token_us=1,
    epsilon_ppm=0,
    unknown_rtt_ms=0,
    expected_output_tokens=EXPECTED_OUTPUT_TOKENS,
).worth(None)
"""Where the side publishes no settings: nothing is late, and any value of time gives the same order."""
UNDECLARED_PREFILL_NS = 200_000
UNDECLARED_DECODE_NS = 20_000_000
"""Taken for a model that the bundle does not declare for the pool, until replies tell."""
NO_CAPABILITIES: frozenset[Capability] = frozenset()
NOT_CACHED = (0, 0)
FREE = TokenPrice(NO_CURRENCY, 0, 0, 0)


class Asked(msgspec.Struct, frozen=True):
    """What the choice is told of one work. Holds no payload: `blocks` are salted hashes."""

    model: ModelId
    prompt_tokens: int = 1
    """An estimate: only the engine counts."""
    output_tokens: int = EXPECTED_OUTPUT_TOKENS
    """Expected, at most what the request allows."""
    blocks: tuple[int, ...] = ()
    """Of its growing prefixes; none where the pool does not share what one request brought in with another."""
    served: ServedModel | None = None
    """As the newest bundle declares it for the pool."""
    worth: Worth = TIME_ALONE
    flow: FlowId = NO_FLOW
    """Whose work it is: all of one flow wait for each other before others wait for them."""
    needs: Continuing | None = None
    """Where it goes on with an answer: of which model, and by what. None but such a replica will do."""

    def __repr__(self) -> str:
        return f"Asked({self.model}, {self.prompt_tokens}, {self.output_tokens})"


class Candidate(Protocol):
    """One replica that can do the work, as far as a choice asks of it."""

    id: ReplicaId
    place: PoolId
    """Its name to a `Sight`."""
    slots: int
    free: int
    """With none it is no candidate now."""

    def load(self, asked: Asked) -> PoolLoad:
        """Return how full it is now."""


class Choice(msgspec.Struct, frozen=True):
    """The replica of least cost, and why."""

    replica: ReplicaId
    place: PoolId
    """Its name to a `Sight`."""
    declared: Speed
    terms: Terms
    expected_cached: int
    """Prompt tokens that the index says it holds, before belief."""


class Chooser:
    """Chooses among the replicas of one pool by what `sight` knows of them."""

    def __init__(self, sight: Sight) -> None:
        self._sight = sight
        self._spot = _spot_of(None, 1)
        """What is declared of a replica: the last that was asked for. Mostly all replicas of a pool are alike."""
        self._served: ServedModel | None = None
        """What `_spot` follows from, with its slots."""

    def best(self, asked: Asked, candidates: Sequence[Candidate], now_us: int) -> Choice | None:
        """Return the free one of least J; of equals the quicker, then by name, so that a choice can be replayed."""
        sight, model = self._sight, asked.model
        request = PlacementRequest(model, NO_CAPABILITIES, asked.prompt_tokens, asked.output_tokens, 0)
        expected: Mapping[PoolId, tuple[int, int]] = {}
        if asked.blocks:
            expected = sight.expect(asked.blocks, BLOCK_TOKENS, asked.prompt_tokens, now_us)
        seen: list[tuple[Candidate, PoolView]] = []
        for one in candidates:
            if one.free <= 0:
                continue
            cached = expected.get(one.place, NOT_CACHED)[0] if expected else 0
            # It is beside the intake, and its load counts all that was ever given to it, up to now.
            load, flow = one.load(asked), asked.flow
            seen.append((one, sight.view(one.place, model, now_us, True, 0, load, now_us, cached, None, flow)))
        best: Choice | None = None
        least: tuple[bool, int, int, ReplicaId] | None = None
        served, worth = asked.served, asked.worth
        for one, view in seen:
            spot = self._spot
            if spot.slots != one.slots or self._served is not served:
                spot = self._spot = _spot_of(served, one.slots)
                self._served = served
            hoped = spot if view.speed is not None else _hoped(spot, [view for _, view in seen])
            terms = cost(request, hoped, view, worth)
            # One whose answers failed one after the other is the last choice, but still one: work never waits for it.
            rank = (view.held_off, terms.total_pico, terms.time_us + terms.others_us, one.id)
            if least is None or rank < least:
                least = rank
                before_belief = expected.get(one.place, NOT_CACHED)[1] if expected else 0
                best = Choice(one.id, one.place, spot.speed, terms, before_belief)
        return best


def _spot_of(served: ServedModel | None, slots: int) -> Spot:
    """Return what is taken of a replica with `slots` before anything is learned.

    Where nothing says what a stream beside costs, a full replica is taken to be half as fast, so that replicas that
    are equal otherwise go by the share of their slots that is free.
    """
    if served is not None:
        speed = served.speed(slots)
    else:
        speed = Speed(UNDECLARED_PREFILL_NS, UNDECLARED_DECODE_NS, UNDECLARED_DECODE_NS // max(1, slots))
    return Spot(FREE, 0, None, slots, speed)


def _hoped(declared: Spot, all_views: Collection[PoolView]) -> Spot:
    """Return what is hoped of a replica that has told nothing yet: as declared, or like a sibling if that is better.

    Hope makes it tried, and its first reply tells. By the declared speed alone, replicas that are all faster than
    declared would leave it idle until they are full.
    """
    siblings = [view.speed for view in all_views if view.speed is not None]
    if not siblings:
        return declared
    speed = declared.speed
    hoped = replace(
        speed,
        prefill_ns=min(speed.prefill_ns, *(one.prefill_ns for one in siblings)),
        decode_ns=min(speed.decode_ns, *(one.decode_ns for one in siblings)),
        stream_ns=min(speed.stream_ns, *(one.stream_ns for one in siblings)),
    )
    return replace(declared, speed=hoped)
