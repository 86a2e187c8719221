"""`python -m benchmarks.path.processes`: an edge or intake of one process and one of two, loaded in turns.

    python -m benchmarks.path.processes [--of edge] [--counts 1,2] [--rounds 6] [--seconds 3] [--connections 48]

Needs `wrk`. The engine answers at once, so the edge, or with `--of intake` the intake behind an edge of one process, is
what is measured, with wrk, the engine and the rest beside it on the same cores. *Cores* is what it got of them: where
other programs have them, more processes get no more. An intake is measured by its processor time: the edge before it
takes more.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
import tempfile
import time
from collections import defaultdict
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop

from benchmarks.figures import machine, median, table
from benchmarks.path import wrk
from benchmarks.path.ask import Ask, WrongAnswer, body_of, checked
from benchmarks.path.systems import SCALE, cpu_us
from benchmarks.stand import EDGE_ONLY, LOOPBACK, TWO_HOP, Scale, Stand, StandError
from orchestrator.cli.processes import ProcessFailure

LOADS = {"whole answer of 4 tokens": (False, 4), "stream of 100 tokens": (True, 100)}
PARTS = {"edge": ("edge", EDGE_ONLY), "intake": ("scheduler", TWO_HOP)}
"""By what is measured: the program, and the path of the requests."""
REQUESTS_MAX = 2_048
"""Of the edge and of its one tenant: no connection meets its share of it."""
SETTLE_S = 3.0
"""How long the edges rest before they are loaded: of several processes, control hears of the first alone."""

Figures = dict[tuple[int, str], list[tuple[float, float, float]]]
"""By processes and load: requests a second, microseconds of processor time a request, and cores that it got."""


async def measured(
    folder: Path, part: str, counts: tuple[int, ...], rounds: int, seconds: int, connections: int
) -> Figures:
    """Load the stands in turns. Raises StandError, ProcessFailure, WrkError and WrongAnswer."""
    found: Figures = defaultdict(list)
    async with AsyncExitStack() as running:
        stands = {}
        for count in counts:
            limits = {"requests_max": REQUESTS_MAX, "tenant_requests_max": REQUESTS_MAX}
            own = {"processes": count}
            edge = {**SCALE.edge, **limits, **(own if part == "edge" else {})}
            site = {**SCALE.site, **(own if part == "intake" else {})}
            scale = Scale(SCALE.slots, SCALE.context_tokens, edge=edge, site=site)
            stands[count] = stand = Stand(folder / f"stand-{count}", None, scale)
            running.push_async_callback(stand.stop)
            await stand.start()
        await asyncio.sleep(SETTLE_S)
        for _ in range(rounds):
            for load in LOADS:
                for count, stand in stands.items():
                    found[count, load].append(await _loaded(stand, part, load, folder, seconds, connections))
    return found


async def _loaded(
    stand: Stand, part: str, load: str, folder: Path, seconds: int, connections: int
) -> tuple[float, float, float]:
    stream, tokens = LOADS[load]
    program, path = PARTS[part]
    headers = {"authorization": f"Bearer {stand.api_key}", "content-type": "application/json"}
    model = stand.engines[0].model(path)
    ask = Ask(LOOPBACK, stand.edge_port, headers, body_of(model, stream=stream, tokens=tokens))
    await checked(ask, tokens)
    pid = stand.process(program).pid
    before_us, begun_s = cpu_us(pid), time.monotonic()
    run = await wrk.run(ask, folder, connections, seconds)
    spent_us = cpu_us(pid) - before_us
    return run.per_s, spent_us / run.requests, spent_us / 1e6 / (time.monotonic() - begun_s)


def rendered(part: str, found: Figures) -> str:
    """Return the medians of all rounds as a table. Pure."""
    rows = [
        [load, str(count), *(f"{median([run[at] for run in runs]):,.{digits}f}" for at, digits in enumerate((0, 0, 2)))]
        for (count, load), runs in sorted(found.items(), key=lambda one: (one[0][1], one[0][0]))
    ]
    return table(f"processes of an {part}", ["load", "processes", "requests/s", "us/request", "cores"], rows)


def main() -> int:
    """Run the command line; 1 when the benchmark could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.path.processes",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--of", default="edge", choices=PARTS, help="what has several processes")
    parser.add_argument("--counts", default="1,2", help="how many, of each stand")
    for name, default in (("rounds", 6), ("seconds", 3), ("connections", 48)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    counts = tuple(int(count) for count in options.counts.split(","))
    print(machine(), flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="tg-") as folder:
            work = measured(Path(folder), options.of, counts, options.rounds, options.seconds, options.connections)
            print(rendered(options.of, uvloop.run(work)))
    except (StandError, ProcessFailure, wrk.WrkError, WrongAnswer) as failure:
        print(failure, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        sys.exit(main())
