"""Placement over arrays, for fleets of many pools: the same choice as `pick.place`, in a few passes of integers.

A board is of one plan and one model. Whoever holds it writes a pool's row when something was heard of that pool, so
that a decision converts nothing but the request. `pick.place` and `cost` are the specification: tests hold the index,
the runner-up, J of every pool and the count of every reason equal. What does not fit into 64 bits (see `columns`) is
worked out by the specification itself.

A board is used by one thread, and belongs to one bundle: with another bundle goes another plan, and another board.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping

import msgspec
import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray

from orchestrator.placement.capabilities import Capability
from orchestrator.placement.columns import NOT_IN_PICO, QUIET, Columns, Flags, Ints, row_of
from orchestrator.placement.cost import cost
from orchestrator.placement.pick import PPM, Drop, place
from orchestrator.placement.plan import Offer, Plan
from orchestrator.placement.requests import PlacementRequest, PoolView
from orchestrator.placement.settings import PlacementSettings, Worth
from orchestrator.placement.speed import Speed
from orchestrator.policy.ids import ModelId, PoolId
from orchestrator.policy.verdicts import Verdict

Codes = NDArray[np.uint8]
Fit = tuple[Flags, Codes]
"""Which pools can ever take such a request, and the number of the reason why another one cannot."""

FITS_MAX = 256
"""Kinds of request whose fit is remembered; beyond it, all are forgotten at once."""
PERMITS_MAX_BYTES = 1 << 20
"""Of permits that are remembered as arrays; beyond it, all are forgotten at once."""
NEVER_MS = 1 << 40
"""Age of a pool that never reported: the oldest."""
WILD_MAX_PICO = 1 << 62

# One bit for each reason why a pool cannot take a request now, in the order in which they are named.
DRAINED, DOWN, BREAKER, CAPPED, FULL, NO_OPENING = (1 << bit for bit in range(6))
SETTLED = DRAINED | CAPPED
"""Bits that settings decide."""
_BIT_DROPS = (Drop.DRAINED, Drop.DOWN, Drop.BREAKER, Drop.CAPPED, Drop.FULL, Drop.NO_OPENING)
_NUMBER = {drop: number for number, drop in enumerate(Drop)}
"""Reasons are numbered in the order in which they are named."""
_KEPT = len(_NUMBER)
"""The number of no reason: a candidate."""


def _numbers_of_bits() -> Codes:
    """Return, for each combination of bits, the number of the first reason."""
    found = [_KEPT]
    for bits in range(1, 1 << len(_BIT_DROPS)):
        lowest = (bits & -bits).bit_length() - 1
        found.append(_NUMBER[_BIT_DROPS[lowest]])
    return np.array(found, np.uint8)


_NUMBERS = _numbers_of_bits()
_CAPABILITY_BIT = {capability: bit for bit, capability in enumerate(Capability)}
_ALLOWED = Verdict(True, (), (), (), 1 << 62)
_REFUSED = Verdict(False, (), (), (), 0)


class Picked(msgspec.Struct, frozen=True):
    """The choice, by places in `plan.pools`."""

    index: int | None
    """None: no pool is a candidate."""
    runner_up: int | None
    """The cheapest that was not chosen."""
    total_pico: int
    """J of the choice; 0 without one."""
    gap_pico: int
    """How much dearer the runner-up is; less than nothing within epsilon, and 0 without one."""


NOTHING = Picked(None, None, 0, 0)


class Board:
    """What is known of every pool of a plan for one model, in columns."""

    def __init__(self, plan: Plan, model: ModelId, now_ms: int) -> None:
        self.plan = plan
        self.model = model
        self.fallbacks = 0
        """Decisions that the specification had to make, because a number was beyond all bounds."""
        size = len(plan.pools)
        self._size = size
        self._indices = {pool.id: index for index, pool in enumerate(plan.pools)}
        self._columns = Columns(size)
        self._views: list[PoolView | None] = [None] * size
        self._heard_us = [0] * size
        self._flags: Codes = np.full(size, DOWN, np.uint8)
        self._priced: Flags = np.zeros(size, np.bool_)
        self._open: Flags = np.zeros(size, np.bool_)
        """Rows that are priced and have no flag."""
        self._wild: dict[int, None] = {}  # bounded: by the pools
        self._mask: Flags = np.zeros(size, np.bool_)
        self._other: Flags = np.zeros(size, np.bool_)
        self._permits: dict[int, Flags] = {}  # bounded: PERMITS_MAX_BYTES
        self._permits_max = max(1, PERMITS_MAX_BYTES // max(1, size))
        self._fits: dict[tuple[frozenset[Capability], str | None, int], Fit] = {}  # bounded: FITS_MAX
        self._unknown = (0, 1)
        self._drains: frozenset[PoolId] = frozenset()
        self._caps: Mapping[PoolId, int] = {}
        self._offers = plan.offers(model, now_ms)
        served = self._served = [offer.served for offer in self._offers]
        self._speeds = [_declared(offer) for offer in self._offers]
        self._lengths = sorted({one.context_tokens for one in served if one is not None})
        self._context_least = self._lengths[0] if self._lengths else 0
        self._contexts: Ints = np.array([0 if one is None else one.context_tokens for one in served], np.int64)
        self._capabilities: Ints = np.array([0 if one is None else _bits(one.capabilities) for one in served], np.int64)
        self._serving: Flags = np.array([one is not None for one in served], np.bool_)
        self._reachable: Flags = np.array([offer.reachable for offer in self._offers], np.bool_)
        self._price()

    def __len__(self) -> int:
        return self._size

    def beyond(self) -> tuple[int, ...]:
        """Return the rows that hold a number beyond all bounds: their J is worked out by the specification."""
        return tuple(self._wild)

    def index(self, pool: PoolId) -> int | None:
        """Return the place of a pool, or None when the plan does not have it."""
        return self._indices.get(pool)

    def write(self, index: int, view: PoolView | None, heard_us: int = 0) -> None:
        """Something is known anew of one pool. What a request is expected to find cached there is not read.

        Call it after a report, a measurement, a send, an end, and when the breaker's hold is over. `heard_us` is when
        its load was heard: a decision ages it by its own clock. A row is every flow's: a pool that is held off from one
        flow alone goes into `tried` of that flow's requests.
        """
        self._views[index] = view
        self._heard_us[index] = heard_us
        pool = self.plan.pools[index]
        flags = DRAINED if pool.id in self._drains else 0
        if view is None:
            flags |= DOWN
            self._wild.pop(index, None)
        else:
            flags |= _flags_of(view)
            cap = self._caps.get(pool.id) if self._caps else None
            if cap is not None and view.own_in_flight >= cap:
                flags |= CAPPED
            self._put(index, view, heard_us)
        self._flags[index] = flags
        self._open[index] = flags == 0 and self._priced.item(index)

    def view(self, index: int, now_us: int, cached_tokens: int = 0) -> PoolView | None:
        """Return what was written of a pool, aged, as `cost` and `place` take it."""
        view = self._views[index]
        if view is None:
            return None
        load = view.load
        if load is not None:
            load = replace(load, age_ms=self._age_ms(index, now_us))
        return replace(view, load=load, cached_tokens=cached_tokens)

    def choose(
        self,
        request: PlacementRequest,
        permitted: int | Flags,
        settings: PlacementSettings,
        worth: Worth,
        cached: Mapping[int, int],
        now_ms: int,
        now_us: int,
        chance: int,
    ) -> Picked:
        """Choose a pool as `place` does.

        `permitted` has a bit, or an element, for each of `plan.pools`, the first the lowest. `settings` are those of
        the request's arm, and `worth` what they make of its service. `cached` names the pools that are expected to
        hold some of the prompt, with the tokens. `now_ms` is the time of prices, `now_us` the clock of `heard_us`.
        """
        self._follow(settings, worth, now_ms)
        mask = self._candidates(request, permitted, cached)
        if not np.count_nonzero(mask):
            return NOTHING
        total = self._total_pico(request, worth, mask, cached, now_us)
        if total is None:
            return self._by_specification(request, permitted, settings, cached, now_ms, now_us, chance)
        np.logical_not(mask, out=self._other)
        np.putmask(total, self._other, NOT_IN_PICO)
        if request.prompt_tokens <= self._context_least:
            return self._pick(total, total, settings, now_us, chance)
        # Where the estimate fits nowhere, those count that it probably does not fit.
        np.less(self._contexts, request.prompt_tokens, self._other)
        sure = np.where(self._other, NOT_IN_PICO, total)
        if sure.min() == NOT_IN_PICO:
            sure = total
        return self._pick(sure, total, settings, now_us, chance)

    def drops(
        self,
        request: PlacementRequest,
        permitted: int | Flags,
        settings: PlacementSettings,
        worth: Worth,
        cached: Mapping[int, int],
        now_ms: int,
    ) -> dict[Drop, int]:
        """Return how many pools are dropped for each reason, the first that applies to each, as the board is now."""
        self._follow(settings, worth, now_ms)
        numbers = _NUMBERS.take(self._flags)
        tried = [index for pool in request.tried if (index := self._indices.get(pool)) is not None]
        numbers[tried] = np.minimum(numbers[tried], _NUMBER[Drop.TRIED])
        np.minimum(numbers, self._fit(request)[1], out=numbers)
        if not request.entitled:
            np.minimum(numbers, _NUMBER[Drop.ENTITLEMENT], out=numbers)
        np.putmask(numbers, ~self._permit(permitted), _NUMBER[Drop.NOT_PERMITTED])
        np.putmask(numbers, ~self._priced & (numbers == _KEPT), _NUMBER[Drop.NO_PRICE])
        within = numbers == _KEPT
        self._keep_within_budget(request, within, cached)
        np.putmask(numbers, ~within & (numbers == _KEPT), _NUMBER[Drop.BUDGET])
        counts = np.bincount(numbers, minlength=_KEPT).tolist()
        return {drop: counts[number] for drop, number in _NUMBER.items() if counts[number]}

    def totals_pico(
        self,
        request: PlacementRequest,
        settings: PlacementSettings,
        worth: Worth,
        cached: Mapping[int, int],
        now_ms: int,
        now_us: int,
    ) -> list[int | None]:
        """Return J of every pool that has a view and a price, whether it is a candidate or not."""
        self._follow(settings, worth, now_ms)
        known = self._priced & np.array([view is not None for view in self._views], np.bool_)
        total = self._total_pico(request, worth, known, cached, now_us)
        if total is None:
            return [self._cost(index, request, worth, cached, now_us) for index in range(self._size)]
        return [one if there else None for one, there in zip(total.tolist(), known.tolist(), strict=True)]

    def _follow(self, settings: PlacementSettings, worth: Worth, now_ms: int) -> None:
        """Take in what changes seldom: prices of the hour, drains and caps, and what is taken for the unknown."""
        offers = self.plan.offers(self.model, now_ms)
        if offers is not self._offers:
            self._offers = offers
            self._price()
        if settings.drains is not self._drains or settings.caps is not self._caps:
            self._settle(settings)
        unknown = (worth.unknown_rtt_us, worth.unknown_bytes_per_s)
        if unknown != self._unknown:
            self._unknown = unknown
            for index, view in enumerate(self._views):
                if view is not None and (view.rtt_us is None or not view.bytes_per_s):
                    self._put(index, view, self._heard_us[index])

    def _price(self) -> None:
        spots = [offer.spot for offer in self._offers]
        self._columns.charge(spots)
        self._priced[:] = [spot is not None for spot in spots]
        np.logical_and(self._flags == 0, self._priced, out=self._open)

    def _settle(self, settings: PlacementSettings) -> None:
        self._drains, self._caps = settings.drains, settings.caps
        flags = self._flags
        flags &= np.uint8(~SETTLED & 0xFF)
        for pool in settings.drains:
            index = self._indices.get(pool)
            if index is not None:
                flags[index] |= DRAINED
        for pool, cap in settings.caps.items():
            index = self._indices.get(pool)
            view = None if index is None else self._views[index]
            if index is not None and view is not None and view.own_in_flight >= cap:
                flags[index] |= CAPPED
        np.logical_and(flags == 0, self._priced, out=self._open)

    def _put(self, index: int, view: PoolView, heard_us: int) -> None:
        speed = self._speeds[index]
        if speed is None:
            return
        row = row_of(view, speed, self.plan.pools[index].slots, heard_us, self._unknown)
        if row is None:
            self._wild[index] = None
            row = QUIET
        elif self._wild:
            self._wild.pop(index, None)
        self._columns.put(index, row)

    def _candidates(self, request: PlacementRequest, permitted: int | Flags, cached: Mapping[int, int]) -> Flags:
        mask = self._mask
        if not request.entitled:
            mask.fill(False)
            return mask
        np.logical_and(self._permit(permitted), self._fit(request)[0], out=mask)
        np.logical_and(mask, self._open, out=mask)
        for pool in request.tried:
            index = self._indices.get(pool)
            if index is not None:
                mask[index] = False
        self._keep_within_budget(request, mask, cached)
        return mask

    def _keep_within_budget(self, request: PlacementRequest, mask: Flags, cached: Mapping[int, int]) -> None:
        """Take out the pools where the tenant would be expected to pay more than it allows."""
        budget = None if request.service is None else request.service.budget_pico
        bill = request.bill_pico
        if budget is None or bill is None:
            return
        most, rebate = max(0, request.prompt_tokens - 1), request.cached_rebate_pico
        bills = {index: bill - min(tokens, most) * rebate for index, tokens in cached.items()}
        if bill <= budget:
            mask[[index for index, less in bills.items() if less > budget]] = False
        else:
            kept = [index for index, less in bills.items() if less <= budget and mask[index]]
            mask.fill(False)
            mask[kept] = True

    def _permit(self, permitted: int | Flags) -> Flags:
        """Return a permit as an array. Raises OverflowError for bits of pools that the plan does not have."""
        if not isinstance(permitted, int):
            return permitted
        found = self._permits.get(permitted)
        if found is None:
            packed = np.frombuffer(permitted.to_bytes((self._size + 7) // 8, "little"), np.uint8)
            found = np.unpackbits(packed, count=self._size, bitorder="little").view(np.bool_)
            if len(self._permits) >= self._permits_max:
                self._permits.clear()
            self._permits[permitted] = found
        return found

    def _fit(self, request: PlacementRequest) -> Fit:
        """Return which pools can ever take such a request, as declared."""
        # Lengths between two contexts fit alike.
        most = 0 if request.max_tokens is None else bisect_right(self._lengths, request.max_tokens)
        key = (request.capabilities, request.revision, most)
        found = self._fits.get(key)
        if found is None:
            need = _bits(request.capabilities)
            numbers: Codes = np.full(self._size, _KEPT, np.uint8)
            np.putmask(numbers, ~self._reachable, _NUMBER[Drop.NOT_REACHABLE])
            if request.max_tokens is not None:
                np.putmask(numbers, self._contexts <= request.max_tokens, _NUMBER[Drop.CONTEXT])
            np.putmask(numbers, (self._capabilities & need) != need, _NUMBER[Drop.CAPABILITY])
            if request.revision is not None:
                other = [served is not None and served.revision != request.revision for served in self._served]
                np.putmask(numbers, np.array(other, np.bool_), _NUMBER[Drop.REVISION])
            np.putmask(numbers, ~self._serving, _NUMBER[Drop.MODEL])
            found = (numbers == _KEPT, numbers)
            if len(self._fits) >= FITS_MAX:
                self._fits.clear()
            self._fits[key] = found
        return found

    def _total_pico(
        self, request: PlacementRequest, worth: Worth, mask: Flags, cached: Mapping[int, int], now_us: int
    ) -> Ints | None:
        """Return J of every row, right where `mask` is set; None where it does not fit into 64 bits."""
        if not self._columns.within(request, worth, now_us):
            return None
        total = self._columns.total_pico(request, worth, cached, now_us)
        for index in self._wild:
            if mask[index]:
                one = self._cost(index, request, worth, cached, now_us)
                if one is None or not -WILD_MAX_PICO < one < WILD_MAX_PICO:
                    return None
                total[index] = one
        return total

    def _cost(
        self, index: int, request: PlacementRequest, worth: Worth, cached: Mapping[int, int], now_us: int
    ) -> int | None:
        """Return J of one pool by the specification, or None where it has no view or no price."""
        view, spot = self.view(index, now_us, cached.get(index, 0)), self._offers[index].spot
        return None if view is None or spot is None else cost(request, spot, view, worth).total_pico

    def _pick(self, sure: Ints, total: Ints, settings: PlacementSettings, now_us: int, chance: int) -> Picked:
        """Choose among `sure`. The runner-up comes from the others of `total` where none of `sure` is left."""
        chosen = int(sure.argmin())
        best_pico = sure.item(chosen)
        most_pico = min(best_pico + best_pico * settings.epsilon_ppm // PPM, NOT_IN_PICO - 1)
        near = np.less_equal(sure, most_pico, out=self._other).nonzero()[0]
        count = len(near)
        if count > 1:
            # The bits that `pick` draws with.
            at, other = (chance >> 48) * count >> 16, (chance >> 32 & 0xFFFF) * (count - 1) >> 16
            first, second = near.item(at), near.item(other + (other >= at))
            chosen = min((first, second), key=lambda index: self._age_ms(index, now_us))
        chosen_pico = sure.item(chosen)
        sure[chosen] = total[chosen] = NOT_IN_PICO
        runner_up = int(sure.argmin())
        runner_up_pico = sure.item(runner_up)
        if runner_up_pico == NOT_IN_PICO:
            runner_up = int(total.argmin())
            runner_up_pico = total.item(runner_up)
        if runner_up_pico == NOT_IN_PICO:
            return Picked(chosen, None, chosen_pico, 0)
        return Picked(chosen, runner_up, chosen_pico, runner_up_pico - chosen_pico)

    def _age_ms(self, index: int, now_us: int) -> int:
        """Age of what is known; a pool that never reported counts as the oldest."""
        view = self._views[index]
        return NEVER_MS if view is None or view.load is None else max(0, now_us - self._heard_us[index]) // 1000

    def _by_specification(
        self,
        request: PlacementRequest,
        permitted: int | Flags,
        settings: PlacementSettings,
        cached: Mapping[int, int],
        now_ms: int,
        now_us: int,
        chance: int,
    ) -> Picked:
        self.fallbacks += 1
        pools, allowed = self.plan.pools, self._permit(permitted).tolist()
        verdicts = {pool.id: _ALLOWED if one else _REFUSED for pool, one in zip(pools, allowed, strict=True)}
        seen = [self.view(index, now_us, cached.get(index, 0)) for index in range(self._size)]
        views = {view.pool: view for view in seen if view is not None}
        placement = place(request, self.plan, verdicts, views, settings, now_ms, chance)
        chosen, runner_up = placement.chosen, placement.runner_up()
        if chosen is None or chosen.terms is None:
            return NOTHING
        index, total_pico = self._indices[chosen.pool.id], chosen.terms.total_pico
        if runner_up is None or runner_up.terms is None:
            return Picked(index, None, total_pico, 0)
        return Picked(
            index, self._indices[runner_up.pool.id], total_pico, runner_up.terms.total_pico - total_pico
        )


def _declared(offer: Offer) -> Speed | None:
    return None if offer.served is None else offer.served.speed(offer.pool.slots)


def _bits(capabilities: Iterable[Capability]) -> int:
    return sum(1 << _CAPABILITY_BIT[capability] for capability in capabilities)


def _flags_of(view: PoolView) -> int:
    """Return the bits of what is known of a pool, without those that settings decide."""
    load = view.load
    if load is None:
        return (0 if view.up else DOWN) | (BREAKER if view.held_off else 0)
    flags = 0 if view.up and load.replicas != 0 else DOWN
    if view.held_off:
        flags |= BREAKER
    if load.full():
        flags |= FULL
    if load.openings is not None and view.unseen >= load.openings:
        flags |= NO_OPENING
    return flags
