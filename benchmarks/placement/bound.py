"""The clairvoyant lower bound on what a run can cost the operator: a linear program, solved with HiGHS.

No placement, whatever it knows of the future, serves the given requests for less. The program chooses for each request
which fraction of it each permitted pool serves. Everything it demands of a choice holds in every real run, so the set
that it searches contains every run, and its optimum is a lower bound on the cost of each:

* **Fractions.** A real run serves a request in full at one pool: a fraction of one.
* **Work.** A step of a replica takes ``step_ns + stream_ns * decoding + prefill_ns * prompt tokens`` (`world.Gpu`), and
  the steps of a replica follow one another. Decoding streams are at most `slots` and prompt tokens at most
  `chunk_tokens`, so that ``step_ns`` is at least ``step_ns / slots`` per stream, and also at least
  ``step_ns / chunk_tokens`` per prompt token. Hence two accounts of the time of a pool, both of which must fit:
  ``prefill_ns * uncached + (stream_ns + step_ns / slots) * decoded`` and
  ``(prefill_ns + step_ns / chunk_tokens) * uncached + stream_ns * decoded``. The first token of an answer counts as no
  decoding: the step that takes in the end of the prompt may give it.
* **Time.** Per pool and window: no work is done before its request arrives, all is done in time (`slack_us`,
  `patience_us`), and a window holds at most ``replicas * (its length - outages in it)``. Between these bounds work may
  be cut and moved at will, the replicas of a pool are as one, and links take no time.
* **Cached tokens.** A request finds its longest leading run of whole blocks (`memory` shares no others) that an earlier
  request of the trace had, at whichever pool, and no block is ever evicted. In a real run a request may overtake the
  earlier one from which it would have had a block, and bring it for that one. The sum is no smaller for it: at each
  pool someone takes the block in first, while this account charges only the first in the trace, once for all pools, at
  that pool's price per token and within the time that is his. Only when a price changes while both may be under way
  could the exchange matter; then the earlier has the block for nothing too.
* **Price.** The least that is in force between the arrival of the request and the last moment at which it may end.
* **The promise** (`cost_promised_pico`). A pool breaks it when the round trip, or that by way of another edge, and the
  prefill of what cannot be cached in time, on an idle replica, take longer than the promised time to the first token;
  "in time" counts blocks that later requests bring while this one is on its way. Real runs that keep the promise for a
  share of the requests send at most the other requests to such pools.

Then the figure is not the solver's objective but follows from its multipliers by weak duality (any multipliers give a
lower bound; the optimal ones the best), less one part in 10^9 for double arithmetic. A wrong or inexact answer of the
solver makes the bound looser, never false; when it finds no solution at all, `free_pico` stands in.

Limits. It bounds runs that serve these requests in full, each in time, where `permits` allows it, with an account that
counts what broken attempts generated; for a run that refused or lost some, give those that it `finished`. It assumes
that a cached token costs no more than an uncached one, that pools share no cache, and that one pool does both prefill
and decoding of an attempt. It ignores waiting for slots, memory for keys and values, uploads, round trips (but for the
promise) and the evictions of caches, so that no real run need reach it.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import highspy
import numpy as np
from numpy.typing import NDArray

from orchestrator.placement.replay.outcome import Bill
from orchestrator.placement.replay.run import DRAIN_US
from orchestrator.placement.replay.world import Permits, SimRequest, World

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

PPM = 1_000_000
DAY_MS = 86_400_000
WINDOWS = 20
WINDOWS_MAX = 200
"""However short the time of arrivals is against the patience."""
ROUNDING = 1e-9
"""What is taken off for double arithmetic, as a part of the cost."""
NS_PER_S = 1_000_000_000
NEVER_US = -1


class SolverError(RuntimeError):
    """HiGHS ended neither with an optimum nor with a proof that there is none."""


@dataclass(frozen=True, slots=True)
class Bound:
    """What serving the requests costs at the least."""

    cost_pico: int
    """The bound. `free_pico` when not `feasible`."""
    free_pico: int
    """The same without any limit of capacity: each request at its cheapest permitted pool. Exact."""
    capacity_bound: bool
    """Capacity makes the bound dearer than `free_pico`, or cannot be kept at all."""
    feasible: bool
    """Whether capacity suffices to serve every request in time. When not, no such run exists."""
    cost_promised_pico: int | None
    """The bound for runs that keep the promise for the share asked for. None when none was asked for, or when capacity
    or distance lets no run keep it."""
    unplaceable: int
    """Requests that no pool may or can take. They are in no figure."""
    assigned: tuple[float, ...]
    """By pool: how many requests an optimum sends there, in fractions. Zeros when not `feasible`."""
    seconds: float
    """Time that it took, setting up included."""
    variables: int
    """Columns of the linear program."""


@dataclass(frozen=True, slots=True)
class _Clock:
    """When things may happen, in microseconds from the start of the run."""

    ends_us: tuple[int, ...]
    """End of each window; the first begins at 0."""
    end_us: int
    """By then every request has ended."""
    patience_us: int
    """And each so long after its arrival."""

    def deadline_us(self, at_us: int) -> int:
        """Return when a request that arrived at `at_us` has ended in every run that is bounded."""
        return min(at_us + self.patience_us, self.end_us)

    def window(self, at_us: int) -> int:
        """Return the window in which `at_us` lies."""
        return int(np.searchsorted(self.ends_us, at_us, side="right"))

    def due(self, window: int) -> int:
        """Return the last window whose requests have all ended by the end of `window`, or -1."""
        if window == len(self.ends_us) - 1:
            return window
        return int(np.searchsorted(self.ends_us, self.ends_us[window] - self.patience_us, side="right")) - 1


@dataclass(frozen=True, slots=True)
class _Choices:
    """Every (request, pool) that may be, in columns."""

    request: Ints
    """Index among the requests that are served."""
    pool: Ints
    cost_pico: tuple[int, ...]
    works_s: tuple[Floats, Floats]
    """Replica seconds in the two accounts: a step shared by the streams of a full batch, by the tokens of a chunk."""
    late: Flags
    """Whether the promise breaks there."""
    window: Ints
    """Window in which the request arrives."""

    @property
    def free_pico(self) -> int:
        """Return the sum over requests of the cheapest choice."""
        cheapest: dict[int, int] = {}
        for request, cost in zip(self.request.tolist(), self.cost_pico, strict=True):
            cheapest[request] = min(cost, cheapest.get(request, cost))
        return sum(cheapest.values())


@dataclass(frozen=True, slots=True)
class Program:
    """A linear program: minimise ``cost @ x``, ``lower <= A x <= upper``, ``0 <= x <= limit``. A is in triplets."""

    cost: Floats
    limit: Floats
    """Finite for each column: the proof needs it."""
    row: Ints
    column: Ints
    value: Floats
    lower: Floats
    upper: Floats

    def proved(self, multipliers: Floats) -> float:
        """Return a lower bound on the optimum by weak duality, whatever the `multipliers` of the rows are."""
        usable = np.where(multipliers > 0, np.isfinite(self.lower), np.isfinite(self.upper))
        used = np.where(usable & np.isfinite(multipliers), multipliers, 0.0)
        side = np.where(used > 0, self.lower, self.upper)
        rows = float(np.sum(used * np.where(used == 0, 0.0, side)))
        reduced = self.cost - np.bincount(self.column, self.value * used[self.row], minlength=len(self.cost))
        return rows + float(np.sum(np.minimum(0.0, reduced) * self.limit))

    def solved(self) -> tuple[float, Floats] | None:
        """Return the bound and an optimum, or None when nothing fulfils the rows. Raises SolverError."""
        solver = highspy.Highs()  # type: ignore[no-untyped-call]  # its stubs leave this one out
        solver.setOptionValue("output_flag", False)
        solver.setOptionValue("threads", 1)
        solver.passModel(self._model())
        solver.run()
        status = solver.getModelStatus()
        if status in (highspy.HighsModelStatus.kInfeasible, highspy.HighsModelStatus.kUnboundedOrInfeasible):
            return None
        if status != highspy.HighsModelStatus.kOptimal:
            raise SolverError(solver.modelStatusToString(status))
        solution = solver.getSolution()
        return self.proved(np.array(solution.row_dual, dtype=np.float64)), np.array(solution.col_value)

    def _model(self) -> highspy.HighsLp:
        model = highspy.HighsLp()
        model.num_col_, model.num_row_ = len(self.cost), len(self.lower)
        model.col_cost_, model.col_lower_, model.col_upper_ = self.cost, np.zeros(len(self.cost)), self.limit
        model.row_lower_, model.row_upper_ = self.lower, self.upper
        order = np.argsort(self.column, kind="stable")
        counts = np.bincount(self.column, minlength=len(self.cost))
        model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
        model.a_matrix_.start_ = np.concatenate(([0], np.cumsum(counts))).astype(np.int32)
        model.a_matrix_.index_ = self.row[order].astype(np.int32)
        model.a_matrix_.value_ = self.value[order]
        return model


class _Builder:
    """Collects columns and rows of a program."""

    def __init__(self, cost: Floats) -> None:
        self._cost = cost
        self._limits: list[Floats] = [np.ones(len(cost))]
        self._columns = len(cost)
        self._triplets: list[tuple[Ints, Ints, Floats]] = []
        self._lower: list[float] = []
        self._upper: list[float] = []

    def columns(self, count: int, limit: float) -> Ints:
        """Add columns that cost nothing, each between 0 and `limit`; return their numbers."""
        added = np.arange(self._columns, self._columns + count, dtype=np.int64)
        self._limits.append(np.full(count, limit))
        self._columns += count
        return added

    def rows(self, lower: Sequence[float], upper: Sequence[float], *terms: tuple[Ints, Ints, Floats | float]) -> None:
        """Add rows. Each of `terms` is (row among these, column, value), one entry of the matrix per element."""
        first = len(self._lower)
        self._lower.extend(lower)
        self._upper.extend(upper)
        for row, column, value in terms:
            self._triplets.append((row + first, column, np.broadcast_to(np.float64(value), row.shape)))

    def program(self) -> Program:
        """Return what was collected."""
        row, column, value = (np.concatenate(parts) for parts in zip(*self._triplets, strict=True))
        extra = self._columns - len(self._cost)
        return Program(
            cost=np.concatenate((self._cost, np.zeros(extra))),
            limit=np.concatenate(self._limits),
            row=row,
            column=column,
            value=value,
            lower=np.array(self._lower),
            upper=np.array(self._upper),
        )


def bound(
    world: World,
    requests: Sequence[SimRequest],
    permits: Permits,
    bill: Bill,
    *,
    slack_us: int = DRAIN_US,
    patience_us: int | None = None,
    window_us: int | None = None,
    changes_ms: Collection[int] | None = None,
    promised_ppm: int | None = None,
    finished: Collection[int] | None = None,
) -> Bound:
    """Return the least that any run can cost that serves `requests` in time; the module says why. Raises SolverError.

    `slack_us`: every run that is bounded has ended so long after the last arrival. `patience_us`: and every request so
    long after its own arrival; the slowest answer of the runs that are compared is the tightest. `window_us`: length of
    a window, by default a twentieth of the time in which requests arrive; any length gives a bound. `changes_ms`: every
    wall time at which `bill` changes, by default those of the world's prices; when prices change in the run, give
    `patience_us` too, or each request gets the best price to come.
    `promised_ppm`: asks for `cost_promised_pico` of runs that keep the promise for this share of the requests.
    `finished`: numbers of the requests that count, if not all; the others only fill the caches.
    """
    begun_s = time.perf_counter()
    trace = sorted(requests, key=lambda request: request.at_us)
    wanted = [index for index, request in enumerate(trace) if finished is None or request.number in finished]
    possible = {index: _possible(world, trace[index], permits) for index in wanted}
    served = {index: pools for index, pools in possible.items() if pools}
    if not served:
        nothing = (0.0,) * len(world.pools)
        seconds = time.perf_counter() - begun_s
        return Bound(0, 0, False, True, None if promised_ppm is None else 0, len(wanted), nothing, seconds, 0)
    clock = _clock(trace[max(served)].at_us, slack_us, patience_us, window_us)
    changes = _changes_ms(world, clock.end_us) if changes_ms is None else changes_ms
    choices = _choices(world, trace, served, bill, clock, changes)
    # In units of the mean cost of a choice, the solver's tolerances mean the same in every currency.
    unit_pico = max(1.0, sum(choices.cost_pico) / len(choices.cost_pico))
    program = _program(world, choices, clock, unit_pico, None)
    solved = program.solved()
    promised = None
    if promised_ppm is not None and solved is not None:
        spared = len(served) - -(-len(served) * promised_ppm // PPM)
        kept = _program(world, choices, clock, unit_pico, spared).solved()
        promised = None if kept is None else _pico(kept[0], unit_pico, choices.free_pico)
    free_pico = choices.free_pico
    cost_pico = free_pico if solved is None else _pico(solved[0], unit_pico, free_pico)
    weights = np.zeros(len(choices.pool)) if solved is None else solved[1][: len(choices.pool)]
    return Bound(
        cost_pico=cost_pico,
        free_pico=free_pico,
        capacity_bound=solved is None or cost_pico > free_pico,
        feasible=solved is not None,
        cost_promised_pico=promised,
        unplaceable=len(wanted) - len(served),
        assigned=tuple(np.bincount(choices.pool, weights, minlength=len(world.pools)).tolist()),
        seconds=time.perf_counter() - begun_s,
        variables=len(program.cost),
    )


def _pico(value: float, unit_pico: float, free_pico: int) -> int:
    """Return `value` less what double arithmetic may have lost, up to whole pico-units, and at least `free_pico`."""
    return max(free_pico, math.ceil(value * unit_pico * (1 - ROUNDING)))


def _possible(world: World, request: SimRequest, permits: Permits) -> list[int]:
    """Return the pools that may take the request and can: others refuse it (`site`)."""
    allowed, tokens = permits(request), request.prompt_tokens + request.output_tokens
    return [
        index
        for index, pool in enumerate(world.pools)
        if allowed >> index & 1
        and pool.model == request.model
        and tokens <= min(pool.context_tokens, pool.gpu.kv_tokens)
    ]


def _clock(last_us: int, slack_us: int, patience_us: int | None, window_us: int | None) -> _Clock:
    """Return the windows up to when everything has ended."""
    patience = last_us + slack_us if patience_us is None else patience_us
    end_us = last_us + min(slack_us, patience)
    width_us = max(1, last_us // WINDOWS, end_us // WINDOWS_MAX) if window_us is None else window_us
    # When nothing is due before the end, one window after the last arrival says as much as many.
    split_us = last_us + 1 if patience_us is None else end_us
    # Every arrival lies before the end of a window, the last one too.
    return _Clock((*range(width_us, split_us, width_us), max(end_us, last_us + 1)), end_us, patience)


def _choices(
    world: World,
    trace: Sequence[SimRequest],
    served: Mapping[int, Sequence[int]],
    bill: Bill,
    clock: _Clock,
    changes_ms: Collection[int],
) -> _Choices:
    """Return every choice of the requests `served` (index in the trace: pools), with its least cost and least work."""
    overtaken = [
        clock.deadline_us(request.at_us)
        if _changes_within(world, request.at_us, clock.deadline_us(clock.deadline_us(request.at_us)), changes_ms)
        else NEVER_US
        for request in trace
    ]
    reused = _reused(trace, world.block_tokens, overtaken)
    first_us = [request.at_us + world.kinds[request.kind].promise.first_us for request in trace]
    quickest = _reused(trace, world.block_tokens, first_us)
    ways_us = _ways_us(world)
    columns: list[tuple[int, int, int, float, float, bool, int]] = []
    for place, (index, pools) in enumerate(served.items()):
        request = trace[index]
        down_bytes = request.output_tokens * world.output_bytes_per_token
        moments_ms = _moments_ms(world, request, clock, changes_ms)
        for pool in pools:
            gpu = world.pools[pool].gpu
            cached = reused[index] if gpu.prefix_cache else 0
            cost = min(
                bill(request, pool, cached, request.output_tokens, now_ms, request.upload_bytes, down_bytes)
                for now_ms in moments_ms
            )
            uncached, decoded = request.prompt_tokens - cached, max(0, request.output_tokens - 1)
            alone_ns = gpu.prefill_ns * uncached + gpu.stream_ns * decoded
            cold = request.prompt_tokens - (quickest[index] if gpu.prefix_cache else 0)
            first_ns = gpu.prefill_ns * cold + gpu.step_ns * max(1, -(-cold // gpu.chunk_tokens))
            late = request.at_us + ways_us[request.edge][pool] + first_ns // 1000 > first_us[index]
            by_stream_s = (alone_ns + gpu.step_ns * decoded / gpu.slots) / NS_PER_S
            by_chunk_s = (alone_ns + gpu.step_ns * uncached / gpu.chunk_tokens) / NS_PER_S
            columns.append((place, pool, cost, by_stream_s, by_chunk_s, late, clock.window(request.at_us)))
    place_of, pool_of, cost_of, stream_of, chunk_of, late_of, window_of = zip(*columns, strict=True)
    return _Choices(
        request=np.array(place_of, dtype=np.int64),
        pool=np.array(pool_of, dtype=np.int64),
        cost_pico=cost_of,
        works_s=(np.array(stream_of), np.array(chunk_of)),
        late=np.array(late_of),
        window=np.array(window_of, dtype=np.int64),
    )


def _moments_ms(world: World, request: SimRequest, clock: _Clock, changes_ms: Collection[int]) -> list[int]:
    """Return wall times at which every price is seen that the request may be billed at."""
    changes = _changes_within(world, request.at_us, clock.deadline_us(request.at_us), changes_ms)
    return [world.start_ms + request.at_us // 1000, *changes]


def _changes_within(world: World, from_us: int, until_us: int, changes_ms: Collection[int]) -> list[int]:
    """Return the wall times of the changes of price after `from_us` and until `until_us`, both in whole ms outwards."""
    first_ms, last_ms = world.start_ms + from_us // 1000, world.start_ms - (-until_us // 1000)
    return [change for change in changes_ms if first_ms < change <= last_ms]


def _changes_ms(world: World, until_us: int) -> list[int]:
    """Return the wall times at which a price of the world changes: dated ones, and tariffs every day of the run."""
    day_ms, until_ms = world.start_ms // DAY_MS * DAY_MS, world.start_ms + until_us // 1000
    changes: set[int] = set()
    for cost in world.prices.costs:
        for dated in cost.dated:
            changes |= {dated.from_ms, dated.until_ms}
        for tariff in cost.tariffs:
            for minute in (tariff.from_minute, tariff.until_minute):
                changes.update(range(day_ms + minute * 60_000, until_ms + 1, DAY_MS))
    return sorted(changes)


def _ways_us(world: World) -> list[list[int]]:
    """Return by edge and pool the least round trip, with or without a hop as `run` counts it (either way it does)."""
    trips_us = [[link.rtt_us // 2 * 2 for link in row] for row in world.links]
    ways_us = [list(row) for row in trips_us]
    for here, mine in enumerate(world.links):
        for there, its in enumerate(world.links):
            shared = [one.rtt_us + other.rtt_us for one, other in zip(mine, its, strict=True)]
            at_home = [mine[pool].rtt_us for pool, edge in enumerate(world.home) if edge == there]
            hop_us = min(shared + at_home) // 2
            for pool, trip_us in enumerate(trips_us[there]):
                ways_us[here][pool] = min(ways_us[here][pool], 2 * hop_us + trip_us)
    return ways_us


def _reused(trace: Sequence[SimRequest], block_tokens: int, until_us: Sequence[int]) -> list[int]:
    """Return by request the tokens of its longest leading run of whole blocks that another one brings.

    Others are those earlier in the trace, and the later ones that arrive up to its `until_us`. Pools serve one model,
    so that requests for two models share nothing.
    """
    first: dict[tuple[str, int], int] = {}
    second_us: dict[tuple[str, int], int] = {}
    for index, request in enumerate(trace):
        for block in request.blocks[: request.prompt_tokens // block_tokens]:
            if first.setdefault((request.model, block), index) != index:
                second_us.setdefault((request.model, block), request.at_us)
    reused: list[int] = []
    for index, request in enumerate(trace):
        run = 0
        for block in request.blocks[: request.prompt_tokens // block_tokens]:
            key = (request.model, block)
            if first[key] == index and second_us.get(key, until_us[index] + 1) > until_us[index]:
                break
            run += 1
        reused.append(run * block_tokens)
    return reused


def _program(world: World, choices: _Choices, clock: _Clock, unit_pico: float, late_max: int | None) -> Program:
    """Return the linear program; with `late_max`, at most so many requests go where their promise breaks."""
    costs = np.array([cost / unit_pico for cost in choices.cost_pico])
    builder = _Builder(costs)
    count = int(choices.request[-1]) + 1
    builder.rows([1.0] * count, [1.0] * count, (choices.request, np.arange(len(costs)), 1.0))
    if late_max is not None:
        late = np.flatnonzero(choices.late)
        builder.rows([-math.inf], [float(late_max)], (np.zeros_like(late), late, 1.0))
    for pool in range(len(world.pools)):
        capacity_s = _capacity_s(world, pool, clock)
        mine = np.flatnonzero(choices.pool == pool)
        for works_s in choices.works_s:
            arriving_s = np.bincount(choices.window[mine], works_s[mine], minlength=len(capacity_s))
            # Where each window could hold all that may arrive in it, the rows say nothing.
            if np.any(arriving_s > capacity_s):
                _limit(builder, mine, choices.window[mine], works_s[mine], capacity_s, clock)
    return builder.program()


def _limit(builder: _Builder, mine: Ints, window: Ints, works_s: Floats, capacity_s: Floats, clock: _Clock) -> None:
    """Add the rows of one account of one pool: of its work, what has arrived and what is done by each window's end."""
    every = np.arange(len(capacity_s), dtype=np.int64)
    later = every[1:]
    total_s = float(works_s.sum())
    arrived, done = builder.columns(len(every), total_s), builder.columns(len(every), total_s)
    zeros, nothing = [0.0] * len(every), [-math.inf] * len(every)
    # What has arrived by the end of a window is what had arrived before, and what arrives in it.
    builder.rows(zeros, zeros, (every, arrived, 1.0), (later, arrived[:-1], -1.0), (window, mine, -works_s))
    builder.rows(nothing, zeros, (every, done, 1.0), (every, arrived, -1.0))
    builder.rows(nothing, capacity_s.tolist(), (every, done, 1.0), (later, done[:-1], -1.0))
    due = np.array([clock.due(number) for number in every.tolist()], dtype=np.int64)
    owed = every[due >= 0]
    rows = np.arange(len(owed), dtype=np.int64)
    builder.rows(nothing[: len(owed)], zeros[: len(owed)], (rows, arrived[due[owed]], 1.0), (rows, done[owed], -1.0))


def _capacity_s(world: World, pool: int, clock: _Clock) -> Floats:
    """Return by window the replica seconds of a pool outside its outages."""
    gone = sorted((outage.from_us, outage.until_us) for outage in world.outages if outage.pool == pool)
    capacities: list[float] = []
    begin_us = 0
    for end_us in clock.ends_us:
        up_us, seen_us = end_us - begin_us, begin_us
        for from_us, until_us in gone:
            # Outages that overlap count once.
            low_us, high_us = max(from_us, seen_us), min(until_us, end_us)
            if high_us > low_us:
                up_us -= high_us - low_us
                seen_us = high_us
        capacities.append(world.pools[pool].replicas * up_us / 1e6)
        begin_us = end_us
    return np.array(capacities)
