"""`python -m benchmarks`: measures on this machine, prints tables, and writes everything as JSON when asked.

    python -m benchmarks [all]      everything, one to three minutes on two cores
    python -m benchmarks overhead   what the way through adds, against the same engine called directly
    python -m benchmarks agent      memory and start time of the edge
    python -m benchmarks decision   processor time of a decision, stage by stage
    python -m benchmarks law        verdicts compiled and interpreted, labels, compiling, and Cedar on the same work
    python -m benchmarks placement-speed   decisions among up to 10,000 pools, with memory and a change of the bundle
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

from benchmarks import agent, decision, law, overhead, placement_speed
from benchmarks.client import AnswerError
from benchmarks.figures import machine
from benchmarks.stand import Stand, StandError
from orchestrator.cli.processes import ProcessFailure
from orchestrator.cli.up import UpError
from scheduler.pools.prepare import ModelUnavailableError, gguf_path

PARTS = ("overhead", "agent", "decision", "law", "placement-speed")
FORMAT_VERSION = 1
IDLE_S = 3.0
"""How long the edge rests before its idle memory is read."""

Result = dict[str, object]


def say(line: str) -> None:
    """Print a line at once."""
    print(line, flush=True)


async def measure(parts: frozenset[str], rounds: int, repeats: int, gguf: Path | None) -> Result:
    """Measure the named parts and return everything. Raises StandError, AnswerError and ProcessFailure."""
    begun_s = time.monotonic()
    before = machine()
    say(_described(before))
    result: Result = {"version": FORMAT_VERSION, "rounds": rounds, "repeats": repeats, "machine": before}
    if "decision" in parts:
        result["decision"] = found = decision.measure()
        say("\n" + decision.rendered(found))
    if "law" in parts:
        result["law"] = judged = law.measure()
        say("\n" + law.rendered(judged))
    if "placement-speed" in parts:
        result["placement_speed"] = fast = placement_speed.measure()
        say("\n" + placement_speed.rendered(fast))
    if parts & {"overhead", "agent"}:
        with tempfile.TemporaryDirectory(prefix="tidegate-bench-", ignore_cleanup_errors=True) as folder:
            stand = Stand(Path(folder), gguf)
            try:
                result |= await _on_stand(stand, parts, rounds, repeats)
            finally:
                await stand.stop()
    result["load_average_1min_at_end"] = machine()["load_average_1min"]
    result["took_s"] = round(time.monotonic() - begun_s, 1)
    say(f"took {result['took_s']} s; load average at the end {result['load_average_1min_at_end']}")
    return result


async def _on_stand(stand: Stand, parts: frozenset[str], rounds: int, repeats: int) -> Result:
    result: Result = {}
    loaded = "overhead" in parts
    say("starting the stand: etcd, control, " + ("engines, scheduler, edge" if loaded else "edge"))
    await stand.start(serving=loaded)
    await asyncio.sleep(IDLE_S)
    memories = [("idle, with control", agent.memory(stand.process("edge")))]
    if loaded:
        result["overhead"] = measured = []
        for case in overhead.cases(rounds, llama=len(stand.engines) > 1):
            times = await overhead.measure(stand, case, say)
            figures = overhead.summary(times)
            measured.append({"case": case.title, "paths": figures, "answers_us": overhead.raw(times)})
            say("\n" + overhead.rendered(case, figures))
        say(overhead.NOTE)
        memories.append(("after the run", agent.memory(stand.process("edge"))))
    if "agent" in parts:
        say(f"stopping the stand; starting the edge {repeats + 1} times without control")
        await stand.stop()
        starts = await agent.start_times(stand, repeats)
        memories.append(("idle, without control", starts.memory))
        result["agent"] = {"memory": dict(memories), **starts.to_json()}
        say("\n" + agent.rendered(starts, memories))
    return result


def _described(facts: dict[str, object]) -> str:
    packages = facts["packages"]
    versions = ", ".join(f"{name} {found}" for name, found in packages.items()) if isinstance(packages, dict) else ""
    return (
        f"machine: {facts['cores']} cores, {facts['processor']}, {facts['memory']}, Linux {facts['kernel']}\n"
        f"Python {facts['python']}, {versions}\n"
        f"load average before the run: {facts['load_average_1min']}"
    )


def main() -> int:
    """Run the command line; 1 when something could not be measured."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("part", nargs="?", default="all", choices=("all", *PARTS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything here")
    parser.add_argument("--rounds", type=_count(2, 100_000), default=500, help="paired rounds, one request at a time")
    parser.add_argument("--repeats", type=_count(1, 1_000), default=5, help="starts of the edge")
    parser.add_argument("--without-llama", action="store_true", help="leave the engine with a model out")
    options = parser.parse_args()
    parts = frozenset(PARTS if options.part == "all" else [options.part])
    try:
        gguf = None if options.without_llama or "overhead" not in parts else gguf_path()
        result = uvloop.run(_until_told(lambda: measure(parts, options.rounds, options.repeats, gguf)))
    except (StandError, AnswerError, ProcessFailure, UpError, ModelUnavailableError, OSError) as failure:
        sys.stderr.write(f"benchmarks: {failure}\n")
        return 1
    except (asyncio.CancelledError, KeyboardInterrupt):
        sys.stderr.write("benchmarks: stopped\n")
        return 1
    if options.json is not None:
        options.json.write_text(json.dumps(result, indent=1), encoding="utf-8")
        say(f"written to {options.json}")
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


def _count(least: int, most: int) -> Callable[[str], int]:
    def count(text: str) -> int:
        value = int(text)
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least} to {most}")
        return value

    return count


if __name__ == "__main__":
    sys.exit(main())
