"""`make bench-processes`: an edge or intake of one process and one of two, loaded in turns.

    python -m benchmarks.path.processes [--of edge] [--counts 1,2] [--rounds 6] [--seconds 3] [--connections 48]

The engine answers at once, so what is measured is the edge, which `wrk` calls, or with `--of intake` the intake, which
`benchmarks.path.driver` calls as an edge would: an edge of one process cannot keep it busy. *Cores* is what it got of
them; the load, the engine and the rest run beside it on the same cores. *Others* is what programs got that are none of
ours: more processes get no more of what these have. So each run waits for a moment in which they have no more than
`--others` cores, and is made again where they had more in it, up to a bound. Of an intake each second is measured, and
of a run that one counts in which the others had the least.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import sys
import tempfile
from collections import defaultdict
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import uvloop

from benchmarks.figures import machine, median, table
from benchmarks.path import wrk
from benchmarks.path.ask import Ask, WrongAnswer, body_of, checked
from benchmarks.path.driven import ENGINE, driven
from benchmarks.path.driver import DRIVER
from benchmarks.path.systems import SCALE, engine_pid
from benchmarks.path.watched import Spent, Watch
from benchmarks.stand import EDGE_ONLY, LOOPBACK, Scale, Stand, StandError
from orchestrator.cli.processes import ProcessFailure

LOADS = {"whole answer of 4 tokens": (False, 4), "stream of 100 tokens": (True, 100)}
EDGE, INTAKE = "edge", "intake"
PROGRAMS = {EDGE: "edge", INTAKE: "scheduler"}
"""By what is measured: the program."""
REQUESTS_MAX = 2_048
"""Of the edge and of its one tenant: no connection meets its share of it."""
SETTLE_S = 3.0
"""How long the edges rest before they are loaded: of several processes, control hears of the first alone."""
AGAIN_MAX = 5
"""How often a run is made again."""
LOOK_S = 1.0
LOOKS_MAX = 60
"""How often is looked, before a run, whether other programs are busy."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is measured, and how."""

    part: str
    counts: tuple[int, ...]
    rounds: int
    seconds: int
    connections: int
    """With a driver: attempts in flight, over all processes together."""
    others_cores: float
    """A run in which other programs had more is made again."""


@dataclass(frozen=True, slots=True)
class Run:
    """One run of one load."""

    requests: int
    spent: Spent

    def row(self, part: str) -> tuple[float, ...]:
        """Return what the table shows of it, in its order."""
        spent = self.spent
        shown = [self.requests / spent.seconds, spent.cpu_us[part] / self.requests, spent.cores(part)]
        if part == INTAKE:
            shown.append(spent.cpu_us[DRIVER] / self.requests)
        return (*shown, spent.cores(ENGINE), spent.others_cores)

    def said(self, part: str) -> str:
        """Return its row as words."""
        shown = zip(COLUMNS[part], self.row(part), strict=True)
        return "; ".join(f"{name} {value:,.{digits}f}" for (name, digits), value in shown)


COLUMNS = {
    EDGE: (("requests/s", 0), ("us/request", 0), ("cores", 2), ("engine, cores", 2), ("others, cores", 2)),
    INTAKE: (
        *(("requests/s", 0), ("us/request", 0), ("cores", 2), ("driver, us/request", 0)),
        *(("engine, cores", 2), ("others, cores", 2)),
    ),
}
"""Of a row: names, and digits after the point."""

Figures = dict[tuple[int, str], list[Run]]
"""By processes and load."""


async def measured(folder: Path, plan: Plan) -> Figures:
    """Load the stands in turns. Raises StandError, ProcessFailure, WrkError and WrongAnswer."""
    found: Figures = defaultdict(list)
    async with AsyncExitStack() as running:
        stands = {}
        for count in plan.counts:
            limits = {"requests_max": REQUESTS_MAX, "tenant_requests_max": REQUESTS_MAX}
            own = {"processes": count}
            edge = {**SCALE.edge, **limits, **(own if plan.part == EDGE else {})}
            site = {**SCALE.site, **(own if plan.part == INTAKE else {})}
            scale = Scale(SCALE.slots, SCALE.context_tokens, edge=edge, site=site)
            stands[count] = stand = Stand(folder / f"stand-{count}", None, scale)
            running.push_async_callback(stand.stop)
            await stand.start()
        await asyncio.sleep(SETTLE_S)
        for _ in range(plan.rounds):
            for load in LOADS:
                for count, stand in stands.items():
                    found[count, load].append(await _quiet(stand, count, load, folder, plan))
    return found


async def _quiet(stand: Stand, count: int, load: str, folder: Path, plan: Plan) -> Run:
    """Return a run in which other programs had little, or of several the one in which they had the least."""
    loaded = _driven if plan.part == INTAKE else _called
    runs: list[Run] = []
    while not runs or (runs[-1].spent.others_cores > plan.others_cores and len(runs) <= AGAIN_MAX):
        await _until_quiet(plan.others_cores)
        runs.append(await loaded(stand, load, folder, plan))
        print(f"  {load}, {count}: {runs[-1].said(plan.part)}", file=sys.stderr, flush=True)
    return min(runs, key=lambda run: run.spent.others_cores)


async def _until_quiet(others_cores: float) -> None:
    for _ in range(LOOKS_MAX):
        watch = Watch({}, os.getpid())
        await asyncio.sleep(LOOK_S)
        if watch.spent().others_cores <= others_cores:
            return


async def _called(stand: Stand, load: str, folder: Path, plan: Plan) -> Run:
    """Load an edge with wrk."""
    stream, tokens = LOADS[load]
    headers = {"authorization": f"Bearer {stand.api_key}", "content-type": "application/json"}
    model = stand.engines[0].model(EDGE_ONLY)
    ask = Ask(LOOPBACK, stand.edge_port, headers, body_of(model, stream=stream, tokens=tokens))
    await checked(ask, tokens)
    watch = Watch({EDGE: stand.process(PROGRAMS[EDGE]).pid, ENGINE: engine_pid(stand)}, os.getpid())
    run = await wrk.run(ask, folder, plan.connections, plan.seconds)
    return Run(run.requests, watch.spent())


async def _driven(stand: Stand, load: str, folder: Path, plan: Plan) -> Run:
    """Load an intake with a driver. Whether an answer streams is nothing to an intake: each does."""
    pid = stand.process(PROGRAMS[INTAKE]).pid
    windows = await driven(stand, LOADS[load][1], folder, plan.seconds, plan.connections, pid)
    quietest = min(windows, key=lambda window: window.spent.others_cores)
    return Run(quietest.requests, quietest.spent)


def rendered(part: str, found: Figures) -> str:
    """Return the medians of all rounds as a table. Pure."""
    digits = [digits for _, digits in COLUMNS[part]]
    rows = []
    for (count, load), runs in sorted(found.items(), key=lambda one: (one[0][1], one[0][0])):
        columns = zip(*(run.row(part) for run in runs), strict=True)
        medians = (f"{median(column):,.{after}f}" for column, after in zip(columns, digits, strict=True))
        rows.append([load, str(count), *medians])
    return table(f"processes of an {part}", ["load", "processes", *(name for name, _ in COLUMNS[part])], rows)


def main() -> int:
    """Run the command line; 1 when the benchmark could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.path.processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--of", default=EDGE, choices=PROGRAMS, help="what has several processes")
    parser.add_argument("--counts", default="1,2", help="how many, of each stand")
    for name, default in (("rounds", 6), ("seconds", 3), ("connections", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--others", type=float, default=0.2, help="cores; where others have more, a run is made again")
    options = parser.parse_args()
    counts = tuple(int(count) for count in options.counts.split(","))
    plan = Plan(options.of, counts, options.rounds, options.seconds, options.connections, options.others)
    print(machine(), flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="tg-") as folder:
            print(rendered(options.of, uvloop.run(measured(Path(folder), plan))))
    except (StandError, ProcessFailure, wrk.WrkError, WrongAnswer) as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
