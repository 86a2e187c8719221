"""A flame graph of one program under the load of the benchmark, by py-spy in an environment of its own."""

from __future__ import annotations

import asyncio
from pathlib import Path

from benchmarks.path import wrk
from benchmarks.path.ask import body_of
from benchmarks.path.rivals import installed
from benchmarks.path.rounds import MANY, STREAM, Load
from benchmarks.path.staged import general
from benchmarks.path.systems import SCALE, NotMeasured
from benchmarks.stand import Stand

PY_SPY = "py-spy==0.4.3"
PROGRAMS = {"edge": "edge", "intake": "scheduler"}
"""By the name that is asked for: the process of the stand."""
LOADS = {"short": MANY, "stream": STREAM}
RATE_HZ = 200
SECONDS_MIN = 10
WARM_S = 1


async def profiled(folder: Path, environments: Path, program: str, load: Load, seconds: int, out: Path) -> None:
    """Load Tidegate and write what `program` does meanwhile: a flame graph for `.svg`, raw stacks for anything else.

    Raises NotMeasured, StandError, ProcessFailure, WrkError.
    """
    environment = await asyncio.to_thread(installed, PY_SPY, environments)
    stand = Stand(folder / "stand", None, SCALE)
    try:
        await stand.start()
        system = general(stand)
        ask = system.ask(body_of(system.model, stream=load.stream, tokens=load.tokens))
        await wrk.run(ask, folder, load.connections, WARM_S)
        command = [str(environment / "bin" / "py-spy"), "record", "--nonblocking", "--rate", str(RATE_HZ)]
        command += ["--duration", str(seconds), "--pid", str(stand.process(PROGRAMS[program]).pid)]
        command += ["--format", "flamegraph" if out.suffix == ".svg" else "raw", "--output", str(out)]
        spy = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
        found = await wrk.run(ask, folder, load.connections, seconds + WARM_S)
        _, said = await spy.communicate()
        if spy.returncode:
            raise NotMeasured(f"py-spy could not look: {said.decode('utf-8', 'replace')[-300:]}")
    finally:
        await stand.stop()
    print(f"{program} under {load.title}, {found.per_s:,.0f} requests/s: {out}")
