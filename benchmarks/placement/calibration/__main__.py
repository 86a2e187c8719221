"""`python -m benchmarks.placement.calibration`: is the replica model of a replay true, and what the edge predicts?

    python -m benchmarks.placement.calibration [engine] [published] [live] [--json FILE] [--write]

*engine*: probes of the embedded engine on SmolLM2, the fit of the replica model, and a mixed load that is answered by
the engine in real time and by the simulator. *published*: figures that others measured beside what the model makes of
them. *live*: what the edge predicts against what a client measures, through edge, intake and llama.cpp. All by default.
Needs the prepared model (`make setup`). About eight minutes on two cores; other work on the machine shows, and is told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

import uvloop

from benchmarks.client import AnswerError
from benchmarks.figures import machine
from benchmarks.placement.calibration import live, page
from benchmarks.placement.calibration.fit import (
    Fitted,
    compared,
    core_share,
    fitted,
    medians,
    residuals,
    slowed,
)
from benchmarks.placement.calibration.simulated import answers, capacity_per_s, drawn
from benchmarks.stand import StandError
from orchestrator.cli.processes import ProcessFailure
from orchestrator.cli.up import UpError
from orchestrator.placement.replay.world import Gpu
from scheduler.pools.engine.process import ENVIRONMENT
from scheduler.pools.prepare import MODEL_NAME, ModelUnavailableError, default_cache, gguf_path, prepare

# Read by torch when it is loaded, so before the engine's module is.
os.environ.update(ENVIRONMENT)

from benchmarks.placement.calibration import engine
from scheduler.pools.engine.batch import PREFILL_CHUNK_TOKENS

PARTS = ("engine", "published", "live")
FORMAT_VERSION = 1
SEED = 20261125
LOADS = (0.3, 0.6, 0.9)
PROMPT_TOKENS = (48, 1_000)
OUTPUT_TOKENS = (8, 64)
SHAPES = 400
"""Requests of which the capacity is reckoned."""
REQUESTS_MIN = 8
EVERY = "every stretch"
LOADED = "stretches with a stream"
WALL, OWN = "wall", "own"


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


def measured_engine(repeats: int, seconds: float) -> tuple[list[page.Table], dict[str, Any]]:
    """Probe the engine, fit, replay. Raises EngineTroubleError, ModelUnavailableError and what the engine raises."""
    model_dir = prepare(default_cache(), say)
    say("probing the embedded engine")
    with engine.running(model_dir, MODEL_NAME) as bench:
        samples = medians(engine.probed(bench, repeats, say))
        share = core_share(bench.recorder.ticks)
        say(f"probed at {share:.2f} of a core")
        fits = {
            EVERY: fitted(samples),
            LOADED: fitted([sample for sample in samples if sample.stream_steps]),
        }
        gpus = {name: _gpu(model) for name, model in fits.items()}
        tables = page.fit_tables({name: (model, residuals(model, samples)) for name, model in fits.items()})
        say("\n" + page.rendered(tables))
        rows, runs = _replays(bench, gpus, seconds)
    replays = page.replay_tables(rows)
    say("\n" + page.rendered(replays))
    found = {
        "samples": [asdict(sample) for sample in samples],
        "share_while_probing": share,
        "fits": {name: asdict(model) for name, model in fits.items()},
        "replays": runs,
    }
    return [*tables, *replays], found


def _gpu(model: Fitted) -> Gpu:
    return model.gpu(PREFILL_CHUNK_TOKENS, engine.SLOTS, engine.SLOTS * engine.CONTEXT_TOKENS)


def _replays(bench: engine.Bench, gpus: dict[str, Gpu], seconds: float) -> tuple[list[page.Row], list[dict[str, Any]]]:
    """Answer a mixed load at each rate, and predict it by each fit."""
    shapes = drawn(Random(SEED), SHAPES, 1.0, PROMPT_TOKENS, OUTPUT_TOKENS)
    capacity = capacity_per_s(gpus[LOADED], shapes)
    say(f"capacity: {capacity:.2f} requests/s")
    rows, runs = [], []
    for number, load in enumerate(LOADS):
        count = max(REQUESTS_MIN, round(seconds / len(LOADS) * load * capacity))
        asks = drawn(Random(SEED + number), count, load * capacity, PROMPT_TOKENS, OUTPUT_TOKENS)
        say(f"  load {load}: {count} requests in about {asks[-1].at_us / 1e6:.0f} s")
        run = engine.played(bench, asks)
        rows += _rows(load, run, gpus)
        runs.append({"load": load, "share": run.share, "own": asdict(run.own), "wall": asdict(run.wall)})
    return rows, runs


def _rows(load: float, run: engine.Replayed, gpus: dict[str, Gpu]) -> list[page.Row]:
    cases = [(OWN, name, run.own, gpu) for name, gpu in gpus.items()]
    cases += [(WALL, name, run.wall, slowed(gpu, run.share)) for name, gpu in gpus.items()]
    rows = []
    for clock, name, seen, gpu in cases:
        predicted = answers(gpu, seen.asks, engine.WAITING_MAX)
        first = compared([one.first_us / 1e6 for one in predicted], [one.first_us / 1e6 for one in seen.answers])
        whole = compared([one.end_us / 1e6 for one in predicted], [one.end_us / 1e6 for one in seen.answers])
        rows.append(page.Row(load, clock, name, run.share, first, whole))
    return rows


def measured_live() -> tuple[list[page.Table], dict[str, Any]]:
    """Ask the running system. Raises what the stand and the client raise, LiveError and ModelUnavailableError."""
    say("starting the stand: etcd, control, engines, scheduler, edge")
    lived = uvloop.run(live.measured(gguf_path(), SEED, say))
    table = page.live_table(live.learned(lived))
    say("\n" + page.rendered([table]))
    return [table], {"requests": [asdict(one) for one in lived]}


def measured(parts: Sequence[str], repeats: int, seconds: float) -> tuple[list[page.Table], dict[str, Any]]:
    """Measure the named parts; return their tables, and everything as JSON holds it."""
    begun_s = time.monotonic()
    loads = {"at the start": machine()["load_average_1min"]}
    tables: list[page.Table] = []
    result: dict[str, Any] = {"version": FORMAT_VERSION, "machine": machine()}
    if "engine" in parts:
        found, result["engine"] = measured_engine(repeats, seconds)
        tables += found
        loads["after the engine"] = machine()["load_average_1min"]
    if "published" in parts:
        table = page.published_table()
        say("\n" + page.rendered([table]))
        tables.append(table)
        result["published"] = [list(row) for row in table.rows]
    if "live" in parts:
        found, result["live"] = measured_live()
        tables += found
        loads["after the live part"] = machine()["load_average_1min"]
    result["load_averages_1min"] = loads
    result["took_s"] = round(time.monotonic() - begun_s)
    return tables, result


def main() -> int:
    """Run the command line; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.placement.calibration",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}; all by default")
    parser.add_argument("--repeats", type=int, default=3, help="of each probe")
    parser.add_argument(
        "--seconds", type=float, default=210, help="of arrivals, over all loads, by the engine's own clock"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--write", action="store_true", help=f"write the tables into docs/{page.PAGE.name}")
    options = parser.parse_args()
    parts = options.parts or list(PARTS)
    if not set(parts) <= set(PARTS) or (options.write and set(parts) != set(PARTS)):
        parser.error(f"expected parts of {', '.join(PARTS)}, and all of them with --write")
    try:
        tables, result = measured(parts, options.repeats, options.seconds)
    except (
        *(engine.EngineTroubleError, live.LiveError, AnswerError, StandError, ProcessFailure, UpError),
        *(ModelUnavailableError, OSError),
    ) as failure:
        sys.stderr.write(f"calibration: {failure}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.stderr.write("calibration: stopped\n")
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if options.write:
        print(f"written: {page.written(page.told(page.preface(result), tables))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
