"""`make chaos`: runs scenarios on one stand, prints what became of every request, and exits 1 where one was lost.

    python -m tests.chaos [SCENARIO ...] [--short] [--list] [--json FILE] [--folder FOLDER]
    python -m tests.chaos --random SEED [--rounds N] [--processes N]

The second draws a schedule of faults from each of N seeds, the first of them SEED. Each is printed before it runs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from tests.chaos import ray_head
from tests.chaos.evidence import Auditor
from tests.chaos.report import Result, table
from tests.chaos.scenario import Scenario, run
from tests.chaos.scenarios import SCENARIOS, SHORT
from tests.chaos.stand import Stand
from tests.chaos.unforeseen import run_seeds


async def run_random(seeds: range, folder: Path, processes: int) -> list[Result]:
    """Run the schedules of seeds one after the other on one stand."""
    stand = Stand(folder, processes=processes)
    try:
        await stand.start()
        return await run_seeds(seeds, stand, Auditor(stand), partial(print, flush=True), processes)
    finally:
        await stand.stop()


async def run_all(scenarios: Sequence[Scenario], folder: Path) -> list[Result]:
    """Run scenarios one after the other on one stand."""
    stand = Stand(folder)
    results: list[Result] = []
    try:
        await stand.start()
        auditor = Auditor(stand)
        for scenario in scenarios:
            begun_s = time.monotonic()
            result = await run(scenario, stand, auditor)
            results.append(result)
            word = "ok" if result.passed else "FAILED"
            print(f"chaos: {word:<6} {scenario.name:<24} {time.monotonic() - begun_s:5.1f} s", flush=True)
    finally:
        await stand.stop()
    return results


@contextlib.contextmanager
def _folder(named: Path | None) -> Iterator[Path]:
    """Give a folder for the stand: the one that was named, which stays, or one that goes."""
    if named is not None:
        named.mkdir(parents=True)
        yield named.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="tidegate-chaos-") as folder:
        yield Path(folder)


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Real faults on the real programs.")
    parser.add_argument("scenario", nargs="*", help="names; none runs all")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument("--short", action="store_true", help="only the short set that the tests run")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
    parser.add_argument("--random", type=int, metavar="SEED", help="faults that this seed draws, instead of scenarios")
    parser.add_argument("--rounds", type=int, default=1, metavar="N", help="with --random: so many seeds from this one")
    parser.add_argument("--processes", type=int, default=1, help="with --random: of each edge and each scheduler")
    parser.add_argument("--folder", type=Path, help="a new folder for the stand; it stays, with logs and records")
    told = parser.parse_args()
    chosen = list(SHORT if told.short else SCENARIOS)
    with_ray = not told.short and (not told.scenario or ray_head.NAME in told.scenario)
    if told.list:
        for name, about in ((ray_head.NAME, ray_head.ABOUT), *((one.name, one.about) for one in SCENARIOS)):
            print(f"{name:<18} {about}")
        return 0
    if told.scenario:
        by_name = {scenario.name: scenario for scenario in SCENARIOS}
        unknown = [name for name in told.scenario if name not in by_name and name != ray_head.NAME]
        if unknown:
            parser.error(f"no scenario is named {', '.join(unknown)}")
        chosen = [by_name[name] for name in told.scenario if name in by_name]
    results: list[Result] = []
    if told.random is not None:
        with _folder(told.folder) as folder:
            seeds = range(told.random, told.random + told.rounds)
            results += asyncio.run(run_random(seeds, folder, told.processes))
    elif chosen:
        with _folder(told.folder) as folder:
            results += asyncio.run(run_all(chosen, folder))
    if with_ray and told.random is None:
        # Short, for Ray keeps sockets below it.
        with tempfile.TemporaryDirectory(prefix="tgc-") as folder:
            results.append(asyncio.run(ray_head.RayHead(Path(folder)).run()))
    print(table(results))
    if told.json is not None:
        told.json.write_text(json.dumps([result.to_json() for result in results], indent=2), encoding="utf-8")
    failed = [result.name for result in results if not result.passed]
    print(f"chaos: {len(results)} scenarios, {'all passed' if not failed else 'failed: ' + ', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
