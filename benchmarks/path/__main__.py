"""`python -m benchmarks.path`: the data path beside its rivals, on this machine, in one go.

    python -m benchmarks.path                                              everything, about seven minutes on two cores
    python -m benchmarks.path --systems direct,tidegate --parts core --seconds 1 --rounds 2    a quick look

Every system serves the same request from the same engine. Rivals are installed from the package index into
environments of their own the first time; one that cannot be measured is a row that says why. Needs `wrk`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import uvloop

from benchmarks.figures import machine
from benchmarks.path import wrk
from benchmarks.path.bench import PARTS, Options, Result, measured
from benchmarks.path.profile import LOADS, PROGRAMS, SECONDS_MIN, profiled
from benchmarks.path.report import written
from benchmarks.path.rivals import ENVIRONMENTS, RIVALS
from benchmarks.path.systems import DIRECT, GENERAL, PERSONAL, NotMeasured
from benchmarks.stand import StandError
from orchestrator.cli.processes import ProcessFailure
from orchestrator.cli.up import UpError

FORMAT_VERSION = 1
ALL = (DIRECT, *(rival.name for rival in RIVALS), GENERAL, PERSONAL)


def main() -> int:
    """Run the command line; 1 when the benchmark could not run."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.path", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--systems", default=",".join(ALL), help=f"of {','.join(ALL)}")
    parser.add_argument("--seconds", type=int, default=2, help="of each run of wrk")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--parts", default=",".join(PARTS), help=f"of {','.join(PARTS)}; core always")
    parser.add_argument("--envs", type=Path, default=ENVIRONMENTS, metavar="DIR", help="environments of the rivals")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--write", action="store_true", help="write docs/performance.md and its drawing")
    parser.add_argument("--profile", choices=tuple(PROGRAMS), help="only: a flame graph of a program under load")
    parser.add_argument("--load", choices=tuple(LOADS), default="short", help="for --profile")
    parser.add_argument("--out", type=Path, metavar="FILE", help="for --profile: .svg draws, else raw stacks")
    parser.add_argument("--told", type=Path, metavar="FILE", help="measure nothing: take the figures of this JSON file")
    options = parser.parse_args()
    wanted = tuple(options.systems.split(","))
    if not set(wanted) <= set(ALL) or DIRECT not in wanted or options.seconds < 1 or options.rounds < 1:
        parser.error(f"--systems are of {', '.join(ALL)}, {DIRECT} always; --seconds and --rounds at least 1")
    parts = tuple(options.parts.split(","))
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts are of {', '.join(PARTS)}")
    if options.told is not None:
        return _kept(json.loads(options.told.read_text(encoding="utf-8")), options.json, options.write)
    try:
        wrk.installed()
        begun_s = time.monotonic()
        before = machine()
        if options.profile is not None:
            _profile(options)
            return 0
        with tempfile.TemporaryDirectory(prefix="tidegate-path-", ignore_cleanup_errors=True) as folder:
            asked = Options(wanted, options.seconds, options.rounds, parts, options.envs.resolve(), Path(folder))
            result = uvloop.run(_until_told(lambda: measured(asked)))
    except (wrk.WrkError, NotMeasured, StandError, ProcessFailure, UpError, OSError) as failure:
        sys.stderr.write(f"bench-path: {failure}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.stderr.write("bench-path: stopped\n")
        return 1
    result = {"version": FORMAT_VERSION, "machine": before, **result}
    result["load_average_1min_at_end"] = machine()["load_average_1min"]
    result["took_s"] = round(time.monotonic() - begun_s, 1)
    print(f"took {result['took_s']} s; load average {before['load_average_1min']} before, "
          f"{result['load_average_1min_at_end']} after")  # fmt: skip
    return _kept(result, options.json, options.write)


def _profile(options: argparse.Namespace) -> None:
    out = options.out or Path(f"{options.profile}-{options.load}.svg")
    seconds = max(SECONDS_MIN, options.seconds)
    with tempfile.TemporaryDirectory(prefix="tidegate-path-", ignore_cleanup_errors=True) as folder:

        async def work() -> Result:
            envs, load = options.envs.resolve(), LOADS[options.load]
            await profiled(Path(folder), envs, options.profile, load, seconds, out)
            return {}

        uvloop.run(_until_told(work))


def _kept(result: Result, file: Path | None, write: bool) -> int:
    """Write what was asked for."""
    if file is not None:
        file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    paths = [] if file is None else [file]
    for path in [*paths, *(written(result) if write else [])]:
        print(f"written: {path}")
    return 0


async def _until_told(work: Callable[[], Awaitable[Result]]) -> Result:
    """Run to the end, or until SIGTERM: then everything that was started is stopped all the same."""
    task = asyncio.ensure_future(work())
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    try:
        return await task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.gather(task, return_exceptions=True)


if __name__ == "__main__":
    sys.exit(main())
