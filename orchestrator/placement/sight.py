"""What one program knows of the pools, or replicas, that it can send to: by their reports, and by its own replies.

Whoever sends holds on to its attempt as `sent` returned it, and tells by it what became of it. Events in, views out;
time is a parameter, and so is what the way to a pool says. The edge holds one for its pools, a scheduler one for its
replicas, and a replay one for each edge of its world: the same code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum

import msgspec
from msgspec.structs import replace

from orchestrator.placement.breaker import Breaker
from orchestrator.placement.cost import Terms
from orchestrator.placement.outliers import Change, Outliers, Sent
from orchestrator.placement.prefix import PrefixIndex
from orchestrator.placement.requests import PoolLoad, PoolView
from orchestrator.placement.speed import BESIDE_MAX, Measured, Speed, SpeedLearner
from orchestrator.policy.ids import FlowId, ModelId, PoolId

TOKENS_MAX = 1 << 48
"""More than any pool holds. What a pool says stands in decision records, whose numbers have an end."""

SPEED_KEEP_US = 600_000_000
"""A learned speed that no reply confirmed for ten minutes is forgotten."""

NONE_OUT: frozenset[PoolId] = frozenset()
NO_FLOW = FlowId("")
"""Where nobody tells flows apart: all work is of one."""


class End(Enum):
    """How an attempt ended, as far as the pool's health is concerned."""

    COMPLETE = "complete"
    REFUSED = "refused"
    """Not started, in good order."""
    FAILED = "failed"
    """Cut. What was asked may have brought that about."""
    UNREACHED = "unreached"
    """Never reached it, or the way there was lost: nothing that was asked brought that about."""
    CANCELLED = "cancelled"


# A member costs several times as much by way of its enumeration, and each attempt asks.
_FAILED, _UNREACHED = End.FAILED, End.UNREACHED
_COMPLETE, _CANCELLED = End.COMPLETE, End.CANCELLED


class Ending(msgspec.Struct, frozen=True):
    """The end of an attempt, with the pool's counts where it gave any."""

    end: End
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    queued_us: int | None = None
    """How long it waited at the pool; None when nobody said."""
    beside: int | None = None
    """Streams that decoded beside it in its replica; None when nobody said."""
    held_up: bool = False
    """Whoever read it was slow: how long its tokens took says nothing of the pool."""


class Flight(Sent, eq=False):
    """An attempt that left, for as long as it is under way. Whoever sends it holds it, and tells of it by it."""

    declared: Speed
    terms: Terms
    """Those that its place was chosen by."""
    uncached_tokens: int
    expected_cached: int
    """Before belief: what the index alone says."""
    left_us: int
    """From when its time is measured."""


class _Known:
    """One pool."""

    __slots__ = ("breaker", "in_flight", "speeds", "unseen", "unseen_tokens")

    def __init__(self) -> None:
        self.in_flight = 0
        self.unseen: dict[Flight, None] = {}  # bounded: by the attempts in flight
        """What no report can have counted, in the order in which it left."""
        self.unseen_tokens = 0
        self.breaker = Breaker()
        self.speeds: dict[ModelId, SpeedLearner] = {}  # bounded: by the models that are served there


class Sight:
    """Everything that is learned of each pool. What the way there says now is a parameter."""

    def __init__(self, index: PrefixIndex[PoolId] | None = None, *, watch_first: bool = False) -> None:
        """`watch_first` judges by times to the first token too, where nothing of another's waits before it."""
        self.index = index or PrefixIndex[PoolId]()
        self._outliers = Outliers(watch_first)
        self.changed = self._outliers.changed
        """Empty while no pool became an outlier, is tried or came back since `changes` was asked last."""
        self.changes: Callable[[], tuple[Change, ...]] = self._outliers.changes
        """Returns which pools did."""
        self._pools: defaultdict[PoolId, _Known] = defaultdict(_Known)

    def view(
        self,
        pool: PoolId,
        model: ModelId,
        now_us: int,
        up: bool,
        rtt_us: int | None,
        load: PoolLoad | None,
        heard_us: int = 0,
        cached_tokens: int = 0,
        bytes_per_s: int | None = None,
        flow: FlowId | None = None,
    ) -> PoolView:
        """Return what is known of `pool` now, for work of a flow; None asks for what holds for every flow.

        The last report of it arrived at `heard_us`, whatever age it states.

        What was sent less than a round trip before that, it cannot have counted; nobody knows how long that is before
        the way was measured, so nothing is taken to be counted until then.
        """
        known = self._pools[pool]
        if load is not None:
            queued, room, used = load.queued_tokens or 0, load.kv_tokens or 0, load.kv_used_tokens or 0
            if queued > TOKENS_MAX or room > TOKENS_MAX or used > TOKENS_MAX:
                load = _bounded(load)
            if rtt_us is not None and known.unseen:
                _count(known, heard_us - rtt_us)
            age_ms = (now_us - heard_us) // 1000 if now_us > heard_us else 0
            if load.age_ms != age_ms:
                load = replace(load, age_ms=age_ms)
        # What is slow today gets another chance tomorrow.
        speed = None
        if model in known.speeds:
            learned = known.speeds[model]
            speed = learned.believed if now_us - learned.taught_us <= SPEED_KEEP_US else None
        held_off = known.breaker.troubled and known.breaker.held_off(flow, now_us)
        if self._outliers.out:
            held_off = held_off or self._outliers.ejected(pool, model, now_us, flow)
            if self._outliers.due(pool, model, now_us, flow):
                speed = None  # what was learned is why it was ejected: a trial is to tell
        return PoolView(
            pool,
            up,
            rtt_us,
            load,
            known.in_flight,
            len(known.unseen) if known.unseen else 0,
            known.unseen_tokens,
            bytes_per_s,
            cached_tokens,
            speed,
            held_off,
        )

    def held_off(self, pool: PoolId, model: ModelId, now_us: int) -> bool:
        """Whether `pool` is held off for every flow, as `view` says it for one."""
        breaker = self._pools[pool].breaker
        return breaker.held_off(None, now_us) or self.ejected(pool, model, now_us)

    def ejected(self, pool: PoolId, model: ModelId, now_us: int, flow: FlowId | None = None) -> bool:
        """Whether `pool` is an outlier among those that serve `model`, and out for a flow now; None: for any flow."""
        return self._outliers.ejected(pool, model, now_us, flow)

    def out(self, model: ModelId, now_us: int, flow: FlowId | None = None) -> frozenset[PoolId]:
        """Return every pool of which that is so."""
        if not self._outliers.out:
            return NONE_OUT
        return frozenset(
            pool for pool, of in self._outliers.out if of == model and self.ejected(pool, model, now_us, flow)
        )

    def anew(self, pool: PoolId) -> None:
        """What is behind this name started anew: what it held and how it fared is gone."""
        self.index.forget(pool)
        self._outliers.forget(pool)

    def expect(
        self, blocks: Sequence[int], block_tokens: int, prompt_tokens: int, now_us: int
    ) -> dict[PoolId, tuple[int, int]]:
        """Return by pool (tokens of a prompt that it probably holds, the same before belief)."""
        whole = max(0, prompt_tokens - 1)
        return {
            pool: (
                self.index.tokens(pool, count, block_tokens, prompt_tokens),
                min(count * block_tokens, whole),
            )
            for pool, count in self.index.expect(blocks, now_us).items()
        }

    def sent(
        self,
        pool: PoolId,
        model: ModelId,
        declared: Speed,
        terms: Terms,
        prompt_tokens: int,
        now_us: int,
        blocks: Sequence[int] = (),
        expected_cached: int = 0,
        flow: FlowId = NO_FLOW,
    ) -> Flight:
        """An attempt left for `pool`; `terms` are those that it was chosen by, `flow` is whose it is.

        Returns what it is told of by.
        """
        known, uncached_tokens = self._pools[pool], prompt_tokens - terms.cached_tokens
        begun_us = now_us + terms.rtt_us + terms.upload_us + terms.queue_us
        # The whole prompt: what a place holds of it is only believed, and a cold one is no outlier.
        expected_us = declared.fixed_us + prompt_tokens * declared.prefill_ns // 1000
        # By position, in the order of the fields: for every attempt, and names take as long again to find.
        flight = Flight(
            pool, model, flow, now_us, begun_us, expected_us, None, False,
            declared, terms, uncached_tokens, expected_cached, now_us,
        )  # fmt: skip
        known.in_flight += 1
        known.unseen[flight] = None
        known.unseen_tokens += uncached_tokens
        if known.breaker.troubled:
            known.breaker.sent(flight, flow)
        self._outliers.sent(flight, now_us)
        if blocks:
            self.index.insert(pool, blocks, now_us)
        return flight

    def left(self, flight: Flight, now_us: int) -> None:
        """An attempt that was told as sent leaves only now: no report can have counted it, and its time begins."""
        if flight.over or flight.first_us is not None:
            return
        known = self._pools[flight.place]
        flight.left_us = now_us
        if flight in known.unseen:
            del known.unseen[flight]  # it comes last now
        else:
            known.unseen_tokens += flight.uncached_tokens
        known.unseen[flight] = None

    def first_token(self, flight: Flight, now_us: int) -> None:
        """The first token of an attempt arrived: its prompt waits no more."""
        if flight.over or flight.first_us is not None:
            return
        known = self._pools[flight.place]
        if known.breaker.troubled:
            known.breaker.succeeded(flight, flight.flow, now_us)
        self._outliers.first_token(flight, now_us)
        if flight in known.unseen:
            known.unseen_tokens -= flight.uncached_tokens

    def ended(self, flight: Flight, ending: Ending, now_us: int) -> None:
        """An attempt ended. Only a complete reply teaches how fast a pool is."""
        if flight.over:
            return
        known, end = self._pools[flight.place], ending.end
        known.in_flight -= 1
        if flight in known.unseen:
            del known.unseen[flight]
            if flight.first_us is None:
                known.unseen_tokens -= flight.uncached_tokens
        if end is _FAILED:
            self._outliers.failed(flight, now_us)
            known.breaker.failed(flight, flight.flow, flight.left_us, now_us)
            return
        if end is _UNREACHED:
            self._outliers.unreached(flight, now_us)
            known.breaker.unreached(flight, flight.flow, flight.left_us, now_us)
            return
        if end is _COMPLETE:
            self._complete(known, flight, ending, now_us)
        else:
            self._outliers.abandoned(flight, now_us)
        if known.breaker.troubled:
            if end is _CANCELLED:
                known.breaker.abandoned(flight, flight.flow)
            else:
                known.breaker.succeeded(flight, flight.flow, now_us)

    def _complete(self, known: _Known, flight: Flight, ending: Ending, now_us: int) -> None:
        """Learn from a complete reply how the pool fared beside its siblings, what it held, and how fast it is."""
        terms, declared = flight.terms, flight.declared
        beside = terms.beside if ending.beside is None else ending.beside
        rest_us: int | None = None
        if not ending.held_up and ending.output_tokens > 1:
            per_token_ns = declared.decode_ns + declared.stream_ns * (beside if beside < BESIDE_MAX else BESIDE_MAX)
            after_first = ending.output_tokens - 1 if ending.output_tokens <= TOKENS_MAX else TOKENS_MAX
            rest_us = after_first * per_token_ns // 1000
        if self._outliers.complete(flight, now_us, rest_us):
            known.speeds.pop(flight.model, None)
        if ending.prompt_tokens > 0 and flight.expected_cached > 0:
            self.index.corrected(flight.place, flight.expected_cached, ending.cached_tokens)
        if flight.first_us is None:
            return
        learner = known.speeds.get(flight.model)
        if (
            learner is None
            or now_us - learner.taught_us > SPEED_KEEP_US
            # Declared mostly by the very value of before.
            or (learner.declared is not declared and learner.rates != (declared.prefill_ns, declared.decode_ns))
        ):
            learner = known.speeds[flight.model] = SpeedLearner(declared)
        if learner.passes_over(now_us):
            return
        uncached = flight.uncached_tokens
        if ending.prompt_tokens > 0:
            uncached = ending.prompt_tokens - ending.cached_tokens if ending.cached_tokens < ending.prompt_tokens else 0
        queued_us = terms.queue_us if ending.queued_us is None else ending.queued_us
        learner.learn(
            Measured(
                flight.first_us - flight.left_us,
                terms.rtt_us + terms.upload_us + queued_us,
                terms.first_us,
                ending.queued_us,
                terms.told_us,
                uncached,
                None if ending.held_up else now_us - flight.first_us,
                ending.output_tokens,
                beside,
            )
        )


def _count(known: _Known, counted_us: int) -> None:
    """A report counts what had left by then. Of what has brought a token, no prompt was waiting any more."""
    gone: list[Flight] = []
    for flight in known.unseen:
        if flight.left_us > counted_us:
            break
        gone += (flight,)
    for flight in gone:
        del known.unseen[flight]
        if flight.first_us is None:
            known.unseen_tokens -= flight.uncached_tokens


def _bounded(load: PoolLoad) -> PoolLoad:
    said = (load.queued_tokens, load.kv_tokens, load.kv_used_tokens)
    queued, room, used = (None if one is None else min(one, TOKENS_MAX) for one in said)
    return replace(load, queued_tokens=queued, kv_tokens=room, kv_used_tokens=used)
