"""Imports each module of one package alone, in a process that has none of this project loaded yet.

    python -m tests.imports.alone orchestrator

Prints one line per fault. A fork of a process that holds the packages of others, but none of ours, costs milliseconds
where a fresh interpreter costs seconds; what the module needs of ours it must import itself either way.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import gc
import importlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = frozenset({"orchestrator", "node_agent", "scheduler", "protos"})
FAULTS_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Fork:
    """A process that imports one module, and the pipe by which it tells its faults."""

    name: str
    pid: int
    pipe: int


def modules_of(package: str) -> Iterator[str]:
    """The name of every module of a package, the package first."""
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def packages_of_others(package: str) -> set[str]:
    """The modules of others that a package imports when it is loaded, not later inside a function."""
    found: set[str] = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.Import):
                found.update(alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module)
    return {name for name in found if name.partition(".")[0] not in OURS}


def state() -> dict[str, object]:
    """What an import may not change."""
    return {
        "environment": dict(os.environ),
        "handlers of signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "handlers of the root logger": list(logging.getLogger().handlers),
        "search path": list(sys.path),
        "loop policy": type(asyncio.get_event_loop_policy()),
        "threads": threading.active_count(),
        "working directory": Path.cwd(),
    }


def import_alone(name: str) -> list[str]:
    """Import one module and tell what went wrong, in a process that can be thrown away."""
    before = state()
    printed = io.StringIO()
    try:
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            importlib.import_module(name)
    except (Exception, SystemExit):  # noqa: BLE001  # outermost: of the throw-away process; every error is a finding
        return [f"{name} does not import alone: {traceback.format_exc(limit=-3)}"]
    after = state()
    faults = [f"{name} changes on import: {what}" for what in before if before[what] != after[what]]
    return [*faults, f"{name} prints on import"] if printed.getvalue() else faults


def begun(name: str) -> Fork:
    """Begin to import one module in a fork of this process."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        told = "".join(f"{fault}\n" for fault in import_alone(name))
        os.write(write, told.encode()[:FAULTS_MAX_BYTES])
        os._exit(0)
    os.close(write)
    return Fork(name, child, read)


def faults_of(fork: Fork) -> str:
    """Wait for a fork to end; returns its faults as lines."""
    with os.fdopen(fork.pipe, "rb") as pipe:
        told = pipe.read().decode(errors="replace")
    _, status = os.waitpid(fork.pid, 0)
    return told if status == 0 else f"{told}{fork.name} ended its process with status {status}\n"


def faults_of_all(names: Iterable[str]) -> str:
    """Import each module in a fork of its own, as many at once as there are processors."""
    # A fork whose collector visits what it shares with this process has to copy it: gigabytes, with torch.
    gc.collect()
    gc.freeze()
    told = ""
    forks: deque[Fork] = deque()
    for name in names:
        forks.append(begun(name))
        if len(forks) >= len(os.sched_getaffinity(0)):
            told += faults_of(forks.popleft())
    return told + "".join(map(faults_of, forks))


def main() -> int:
    """Import every module of the package on the command line; 1 when one has a fault."""
    package = sys.argv[1]
    for name in sorted(packages_of_others(package)):
        # One that is missing is told by the module that needs it.
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    loaded = sorted(OURS.intersection(sys.modules))
    told = f"{loaded} were loaded already\n" if loaded else ""
    told += faults_of_all(modules_of(package))
    sys.stdout.write(told)
    return 1 if told else 0


if __name__ == "__main__":
    raise SystemExit(main())
