"""The frame of a program: its arguments, its effective configuration on the screen, and its exit status."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import resource
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import TypeVar

import msgspec
import uvloop

from orchestrator.config.settings import ALLOWED, load_settings, render_effective, run_program
from orchestrator.spool.records import SpoolError
from orchestrator.telemetry.logs import LogSink

EXIT_CANNOT_RUN = 1

T = TypeVar("T", bound=msgspec.Struct)


def program(name: str, type_: type[T], prefix: str, run: Callable[[T, Path], int]) -> int:
    """Run a program: read its one file and the environment, print what holds, run, and return the exit status.

    Status 2 and one sentence on bad configuration. SIGHUP re-reads nothing: a program is restarted to change it.
    """

    def main() -> int:
        parser = argparse.ArgumentParser(prog=name)
        parser.add_argument("--config", required=True, type=Path, help="the one YAML file of this program")
        parser.add_argument("--check", action="store_true", help="print the effective configuration and stop")
        arguments = parser.parse_args()
        settings = load_settings(type_, arguments.config, _environment(), prefix)
        sys.stdout.write(f"# {name}: effective configuration\n{render_effective(settings)}\n")
        sys.stdout.flush()
        if arguments.check:
            return 0
        _raise_descriptors()
        # gRPC reads it when it is imported, which edges and schedulers do in `run`.
        os.environ.setdefault(*POLLING)
        with LogSink(sys.stderr, name):
            try:
                return run(settings, arguments.config)
            except (OSError, SpoolError) as failure:
                sys.stderr.write(f"{name} cannot run: {failure}\n")
                return EXIT_CANNOT_RUN

    return run_program(main)


POLLING = ("GRPC_EXPERIMENTS", "-event_engine_client,-event_engine_listener")
"""Has the thread of gRPC that waits for completions poll the sockets itself. Left alone, each message passes through
more threads: for a request that comes alone a tenth of its processor time (docs/performance.md)."""

GC_THRESHOLD = (20_000, 50, 50)
"""A request makes hundreds of objects and no cycles. At Python's own 700 an eighth of the processor time looks for
cycles among what will be gone a moment later."""


def run_until_signal(work: Callable[[asyncio.Event], Awaitable[None]]) -> int:
    """Run `work` in a uvloop; SIGTERM and SIGINT set its event, SIGHUP does nothing."""

    async def main() -> None:
        gc.set_threshold(*GC_THRESHOLD)
        # What the imports made stays: looking through all of it takes some 50 ms, in which no token moves.
        gc.collect()
        gc.freeze()
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        loop.add_signal_handler(signal.SIGHUP, lambda: None)
        await work(stop)

    uvloop.run(main())
    return 0


def environment_without(prefix: str) -> dict[str, str]:
    """Return the environment for a process whose settings are all in its file: no variable overrides them again.

    `prefix` is that of the program's variables. What says how much is logged is left in.
    """
    kept = {prefix + suffix for suffix in ALLOWED}
    return {name: value for name, value in os.environ.items() if name in kept or not name.startswith(prefix)}


def _raise_descriptors() -> None:
    """Let this program have as many files and connections open as the system allows it.

    The soft limit is often 1,024 for the sake of programs that use `select`; none of ours does.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # The system may have its reasons to refuse: the limit stays then, and whoever needs more of them says so.
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _environment() -> Mapping[str, str]:
    return os.environ
