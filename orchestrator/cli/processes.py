"""Named child processes of ``tidegate up``: start, wait until ready, stop in reverse order, leave none behind.

Each process runs under a warden (`orchestrator.cli.warden`) whose standard input is a pipe that this process holds.
When this process ends, by whatever cause, the kernel closes the pipe and every warden clears its own. Nothing here must
run for that: not `stop_all`, not even the interpreter's exit.

Output goes straight to ``<directory>/logs/<name>.log``, with no process in between. A log that outgrows its bound is
copied to ``<name>.log.1`` and cut in place; the few lines written between the two steps are lost.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

INHERITED_VARIABLES = ("PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "VIRTUAL_ENV")
"""All that a child gets of this process's environment; the rest its specification gives."""

DEFAULT_GRACE_MS = 8_000
DEFAULT_LOG_BYTES = 8 << 20
DEFAULT_STOP_ALL_MS = 30_000

LOG_CHECK_PERIOD_S = 2.0
TAIL_BYTES = 4096
TAIL_LINES = 20
READY_SCAN_BYTES = 256 << 10

PROBE_PERIOD_S = 0.05
PROBE_LIMIT_S = 2.0

WARDEN_MARGIN_S = 3.0
"""Beyond the grace a warden needs this long at most to clear what is left; after that it is taken for hung."""

DESTROY_LIMIT_S = 5.0

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")

Probe = Callable[[], Awaitable[bool]]
"""Tells whether a process is ready. ``False``, OSError and TimeoutError all mean: not yet."""


@dataclass(frozen=True, slots=True)
class ProcessSpec:
    """One process to run.

    ``name`` is lower-case letters, digits and ``-``. ``env`` is added to the inherited variables and wins over them.
    ``ready`` tells when others may rely on it; without it a process is ready as soon as it runs. ``grace_ms`` is how
    long it may take to end after SIGTERM.
    """

    name: str
    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: Path | None = None
    ready: Probe | None = None
    grace_ms: int = DEFAULT_GRACE_MS


@dataclass(frozen=True, slots=True)
class ProcessExit:
    """A process ended without `Supervisor.stop`. ``status`` is its exit status, or 128 + n after signal n."""

    name: str
    status: int
    log_path: Path
    last_lines: tuple[str, ...]


class SupervisorError(Exception):
    """The supervisor was used wrongly: a bad or unknown name, or a start of what runs already."""


class ProcessFailure(Exception):
    """A process did not do what was asked of it. Carries its name, the path of its log and the log's last lines."""

    def __init__(self, name: str, what: str, log_path: Path, last_lines: tuple[str, ...]) -> None:
        self.name = name
        self.log_path = log_path
        self.last_lines = last_lines
        quoted = "".join(f"\n  | {line}" for line in last_lines)
        super().__init__(f"{name} {what}; log: {log_path}{quoted}")


class ProcessEnded(ProcessFailure):
    """It ended while it was waited for. ``status`` as in `ProcessExit`."""

    def __init__(self, name: str, status: int, log_path: Path, last_lines: tuple[str, ...]) -> None:
        self.status = status
        super().__init__(name, f"ended with status {status}", log_path, last_lines)


class ProcessNotReady(ProcessFailure):
    """It runs, but was not ready within ``deadline_ms``."""

    def __init__(self, name: str, deadline_ms: int, log_path: Path, last_lines: tuple[str, ...]) -> None:
        self.deadline_ms = deadline_ms
        super().__init__(name, f"was not ready within {deadline_ms} ms", log_path, last_lines)


def child_environment(inherited: Mapping[str, str], given: Mapping[str, str]) -> dict[str, str]:
    """The environment of a child: the allowed part of ``inherited``, and ``given`` over it."""
    return {name: inherited[name] for name in INHERITED_VARIABLES if name in inherited} | dict(given)


def last_lines(path: Path) -> tuple[str, ...]:
    """The end of a log: at most 20 lines and 4 KiB; nothing when there is no log."""
    try:
        with path.open("rb") as log:
            log.seek(max(0, log.seek(0, os.SEEK_END) - TAIL_BYTES))
            text = log.read(TAIL_BYTES).decode("utf-8", "replace")
    except FileNotFoundError:
        return ()
    return tuple(text.splitlines()[-TAIL_LINES:])


def port_accepts(host: str, port: int) -> Probe:
    """Ready when a TCP connection to ``host:port`` is accepted."""

    async def probe() -> bool:
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()
        return True

    return probe


def file_filled(path: Path) -> Probe:
    """Ready when there is something in the file at ``path``."""

    def filled() -> bool:
        return path.stat().st_size > 0

    async def probe() -> bool:
        return filled()

    return probe


@dataclass(slots=True)
class _Running:
    spec: ProcessSpec
    warden: subprocess.Popen[bytes]
    pidfd: int
    ended: asyncio.Future[int]
    log_path: Path
    log_start: int
    stopping: bool = False


class Supervisor:
    """Starts and stops named processes. Used inside one event loop, as an async context manager or with `stop_all`.

    ``on_exit`` is called in the loop whenever a process ends without `stop`; it must not block. ``log_bytes`` bounds
    each log and its one predecessor, give or take what is written in two seconds.
    """

    def __init__(
        self,
        directory: Path,
        *,
        on_exit: Callable[[ProcessExit], None] | None = None,
        log_bytes: int = DEFAULT_LOG_BYTES,
    ) -> None:
        self._logs = directory / "logs"
        self._on_exit = on_exit
        self._log_bytes = log_bytes
        # Kept after the end of a process: the order of first starts is the reverse order of stops.
        self._processes: dict[str, _Running] = {}
        self._bounding: asyncio.Task[None] | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop_all(DEFAULT_STOP_ALL_MS)

    async def start(self, spec: ProcessSpec) -> None:
        """Starts a process and returns at once; a name whose process has ended may be used again.

        Raises:
            SupervisorError: the name is not acceptable or in use, or there is no command.
        """
        if not _NAME.fullmatch(spec.name) or not spec.argv:
            raise SupervisorError(f"{spec.name!r} is no name for a process, or its command is empty")
        if spec.name in self._processes and self.alive(spec.name):
            raise SupervisorError(f"{spec.name} runs already")
        running = self._spawn(spec)
        self._processes[spec.name] = running
        asyncio.get_running_loop().add_reader(running.pidfd, self._collect, running)
        if self._bounding is None:
            self._bounding = asyncio.create_task(self._bound_logs(), name="supervisor-logs")

    async def wait_ready(self, name: str, deadline_ms: int, probe: Probe | None = None) -> None:
        """Returns when the process is ready by ``probe``, or by its specification's when none is given.

        Raises:
            SupervisorError: no such process.
            ProcessEnded: it ended first.
            ProcessNotReady: ``deadline_ms`` milliseconds from now have passed.
        """
        running = self._find(name)
        ask = probe or running.spec.ready
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_ms / 1000
        while True:
            if running.ended.done():
                raise ProcessEnded(name, running.ended.result(), running.log_path, last_lines(running.log_path))
            if ask is None or await _passes(ask, min(PROBE_LIMIT_S, end - loop.time())):
                return
            if loop.time() >= end:
                raise ProcessNotReady(name, deadline_ms, running.log_path, last_lines(running.log_path))
            await asyncio.wait((running.ended,), timeout=PROBE_PERIOD_S)

    async def stop(self, name: str) -> int:
        """Stops a process: SIGTERM, its grace, SIGKILL to all that is left of it. Returns its exit status.

        Takes at most the grace and eight seconds. A process that has ended already is left as it is.

        Raises:
            SupervisorError: no such process.
            ProcessFailure: not even SIGKILL ended it.
        """
        running = self._find(name)
        running.stopping = True
        if not running.ended.done():
            running.warden.send_signal(signal.SIGTERM)
            await asyncio.wait((running.ended,), timeout=running.spec.grace_ms / 1000 + WARDEN_MARGIN_S)
        return await self._ensure_ended(running)

    async def stop_all(self, deadline_ms: int) -> None:
        """Stops every process, the last started first, one after the other.

        Whatever still runs ``deadline_ms`` milliseconds from now is killed.

        Raises:
            ProcessFailure: not even SIGKILL ended one of them.
        """
        loop = asyncio.get_running_loop()
        end = loop.time() + deadline_ms / 1000
        backwards = [running for running in reversed(self._processes.values()) if not running.ended.done()]
        for running in backwards:
            running.stopping = True
        for running in backwards:
            if running.ended.done():
                continue
            running.warden.send_signal(signal.SIGTERM)
            patience = running.spec.grace_ms / 1000 + WARDEN_MARGIN_S
            await asyncio.wait((running.ended,), timeout=max(0.0, min(patience, end - loop.time())))
        for running in backwards:
            if not running.ended.done():
                running.warden.send_signal(signal.SIGUSR1)
        for running in backwards:
            await asyncio.wait((running.ended,), timeout=WARDEN_MARGIN_S)
            await self._ensure_ended(running)
        if self._bounding is not None:
            self._bounding.cancel()
            await asyncio.wait((self._bounding,))
            self._bounding = None

    def alive(self, name: str) -> bool:
        """Whether the process runs.

        Raises:
            SupervisorError: no such process.
        """
        return not self._find(name).ended.done()

    def kill(self, name: str) -> None:
        """Ends the process as a crash would: SIGKILL, at once. `on_exit` hears of it; for demonstrations.

        Raises:
            SupervisorError: no such process.
        """
        running = self._find(name)
        if not running.ended.done():
            running.warden.send_signal(signal.SIGUSR1)

    def pid(self, name: str) -> int | None:
        """The process id of the program itself, not of its warden; None when it does not run.

        Raises:
            SupervisorError: no such process.
        """
        running = self._find(name)
        if running.ended.done():
            return None
        try:
            # A warden's oldest child is its program; any other is an orphan that it adopted later.
            children = psutil.Process(running.warden.pid).children()
            return min(children, key=lambda child: child.create_time()).pid if children else None
        except psutil.NoSuchProcess:
            return None

    def log_path(self, name: str) -> Path:
        """Where the output of ``name`` goes."""
        return self._logs / f"{name}.log"

    def said(self, name: str, prefix: str) -> str | None:
        """The first whole line since the start, within its first 256 KiB, that begins with ``prefix``.

        Raises:
            SupervisorError: no such process.
        """
        running = self._find(name)
        with running.log_path.open("rb") as log:
            log.seek(running.log_start)
            lines = log.read(READY_SCAN_BYTES).split(b"\n")
        for line in lines[:-1]:
            text = line.decode("utf-8", "replace")
            if text.startswith(prefix):
                return text
        return None

    def _find(self, name: str) -> _Running:
        try:
            return self._processes[name]
        except KeyError:
            raise SupervisorError(f"no process is named {name!r}") from None

    def _spawn(self, spec: ProcessSpec) -> _Running:
        self._logs.mkdir(parents=True, exist_ok=True)
        log_path = self.log_path(spec.name)
        command = [sys.executable, "-I", str(Path(__file__).with_name("warden.py"))]
        command += ["--grace-ms", str(spec.grace_ms), "--", *spec.argv]
        # Append mode is what makes cutting the log in place safe: each write goes to the end of that moment.
        with log_path.open("ab") as log:
            log_start = log.tell()
            warden = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=spec.cwd,
                env=child_environment(os.environ, spec.env),
                start_new_session=True,
            )
        ended = asyncio.get_running_loop().create_future()
        return _Running(spec, warden, os.pidfd_open(warden.pid), ended, log_path, log_start)

    def _collect(self, running: _Running) -> None:
        code = running.warden.poll()
        if code is None:
            return
        asyncio.get_running_loop().remove_reader(running.pidfd)
        os.close(running.pidfd)
        if running.warden.stdin is not None:
            running.warden.stdin.close()
        status = code if code >= 0 else 128 - code
        running.ended.set_result(status)
        if not running.stopping and self._on_exit is not None:
            self._on_exit(ProcessExit(running.spec.name, status, running.log_path, last_lines(running.log_path)))

    async def _ensure_ended(self, running: _Running) -> int:
        """Kills warden and all below when the warden itself does not act; returns the exit status."""
        if not running.ended.done():
            for process in _tree(running.warden.pid):
                try:
                    process.kill()
                except psutil.NoSuchProcess:
                    continue
            await asyncio.wait((running.ended,), timeout=DESTROY_LIMIT_S)
        if not running.ended.done():
            name = running.spec.name
            raise ProcessFailure(name, "cannot be killed", running.log_path, last_lines(running.log_path))
        return running.ended.result()

    async def _bound_logs(self) -> None:
        while True:
            await asyncio.sleep(LOG_CHECK_PERIOD_S)
            for running in self._processes.values():
                if _cut(running.log_path, self._log_bytes):
                    running.log_start = 0


def _cut(log_path: Path, log_bytes: int) -> bool:
    """Moves the text of a log beyond its bound to its one predecessor; whether it did."""
    with contextlib.suppress(FileNotFoundError):
        if log_path.stat().st_size > log_bytes:
            # Without room for the copy the text is lost: a log that fills the disk is worse.
            with contextlib.suppress(OSError):
                shutil.copyfile(log_path, log_path.with_name(log_path.name + ".1"))
            os.truncate(log_path, 0)
            return True
    return False


def _tree(pid: int) -> list[psutil.Process]:
    """The process and all below it, the descendants first, so that none is adopted and lost meanwhile."""
    try:
        top = psutil.Process(pid)
        return [*top.children(recursive=True), top]
    except psutil.NoSuchProcess:
        return []


async def _passes(probe: Probe, limit_s: float) -> bool:
    try:
        async with asyncio.timeout(max(0.0, limit_s)):
            return await probe()
    except (OSError, TimeoutError):
        return False
