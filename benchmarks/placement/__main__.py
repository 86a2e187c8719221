"""`python -m benchmarks.placement`: Tidegate's placement against the published routers, in simulation.

    python -m benchmarks.placement           a stated subset, a few minutes on two cores
    python -m benchmarks.placement --full    everything: its results are committed
    python -m benchmarks.placement --fresh 10 --only-fresh   fleets that nobody has seen, drawn now

Two studies. *Fleets*: the committed fleets, each once at every load, with Azure's conversations. *Workloads*: one
fleet, four workloads, several seeds at every load, the rivals as published and confined. Tables go to the screen, to a
JSON file with its digest, and with --write into docs/placement.md and its plots.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import sys
import time
from collections.abc import Mapping, Sequence
from multiprocessing import Pool
from pathlib import Path
from secrets import randbelow
from typing import Any

from benchmarks.figures import machine
from benchmarks.placement.fleets import FLEET_SEEDS
from benchmarks.placement.report import written
from benchmarks.placement.study import WORKLOADS, Cell, Found, study
from benchmarks.placement.summary import own, summary_to_json
from benchmarks.placement.tables import rendered

RESULTS = Path(__file__).parent / "results.json.gz"
FORMAT_VERSION = 1
LOADS = (0.3, 0.5, 0.7, 0.9, 1.2)
SUBSET_LOADS = (0.3, 0.7)
REQUESTS = 2_500
SUBSET_FLEETS = 8
WORKLOAD_FLEET = 1000
SEEDS = 10
SUBSET_SEEDS = 2
FRESH_REQUESTS = 1_500
FRESH_LOAD = 0.6
FRESH_FROM = 1_000_000


def fleet_cells(full: bool) -> list[Cell]:
    """Return the cells of the study of fleets."""
    seeds = FLEET_SEEDS if full else FLEET_SEEDS[:SUBSET_FLEETS]
    return [Cell(seed, "azure", load, seed, REQUESTS) for load in _loads(full) for seed in seeds]


def workload_cells(full: bool) -> list[Cell]:
    """Return the cells of the study of workloads."""
    return [
        Cell(WORKLOAD_FLEET, workload, load, seed, REQUESTS, published=True)
        for workload in WORKLOADS
        for load in _loads(full)
        for seed in range(1, 1 + (SEEDS if full else SUBSET_SEEDS))
    ]


def fresh_cells(count: int) -> list[Cell]:
    """Return cells of fleets that nobody has seen; their seeds are drawn now."""
    seeds = [FRESH_FROM + randbelow(1 << 40) for _ in range(count)]
    return [Cell(seed, "azure", FRESH_LOAD, seed, FRESH_REQUESTS, bounded=False, compared=False) for seed in seeds]


def _loads(full: bool) -> tuple[float, ...]:
    return LOADS if full else SUBSET_LOADS


def ran(cells: Sequence[Cell], jobs: int, title: str) -> list[Found]:
    """Run cells, a process for each job, and say how far it is."""
    found: list[Found] = []
    begun_s = time.monotonic()
    with Pool(jobs) as pool:
        for number, one in enumerate(pool.imap(study, cells, chunksize=1), 1):
            found.append(one)
            if sys.stderr.isatty() or number % 20 == 0 or number == len(cells):
                sys.stderr.write(f"\r{title}: {number} of {len(cells)} cells, {time.monotonic() - begun_s:.0f} s")
                sys.stderr.flush()
    sys.stderr.write("\n")
    return found


def _fresh(count: int, jobs: int) -> int:
    """Run fresh fleets, and say what they came to. Returns how many of Tidegate's requests broke the law."""
    found = ran(fresh_cells(count), jobs, "fresh fleets")
    for one in found:
        mine = own(one)
        cost = f"${mine.cost_per_million:.4f} per million tokens"
        print(f"fleet {one.cell.fleet}: violations {mine.violations}, promises kept {mine.kept:.3f}, {cost}")
    return sum(own(one).violations for one in found)


def main() -> int:
    """Run the command line; 1 when Tidegate broke the law anywhere."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.placement", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--full", action="store_true", help="every committed fleet, load and seed")
    parser.add_argument("--fresh", type=int, default=0, metavar="N", help="draw N fresh fleets besides")
    parser.add_argument("--only-fresh", action="store_true")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS.name}, docs/placement.md and its plots")
    options = parser.parse_args()
    violations = _fresh(options.fresh, options.jobs) if options.fresh else 0
    if not options.only_fresh:
        result = _measured(options.full, options.jobs)
        print(rendered(result["summary"]))
        print(f"digest of the results: {result['digest']}")
        if options.json is not None:
            options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        if options.write:
            RESULTS.write_bytes(packed(result))
            for path in written(result):
                print(f"written: {path}")
        cells = result["cells"]
        violations += sum(score["violations"] for cell in cells for score in cell["scores"][:1])
    print(f"residency violations of Tidegate: {violations}")
    return 1 if violations else 0


def _measured(full: bool, jobs: int) -> dict[str, Any]:
    begun_s = time.monotonic()
    before = machine()
    fleets = ran(fleet_cells(full), jobs, "fleets")
    workloads = ran(workload_cells(full), jobs, "workloads")
    cells = [one.to_json() for one in (*fleets, *workloads)]
    return {
        "version": FORMAT_VERSION,
        "full": full,
        "machine": before,
        "took_s": round(time.monotonic() - begun_s),
        "digest": digest(cells),
        "summary": summary_to_json(fleets, workloads),
        "cells": cells,
    }


def packed(result: Mapping[str, Any]) -> bytes:
    """Return results as their file holds them: the same bytes for the same results."""
    return gzip.compress(json.dumps(result, separators=(",", ":")).encode(), mtime=0)


def unpacked(path: Path) -> dict[str, Any]:
    """Return the results that a file holds. Raises OSError."""
    found: dict[str, Any] = json.loads(gzip.decompress(path.read_bytes()))
    return found


def digest(cells: Sequence[dict[str, object]]) -> str:
    """Return the digest of what the cells came to, without how fast the machine was."""
    plain = json.loads(json.dumps(cells))
    for cell in plain:
        for score in cell["scores"]:
            del score["requests_per_s"]
    return "sha256:" + hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
