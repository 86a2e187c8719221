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
STAT_BYTES = 4096
PARENT, BEGUN = 1, 19
"""Where the parent's id and the start in clock ticks stand in /proc/PID/stat, counted from behind the name."""
THIS = psutil.Process()
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
    left = held(run, before.programs).counts - before.counts
    if left:
        # What only waits for the collector closes itself, and says so with a ResourceWarning.
        gc.collect()
        left = held(run, before.programs).counts - before.counts
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = held(run, before.programs).counts - before.counts
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
            target = os.readlink(f"/proc/self/fd/{name}")
            if target.startswith("pipe:"):
                found.append("pipe")
            elif not NOT_FILES.match(target):
                found.append(f"file {target}")
    return found


def _sockets() -> list[str]:
    found = [f"socket {one.laddr}" for one in THIS.net_connections("unix") if one.laddr]
    connections = THIS.net_connections("inet")
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
    named: list[tuple[str, psutil.Process]] = []
    for pid in _pids(run):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                # It has ended, and only its parent can take it off the list: ours to do, or that of another.
                if process.ppid() == THIS.pid:
                    named.append((f"program {process.name()}, ended, that nobody waited for", process))
                continue
            words = " ".join(process.cmdline())
            if not any(mark in words for mark in LONG_LIVED):
                named.append((f"program {words}", process))
    return named


def _pids(run: str) -> list[int]:
    """The processes below this one, and those that bear the run's mark.

    This is asked twice for each test, so an older process, which cannot be of this run, has its environment not read.
    """
    own = THIS.pid
    parents: dict[int, int] = {}
    begun: dict[int, int] = {}
    for name in filter(str.isdigit, os.listdir("/proc")):
        with contextlib.suppress(OSError):
            fields = _stat(name)
            parents[int(name)], begun[int(name)] = int(fields[PARENT]), int(fields[BEGUN])
    younger = [pid for pid, ticks in begun.items() if ticks >= begun[own] and pid != own]
    marker = f"{RUN_VARIABLE}={run}".encode()
    return [pid for pid in younger if _descends(pid, own, parents) or marker in _environment(pid)]


def _descends(pid: int, elder: int, parents: dict[int, int]) -> bool:
    """Whether a process is below another. A parent that ended meanwhile ends the line."""
    seen = {pid}
    while (pid := parents.get(pid, 0)) not in seen and pid:
        if pid == elder:
            return True
        seen.add(pid)
    return False


def _environment(pid: int) -> list[bytes]:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return []


def _stat(pid: str) -> list[bytes]:
    """What the kernel says of a process, from behind its name, which may hold anything."""
    file = os.open(f"/proc/{pid}/stat", os.O_RDONLY)
    try:
        return os.read(file, STAT_BYTES).rpartition(b")")[2].split()
    finally:
        os.close(file)
