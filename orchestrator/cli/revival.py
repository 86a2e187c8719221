"""What of the house ends by itself is started again, as Kubernetes or an init system does for programs in production.

At once almost, and then twice as long later each time, so that one that cannot start takes no processor.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable

from orchestrator.cli.processes import ProcessExit, ProcessSpec, Supervisor
from orchestrator.watch.restarts import Restarts


class Revival:
    """Hears of every end that nobody asked for, and from `begin` on starts that process again. Used in one loop."""

    def __init__(self, say: Callable[[str], None], clear: Callable[[str], None]) -> None:
        """`clear` is told the name of a process that is about to start again, to take away what is the last one's."""
        self._say = say
        self._clear = clear
        self._supervisor: Supervisor | None = None
        self._specs: dict[str, ProcessSpec] = {}
        self._restarts: dict[str, Restarts] = {}
        self._begun_s: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()  # bounded: one for each process

    def begin(self, supervisor: Supervisor, specs: Iterable[ProcessSpec]) -> None:
        """From now on start again what ends: what never stood is for people to put right."""
        now_s = asyncio.get_running_loop().time()
        self._supervisor = supervisor
        self._specs = {spec.name: spec for spec in specs}
        self._restarts = {name: Restarts() for name in self._specs}
        self._begun_s = dict.fromkeys(self._specs, now_s)

    def ended(self, exit_: ProcessExit) -> None:
        """A process ended, and nobody had asked for it. For `on_exit` of the supervisor."""
        said = f"{exit_.name} ended with status {exit_.status}; log: {exit_.log_path}"
        if self._supervisor is None or exit_.name not in self._specs:
            self._say(said)
            return
        lived_s = asyncio.get_running_loop().time() - self._begun_s[exit_.name]
        pause_s = self._restarts[exit_.name].pause_s(lived_s)
        self._say(f"{said}; started again in {pause_s:g} s")
        task = asyncio.create_task(self._again(self._supervisor, exit_.name, pause_s))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def end(self) -> None:
        """Start nothing again any more."""
        self._supervisor = None
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _again(self, supervisor: Supervisor, name: str, pause_s: float) -> None:
        await asyncio.sleep(pause_s)
        while not supervisor.alive(name):
            self._clear(name)
            self._begun_s[name] = asyncio.get_running_loop().time()
            try:
                await supervisor.start(self._specs[name])
            except OSError as failure:  # the machine may have room for it later
                self._say(f"{name} cannot be started: {failure.strerror}")
                await asyncio.sleep(self._restarts[name].pause_s(0.0))
