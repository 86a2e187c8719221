"""Decisions of a big fleet, measured: the law's remembered answer, what is expected of the request, and the board.

    python -m benchmarks placement-speed [--json FILE]

One thread. Each figure is processor time of this thread for one decision; its floor is measured in the same run, over
arrays as long as the board's. The law is that of the shipped example over pools in fifteen countries. Tenants differ in
label, promise, length of answers and prefix. The last table changes the bundle while decisions go on. In a thread, what
is waited for is mostly the interpreter's lock: on arrays of more than 500 elements numpy gives it up at each operation,
and gets it back after 5 ms.
"""

from __future__ import annotations

import gc
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import cast

import numpy as np

from benchmarks import big_fleet
from benchmarks.big_fleet import (
    EDGE,
    MODEL,
    NOW_US,
    SETTINGS,
    USD,
    Ready,
    Scene,
    board_of,
    callers,
    know,
    scene,
    views_of,
    write,
)
from benchmarks.figures import percentile, table
from benchmarks.law import EXAMPLE, NOW_MS
from orchestrator.cli.law.lawbook import read_lawbook
from orchestrator.placement.board import Board, Picked
from orchestrator.placement.columns import ROW_COLUMNS
from orchestrator.placement.fleet import Fleet, Prices
from orchestrator.placement.lengths import Lengths
from orchestrator.placement.plan import Plan
from orchestrator.placement.sight import Sight

POOLS = (10, 100, 1_000, 10_000)
TENANTS = (1, 100, 10_000)
DECISIONS = 2_000
SCALAR_POOLS_MAX = 1_000
"""The specification is measured beside up to here: beyond it takes too long."""
SCALAR_DECISIONS = 20
SLICE_ROWS = 250
CHANGE_TENANTS = 30
CHANGE_AFTER = 200
"""Decisions after the new bundle is in, so that both are seen."""

Result = dict[str, object]


def measure(
    pools: Sequence[int] = POOLS, tenants: Sequence[int] = TENANTS, decisions: int = DECISIONS
) -> Result:
    """Return every figure."""
    law = read_lawbook(EXAMPLE, NOW_MS).bundle.law
    speed: list[Result] = []
    beside: list[Result] = []
    memory: list[Result] = []
    changes: list[Result] = []
    for count in pools:
        found = scene(count, 0, law)
        for number in tenants:
            already = len(found.callers)
            know(found, callers(number - already, found.table, found.chance, already))
            speed.append(_speed(found, decisions))
        beside.append(_beside(found, decisions))
        memory.append(_memory(found, tenants[-1]))
        changes.append(change(found))
    return {
        "numpy": np.__version__,
        "decisions": decisions,
        "speed": speed,
        "beside": beside,
        "memory": memory,
        "change": changes,
    }


def rendered(found: Mapping[str, object]) -> str:
    """Return the figures as tables for people. Pure."""
    speed = table(
        "a decision among many pools: microseconds of processor time, one core",
        ("pools", "tenants", *(name.removesuffix("_us").replace("_", " ") for name in _SPEED_COLUMNS), "a second"),
        [
            (
                f"{one['pools']:,}",
                f"{one['tenants']:,}",
                *(f"{one[name]:.1f}" for name in _SPEED_COLUMNS),
                f"{one['decisions_per_s']:,.0f}",
            )
            for one in _rows(found, "speed")
        ],
    )
    beside = table(
        "beside it: the floors over arrays as long, and what happens less often, microseconds",
        (
            "pools",
            "argmin, one column",
            "a pass, all columns",
            "choose, new permit",
            "a row written",
            "reasons counted",
            "pick.place",
        ),
        [
            (
                f"{one['pools']:,}",
                *(f"{one[name]:.1f}" if one[name] is not None else "-" for name in _BESIDE_COLUMNS),
            )
            for one in _rows(found, "beside")
        ],
    )
    memory = table(
        "memory that is held, bytes",
        ("pools", "board, per pool", "views, per pool", "per tenant"),
        [
            (f"{one['pools']:,}", *(f"{one[name]:,.0f}" for name in _MEMORY_COLUMNS))
            for one in _rows(found, "memory")
        ],
    )
    changes = table(
        "another bundle while decisions go on, step by step between them or in a thread beside them: milliseconds",
        (
            "pools",
            "plan",
            "board",
            "all rows",
            f"of these {SLICE_ROWS}",
            "in a thread",
            "longest decision",
            "decisions",
            "of neither",
        ),
        [
            (
                f"{one['pools']:,}",
                *(f"{one[name]:.1f}" for name in _CHANGE_COLUMNS),
                f"{one['decisions']:,}",
                f"{one['neither']:,}",
            )
            for one in _rows(found, "change")
        ],
    )
    return "\n".join((speed, beside, memory, changes))


_SPEED_COLUMNS = (
    "permit_p50_us",
    "expect_p50_us",
    "choose_p50_us",
    "choose_p99_us",
    "together_p50_us",
    "together_p99_us",
)
_BESIDE_COLUMNS = ("floor_argmin_us", "floor_pass_us", "new_permit_us", "write_us", "drops_us", "place_us")
_MEMORY_COLUMNS = ("board_bytes_per_pool", "views_bytes_per_pool", "bytes_per_tenant")
_CHANGE_COLUMNS = ("plan_ms", "board_ms", "rows_ms", "slice_ms", "thread_ms", "thread_longest_ms")


def _rows(found: Mapping[str, object], name: str) -> list[dict[str, float]]:
    return cast("list[dict[str, float]]", found[name])


def _speed(found: Scene, decisions: int) -> Result:
    chance = found.chance
    asking = [chance.choice(found.callers) for _ in range(decisions)]
    chances = [chance.getrandbits(64) for _ in range(decisions)]
    permit, expect, choose, decide = found.permit, found.expect, found.choose, found.decide
    permit_us = _samples(lambda at: permit(asking[at]), decisions)
    expect_us = _samples(lambda at: expect(asking[at]), decisions)
    ready = [found.ready(caller, permit(caller), drawn) for caller, drawn in zip(asking, chances, strict=True)]
    choose_us = _samples(lambda at: choose(ready[at]), decisions)
    together_us = _samples(lambda at: decide(asking[at], chances[at]), decisions)
    picks = [choose(one) for one in ready]
    pools = len(found.plan.pools)
    permitted = sum(one.permitted.bit_count() for one in ready)
    return {
        "pools": pools,
        "tenants": len(found.callers),
        "label_classes": len({id(caller.facts) for caller in found.callers}),
        "permitted_share": permitted / decisions / pools,
        "placed_share": sum(pick.index is not None for pick in picks) / decisions,
        "fallbacks": found.board.fallbacks,
        "permit_p50_us": percentile(permit_us, 50),
        "permit_p99_us": percentile(permit_us, 99),
        "expect_p50_us": percentile(expect_us, 50),
        "expect_p99_us": percentile(expect_us, 99),
        "choose_p50_us": percentile(choose_us, 50),
        "choose_p99_us": percentile(choose_us, 99),
        "together_p50_us": percentile(together_us, 50),
        "together_p99_us": percentile(together_us, 99),
        "decisions_per_s": 1e6 * decisions / sum(together_us),
    }


def _beside(found: Scene, decisions: int) -> Result:
    size, board, views = len(found.plan.pools), found.board, found.views
    column = np.arange(size, 0, -1, dtype=np.int64)
    columns = np.zeros((ROW_COLUMNS, size), np.int64)
    into = np.zeros(size, np.int64)
    lines = list(columns)

    def pass_over() -> None:
        for line in lines:
            np.add(line, column, into)

    ready = found.ready(found.callers[0], found.permit(found.callers[0]), 1)
    told = (ready.request, ready.permitted, SETTINGS, ready.worth, ready.cached, NOW_MS)
    unseen = [replace(ready, permitted=found.chance.getrandbits(size)) for _ in range(decisions)]
    place_us = None
    if size <= SCALAR_POOLS_MAX:
        place_us = percentile(_samples(lambda _: found.place(ready), min(decisions, SCALAR_DECISIONS)), 50)
    return {
        "pools": size,
        "floor_argmin_us": percentile(_samples(lambda _: column.argmin(), decisions), 50),
        "floor_pass_us": percentile(_samples(lambda _: pass_over(), decisions), 50),
        "new_permit_us": percentile(_samples(lambda at: found.choose(unseen[at]), decisions, warm=0), 50),
        "write_us": percentile(_samples(lambda at: board.write(at % size, views[at % size], NOW_US), decisions), 50),
        "drops_us": percentile(_samples(lambda _: board.drops(*told), decisions), 50),
        "place_us": place_us,
    }


def _memory(found: Scene, tenants: int) -> Result:
    """Return what a board, its views and a tenant hold, as the allocator counts it."""
    found = replace(found, sight=Sight(), lengths=Lengths(), callers=[])
    count = len(found.plan.pools)
    gc.collect()
    tracemalloc.start()
    try:
        begun = tracemalloc.get_traced_memory()[0]
        views = views_of(found.plan.pools, found.chance)
        viewed = tracemalloc.get_traced_memory()[0]
        board = board_of(found.plan, views)
        boarded = tracemalloc.get_traced_memory()[0]
        some = callers(tenants, found.table, found.chance)
        named = tracemalloc.get_traced_memory()[0]
        know(found, some)
        known = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    return {
        "pools": len(board),
        "tenants": len(some),
        "views_bytes_per_pool": (viewed - begun) / count,
        "board_bytes_per_pool": (boarded - viewed) / count,
        "bytes_per_tenant": (known - named) / tenants,
    }


def change(found: Scene) -> Result:
    """Change the bundle while decisions go on, in slices and in a thread; each is the one's or the other's, whole."""
    some = found.callers[:CHANGE_TENANTS]
    ready = [found.ready(one, found.permit(one), found.chance.getrandbits(64)) for one in some]
    prices, other = (big_fleet.prices(found.plan.pools, found.chance) for _ in range(2))
    sliced, slices_ms = _Watch(found, ready), []
    made, begun = found.board, time.perf_counter()
    for board in _remade(found, prices):
        slices_ms.append((time.perf_counter() - begun) * 1e3)
        sliced.decide()
        made, begun = board, time.perf_counter()
    sliced.swap(made)
    threaded, begun = _Watch(found, ready), time.perf_counter()
    thread = threading.Thread(target=lambda: threaded.swap([*_remade(found, other)][-1]))
    thread.start()
    while thread.is_alive():
        threaded.decide()
    thread_ms = (time.perf_counter() - begun) * 1e3
    thread.join()
    for _ in range(CHANGE_AFTER):
        sliced.decide()
        threaded.decide()
    return {
        "pools": len(found.plan.pools),
        "plan_ms": slices_ms[0],
        "board_ms": slices_ms[1],
        "rows_ms": sum(slices_ms[2:]),
        "slice_ms": max(slices_ms[2:]),
        "thread_ms": thread_ms,
        "thread_longest_ms": threaded.longest_ms,
        "decisions": len(sliced.picks) + len(threaded.picks),
        "neither": sliced.neither() + threaded.neither(),
        "changed": sliced.changed() and threaded.changed(),
    }


class _Watch:
    """Decides the same requests again and again while the board is replaced, and remembers what came out."""

    def __init__(self, found: Scene, ready: Sequence[Ready]) -> None:
        self.picks: list[Picked] = []
        self.longest_ms = 0.0
        self._scene = replace(found)
        self._ready = ready
        self._before = [self._scene.choose(one) for one in ready]

    def decide(self) -> None:
        """Decide the next request."""
        begun = time.perf_counter()
        pick = self._scene.choose(self._ready[len(self.picks) % len(self._ready)])
        self.longest_ms = max(self.longest_ms, (time.perf_counter() - begun) * 1e3)
        self.picks.append(pick)

    def swap(self, board: Board) -> None:
        """From now on another board decides."""
        self._scene.board = board

    def changed(self) -> bool:
        """Whether the other board decides otherwise at all."""
        return self._before != self._after()

    def neither(self) -> int:
        """Return how many decisions were neither the one board's nor, from some moment on, the other's."""
        after, swapped, found = self._after(), False, 0
        for number, pick in enumerate(self.picks):
            at = number % len(self._ready)
            swapped = swapped or pick != self._before[at]
            found += pick != (after[at] if swapped else self._before[at])
        return found

    def _after(self) -> list[Picked]:
        return [self._scene.choose(one) for one in self._ready]


def _remade(found: Scene, prices: Prices) -> Iterator[Board]:
    """Arrange the pools with other prices; stop after each step, so that decisions can go on between."""
    plan = Plan(EDGE, Fleet(pools=found.plan.pools), prices, USD)
    plan.offers(MODEL, NOW_MS)
    yield found.board
    board = Board(plan, MODEL, NOW_MS)
    yield found.board
    for first in range(0, len(plan.pools), SLICE_ROWS):
        write(board, found.views, first, first + SLICE_ROWS)
        yield board


def _samples(work: Callable[[int], object], count: int, warm: int = 50) -> list[float]:
    """Return the processor time of each call, in microseconds, without that of reading the clock."""
    clock = time.thread_time_ns
    for at in range(min(count, warm)):
        work(at)
    gc.collect()
    idle = min(-(clock() - clock()) for _ in range(200))
    times: list[float] = []
    for at in range(count):
        begun = clock()
        work(at)
        times.append((clock() - begun - idle) / 1e3)
    return times
