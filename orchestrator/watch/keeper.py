"""The watch of a program of several processes: it starts them, starts again what dies, and stops them all.

It listens nowhere and reads no secret: not a byte of a tenant passes through it. It is as small as Python allows,
because it lasts as long as the program.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from orchestrator.config.program import EXIT_CANNOT_RUN, environment_without, run_until_signal
from orchestrator.telemetry.logs import logger
from orchestrator.telemetry.names import Event
from orchestrator.watch.leases import Leased
from orchestrator.watch.lending import Lending
from orchestrator.watch.places import private_folder, run_folder, socket_of
from orchestrator.watch.restarts import Restarts

LOOK_S = 0.05
"""How often is looked whether a process that was started listens."""
MARGIN_S = 15.0
"""How much longer than the grace for its answers a process may take to stop."""
KILLED_S = 5.0
SIGNAL_BASE = 128

log = logger("watch")
Process = asyncio.subprocess.Process


@dataclass(frozen=True, slots=True)
class Kept:
    """A program that is several processes."""

    module: str
    """What Python runs with `-m` and `--config`."""
    prefix: str
    """Of the program's variables in the environment, which its processes do not read again."""
    host: str
    port: int
    """What the processes listen on together."""
    data_dir: Path
    grace_ms: int
    """How long running answers have when the program stops."""
    leased: Leased
    """Limits of which the processes lease shares. There need be none: each process has its line to the watch anyway."""


def keep(kept: Kept, prepare: Callable[[], Sequence[Path]]) -> int:
    """Run a program of several processes until SIGTERM or SIGINT. Returns the exit status; raises OSError.

    `prepare` makes ready what they start from and returns the settings of each, once nobody else has their folders.
    The status is 0 when every process stopped in order, and that of the process when one cannot start in the first
    place.
    """
    check_port(kept.host, kept.port)
    with _alone(run_folder(kept.data_dir)):
        watch = Watch(kept, prepare(), environment_without(kept.prefix))
        run_until_signal(watch.run)
        return watch.status


def check_port(host: str, port: int) -> None:
    """Raise OSError when another program has the port: once shared, it would be shared with that one as well."""
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    with socket.socket(family, kind, protocol) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(address)


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Raises OSError where another watch has these folders: its processes start again from what is written here."""
    private_folder(run_dir)
    descriptor = os.open(run_dir / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another program has the lock of {run_dir}") from None
        yield
    finally:
        os.close(descriptor)


class Watch:
    """Keeps the processes of one program."""

    def __init__(self, kept: Kept, files: Sequence[Path], environment: Mapping[str, str]) -> None:
        """`files` are the settings of the processes, one each."""
        self.status = 0
        """Exit status of the program, once `run` has returned."""
        self._files = files
        self._environment = environment
        self._module = kept.module
        self._run_dir = run_folder(kept.data_dir)
        self._grace_s = kept.grace_ms / 1000 + MARGIN_S
        self._stop = asyncio.Event()
        self._live: dict[int, Process] = {}
        self._unready = set(range(len(files)))
        """Processes that have not listened yet, ever."""
        self._lending = Lending(kept.leased, self._end_hung)

    async def run(self, stop: asyncio.Event) -> None:
        """Keep every process until `stop`, then have them drain, and wait for their end. Raises OSError."""
        self._stop = stop
        keeping = [asyncio.create_task(self._keep(index), name=f"keep {index}") for index in range(len(self._files))]
        lending = asyncio.create_task(self._lending.run(), name="lend")
        try:
            await asyncio.gather(*keeping)
        finally:
            for task in (*keeping, lending):
                task.cancel()
            await asyncio.gather(*keeping, lending, return_exceptions=True)
            for process in self._live.values():
                await _kill(process)
        log.info(Event.PROGRAM_STOPPED)

    async def _keep(self, index: int) -> None:
        loop, restarts = asyncio.get_running_loop(), Restarts()
        while not self._stop.is_set():
            began_s = loop.time()
            try:
                process = await self._started(index)
            except OSError as failure:
                if index in self._unready:
                    raise
                # The others serve on, and the machine may have room for one more later.
                log.error(Event.PROCESS_EXITED, number=index, detail=failure.strerror or "cannot be started")
                await self._stopped_within(restarts.pause_s(0.0))
                continue
            listened = await self._listens(process, index)
            status = await self._ended(process)
            del self._live[index]
            await self._lending.ended(index)
            tell = log.info if self._stop.is_set() else log.warning
            tell(Event.PROCESS_EXITED, number=index, process_id=process.pid, exit_status=status)
            if self._stop.is_set():
                # One that was told to stop before it listened had nothing to put in order.
                self.status = self.status or (EXIT_CANNOT_RUN if status and listened else 0)
            elif index in self._unready:
                # What does not start now, with these settings, is for people to put right.
                self.status = status or EXIT_CANNOT_RUN
                self._stop.set()
            else:
                await self._stopped_within(restarts.pause_s(loop.time() - began_s))

    async def _started(self, index: int) -> Process:
        command = (sys.executable, "-m", self._module, "--config", str(self._files[index]))
        # The end of its line to the watch is its standard input.
        async with self._lending.line(index) as stdin:
            process = self._live[index] = await asyncio.create_subprocess_exec(
                *command, stdin=stdin, env=self._environment
            )
        log.info(Event.PROCESS_STARTED, number=index, process_id=process.pid)
        return process

    def _end_hung(self, index: int) -> None:
        """End a process that says nothing any more. While all stop, it has the time that all have."""
        process = self._live.get(index)
        if process is not None and not self._stop.is_set():
            log.error(Event.PROCESS_HUNG, number=index, process_id=process.pid)
            with contextlib.suppress(ProcessLookupError):
                process.kill()

    async def _listens(self, process: Process, index: int) -> bool:
        """Wait until a process takes requests. Returns whether it does; False when it ended or all are to stop."""
        while process.returncode is None and not self._stop.is_set():
            try:
                _, writer = await asyncio.open_unix_connection(str(socket_of(self._run_dir, index)))
            except OSError:
                await self._stopped_within(LOOK_S)
                continue
            writer.transport.abort()
            self._unready.discard(index)
            if not self._unready:
                log.info(Event.PROGRAM_READY)
            return True
        return False

    async def _ended(self, process: Process) -> int:
        """Wait for the end of a process, and bring it about once all are to stop. Returns its status, 128 + n for a
        signal."""
        ending = asyncio.create_task(process.wait())
        stopping = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait((ending, stopping), return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                await asyncio.wait((ending,), timeout=self._grace_s)
            if not ending.done():
                await _kill(process)
            status = await ending
        finally:
            for task in (ending, stopping):
                task.cancel()
            await asyncio.gather(ending, stopping, return_exceptions=True)
        return status if status >= 0 else SIGNAL_BASE - status

    async def _stopped_within(self, within_s: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within_s):
                await self._stop.wait()


async def _kill(process: Process) -> None:
    """End a process at once. One that not even this ends is the kernel's to take away."""
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(KILLED_S):
            await process.wait()
