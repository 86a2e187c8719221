"""Runs one command and sees to it that nothing of it outlives the one who asked for it.

``python -m orchestrator.cli.warden [--grace-ms N] [--orphan-grace-ms N] -- COMMAND ...``

Standard input is a pipe whose other end the parent keeps open and never writes to. The end of that pipe means that the
parent is dead, however it died: no signal handler, no agreement with the parent and no process group is needed.

* End of input: SIGTERM to the command, the orphan grace, then SIGKILL to everything below.
* SIGTERM, SIGINT: passed on, the grace, then SIGKILL to everything below. Each further one is passed on as well.
* SIGUSR1: SIGKILL to the command.
* The command ends: SIGKILL to everything that it left behind.

The exit status is the command's own, or 128 + n when signal n ended it; 127 when it cannot be started. The warden has a
session of its own, so a terminal's Ctrl-C does not reach it or the command. It adopts orphans (Linux child subreaper),
so a descendant that changes session and ignores SIGTERM is still found and killed. Should the warden itself be killed,
the command is killed by the kernel; its descendants are then beyond reach.

This file is started by its path with ``python -I``, so it imports nothing of Tidegate.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import psutil

DEFAULT_GRACE_MS = 8_000
DEFAULT_ORPHAN_GRACE_MS = 3_000
SWEEP_LIMIT_S = 10.0
"""A process in uninterruptible sleep cannot be killed; the warden gives up on it after this long and says so."""

EXIT_CANNOT_START = 127
EXIT_SIGNAL_BASE = 128

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True, slots=True)
class Charge:
    """The command and how long it may take to end by itself after it was asked."""

    command: tuple[str, ...]
    grace_ms: int
    orphan_grace_ms: int


def _control_process(option: int, value: int) -> None:
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


def _own_session() -> None:
    # A process that already leads its group cannot make a session; whoever started it so has separated it already.
    with contextlib.suppress(PermissionError):
        os.setsid()


class _Command:
    """The running command. All ended children are collected here, so the status of the command is never lost."""

    def __init__(self, command: Sequence[str]) -> None:
        def die_with_warden() -> None:
            _control_process(PR_SET_PDEATHSIG, signal.SIGKILL)

        # One thread and no gRPC in this process, so a function between fork and exec is safe.
        self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, preexec_fn=die_with_warden)
        self._pid = self._process.pid
        self.status: int | None = None

    def collect(self) -> None:
        """Takes the exit status of every ended child, own or adopted."""
        with contextlib.suppress(ChildProcessError):
            while True:
                pid, wait_status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    return
                if pid == self._pid:
                    code = os.waitstatus_to_exitcode(wait_status)
                    self._process.returncode = code
                    self.status = code if code >= 0 else EXIT_SIGNAL_BASE - code

    def send(self, signum: int) -> None:
        """Signals the command, unless its exit status was taken: the number may be another process's by then."""
        if self.status is None:
            os.kill(self._pid, signum)


def kill_descendants(collect: Callable[[], None], limit_s: float) -> list[int]:
    """Kills every process below this one until none is left, collecting the dead; returns those that would not die.

    Each round walks the tree anew: a process that forked meanwhile is found in the next one, as an orphan or below its
    parent.
    """
    me = psutil.Process()
    end = time.monotonic() + limit_s
    while True:
        collect()
        remaining = me.children(recursive=True)
        if not remaining or time.monotonic() > end:
            return [process.pid for process in remaining]
        for process in remaining:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(0.01)


def _wake_on_signals() -> int:
    """Makes signals readable: returns a descriptor that yields one byte, the signal's number, per signal."""
    read_end, write_end = os.pipe()
    os.set_blocking(read_end, False)
    os.set_blocking(write_end, False)
    signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
    for signum in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(signum, lambda _signum, _frame: None)
    return read_end


def _watch(command: _Command, charge: Charge, signals: int) -> None:
    """Returns when the command has ended or its grace is over."""
    stdin = sys.stdin.fileno()
    poll = select.poll()
    poll.register(signals, select.POLLIN)
    poll.register(stdin, select.POLLIN | select.POLLHUP)
    deadline: float | None = None
    command.collect()
    while command.status is None:
        wait_ms = None if deadline is None else max(0.0, deadline - time.monotonic()) * 1000
        ready = {descriptor for descriptor, _ in poll.poll(wait_ms)}
        if deadline is not None and time.monotonic() >= deadline:
            return
        if signals in ready:
            for signum in os.read(signals, 512):
                if signum in (signal.SIGTERM, signal.SIGINT):
                    command.send(signum)
                    deadline = deadline or time.monotonic() + charge.grace_ms / 1000
                elif signum == signal.SIGUSR1:
                    command.send(signal.SIGKILL)
        if stdin in ready and os.read(stdin, 4096) == b"":
            poll.unregister(stdin)
            command.send(signal.SIGTERM)
            orphan_deadline = time.monotonic() + charge.orphan_grace_ms / 1000
            deadline = orphan_deadline if deadline is None else min(deadline, orphan_deadline)
        command.collect()


def guard(charge: Charge) -> int:
    """Runs the command to its end and returns the exit status for the warden; nothing is below it any more then."""
    _own_session()
    _control_process(PR_SET_CHILD_SUBREAPER, 1)
    signals = _wake_on_signals()
    try:
        command = _Command(charge.command)
    except OSError as error:
        sys.stderr.write(f"warden: cannot start {charge.command[0]}: {error.strerror}\n")
        return EXIT_CANNOT_START
    _watch(command, charge, signals)
    left = kill_descendants(command.collect, SWEEP_LIMIT_S)
    if left:
        sys.stderr.write(f"warden: cannot kill {left}\n")
    return EXIT_SIGNAL_BASE + signal.SIGKILL if command.status is None else command.status


def parse_arguments(arguments: Sequence[str]) -> Charge:
    """Reads the command line.

    Raises:
        SystemExit: with status 2, when it is not as documented.
    """
    parser = argparse.ArgumentParser(prog="orchestrator.cli.warden", description="Runs one command, leaves no orphan.")
    parser.add_argument("--grace-ms", type=int, default=DEFAULT_GRACE_MS, help="after SIGTERM or SIGINT")
    parser.add_argument("--orphan-grace-ms", type=int, default=DEFAULT_ORPHAN_GRACE_MS, help="after the parent's death")
    parser.add_argument("command", nargs="+", help="after --: the command and its arguments")
    parsed = parser.parse_args(arguments)
    return Charge(tuple(parsed.command), parsed.grace_ms, parsed.orphan_grace_ms)


if __name__ == "__main__":
    sys.exit(guard(parse_arguments(sys.argv[1:])))
