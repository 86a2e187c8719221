"""What a test holds of the machine, so that what it leaves behind can be told.

Everything is counted by a key that says what it is for, not which one it is: a fixture of the session may start its
program anew in the middle of a test. What libraries keep for the life of the process (event polls,
unnamed socket pairs, daemon threads) is not counted.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import threading
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import psutil

RUN_VARIABLE = "TIDEGATE_TEST_RUN"
"""In the environment of every program that a run of the tests starts, so that orphans are found too."""
POLL_S = 0.02
NOT_FILES = re.compile(r"^(anon_inode:|socket:|pipe:|/dev/|/proc/|/sys/|/memfd:)")
LONG_LIVED = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")


@dataclass(frozen=True, slots=True)
class Held:
    """What is held at one moment: how much of each thing, and which programs live."""

    counts: Counter[str]
    programs: frozenset[psutil.Process]


def held(run: str, elders: frozenset[psutil.Process] = frozenset()) -> Held:
    """Count what this process and the programs that it started hold now.

    `run` is the value of RUN_VARIABLE. What an elder starts anew is its own affair and not counted.
    """
    programs = [(key, one) for key, one in _programs(run) if one in elders or not _is_below(one, elders)]
    counts = Counter([*_threads(), *_files(), *_sockets(), *(key for key, _ in programs)])
    return Held(counts, frozenset(one for _, one in programs))


def left_behind(run: str, before: Held, grace_s: float) -> Counter[str]:
    """What is held beyond `before`, after up to `grace_s` in which it may go."""
    deadline = time.monotonic() + grace_s
    if held(run, before.programs).counts - before.counts:
        # What only waits for the collector closes itself, and says so with a ResourceWarning.
        gc.collect()
    while (left := held(run, before.programs).counts - before.counts) and time.monotonic() < deadline:
        time.sleep(POLL_S)
    return left


def end_programs(run: str, left: Counter[str]) -> None:
    """Kill the programs among what was left, so that they do not spoil the tests that follow."""
    for key, process in _programs(run):
        if key in left:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()


def _is_below(process: psutil.Process, elders: frozenset[psutil.Process]) -> bool:
    try:
        return bool(elders) and not elders.isdisjoint(process.parents())
    except psutil.NoSuchProcess:
        return False


def _threads() -> list[str]:
    return [f"thread {thread.name}" for thread in threading.enumerate() if not thread.daemon]


def _files() -> list[str]:
    found: list[str] = []
    for name in os.listdir("/proc/self/fd"):
        # The listing itself held one of these.
        with contextlib.suppress(FileNotFoundError):
            target = str(Path("/proc/self/fd", name).readlink())
            if target.startswith("pipe:"):
                found.append("pipe")
            elif not NOT_FILES.match(target):
                found.append(f"file {target}")
    return found


def _sockets() -> list[str]:
    process = psutil.Process()
    found = [f"socket {one.laddr}" for one in process.net_connections("unix") if one.laddr]
    connections = process.net_connections("inet")
    ports = {one.laddr.port for one in connections if one.status == psutil.CONN_LISTEN}
    for one in connections:
        # The stubs of psutil do not know that a socket without a peer has an empty address.
        peer: tuple[object, ...] = one.raddr
        if not peer:
            found.append(f"socket at {one.laddr}")
        elif one.laddr.port in ports:
            found.append(f"connection to our port {one.laddr.port}")
        else:
            found.append(f"connection to {one.raddr.ip}:{one.raddr.port}")
    return found


def _programs(run: str) -> list[tuple[str, psutil.Process]]:
    """The programs that live and were started by this run, or by what it started."""
    own = psutil.Process()
    found = {process.pid: process for process in own.children(recursive=True)}
    marker = f"{RUN_VARIABLE}={run}".encode()
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in found and int(name) != own.pid:
            with contextlib.suppress(OSError, psutil.NoSuchProcess):
                if marker in Path("/proc", name, "environ").read_bytes().split(b"\0"):
                    found[int(name)] = psutil.Process(int(name))
    named: list[tuple[str, psutil.Process]] = []
    for process in found.values():
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() == psutil.STATUS_ZOMBIE:
                # It has ended, and only its parent can take it off the list: ours to do, or that of another.
                if process.ppid() == own.pid:
                    named.append((f"program {process.name()}, ended, that nobody waited for", process))
                continue
            words = " ".join(process.cmdline())
            if not any(mark in words for mark in LONG_LIVED):
                named.append((f"program {words}", process))
    return named
