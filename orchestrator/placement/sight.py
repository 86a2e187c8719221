"""What one program knows of the pools, or replicas, that it can send to: learned from reports and its own replies.

Events in, views out; time is a parameter. The edge holds one for its pools, a scheduler one for its replicas, and a
replay one for each edge of its world: the same code.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from enum import Enum

import msgspec
from msgspec.structs import replace

from orchestrator.placement.breaker import Breaker
from orchestrator.placement.cost import Terms
from orchestrator.placement.outliers import Change, Outliers
from orchestrator.placement.prefix import PrefixIndex
from orchestrator.placement.requests import PoolLoad, PoolView
from orchestrator.placement.speed import BESIDE_MAX, Measured, Speed, SpeedLearner
from orchestrator.policy.ids import ModelId, PoolId

TOKENS_MAX = 1 << 48
"""More than any pool holds. What a pool says stands in decision records, whose numbers have an end."""

SPEED_KEEP_US = 600_000_000
"""A learned speed that no reply confirmed for ten minutes is forgotten."""


class End(Enum):
    """How an attempt ended, as far as the pool's health is concerned."""

    COMPLETE = "complete"
    REFUSED = "refused"
    """Not started, in good order."""
    FAILED = "failed"
    """Cut, or never reached it."""
    CANCELLED = "cancelled"


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


class _Sent(msgspec.Struct):
    pool: PoolId
    model: ModelId
    declared: Speed
    terms: Terms
    uncached_tokens: int
    expected_cached: int
    """Before belief: what the index alone says."""
    sent_us: int
    first_us: int | None = None


class _Known:
    """One pool."""

    __slots__ = ("breaker", "bytes_per_s", "heard_us", "in_flight", "load", "rtt_us", "unseen", "unseen_tokens")

    def __init__(self) -> None:
        self.rtt_us: int | None = None
        self.bytes_per_s: int | None = None
        self.load: PoolLoad | None = None
        self.heard_us = 0
        self.in_flight = 0
        self.unseen: dict[str, tuple[int, int]] = {}  # bounded: by the attempts in flight
        self.unseen_tokens = 0
        self.breaker = Breaker()


class Sight:
    """Everything that is known of each pool. An attempt is named by whoever sends it."""

    def __init__(self, index: PrefixIndex[PoolId] | None = None, *, watch_first: bool = False) -> None:
        """`watch_first` judges by times to the first token too, where nothing of another's waits before it."""
        self.index = index or PrefixIndex[PoolId]()
        self._outliers = Outliers(watch_first)
        self.changes: Callable[[], tuple[Change, ...]] = self._outliers.changes
        """Returns which pools became outliers, are tried or came back since it was asked last."""
        self._pools: defaultdict[PoolId, _Known] = defaultdict(_Known)
        self._speeds: dict[tuple[PoolId, ModelId], tuple[SpeedLearner, int]] = {}
        """With the time of the last reply that taught it."""
        self._sent: dict[str, _Sent] = {}  # bounded: by the attempts in flight

    def measured(self, pool: PoolId, rtt_us: int | None, bytes_per_s: int | None = None) -> None:
        """The distance to `pool` was measured."""
        known = self._pools[pool]
        known.rtt_us = rtt_us
        known.bytes_per_s = bytes_per_s or known.bytes_per_s

    def heard(self, pool: PoolId, load: PoolLoad, now_us: int) -> None:
        """A report arrived, at `now_us` whatever age it states. What was sent less than a round trip ago, it cannot
        have counted; nobody knows how long that is before the way was measured, so nothing is taken to be counted
        until then.
        """
        known = self._pools[pool]
        queued, room, used = load.queued_tokens or 0, load.kv_tokens or 0, load.kv_used_tokens or 0
        if queued > TOKENS_MAX or room > TOKENS_MAX or used > TOKENS_MAX:
            load = _bounded(load)
        known.load, known.heard_us = load, now_us
        if known.rtt_us is None or not known.unseen:
            return
        counted_us = now_us - known.rtt_us
        for attempt, (sent_us, tokens) in list(known.unseen.items()):
            if sent_us > counted_us:
                break
            del known.unseen[attempt]
            known.unseen_tokens -= tokens

    def lost(self, pool: PoolId) -> None:
        """The way to `pool` is gone: what it reported says nothing any more."""
        self._pools[pool].load = None

    def view(self, pool: PoolId, model: ModelId, up: bool, now_us: int, cached_tokens: int = 0) -> PoolView:
        """Return what is known of `pool` now."""
        known = self._pools.get(pool)
        if known is None:
            return PoolView(pool, up, None, None, 0, cached_tokens=cached_tokens)
        load = known.load
        if load is not None:
            age_ms = (now_us - known.heard_us) // 1000 if now_us > known.heard_us else 0
            if load.age_ms != age_ms:
                load = replace(load, age_ms=age_ms)
        learned = self._speeds.get((pool, model))
        # What is slow today gets another chance tomorrow.
        speed = None if learned is None or now_us - learned[1] > SPEED_KEEP_US else learned[0].believed
        held_off = known.breaker.failures > 0 and known.breaker.held_off(now_us)
        if self._outliers.out:
            held_off = held_off or self._outliers.ejected(pool, model, now_us)
            if self._outliers.due(pool, model, now_us):
                speed = None  # what was learned is why it was ejected: a trial is to tell
        return PoolView(
            pool,
            up,
            known.rtt_us,
            load,
            known.in_flight,
            len(known.unseen) if known.unseen else 0,
            known.unseen_tokens,
            known.bytes_per_s,
            cached_tokens,
            speed,
            held_off,
        )

    def ejected(self, pool: PoolId, model: ModelId, now_us: int) -> bool:
        """Whether `pool` is an outlier among those that serve `model`, and out for now."""
        return self._outliers.ejected(pool, model, now_us)

    def out(self, model: ModelId, now_us: int) -> frozenset[PoolId]:
        """Return every pool of which that is so."""
        return frozenset(pool for pool, of in self._outliers.out if of == model and self.ejected(pool, model, now_us))

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
        attempt: str,
        pool: PoolId,
        model: ModelId,
        declared: Speed,
        terms: Terms,
        prompt_tokens: int,
        now_us: int,
        blocks: Sequence[int] = (),
        expected_cached: int = 0,
    ) -> None:
        """An attempt left for `pool`; `terms` are those that it was chosen by."""
        known = self._pools[pool]
        uncached = prompt_tokens - terms.cached_tokens
        known.in_flight += 1
        known.unseen[attempt] = (now_us, uncached)
        known.unseen_tokens += uncached
        if known.breaker.failures > 0:
            known.breaker.sent(attempt)
        self._sent[attempt] = _Sent(pool, model, declared, terms, uncached, expected_cached, now_us)
        # The whole prompt: what a place holds of it is only believed, and a cold one is no outlier.
        expected_us = declared.fixed_us + prompt_tokens * declared.prefill_ns // 1000
        besides_us = terms.rtt_us + terms.upload_us + terms.queue_us
        self._outliers.sent(attempt, pool, model, now_us, besides_us, expected_us)
        if blocks:
            self.index.insert(pool, blocks, now_us)

    def left(self, attempt: str, now_us: int) -> None:
        """An attempt that was told as sent leaves only now: no report can have counted it, and its time begins."""
        sent = self._sent.get(attempt)
        if sent is None or sent.first_us is not None:
            return
        known = self._pools[sent.pool]
        sent.sent_us = now_us
        if known.unseen.pop(attempt, None) is None:
            known.unseen_tokens += sent.uncached_tokens
        known.unseen[attempt] = (now_us, sent.uncached_tokens)

    def first_token(self, attempt: str, now_us: int) -> None:
        """The first token of an attempt arrived: its prompt waits no more."""
        sent = self._sent.get(attempt)
        if sent is None or sent.first_us is not None:
            return
        sent.first_us = now_us
        known = self._pools[sent.pool]
        if known.breaker.failures > 0:
            known.breaker.succeeded(attempt)
        self._outliers.first_token(attempt, now_us)
        unseen = known.unseen.get(attempt)
        if unseen is not None:
            known.unseen_tokens -= unseen[1]
            known.unseen[attempt] = (unseen[0], 0)

    def ended(self, attempt: str, ending: Ending, now_us: int) -> None:
        """An attempt ended. Only a complete reply teaches how fast a pool is."""
        sent = self._sent.pop(attempt, None)
        if sent is None:
            return
        known = self._pools[sent.pool]
        known.in_flight -= 1
        unseen = known.unseen.pop(attempt, None)
        if unseen is not None:
            known.unseen_tokens -= unseen[1]
        self._compare(attempt, sent, ending, now_us)
        if ending.end is End.FAILED:
            known.breaker.failed(attempt, sent.sent_us, now_us)
        elif known.breaker.failures > 0:
            if ending.end is End.CANCELLED:
                known.breaker.abandoned(attempt)
            else:
                known.breaker.succeeded(attempt)
        if ending.end is End.COMPLETE:
            if ending.prompt_tokens > 0 and sent.expected_cached > 0:
                self.index.corrected(sent.pool, sent.expected_cached, ending.cached_tokens)
            if sent.first_us is not None:
                self._learn(sent, ending, now_us)

    def _compare(self, attempt: str, sent: _Sent, ending: Ending, now_us: int) -> None:
        """Tell how an attempt fared to whoever compares places."""
        if ending.end is End.FAILED:
            self._outliers.failed(attempt, now_us)
        elif ending.end is not End.COMPLETE:
            self._outliers.abandoned(attempt, now_us)
        else:
            expected_us: int | None = None
            if not ending.held_up and ending.output_tokens > 1:
                beside = sent.terms.beside if ending.beside is None else ending.beside
                per_token_ns = sent.declared.decode_ns + sent.declared.stream_ns * (
                    beside if beside < BESIDE_MAX else BESIDE_MAX
                )
                after_first = ending.output_tokens - 1 if ending.output_tokens <= TOKENS_MAX else TOKENS_MAX
                expected_us = after_first * per_token_ns // 1000
            if self._outliers.complete(attempt, now_us, expected_us):
                self._speeds.pop((sent.pool, sent.model), None)

    def _learn(self, sent: _Sent, ending: Ending, now_us: int) -> None:
        key = (sent.pool, sent.model)
        known = self._speeds.get(key)
        if known is None or now_us - known[1] > SPEED_KEEP_US or not known[0].of(sent.declared):
            known = (SpeedLearner(sent.declared), now_us)
        learner = known[0]
        self._speeds[key] = (learner, now_us)
        terms = sent.terms
        first_us = (sent.first_us or now_us) - sent.sent_us
        uncached = sent.uncached_tokens
        if ending.prompt_tokens > 0:
            uncached = ending.prompt_tokens - ending.cached_tokens if ending.cached_tokens < ending.prompt_tokens else 0
        queued_us = terms.queue_us if ending.queued_us is None else ending.queued_us
        learner.learn(
            Measured(
                first_us=first_us,
                besides_us=terms.rtt_us + terms.upload_us + queued_us,
                expected_first_us=terms.first_us,
                queued_us=ending.queued_us,
                told_us=terms.told_us,
                uncached_tokens=uncached,
                decode_us=None if ending.held_up else now_us - (sent.first_us or now_us),
                output_tokens=ending.output_tokens,
                beside=terms.beside if ending.beside is None else ending.beside,
            )
        )


def _bounded(load: PoolLoad) -> PoolLoad:
    said = (load.queued_tokens, load.kv_tokens, load.kv_used_tokens)
    queued, room, used = (None if one is None else min(one, TOKENS_MAX) for one in said)
    return replace(load, queued_tokens=queued, kv_tokens=room, kv_used_tokens=used)
