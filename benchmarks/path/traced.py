"""Runs a program of Tidegate with a clock round its stages: `python -m benchmarks.path.traced SOCKET edge|intake MODULE
ARGS...`. The program itself knows nothing of it and pays nothing where it is not run this way.

Each named function is replaced by one that notes the time at its begin and end. A stage gets only the time in which
none of another stage ran inside it; a coroutine only that of its steps. So the stages add up, and what is left of the
process is the event loop, gRPC, the HTTP server and the kernel. What the clock itself costs is measured at the start
and taken off. SOCKET gives one JSON object for each connection: the sums so far.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import json
import resource
import runpy
import socket
import sys
import threading
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.path.stages import MODULES, STAGES

CALIBRATION = 500
BATCHES = 40
CHEAP_NS = 1_500
"""A clock of processor time that costs more than this is not used: it would be most of what it measures."""


class Clock:
    """Sums by stage, for the main thread alone."""

    def __init__(self, stages: int, now_ns: Callable[[], int]) -> None:
        self.spent_ns = [0] * (stages + 1)
        """By stage; the last is what belongs to none."""
        self.calls = [0] * (stages + 1)
        self.inner = [0] * (stages + 1)
        """Calls of a stage that were made from within another."""
        self._now_ns = now_ns
        self._stack = [stages]
        self._last_ns = now_ns()
        self._main = threading.get_ident()

    def here(self) -> bool:
        """Whether this is the thread that is measured."""
        return threading.get_ident() == self._main

    def enter(self, stage: int) -> None:
        """A stage begins, or goes on."""
        now_ns = self._now_ns()
        stack = self._stack
        outer = stack[-1]
        self.spent_ns[outer] += now_ns - self._last_ns
        self.inner[outer] += 1
        self.calls[stage] += 1
        stack.append(stage)
        self._last_ns = now_ns

    def leave(self) -> None:
        """It ends, or rests."""
        now_ns = self._now_ns()
        self.spent_ns[self._stack.pop()] += now_ns - self._last_ns
        self._last_ns = now_ns

    def cost_ns(self) -> tuple[float, float]:
        """Measure what the clock costs a stage for a call of it, and its caller."""
        costs: list[tuple[float, float]] = []
        for _ in range(BATCHES):
            before_inner, before_outer = self.spent_ns[0], self.spent_ns[-1]
            for _ in range(CALIBRATION):
                self.enter(0)
                self.leave()
            inner = (self.spent_ns[0] - before_inner) / CALIBRATION
            costs.append((inner, (self.spent_ns[-1] - before_outer) / CALIBRATION))
        # The least: whatever else the machine did made the others longer.
        inner, outer = min(costs, key=sum)
        self.spent_ns = [0] * len(self.spent_ns)
        self.calls = [0] * len(self.calls)
        self.inner = [0] * len(self.inner)
        return inner, outer


class _Steps:
    """A coroutine whose steps are timed."""

    def __init__(self, clock: Clock, stage: int, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._clock = clock
        self._stage = stage
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, Any]:
        return self  # it has what `await` asks of a generator

    def __iter__(self) -> _Steps:
        return self

    def __next__(self) -> Any:
        return self.send(None)

    def send(self, value: Any) -> Any:
        self._clock.enter(self._stage)
        try:
            return self._coroutine.send(value)
        finally:
            self._clock.leave()

    def throw(self, *failure: Any) -> Any:
        self._clock.enter(self._stage)
        try:
            return self._coroutine.throw(*failure)
        finally:
            self._clock.leave()

    def close(self) -> None:
        self._coroutine.close()


class _Items:
    """An asynchronous generator whose steps are timed."""

    def __init__(self, clock: Clock, stage: int, items: AsyncGenerator[Any, Any]) -> None:
        self._clock = clock
        self._stage = stage
        self._items = items

    def __aiter__(self) -> _Items:
        return self

    async def __anext__(self) -> Any:
        return await _Steps(self._clock, self._stage, self._items.__anext__())

    async def aclose(self) -> None:
        await _Steps(self._clock, self._stage, self._items.aclose())


def wrapped(function: Callable[..., Any], clock: Clock, stage: int) -> Callable[..., Any]:
    """Return the function with the clock round it."""
    if inspect.isasyncgenfunction(function):

        @functools.wraps(function)
        def items(*args: Any, **named: Any) -> Any:
            return _Items(clock, stage, function(*args, **named))

        return items
    if inspect.iscoroutinefunction(function):

        @functools.wraps(function)
        async def coroutine(*args: Any, **named: Any) -> Any:
            return await _Steps(clock, stage, function(*args, **named))

        return coroutine

    @functools.wraps(function)
    def plain(*args: Any, **named: Any) -> Any:
        if not clock.here():
            return function(*args, **named)
        clock.enter(stage)
        try:
            return function(*args, **named)
        finally:
            clock.leave()

    return plain


def install(name: str, clock: Clock, stage: int) -> bool:
    """Put the clock round what a name names, wherever it was imported. Returns whether there is such a function."""
    module, _, dotted = name.partition(":")
    *owners, last = dotted.split(".")
    try:
        owner: Any = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
    except (ImportError, AttributeError):
        return False
    names = [last] if last != "*" else [found for found in vars(owner) if not found.startswith("_")]
    return sum(_replaced(owner, one, clock, stage) for one in names) > 0


def _replaced(owner: Any, name: str, clock: Clock, stage: int) -> bool:
    found = inspect.getattr_static(owner, name, None)
    if inspect.isclass(owner) and isinstance(found, staticmethod):
        setattr(owner, name, staticmethod(wrapped(found.__func__, clock, stage)))
        return True
    if not inspect.isfunction(found):
        return False
    timed = wrapped(found, clock, stage)
    if inspect.isclass(owner):
        setattr(owner, name, timed)
        return True
    if found.__module__ != owner.__name__:
        return False
    for module in tuple(sys.modules.values()):
        for known, value in tuple(getattr(module, "__dict__", {}).items()):
            if value is found:
                setattr(module, known, timed)
    return True


def named(name: str) -> bool:
    """Whether there is what a name names. It is left as it is."""
    module, _, dotted = name.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in dotted.removesuffix("*").removesuffix(".").split("."):
            found = getattr(found, part) if part else found
    except (ImportError, AttributeError):
        return False
    return True


def best_clock() -> tuple[str, Callable[[], int]]:
    """Return the clock that disturbs least, and what it counts."""
    costs = []
    for _ in range(BATCHES):
        begun_ns = time.perf_counter_ns()
        for _ in range(CALIBRATION):
            time.thread_time_ns()
        costs.append((time.perf_counter_ns() - begun_ns) / CALIBRATION)
    cheap = min(costs) <= CHEAP_NS
    return ("processor time", time.thread_time_ns) if cheap else ("elapsed time", time.perf_counter_ns)


def _serve(path: str, found: Callable[[], dict[str, object]]) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path)
        listening.listen(4)
        while True:
            connection, _ = listening.accept()
            with connection:
                connection.sendall(json.dumps(found()).encode())


def main(arguments: Sequence[str]) -> None:
    """Install the clock and become the program."""
    path, program, module, *rest = arguments
    stages = STAGES[program]
    importlib.import_module(MODULES[program])
    which, now_ns = best_clock()
    clock = Clock(len(stages), now_ns)
    missing = [
        name
        for number, stage in enumerate(stages)
        for name in stage.functions
        if not install(name, clock, number)
    ]
    inner_ns, outer_ns = clock.cost_ns()

    def found() -> dict[str, object]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return {
            "clock": which,
            "missing": missing,
            "inner_ns": inner_ns,
            "outer_ns": outer_ns,
            "spent_ns": list(clock.spent_ns),
            "calls": list(clock.calls),
            "inner": list(clock.inner),
            "process_us": (usage.ru_utime + usage.ru_stime) * 1e6,
        }

    Path(path).unlink(missing_ok=True)
    threading.Thread(target=_serve, args=(path, found), daemon=True).start()
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(sys.argv[1:])
