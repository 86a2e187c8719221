"""`make chaos`: runs scenarios on one stand, prints what became of every request, and exits 1 where one was lost.

    python -m tests.chaos [SCENARIO ...] [--short] [--list] [--json FILE]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.chaos import ray_head
from tests.chaos.evidence import Auditor
from tests.chaos.report import Result, table
from tests.chaos.scenario import Scenario, run
from tests.chaos.scenarios import SCENARIOS, SHORT
from tests.chaos.stand import Stand


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


def main() -> int:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description="Real faults on the real programs.")
    parser.add_argument("scenario", nargs="*", help="names; none runs all")
    parser.add_argument("--list", action="store_true", help="name the scenarios and stop")
    parser.add_argument("--short", action="store_true", help="only the short set that the tests run")
    parser.add_argument("--json", type=Path, help="write the results to this file as well")
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
    if chosen:
        with tempfile.TemporaryDirectory(prefix="tidegate-chaos-") as folder:
            results += asyncio.run(run_all(chosen, Path(folder)))
    if with_ray:
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
